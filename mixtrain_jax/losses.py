"""Losses of one example each; whoever averages does so outside."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from mixtrain_jax.bounds.errors import check_classes


def clean_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of logits `[n, classes]` and integer labels `[n]`: `[n]`.

    Raises:
      BoundsError: where there are fewer than two classes, of which the loss would be 0.
    """
    check_classes("clean_loss", logits.shape)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def robust_loss(margins: jax.Array) -> jax.Array:
    """Cross-entropy of the worst case, from lower bounds of margins `[n, classes - 1]`: `[n]`.

    The worst-case logits are 0 for the label and minus the margin for every other class (Wong and Kolter, arXiv
    1711.00851, theorem 2), so the loss bounds the cross-entropy of every input in the ball from above.

    Raises:
      BoundsError: where there are no margins, as of a single class.
    """
    check_classes("robust_loss", (*margins.shape[:-1], margins.shape[-1] + 1))
    return jax.nn.logsumexp(jnp.pad(-margins, ((0, 0), (1, 0))), axis=-1)
