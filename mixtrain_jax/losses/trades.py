"""The clean loss, and how far an attack moves the prediction."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from mixtrain_jax.losses.base import Context, Values
from mixtrain_jax.losses.clean import clean_loss
from mixtrain_jax.schema import Range


def divergence(logits: jax.Array, reference: jax.Array) -> jax.Array:
    """KL(softmax(reference) || softmax(logits)) of each example: `[n, classes]` twice to `[n]`."""
    log_p, log_q = jax.nn.log_softmax(reference), jax.nn.log_softmax(logits)
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


@dataclasses.dataclass(frozen=True)
class Trades:
    """TRADES (Zhang et al., arXiv 1901.08573, equation 5): CE(f(x), y) + beta KL(f(x) || f(x')).

    x' maximizes that divergence. The attack starts anywhere in the ball, since its gradient vanishes at x; the authors
    start next to x.

    Attributes:
      beta: Weight of the divergence, the inverse of the paper's lambda; 0 to 100.
      steps: Steps of the attack, one gradient each; 1 to 1000.
    """

    beta: Annotated[float, Range(0, 100)] = 6.0
    steps: Annotated[int, Range(1, 1000)] = 10

    name = "trades"
    method = None

    def __call__(self, context: Context) -> Values:
        """The loss of each example; correct where the attack failed."""
        logits = context.logits_fn(context.images)
        fixed = jax.lax.stop_gradient(logits)
        found = context.attack(self.steps, objective=lambda moved, labels, targets: divergence(moved, fixed))
        attacked = context.logits_fn(found)
        loss = clean_loss(logits, context.labels) + self.beta * divergence(attacked, logits)
        return Values(loss, attacked.argmax(-1) == context.labels)
