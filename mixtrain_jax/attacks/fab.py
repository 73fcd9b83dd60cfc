"""Fast adaptive boundary attack: the closest input of another class (Croce and Hein, arXiv 1907.02044)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mixtrain_jax.attacks.geometry import check, norm, project, spread, uniform
from mixtrain_jax.attacks.gradients import value_and_gradient
from mixtrain_jax.attacks.objectives import lead, likeliest, margin
from mixtrain_jax.attacks.search import LogitsFn, stepwise
from mixtrain_jax.bounds import Ball, Interval

# The paper's constants: largest pull towards x, how far to step over the boundary, how much of the way back to keep.
_PULL, _OVER, _BACK = 0.1, 1.05, 0.9
_HARDLY_OVER = 1 + 1e-4  # the same at the end


class _Search(NamedTuple):
    """Where an attack stands; points `[n, ...]`, distances from x `[n]`."""

    points: jax.Array
    closest: jax.Array  # of another class; x while there is none
    distance: jax.Array  # of the closest; infinite while there is none


def fab(
    key: jax.Array,
    logits_fn: LogitsFn,
    x: jax.Array,
    labels: jax.Array,
    ball: Interval,
    *,
    steps: int = 100,
    restarts: int = 1,
    classes: int = 9,
    targets: jax.Array | None = None,
    domain: tuple[float, float] | None = None,
    early_exit: bool = False,
) -> jax.Array:
    """Search for the closest input of another class, and return it if it is in the ball (FAB-T).

    A step goes a little beyond where the boundary to the target would be if the network were linear, and is drawn to
    where `x` would cross it. The search itself knows no radius: it leaves the ball, but not the domain. Two steps at
    the end go from `x` to the boundary at the closest input, so that the distance is minimal where the network is
    linear in between.

    Called outside `jax.jit`, every step is one compiled call, as in `apgd`.

    Args:
      key: a random key, for the starts after the first.
      logits_fn: `[n, ...] -> [n, classes]`, examples independent of each other.
      x: inputs `[n, ...]` in `ball`; distances are measured from them, in the norm of the ball.
      labels: integer labels `[n]`.
      ball: where the result may be, the domain included: a box, or a Euclidean ball for each example.
      steps: a start, two forward passes and a gradient each.
      restarts: starts for each target: `x` itself, then halfway to uniform points of the ball.
      classes: number of classes to aim at, those most likely beside the label at `x`, one after the other; all where
        there are fewer.
      targets: one class for each example to aim at in their place, `[n]`.
      domain: lowest and highest value of inputs, which holds outside the ball too; without it the search knows those
        limits alone that cut the ball.
      early_exit: stop once every example has an input of another class in its ball, looked at every ten steps; outside
        `jax.jit` alone.

    Returns:
      For each example the closest input of another class that was found, where the ball holds it; else whichever of `x`
      and that input, moved into the ball, has the lower margin. `[n, ...]`.

    Raises:
      BoundsError: where the ball is none that attacks know, or labels are no classes `[n]` of the network.
    """
    check(logits_fn, x, labels, ball)
    x, labels = jnp.asarray(x), jnp.asarray(labels)
    euclidean = isinstance(ball, Ball)
    arrays = (key, x, labels, ball, targets)
    loop, (look, begin, advance, finish) = stepwise(_parts, logits_fn, euclidean, domain, arrays=arrays)
    aims = likeliest(look(x, labels)[0], labels, classes) if targets is None else jnp.asarray(targets)[:, None]
    first, box, radius = begin(x, labels, ball)

    def broken(search: _Search) -> jax.Array:
        return (search.distance <= radius).all()

    def one(i: Any, search: _Search) -> _Search:
        aim = (x, labels, aims[:, i // restarts], box)
        start = x
        if restarts > 1:
            anywhere = x + 0.5 * (uniform(jax.random.fold_in(key, i), ball) - x)
            start = jnp.where(i % restarts == 0, x, anywhere)
        search = search._replace(points=start)
        done = broken if early_exit else None
        search = loop(0, steps, lambda _, s: advance(s, *aim, 0.0, _PULL, _OVER), search, done)
        for _ in range(2):
            search = advance(search._replace(points=search.closest), *aim, 1.0, 1.0, _HARDLY_OVER)
        return search

    search = loop(0, aims.shape[1] * restarts, one, first)
    return finish(search.closest, x, labels, ball)


def nearest(points: jax.Array, slope: jax.Array, rise: jax.Array, box: Interval, *, euclidean: bool) -> jax.Array:
    """The shortest moves in a box after which linear functions have risen by so much.

    It minimises the norm of `d` under `slope . d = rise` and `lower <= points + d <= upper`. The solution moves entry
    `i` by `min(t * rate_i, room_i)` against or along its slope, where `room` is the way to the end of the box, and
    `rate` is 1 for the l-infinity norm and the size of the slope for the Euclidean. The rise is concave and piecewise
    linear in `t`, so Newton's method climbs from piece to piece and ends at the solution after finitely many steps.

    Args:
      points: `[n, ...]` in the box.
      slope: of the linear functions, `[n, ...]`.
      rise: by how much they shall rise, `[n]`.
      box: limits, `[n, ...]`, infinite where there are none.
      euclidean: whether the norm is Euclidean and not l-infinity.

    Returns:
      The moves `[n, ...]`; where the box does not reach, those to the corner that comes closest.
    """
    axes = tuple(range(1, points.ndim))
    way = slope * spread(jnp.where(rise < 0, -1.0, 1.0).astype(points.dtype), slope)
    gain = jnp.abs(way)
    room = jnp.where(way > 0, box.upper - points, points - box.lower)
    room = jnp.where(gain > 0, jnp.maximum(room, 0), 0)
    rate = gain if euclidean else jnp.ones_like(gain)

    def climb(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        t, _ = state
        full = room <= spread(t, gain) * rate
        risen = jnp.sum(jnp.where(full, gain * jnp.where(full, room, 0), 0), axes)
        speed = jnp.sum(jnp.where(full, 0, gain * rate), axes)
        further = jnp.where(speed > 0, (jnp.abs(rise) - risen) / speed, jnp.inf)
        return jnp.maximum(further, t), further > t

    start = jnp.zeros_like(rise), jnp.ones(rise.shape, bool)
    t, _ = jax.lax.while_loop(lambda state: (state[1] & jnp.isfinite(state[0])).any(), climb, start)
    return jnp.sign(way) * jnp.where(gain > 0, jnp.minimum(spread(t, gain) * rate, room), 0)


def _around(x: jax.Array, ball: Interval, domain: tuple[float, float] | None) -> tuple[Interval, jax.Array]:
    """The domain as far as it is known: the limits given, and those that cut the ball. And the balls' radii, `[n]`."""
    axes = tuple(range(1, x.ndim))
    down, up = x - ball.lower, ball.upper - x
    radius = ball.eps if isinstance(ball, Ball) else jnp.max(jnp.maximum(down, up), axes)
    far = spread(radius, x) * (1 - 1e-4)
    low, high = (-jnp.inf, jnp.inf) if domain is None else domain
    lower = jnp.where(down < far, jnp.maximum(ball.lower, low), low)
    upper = jnp.where(up < far, jnp.minimum(ball.upper, high), high)
    return Interval(lower.astype(x.dtype), upper.astype(x.dtype)), radius


def _length(moves: jax.Array, euclidean: bool) -> jax.Array:
    return norm(moves) if euclidean else jnp.max(jnp.abs(moves), tuple(range(1, moves.ndim)))


def _parts(logits_fn: LogitsFn, euclidean: bool, domain: tuple[float, float] | None) -> tuple[Callable[..., Any], ...]:
    """Logits and margins of points, the start of the search, one step of it, and what it returns."""

    def look(points: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = logits_fn(points)
        return logits, lead(logits, labels)

    def begin(x: jax.Array, labels: jax.Array, ball: Interval) -> tuple[_Search, Interval, jax.Array]:
        wrong = look(x, labels)[1] < 0
        return _Search(x, x, jnp.where(wrong, 0.0, jnp.inf).astype(x.dtype)), *_around(x, ball, domain)

    def advance(
        search: _Search,
        x: jax.Array,
        labels: jax.Array,
        targets: jax.Array,
        box: Interval,
        least_pull: float,
        most_pull: float,
        over: float,
    ) -> _Search:
        points = search.points
        ahead, slope, _ = value_and_gradient(lambda points: (margin(logits_fn(points), labels, targets), None), points)
        tilt = jnp.sum(slope * (points - x), tuple(range(1, x.ndim)))
        here = nearest(points, slope, -ahead, box, euclidean=euclidean)
        home = nearest(x, slope, tilt - ahead, box, euclidean=euclidean)
        lengths = [jnp.maximum(_length(moves, euclidean), 1e-8) for moves in (here, home)]
        share = spread(jnp.clip(lengths[0] / (lengths[0] + lengths[1]), least_pull, most_pull), x)
        moved = (points + over * here) * (1 - share) + (x + over * home) * share
        moved = jnp.where(jnp.isfinite(moved), jnp.clip(moved, box.lower, box.upper), x)
        crossed = look(moved, labels)[1] < 0
        distance = _length(moved - x, euclidean)
        closer = crossed & (distance < search.distance)
        return _Search(
            jnp.where(spread(crossed, x), x + _BACK * (moved - x), moved),
            jnp.where(spread(closer, x), moved, search.closest),
            jnp.where(closer, distance, search.distance),
        )

    def finish(closest: jax.Array, x: jax.Array, labels: jax.Array, ball: Interval) -> jax.Array:
        inside = project(ball, closest)
        margins = [look(points, labels)[1] for points in (inside, x)]
        take = (margins[0] < 0) | (margins[0] < margins[1])
        return jnp.where(spread(take, x), inside, x)

    return look, begin, advance, finish
