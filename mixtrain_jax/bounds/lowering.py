"""Operations that are better said with others: each becomes a function of the same operands, traced in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive, primitives

from mixtrain_jax.bounds.interval import concrete

Function = Callable[..., jax.Array]


def find(primitive: Primitive, params: dict[str, Any], operands: Sequence[Any], refs: Sequence[Any]) -> Function | None:
    """A better way to say an operation, or None.

    Args:
      primitive: of the operation.
      params: of the operation.
      operands: as on the tape.
      refs: the operands that depend on an interval, None in the place of each exact one.
    """
    lower = _LOWERINGS.get(primitive)
    return lower(params, operands, refs) if lower else None


def _mul(params: dict[str, Any], operands: Sequence[Any], refs: Sequence[Any]) -> Function | None:
    """A number times itself is no product of independent numbers."""
    x, y = refs
    return (lambda x, _: lax.square(x)) if x is not None and x is y else None


def _dot(params: dict[str, Any], operands: Sequence[Any], refs: Sequence[Any]) -> Function | None:
    """The inner product of a vector with itself is a sum of squares."""
    x, y = refs
    (contracted, of_y), (batch, batch_of_y) = params["dimension_numbers"]
    same = x is not None and x is y and (contracted, batch) == (of_y, batch_of_y)
    if not same or len(contracted) + len(batch) != len(x.shape):
        return None

    def squares(x: jax.Array, _: Any) -> jax.Array:
        x = jnp.transpose(x, (*batch, *contracted)).astype(params["preferred_element_type"] or x.dtype)
        return lax.square(x).sum(tuple(range(len(batch), x.ndim)))

    return squares


def _div(params: dict[str, Any], operands: Sequence[Any], refs: Sequence[Any]) -> Function | None:
    return (lambda x, y: x * lax.integer_pow(y, -1)) if refs[1] is not None else None


def _pow(params: dict[str, Any], operands: Sequence[Any], refs: Sequence[Any]) -> Function | None:
    exponent = None if refs[1] is not None else concrete(operands[1])
    if exponent is None or exponent.ndim or not abs(float(exponent)) < 2**31:  # nor NaN
        return lambda x, y: jnp.exp(jnp.asarray(y, jnp.result_type(x)) * jnp.log(x))
    n = float(exponent)
    return (lambda x, _: lax.integer_pow(x, int(n))) if n.is_integer() else None


def _neutral(value: float) -> Callable[..., Function | None]:
    """A maximum with -inf, a minimum with inf: what `jnp` writes where it was given no limit."""

    def lower(params: dict[str, Any], operands: Sequence[Any], refs: Sequence[Any]) -> Function | None:
        for i, j in ((0, 1), (1, 0)):
            exact = None if refs[i] is not None else concrete(operands[i])
            if exact is not None and np.all(exact == value):
                return lambda *x: jnp.broadcast_to(x[j], jnp.broadcast_shapes(*map(jnp.shape, x)))
        return None

    return lower


def _prod(params: dict[str, Any], operands: Sequence[Any], refs: Sequence[Any]) -> Function:
    """A tree of products of two halves."""

    def product(x: jax.Array) -> jax.Array:
        axes = params["axes"]
        x = jnp.moveaxis(x, axes, range(len(axes)))
        x = x.reshape(-1, *x.shape[len(axes) :])
        while len(x) > 1:
            half = len(x) // 2
            x = jnp.concatenate([x[:half] * x[half : 2 * half], x[2 * half :]])
        return x[0] if len(x) else jnp.ones(x.shape[1:], x.dtype)

    return product


def _cumprod(params: dict[str, Any], operands: Sequence[Any], refs: Sequence[Any]) -> Function:
    def products(x: jax.Array) -> jax.Array:
        axis, rows = params["axis"], []
        for i in range(x.shape[axis])[:: -1 if params["reverse"] else 1]:
            row = lax.index_in_dim(x, i, axis, keepdims=False)
            rows.append(rows[-1] * row if rows else row)
        return jnp.stack(rows[:: -1 if params["reverse"] else 1], axis)

    return products


def _tan(params: dict[str, Any], operands: Sequence[Any], refs: Sequence[Any]) -> Function:
    return lambda x: jnp.sin(x) / jnp.cos(x)


def _along_dimensions(reduce: Callable[..., jax.Array]) -> Callable[..., Function | None]:
    """A collective over an axis that `vmap` has made a dimension; None of those over devices."""

    def lower(params: dict[str, Any], operands: Sequence[Any], refs: Sequence[Any]) -> Function | None:
        axes = params["axes"]
        return (lambda x: reduce(x, axes)) if all(isinstance(axis, int) for axis in axes) else None

    return lower


_LOWERINGS: dict[Primitive, Callable[..., Function | None]] = {
    primitives.mul_p: _mul,
    primitives.dot_general_p: _dot,
    primitives.div_p: _div,
    primitives.pow_p: _pow,
    primitives.max_p: _neutral(-np.inf),
    primitives.min_p: _neutral(np.inf),
    primitives.reduce_prod_p: _prod,
    primitives.cumprod_p: _cumprod,
    primitives.tan_p: _tan,
    primitives.psum_p: _along_dimensions(jnp.sum),
    primitives.pmax_p: _along_dimensions(jnp.max),
    primitives.pmin_p: _along_dimensions(jnp.min),
}


def lowered() -> list[Primitive]:
    """The primitives for which there may be a better way to say it."""
    return list(_LOWERINGS)
