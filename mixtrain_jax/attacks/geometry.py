"""Where attacks may go: steps, starts and projections in the l-infinity box and the l2 ball of each example.

A box is an `Interval` of `[n, ...]`. A Euclidean ball is a `Ball` as `jax.vmap(l2_ball, (0, None, None))` makes it: a
point, a radius and a box for each example.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mixtrain_jax.bounds import Ball, BoundsError, Interval
from mixtrain_jax.bounds.errors import check_classes, check_labels

_INSIDE = 1 - 1e-6  # of the radius: no point may leave the ball by round-off


def spread(values: jax.Array, like: jax.Array) -> jax.Array:
    """Values `[n]` with trailing axes of one, so that they broadcast against `like`, `[n, ...]`."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def norm(x: jax.Array) -> jax.Array:
    """Euclidean norm of each example, `[n, ...] -> [n]`."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim))))


def check_ball(ball: Interval) -> None:
    """Refuse what is no batch of balls that attacks know.

    Raises:
      BoundsError: where the ball is of the l1 norm, and where Euclidean balls don't come with one radius an example.
    """
    if not isinstance(ball, Ball):
        return
    if ball.norm != 2:
        raise BoundsError(f"Attacks know boxes (linf_ball) and Euclidean balls (l2_ball), got a ball of l{ball.norm}.")
    if jnp.shape(ball.eps) != ball.shape[:1]:
        raise BoundsError(
            f"Attacks want a Euclidean ball for each example, got {list(jnp.shape(ball.eps))} radii for inputs "
            f"{list(ball.shape)}; make them by jax.vmap(lambda v: l2_ball(v, eps, domain))(x)."
        )


def check(
    logits_fn: Callable[[jax.Array], jax.Array],
    x: ArrayLike,
    labels: ArrayLike,
    ball: Interval,
    batch_size: int | None = None,
) -> None:
    """Refuse what an attack cannot start from; `batch_size` is what the network is called with, if not all of `x`.

    Raises:
      BoundsError: as `check_ball` does; where inputs and ball differ in shape; where labels are not one integer an
        input, or, outside `jax.jit`, not classes of the network, or it has one class.
    """
    check_ball(ball)
    if jnp.shape(x) != jnp.shape(ball.lower):
        raise BoundsError(
            f"Attacks want a ball for each input, got inputs {list(jnp.shape(x))} and a ball {list(ball.shape)}."
        )
    kind = jnp.asarray(labels).dtype
    if jnp.shape(labels) != jnp.shape(x)[:1] or not jnp.issubdtype(kind, jnp.integer):
        raise BoundsError(
            f"Attacks want integer labels [n] of inputs [n, ...], got {kind}{list(jnp.shape(labels))} of inputs "
            f"{list(jnp.shape(x))}."
        )
    if isinstance(labels, jax.core.Tracer) or not np.size(labels):
        return
    batch = jax.ShapeDtypeStruct((batch_size or np.size(labels), *jnp.shape(x)[1:]), jnp.asarray(x).dtype)
    logits = jax.eval_shape(logits_fn, batch)
    check_classes("An attack", logits.shape)
    # An array of several processes can't be brought here; its largest entry can.
    check_labels("An attack", labels if isinstance(labels, jax.Array) else np.asarray(labels), logits.shape[-1])


def project(ball: Interval, points: jax.Array) -> jax.Array:
    """The points `[n, ...]` moved into the ball.

    Towards the center of a Euclidean ball and then into its box, which holds the center and so takes nothing outside.
    """
    if isinstance(ball, Ball):
        away = points - ball.point
        # Entries are rounded where they end: that alone may move a point by as much.
        rounding = jnp.finfo(away.dtype).eps * norm(ball.point)
        reach = jnp.maximum(_INSIDE * ball.eps - rounding, 0)
        share = jnp.minimum(1.0, reach / jnp.maximum(norm(away), jnp.finfo(away.dtype).tiny))
        points = ball.point + spread(share, away) * away
    return jnp.clip(points, ball.lower, ball.upper)


def steepest(ball: Interval, gradient: jax.Array, size: jax.Array | float = 1.0) -> jax.Array:
    """The step of `size` times the ball's radius that a linear function of this gradient rises most along."""
    if isinstance(ball, Ball):
        # Relative to the largest entry, whose square may be no number or nothing.
        largest = jnp.max(jnp.abs(gradient), axis=tuple(range(1, gradient.ndim)))
        unit = gradient / spread(jnp.where(largest > 0, largest, 1), gradient)
        return spread(size * ball.eps / jnp.maximum(norm(unit), 0.5), unit) * unit
    return size * ball.radius * jnp.sign(gradient)


def uniform(key: jax.Array, ball: Interval) -> jax.Array:
    """A point of each ball, `[n, ...]`: uniform in a box; in a Euclidean ball uniform before the box cuts it."""
    if not isinstance(ball, Ball):
        anywhere = jax.random.uniform(key, ball.shape, ball.dtype, ball.lower, ball.upper)
        return jnp.clip(anywhere, ball.lower, ball.upper)
    direction_key, length_key = jax.random.split(key)
    direction = jax.random.normal(direction_key, ball.shape, ball.dtype)
    entries = ball.lower[0].size
    length = jax.random.uniform(length_key, ball.eps.shape, ball.dtype) ** (1 / entries)
    return project(ball, ball.point + spread(length, direction) * steepest(ball, direction))
