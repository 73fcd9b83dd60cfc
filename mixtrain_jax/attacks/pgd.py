"""Projected gradient descent inside a box."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mixtrain_jax.bounds import Interval

LogitsFn = Callable[[jax.Array], jax.Array]


class _Search(NamedTuple):
    """Where an attack stands; arrays of `[n, ...]`, margins `[n]`."""

    points: jax.Array
    best: jax.Array
    margin: jax.Array  # of the best


def pgd(
    key: jax.Array,
    logits_fn: LogitsFn,
    x: jax.Array,
    labels: jax.Array,
    ball: Interval,
    *,
    steps: int = 100,
    restarts: int = 3,
) -> jax.Array:
    """Signed-gradient descent on the margin (Madry et al., arXiv 1706.06083; margin loss of Carlini and Wagner).

    The first start is `x` itself, the others are uniform in the ball. The step is a quarter of the ball's radius and
    falls linearly to a hundredth of that, so that it ends inside fine structure as well as at corners.

    Called outside `jax.jit`, every step is one compiled call; compilation happens once for a `logits_fn`, which must be
    hashable, and a shape. Inside `jax.jit` it is a loop in the compiled program, many times slower on CPU where the
    network has convolutions: XLA finds the fast form of their gradients outside of loops only.

    Args:
      key: a random key.
      logits_fn: `[n, ...] -> [n, classes]`, examples independent of each other.
      x: inputs `[n, ...]` in `ball`.
      labels: integer labels `[n]`.
      ball: where the attack may go, the domain included.
      steps: gradient steps a start.
      restarts: starts.

    Returns:
      The input of the lowest margin that was met for each example, `[n, ...]`, inside the ball.
    """
    x, labels = jnp.asarray(x), jnp.asarray(labels)
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((key, x, labels, ball)))
    loop, (look, advance) = (jax.lax.fori_loop, _parts(logits_fn)) if traced else (_loop, _compiled(logits_fn))

    def step(i: int | jax.Array, search: _Search) -> _Search:
        return advance(jnp.asarray(i / steps, x.dtype), search, labels, ball)

    def start(i: int | jax.Array, search: _Search) -> _Search:
        anywhere = jax.random.uniform(jax.random.fold_in(key, i), x.shape, x.dtype, ball.lower, ball.upper)
        points = jnp.where(i == 0, x, jnp.clip(anywhere, ball.lower, ball.upper))
        return look(loop(0, steps, step, search._replace(points=points)), labels)

    unknown = _Search(x, x, jnp.full(labels.shape, jnp.inf, x.dtype))
    return loop(0, restarts, start, look(unknown, labels)).best


def _loop(first: int, last: int, step: Callable[[int, _Search], _Search], search: _Search) -> _Search:
    for i in range(first, last):
        search = step(i, search)
    return search


def _parts(logits_fn: LogitsFn) -> tuple[Callable[..., _Search], Callable[..., _Search]]:
    """Looking at points, and one step of descent after the share `done` of all."""

    def look(search: _Search, labels: jax.Array) -> _Search:
        return _keep(search, _margin(logits_fn, search.points, labels))

    def advance(done: jax.Array, search: _Search, labels: jax.Array, ball: Interval) -> _Search:
        found, pull = jax.vjp(lambda points: _margin(logits_fn, points, labels), search.points)
        (gradient,) = pull(jnp.ones_like(found))
        size = 0.25 * jnp.maximum(1 - done, 0.01) * ball.radius
        moved = jnp.clip(search.points - size * jnp.sign(gradient), ball.lower, ball.upper)
        return _keep(search, found)._replace(points=moved)

    return look, advance


@functools.lru_cache(maxsize=1)  # of the network at hand; no other one's weights are kept alive
def _compiled(logits_fn: LogitsFn) -> tuple[Callable[..., _Search], Callable[..., _Search]]:
    look, advance = _parts(logits_fn)
    return jax.jit(look), jax.jit(advance)


def _keep(search: _Search, found: jax.Array) -> _Search:
    """Keep the points where their margin is smaller than that of the best."""
    better = found < search.margin
    best = jnp.where(better.reshape(better.shape + (1,) * (search.best.ndim - 1)), search.points, search.best)
    return _Search(search.points, best, jnp.where(better, found, search.margin))


def _margin(logits_fn: LogitsFn, points: jax.Array, labels: jax.Array) -> jax.Array:
    """By how much the label's logit exceeds the largest other one, `[n]`."""
    logits = logits_fn(points)
    true = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jnp.min(jnp.where(true, logits, jnp.inf), -1) - jnp.max(jnp.where(true, -jnp.inf, logits), -1)


def descend(
    key: jax.Array,
    logits_fn: LogitsFn,
    labels: jax.Array,
    ball: Interval,
    *,
    steps: int,
) -> jax.Array:
    """The attack of adversarial training (Madry et al., arXiv 1706.06083): cheap, and a new one every step of training.

    Signed-gradient ascent on the cross-entropy from one uniform start, in steps of 2.5 radii over their number. It
    returns where it ends, one gradient a step and nothing else; `pgd` is the stronger attack to measure with.

    Args:
      key: a random key.
      logits_fn: `[n, ...] -> [n, classes]`, examples independent of each other.
      labels: integer labels `[n]`.
      ball: where the attack may go, the domain included, `[n, ...]`.
      steps: gradient steps.

    Returns:
      Inputs `[n, ...]` in the ball.
    """

    def loss(points: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits_fn(points), labels).sum()

    def step(_: jax.Array, points: jax.Array) -> jax.Array:
        moved = points + 2.5 / steps * ball.radius * jnp.sign(jax.grad(loss)(points))
        return jnp.clip(moved, ball.lower, ball.upper)

    start = jax.random.uniform(key, ball.shape, ball.lower.dtype, ball.lower, ball.upper)
    unroll = jax.default_backend() == "cpu"  # in loops XLA does not find the fast form of convolutions there
    return jax.lax.fori_loop(0, steps, step, jnp.clip(start, ball.lower, ball.upper), unroll=unroll)
