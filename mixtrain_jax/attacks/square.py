"""Square Attack: random search that looks at logits alone (Andriushchenko et al., arXiv 1912.00049)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.attacks.geometry import check, norm, project, spread
from mixtrain_jax.attacks.objectives import lead
from mixtrain_jax.attacks.search import LogitsFn, stepwise
from mixtrain_jax.bounds import Ball, Interval

_LATER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which the area halves


class _Schedule(NamedTuple):
    """The windows of all queries, and the patterns of a Euclidean ball."""

    sides: np.ndarray  # [queries, 2], height and width
    number: np.ndarray  # [queries], of the pattern
    patterns: np.ndarray  # [numbers, 2, height, width]: bumps in the first corner, one above the other and side by side
    first: np.ndarray  # [height, width]: bumps all over the image, to start from
    tile: int  # their side


class _Search(NamedTuple):
    query: jax.Array
    best: jax.Array  # [n, height, width, channels]
    margin: jax.Array  # [n]


def square(
    key: jax.Array,
    logits_fn: LogitsFn,
    x: jax.Array,
    labels: jax.Array,
    ball: Interval,
    *,
    queries: int = 5000,
    p_init: float = 0.8,
) -> jax.Array:
    """Lower the margin by changing a random square at a time and keeping what helps.

    In a box a square goes to a random end of the box, one for each channel, and the start is stripes of such ends. In a
    Euclidean ball a square gets a pair of bumps of opposite sign and the norm of another one, which is cleared. Squares
    cover a share `p_init` of the image at first, half of it after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000
    queries each. The search ends when all labels have lost.

    It is one compiled loop, inside `jax.jit` or outside; compilation happens once for a `logits_fn`, which must be
    hashable, a shape and a number of queries.

    Args:
      key: a random key.
      logits_fn: `[n, ...] -> [n, classes]`, examples independent of each other; need not be differentiable.
      x: inputs in `ball`: images `[n, height, width, channels]` or `[n, height, width]`; any others count as one row of
        entries.
      labels: integer labels `[n]`.
      ball: where the attack may go, the domain included: a box, or a Euclidean ball for each example.
      queries: evaluations of each example after the start.
      p_init: share of the image that the first squares cover.

    Returns:
      The input of the lowest margin that was met for each example, `[n, ...]`, inside the ball.

    Raises:
      BoundsError: where the ball is none that attacks know, or labels are no classes `[n]` of the network.
    """
    check(logits_fn, x, labels, ball)
    x, labels = jnp.asarray(x), jnp.asarray(labels)
    _, (run,) = stepwise(_whole, logits_fn, queries, p_init, arrays=(key, x, labels, ball))
    return run(key, x, labels, ball)


def _whole(logits_fn: LogitsFn, queries: int, p_init: float) -> tuple[Callable[..., jax.Array]]:
    return (functools.partial(_run, logits_fn, queries, p_init),)


def _run(
    logits_fn: LogitsFn,
    queries: int,
    p_init: float,
    key: jax.Array,
    x: jax.Array,
    labels: jax.Array,
    ball: Interval,
) -> jax.Array:
    shape = _image(x.shape)
    schedule = _schedule(shape[1], shape[2], queries, p_init, isinstance(ball, Ball))
    of_images = jax.tree.map(lambda leaf: leaf.reshape(shape) if leaf.ndim == x.ndim else leaf, ball)
    start, move = (_start_l2, _move_l2) if isinstance(ball, Ball) else (_start_linf, _move_linf)

    def look(points: jax.Array) -> jax.Array:
        return lead(logits_fn(points.reshape(x.shape)), labels)

    def keep(search: _Search, points: jax.Array) -> _Search:
        found = look(points)
        lower = found < search.margin
        best = jnp.where(spread(lower, points), points, search.best)
        return _Search(search.query + 1, best, jnp.where(lower, found, search.margin))

    def step(search: _Search) -> _Search:
        query_key = jax.random.fold_in(key, search.query)
        return keep(search, move(query_key, search.query, search.best, of_images, schedule))

    first = start(jax.random.fold_in(key, queries), of_images, schedule)
    search = _Search(jnp.asarray(0), first, look(first))
    if queries:
        search = jax.lax.while_loop(lambda s: (s.query < queries) & (s.margin >= 0).any(), step, search)
    return keep(search, x.reshape(shape)).best.reshape(x.shape)


def _start_linf(key: jax.Array, ball: Interval, schedule: _Schedule) -> jax.Array:
    n, _, width, channels = ball.shape
    up = jax.random.bernoulli(key, shape=(n, 1, width, channels))
    return jnp.where(up, ball.upper, ball.lower)


def _move_linf(key: jax.Array, query: jax.Array, best: jax.Array, ball: Interval, schedule: _Schedule) -> jax.Array:
    n, _, _, channels = best.shape
    window_key, sign_key = jax.random.split(key)
    inside, _ = _window(window_key, best, jnp.asarray(schedule.sides)[query])
    up = jax.random.bernoulli(sign_key, shape=(n, 1, 1, channels))
    return jnp.where(inside, jnp.where(up, ball.upper, ball.lower), best)


def _start_l2(key: jax.Array, ball: Ball, schedule: _Schedule) -> jax.Array:
    n, height, width, channels = ball.shape
    tile = schedule.tile
    signs = jax.random.rademacher(key, (n, -(-height // tile), -(-width // tile), channels), ball.dtype)
    signs = jnp.repeat(jnp.repeat(signs, tile, 1), tile, 2)[:, :height, :width]
    bumps = jnp.asarray(schedule.first, ball.dtype)[None, :, :, None]
    return _at_length(ball, signs * bumps)


def _move_l2(key: jax.Array, query: jax.Array, best: jax.Array, ball: Ball, schedule: _Schedule) -> jax.Array:
    n, _, _, channels = best.shape
    here_key, there_key, sign_key, turn_key = jax.random.split(key, 4)
    sides = jnp.asarray(schedule.sides)[query]
    here, corner = _window(here_key, best, sides)
    there, _ = _window(there_key, best, sides)
    away = best - ball.point

    def length(moves: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(jnp.square(moves), (1, 2), keepdims=True))

    turned = jax.random.bernoulli(turn_key, shape=(n,)).astype(jnp.int32)
    bumps = jnp.asarray(schedule.patterns, best.dtype)[jnp.asarray(schedule.number)[query], turned]
    bumps = jax.vmap(lambda bump, by: jnp.roll(bump, by, (0, 1)))(bumps, corner)[..., None]
    signs = jax.random.rademacher(sign_key, (n, 1, 1, channels), best.dtype)
    old = jnp.where(here, away, 0.0)
    new = jnp.where(here, signs * bumps + old / (length(old) + 1e-12), 0.0)
    unused = jnp.maximum(jnp.square(ball.eps) - jnp.square(norm(away)), 0.0)
    budget = jnp.sqrt(spread(unused, away) / channels + jnp.square(length(jnp.where(here | there, away, 0.0))))
    new = new / (length(new) + 1e-12) * budget
    return _at_length(ball, jnp.where(here, new, jnp.where(there, 0.0, away)))


def _at_length(ball: Ball, moves: jax.Array) -> jax.Array:
    """The points that lie a radius from the centers along these moves, where the box does not cut them off."""
    length = jnp.maximum(norm(moves), jnp.finfo(moves.dtype).tiny)
    return project(ball, ball.point + spread(ball.eps / length, moves) * moves)


def _window(key: jax.Array, images: jax.Array, sides: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A window of these sides anywhere in each image: where it is, `[n, height, width, 1]`, and corners `[n, 2]`."""
    n, height, width, _ = images.shape
    corner = jax.random.randint(key, (n, 2), 0, (jnp.asarray([height, width], sides.dtype) - sides + 1)[None])
    rows, columns = (jnp.arange(size)[None] - corner[:, i : i + 1] for i, size in enumerate((height, width)))
    rows, columns = (rows >= 0) & (rows < sides[0]), (columns >= 0) & (columns < sides[1])
    return (rows[:, :, None] & columns[:, None, :])[..., None], corner


def _image(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    if len(shape) == 4:
        return shape[0], shape[1], shape[2], shape[3]
    if len(shape) == 3:
        return shape[0], shape[1], shape[2], 1
    return shape[0], 1, int(np.prod(shape[1:])), 1


@functools.lru_cache(maxsize=8)
def _schedule(height: int, width: int, queries: int, p_init: float, odd: bool) -> _Schedule:
    areas = [p_init / 2 ** sum(query > later for later in _LATER) for query in range(queries)]
    sides = [_sides(area, height, width, odd) for area in areas]
    kinds = sorted(set(sides))
    patterns = np.zeros((max(len(kinds), 1), 2, height, width), np.float32)
    for number, (high, wide) in enumerate(kinds):
        patterns[number, 0, :high, :wide] = _bumps(high, wide)
        patterns[number, 1, :high, :wide] = _bumps(wide, high).T
    tile = max(min(height, width) // 5, 1) if min(height, width) > 1 else 1
    whole = np.tile(_bumps(tile, tile), (-(-height // tile), -(-width // tile)))[:height, :width]
    number = np.array([kinds.index(side) for side in sides], np.int32)
    return _Schedule(np.array(sides, np.int32).reshape(-1, 2), number, patterns, whole, tile)


def _sides(area: float, height: int, width: int, odd: bool) -> tuple[int, int]:
    """Height and width of a window of this share of an image: square where it fits; odd and at least 3 if so asked."""
    side = max(round((area * height * width) ** 0.5), 1)
    if odd:
        side = max(side + (side + 1) % 2, 3)
    high = min(side, height)
    return high, min(side if side <= height else max(round(area * width), 1), width)


def _bumps(height: int, width: int) -> np.ndarray:
    """Two bumps of opposite sign, one above the other (section 3.3 of the paper), of norm one."""
    if height == 1 < width:
        return _bumps(width, 1).T
    half = height // 2
    both = np.concatenate([_bump(half, width), -_bump(height - half, width)])
    return (both / np.sqrt(np.square(both).sum())).astype(np.float32)


def _bump(height: int, width: int) -> np.ndarray:
    """Squares around the middle on top of each other, the `k`-th of weight `1 / k**2`."""
    rows, columns = np.abs(np.arange(height) - height // 2), np.abs(np.arange(width) - width // 2)
    ring = np.maximum(rows[:, None], columns[None, :])
    weights = 1.0 / np.arange(1, max(height, width) // 2 + 2) ** 2
    return np.cumsum(weights[::-1])[::-1][ring]
