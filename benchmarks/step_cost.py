"""What the robust part of a training step costs: the whole step over the clean step, in one run.

    python benchmarks/step_cost.py [--bound ibp] [--share 8] [--rounds 30]

A clean step is the clean gradient and the update; the whole step adds the robust gradient on 1 example in `share`.
Both are timed in turn, round by round, so that a noisy machine disturbs them alike; medians are printed, compilation
apart.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixtrain_jax import certify, mixing, models
from mixtrain_jax.environment import device
from mixtrain_jax.training.state import Bad, Totals, TrainState
from mixtrain_jax.training.steps import Batch, Steps, bounded, make_steps

# Name: network, image shape, batch.
CASES = {
    "digits mlp 512": ("mlp", 512, (8, 8, 1), 128),
    "digits cnn": ("small", 100, (8, 8, 1), 128),
    "mnist_small": ("small", 100, (28, 28, 1), 128),
    "cifar_small": ("small", 100, (32, 32, 3), 128),
}


def prepare(case: str, bound: str, share: int) -> tuple[Steps, TrainState, Batch]:
    """Steps, a first state and one random batch of a case."""
    name, width, shape, batch = CASES[case]
    network = models.build(name, classes=10, width=width)
    rng = np.random.default_rng(0)
    examples = Batch(jnp.asarray(rng.random((batch, *shape), np.float32)), jnp.asarray(rng.integers(0, 10, batch)))
    params = jax.jit(network.init)(jax.random.key(0), examples.images[:1])
    tx, rule = optax.adamw(1e-3), mixing.constrained(0.98, optax.sgd(0.05))
    steps = make_steps(
        lambda p, x: network.apply(p, x),
        worst_case=bounded(certify.methods([bound], sound=False)[bound], (0.0, 1.0)),
        eps=optax.constant_schedule(0.1),
        k=batch // share,
        replace=False,
        key=jax.random.key(1),
        rule=rule,
        tx=tx,
        steps_per_epoch=4,
    )
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, params, tx.init(params), rule.init(), jnp.zeros(()), Totals.zeros(), Bad.none(params))
    return steps, state, examples


def measure(case: str, bound: str, share: int, rounds: int) -> dict[str, float]:
    """Median seconds of the clean and of the whole step, and their ratio."""
    steps, state, batch = prepare(case, bound, share)
    absent = steps.absent(state)

    def clean_step(state: TrainState) -> TrainState:
        return steps.update(state, steps.clean(state, batch), absent)

    def whole_step(state: TrainState) -> TrainState:
        return steps.update(state, steps.clean(state, batch), steps.robust(state, batch))

    started = time.perf_counter()
    state = jax.block_until_ready(whole_step(state))
    compile_seconds = time.perf_counter() - started
    seconds: dict[str, list[float]] = {"clean": [], "whole": []}
    for _ in range(rounds):
        for name, step in (("clean", clean_step), ("whole", whole_step)):
            started = time.perf_counter()
            for _ in range(10):
                state = step(state)
            jax.block_until_ready(state)
            seconds[name].append((time.perf_counter() - started) / 10)
    clean, whole = (statistics.median(seconds[name]) for name in ("clean", "whole"))
    return {"clean_seconds": clean, "whole_seconds": whole, "ratio": whole / clean, "compile_seconds": compile_seconds}


def main() -> None:
    """Measure all cases and print a table; `--json FILE` keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bound", default="ibp", choices=["ibp", "crown_ibp", "symbolic", "crown"])
    parser.add_argument("--share", type=int, default=8, help="the robust part is on 1 example in this many")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    run = functools.partial(measure, bound=arguments.bound, share=arguments.share, rounds=arguments.rounds)
    print(f"{arguments.bound} on 1 in {arguments.share}; {device()}")
    print(f"{'network':16} {'clean ms':>9} {'whole ms':>9} {'ratio':>6} {'compile s':>9}")
    found = {}
    for case in CASES:
        row = found[case] = run(case)
        print(
            f"{case:16} {1e3 * row['clean_seconds']:9.2f} {1e3 * row['whole_seconds']:9.2f} {row['ratio']:6.2f} "
            f"{row['compile_seconds']:9.1f}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"device": device(), **vars(arguments), "json": None, "cases": found}))


if __name__ == "__main__":
    main()
