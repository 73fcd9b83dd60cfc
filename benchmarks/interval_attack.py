"""The interval attack against PGD on the network of a run, at equal gradients and at equal time.

    python benchmarks/interval_attack.py RUN [--count 500] [--eps 0.1] [--rounds 3 3 1] [--method symbolic]

For the first test images that are classified rightly: how many of them each attack breaks, the mean of the lowest
margins, the gradient steps of an image and the seconds of a second call, compilation apart. PGD runs twice. At equal
gradients it has as many starts as the interval attack has gradient attacks, of as many steps, and the analyses are
free. At equal time they are counted by the time they take: PGD has as many starts as fit into the seconds that the
interval attack took. Lines are JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mixtrain_jax as mt
from mixtrain_jax import data
from mixtrain_jax.attacks import Attack, chunked, interval_attack, margin, pgd
from mixtrain_jax.certify.evaluation import LogitsFn

METHODS: dict[str, Callable[..., Any]] = {"symbolic": mt.symbolic, "crown": mt.crown, "crown_ibp": mt.crown_ibp}


def measure(attack: Attack, logits_fn: LogitsFn, split: data.Split, ball: mt.Interval, seed: int) -> dict[str, Any]:
    """How many images an attack breaks, and in how many seconds."""
    for _ in range(2):  # the first call compiles
        started = time.perf_counter()
        found = jax.block_until_ready(attack(jax.random.key(seed), logits_fn, split.images, split.labels, ball))
        seconds = time.perf_counter() - started
    margins = -np.asarray(margin(logits_fn(found), jnp.asarray(split.labels)))
    return {"broken": int((margins < 0).sum()), "mean_margin": float(margins.mean()), "seconds": seconds}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=500, help="test images")
    parser.add_argument("--eps", type=float, help="radius, by default that of the run")
    parser.add_argument("--steps", type=int, default=40, help="gradient steps a start")
    parser.add_argument("--rounds", type=int, nargs="+", default=[3, 3, 1], help="of the interval attack, a start each")
    parser.add_argument("--method", choices=list(METHODS), default="symbolic", help="what the analyses bound by")
    parser.add_argument("--size", type=int, default=100, help="images at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", type=Path)
    args = parser.parse_args()
    run = mt.load_run(args.run, tell=lambda line: print(line, file=sys.stderr))
    logits_fn = functools.partial(run.apply, run.params)
    split = data.load(run.config.data.name, args.data_dir).test[: args.count].floats()
    right = np.flatnonzero(np.asarray(jax.jit(logits_fn)(split.images).argmax(-1)) == split.labels)
    split = data.Split(split.images[right], split.labels[right])
    eps = run.eps if args.eps is None else args.eps
    ball = mt.linf_ball(split.images, eps, run.domain)

    def show(name: str, attack: Attack, gradients: int) -> dict[str, Any]:
        row = measure(chunked(attack, args.size), logits_fn, split, ball, args.seed)
        named = {"attack": name, "images": len(split), "eps": eps, "gradients": gradients}
        print(json.dumps({**named, **row}), flush=True)
        return row

    def starts(restarts: int) -> tuple[Attack, int]:
        return functools.partial(pgd, steps=args.steps, restarts=restarts), args.steps * restarts

    one, gradients = starts(1)
    rounds, method = tuple(args.rounds), METHODS[args.method]
    calls = 1 + sum(rounds)
    theirs = functools.partial(interval_attack, attack=one, rounds=rounds, method=method)
    spent = show(f"interval attack by {args.method}", theirs, gradients * calls)["seconds"]
    each = show(f"PGD, {calls} starts: equal gradients", *starts(calls))["seconds"] / calls
    more = max(1, round(spent / each))
    show(f"PGD, {more} starts: equal time", *starts(more))


if __name__ == "__main__":
    main()
