"""Trains a few configs on several numbers of devices and prints a JSON line of what each ended with.

    python tests/reproducing.py JSON_OF_CASES

Cases are pairs of fields of the config and numbers of devices. It runs in a process of its own, with programs as users
have them.
"""

import json
import sys

import jax
import jax.numpy as jnp
from experiments import experiment

from mixtrain_jax import parallel
from mixtrain_jax.fingerprints import fingerprint
from mixtrain_jax.training.build import prepare
from mixtrain_jax.training.measure import make_measure
from mixtrain_jax.training.program import dispatches

STEPS = 24
TINY = {"width": 16, "epochs": 2, "batch_size": 50, "robust_examples": 5, "holdout": 97, "microbatches": 8}


def ended(fields, count, parts=((0, STEPS),)):
    """SHA-256 of the state after the steps, the sums of losses in it, and the accuracy on held-out examples.

    Args:
      fields: of the config.
      count: of devices; or for each part of the run one.
      parts: first and last steps; between two, the state moves to other devices.
    """
    counts, state = [count] * len(parts) if isinstance(count, int) else count, None
    for count, (first, last) in zip(counts, parts, strict=True):
        setup = prepare(experiment(**{**TINY, **fields}), mesh=parallel.data_mesh(jax.devices()[:count]))
        state = setup.initial if state is None else parallel.put(parallel.fetch(state), setup.mesh, "replicated")
        state = jax.tree.map(jnp.copy, state)
        for _, dispatch in dispatches(setup, state, first, last):
            state, _ = dispatch(state)
    moved = fingerprint(parallel.fetch(state.params)) != fingerprint(parallel.fetch(setup.initial.params))
    return [fingerprint(parallel.fetch(state)), moved, make_measure(setup)(state)]


if __name__ == "__main__":
    print(json.dumps([[ended(fields, count) for count in counts] for fields, counts in json.loads(sys.argv[1])]))
