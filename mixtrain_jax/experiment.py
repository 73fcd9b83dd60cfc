"""Many runs as one experiment, and training without a folder: what studies and measurements are made of."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mixtrain_jax import data
from mixtrain_jax.checkpoints import Checkpoints
from mixtrain_jax.config import Config
from mixtrain_jax.report.display import Display
from mixtrain_jax.training.build import prepare
from mixtrain_jax.training.finish import finish
from mixtrain_jax.training.loop import train
from mixtrain_jax.training.program import compile_steps, dispatches, one_step
from mixtrain_jax.training.rundir import RunDir
from mixtrain_jax.training.setup import Setup
from mixtrain_jax.training.signals import Stop
from mixtrain_jax.training.state import TrainState


class Trainer(NamedTuple):
    """Training without a folder, a log or checkpoints.

    Attributes:
      initial: the state that it starts from.
      total_steps: of a whole run.
      advance: `(state, first, last) -> state`, which takes the steps from `first` to `last - 1`; it may use up the
        memory of the state that it is given.
      apply: `(state.params, images) -> logits`.
    """

    initial: TrainState
    total_steps: int
    advance: Callable[[TrainState, int, int], TrainState]
    apply: Callable[[Any, jax.Array], jax.Array]


def trainer(config: Config | Setup, dataset: data.Dataset | None = None, mesh: Mesh | None = None) -> Trainer:
    """The trainer of a config, compiled.

    Args:
      config: the experiment.
      dataset: what to train on; by default what the config names is loaded.
      mesh: the devices; by default all.

    Raises:
      ConfigError: where the config does not fit the data.
      DataError: where the data are missing or damaged.
    """
    setup = config if isinstance(config, Setup) else prepare(config, dataset, mesh)
    compile_steps(setup)

    def advance(state: TrainState, first: int, last: int) -> TrainState:
        for _, dispatch in dispatches(setup, state, first, last):
            state, _ = dispatch(state)
        return state

    return Trainer(jax.tree.map(jnp.copy, setup.initial), setup.total_steps, advance, setup.apply)


def step_seconds(configs: Sequence[Config], dataset: data.Dataset, *, rounds: int = 15, each: int = 5) -> list[float]:
    """Median seconds of a step with all its terms of each config, the configs taking turns.

    Args:
      configs: the experiments.
      dataset: what they train on.
      rounds: how often each has its turn.
      each: steps of a turn.
    """
    setups = [prepare(config, dataset) for config in configs]
    runners = [_stepper(setup) for setup in setups]
    starts = [jax.tree.map(jnp.copy, setup.initial) for setup in setups]
    states = [jax.block_until_ready(step(start)) for step, start in zip(runners, starts, strict=True)]
    seconds: list[list[float]] = [[] for _ in configs]
    for _ in range(rounds):
        for i, step in enumerate(runners):
            started = time.perf_counter()
            for _ in range(each):
                states[i] = step(states[i])
            jax.block_until_ready(states[i])
            seconds[i].append((time.perf_counter() - started) / each)
    return [statistics.median(times) for times in seconds]


def _stepper(setup: Setup) -> Callable[[TrainState], TrainState]:
    examples, skipped = next(iter(setup.feed(0, 1))), setup.steps.skipped(setup.initial)
    step = functools.partial(one_step, setup, examples=examples, names=list(setup.objective), skipped=skipped)
    return lambda state: step(state)[0]


def study(
    configs: Mapping[str, Config],
    folder: Path,
    display: Display,
    *,
    seeds: Iterable[int] = (0, 1, 2),
    dataset: data.Dataset | None = None,
) -> None:
    """Run what is left of a study: every config with every seed, each in the folder NAME-SEED, to its summary.

    Args:
      configs: by name, all of one data set.
      folder: of the study.
      display: shows what happens.
      seeds: in place of those of the configs.
      dataset: by default what the configs name is loaded.

    Raises:
      MixtrainError: as `training.run`; the same call goes on where it was stopped.
    """
    for seed in seeds:
        for name, config in configs.items():
            display.note(f"{name}, seed {seed}")
            config = dataclasses.replace(config, seed=seed)
            dataset = dataset or data.load(config.data.name, progress=display.progress)
            _perform(config, dataset, RunDir(folder / f"{name}-{seed}"), display)


def _perform(config: Config, dataset: data.Dataset, folder: RunDir, display: Display) -> None:
    """One run from where it stands to its summary."""
    with folder.opened(config), Stop() as stop:
        if folder.summary() is None:
            setup = prepare(config, dataset)
            with Checkpoints(folder.checkpoints, keep=1) as checkpoints:
                saved = train(setup, folder, checkpoints, stop, display)
            finish(setup, saved, folder, stop, display)
