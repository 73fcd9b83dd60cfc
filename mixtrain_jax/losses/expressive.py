"""Mixtures of an attacked and a bounded loss (De Palma et al., arXiv 2305.13991): alpha moves between them.

An expressive loss equals the loss at an attacked image at alpha = 0, the bound of the worst case at alpha = 1, and
grows from one to the other in between.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from mixtrain_jax import bounds
from mixtrain_jax.bounds.methods import MethodName
from mixtrain_jax.losses.base import Context, Values
from mixtrain_jax.losses.bounded import robust_loss
from mixtrain_jax.schema import Range


@dataclasses.dataclass(frozen=True)
class _Expressive:
    """What the mixtures share.

    Attributes:
      alpha: Share of the bound; 0 to 1.
      bound: Sound bounds of the ball.
      steps: Steps of the attack, one gradient each; 1 to 1000.
      attack_ratio: Radius of the attack, as a multiple of the radius trained on; 0 to 4.
    """

    alpha: Annotated[float, Range(0, 1)] = 0.5
    bound: MethodName = "ibp"
    steps: Annotated[int, Range(1, 1000)] = 8
    attack_ratio: Annotated[float, Range(0, 4)] = 1.0

    @property
    def method(self) -> bounds.Method:
        """The bound; in training it need not hold in floating point."""
        return bounds.method(self.bound)

    def mixed(self, lower: jax.Array, attacked: jax.Array) -> jax.Array:
        """The loss `[n]` of lower bounds and of attacked margins, `[n, classes - 1]` both."""
        raise NotImplementedError

    def __call__(self, context: Context) -> Values:
        """The loss of each example; correct where it is verified."""
        attacked = context.margins(context.attack(self.steps, self.attack_ratio))
        lower = bounds.margins(self.method, context.logits_fn)(context.ball, context.labels)
        return Values(self.mixed(lower, attacked), (lower > 0).all(-1))


@dataclasses.dataclass(frozen=True)
class MtlIbp(_Expressive):
    """MTL-IBP: the losses are mixed."""

    name = "mtl_ibp"

    def mixed(self, lower: jax.Array, attacked: jax.Array) -> jax.Array:
        """Alpha of the bound, the rest of the attack."""
        return self.alpha * robust_loss(lower) + (1 - self.alpha) * robust_loss(attacked)


@dataclasses.dataclass(frozen=True)
class CcIbp(_Expressive):
    """CC-IBP: the margins are mixed."""

    name = "cc_ibp"

    def mixed(self, lower: jax.Array, attacked: jax.Array) -> jax.Array:
        """The loss of convex combinations of margins."""
        return robust_loss(self.alpha * lower + (1 - self.alpha) * attacked)


@dataclasses.dataclass(frozen=True)
class ExpIbp(_Expressive):
    """Exp-IBP: the losses are mixed in powers."""

    name = "exp_ibp"

    def mixed(self, lower: jax.Array, attacked: jax.Array) -> jax.Array:
        """A geometric mean: alpha is the exponent of the bound."""
        # A loss that rounds to 0 has no slope: its power has none of infinite length either.
        bound, attack = (jnp.maximum(robust_loss(m), jnp.finfo(m.dtype).eps) for m in (lower, attacked))
        return bound**self.alpha * attack ** (1 - self.alpha)
