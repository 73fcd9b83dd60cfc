"""The compiled programs that take the steps of training."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mixtrain_jax import objectives, parallel
from mixtrain_jax.config import Config
from mixtrain_jax.objectives import Objective
from mixtrain_jax.report.display import Display
from mixtrain_jax.training.feed import Examples, Feed
from mixtrain_jax.training.setup import Dispatch, Program, Setup
from mixtrain_jax.training.state import TrainState
from mixtrain_jax.training.steps import LossAndGrad, Steps, jit_once


def make_program(config: Config, objective: Objective, steps: Steps, feed: Feed, mesh: Mesh) -> Program:
    """Compile `steps_per_dispatch` steps as one program, so that the host hands over many at a time."""
    always = {name: bool(share) for name, term in objective.items() if (share := term.probability) in (0.0, 1.0)}

    def program(
        state: TrainState, data: Any, handed: tuple[Any, ...], present: dict[str, jax.Array]
    ) -> tuple[TrainState, jax.Array]:
        def step(state: TrainState, given: tuple[Any, dict[str, jax.Array]]) -> tuple[TrainState, jax.Array]:
            batch, pool = feed.make(data, given[0])
            return steps.fused(state, batch, pool, {**given[1], **always})

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *handed)
        state, losses = jax.lax.scan(step, state, (stacked, present))
        return state, losses[-1]

    return parallel.blocking(jit_once(program, donate_argnums=0), mesh)


def dispatches(setup: Setup, state: TrainState, first: int, last: int) -> Iterator[tuple[int, Dispatch]]:
    """The programs that take the steps `first` to `last - 1`, each with the number of its steps.

    All are of `steps_per_dispatch` steps but for the rest at the end, whose steps are taken one by one.

    Args:
      setup: the run.
      state: any state of it, for its shapes.
      first: the first step.
      last: the step behind the last one.
    """
    many = setup.config.training.steps_per_dispatch
    rest = last - (last - first) % many if many > 1 else first
    read, skipped = setup.feed.read(first, rest), setup.steps.skipped(state)
    for at in range(first, rest, many):
        handed = tuple(itertools.islice(read, many))
        steps = [objectives.present(setup.objective, setup.config.seed, step) for step in range(at, at + many)]
        present = {name: np.array([step[name] for step in steps]) for name in setup.objective}

        def several(state: TrainState, handed: Any = handed, present: dict[str, np.ndarray] = present) -> Any:
            return setup.program(state, setup.feed.data, handed, present)

        yield many, several
    for step, examples in enumerate(setup.feed(rest, last), rest):

        def single(state: TrainState, step: int = step, examples: Examples = examples) -> Any:
            present = objectives.present(setup.objective, setup.config.seed, step)
            return one_step(setup, state, examples, [name for name in present if present[name]], skipped)

        yield 1, single


def one_step(
    setup: Setup, state: TrainState, examples: Examples, names: Sequence[str], skipped: LossAndGrad | None = None
) -> tuple[TrainState, jax.Array]:
    """Take one step with the terms of these names; the new state, and a loss that is known once the step is done."""
    skipped = skipped or setup.steps.skipped(state)
    parts = dict.fromkeys(setup.objective, skipped)
    for name in names:
        own = examples.batch if setup.objective[name].examples is None else examples.pool
        parts[name] = setup.steps.terms[name](state, own)
    last = parts[names[-1]] if names else skipped
    return setup.steps.update(state, parts), last.loss


def compile_steps(setup: Setup) -> None:
    """Run every program once on a copy of the first state, so that compilation is no part of the time of training."""
    many = setup.config.training.steps_per_dispatch
    if 1 < many <= setup.total_steps:
        _, dispatch = next(dispatches(setup, setup.initial, 0, many))
        jax.block_until_ready(dispatch(jax.tree.map(jnp.copy, setup.initial)))
    if many == 1 or setup.total_steps % many:
        state = jax.tree.map(jnp.copy, setup.initial)
        names = [name for name, term in setup.objective.items() if term.probability]
        for examples in setup.feed(0, 1):
            jax.block_until_ready(one_step(setup, state, examples, names))


def trace_steps(setup: Setup, state: TrainState, folder: Path, display: Display) -> None:
    """Trace some twenty steps of a copy of the state, after a few that are not traced; training knows nothing of it.

    Args:
      setup: the run.
      state: where the steps start.
      folder: of the trace; where there are several processes, each has a folder in it.
      display: told what to do with it.
    """
    many, state = setup.config.training.steps_per_dispatch, jax.tree.map(jnp.copy, state)
    before, traced = -(-5 // many), -(-20 // many)  # programs
    own = folder / f"process{jax.process_index()}" if jax.process_count() > 1 else folder
    with contextlib.ExitStack() as tracing:
        for number, (_, dispatch) in enumerate(dispatches(setup, state, 0, (before + traced) * many)):
            if number == before:
                jax.block_until_ready(state)
                tracing.enter_context(jax.profiler.trace(str(own), create_perfetto_trace=True))
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                state, _ = dispatch(state)
        jax.block_until_ready(state)
    display.note(
        f"Traced {traced * many} steps: `xprof --logdir {folder}` shows them (pip install xprof), and ui.perfetto.dev "
        "the perfetto_trace.json.gz in there."
    )
