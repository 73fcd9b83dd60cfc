"""Compare hyperparameters on the training split of the digits alone: mean over four blocks of writers.

    python benchmarks/digits_folds.py '{"radius.ratio": 1.3}' '{"radius.ratio": 1.0}' --seeds 0 1

Each argument is a JSON object of values by their flags. A config is trained on the training split without one block of
300 consecutive images, for each of the last four blocks, and measured on that block: clean accuracy, and verified
accuracy by the best of IBP, symbolic bounds and CROWN. The test set plays no part.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax import certify, data, experiment
from mixtrain_jax.bounds import linf_ball, margins
from mixtrain_jax.config import Config, of_flags
from mixtrain_jax.training.build import prepare
from mixtrain_jax.training.setup import Setup

BLOCK, BLOCKS = 300, 4


def fold(dataset: data.Dataset, index: int) -> data.Dataset:
    """The training split without block `index`, counted from the end, and that block as the test split."""
    end = len(dataset.train) - index * BLOCK
    block = np.arange(end - BLOCK, end)
    rest = np.setdiff1d(np.arange(len(dataset.train)), block)
    images, labels = dataset.train.images, dataset.train.labels
    return dataclasses.replace(
        dataset, train=data.Split(images[rest], labels[rest], 16), test=data.Split(images[block], labels[block], 16)
    )


def accuracies(config: Config, dataset: data.Dataset) -> tuple[float, float]:
    """Clean and verified accuracy on the test split after training."""
    return trained_accuracies(prepare(config, dataset))


def trained_accuracies(setup: Setup) -> tuple[float, float]:
    """Clean and verified accuracy on the test split of a setup after training."""
    config, dataset, made = setup.config, setup.dataset, experiment.trainer(setup)
    state = made.advance(made.initial, 0, made.total_steps)
    logits_fn = functools.partial(made.apply, state.params)
    images, labels = jnp.asarray(dataset.test.floats().images), jnp.asarray(dataset.test.labels)
    right = logits_fn(images).argmax(-1) == labels
    proved = jnp.zeros_like(right)
    for method in certify.methods(["ibp", "symbolic", "crown"]).values():
        bound = jax.jit(margins(method, logits_fn))
        proved |= (bound(linf_ball(images, config.threat.eps, dataset.domain), labels) > 0).all(-1)
    return float(right.mean()), float((right & proved).mean())


def main() -> None:
    """Print a line a config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", type=json.loads)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    dataset = data.load("digits")
    for fields in arguments.configs:
        started, found = time.perf_counter(), []
        for index in range(BLOCKS):
            for seed in arguments.seeds:
                found.append(accuracies(of_flags({"data.holdout": 1, **fields, "seed": seed}), fold(dataset, index)))
        clean, verified = np.mean(found, axis=0)
        seconds = (time.perf_counter() - started) / len(found)
        print(f"clean {clean:.1%}  verified {verified:.1%}  {seconds:.0f} s a run  {json.dumps(fields)}", flush=True)


if __name__ == "__main__":
    main()
