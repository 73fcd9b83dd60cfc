"""Reductions over axes, and sums along one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.errors import ModelError
from mixtrain_jax.foreign.onnx_ops.values import (
    Array,
    Attributes,
    Operators,
    axes_of,
    axis_of,
    flag,
    integers,
    is_known,
    numpy_of,
)

Reduce = Callable[..., Any]  # (x, axis, keepdims) -> array


def _reduce(of: Callable[[Any], Reduce], alone: bool = False) -> Callable[..., Array]:
    """An operator from what reduces in NumPy or jax.numpy; `alone` where one number is its own reduction."""

    def compute(attributes: Attributes, x: Array, axes: Array | None = None) -> Array:
        chosen = None if axes is None else integers(axes, "axes")
        keep = flag(attributes["keepdims"], "keepdims")
        if not chosen and flag(attributes["noop_with_empty_axes"], "noop_with_empty_axes"):
            if not alone:
                raise ModelError("noop_with_empty_axes without axes is not supported")
            return x
        where = axes_of(chosen, x.ndim) if chosen else tuple(range(x.ndim))
        if any(x.shape[i] == 0 for i in where):
            raise ModelError(f"it reduces nothing: {list(x.shape)}")
        reduced = of(numpy_of(x))(x, axis=where, keepdims=keep)
        return np.asarray(reduced, x.dtype) if is_known(x) else reduced

    return compute


def _mean(numpy: Any) -> Reduce:
    def mean(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
        if not np.issubdtype(x.dtype, np.floating):
            raise ModelError("the mean of integers is not supported")
        return numpy.mean(x, axis=axis, keepdims=keepdims)

    return mean


def _log_sum_exp(numpy: Any) -> Reduce:
    return lambda x, axis, keepdims: jax.nn.logsumexp(jnp.asarray(x), axis=axis, keepdims=keepdims)


def _summed(before: str | None, after: str | None = None) -> Callable[[Any], Reduce]:
    """A sum of what `before` makes of entries, by its name in NumPy, and `after` of that."""

    def of(numpy: Any) -> Reduce:
        def reduce(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
            total = numpy.sum(getattr(numpy, before)(x) if before else x, axis=axis, keepdims=keepdims)
            return getattr(numpy, after)(total) if after else total

        return reduce

    return of


def _cumulative_sum(attributes: Attributes, x: Array, axis: Array) -> Array:
    (place,) = integers(axis, "the axis")
    place, numpy = axis_of(place, x.ndim), numpy_of(x)
    backwards, exclusive = flag(attributes["reverse"], "reverse"), flag(attributes["exclusive"], "exclusive")
    x = numpy.flip(x, place) if backwards else x
    if exclusive:  # the sum of the entries before: none before the first, and never the last
        first, rest = (slice(None),) * place + (slice(0, 1),), (slice(None),) * place + (slice(0, -1),)
        x = numpy.concatenate([numpy.zeros_like(x[first]), x[rest]], place)
    total = numpy.cumsum(x, place, dtype=x.dtype)
    return numpy.flip(total, place) if backwards else total


def _arg(name: str) -> Callable[..., Array]:
    """Of what is known alone: of images, which entry is largest has no bounds."""

    def compute(attributes: Attributes, x: Array) -> Array:
        axis = axis_of(attributes["axis"], x.ndim)
        if not is_known(x):
            raise ModelError("it makes integers of the images, which is supported for the output alone")
        if x.shape[axis] == 0:
            raise ModelError(f"it reduces nothing: {list(x.shape)}")
        last = flag(attributes["select_last_index"], "select_last_index")
        found = getattr(np, name)(
            np.flip(x, axis) if last else x, axis, keepdims=flag(attributes["keepdims"], "keepdims")
        )
        return np.asarray(x.shape[axis] - 1 - found if last else found, np.int64)

    return compute


def _chosen_class(sign: int) -> Callable[..., Array]:
    """Where a network ends with the class that it chooses: the logits that it chooses by."""

    def compute(attributes: Attributes, x: Array) -> Array:
        if x.ndim != 2 or axis_of(attributes["axis"], 2) != 1:
            raise ModelError(
                f"the network ends with a choice along axis {attributes['axis']} of {list(x.shape)}, not of a class"
            )
        return x if sign > 0 else -x

    return compute


ENDS: Operators = {"ArgMax": _chosen_class(1), "ArgMin": _chosen_class(-1)}
OPERATIONS: Operators = {
    "ArgMax": _arg("argmax"),
    "ArgMin": _arg("argmin"),
    "CumSum": _cumulative_sum,
    "ReduceL1": _reduce(_summed("abs")),
    "ReduceL2": _reduce(_summed("square", "sqrt")),
    "ReduceLogSum": _reduce(_summed(None, "log")),
    "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ReduceMax": _reduce(lambda numpy: numpy.max, alone=True),
    "ReduceMean": _reduce(_mean, alone=True),
    "ReduceMin": _reduce(lambda numpy: numpy.min, alone=True),
    "ReduceProd": _reduce(lambda numpy: numpy.prod, alone=True),
    "ReduceSum": _reduce(_summed(None), alone=True),
    "ReduceSumSquare": _reduce(_summed("square")),
}
