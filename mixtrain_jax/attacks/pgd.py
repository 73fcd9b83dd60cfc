"""Projected gradient descent inside a box."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mixtrain_jax.bounds import Interval


def pgd(
    key: jax.Array,
    logits_fn: Callable[[jax.Array], jax.Array],
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

    def margin(points: jax.Array) -> jax.Array:
        logits = logits_fn(points)
        true = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
        return jnp.min(jnp.where(true, logits, jnp.inf), -1) - jnp.max(jnp.where(true, -jnp.inf, logits), -1)

    def descent(points: jax.Array) -> tuple[jax.Array, jax.Array]:
        found, pull = jax.vjp(margin, points)
        return found, pull(jnp.ones_like(found))[0]

    def keep(best: tuple[jax.Array, jax.Array], points: jax.Array, found: jax.Array) -> tuple[jax.Array, jax.Array]:
        better = found < best[1]
        return jnp.where(_like(better, points), points, best[0]), jnp.where(better, found, best[1])

    def step(i: jax.Array, carry: tuple[jax.Array, tuple[jax.Array, jax.Array]]):
        points, best = carry
        found, gradient = descent(points)
        size = 0.25 * jnp.maximum(1 - i / steps, 0.01) * ball.radius
        moved = jnp.clip(points - size * jnp.sign(gradient), ball.lower, ball.upper)
        return moved, keep(best, points, found)

    def start(i: jax.Array, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        anywhere = jax.random.uniform(jax.random.fold_in(key, i), x.shape, x.dtype, ball.lower, ball.upper)
        points = jnp.where(i == 0, x, jnp.clip(anywhere, ball.lower, ball.upper))
        points, best = jax.lax.fori_loop(0, steps, step, (points, best))
        return keep(best, points, margin(points))

    return jax.lax.fori_loop(0, restarts, start, (x, margin(x)))[0]


def descend(
    key: jax.Array,
    logits_fn: Callable[[jax.Array], jax.Array],
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
    return jax.lax.fori_loop(0, steps, step, jnp.clip(start, ball.lower, ball.upper))


def _like(mask: jax.Array, x: jax.Array) -> jax.Array:
    return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
