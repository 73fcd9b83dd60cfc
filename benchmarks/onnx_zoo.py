"""ONNX files of others: which load, what ONNX Runtime says of them, and whether their bounds are finite.

    python benchmarks/onnx_zoo.py FOLDER [--bounds] [--eps 1e-3] [--limit 3]

Every subfolder of FOLDER is a family; without subfolders, FOLDER is one. Each file is loaded, compared with ONNX
Runtime on random inputs, and with --bounds bounded around one of them. FOLDER/options.json may say by path what
`load_onnx` needs besides: {"family/name.onnx": {"output": "mean", "fixed": {"condition": [[0.0]]}}}.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime

import mixtrain_jax as mt
from mixtrain_jax import foreign
from mixtrain_jax.errors import ModelError, first_line

TOLERANCE = 1e-4


class Found(NamedTuple):
    """What became of one file: the difference to ONNX Runtime, how it was bounded, and the seconds of loading."""

    difference: float | None
    ibp: bool | None
    crown: bool | None
    seconds: float
    error: str = ""


def examined(path: Path, options: dict[str, Any], eps: float, bounds: bool) -> Found:
    """Load, compare and bound one file."""
    start = time.monotonic()
    try:
        model = foreign.load_onnx(path, **options)
    except ModelError as error:
        return Found(None, None, None, time.monotonic() - start, str(error))
    seconds = time.monotonic() - start
    difference = compared(path, model, options)
    error = "" if difference < TOLERANCE else f"differs from ONNX Runtime by {difference:.1e}"
    return Found(difference, *(_bounded(model, eps) if bounds else (None, None)), seconds, error)


def compared(path: Path, model: foreign.Model, options: dict[str, Any], count: int = 3) -> float:
    """Largest difference to ONNX Runtime on random inputs, given to it one by one, relative to the largest output."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    fixed = {name: np.asarray(value, np.float32) for name, value in options.get("fixed", {}).items()}
    (source,) = (value for value in session.get_inputs() if value.name not in fixed)
    assert model.shape is not None
    batch = (
        [] if len(source.shape) == len(model.shape) else [source.shape[0] if isinstance(source.shape[0], int) else 1]
    )
    images = np.random.default_rng(0).uniform(size=(count, *map(int, model.shape))).astype(np.float32)
    images = np.repeat(images, batch[0] if batch else 1, 0)  # as many of each as the file takes at a time
    ours = np.asarray(model.apply(model.params, jnp.asarray(images)))
    output = options.get("output", session.get_outputs()[0].name)
    groups = images.reshape((count, *batch, *images.shape[1:]))
    theirs = [np.asarray(session.run([output], {**fixed, source.name: group})[0]) for group in groups]
    theirs = np.stack(theirs).reshape(ours.shape)
    if not np.array_equal(np.isfinite(ours), np.isfinite(theirs)):
        return np.inf
    finite = np.isfinite(ours)
    scale = max(1.0, float(np.abs(theirs[finite]).max(initial=0)))
    return float(np.abs(ours[finite] - theirs[finite]).max(initial=0)) / scale


def _bounded(model: foreign.Model, eps: float) -> tuple[bool, bool]:
    """Whether IBP and CROWN give finite bounds that contain the outputs at the centre."""
    assert model.shape is not None
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(1, *map(int, model.shape))), jnp.float32)
    ball, outputs = mt.linf_ball(images, eps), np.asarray(model.apply(model.params, images))
    return _holds(mt.ibp, model, ball, outputs), _holds(mt.crown, model, ball, outputs)


def _holds(method: Any, model: foreign.Model, ball: mt.Interval, outputs: np.ndarray) -> bool:
    try:
        box = jax.jit(method(lambda x: model.apply(model.params, x)))(ball)
    except Exception as error:  # counted, whatever it is
        print(f"  {method.__name__} of {model.name}: {first_line(error)[:160]}")
        return False
    lower, upper, slack = np.asarray(box.lower), np.asarray(box.upper), 1e-4 * (1 + np.abs(outputs).max())
    return bool(np.isfinite(lower).all() and (lower - slack <= outputs).all() and (outputs <= upper + slack).all())


def main() -> None:
    """Print a table of families and the reasons of what is refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bounds", action="store_true")
    parser.add_argument("--eps", type=float, default=1e-3)
    parser.add_argument("--limit", type=int, default=1000, help="files of a family")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    folder = arguments.folder
    options = json.loads((folder / "options.json").read_text()) if (folder / "options.json").exists() else {}
    families = [path for path in sorted(folder.iterdir()) if path.is_dir()] or [folder]
    columns = ("family", "files", "load and agree", "largest difference", "IBP finite", "CROWN finite", "slowest load")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for family in families:
        if arguments.only not in family.name:
            continue
        paths = sorted(family.glob("*.onnx"))[: arguments.limit]
        found = [
            examined(path, options.get(path.relative_to(folder).as_posix(), {}), arguments.eps, arguments.bounds)
            for path in paths
        ]
        good = [row for row in found if not row.error]
        largest = f"{max(row.difference or 0.0 for row in good):.0e}" if good else "-"
        ibp, crown = (sum(bool(getattr(row, name)) for row in good) for name in ("ibp", "crown"))
        slowest = max(row.seconds for row in found)
        row = (family.name, len(paths), len(good), largest, ibp, crown, f"{slowest:.1f} s")
        print(f"| {' | '.join(map(str, row))} |", flush=True)
        for path, row in zip(paths, found, strict=True):
            if row.error:
                print(f"  {path.name}: {row.error[:300]}")


if __name__ == "__main__":
    main()
