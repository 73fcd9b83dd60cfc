"""As verifiable as possible subject to a clean accuracy."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mixtrain_jax.mixing.base import Horizon, MixRule, Signals, Weights, against_the_first, scalar
from mixtrain_jax.schema import Range


class ConstrainedState(NamedTuple):
    """State of `constrained`."""

    multiplier: jax.Array  # the robust share is its sigmoid
    accuracy: jax.Array  # moving average of the accuracy of the reference term
    opt_state: optax.OptState


def constrained(target: float, tx: optax.GradientTransformation, *, start: float = 0.5, decay: float = 0.99) -> MixRule:
    """The adaptive rule: as verifiable as possible subject to `accuracy >= target`, that of the reference term.

    The Lagrangian form of that problem, our own choice: the robust loss weighs `alpha = sigmoid(multiplier)` and the
    clean loss `1 - alpha`; `tx` descends on the violation `target - accuracy`, accuracy being smoothed by a moving
    average that starts at the target. Below the target the clean loss gains weight, above it the robust loss does. The
    share stays between 2 and 98 %. Any optax transformation drives it; its state is part of the rule's.

    Args:
      target: accuracy on training batches to hold, 0 to 1.
      tx: optimizer of the multiplier, for instance `optax.sgd(0.05)`.
      start: first share of the robust loss, strictly between 0 and 1.
      decay: of the moving average, per step, 0 to below 1.

    Raises:
      ValueError: where a number is out of range.
    """
    if not (0 <= target <= 1 and 0 < start < 1 and 0 <= decay < 1):
        raise ValueError(
            "constrained wants 0 <= target <= 1, 0 < start < 1 and 0 <= decay < 1, "
            f"got target = {target}, start = {start}, decay = {decay}."
        )

    def init() -> ConstrainedState:
        multiplier = scalar(jax.scipy.special.logit(scalar(start)))
        return ConstrainedState(multiplier, scalar(target), tx.init(multiplier))

    def update(signals: Signals, state: ConstrainedState) -> tuple[Weights, ConstrainedState]:
        reference, *_ = signals.terms.values()
        accuracy = decay * state.accuracy + (1 - decay) * reference.accuracy
        moves, opt_state = tx.update(target - accuracy, state.opt_state, state.multiplier)
        # Shares of 2 % to 98 %: beyond, the sigmoid is flat and the way back would be long.
        multiplier = jnp.clip(state.multiplier + jnp.asarray(moves), -4.0, 4.0)
        share = jax.nn.sigmoid(multiplier)
        return against_the_first(signals, 1 - share, share), ConstrainedState(multiplier, accuracy, opt_state)

    return MixRule(init, update)


@dataclasses.dataclass(frozen=True)
class Constrained:
    """Settings of `constrained`.

    Attributes:
      target: Clean accuracy that is held; 0 to 1.
      target_on: Where that accuracy is taken: on training batches, or on them less their lead over the held-out
        examples.
      learning_rate: Step of the optimizer that moves the share; 0 to 100.
      start: First share of the robust loss; 0.001 to 0.999.
    """

    target: Annotated[float, Range(0, 1)] = 0.995
    target_on: Literal["batches", "heldout"] = "batches"
    learning_rate: Annotated[float, Range(0, 100)] = 0.2
    start: Annotated[float, Range(0.001, 0.999)] = 0.5

    def rule(self, horizon: Horizon) -> MixRule:
        """The rule, driven by gradient descent, whatever the length of the run."""
        rule = constrained(self.target, optax.sgd(self.learning_rate), start=self.start)
        return rule._replace(needs_gap=self.target_on == "heldout")
