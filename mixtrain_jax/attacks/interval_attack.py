"""Gradient attacks that look further than a gradient does, by bounds of what surrounds a point."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.attacks.geometry import check, project, spread, uniform
from mixtrain_jax.attacks.gradients import finite
from mixtrain_jax.attacks.objectives import lead
from mixtrain_jax.attacks.pgd import pgd
from mixtrain_jax.attacks.search import Attack, Best, LogitsFn, looking, stepwise, unknown
from mixtrain_jax.bounds import Ball, BoundsError, Interval, Method, intersect, specification, symbolic

_ONE_START = functools.partial(pgd, restarts=1)


class _View(NamedTuple):
    """What the analyses around the points found so far."""

    overtaken: jax.Array  # [n], bool: some class may beat the label, or does so already; nothing more is looked at
    gradient: jax.Array  # [n, ...]: interval gradient
    share: jax.Array  # [n]: the last radius that was looked at


def interval_attack(
    key: jax.Array,
    logits_fn: LogitsFn,
    x: jax.Array,
    labels: jax.Array,
    ball: Interval,
    *,
    attack: Attack = _ONE_START,
    rounds: Sequence[int] = (3, 3, 1),
    radii: Sequence[float] = (1 / 30, 1 / 10, 3 / 10, 1 / 2),
    method: Method = symbolic,
    corner: bool = True,
) -> jax.Array:
    """The interval attack (Wang et al., arXiv 1906.02282): a gradient attack that bounds send to better starts.

    Around the current point boxes grow until the upper bound of some other class's logit minus the label's is positive.
    The coefficients of the linear function behind that bound, the interval gradient, say where in the box, and not just
    at the point, the class gains. The point moves that way, and a gradient attack goes on from there.

    A first gradient attack starts at `x`, and the first round where it ended. Further starts are uniform in the ball.

    Args:
      key: as for `pgd`.
      logits_fn: as for `pgd`, made of what bounds know.
      x: as for `pgd`, the center of the ball.
      labels: as for `pgd`.
      ball: as for `pgd`, a box.
      attack: the gradient attack, which is given the current point as its `x`; by default `pgd` from there alone.
      rounds: for each start, how often to analyse, move and attack. The authors take `(3, 3) + 48 * (1,)`.
      radii: radii of the analyses as shares of the ball's, each larger than the one before. Where no class overtakes
        the label at the last one, the likeliest there is taken. The authors' are 0.01, three times that and so on, up
        to half of eps; the default are theirs at eps 0.3.
      method: `symbolic` as the authors have it, or `crown`, or `crown_ibp`, which is far cheaper on large networks.
      corner: whether to move to the corner of the ball that lies in the direction of the interval gradient's signs, as
        the authors' code does; else by the radius of the analysis.

    Returns:
      As `pgd` does; no worse than `attack` with the same key from `x`.

    Raises:
      BoundsError: as `pgd` does, and where the ball is no box, the method has no linear functions, there is no round,
        or radii don't grow.
      UnsupportedPrimitiveError: where the network is made of what bounds do not know.
    """
    if isinstance(ball, Ball):
        raise BoundsError("interval_attack knows boxes (linf_ball) alone, got a Euclidean ball; use pgd there.")
    if not (sum(rounds) > 0 and len(radii) and np.all(np.diff(radii, prepend=0) > 0)):
        raise BoundsError(f"interval_attack wants at least one round and growing radii, got {rounds} and {radii}.")
    check(logits_fn, x, labels, ball)
    x, labels = jnp.asarray(x), jnp.asarray(labels)
    arrays = (key, x, labels, ball)
    loop, (begin, widen, move) = stepwise(_parts, logits_fn, method, corner, arrays=arrays)
    _, (look,) = stepwise(looking, logits_fn, arrays=arrays)
    shares = np.asarray(radii, x.dtype)
    fresh = np.array([i > 0 and j == 0 for i, count in enumerate(rounds) for j in range(count)], bool)

    def once(i: int | jax.Array, state: tuple[jax.Array, Best]) -> tuple[jax.Array, Best]:
        points, best = state
        start_key, attack_key = jax.random.split(jax.random.fold_in(key, i))
        points = jnp.where(jnp.asarray(fresh)[i], uniform(start_key, ball), points)
        view = begin(points, labels)
        view = loop(0, len(shares), lambda j, v: widen(jnp.asarray(shares)[j], v, points, x, labels, ball), view)
        moved = move(view, points, x, ball)
        points = attack(attack_key, logits_fn, moved, labels, ball)
        return points, look(best, points, labels)

    points = attack(key, logits_fn, x, labels, ball)
    return loop(0, len(fresh), once, (points, look(unknown(x), points, labels)))[1].points


def _parts(
    logits_fn: LogitsFn, method: Method, corner: bool
) -> tuple[Callable[..., _View], Callable[..., _View], Callable[..., jax.Array]]:
    def begin(points: jax.Array, labels: jax.Array) -> _View:
        broken = lead(logits_fn(points), labels) < 0
        return _View(broken, jnp.zeros_like(points), jnp.zeros(points.shape[:1], points.dtype))

    def analyse(view: _View, share: jax.Array, labels: jax.Array, box: Interval) -> _View:
        def example(box: Interval, label: jax.Array) -> tuple[jax.Array, jax.Array]:
            bounded = method(lambda v: logits_fn(v[None])[0])
            rows = -specification(label, classes, box.dtype)
            bounds, coefficients = bounded.coefficients(rows, box)
            largest = jnp.argmax(jnp.where(jnp.isnan(bounds.upper), -jnp.inf, bounds.upper))
            return bounds.upper[largest], coefficients.upper[largest]

        classes = jax.eval_shape(logits_fn, box.lower).shape[-1]
        upper, gradient = jax.vmap(example)(box, labels)
        done = view.overtaken
        return _View(
            done | (upper > 0),
            jnp.where(spread(done, gradient), view.gradient, finite(gradient)),
            jnp.where(done, view.share, share),
        )

    def widen(
        share: jax.Array, view: _View, points: jax.Array, x: jax.Array, labels: jax.Array, ball: Interval
    ) -> _View:
        reach = share * _eps(x, ball)
        box = intersect(Interval(points - reach, points + reach), ball)
        return jax.lax.cond(view.overtaken.all(), lambda: view, lambda: analyse(view, share, labels, box))

    def move(view: _View, points: jax.Array, x: jax.Array, ball: Interval) -> jax.Array:
        reach = 2 * ball.radius if corner else spread(view.share, points) * _eps(x, ball)
        return project(ball, points + reach * jnp.sign(view.gradient))

    return begin, widen, move


def _eps(x: jax.Array, ball: Interval) -> jax.Array:
    """The radius of each entry before the domain cut the ball, at least from one side."""
    return jnp.maximum(ball.upper - x, x - ball.lower)
