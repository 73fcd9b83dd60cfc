"""Boxes of values, and the balls around an input that people certify."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mixtrain_jax.bounds.errors import BoundsError
from mixtrain_jax.bounds.outward import concrete, covering_radius, domain_ends


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Interval:
    """The box of all arrays `x` with `lower <= x <= upper`, entry by entry.

    A pytree of two arrays of one shape and dtype, so it passes through `jit`, `vmap`, `grad` and `scan`
    untouched. Building one checks nothing; the bound functions check what they are given.
    """

    lower: jax.Array
    upper: jax.Array

    @property
    def center(self) -> jax.Array:
        """Midpoint of the box, same shape as `lower`."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> jax.Array:
        """Half the width of the box, same shape as `lower`."""
        return (self.upper - self.lower) / 2

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the arrays in the box."""
        return self.lower.shape

    @property
    def dtype(self) -> Any:
        """Dtype of the arrays in the box."""
        return self.lower.dtype


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ball(Interval):
    """The inputs within `eps` of `point` in the l1 or the l2 norm that are also in the box `[lower, upper]`.

    Backward passes use both sets, each exactly and not their intersection: the better of two sound bounds. One ball is
    one example; make and bound batches under `jax.vmap`.
    """

    point: jax.Array
    eps: jax.Array  # a scalar
    norm: int = dataclasses.field(metadata={"static": True})  # 1 or 2


def intersect(a: Interval, b: Interval) -> Interval:
    """Box of the values in both: sound whenever both `a` and `b` are. An end that is NaN says nothing."""
    lower = jnp.where(jnp.isnan(a.lower), b.lower, a.lower)
    upper = jnp.where(jnp.isnan(a.upper), b.upper, a.upper)
    return refined(Interval(lower, upper), b)


def refined(box: Interval, bound: Interval) -> Interval:
    """A box without what a bound of the same values rules out.

    Where the box is NaN the values may not exist, and no bound changes that. A bound that is NaN overflowed.
    """
    lower = jnp.where(jnp.isnan(bound.lower), box.lower, bound.lower)
    upper = jnp.where(jnp.isnan(bound.upper), box.upper, bound.upper)
    return Interval(jnp.maximum(box.lower, lower), jnp.minimum(box.upper, upper))


def linf_ball(x: ArrayLike, eps: ArrayLike, domain: tuple[float, float] | None = None) -> Interval:
    """All inputs within `eps` of `x` in the l-infinity norm, clipped to the domain.

    Args:
      x: inputs of any shape, floating point. What a narrower dtype moves a concrete one by is added to its radius.
      eps: radius in the units of `x`; a scalar or anything that broadcasts to `x`'s shape, so that a batch
        `[n, ...]` takes per-example radii `[n, 1, ...]` and an image takes per-pixel ones. Numbers and concrete arrays
        are rounded up to the dtype of `x`; a traced radius is what its dtype made of it, so round it up before.
      domain: lowest and highest value an input can take, for instance `(0.0, 1.0)` for pixels; None for no limit. Its
        ends are rounded outwards to the dtype of `x`.

    Returns:
      An `Interval` of `x`'s shape and dtype.

    Raises:
      BoundsError: where `x` is not floating, `eps` is negative or not finite or of a wrong shape, `x` is not finite or
        lies outside the domain. Values are checked when they are concrete, that is outside `jit`.
    """
    x, eps = _checked("linf_ball", x, eps, domain, np.inf)
    return _box(x, eps, domain)


def l2_ball(x: ArrayLike, eps: ArrayLike, domain: tuple[float, float] | None = None) -> Ball:
    """All inputs within `eps` of `x` in the Euclidean norm, clipped to the domain.

    Args:
      x: one input of any shape, floating point; the norm is over all its entries. A batch is made and bounded under
        `jax.vmap`.
      eps: radius in the units of `x`, a scalar.
      domain: as for `linf_ball`. A bound is the better of that over the ball and that over the clipped box around it.

    Returns:
      A `Ball` of `x`'s shape and dtype, which any method takes where it takes an `Interval`.

    Raises:
      BoundsError: as `linf_ball` does.
    """
    return _ball("l2_ball", x, eps, domain, 2)


def l1_ball(x: ArrayLike, eps: ArrayLike, domain: tuple[float, float] | None = None) -> Ball:
    """All inputs within `eps` of `x` in the l1 norm, the sum of absolute differences; else as `l2_ball`."""
    return _ball("l1_ball", x, eps, domain, 1)


def _ball(name: str, x: ArrayLike, eps: ArrayLike, domain: tuple[float, float] | None, norm: int) -> Ball:
    x, eps = _checked(name, x, eps, domain, norm)
    if eps.ndim:
        raise BoundsError(f"{name} wants a scalar eps for one input, got shape {eps.shape}; use jax.vmap for a batch.")
    box = _box(x, eps, domain)
    return Ball(box.lower, box.upper, x, eps, norm)


def _box(x: jax.Array, eps: jax.Array, domain: tuple[float, float] | None) -> Interval:
    low, high = domain_ends(domain or (-np.inf, np.inf), x.dtype)
    return Interval(jnp.maximum(-_sum_above(-x, eps), low), jnp.minimum(_sum_above(x, eps), high))


def _sum_above(a: jax.Array, b: jax.Array) -> jax.Array:
    """The sum, or the next number above it where it was rounded down: a ball must not lose an input."""
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)  # exact (Knuth's TwoSum)
    fixed = jax.lax.stop_gradient(total)
    above = jnp.nextafter(fixed, jnp.full_like(fixed, jnp.inf)) - fixed
    return total + jnp.where(jax.lax.stop_gradient(error) > 0, above, 0)


def _checked(
    name: str, given: ArrayLike, eps: ArrayLike, domain: tuple[float, float] | None, norm: float
) -> tuple[jax.Array, jax.Array]:
    x, radii = jnp.asarray(given), concrete(eps)
    values = np.asarray(given) if isinstance(given, np.ndarray) or concrete(x) is not None else None
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise BoundsError(f"{name} wants floating inputs, got {x.dtype}; scale the images first, e.g. x / 255.")
    if radii is not None and not np.all((radii >= 0) & np.isfinite(radii)):
        raise BoundsError(f"{name} wants a finite eps >= 0, got {_extremes(radii)}.")
    shape = jnp.shape(eps)
    if len(shape) > x.ndim or any(a not in (1, b) for a, b in zip(shape[::-1], x.shape[::-1], strict=False)):
        raise BoundsError(f"{name} wants eps to broadcast to the shape {x.shape} of x, got shape {shape}.")
    if values is not None and not np.all(np.isfinite(values)):
        raise BoundsError(f"{name} wants finite inputs, got NaN or infinity in x.")
    eps = covering_radius(eps, x.dtype)
    if values is not None and (moved := _moved(values, x.dtype)).any():
        away = moved if norm == np.inf else np.linalg.norm(moved.ravel(), norm) * (1 + 1e-9)
        eps = _sum_above(eps, covering_radius(away, x.dtype))  # the ball around x as given is in this one
    if domain is None:
        return x, eps
    if not domain[0] < domain[1]:
        raise BoundsError(f"{name} wants a domain (low, high) with low < high, got {domain}.")
    low, high = domain_ends(domain, x.dtype)
    if values is not None and not np.all((values >= low) & (values <= high)):
        raise BoundsError(f"{name} wants inputs inside the domain {domain}, got values in {_extremes(values)}.")
    return x, eps


def _moved(values: np.ndarray, dtype: Any) -> np.ndarray:
    """By how much values change in a dtype, entry by entry."""
    return np.abs(values.astype(np.float64) - values.astype(dtype).astype(np.float64))


def check(ball: Interval) -> Interval:
    """Return the ball if it is a well-formed box; raise `BoundsError` with what is wrong with it otherwise."""
    lower, upper = jnp.asarray(ball.lower), jnp.asarray(ball.upper)
    if lower.shape != upper.shape or lower.dtype != upper.dtype:
        raise BoundsError(
            "An Interval wants lower and upper of one shape and dtype, "
            f"got {lower.dtype}{list(lower.shape)} and {upper.dtype}{list(upper.shape)}."
        )
    if not jnp.issubdtype(lower.dtype, jnp.floating):
        raise BoundsError(f"An Interval wants floating bounds, got {lower.dtype}.")
    ends = concrete(lower), concrete(upper)
    if ends[0] is not None and ends[1] is not None and not np.all(ends[0] <= ends[1]):
        raise BoundsError("An Interval wants lower <= upper everywhere; some entries are crossed or NaN.")
    if isinstance(ball, Ball) and jnp.ndim(ball.eps):
        raise BoundsError(
            f"A Ball is one example, got radii of shape {list(jnp.shape(ball.eps))}; bound a batch with jax.vmap."
        )
    return ball if isinstance(ball, Ball) else Interval(lower, upper)


def _extremes(x: np.ndarray) -> str:
    return f"{x:g}" if x.ndim == 0 else f"[{x.min():g}, {x.max():g}]"
