"""Everything that a step changes, as one pytree; what is not in here is a function of the config."""

from __future__ import annotations

import math
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
        """Means over the steps, by name; NaN where there was none."""
        sums = {name: float(value) for name, value in self._asdict().items()}
        steps = sums.pop("steps")
        return {name: value / steps if steps else math.nan for name, value in sums.items()}


class Bad(NamedTuple):
    """The steps that were skipped, their loss or gradient not being finite, and what the last one was like."""

    skipped: jax.Array  # in all, int32
    streak: jax.Array  # in a row, up to now, int32
    step: jax.Array  # the last one, int32; -1 for none
    largest: jax.Array  # largest absolute entry of each leaf of its gradient, [leaves]
    clean_loss: jax.Array
    robust_loss: jax.Array
    clean_weight: jax.Array
    robust_weight: jax.Array

    @classmethod
    def none(cls, params: Any) -> Bad:
        """Nothing skipped yet."""

        def zero() -> jax.Array:
            return jnp.zeros((), jnp.float32)

        largest = jnp.zeros(len(jax.tree.leaves(params)), jnp.float32)
        skipped, streak, step = (jnp.full((), value, jnp.int32) for value in (0, 0, -1))
        return cls(skipped, streak, step, largest, zero(), zero(), zero(), zero())


class TrainState(NamedTuple):
    """The whole state of training."""

    step: jax.Array  # steps done, int32
    params: Any
    opt_state: optax.OptState
    mix_state: Any  # of the rule that weighs the losses
    lead: jax.Array  # clean accuracy of training batches over that of held-out examples; 0 where nobody asks
    totals: Totals
    bad: Bad
