"""The same bits on any number of devices, where a config sums its gradients in a fixed order."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import program
import pytest
import reproducing
from experiments import experiment
from reproducing import STEPS, ended

from mixtrain_jax import parallel
from mixtrain_jax.errors import ConfigError

POOL = {"subsample": "epoch", "flip": True, "crop": 1, "replace": True}


@pytest.fixture(autouse=True)
def _optax_promotes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def same(found):
    assert found[0][1], "nothing was trained"
    assert all(one == found[0] for one in found), found


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        ({}, (1, 3)),
        ({**POOL, "bound": "crown_ibp", "mixing": "constrained", "target_on": "heldout"}, (1, 4)),
        ({"trainer": "pgd", "train_attack_steps": 2, "batch_size": 48}, (1, 3)),
        ({"robust_probability": 0.5, "robust_group": 1, "robust_examples": 20, "trainer": "robust"}, (1, 3)),
        ({"batch_size": 1, "robust_examples": 1, "microbatches": 1}, (1, 2)),
    ],
    ids=["batch of 50 on 3", "pool, crown_ibp", "pgd", "robust, groups", "batch of 1"],
)
def test_a_run_has_the_bits_of_one_device(fields, counts):
    same([ended(fields, count) for count in counts])


def test_a_run_that_goes_on_on_other_devices_has_the_bits_of_one_device():
    same([ended({}, 1), ended({}, (4, 1, 3), ((0, 5), (5, 16), (16, STEPS)))])


def test_eight_devices_and_code_as_users_have_it():
    cases = [({}, (1, 2, 4, 8)), ({"model": "small", "width": 8, "batch_size": 32}, (1, 8))]
    environment = {**program.environment(devices=8), "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    environment["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
    command = [sys.executable, reproducing.__file__, json.dumps(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=program.LIMIT)
    assert done.returncode == 0, done.stderr
    for found in json.loads(done.stdout):
        same(found)


def test_without_microbatches_the_order_of_sums_is_that_of_the_devices():
    one, many = ended({"microbatches": 0}, 1), ended({"microbatches": 0}, 4)
    assert one[0] != many[0]  # else the tests above would show nothing


@pytest.mark.parametrize("count", [1, 3, 4])
def test_sums_of_microbatches_are_in_their_order_whatever_the_devices(count):
    mesh = parallel.data_mesh(jax.devices()[:count])
    rows = np.zeros((parallel.padded(8, mesh), 5), np.float32)
    rows[:8] = np.random.default_rng(0).normal(size=(8, 5)) * 10.0 ** np.arange(-4, 4)[:, None]
    rows[8:] = np.nan  # what fills up does not count

    def f(scale, row):
        return {"scaled": scale * row, "sum": row.sum()}

    def both(scale, rows):
        return parallel.sum_microbatches(f, scale, rows, mesh, 8), parallel.map_microbatches(f, scale, rows, mesh)

    total, each = jax.jit(both)(jnp.float32(3), rows)
    expected = np.float32(3) * rows[0]
    for row in rows[1:8]:
        expected = expected + np.float32(3) * row
    np.testing.assert_array_equal(total["scaled"], expected)
    np.testing.assert_array_equal(each["scaled"][:8], 3 * rows[:8])
    assert each["sum"].shape == (len(rows),)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"microbatches": 64, "batch_size": 50}, "microbatches must be at most training.batch_size, got 64 of 50"),
        ({"microbatches": 8, "params": "fsdp"}, "microbatches needs training.params = 'replicated'"),
        ({"microbatches": 8, "steps_per_dispatch": 2}, "microbatches needs training.steps_per_dispatch = 1"),
        ({"microbatches": -1}, "microbatches must be a number, 0 to 4096"),
    ],
)
def test_microbatches_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        experiment(**fields)
