"""An imported ONNX file against ONNX Runtime; the only file that imports onnxruntime."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mixtrain_jax.errors import ModelError, first_line
from mixtrain_jax.foreign.model import Model
from mixtrain_jax.foreign.onnx_graph import Graph

_IMAGES = 4
TOLERANCE = 1e-3  # relative to the largest output


def disagreement(path: Path, graph: Graph, model: Model, batch: int | None, nhwc: bool) -> float:
    """How far apart the model and ONNX Runtime are on random images, relative to the largest output.

    Args:
      path: the file.
      graph: what was read of it.
      model: what was made of it.
      batch: images that the file takes at a time, None for any number, 0 where its input is one image.
      nhwc: whether the model takes images with channels last where the file wants them first.

    Raises:
      ModelError: where they differ by more than `TOLERANCE`, ONNX Runtime is missing or refuses the file, or the shape
        of the images is not known.
    """
    shape = [size for size in model.shape or () if size is not None]
    if model.shape is None or len(shape) != len(model.shape):
        raise ModelError(f"{path} leaves the shape of images open: check=True needs shape=.")
    count = max(batch or 1, _IMAGES // (batch or 1) * (batch or 1))
    images = np.random.default_rng(0).uniform(size=(count, *shape)).astype(np.float32)
    ours = np.asarray(model.apply(model.params, jnp.asarray(images)))
    theirs = _reference(path, graph, images.transpose(0, 3, 1, 2) if nhwc else images, batch)
    if np.issubdtype(theirs.dtype, np.integer) and theirs.size == len(ours):  # it chooses a class, ours are the logits
        ours, theirs = ours.argmax(-1).astype(np.float32), theirs.astype(np.float32)
    if ours.size != theirs.size or not np.array_equal(np.isfinite(ours), np.isfinite(theirs.reshape(ours.shape))):
        raise ModelError(f"{path}: ONNX Runtime computes something else, of another shape or not finite elsewhere.")
    theirs = theirs.reshape(ours.shape)
    finite = np.isfinite(ours)
    scale = max(1.0, float(np.abs(theirs[finite]).max(initial=0)))
    found = float(np.abs(ours[finite] - theirs[finite]).max(initial=0)) / scale
    if found > TOLERANCE:
        raise ModelError(f"{path}: ONNX Runtime computes something else, {found:.1e} of the largest output away.")
    return found


def _reference(path: Path, graph: Graph, images: np.ndarray, batch: int | None) -> np.ndarray:
    """What ONNX Runtime computes, all outputs in one row."""
    step = len(images) if batch is None else batch
    groups = [images[i : i + step] for i in range(0, len(images), step)] if step else list(images)
    session = _session(path)
    fixed = {name: graph.initializers[name] for name in graph.fixed}
    outputs = [_computed(path, session, [graph.output], {**fixed, graph.input: group}) for group in groups]
    return np.concatenate([output.reshape(-1) for output in outputs])


def onnxruntime_of(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A file as ONNX Runtime computes it on the CPU: float32 inputs in one row to outputs in one row.

    Args:
      path: the file, of one input and one output. Dimensions that it leaves open are 1.

    Raises:
      ModelError: where ONNX Runtime is missing or refuses the file; by the function, where inputs do not fit.
    """
    session = _session(path)
    name, declared = session.get_inputs()[0].name, session.get_inputs()[0].shape
    shape = [size if isinstance(size, int) and size > 0 else 1 for size in declared]

    def compute(inputs: np.ndarray) -> np.ndarray:
        if inputs.size != math.prod(shape):
            raise ModelError(f"{path} takes {math.prod(shape)} inputs, got {inputs.size}.")
        inputs = np.asarray(inputs, np.float32).reshape(shape)
        return _computed(path, session, None, {name: inputs}).reshape(-1)

    return compute


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError("A check against ONNX Runtime needs the package: pip install onnxruntime.") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        raise ModelError(f"ONNX Runtime cannot run {path}: {first_line(error)}") from error


def _computed(path: Path, session: Any, outputs: list[str] | None, inputs: dict[str, np.ndarray]) -> np.ndarray:
    try:
        return np.asarray(session.run(outputs, inputs)[0])
    except Exception as error:
        raise ModelError(f"ONNX Runtime cannot run {path}: {first_line(error)}") from error
