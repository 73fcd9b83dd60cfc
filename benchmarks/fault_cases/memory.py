"""Evaluations that want more memory than there is; started as a program, this is one of them."""

from __future__ import annotations

import functools
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mixtrain_jax import certify, data, models
from mixtrain_jax.attacks import pgd
from mixtrain_jax.bounds import BoundsError

from .trials import Trial

HERE = Path(__file__).parents[1]
IMAGES = 8192
MEGABYTES = (1000, 600, 400, 300, 250)  # fewer, and there is no memory left to compile in


def little_memory(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """F17: the batches of an evaluation halve, and it ends as it does with much memory, or it says what is missing."""
    plain = functools.cache(lambda: _child(0))
    for number in range(count):
        allowed = MEGABYTES[number % len(MEGABYTES)]

        def act(allowed: int = allowed) -> str:
            found, expected = _child(allowed), plain()
            if "error" in found:
                return "" if "too little memory" in found["error"] else found["error"]
            wrong = [name for name in ("attacked", "proved_by") if found[name] != expected[name]]
            if min(found["sizes"]) == IMAGES:
                return "there was memory enough"
            return f"{', '.join(wrong)} differ from those with much memory" if wrong else ""

        yield Trial(f"{allowed} MB beside what is taken before", act)


def _child(allowed: int) -> dict[str, Any]:
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "fault_cases.memory", str(allowed)],
        capture_output=True,
        text=True,
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(allowed: int) -> None:
    """Evaluate a small network with so many megabytes more than are taken before, 0 for any."""
    network = models.build("mlp", classes=10, width=256)
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8, 1), np.uint8)
    params = jax.jit(network.init)(jax.random.key(0), images[:1].astype(np.float32))
    logits_fn = functools.partial(network.apply, params)
    split = data.Split(images, np.asarray(logits_fn(images / np.float32(255))).argmax(-1).astype(np.int32), 255)
    if allowed:
        used = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert used
        limit = int(used[1]) * 1024 + allowed * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    sizes: list[int] = []

    def spread(f):
        def call(*args, **kwargs):
            sizes.append(max(len(leaf) for leaf in jax.tree.leaves((args, kwargs)) if np.ndim(leaf)))
            return f(*args, **kwargs)

        return call

    try:
        found = certify.evaluate(
            jax.random.key(1),
            logits_fn,
            split,
            certify.Threat(0.002, (0.0, 1.0)),
            attacks={"pgd": functools.partial(pgd, steps=2, restarts=1)},
            methods=certify.methods(["ibp", "crown"]),
            batch_size=IMAGES,
            spread=spread,
        )
    except BoundsError as error:
        print(json.dumps({"error": str(error)}))
        return
    print(json.dumps({"attacked": found.attacked.tolist(), "proved_by": found.proved_by.tolist(), "sizes": sizes}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
