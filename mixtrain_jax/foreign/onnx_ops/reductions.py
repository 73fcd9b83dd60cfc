"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mixtrain_jax.errors import ModelError
from mixtrain_jax.foreign.onnx_ops.values import (
    Array,
    Attributes,
    Operators,
    axes_of,
    flag,
    integers,
    is_known,
    numpy_of,
)


def _reduce(name: str) -> Callable[..., Array]:
    def compute(attributes: Attributes, x: Array, axes: Array | None = None) -> Array:
        chosen = attributes["axes"] if "axes" in attributes else None if axes is None else integers(axes, "axes")
        keep = flag(attributes["keepdims"], "keepdims")
        if not chosen and flag(attributes.get("noop_with_empty_axes", 0), "noop_with_empty_axes"):
            return x
        where = axes_of(chosen, x.ndim) if chosen else tuple(range(x.ndim))
        if any(x.shape[i] == 0 for i in where):
            raise ModelError(f"it reduces nothing: {list(x.shape)}")
        if is_known(x) and not np.issubdtype(x.dtype, np.floating) and name == "mean":
            raise ModelError("the mean of integers is not supported")
        reduced = getattr(numpy_of(x), name)(x, axis=where, keepdims=keep)
        return np.asarray(reduced, x.dtype) if is_known(x) else reduced

    return compute


OPERATIONS: Operators = {
    "ReduceMax": _reduce("max"),
    "ReduceMean": _reduce("mean"),
    "ReduceMin": _reduce("min"),
    "ReduceSum": _reduce("sum"),
}
