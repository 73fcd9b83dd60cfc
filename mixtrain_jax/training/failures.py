"""Steps that are not finite: when a run ends, and what it leaves behind."""

from __future__ import annotations

import json
import math
from typing import Any

import jax
import numpy as np

from mixtrain_jax.checkpoints import Checkpoints
from mixtrain_jax.errors import NonFiniteError
from mixtrain_jax.fingerprints import leaf_name
from mixtrain_jax.training.feed import indices
from mixtrain_jax.training.rundir import RunDir
from mixtrain_jax.training.setup import Setup
from mixtrain_jax.training.state import TrainState


def refuse_non_finite(setup: Setup, state: TrainState, folder: RunDir, checkpoints: Checkpoints) -> None:
    """Look whether the state stands still after too many bad steps; waits for the device.

    Raises:
      NonFiniteError: where it does, with the step, the last good checkpoint and the post-mortem, which is written.
    """
    if (streak := int(state.bad.streak)) <= setup.config.training.bad_steps:
        return
    report = {**postmortem(setup, state), "last_good_checkpoint": (good := checkpoints.latest())}
    folder.write("postmortem.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
    kept = "there is no checkpoint yet" if good is None else f"the last good checkpoint is step {good}"
    before = f" and in the {streak - 1} steps before it" if streak > 1 else ""
    raise NonFiniteError(
        f"The loss or a gradient became NaN or infinite at step {report['step']}{before}; {kept} in "
        f"{checkpoints.folder}. {report['try']} More in {folder.path / 'postmortem.json'}."
    )


def postmortem(setup: Setup, state: TrainState) -> dict[str, Any]:
    """What is known of the last step that was skipped, as JSON values; NaN and the infinities are words."""
    bad, config = jax.device_get(state.bad), setup.config
    step = int(bad.step)
    batch, pool = indices(config, step, len(setup.train))
    updates = step - int(bad.skipped) + 1  # that the optimizer took before it: its schedule counts no others
    names = [leaf_name(path) for path, _ in jax.tree.flatten_with_path(state.params)[0]]
    largest = {name: number(value) for name, value in zip(names, bad.largest, strict=True)}
    broken = [name for name in setup.objective if not np.isfinite(bad.loss[name])]
    if broken and "clean" in setup.objective and "clean" not in broken:
        advice = f"The {' and '.join(broken)} loss alone is not finite: lower its weight or eps, or lengthen the ramp."
    else:
        advice = "Lower the learning rate or the weight, or lengthen the ramp."
    return {
        "step": step,
        "skipped_in_a_row": int(bad.streak),
        "skipped": int(bad.skipped),
        "try": advice,
        "eps": number(setup.eps(step)),
        "learning_rate": number(setup.rates(updates)),
        **{f"{name}_loss": number(bad.loss[name]) for name in setup.objective},
        **{f"{name}_weight": number(bad.weight[name]) for name in setup.objective},
        "largest_gradient": largest,
        "examples": batch.tolist(),  # in the training split without those held out
        "pool": pool.tolist(),
    }


def number(x: Any) -> float | str:
    """A scalar as a JSON value: a number, or the word for one that is none."""
    value = float(x)
    return value if math.isfinite(value) else str(value)
