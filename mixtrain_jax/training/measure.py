"""Rows of the log: what training summed up, and accuracies on the held-out examples."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax import bounds, parallel
from mixtrain_jax.training.build import measured_by
from mixtrain_jax.training.setup import Setup
from mixtrain_jax.training.state import TrainState
from mixtrain_jax.training.steps import Batch


def measured(setup: Setup) -> int:
    """How many held-out examples are measured on while training."""
    return min(setup.config.training.measure, len(setup.heldout))


def make_measure(setup: Setup) -> Callable[[TrainState], tuple[float, float]]:
    """A function of the state: clean and verified accuracy on the held-out examples at the full radius."""
    config, count, method = setup.config, measured(setup), measured_by(setup.objective)
    split = setup.heldout[:count].floats()
    group = bounds.group_size(method, functools.partial(setup.apply, setup.initial.params), split.images.shape[1:])

    def correct_of(params: Any, rows: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        images, labels = rows
        logits_fn = functools.partial(setup.apply, params)
        right = logits_fn(images).argmax(-1) == labels
        ball = setup.threat.ball(images, setup.threat.radii(len(images)))
        lower = bounds.margins(method, logits_fn, group=group)(ball, labels)
        return right, right & (lower > 0).all(-1)

    @jax.jit
    def correct(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        params, rows = parallel.constrain(params, setup.mesh, "replicated"), (batch.images, batch.labels)
        if not config.training.microbatches:
            return parallel.constrain(correct_of(params, rows), setup.mesh, "replicated")
        rows = jax.tree.map(lambda x: x.reshape(-1, each, *x.shape[1:]), rows)
        found = parallel.map_microbatches(correct_of, params, rows, setup.mesh)
        return parallel.constrain(jax.tree.map(jnp.ravel, found), setup.mesh, "replicated")

    # Some at a time, the rows of a backward bound taking far more memory than the examples; the last ones come twice.
    each = -(-min(config.training.batch_size, count) // max(config.training.microbatches, 1))
    size = each * parallel.padded(config.training.microbatches, setup.mesh) or parallel.padded(each, setup.mesh)
    rows = np.minimum(np.arange(-(-count // size) * size), count - 1).reshape(-1, size)
    correct = parallel.blocking(correct, setup.mesh)
    batches = [Batch(*parallel.put(split.take(row), setup.mesh, "rows")) for row in rows]

    def measure(state: TrainState) -> tuple[float, float]:
        with jax.default_matmul_precision("highest"):  # as in certification
            found = jax.device_get([correct(state.params, batch) for batch in batches])
        right, proved = (np.concatenate(parts)[:count].mean() for parts in zip(*found, strict=True))
        return float(right), float(proved)

    return measure


def log_row(setup: Setup, state: TrainState, heldout: tuple[float, float], done: int) -> dict[str, Any]:
    """A row of `metrics.jsonl`, but for what depends on the clock."""
    totals, skipped = jax.device_get((state.totals, state.bad.skipped))
    means = totals.means()
    reference, *others = (means[f"{name}_weight"] for name in setup.objective)
    means["relative_weight"] = sum(others) / max(reference, 1e-9)
    return {
        "step": done,
        "epoch": done * setup.config.training.batch_size / len(setup.train),
        **{name: mean if math.isfinite(mean) else None for name, mean in means.items()},  # NaN: all were skipped
        "skipped": int(skipped),
        "eps": float(np.asarray(setup.eps(done))),
        "heldout_clean_accuracy": heldout[0],
        "heldout_verified_accuracy": heldout[1],
    }


def median_step(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds of a step: the median of the medians of the rows; None where those are of an earlier version."""
    medians = [row["step_seconds"][0] for row in rows if "step_seconds" in row]
    return statistics.median(medians) if medians else None
