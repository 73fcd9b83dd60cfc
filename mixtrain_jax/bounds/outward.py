"""Decimal numbers in a narrower float dtype, rounded to the side on which no input is lost.

A radius of 0.7 is 0.69999999 in float32 if it is rounded to nearest, and a ball of that lacks a float32 number that is
within 0.7 of its center. What has to cover is rounded outwards here, in NumPy and float64; traced values have been
rounded before they come, and can only be kept from shrinking further.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def concrete(x: ArrayLike) -> np.ndarray | None:
    """The values of an array; None where it is traced and has none yet. Checks made with it stay out of the trace."""
    if isinstance(x, jax.core.Tracer) or jnp.issubdtype(jnp.result_type(x), jax.dtypes.extended):
        return None  # a random key has no values either
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return None  # some are on the devices of other processes
    return np.asarray(x)


def round_up(x: ArrayLike, dtype: Any) -> np.ndarray:
    """The smallest number of a float dtype that is at least each concrete number of at most float64, entry by entry."""
    wide = np.asarray(x, np.float64)
    with np.errstate(over="ignore"):  # beyond the largest number is infinity
        near = wide.astype(dtype)
    return np.where(near.astype(np.float64) < wide, np.nextafter(near, np.asarray(np.inf, dtype)), near)


def round_down(x: ArrayLike, dtype: Any) -> np.ndarray:
    """The largest number of a float dtype that is at most each concrete number, entry by entry."""
    return -round_up(-np.asarray(x, np.float64), dtype)


def round_radius_up(eps: ArrayLike, dtype: Any) -> np.ndarray:
    """Concrete radii in a float dtype, rounded up; those above 0 to a normal number, as devices count others as 0."""
    wide = np.asarray(eps, np.float64)
    return round_up(np.where(wide > 0, np.maximum(wide, float(jnp.finfo(dtype).tiny)), wide), dtype)


def covering_radius(eps: ArrayLike, dtype: Any) -> jax.Array:
    """A radius in a float dtype such that the ball of it holds the ball of `eps`, concrete or of a wider dtype."""
    values = concrete(eps)
    if values is not None:
        return jnp.asarray(round_radius_up(values, dtype))
    wide = jnp.asarray(eps)
    near = wide.astype(dtype)
    if not jnp.issubdtype(wide.dtype, jnp.floating) or jnp.finfo(wide.dtype).nmant <= jnp.finfo(dtype).nmant:
        return near
    fixed = jax.lax.stop_gradient(near)
    short = fixed.astype(wide.dtype) < jax.lax.stop_gradient(wide)
    return near + jnp.where(short, jnp.nextafter(fixed, jnp.full_like(fixed, jnp.inf)) - fixed, 0)


def domain_ends(domain: tuple[float, float], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """The ends of a domain in a float dtype, rounded outwards: pixels at its ends as data have them are inside."""
    return round_down(domain[0], dtype), round_up(domain[1], dtype)
