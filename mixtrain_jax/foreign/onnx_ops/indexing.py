"""Operators that pick entries by known indices, put them there, or sort them."""

from __future__ import annotations

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
    axis_of,
    flag,
    integers,
    is_known,
    known,
    numpy_of,
)

Index = tuple[np.ndarray, ...]


def _within(indices: Array, size: int, what: str = "an index") -> np.ndarray:
    """Known indices of `size` entries, those from the end counted from the start."""
    where = known(indices, "the indices")
    if np.any((where < -size) | (where >= size)):
        raise ModelError(f"{what} lies outside 0 to {size - 1}")
    return np.where(where < 0, where + size, where).astype(np.int32)


def _gather(attributes: Attributes, x: Array, indices: Array) -> Array:
    axis = axis_of(attributes["axis"], x.ndim)
    where = _within(indices, x.shape[axis])
    if is_known(x):
        allowed((*x.shape[:axis], *where.shape, *x.shape[axis + 1 :]), np)
        return np.asarray(np.take(x, where, axis))
    if where.ndim == 0:
        return lax.index_in_dim(x, int(where), axis, keepdims=False)
    return jnp.take(x, where, axis, mode="clip")


def _along(attributes: Attributes, x: Array, indices: Array) -> Index:
    """Where in `x` each of the indices along an axis points to."""
    axis = axis_of(attributes["axis"], x.ndim)
    shape = known(indices, "the indices").shape
    if len(shape) != x.ndim or any(
        n > size for d, (n, size) in enumerate(zip(shape, x.shape, strict=True)) if d != axis
    ):
        raise ModelError(f"indices {list(shape)} do not fit {list(x.shape)}")
    where = list(np.indices(shape, np.int32, sparse=True))
    where[axis] = _within(indices, x.shape[axis])
    return tuple(where)


def _of_tuples(x: Array, indices: Array, batch_dims: int = 0) -> Index:
    """Where in `x` each row of the indices points to, the first dimensions of both running together."""
    indices = known(indices, "the indices")
    if not 0 <= batch_dims < min(x.ndim, indices.ndim) or x.shape[:batch_dims] != indices.shape[:batch_dims]:
        raise ModelError(f"batch_dims {batch_dims} does not fit {list(x.shape)} and {list(indices.shape)}")
    count = indices.shape[-1]
    if not 1 <= count <= x.ndim - batch_dims:
        raise ModelError(f"indices {list(indices.shape)} do not fit {list(x.shape)}")
    batch = np.indices(indices.shape[:-1], np.int32, sparse=True)[:batch_dims]
    return (*batch, *(_within(indices[..., i], x.shape[batch_dims + i]) for i in range(count)))


def _picked(x: Array, where: Index) -> Array:
    shape = np.broadcast_shapes(*(w.shape for w in where)) + x.shape[len(where) :]
    allowed(shape, numpy_of(x))
    return x[where] if isinstance(x, np.ndarray) else x.at[where].get(mode="clip")


def _gather_elements(attributes: Attributes, x: Array, indices: Array) -> Array:
    return _picked(x, _along(attributes, x, indices))


def _gather_nd(attributes: Attributes, x: Array, indices: Array) -> Array:
    return _picked(x, _of_tuples(x, indices, attributes["batch_dims"]))


def _scattered(attributes: Attributes, x: Array, where: Index, updates: Array) -> Array:
    shape = np.broadcast_shapes(*(w.shape for w in where)) + x.shape[len(where) :]
    if updates.shape != shape:
        raise ModelError(f"updates {list(updates.shape)} are not of the shape {list(shape)} of what they replace")
    place, reduction = jnp.asarray(x).at[where], attributes["reduction"]
    if reduction == "add":
        return place.add(updates, mode="promise_in_bounds")
    if reduction != "none":
        raise ModelError(f"reduction {reduction!r} is not supported, only none and add")
    flat = np.ravel_multi_index(where, x.shape[: len(where)])
    if np.unique(flat).size != flat.size:
        raise ModelError("an entry is replaced twice, and by which is not defined")
    return place.set(updates, mode="promise_in_bounds", unique_indices=True)


def _scatter_elements(attributes: Attributes, x: Array, indices: Array, updates: Array) -> Array:
    return _scattered(attributes, x, _along(attributes, x, indices), updates)


def _scatter_nd(attributes: Attributes, x: Array, indices: Array, updates: Array) -> Array:
    return _scattered(attributes, x, _of_tuples(x, indices), updates)


def _one_hot(attributes: Attributes, indices: Array, depth: Array, values: Array) -> Array:
    (size,), where = integers(depth, "the depth"), known(indices, "the indices")
    if size < 1 or values.shape != (2,):
        raise ModelError(f"depth {size} or values {list(values.shape)} are not understood")
    allowed((*where.shape, size), np)
    axis = axis_of(attributes["axis"], where.ndim + 1)
    where = np.where(where < 0, where + size, where) if attributes["since"] >= 11 else where
    hot = np.moveaxis(where[..., None] == np.arange(size), -1, axis)
    off, on = values[0], values[1]
    return np.asarray(np.where(hot, on, off), values.dtype) if is_known(values) else jnp.where(hot, on, off)


def _non_zero(attributes: Attributes, x: Array) -> Array:
    return np.asarray(np.nonzero(known(x, "what is searched")), np.int64)


def _trilu(attributes: Attributes, x: Array, k: Array | None = None) -> Array:
    if x.ndim < 2:
        raise ModelError(f"it wants matrices, got {list(x.shape)}")
    diagonal = 0 if k is None else integers(k, "k")[0]
    rows, columns = np.indices(allowed(x.shape[-2:], np), sparse=True)
    upper = flag(attributes["upper"], "upper")
    kept = columns - rows >= diagonal if upper else columns - rows <= diagonal
    return numpy_of(x).where(kept.reshape((1,) * (x.ndim - 2) + kept.shape), x, np.zeros((), x.dtype))


def _top_k(attributes: Attributes, x: Array, k: Array) -> Array | tuple[Array, ...]:
    axis = axis_of(attributes["axis"], x.ndim)
    (count,) = integers(k, "k")
    if not 0 <= count <= x.shape[axis]:
        raise ModelError(f"k {count} is more than the {x.shape[axis]} that there are")
    largest = flag(attributes["largest"], "largest")
    if isinstance(x, np.ndarray):
        order = np.argsort(-x if largest else x, axis, kind="stable").take(range(count), axis)
        return np.take_along_axis(x, order, axis), order.astype(np.int64)
    ordered = jnp.sort(x, axis)
    return lax.slice_in_dim(jnp.flip(ordered, axis) if largest else ordered, 0, count, axis=axis)


def _range(attributes: Attributes, start: Array, limit: Array, delta: Array) -> Array:
    first, last, step = (known(v, "a limit").item() for v in (start, limit, delta))
    if not step or not all(map(math.isfinite, (first, last, step))):
        raise ModelError(f"there is no range from {first} to {last} in steps of {step}")
    count = max(math.ceil((last - first) / step), 0)
    allowed((count,), np)
    return (first + step * np.arange(count)).astype(start.dtype)


OPERATIONS: Operators = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
    "Range": _range,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TopK": _top_k,
    "Trilu": _trilu,
}
