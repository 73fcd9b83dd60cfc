"""Everything that a step changes, as one pytree; what is not in here is a function of the config."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class TermTotals(NamedTuple):
    """Sums of one term over the steps since the last log; scalars."""

    loss: jax.Array
    accuracy: jax.Array
    weight: jax.Array


class Totals(NamedTuple):
    """Sums over the steps since the last log; scalars."""

    steps: jax.Array
    loss: jax.Array
    gradient_norm: jax.Array
    terms: dict[str, TermTotals]

    @classmethod
    def zeros(cls, names: Iterable[str]) -> Totals:
        """Nothing summed yet of the terms of these names."""
        terms = {name: TermTotals(_zero(), _zero(), _zero()) for name in names}
        return cls(_zero(), _zero(), _zero(), terms)

    def means(self) -> dict[str, float]:
        """Means over the steps: `loss`, `gradient_norm`, and `NAME_loss` and so on of each term; NaN of no steps."""
        sums = {"loss": self.loss, "gradient_norm": self.gradient_norm}
        for name, term in self.terms.items():
            sums |= {f"{name}_{what}": value for what, value in term._asdict().items()}
        steps = float(self.steps)
        return {name: float(value) / steps if steps else math.nan for name, value in sums.items()}


class NonFinite(NamedTuple):
    """The steps that were skipped, their loss or gradient not being finite, and what the last one was like."""

    skipped: jax.Array  # in all, int32
    streak: jax.Array  # in a row, up to now, int32
    step: jax.Array  # the last one, int32; -1 for none
    largest: jax.Array  # largest absolute entry of each leaf of its gradient, [leaves]
    loss: dict[str, jax.Array]  # of each term
    weight: dict[str, jax.Array]

    @classmethod
    def none(cls, params: Any, names: Iterable[str]) -> NonFinite:
        """Nothing skipped yet."""
        names = tuple(names)
        largest = jnp.zeros(len(jax.tree.leaves(params)), jnp.float32)
        skipped, streak, step = (jnp.full((), value, jnp.int32) for value in (0, 0, -1))
        losses, weights = ({name: _zero() for name in names} for _ in range(2))
        return cls(skipped, streak, step, largest, losses, weights)


def _zero() -> jax.Array:
    return jnp.zeros((), jnp.float32)


class TrainState(NamedTuple):
    """The whole state of training."""

    step: jax.Array  # steps done, int32
    params: Any
    opt_state: optax.OptState
    mix_state: Any  # of the rule that weighs the losses
    gap: jax.Array  # generalization gap: accuracy of training batches less that of held-out examples; 0 if not asked
    totals: Totals
    bad: NonFinite


def upgraded(leaves: dict[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Leaves of a checkpoint whose state knew a clean and a robust loss alone, by their names here; others as they are.

    Args:
      leaves: by name.
      names: of the terms of the objective. The sum of the robust accuracy, which was not kept, starts at 0.
    """
    if "state.lead" not in leaves:
        return leaves
    zero = np.zeros((), np.float32)
    found = {name: leaf for name, leaf in leaves.items() if not re.search(r"\.(lead|(clean|robust)_\w+)$", name)}
    found["state.gap"] = leaves["state.lead"]
    for name in names:
        old = "clean" if name == "clean" else "robust"
        for what in ("loss", "accuracy", "weight"):
            found[f"state.totals.terms.{name}.{what}"] = leaves.get(f"state.totals.{old}_{what}", zero)
        for what in ("loss", "weight"):
            found[f"state.bad.{what}.{name}"] = leaves[f"state.bad.{old}_{what}"]
    return found
