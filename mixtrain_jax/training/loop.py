"""The loop of training: steps, rows, checkpoints, signals."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax import parallel
from mixtrain_jax.checkpoints import Checkpoints
from mixtrain_jax.report.display import Display
from mixtrain_jax.training.failures import refuse_non_finite
from mixtrain_jax.training.measure import log_row, make_measure, measured
from mixtrain_jax.training.pace import AHEAD, Pace
from mixtrain_jax.training.program import compile_steps, dispatches, trace_steps
from mixtrain_jax.training.resume import Best, Saved, restore, save
from mixtrain_jax.training.rundir import RunDir
from mixtrain_jax.training.setup import Setup
from mixtrain_jax.training.signals import Stop
from mixtrain_jax.training.state import Totals, TrainState


def train(
    setup: Setup, folder: RunDir, checkpoints: Checkpoints, stop: Stop, display: Display, *, profile: bool = False
) -> Saved:
    """Take the steps that are left, logging, measuring and saving on the way.

    Raises:
      NonFiniteError: where more than `bad_steps` steps in a row were not finite; `postmortem.json` tells of the last.
      PreemptedError, InterruptedRunError: after a signal, once the state is saved.
      CheckpointError: where a checkpoint cannot be written or none can be read.
    """
    config, total = setup.config, setup.total_steps
    saved = restore(setup, checkpoints, display)
    state, first, spent, best = saved.state, int(saved.step), float(saved.seconds), saved.best
    parallel.on_process_zero(lambda: folder.rewind_metrics(first))
    if first >= total:
        return saved
    measure = make_measure(setup)
    display.note(f"Compiling. Clean and verified accuracy below are of {measured(setup)} held-out examples.")
    compile_steps(setup)
    measure(state)
    if profile:
        trace_steps(setup, state, folder.path / "profile", display)
    many = config.training.steps_per_dispatch
    log_every = max(1, total // config.training.points // many) * many
    pace, agree = Pace(spent, max(1, AHEAD // many)), parallel.vote(setup.mesh)
    done, saved_at = first, time.monotonic()
    for taken, dispatch in dispatches(setup, state, first, total):
        with jax.transfer_guard_device_to_host("disallow"):  # a step that waits for the device slows all of them
            state, loss = dispatch(state)
        pace.follow(loss, taken)
        done += taken
        display.progress("train", done, total)
        if done % log_every == 0 or done == total:
            parallel.on_process_zero(functools.partial(refuse_non_finite, setup, state, folder, checkpoints))
            row = pace.rates(config.training.batch_size)
            with pace.paused():
                began = time.monotonic()
                row = {**log_row(setup, state, measure(state), done), **row}
                measuring = time.monotonic() - began
                left = ((row["seconds"] - spent) / (done - first) + measuring / log_every) * (total - done)
                display.row({**row, "seconds_left": left}, last=done == total)
                parallel.on_process_zero(functools.partial(folder.append_metrics, row))
                state, best = after_row(setup, row, state, best)
        # The number of a signal, or 1 to save: any process may be told to stop, and process 0 has the clock.
        late = time.monotonic() - saved_at >= config.training.checkpoint_seconds and jax.process_index() == 0
        verdict = agree(stop.signal or int(late))
        if verdict or done == total:
            parallel.on_process_zero(functools.partial(refuse_non_finite, setup, state, folder, checkpoints))
            saved = Saved(np.int64(done), np.float64(pace.seconds()), state, best)
            with pace.paused():
                save(checkpoints, saved, wait=verdict > 1 or done == total)
            saved_at = time.monotonic()
        if verdict > 1 and done < total:
            raise stop.error(verdict, f"step {done} of {total} is saved")
    return saved


def after_row(
    setup: Setup, row: dict[str, Any], state: TrainState, best: Best | None
) -> tuple[TrainState, Best | None]:
    """The state with what the row tells it and new sums, and the best state so far."""
    if best and row["eps"] == setup.eps(setup.total_steps) and row["heldout_verified_accuracy"] >= best.verified:
        verified = np.float64(row["heldout_verified_accuracy"])
        best = Best(np.int64(row["step"]), verified, jax.tree.map(jnp.copy, state.params))
    if setup.rule.needs_gap and row.get("clean_accuracy") is not None:
        gap = np.float32(row["clean_accuracy"] - row["heldout_clean_accuracy"])
        state = state._replace(gap=parallel.put(gap, setup.mesh, "replicated"))
    return state._replace(totals=parallel.put(Totals.zeros(setup.objective), setup.mesh, "replicated")), best
