"""The loss of the worst case where mistakes have costs."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from mixtrain_jax import bounds
from mixtrain_jax.bounds.methods import MethodName
from mixtrain_jax.losses.base import Context, Values
from mixtrain_jax.schema import Range


def costly_loss(margins: jax.Array, costs: jax.Array) -> jax.Array:
    """log(1 + sum_k c_k exp(-m_k)) of margins and costs, `[n, classes - 1]` both: `[n]`.

    It is `robust_loss` where all costs are 1.
    """
    terms = jnp.pad(jnp.log(costs) - margins, ((0, 0), (1, 0)))
    return jax.nn.logsumexp(terms, axis=-1)


@dataclasses.dataclass(frozen=True)
class Costly:
    """Cost-sensitive robustness (Zhang and Evans, arXiv 1810.09225): an upper bound with a cost for each mistake.

    A mistake is to take an image of one class for one of another. Those of the protected classes cost more, the others
    less or nothing.

    Attributes:
      protected: Classes whose images must not be taken for others, each 0 to 100000.
      cost: What it costs to mistake an image of a protected class; 0.001 to 1000.
      other_cost: What other mistakes cost, each 0.001 to 1000.
      bound: Sound bounds of the margins.
    """

    protected: tuple[Annotated[int, Range(0, 10**5)], ...] = (0,)
    cost: Annotated[float, Range(0.001, 1000)] = 10.0
    other_cost: Annotated[float, Range(0.001, 1000)] = 0.1
    bound: MethodName = "ibp"

    name = "costly"

    @property
    def method(self) -> bounds.Method:
        """The bound; in training it need not hold in floating point."""
        return bounds.method(self.bound)

    def __call__(self, context: Context) -> Values:
        """The loss of each example; correct where it is verified."""
        lower = bounds.margins(self.method, context.logits_fn)(context.ball, context.labels)
        dear = (context.labels[:, None] == jnp.asarray(self.protected, context.labels.dtype)[None]).any(-1)
        costs = jnp.where(dear, self.cost, self.other_cost)[:, None].astype(lower.dtype)
        return Values(costly_loss(lower, costs), (lower > 0).all(-1))
