"""What PGD-20 costs: over 20 forward and backward passes, and over Foolbox's PGD, on mnist_small with random weights.

    python benchmarks/attack_speed.py [--batch 128] [--rounds 15] [--out FILE]

All take turns within one run and nothing compiles in what is timed. Medians over rounds; a ratio is the median of the
ratios of the rounds. Foolbox is left out where it cannot be imported.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mixtrain_jax import environment, linf_ball, models
from mixtrain_jax.attacks import cross_entropy, pgd

EPS, STEPS = 0.1, 20


def contenders(batch: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    network = models.build("small", classes=10)
    x = jax.random.uniform(jax.random.key(0), (batch, 28, 28, 1))
    params = network.init(jax.random.key(1), x)
    logits_fn = jax.jit(functools.partial(network.apply, params))
    labels = logits_fn(x).argmax(-1)
    ball = linf_ball(x, EPS, (0.0, 1.0))
    gradient = jax.jit(jax.grad(lambda x: cross_entropy(logits_fn(x), labels).sum()))
    attack = functools.partial(pgd, steps=STEPS, restarts=1, objective=cross_entropy, random_start=True)

    def passes() -> Any:
        out = x
        for _ in range(STEPS):
            out = gradient(x)
        return out

    found: dict[str, Callable[[], Any]] = {
        "20 passes": passes,
        "PGD-20": lambda: attack(jax.random.key(0), logits_fn, x, labels, ball),
    }
    try:
        import foolbox
    except Exception as error:  # A library that does not fit can fail at import in any way.
        print(f"Foolbox cannot be imported and is left out: {type(error).__name__}: {error}")
        return found
    model = foolbox.models.JAXModel(logits_fn, bounds=(0, 1))
    peer = foolbox.attacks.LinfPGD(steps=STEPS)
    found["Foolbox PGD-20"] = lambda: peer(model, x, labels, epsilons=EPS)[1]
    return found


def main() -> None:
    """Time all in turn, print a line each, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    timed = contenders(arguments.batch)
    for run in timed.values():
        jax.block_until_ready(run())
    for _ in range(arguments.rounds):
        for name, run in timed.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
            seconds.setdefault(name, []).append(time.perf_counter() - started)
    rows = {}
    for name, found in seconds.items():
        ratios = np.divide(found, seconds["20 passes"])
        rows[name] = {"seconds": statistics.median(found), "over_20_passes": float(np.median(ratios))}
        quartiles = np.quantile(ratios, [0.25, 0.75])
        print(f"{name:15} {1e3 * rows[name]['seconds']:8.1f} ms  {rows[name]['over_20_passes']:5.2f} x the passes "
              f"(quartiles {quartiles[0]:.2f} to {quartiles[1]:.2f})")  # fmt: skip
    if arguments.out:
        names = [name for name in ("foolbox",) if any(name in row.lower() for row in rows)]
        about = {"device": environment.device(), "cores": len(os.sched_getaffinity(0)), "batch": arguments.batch}
        about["versions"] = environment.versions(environment.PROOF) | {n: importlib.metadata.version(n) for n in names}
        arguments.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
