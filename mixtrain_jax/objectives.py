"""Objectives: what a step minimizes, as named terms that a mixing rule weighs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from mixtrain_jax.losses import (
    Attacked,
    Bounded,
    CcIbp,
    Clean,
    Costly,
    ExpIbp,
    InputGradient,
    Loss,
    MtlIbp,
    Sabr,
    Trades,
)
from mixtrain_jax.schema import Choice, Range, changed


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


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A loss, the examples that carry it, and whether the clean loss of every example stands beside it.

    Attributes:
      loss: its fields are fields of the table.
      clean: Whether the clean loss of every example is the other term.
      examples: k: examples of a batch that carry the loss; 0 for all; 0 to batch_size.
      pool: Where the k examples come from: each step's own batch, or a subset of the training examples drawn each
        epoch.
      replace: Draw the k examples with replacement, as the authors of MixTrain do.
      probability: Share of the steps that have the loss (the authors' code: 0.8; 0 trains without it); 0 to 1.
      microbatch: Examples whose loss is computed at a time, on each device: fewer take less memory; 0 for what is fast,
        on CPU a few, elsewhere all; 0 to 1000000.
    """

    loss: Any  # a Loss; its class says which fields there are
    clean: bool = True
    examples: Annotated[int, Range(0, 10**6)] = 0
    pool: Literal["batch", "epoch"] = "batch"
    replace: bool = False
    probability: Annotated[float, Range(0, 1)] = 1.0
    microbatch: Annotated[int, Range(0, 10**6)] = 0

    def objective(self, dtype: str = "float32") -> Objective:
        """The terms; those without sound bounds compute in `dtype`."""
        term = Term(
            self.loss,
            examples=self.examples or None,
            replace=self.replace and self.pool == "batch",
            probability=self.probability,
            dtype="float32" if self.loss.method else dtype,
            microbatch=self.microbatch or None,
        )
        terms = {"clean": Term(Clean(), dtype=dtype)} if self.clean else {}
        return {**terms, self.loss.name: term}


RECIPES = Choice(
    {
        "mixtrain": Recipe(Bounded(), examples=16),  # Wang et al., arXiv 1811.02625
        "robust": Recipe(Bounded()),
        "standard": Recipe(Clean(), clean=False),
        "pgd": Recipe(Attacked(), clean=False),
        # As published, of every example; `clean` and `examples` make MixTrains of them.
        "trades": Recipe(Trades(), clean=False),
        "sabr": Recipe(Sabr(), clean=False),
        "mtl_ibp": Recipe(MtlIbp(), clean=False),
        "cc_ibp": Recipe(CcIbp(), clean=False),
        "exp_ibp": Recipe(ExpIbp(), clean=False),
        "input_gradient": Recipe(InputGradient(), clean=False),
        "costly": Recipe(Costly()),
    },
    wrap=Recipe,
)
"""Recipes by the name that a config has for them."""


def recipe(name: str, **values: Any) -> Recipe:
    """A recipe by its name in `RECIPES` or the import path of its loss, with other values.

    Raises:
      ConfigError: where there is none of that name, or it has no such field.
    """
    return changed(RECIPES.named("objective", name), values, "objective")


def present(objective: Objective, seed: int, step: int) -> dict[str, bool]:
    """Which terms a step has, a pure function of the seed and the step."""

    def has(number: int, share: float) -> bool:
        if share in (0.0, 1.0):
            return share > 0
        return bool(np.random.default_rng([seed, step, number]).random() < share)

    return {name: has(number, term.probability) for number, (name, term) in enumerate(objective.items())}
