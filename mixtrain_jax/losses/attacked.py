"""The loss at attacked images: adversarial training."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from mixtrain_jax.attacks import descend
from mixtrain_jax.bounds import specification
from mixtrain_jax.losses.base import Context, Values
from mixtrain_jax.losses.bounded import robust_loss
from mixtrain_jax.schema import Range


@dataclasses.dataclass(frozen=True)
class Attacked:
    """Cross-entropy at the images that an attack finds (Madry et al., arXiv 1706.06083); there may be worse ones.

    Attributes:
      steps: Steps of the attack, one gradient each; 1 to 1000.
    """

    steps: Annotated[int, Range(1, 1000)] = 7

    name = "attacked"
    method = None

    def __call__(self, context: Context) -> Values:
        """The loss of each example; correct where the attack failed."""
        found = descend(context.key, context.logits_fn, context.labels, context.ball, steps=self.steps)
        logits = context.logits_fn(jax.lax.stop_gradient(found))
        rows = jax.vmap(lambda label: specification(label, logits.shape[-1], logits.dtype))(context.labels)
        margins = jnp.einsum("nmc,nc->nm", rows, logits)
        return Values(robust_loss(margins), (margins > 0).all(-1))
