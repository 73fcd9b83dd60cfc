"""Float soundness: how far floating point can be from real arithmetic.

The model is the standard one (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 2.2): one
operation is off by at most `u` of its result or, near 0, by the smallest normal number; a sum of `n` products, in any
order, by at most `gamma(n)` of the sum of their absolute values (ibid., section 3.1). Every bound below is several
times that, because the bound itself is computed in the same arithmetic. `docs/float-soundness.md` has the proofs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mixtrain_jax.bounds.interval import Interval

# Elementary functions (exp, tanh, ...) are assumed to be computed to this many units of roundoff, 4 in the last place.
ELEMENTARY = 8


class Error(NamedTuple):
    """How far rounding may move a value below the lower end of its box, and above the upper end: `[...]` each."""

    lower: jax.Array
    upper: jax.Array


def unit(dtype: Any) -> float:
    """Unit roundoff `u` of a float dtype."""
    return float(jnp.finfo(dtype).eps) / 2


def gamma(n: int, dtype: Any) -> float:
    """Higham's `n u / (1 - n u)` with room for a few more operations; inf where nothing is known.

    Count the terms of every sum that may be off: of ours, and of theirs. Sums of numbers narrower than float32 are
    assumed to be kept in float32 and rounded at the end.
    """
    nu = n * min(unit(dtype), unit(jnp.float32)) + 8 * unit(dtype)
    return 1.05 * nu / (1 - nu) if nu < 0.5 else float("inf")


def tiny(dtype: Any) -> float:
    """Several times what one operation may lose to underflow, whether subnormal results are flushed or not."""
    return 8 * float(jnp.finfo(dtype).tiny)


def coarsest(*dtypes: Any) -> Any:
    """The dtype with the largest roundoff."""
    return max((dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)), key=unit, default=jnp.float32)


def magnitude(x: Interval | jax.Array) -> jax.Array:
    """Largest absolute value, entry by entry."""
    return jnp.maximum(jnp.abs(x.lower), jnp.abs(x.upper)) if isinstance(x, Interval) else jnp.abs(x)


def once(out: Interval, units: float | jax.Array = 2) -> Error:
    """Error of a result that is rounded `units` times: relative to the result, so each end moves by its own size."""
    if not jnp.issubdtype(out.dtype, jnp.floating):
        return Error(jnp.zeros(out.shape), jnp.zeros(out.shape))
    return Error(*((2 * units) * unit(out.dtype) * jnp.abs(end) + tiny(out.dtype) for end in (out.lower, out.upper)))


def largest(error: Error | jax.Array) -> jax.Array:
    """A number above the error of every value in the box."""
    return jnp.maximum(*error) if isinstance(error, Error) else error


def widen(box: Interval, error: Error | jax.Array) -> Interval:
    """The box and what is within `error` of it."""
    below, above = error if isinstance(error, Error) else (error, error)
    return Interval(box.lower - below, box.upper + above)


def within(box: Interval, limits: Interval) -> Interval:
    """The box without what no value can be."""
    return Interval(jnp.maximum(box.lower, limits.lower), jnp.minimum(box.upper, limits.upper))


def one_sided(below: jax.Array, above: jax.Array, dtype: Any) -> Interval:
    """The numbers >= 0 where nothing is below 0, those <= 0 where nothing is above, all of them elsewhere."""
    zero, infinite = jnp.zeros((), dtype), jnp.full((), jnp.inf, dtype)
    return Interval(jnp.where(below, -infinite, zero), jnp.where(above, infinite, zero))


def inflate(box: Interval, n: int) -> Interval:
    """A box so much wider that a linear map of it holds what sums of `n` products make of the box in any order.

    With `x` in the box and `W` the map, the sum is within `gamma(n) |W| |x|` of `W x`: that of another point whose
    distance from `x` is `gamma(n) |x|` entry by entry, and which has its signs. This spares the map of absolute values
    that the error would need.
    """
    share, least = gamma(2 * n, box.dtype), tiny(box.dtype)
    wider = widen(box, Error(*(share * jnp.abs(end) + least for end in (box.lower, box.upper))))
    return within(wider, one_sided(~(box.lower >= 0), ~(box.upper <= 0), box.dtype))


def total(a: jax.Array, b: jax.Array) -> jax.Array:
    """The inner product, in two stages so that its error grows with the root of the size: see `steps`."""
    a, b = a.reshape(-1), b.reshape(-1)
    rows = max(1, round(a.size**0.5))
    padding = -a.size % rows
    a, b = (jnp.pad(x, (0, padding)).reshape(rows, -1) for x in (a, b))
    return jnp.einsum("ij,ij->i", a, b, precision=jax.lax.Precision.HIGHEST).sum()


def steps(size: int) -> int:
    """Number of additions in a row that `total` makes for arrays of this size."""
    rows = max(1, round(size**0.5))
    return rows + -(-size // rows)
