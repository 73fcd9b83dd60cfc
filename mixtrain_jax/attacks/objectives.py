"""What attacks ascend: functions of logits `[n, classes]`, labels `[n]` and target classes `[n]`, one value an example.

Each is positive only where the label has lost, except for the cross-entropy. `targets` is None in an untargeted attack.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Objective = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]


def margin(logits: jax.Array, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """The logit of the target, or the largest of the other classes, minus that of the label (arXiv 1608.04644)."""
    true = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    label = jnp.min(jnp.where(true, logits, jnp.inf), -1)
    if targets is not None:
        return _at(logits, targets) - label
    return jnp.max(jnp.where(true, -jnp.inf, logits), -1) - label


def lead(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The logit of the label minus the largest other one, `[n]`, by which attacks compare points.

    It is infinite where it would be NaN: such a point is nobody's best, and every other one is better.
    """
    value = -margin(logits, labels)
    return jnp.where(jnp.isnan(value), jnp.inf, value)


def cross_entropy(logits: jax.Array, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """Cross-entropy of the label, or minus that of the target."""
    if targets is not None:
        return -optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def dlr(logits: jax.Array, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """The margin as a share of the spread of the largest logits (Croce and Hein, arXiv 2003.01690, equations 6 and 7).

    Unlike the cross-entropy it does not vanish where logits are large. With fewer than three classes, four where
    targeted, it is the margin itself: margin and spread would be differences of the same logits, their ratio constant.
    """
    difference = margin(logits, labels, targets)
    if logits.shape[-1] < (3 if targets is None else 4):
        return difference
    ordered = jnp.sort(logits, -1)[..., ::-1]
    low = ordered[..., 2] if targets is None else (ordered[..., 2] + ordered[..., 3]) / 2
    return difference / (ordered[..., 0] - low + 1e-12)


def likeliest(logits: jax.Array, labels: jax.Array, count: int) -> jax.Array:
    """The `count` classes of the largest logits beside the label, largest first, `[n, count]`; fewer of few classes."""
    others = jnp.where(jax.nn.one_hot(labels, logits.shape[-1], dtype=bool), -jnp.inf, logits)
    return jnp.argsort(others, -1, descending=True)[:, : min(count, logits.shape[-1] - 1)].astype(labels.dtype)


def _at(logits: jax.Array, classes: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, classes[..., None], -1)[..., 0]
