"""Everything that a step changes, as one pytree; what is not in here is a function of the config."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Totals(NamedTuple):
    """Sums over the steps since the last log; scalars."""

    steps: jax.Array
    loss: jax.Array
    clean_loss: jax.Array
    robust_loss: jax.Array
    clean_accuracy: jax.Array
    clean_weight: jax.Array
    robust_weight: jax.Array
    gradient_norm: jax.Array

    @classmethod
    def zeros(cls) -> Totals:
        """Nothing summed yet."""
        return cls(*(jnp.zeros((), jnp.float32) for _ in cls._fields))

    def means(self) -> dict[str, float]:
        """Means over the steps, by name."""
        sums = {name: float(value) for name, value in self._asdict().items()}
        steps = sums.pop("steps")
        return {name: value / max(steps, 1) for name, value in sums.items()}


class TrainState(NamedTuple):
    """The whole state of training."""

    step: jax.Array  # steps done, int32
    params: Any
    opt_state: optax.OptState
    mix_state: Any  # of the rule that weighs the losses
    lead: jax.Array  # clean accuracy of training batches over that of held-out examples; 0 where nobody asks
    totals: Totals
    bad_step: jax.Array  # first step whose loss or gradient was not finite, int32; -1 for none
