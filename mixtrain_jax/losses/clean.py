"""The loss of the images as they are."""

from __future__ import annotations

import dataclasses

import jax
import optax

from mixtrain_jax.bounds.errors import check_classes
from mixtrain_jax.losses.base import Context, Values


def clean_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of logits `[n, classes]` and integer labels `[n]`: `[n]`.

    Raises:
      BoundsError: where there are fewer than two classes, of which the loss would be 0.
    """
    check_classes("clean_loss", logits.shape)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@dataclasses.dataclass(frozen=True)
class Clean:
    """Cross-entropy of the unperturbed images."""

    name = "clean"
    method = None

    def __call__(self, context: Context) -> Values:
        """The loss of each example."""
        logits = context.logits_fn(context.images)
        return Values(clean_loss(logits, context.labels), logits.argmax(-1) == context.labels)
