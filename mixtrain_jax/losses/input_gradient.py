"""The clean loss, and how fast it changes with the image."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from mixtrain_jax.losses.base import Context, Values
from mixtrain_jax.losses.clean import clean_loss
from mixtrain_jax.schema import Range


@dataclasses.dataclass(frozen=True)
class InputGradient:
    """Input-gradient regularization (Ross and Doshi-Velez, arXiv 1711.09404): CE + weight |dCE/dx|^2.

    Attributes:
      weight: Weight of the squared length of the gradient; 0 to 10000.
    """

    weight: Annotated[float, Range(0, 10**4)] = 1.0

    name = "input_gradient"
    method = None

    def __call__(self, context: Context) -> Values:
        """The loss of each example; correct where the image is classified rightly."""

        def summed(images: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            logits = context.logits_fn(images)
            losses = clean_loss(logits, context.labels)
            return losses.sum(), (losses, logits.argmax(-1) == context.labels)

        (_, (losses, right)), slopes = jax.value_and_grad(summed, has_aux=True)(context.images)
        squares = jnp.square(slopes).sum(range(1, slopes.ndim))
        return Values(losses + self.weight * squares, right)
