"""What a checkpoint holds, and how a run goes on from it."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax import parallel
from mixtrain_jax.checkpoints import Checkpoints
from mixtrain_jax.report.display import Display
from mixtrain_jax.training.setup import Setup
from mixtrain_jax.training.state import TrainState, upgraded


class Best(NamedTuple):
    """The state that verified most held-out examples, of those measured after the ramp."""

    step: np.int64  # 0 where none was measured yet
    verified: np.float64  # share of the held-out examples, 0 to 1
    params: Any


class Saved(NamedTuple):
    """What a checkpoint holds."""

    step: np.int64  # steps done
    seconds: np.float64  # spent in training so far
    state: TrainState
    best: Best | None  # where the config asks for it


def save(checkpoints: Checkpoints, saved: Saved, *, wait: bool) -> None:
    """Write a checkpoint, in process 0; the arrays come there from all of them.

    Args:
      checkpoints: those of the run.
      saved: what to write.
      wait: until it is whole.

    Raises:
      CheckpointError: where it cannot be written, or the one before it could not.
    """
    whole = parallel.fetch(saved) if jax.process_count() > 1 else saved

    def write() -> None:
        checkpoints.save(int(saved.step), whole)
        if wait:
            checkpoints.wait()

    parallel.on_process_zero(write)


def restore(setup: Setup, checkpoints: Checkpoints, display: Display) -> Saved:
    """The newest whole checkpoint, or the state that training starts from."""
    start, upgrade = untrained(setup), functools.partial(upgraded, names=tuple(setup.objective))
    saved = parallel.broadcast_from_zero(lambda: checkpoints.restore(start, display.note, upgrade=upgrade))
    if saved is not None:
        display.note(f"Going on from step {int(saved.step)} of {setup.total_steps}.")
        best = saved.best and saved.best._replace(
            params=parallel.put(saved.best.params, setup.mesh, setup.config.training.params)
        )
        state = parallel.put(saved.state, setup.mesh, setup.config.training.params)
        return saved._replace(state=state, best=best)
    return start


def untrained(setup: Setup) -> Saved:
    """What a checkpoint of step 0 would hold."""
    none = None
    if (
        setup.config.training.choose == "best"
    ):  # a copy, for the first step takes the memory of the state that it is given
        none = Best(np.int64(0), np.float64(0), jax.tree.map(jnp.copy, setup.initial.params))
    return Saved(np.int64(0), np.float64(0), setup.initial, none)


def chosen(saved: Saved) -> tuple[int, Any]:
    """The step and the parameters that are certified: the best ones where the config asks for them, else the last."""
    if saved.best is not None and saved.best.step:
        return int(saved.best.step), saved.best.params
    return int(saved.step), saved.state.params
