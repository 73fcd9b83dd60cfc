"""The schedule of the MixTrain authors' code."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from mixtrain_jax.mixing.base import Horizon, MixRule, Signals, Weights, against_the_first, stateless


def staircase(ramp: float, *, start: float = 0.1, factor: float = 2.5, every: float = 5, cap: float = 50) -> MixRule:
    """The robust loss weighs `min(start * factor ** (max(epoch - ramp, 0) // every), cap)`, the clean loss 1.

    Args:
      ramp: epochs during which eps grows and the weight stays at `start`.
      start: first weight of the robust loss.
      factor: what the weight is multiplied by
      every: so many epochs after the ramp,
      cap: up to this weight.

    Raises:
      ValueError: where a number is out of range.
    """
    if not (ramp >= 0 and start >= 0 and factor >= 1 and every > 0 and cap >= start):
        raise ValueError(
            "staircase wants ramp >= 0, start >= 0, factor >= 1, every > 0 and cap >= start, "
            f"got ramp = {ramp}, start = {start}, factor = {factor}, every = {every}, cap = {cap}."
        )

    def weights(signals: Signals) -> Weights:
        # Whole epochs, as in the code: the weight moves between epochs only.
        rises = jnp.maximum(jnp.floor(signals.epoch) - ramp, 0) // every
        # Past the cap the power would overflow, so stop counting there.
        enough = 0.0 if start == 0 or factor == 1 else jnp.ceil(jnp.log(cap / start) / jnp.log(factor))
        return against_the_first(signals, 1, jnp.minimum(start * factor ** jnp.minimum(rises, enough), cap))

    return stateless(weights)


@dataclasses.dataclass(frozen=True)
class Staircase:
    """Settings of `staircase`: the ramp is that of the radius, the rest is the authors'."""

    def rule(self, horizon: Horizon) -> MixRule:
        """The rule, which starts to rise where the radius has grown."""
        return staircase(horizon.ramp * horizon.epochs)
