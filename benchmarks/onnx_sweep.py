"""Which of PyTorch's exports load, agree with ONNX Runtime, and can be bounded.

    python benchmarks/onnx_networks.py FOLDER     # where PyTorch is installed
    python benchmarks/onnx_sweep.py FOLDER [--only NAME ...] [--bounds ibp crown_ibp crown]

Prints a line a file, and counts of each exporter: files, loaded, agreeing, and bounded by each method, which means
finite bounds of l-infinity balls of radius 0.01 that contain what the network computes at 16 random points of them.
"""

from __future__ import annotations

import argparse
import collections
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import mutated_onnx as files
import numpy as np

import mixtrain_jax as mt
from mixtrain_jax.errors import ModelError
from mixtrain_jax.foreign import load_onnx
from mixtrain_jax.foreign.model import Model

EPS, POINTS = 0.01, 16
SHAPE = (1, 8, 8)


def pictures(count: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Random images in [0, 1]."""
    return np.random.default_rng(0).uniform(size=(count, *shape)).astype(np.float32)


def logits_of(path: Path, images: np.ndarray) -> tuple[Model, np.ndarray, np.ndarray]:
    """The model of a file, and what it and ONNX Runtime make of images; of a network that ends with a class, that."""
    model = load_onnx(path)
    with jax.disable_jit():
        ours = np.asarray(model.apply(model.params, images))
    theirs = files.reference(path.read_bytes(), images)
    if theirs is None:
        raise ModelError(f"ONNX Runtime refuses {path}.")
    return model, ours.argmax(-1) if theirs.ndim == 1 else ours, theirs


def bounded(model: Model, method: str, images: np.ndarray) -> str:
    """`ok`, or why there are no bounds that hold."""
    ball = mt.linf_ball(jnp.asarray(images), EPS, domain=(0.0, 1.0))
    box = jax.jit(getattr(mt, method)(lambda x: model.apply(model.params, x)))(ball)
    if not (np.isfinite(box.lower).all() and np.isfinite(box.upper).all()):
        return "not finite"
    points = np.random.default_rng(1).uniform(ball.lower, ball.upper, (POINTS, *images.shape)).astype(np.float32)
    found = np.stack([np.asarray(model.apply(model.params, x)) for x in points])
    slack = 1e-4 * np.maximum(1, np.abs(found).max())
    inside = (box.lower <= found.min(0) + slack).all() and (box.upper >= found.max(0) - slack).all()
    return f"ok {float(np.mean(box.upper - box.lower)):.2g}" if inside else "VIOLATED"


def main() -> None:
    """Load, compare and bound every file of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--bounds", nargs="*", default=["ibp", "crown_ibp", "crown"])
    arguments = parser.parse_args()
    warnings.simplefilter("error")
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    worst = 0.0
    for path in sorted(arguments.folder.glob("*.onnx")):
        name, exporter = path.name.split(".")[:2]
        if arguments.only and name not in arguments.only:
            continue
        counts[exporter, "files"] += 1
        start = time.monotonic()
        try:
            model, ours, theirs = logits_of(path, pictures(2))
        except ModelError as error:
            print(f"{name:20} {exporter:7} {str(error).removeprefix(str(path))[:230]}", flush=True)
            continue
        counts[exporter, "load"] += 1
        agree, off = (
            files.agree(ours, theirs),
            float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else np.inf,
        )
        counts[exporter, "agree"] += agree
        worst = max(worst, off)
        line = [f"{'agrees' if agree else 'DIFFERS'} {off:.1e}"]
        for method in arguments.bounds:
            try:
                found = bounded(model, method, pictures(2))
            except (mt.bounds.BoundsError, FloatingPointError) as error:
                found = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            counts[exporter, method] += found.startswith("ok")
            line.append(f"{method} {found}")
        print(f"{name:20} {exporter:7} {'; '.join(line)}  ({time.monotonic() - start:.1f} s)", flush=True)
    for exporter in sorted({exporter for exporter, _ in counts}):
        print(exporter, {what: count for (which, what), count in counts.items() if which == exporter})
    print(f"furthest from ONNX Runtime: {worst:.1e}")


if __name__ == "__main__":
    main()
