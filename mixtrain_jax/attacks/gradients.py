"""Gradients as attacks take them: entries that are not finite stop no search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def value_and_gradient(
    f: Callable[[jax.Array], tuple[jax.Array, Any]], points: jax.Array
) -> tuple[jax.Array, jax.Array, Any]:
    """Values, gradients and auxiliary output of a function of each example, for a search that ascends it.

    One pixel at which a network has no gradient (`sqrt` at 0, norm or standard deviation of a black border) would
    otherwise end the search of its whole example.

    Args:
      f: `points -> (values [n], auxiliary)`, examples independent of each other.
      points: `[n, ...]`.

    Returns:
      Values `[n]`, -inf where they are NaN, so that no search prefers such a point; gradients as `finite` leaves them,
      `[n, ...]`; and the auxiliary output.
    """
    values, backward, auxiliary = jax.vjp(f, points, has_aux=True)
    (gradient,) = backward(jnp.ones_like(values))
    return jnp.where(jnp.isnan(values), -jnp.inf, values), finite(gradient), auxiliary


def finite(gradient: jax.Array) -> jax.Array:
    """The gradient `[n, ...]` without entries that are not finite; finite ones keep their bits.

    NaN has no direction and becomes 0. An infinite slope has one and keeps its sign, at the size of the largest finite
    entry of its example, or 1 where all of those are 0.
    """
    good = jnp.isfinite(gradient)
    axes = tuple(range(1, gradient.ndim))
    largest = jnp.max(jnp.where(good, jnp.abs(gradient), 0), axes, keepdims=True)
    steep = jnp.where(jnp.isnan(gradient), 0, jnp.sign(gradient)) * jnp.where(largest > 0, largest, 1)
    return jnp.where(good, gradient, steep)
