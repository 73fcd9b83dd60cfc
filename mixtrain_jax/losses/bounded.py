"""The loss of the worst case, from sound bounds."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mixtrain_jax import bounds
from mixtrain_jax.bounds.errors import check_classes
from mixtrain_jax.bounds.methods import MethodName
from mixtrain_jax.losses.base import Context, Values


def robust_loss(margins: jax.Array) -> jax.Array:
    """Cross-entropy of the worst case, from lower bounds of margins `[n, classes - 1]`: `[n]`.

    The worst-case logits are 0 for the label and minus the margin for every other class (Wong and Kolter, arXiv
    1711.00851, theorem 2), so the loss bounds the cross-entropy of every input in the ball from above.

    Raises:
      BoundsError: where there are no margins, as of a single class.
    """
    check_classes("robust_loss", (*margins.shape[:-1], margins.shape[-1] + 1))
    return jax.nn.logsumexp(jnp.pad(-margins, ((0, 0), (1, 0))), axis=-1)


@dataclasses.dataclass(frozen=True)
class Bounded:
    """An upper bound of the cross-entropy of every perturbed image.

    Attributes:
      bound: Sound bounds of the margins that the loss is computed from.
    """

    bound: MethodName = "ibp"

    name = "robust"

    @property
    def method(self) -> bounds.Method:
        """The bound; in training it need not hold in floating point."""
        return bounds.method(self.bound)

    def __call__(self, context: Context) -> Values:
        """The loss of each example; correct where it is verified."""
        lower = bounds.margins(self.method, context.logits_fn)(context.ball, context.labels)
        return Values(robust_loss(lower), (lower > 0).all(-1))
