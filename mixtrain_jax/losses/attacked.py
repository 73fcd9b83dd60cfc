"""The loss at attacked images: adversarial training."""

from __future__ import annotations

import dataclasses
from typing import Annotated

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
        margins = context.margins(context.attack(self.steps))
        return Values(robust_loss(margins), (margins > 0).all(-1))
