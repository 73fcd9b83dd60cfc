"""Training where jax has 64-bit numbers, as `JAX_ENABLE_X64=1` gives it: programs and checkpoints stay 32-bit."""

import jax
import jax.numpy as jnp
import numpy as np
import program
import pytest
from experiments import experiment, options

from mixtrain_jax import parallel
from mixtrain_jax.training.build import prepare
from mixtrain_jax.training.loop import after_row
from mixtrain_jax.training.measure import log_row, make_measure
from mixtrain_jax.training.program import dispatches
from mixtrain_jax.training.resume import untrained

TINY = {"model": "small", "width": 4, "batch_size": 16, "robust_examples": 4, "epochs": 1, "holdout": 97, "measure": 20}
PRESETS = {
    "mixtrain": {"mixing": "constant", "subsample": "epoch", "flip": True, "crop": 1},
    "mixtrain, constrained": {"mixing": "constrained", "target_on": "heldout", "choose": "best"},
    "mixtrain, authors": {"mixing": "authors", "model": "mlp", "robust_probability": 0.5, "steps_per_dispatch": 2},
    "mixtrain, microbatches": {"mixing": "schedule", "model": "mlp", "microbatches": 4, "ramp_shape": "smooth"},
    "robust": {"trainer": "robust", "mixing": "convex", "bound": "crown_ibp", "robust_group": 3},
    "pgd": {"trainer": "pgd", "train_attack_steps": 1, "compute": "bfloat16", "warmup": 0.1},
    "standard": {"trainer": "standard", "model": "resnet", "width": 2},
}


def kinds(tree):
    return {
        jax.tree_util.keystr(path): (leaf.shape, leaf.dtype, leaf.weak_type)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


@pytest.mark.parametrize("fields", PRESETS.values(), ids=PRESETS)
def test_a_step_keeps_the_types_of_its_state(fields, x64):
    with jax.numpy_dtype_promotion("standard"):  # optax promotes
        setup = prepare(experiment(**{**TINY, **fields}), mesh=parallel.data_mesh(jax.devices()[:1]))
        state, best = jax.tree.map(jnp.copy, setup.initial), untrained(setup).best
        before = kinds(state)
        assert {str(dtype) for _, dtype, _ in before.values()} == {"float32", "int32"}
        for _, dispatch in dispatches(setup, state, 0, 4):  # a program that is traced twice raises
            state, loss = dispatch(state)
            row = log_row(setup, state, make_measure(setup)(state), 4) if int(state.step) == 4 else None
            if row:
                state, best = after_row(setup, row, state, best)
            assert kinds(state) == before
        assert np.isfinite(loss)
        assert int(state.bad.skipped) == 0


def test_a_convolutional_network_is_trained_and_certified(tmp_path):
    tiny = {"model.width": 4, "training.epochs": 1, "training.points": 2, "certify.bounds": "ibp"}
    tiny |= {"certify.attack_steps": 1, "certify.curve_examples": 0}
    more = {"JAX_ENABLE_X64": "1"}
    done = program.run("digits_cnn", *options(tiny), "--certify.attack-restarts", 1, "--workdir", tmp_path, more=more)
    assert (done.returncode, done.stderr) == (0, "")
    assert program.summary(tmp_path)["skipped"] == 0
    # What it saved is a checkpoint like any other.
    (tmp_path / "summary.json").unlink()
    done = program.run("digits_cnn", *options(tiny), "--certify.attack-restarts", 1, "--workdir", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Going on from step" in done.stdout
