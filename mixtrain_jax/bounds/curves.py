"""Functions of one variable by their shape, and what follows from it: exact ranges, and the best lines below and above.

A `Curve` says where a function turns and where its curvature changes sign. Everything else is derived from that and
from evaluations of the function and its derivative, so that a new function costs one line.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from mixtrain_jax.bounds.relaxations import Lines


@dataclasses.dataclass(frozen=True)
class Curve:
    """An entrywise function and its shape; entries of the tuples may be arrays that broadcast against a box.

    Attributes:
      f: the function, of any float dtype. At an infinity it returns its limit, and at the ends of its domain where that
        is finite; there its derivative is finite too, any number.
      convex: curvature left of the first inflection, or everywhere where there is none.
      critical: where it turns from falling to rising or back, in increasing order.
      inflections: where curvature changes sign, in increasing order. Kinks may be among them and between them.
      domain: the interval outside of which the function is undefined or unbounded; it has those of its ends where `f`
        is finite, or rises from -inf or to inf.
      pole: a point that no box may hold. An inflection there never lies inside a box.
      root: where it goes from values <= 0 to values >= 0, in floating point too; None where it does nowhere.
      codomain: values that it never leaves, however it is rounded.
      period: `(start, length)` of a periodic function; what the tuples hold is for boxes that are shorter than the
        length and begin in `[start, start + length)`.
    """

    f: Callable[[Array], Array]
    convex: bool
    critical: tuple[ArrayLike, ...] = ()
    inflections: tuple[ArrayLike, ...] = ()
    domain: tuple[float, float] = (-math.inf, math.inf)
    pole: float | None = None
    root: float | None = None
    codomain: tuple[float, float] = (-math.inf, math.inf)
    period: tuple[float, float] | None = None


def extremes(curve: Curve, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Exact range over a box: extremes are at its ends or at critical points; `[-inf, inf]` off the domain.

    Beyond the square root of what the dtype holds, about, values and slopes at the ends have no gradient.
    """
    return _range(curve, _prepare(curve, lower, upper), lower, upper)


def _range(curve: Curve, box: _Box, lower: Array, upper: Array) -> tuple[Array, Array]:
    at_lower = jnp.where(box.tame, curve.f(box.lower), box.at_lower)
    at_upper = jnp.where(box.tame, curve.f(box.upper), box.at_upper)
    low, high = jnp.minimum(at_lower, at_upper), jnp.maximum(at_lower, at_upper)
    # At an infinity a periodic function is NaN, and its extremes are known all the same.
    lesser, greater = (jnp.minimum, jnp.maximum) if curve.period is None else (jnp.fmin, jnp.fmax)
    for point in curve.critical:
        place = _like(point, lower) + box.shift
        inside = (lower < upper) & (((lower <= place) & (place <= upper)) | box.rough)
        value = curve.f(_like(point, lower))  # that of the point itself: shifted by periods it is not quite at the top
        low = jnp.where(inside, lesser(low, value), low)
        high = jnp.where(inside, greater(high, value), high)
    low = jnp.where(box.inside & ~jnp.isnan(low), low, -jnp.inf)
    return low, jnp.where(box.inside & ~jnp.isnan(high), high, jnp.inf)


def lines(curve: Curve, lower: Array, upper: Array, slopes: Literal["parallel", "adaptive"]) -> Lines:
    """Lines below and above a function, sound on `[lower, upper]` entry by entry.

    `adaptive` gives the lines with the smallest area in between: the one above supports the concave envelope at the
    midpoint. Where curvature does not change that is the chord or the tangent at the midpoint, else often the tangent
    through an end (CROWN, arXiv 1811.00866, section 3.2; auto_LiRPA, arXiv 2002.12920). With several inflections it
    may touch in two places. `parallel` gives both lines the slope of the chord.

    Args:
      curve: the function.
      lower: lower ends of the boxes.
      upper: upper ends, of the same shape and dtype.
      slopes: which lines.

    Returns:
      The lines; constants from `extremes`, clipped to finite numbers, where the function leaves its domain, where ends
      or values are so large that lines would overflow, and where a periodic function has more than a period.
    """
    box = _prepare(curve, lower, upper)
    largest = float(jnp.finfo(lower.dtype).max)
    least, most = (jnp.clip(x, -largest, largest) for x in _range(curve, box, lower, upper))
    curve = dataclasses.replace(curve, inflections=tuple(_like(x, lower) + box.shift for x in curve.inflections))
    mirror = _mirrored(curve)
    if slopes == "parallel":
        slope = _chord(curve.f, box.lower, box.upper)
        below = -_supremum(mirror, box.lower, box.upper, -slope)
        above = _supremum(curve, box.lower, box.upper, slope)
        slope_below = slope_above = jnp.where(box.tame, slope, 0)
    else:
        slope, below = (-x for x in _above(mirror, box.lower, box.upper))
        slope_below = jnp.where(box.tame, slope, 0)
        slope, above = _above(curve, box.lower, box.upper)
        slope_above = jnp.where(box.tame, slope, 0)
    return Lines(slope_below, jnp.where(box.tame, below, least), slope_above, jnp.where(box.tame, above, most))


class _Box(NamedTuple):
    """A box made fit for a curve."""

    lower: Array  # the ends where tame, a point inside the domain elsewhere: no branch of a `where` is NaN then
    upper: Array
    at_lower: Array  # values of the function at the ends as they were; no gradient
    at_upper: Array
    inside: Array  # whether the function is defined on the box
    tame: Array  # whether lines can be computed without overflow, in values and in gradients
    shift: Array  # whole periods up to the box
    rough: Array  # whether a period is lost in rounding


def _prepare(curve: Curve, lower: Array, upper: Array) -> _Box:
    left, right = lax.stop_gradient((lower, upper))
    (at_left, rise_left), (at_right, rise_right) = (_value_and_slope(curve.f, x) for x in (left, right))
    inside = _begins(left, at_left, curve.domain[0]) & _begins(-right, -at_right, -curve.domain[1])
    if curve.pole is not None:
        inside &= (left > curve.pole) | (right < curve.pole)
    # The product of two such numbers is finite.
    size = jnp.max(jnp.abs(jnp.stack([left, right, at_left, at_right, rise_left, rise_right])), 0)
    tame = inside & (size <= float(jnp.finfo(lower.dtype).max) ** 0.45)
    shift, rough = jnp.zeros_like(left), jnp.zeros_like(tame)
    if curve.period is not None:
        start, length = curve.period
        eps = float(jnp.finfo(lower.dtype).eps)
        shift = jnp.floor((left - start) / length) * length
        rough = jnp.maximum(jnp.abs(left), jnp.abs(right)) * eps > max(1e-3, 8 * eps)
        tame &= ~rough & (right - left < length)
    point = _inner_point(curve)
    at_left, at_right = lax.stop_gradient((at_left, at_right))
    lower, upper = jnp.where(tame, lower, point), jnp.where(tame, upper, point)
    return _Box(lower, upper, at_left, at_right, inside, tame, shift, rough)


def _begins(x: Array, value: Array, end: float) -> Array:
    """Whether `x` is in a domain that begins at `end`, with its end where the function is finite or rises from -inf."""
    return (x >= end) if math.isinf(end) else (x > end) | ((x == end) & (value < jnp.inf))


def _inner_point(curve: Curve) -> float:
    low, high = curve.domain
    if curve.pole is not None:
        return curve.pole + 1.0
    if math.isinf(low):
        return 0.0 if math.isinf(high) else high - 1.0
    return low + 1.0 if math.isinf(high) else (low + high) / 2


def _mirrored(curve: Curve) -> Curve:
    """The curve upside down."""
    return dataclasses.replace(curve, f=lambda x: -curve.f(x), convex=not curve.convex)


def _reversed(curve: Curve) -> Curve:
    """The curve from right to left, if it has one inflection."""
    (inflection,) = curve.inflections
    return dataclasses.replace(
        curve, f=lambda x: curve.f(-x), convex=not curve.convex, inflections=(jnp.negative(inflection),)
    )


def _value_and_slope(f: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    value, slope = jax.jvp(f, (x,), (jnp.ones_like(x),))
    return value, slope


def _slope(f: Callable[[Array], Array], x: Array) -> Array:
    return _value_and_slope(f, x)[1]


def _like(x: ArrayLike, box: Array) -> Array:
    return jnp.broadcast_to(jnp.asarray(x, box.dtype), box.shape)


def _middle(lower: Array, upper: Array) -> Array:
    return lower + (upper - lower) / 2


def _narrow(lower: Array, upper: Array) -> Array:
    """Whether a box is but a few roundings wide, so that differences of values over it mean nothing, or next to 0."""
    rounding = 64 * float(jnp.finfo(lower.dtype).eps) * jnp.maximum(jnp.abs(lower), jnp.abs(upper))
    return upper - lower <= rounding + _least(lower)


def _least(x: Array) -> float:
    """The least width that is divided by: its inverse squared, in gradients, times a slope is finite."""
    return float(jnp.finfo(x.dtype).tiny) ** 0.25


def _chord(f: Callable[[Array], Array], lower: Array, upper: Array) -> Array:
    """Slope of the chord; of the tangent where the box is too narrow for one."""
    narrow = _narrow(lower, upper)
    chord = (f(upper) - f(lower)) / jnp.where(narrow, 1, upper - lower)
    return jnp.where(narrow, _slope(f, _middle(lower, upper)), chord)


def _tangent(f: Callable[[Array], Array], lower: Array, upper: Array) -> Array:
    """Slope of the tangent at the midpoint, where that is above both ends.

    So its slope is between those of the chords of either half. Where a function is flat but for rounding its derivative
    is not, relative to that, and over a wide box a line would leave the function by far.
    """
    middle, narrow = _middle(lower, upper), _narrow(lower, upper)
    values = [f(x) for x in (lower, middle, upper)]
    half = jnp.where(narrow, 1, (upper - lower) / 2)
    slack = 4 * float(jnp.finfo(lower.dtype).eps) * sum(map(jnp.abs, values))
    least, most = (values[2] - values[1] - slack) / half, (values[1] - values[0] + slack) / half
    slope = _slope(f, middle)
    return jnp.where(narrow, slope, jnp.clip(slope, least, most))


@jax.custom_jvp
def _as_gradient(value: Array, other: Array) -> Array:
    """A value that is differentiated as if it were the other."""
    del other
    return value


@_as_gradient.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return _as_gradient(*primals), tangents[1]


def _highest(f: Callable[[Array], Array], slope: Array, points: Sequence[Array]) -> Array:
    """How far a function is above a line through 0, where that is the most.

    A chord touches at both ends, so they tie but for rounding. The gradient is that of the first in a tie: those of
    `jnp.maximum` and of a bare comparison may count both or neither, as a compiler is free to round a value in one way
    for the one and in another way for the other.
    """
    rises = [(f(x), slope * x) for x in points]
    above = [value - rise for value, rise in rises]
    slack = 16 * float(jnp.finfo(slope.dtype).eps) * sum(jnp.abs(value) + jnp.abs(rise) for value, rise in rises)
    chosen = above[0]
    for value in above[1:]:
        chosen = jnp.where(value > chosen + slack, value, chosen)
    return _as_gradient(functools.reduce(jnp.maximum, above), chosen)


# --- lines above ----------------------------------------------------------------------------------------------------


def _above(curve: Curve, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Slope and offset of the best line above."""
    if len(curve.inflections) > 1:
        slope = _slope_of_many(curve, lower, upper)
        return slope, _supremum(curve, lower, upper, slope)
    middle = _middle(lower, upper)
    if curve.inflections and curve.pole is None:
        slope = _slope_of_two_pieces(curve, lower, upper)
    else:
        slope = _slope_of_one_piece(curve, lower, upper)
    # The line touches the curve at an end or at the midpoint; the highest of the three also covers rounding.
    offset = _highest(curve.f, slope, (lower, middle, upper))
    return slope, offset


def _slope_of_one_piece(curve: Curve, lower: Array, upper: Array) -> Array:
    """The chord where the curve is convex, the tangent at the midpoint where it is concave."""
    if not curve.inflections:
        return _chord(curve.f, lower, upper) if curve.convex else _tangent(curve.f, lower, upper)
    (inflection,) = curve.inflections
    convex = (upper <= inflection) == curve.convex
    return jnp.where(convex, _chord(curve.f, lower, upper), _tangent(curve.f, lower, upper))


def _slope_of_two_pieces(curve: Curve, lower: Array, upper: Array) -> Array:
    """The tangent through the end of the convex piece, unless the chord or the tangent at the midpoint is above.

    From the lower end of a curve that is first convex, the steepest line to a point of the curve touches it at some
    `d`, and right of `d` tangents are above the curve. `d` is where `f(t) - f(l) - f'(t) (t - l)` changes sign.
    """
    if not curve.convex:
        return -_slope_of_two_pieces(_reversed(curve), -upper, -lower)
    f, (inflection,), middle = curve.f, curve.inflections, _middle(lower, upper)
    start = f(lower)

    def beyond(t: Array) -> Array:
        value, slope = _value_and_slope(f, t)
        return value - start - slope * (t - lower)

    tangent = (lower >= inflection) | ((middle > inflection) & (beyond(middle) >= 0))
    pointed = (lower < inflection) & (inflection < upper) & (beyond(upper) > 0) & ~_narrow(lower, upper)
    p, q = _bisect(lambda t: beyond(t) <= 0, jnp.clip(inflection, middle, upper), upper)
    # Up to `q` the curve is below its tangent at `p`: the line to where that ends is above the curve for any bracket.
    # Its slope is stationary in `d`, so its gradient is that with `p` and `q` fixed.
    reach = f(p) + lax.stop_gradient(_slope(f, p) * (q - p))
    line = (reach - start) / jnp.where(pointed, q - lower, 1)
    slope = jnp.where(pointed, line, _chord(f, lower, upper))
    return jnp.where(tangent, _tangent(f, lower, upper), slope)


def _slope_of_many(curve: Curve, lower: Array, upper: Array) -> Array:
    """The chord or tangent where the box is in one piece, elsewhere the best of all."""
    tangent = _tangent(curve.f, lower, upper)
    piece = sum((x <= lower).astype(jnp.int32) for x in curve.inflections)
    single = piece == sum((x < upper).astype(jnp.int32) for x in curve.inflections)
    concave = (piece % 2 == 0) != curve.convex
    bridge = jnp.where(_narrow(lower, upper), tangent, _slope_of_bridge(curve, lower, upper, tangent))
    return jnp.where(single, jnp.where(concave, tangent, _chord(curve.f, lower, upper)), bridge)


class _Search(NamedTuple):
    """How far the search for a bridge is; the tangent is tried first."""

    slope: Array
    least: Array  # the best slope is between these
    most: Array
    left: Array  # where the curve is highest over lines of slope `most`, left of the midpoint
    right: Array  # and over lines of slope `least`, right of it
    tangent: Array  # whether the tangent is above the whole curve


def _slope_of_bridge(curve: Curve, lower: Array, upper: Array, tangent: Array) -> Array:
    """Slope of the line that touches the curve left and right of the midpoint, or of a tangent above the whole curve.

    The value at the midpoint of the lowest line above is a convex function of the slope, with the point of contact as
    gradient: where that is left of the midpoint, the slope is too steep. The line through the last points of contact
    left and right has the next slope (Kelley's cutting planes). The slope found is stationary in points of contact
    inside the box, so its gradient is that with them fixed.
    """
    f = curve.f
    low, high, start = lax.stop_gradient((lower, upper, tangent))
    middle = _middle(low, high)
    slack = 4 * float(jnp.finfo(low.dtype).eps) * (jnp.abs(f(middle)) + jnp.abs(start) * (high - low))

    def improve(step: Array, last: _Search) -> _Search:
        left, right = _contact(curve, low, middle, last.slope), _contact(curve, middle, high, last.slope)
        at_left = f(left) - f(middle) - last.slope * (left - middle)
        at_right = f(right) - f(middle) - last.slope * (right - middle)
        touches = jnp.where(step == 0, jnp.maximum(at_left, at_right) <= slack, last.tangent)
        steep = at_left >= at_right
        least, most = jnp.where(steep, last.least, last.slope), jnp.where(steep, last.slope, last.most)
        left = jnp.where(steep | jnp.isinf(most), left, last.left)
        right = jnp.where(steep & jnp.isfinite(least), last.right, right)
        run = right - left
        slope = jnp.where(run > 0, (f(right) - f(left)) / jnp.where(run > 0, run, 1), last.slope)
        return _Search(jnp.clip(slope, least, most), least, most, left, right, touches)

    infinite = jnp.full_like(low, jnp.inf)
    search = _Search(start, -infinite, infinite, low, high, jnp.zeros_like(low, bool))
    search = lax.stop_gradient(lax.fori_loop(0, 4, improve, search))
    left = jnp.where(search.left == low, lower, search.left)
    right = jnp.where(search.right == high, upper, search.right)
    run = jnp.where(right - left > _least(low), right - left, 1)
    return jnp.where(search.tangent, tangent, (f(right) - f(left)) / run)


def _contact(curve: Curve, lower: Array, upper: Array, slope: Array) -> Array:
    """The point of a box where a curve is highest over lines of a slope, about; no gradient."""
    edges, pieces = _pieces(curve, lower, upper)
    inner = [_bisect(lambda t: _slope(curve.f, t) > slope, *piece, steps=10)[0] for piece in pieces]
    best, value = edges[0], curve.f(edges[0])
    for point in (*edges[1:], *inner):
        at_point = curve.f(point)
        higher = at_point - value > slope * (point - best)
        best, value = jnp.where(higher, point, best), jnp.where(higher, at_point, value)
    return best


def _pieces(curve: Curve, lower: Array, upper: Array) -> tuple[list[Array], list[tuple[Array, Array]]]:
    """The ends of a box and what inflections it has, in order, and the pieces in between where the curve is concave."""
    edges = [lower, *(jnp.clip(x, lower, upper) for x in curve.inflections), upper]
    return edges, list(itertools.pairwise(edges))[int(curve.convex) :: 2]


def _supremum(curve: Curve, lower: Array, upper: Array, slope: Array) -> Array:
    """A bound from above of `f(x) - slope * x` over a box that is sharp to rounding.

    The supremum is at an end of a piece or, on a concave piece, where `f'` is the slope. Bisection brackets that
    point, and the tangent at one end of the bracket bounds what it holds. The gradient is that with the point fixed.
    """
    edges, pieces = _pieces(curve, lower, upper)
    best = _highest(curve.f, slope, edges)
    fixed = lax.stop_gradient(slope)
    for left, right in pieces:
        p, q = _bisect(lambda t: _slope(curve.f, t) > fixed, left, right)
        more = lax.stop_gradient(jnp.maximum(_slope(curve.f, p) - fixed, 0) * (q - p))
        # A bracket that still has an end of the piece says that the supremum is there.
        inner = (p > lax.stop_gradient(left)) & (q < lax.stop_gradient(right))
        best = jnp.where(inner, jnp.maximum(best, curve.f(p) - slope * p + more), best)
    return best


def _bisect(before: Callable[[Array], Array], p: Array, q: Array, steps: int | None = None) -> tuple[Array, Array]:
    """Bracket the point up to which `before` holds, unless told otherwise as closely as the dtype can; no gradient."""

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        p, q = bracket
        t = _between(p, q)
        go = before(t)
        return jnp.where(go, t, p), jnp.where(go, q, t)

    steps = steps or jnp.finfo(p.dtype).nmant + 7
    return lax.stop_gradient(lax.fori_loop(0, steps, halve, lax.stop_gradient((p, q))))


def _between(p: Array, q: Array) -> Array:
    """The midpoint; of `log(1 + |x|)` while the bracket is wide, so that boxes of any size take the same steps."""
    geometric = jnp.sign(p + q) * (jnp.sqrt((1 + jnp.abs(p)) * (1 + jnp.abs(q))) - 1)
    wide = jnp.where((p < 0) & (q > 0), 0, geometric)
    return jnp.where(q - p > 1, wide, _middle(p, q))


_PI = math.pi
_POSITIVE = (0.0, math.inf)

# --- the functions --------------------------------------------------------------------------------------------------


@jax.custom_jvp
def _sigmoid(x: Array) -> Array:
    """With a derivative that is off by a few roundings of its own; that of jax is off by one of 1, even next to 0."""
    return jax.nn.sigmoid(x)


@_sigmoid.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (change,) = primals, tangents
    return _sigmoid(x), _sigmoid(x) * _sigmoid(-x) * change


@jax.custom_jvp
def _tanh(x: Array) -> Array:
    """As for the sigmoid: over a wide box a slope that is off by a rounding of 1 is a line that is off by many."""
    return jnp.tanh(x)


@_tanh.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (change,) = primals, tangents
    return _tanh(x), 4 * _sigmoid(2 * x) * _sigmoid(-2 * x) * change


def _flat(f: Callable[[Array], Array], at: float = 0.0) -> Callable[[Array], Array]:
    """A function that is 0 at a point where its derivative is infinite, without that derivative."""
    return lambda x: jnp.where(x == at, 0, f(jnp.where(x == at, at + 1, x)))


def _from_left(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A function that vanishes at `-inf` but is computed as a product with it."""
    return lambda x: f(jnp.maximum(x, float(jnp.finfo(x.dtype).min)))


def _softsign(x: Array) -> Array:
    largest = float(jnp.finfo(x.dtype).max)
    return jax.nn.soft_sign(jnp.clip(x, -largest, largest))


def _gelu_tanh(x: Array) -> Array:
    """`x / 2 * (1 + tanh(z / 2))` without the cancellation that takes all digits of small values."""
    return x * jax.nn.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def integer_pow(n: int) -> Curve:
    """`x ** n`, on either side of its pole at 0 where `n` is negative."""
    even = n % 2 == 0
    return Curve(
        lambda x: lax.integer_pow(x, n),
        even or n == 1,
        critical=(0.0,) if even and n > 0 else (),
        inflections=() if even or n == 1 else (0.0,),
        pole=0.0 if n < 0 else None,
        root=None if even else 0.0,
        codomain=_POSITIVE if even else (-math.inf, math.inf),
    )


def power(p: float) -> Curve:
    """`x ** p` on `x > 0`, and at 0 where `p` is positive; everywhere where it is a whole number."""
    if p == int(p):
        return integer_pow(int(p))
    f = lambda x: jnp.power(x, p)  # noqa: E731
    return Curve(_flat(f) if 0 < p < 1 else f, not 0 < p < 1, domain=_POSITIVE, codomain=_POSITIVE)


def leaky_relu(slope: float) -> Curve:
    """`x` where that is positive, `slope * x` elsewhere."""
    return Curve(lambda x: jnp.where(x > 0, x, slope * x), slope <= 1, critical=(0.0,) if slope < 0 else ())


def elu(alpha: float) -> Curve:
    """`x` where that is positive, `alpha * (exp(x) - 1)` elsewhere; a kink at 0 unless `alpha` is 1."""
    return Curve(
        lambda x: jax.nn.elu(x, alpha),
        alpha >= 0,
        critical=(0.0,) if alpha < 0 else (),
        inflections=() if 0 <= alpha <= 1 else (0.0,),
    )


def celu(alpha: float) -> Curve:
    """`x` where that is positive, `alpha * (exp(x / alpha) - 1)` elsewhere; smooth at 0 for any `alpha` but 0."""
    return Curve(lambda x: jax.nn.celu(x, alpha), alpha > 0)


def clamp(low: ArrayLike, high: ArrayLike) -> Curve:
    """`x` no lower than `low` and no higher than `high`, numbers or arrays with `low <= high`, perhaps infinite."""

    def f(x: Array) -> Array:
        return jnp.minimum(jnp.maximum(x, jnp.asarray(low, x.dtype)), jnp.asarray(high, x.dtype))

    # Anywhere in between; of numbers without jax, which importing this must not start.
    xp = jnp if isinstance(low, Array) or isinstance(high, Array) else np
    bend = xp.minimum(xp.maximum(0, xp.asarray(low)), xp.asarray(high))
    return Curve(f, True, inflections=(bend,))


ABS = Curve(jnp.abs, True, critical=(0.0,), codomain=_POSITIVE)
SQUARE = integer_pow(2)
RECIPROCAL = integer_pow(-1)
SQRT = Curve(_flat(jnp.sqrt), False, domain=_POSITIVE, codomain=_POSITIVE)
RSQRT = Curve(lax.rsqrt, True, domain=_POSITIVE, codomain=_POSITIVE)
CBRT = Curve(_flat(jnp.cbrt), True, inflections=(0.0,), root=0.0)
EXP = Curve(jnp.exp, True, codomain=_POSITIVE)
EXP2 = Curve(jnp.exp2, True, codomain=_POSITIVE)
EXPM1 = Curve(jnp.expm1, True, root=0.0)
LOG = Curve(jnp.log, False, domain=_POSITIVE, root=1.0)
LOG1P = Curve(jnp.log1p, False, domain=(-1.0, math.inf), root=0.0)
LOGISTIC = Curve(_sigmoid, True, inflections=(0.0,), codomain=_POSITIVE)
TANH = Curve(_tanh, True, inflections=(0.0,), root=0.0)
ERF = Curve(lax.erf, True, inflections=(0.0,), root=0.0)
ERFC = Curve(lax.erfc, False, inflections=(0.0,), codomain=_POSITIVE)
ERF_INV = Curve(lax.erf_inv, False, inflections=(0.0,), domain=(-1.0, 1.0), root=0.0)
ATAN = Curve(jnp.arctan, True, inflections=(0.0,), root=0.0)
SINH = Curve(jnp.sinh, False, inflections=(0.0,), root=0.0)
COSH = Curve(jnp.cosh, True, critical=(0.0,), codomain=_POSITIVE)
ASINH = Curve(jnp.arcsinh, True, inflections=(0.0,), root=0.0)
ACOSH = Curve(_flat(jnp.arccosh, 1.0), False, domain=(1.0, math.inf))
ATANH = Curve(jnp.arctanh, False, inflections=(0.0,), domain=(-1.0, 1.0))
# One branch, ended just inside the poles so that no dtype rounds the ends past them.
TAN = Curve(jnp.tan, False, inflections=(0.0,), domain=(-1.5707963, 1.5707963))
SIN = Curve(
    jnp.sin,
    False,
    (_PI / 2, 3 * _PI / 2, 5 * _PI / 2, 7 * _PI / 2),
    (_PI, 2 * _PI, 3 * _PI),
    period=(0.0, 2 * _PI),
)
COS = Curve(
    jnp.cos,
    False,
    (0.0, _PI, 2 * _PI, 3 * _PI),
    (_PI / 2, 3 * _PI / 2, 5 * _PI / 2),
    period=(-_PI / 2, 2 * _PI),
)
SOFTPLUS = Curve(jax.nn.softplus, True, codomain=_POSITIVE)
LOG_SIGMOID = Curve(jax.nn.log_sigmoid, False)
SOFTSIGN = Curve(_softsign, True, inflections=(0.0,))
HARD_SWISH = Curve(_from_left(jax.nn.hard_swish), False, (-1.5,), (-3.0, 3.0))  # kinks down at both inflections
# The roots of f' and f'' were found by bisection with 40 digits.
_GELU = functools.partial(jax.nn.gelu, approximate=False)
GELU = Curve(_from_left(_GELU), False, (-0.75179152469356446,), (-1.4142135623730950, 1.4142135623730950))
GELU_TANH = Curve(_from_left(_gelu_tanh), False, (-0.75246142207101626,), (-1.4185040087908284, 1.4185040087908284))
SILU = Curve(_from_left(jax.nn.silu), False, (-1.2784645427610738,), (-2.3993572805154677, 2.3993572805154677))
MISH = Curve(_from_left(jax.nn.mish), False, (-1.1924312145154952,), (-2.2563763963607931, 1.4905711794854285))
