"""The interface of a mixing rule: an `(init, update)` pair in the manner of optax.

`update(signals, state) -> (weights, state)` is pure, so it runs inside the jitted step, and its state lives in the
train state and in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


class Metrics(NamedTuple):
    """What a step found for one term; scalars.

    Attributes:
      loss: mean over the examples of the term; 0 where the step goes without it.
      accuracy: share of them that is right in the sense of the loss, 0 to 1; 0 where the step goes without it.
    """

    loss: jax.Array
    accuracy: jax.Array


class Signals(NamedTuple):
    """What a rule sees of a step.

    Attributes:
      step: steps done before this one, a scalar.
      epoch: full passes over the training data done before this step, a scalar.
      terms: the metrics of each term by name, in the order of the objective. The first is the reference that the
        others are weighed against, the clean loss as a rule; its accuracy is less its generalization gap where that is
        measured.
      products: inner products of the gradients of the terms, `[terms, terms]` in that order; None unless the rule asks.
    """

    step: jax.Array
    epoch: jax.Array
    terms: Mapping[str, Metrics]
    products: jax.Array | None = None


Weights = dict[str, jax.Array]
"""A scalar for each term; the loss of a step is the weighted sum of its terms."""


class MixRule(NamedTuple):
    """A dynamic weight.

    Attributes:
      init: `() -> state`.
      update: `(signals, state) -> (weights, state)`.
      needs_products: whether `Signals.products` is computed, which reads all gradients once more.
      needs_gap: whether the accuracy of the reference is less its lead over the held-out examples.
    """

    init: Callable[[], Any]
    update: Callable[[Signals, Any], tuple[Weights, Any]]
    needs_products: bool = False
    needs_gap: bool = False


class Horizon(NamedTuple):
    """How long a run is.

    Attributes:
      steps: of training.
      epochs: passes over the training data.
      ramp: share of training over which the radius grows, 0 to 1.
    """

    steps: int
    epochs: int
    ramp: float


class Mixing(Protocol):
    """The settings of a rule: a frozen dataclass whose fields are those of the config, each with a default."""

    def rule(self, horizon: Horizon) -> MixRule:
        """The rule for a run of this length."""
        ...


def stateless(weights: Callable[[Signals], Weights]) -> MixRule:
    """A rule without state."""
    return MixRule(lambda: (), lambda signals, state: (weights(signals), state))


def against_the_first(signals: Signals, first: ArrayLike, others: ArrayLike) -> Weights:
    """One weight for the reference term and one for each of the others."""
    reference, *rest = signals.terms
    return {reference: scalar(first), **dict.fromkeys(rest, scalar(others))}


def scalar(x: ArrayLike) -> jax.Array:
    """A float32 scalar."""
    return jnp.asarray(x, jnp.float32)
