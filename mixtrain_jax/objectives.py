"""Objectives: what a step minimizes, as named terms that a mixing rule weighs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mixtrain_jax.losses import Attacked, Bounded, Clean, Loss


class Term(NamedTuple):
    """One loss of an objective; a jitted function of its own, traced once.

    Attributes:
      loss: of each example.
      examples: k, how many examples of the batch carry the loss, drawn anew each step; None for all. Terms of the same
        k draw the same examples.
      replace: whether they are drawn with replacement, as the authors of MixTrain do.
      probability: share of the steps that have the term.
      dtype: floats that the layers compute in; parameters, images, logits and gradients stay float32.
      microbatch: examples whose loss is computed at a time, on each device; None for all.
    """

    loss: Loss
    examples: int | None = None
    replace: bool = False
    probability: float = 1.0
    dtype: str = "float32"
    microbatch: int | None = None


Objective = Mapping[str, Term]
"""Terms by name, the reference first: the one that the mixing rule weighs the others against."""


def present(objective: Objective, seed: int, step: int) -> dict[str, bool]:
    """Which terms a step has, a pure function of the seed and the step."""

    def has(number: int, share: float) -> bool:
        if share in (0.0, 1.0):
            return share > 0
        return bool(np.random.default_rng([seed, step, number]).random() < share)

    return {name: has(number, term.probability) for number, (name, term) in enumerate(objective.items())}


def standard(dtype: str = "float32") -> Objective:
    """Standard training: the clean loss alone."""
    return {"clean": Term(Clean(), dtype=dtype)}


def pgd(steps: int = 7, dtype: str = "float32") -> Objective:
    """Adversarial training: the loss at attacked images alone."""
    return {"attacked": Term(Attacked(steps), dtype=dtype)}


def robust(bound: str = "ibp", dtype: str = "float32") -> Objective:
    """Verifiable training: the clean and the sound loss of every example."""
    return mixtrain(bound, None, dtype=dtype)


def mixtrain(
    bound: str = "ibp",
    examples: int | None = 16,
    *,
    replace: bool = False,
    probability: float = 1.0,
    dtype: str = "float32",
) -> Objective:
    """MixTrain (Wang et al., arXiv 1811.02625): the clean loss of every example, the sound loss of a random few."""
    return {
        "clean": Term(Clean(), dtype=dtype),
        "robust": Term(Bounded(bound), examples=examples, replace=replace, probability=probability),
    }
