"""ONNX files as functions of a data set's images, whatever layout the files want them in."""

from __future__ import annotations

import math
from pathlib import Path

import jax

from mixtrain_jax.errors import ModelError
from mixtrain_jax.foreign.model import Model
from mixtrain_jax.foreign.onnx_model import load_onnx


def load_onnx_for(path: Path | str, shape: tuple[int, ...], *, output: str | None = None) -> Model:
    """Read a file as a function of images `[n, *shape]` with channels last.

    The file may want them as they are, with channels first, or in any shape of as many entries, which is filled
    channels first, as PyTorch flattens. Where ONNX Runtime is installed, it is compared with; `notes` says so.

    Args:
      path: the file.
      shape: of one image, `[height, width, channels]` or any other.
      output: name of the output that is wanted, where the file has several.

    Raises:
      ModelError: where the file cannot be read, as `load_onnx` says, or wants other images.
    """
    model = load_onnx(path, output=output, check=None)
    declared = model.shape or ()
    if None in declared:
        open_to = next((sizes for sizes in (_channels_first(shape), shape) if _fits(sizes, declared)), None)
        model = model if open_to is None else load_onnx(path, shape=open_to, output=output, check=None)
    if math.prod(size or 0 for size in model.shape or (0,)) != math.prod(shape):
        shown = ["any" if size is None else size for size in declared]
        raise ModelError(f"{path} takes images of shape {shown}, which those of shape {list(shape)} do not fit.")
    return model if model.shape == shape else _rearranged(model, shape)


def _channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[-1], *shape[:-1]) if len(shape) == 3 else shape


def _fits(shape: tuple[int, ...], declared: tuple[int | None, ...]) -> bool:
    return len(shape) == len(declared) and all(b in (None, a) for a, b in zip(shape, declared, strict=True))


def _rearranged(model: Model, shape: tuple[int, ...]) -> Model:
    """The model of images `[n, *shape]`, which are put channels first and then into its own shape."""
    inner, wanted = model.apply, [size for size in model.shape or () if size is not None]
    several = len(shape) == 3 and shape[-1] > 1
    order = (0, 3, 1, 2) if len(shape) == 3 else tuple(range(len(shape) + 1))

    @jax.jit
    def apply(params, images: jax.Array) -> jax.Array:
        if images.shape[1:] != shape:
            raise ModelError(f"{model.name} takes images [n, {str(list(shape))[1:]}, got {list(images.shape)}.")
        return inner(params, images.transpose(order).reshape(images.shape[0], *wanted))

    how = "with channels first, as PyTorch flattens" if several else "row by row"
    note = f"Images {list(shape)} are given to it as {wanted}, {how}."
    return model._replace(apply=apply, shape=shape, notes=(*model.notes, note))
