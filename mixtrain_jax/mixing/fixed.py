"""Weights that depend on nothing but the step."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import optax

from mixtrain_jax.mixing.base import Horizon, MixRule, Signals, Weights, against_the_first, scalar, stateless
from mixtrain_jax.schema import Range


def constant(weight: float) -> MixRule:
    """The robust loss weighs `weight >= 0`, the clean loss 1.

    Raises:
      ValueError: where the weight is negative.
    """
    if not weight >= 0:
        raise ValueError(f"constant wants a weight >= 0, got {weight}.")
    return schedule(lambda step: weight)


def schedule(robust: optax.Schedule) -> MixRule:
    """The robust loss weighs `robust(step)`, any optax schedule; the clean loss 1."""
    return stateless(lambda signals: against_the_first(signals, 1, robust(signals.step)))


def convex(alpha: float | optax.Schedule) -> MixRule:
    """The paper's form, `alpha * robust + (1 - alpha) * clean`, with a fixed share or a schedule of it.

    Args:
      alpha: share of the robust loss, 0 to 1; the paper starts near 0.8.

    Raises:
      ValueError: where a fixed share is outside [0, 1].
    """
    if not callable(alpha) and not 0 <= alpha <= 1:
        raise ValueError(f"convex wants alpha between 0 and 1, got {alpha}.")

    def weights(signals: Signals) -> Weights:
        share = scalar(alpha(signals.step) if callable(alpha) else alpha)
        return against_the_first(signals, 1 - share, share)

    return stateless(weights)


@dataclasses.dataclass(frozen=True)
class Constant:
    """Settings of `constant`.

    Attributes:
      weight: Weight of the robust loss, the clean loss weighing 1; 0 to 1000.
    """

    weight: Annotated[float, Range(0, 1000)] = 1.0

    def rule(self, horizon: Horizon) -> MixRule:
        """The rule, whatever the length of the run."""
        return constant(self.weight)


@dataclasses.dataclass(frozen=True)
class Ramped:
    """Settings of `schedule`: a weight that rises with the radius, in a line.

    Attributes:
      weight: Weight of the robust loss once the radius has grown, the clean loss weighing 1; 0 to 1000.
    """

    weight: Annotated[float, Range(0, 1000)] = 1.0

    def rule(self, horizon: Horizon) -> MixRule:
        """The rule, which stops rising where the radius does."""
        return schedule(optax.linear_schedule(0.0, self.weight, max(1, round(horizon.ramp * horizon.steps))))


@dataclasses.dataclass(frozen=True)
class Convex:
    """Settings of `convex`.

    Attributes:
      share: Share of the robust loss in the whole; 0 to 1.
    """

    share: Annotated[float, Range(0, 1)] = 0.5

    def rule(self, horizon: Horizon) -> MixRule:
        """The rule, whatever the length of the run."""
        return convex(self.share)
