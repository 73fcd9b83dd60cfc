"""What implementations of operators share: known values, checked shapes, axes and flags."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.errors import ModelError

Array = jax.Array | np.ndarray
Attributes = dict[str, Any]
Operators = dict[str, Callable[..., Any]]

MAX_KNOWN = 2**20  # entries of an array that shape arithmetic makes


def is_known(x: Array) -> bool:
    """Whether a value does not depend on the images or the parameters."""
    return isinstance(x, np.ndarray)


def numpy_of(*arrays: Array) -> Any:
    """NumPy where all arrays are known, jax.numpy otherwise."""
    return np if all(is_known(x) for x in arrays) else jnp


def known(x: Array, what: str) -> np.ndarray:
    """The array, which must be known at trace time; `what` names it in the error."""
    if not isinstance(x, np.ndarray):
        raise ModelError(f"{what} must be a constant of the graph")
    return x


def integers(x: Array, what: str) -> list[int]:
    """A known list of integers, or a scalar as a list of one."""
    x = known(x, what)
    if x.ndim > 1:
        raise ModelError(f"{what} must be a list, got shape {list(x.shape)}")
    return [int(v) for v in x.ravel()]


def allowed(shape: tuple[int, ...], numpy: Any) -> tuple[int, ...]:
    """A shape, if an array of it may be made now."""
    if any(size < 0 for size in shape):
        raise ModelError(f"it would make an array of shape {list(shape)}")
    if numpy is np and math.prod(shape) > MAX_KNOWN:
        raise ModelError(f"it would make a constant of shape {list(shape)}, larger than {MAX_KNOWN} entries")
    return shape


def axis_of(axis: int, rank: int, what: str = "axis") -> int:
    """A non-negative axis of an array of `rank` dimensions."""
    if not -rank <= axis < rank:
        raise ModelError(f"{what} {axis} is none of {rank} dimensions")
    return axis % rank


def axes_of(axes: list[int], rank: int) -> tuple[int, ...]:
    """Non-negative, distinct axes."""
    found = tuple(axis_of(axis, rank) for axis in axes)
    if len(set(found)) != len(found):
        raise ModelError(f"axes {axes} repeat")
    return found


def flag(value: int, name: str) -> bool:
    """An attribute that must be 0 or 1."""
    if value not in (0, 1):
        raise ModelError(f"{name} must be 0 or 1, got {value}")
    return bool(value)


def together(*arrays: Array) -> tuple[Array, ...]:
    """All of one rank, checked to broadcast to something of a sane size."""
    numpy = numpy_of(*arrays)
    shape = allowed(np.broadcast_shapes(*(x.shape for x in arrays)), numpy)
    rank = len(shape)
    return tuple(x if x.ndim == rank else x.reshape((1,) * (rank - x.ndim) + x.shape) for x in arrays)


def unary(function: Callable[[jax.Array], jax.Array]) -> Callable[..., Array]:
    """An operator of one input by a function of jax arrays, traced once for each shape: deep graphs load in seconds."""
    traced = jax.jit(function, inline=True)
    return lambda attributes, x: traced(jnp.asarray(x))


def channelwise(bias: Array, spatial: int) -> Array:
    """A vector over channels, shaped to broadcast against `[n, channels, ...]` with so many spatial dimensions."""
    return bias.reshape((1, -1) + (1,) * spatial)
