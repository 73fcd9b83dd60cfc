"""Everything of a run that no step changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from mixtrain_jax import data, mixing
from mixtrain_jax.config import Config
from mixtrain_jax.objectives import Objective
from mixtrain_jax.threat import Threat
from mixtrain_jax.training.feed import Feed
from mixtrain_jax.training.state import TrainState
from mixtrain_jax.training.steps import Apply, Steps

# (state, data of the feed, what it handed over for each step, which terms each has) -> (state, last loss)
Program = Callable[[TrainState, Any, tuple[Any, ...], dict[str, np.ndarray]], tuple[TrainState, jax.Array]]


# state -> (state, a loss that is known once it is)
Dispatch = Callable[[TrainState], tuple[TrainState, jax.Array]]


class Setup(NamedTuple):
    """What a config stands for: everything of a run that no step changes."""

    config: Config
    dataset: data.Dataset
    train: data.Split | data.Streamed
    heldout: data.Split
    apply: Apply  # of what is trained
    network: Apply  # of the parameters that it stands for
    objective: Objective
    feed: Feed
    steps: Steps
    program: Program  # of several steps at once
    rule: mixing.MixRule
    threat: Threat  # what is certified
    eps: optax.Schedule  # radius trained on at a step, in pixel units
    rates: optax.Schedule  # learning rate at an update
    total_steps: int
    mesh: Mesh
    initial: TrainState
