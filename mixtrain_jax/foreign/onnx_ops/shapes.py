"""Operators that move entries, and shapes as values."""

from __future__ import annotations

import itertools
import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from mixtrain_jax.errors import ModelError
from mixtrain_jax.foreign.onnx_ops.values import (
    Array,
    Attributes,
    Operators,
    allowed,
    axes_of,
    axis_of,
    flag,
    integers,
    numpy_of,
)


def _flatten(attributes: Attributes, x: Array) -> Array:
    axis = attributes["axis"]
    if not -x.ndim <= axis <= x.ndim:
        raise ModelError(f"axis {axis} is none of {x.ndim} dimensions")
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape((math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def _reshape(attributes: Attributes, x: Array, shape: Array) -> Array:
    sizes = integers(shape, "the shape")
    if not flag(attributes.get("allowzero", 0), "allowzero"):
        if any(size == 0 and i >= x.ndim for i, size in enumerate(sizes)):
            raise ModelError(f"the shape {sizes} copies a dimension that {list(x.shape)} does not have")
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    if any(size < -1 for size in sizes) or sizes.count(-1) > 1 or (-1 in sizes and 0 in sizes):
        raise ModelError(f"the shape {sizes} is none")
    return x.reshape(sizes)


def _transpose(attributes: Attributes, x: Array) -> Array:
    order = attributes["perm"]
    order = tuple(reversed(range(x.ndim))) if order is None else tuple(order)
    if sorted(order) != list(range(x.ndim)):
        raise ModelError(f"perm {list(order)} is no order of {x.ndim} dimensions")
    return x.transpose(order)


def _squeeze(attributes: Attributes, x: Array, axes: Array | None = None) -> Array:
    chosen = [i for i, size in enumerate(x.shape) if size == 1] if axes is None else integers(axes, "axes")
    return numpy_of(x).squeeze(x, axes_of(chosen, x.ndim))


def _unsqueeze(attributes: Attributes, x: Array, axes: Array) -> Array:
    chosen = integers(axes, "axes")
    return numpy_of(x).expand_dims(x, axes_of(chosen, x.ndim + len(chosen)))


def _concat(attributes: Attributes, *arrays: Array) -> Array:
    axis = axis_of(attributes["axis"], arrays[0].ndim)
    numpy = numpy_of(*arrays)
    sizes = [x.size for x in arrays]
    allowed((sum(sizes),), numpy)
    return numpy.concatenate(arrays, axis)


def _split(attributes: Attributes, x: Array, sizes: Array | None = None, *, outputs: int) -> tuple[Array, ...]:
    axis = axis_of(attributes["axis"], x.ndim)
    given, length = None if sizes is None else integers(sizes, "split"), x.shape[axis]
    count = attributes.get("num_outputs")
    if given is not None and count is not None:
        raise ModelError("split and num_outputs exclude each other")
    if count is not None and count != outputs:
        raise ModelError(f"num_outputs is {count}, but it has {outputs} outputs")
    if given is None:
        if count is None and length % outputs:
            raise ModelError(f"{length} cannot be split into {outputs} equal parts")
        size = -(-length // outputs)
        given = [size] * (outputs - 1) + [length - size * (outputs - 1)]
    if len(given) != outputs or min(given) < 0 or sum(given) != length:
        raise ModelError(f"{length} cannot be split into {given}, {outputs} outputs")
    ends = [0, *itertools.accumulate(given)]
    where = (slice(None),) * axis
    return tuple(x[(*where, slice(a, b))] for a, b in itertools.pairwise(ends))


def _slice(
    attributes: Attributes, x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> Array:
    first, last = integers(starts, "starts"), integers(ends, "ends")
    chosen = axes_of(integers(axes, "axes") if axes is not None else list(range(len(first))), x.ndim)
    stride = integers(steps, "steps") if steps is not None else [1] * len(first)
    if not len(first) == len(last) == len(chosen) == len(stride) or 0 in stride:
        raise ModelError("starts, ends, axes and steps do not fit each other")
    where = [slice(None)] * x.ndim
    for axis, a, b, step in zip(chosen, first, last, stride, strict=True):
        where[axis] = slice(a, b, step)
    return x[tuple(where)]


def _pad(attributes: Attributes, x: Array, pads: Array, value: Array | None = None, axes: Array | None = None) -> Array:
    mode, sizes = attributes["mode"], integers(pads, "pads")
    chosen = axes_of(integers(axes, "axes") if axes is not None else list(range(x.ndim)), x.ndim)
    if len(sizes) != 2 * len(chosen):
        raise ModelError(f"pads {sizes} do not fit {len(chosen)} axes")
    widths = [(0, 0)] * x.ndim
    for axis, low, high in zip(chosen, sizes[: len(chosen)], sizes[len(chosen) :], strict=True):
        widths[axis] = (low, high)
    shape = tuple(n + low + high for n, (low, high) in zip(x.shape, widths, strict=True))
    allowed(shape, numpy_of(x))
    if mode == "constant":
        value = np.zeros((), x.dtype) if value is None else value
        if value.size != 1:
            raise ModelError("the value must be a scalar")
        return lax.pad(jnp.asarray(x), jnp.asarray(value).reshape(()), [(low, high, 0) for low, high in widths])
    if mode not in ("reflect", "edge", "wrap") or min(min(w) for w in widths) < 0:
        raise ModelError(f"mode {mode!r} with pads {sizes} is not supported")
    most = {"reflect": -1, "wrap": 0}.get(mode)
    if most is not None and any(max(w) > n + most for w, n in zip(widths, x.shape, strict=True) if max(w)):
        raise ModelError(f"pads {sizes} repeat more than there is in {list(x.shape)}")
    if 0 in x.shape:
        raise ModelError("there is nothing to repeat")
    return numpy_of(x).pad(x, widths, mode=mode)


def _expand(attributes: Attributes, x: Array, shape: Array) -> Array:
    sizes = tuple(integers(shape, "the shape"))
    numpy = numpy_of(x)
    allowed(sizes, numpy)
    return numpy.broadcast_to(x, allowed(np.broadcast_shapes(x.shape, sizes), numpy))


def _constant_of_shape(attributes: Attributes, shape: Array) -> Array:
    sizes = allowed(tuple(integers(shape, "the shape")), np)
    value = attributes["value"] if attributes["value"] is not None else np.zeros(1, np.float32)
    if value.size != 1:
        raise ModelError("value must have one entry")
    return np.full(sizes, value.ravel()[0], value.dtype)


def _shape_of(attributes: Attributes, x: Array) -> Array:
    return np.array(x.shape[slice(attributes.get("start", 0), attributes.get("end"))], np.int64)


def _size_of(attributes: Attributes, x: Array) -> Array:
    return np.array(x.size, np.int64)


def _tile(attributes: Attributes, x: Array, repeats: Array) -> Array:
    times = integers(repeats, "repeats")
    if len(times) != x.ndim:
        raise ModelError(f"repeats {times} do not fit {x.ndim} dimensions")
    allowed(tuple(n * t for n, t in zip(x.shape, times, strict=True)), numpy_of(x))
    return numpy_of(x).tile(x, times)


def _eye_like(attributes: Attributes, x: Array) -> Array:
    if x.ndim != 2 or attributes["dtype"] not in (None, 1):
        raise ModelError(f"it wants a matrix and makes floats, got {list(x.shape)} and dtype {attributes['dtype']}")
    if attributes["dtype"] is None and x.dtype != np.float32:
        raise ModelError(f"it makes floats, not {x.dtype}")
    return np.eye(*allowed(x.shape, np), k=attributes["k"], dtype=np.float32)


OPERATIONS: Operators = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "EyeLike": _eye_like,
    "Flatten": _flatten,
    "Pad": _pad,
    "Reshape": _reshape,
    "Shape": _shape_of,
    "Size": _size_of,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
