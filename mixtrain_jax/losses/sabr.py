"""The worst case of a small box around an attacked image."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax.numpy as jnp

from mixtrain_jax import bounds
from mixtrain_jax.bounds import BoundsError, Interval, linf_ball
from mixtrain_jax.bounds.methods import MethodName
from mixtrain_jax.losses.base import Context, Values
from mixtrain_jax.losses.bounded import robust_loss
from mixtrain_jax.schema import Range


@dataclasses.dataclass(frozen=True)
class Sabr:
    """SABR (Mueller et al., arXiv 2210.04871): bounds of the box of radius ratio * eps around an attacked image.

    The box is moved inside the ball. Its bounds say nothing of the rest of the ball, so a small box trains a network
    that only complete verification can prove.

    Attributes:
      ratio: Radius of the box, as a multiple of the radius trained on: 0 is adversarial training, 1 bounds the whole
        ball; 0 to 1.
      bound: Sound bounds of the box.
      steps: Steps of the attack, one gradient each; 1 to 1000.
    """

    ratio: Annotated[float, Range(0, 1)] = 0.4
    bound: MethodName = "ibp"
    steps: Annotated[int, Range(1, 1000)] = 8

    name = "sabr"

    @property
    def method(self) -> bounds.Method:
        """The bound; in training it need not hold in floating point."""
        return bounds.method(self.bound)

    def box(self, context: Context) -> Interval:
        """The box of each example.

        Raises:
          BoundsError: where the norm is not l-infinity, in which it has no box.
        """
        if context.threat.norm != "linf":
            raise BoundsError(f"SABR wants the norm linf, whose balls are boxes, got {context.threat.norm}.")
        room = (1 - self.ratio) * context.eps
        center = jnp.clip(context.attack(self.steps), context.images - room, context.images + room)
        return linf_ball(center, self.ratio * context.eps, context.threat.domain)

    def __call__(self, context: Context) -> Values:
        """The loss of each example; correct where its box is verified."""
        lower = bounds.margins(self.method, context.logits_fn)(self.box(context), context.labels)
        return Values(robust_loss(lower), (lower > 0).all(-1))
