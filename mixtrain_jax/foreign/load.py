"""One entrance for whatever a command line names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from mixtrain_jax.errors import ModelError
from mixtrain_jax.foreign.import_path import load_import_path
from mixtrain_jax.foreign.model import Model
from mixtrain_jax.foreign.onnx_model import load_onnx


def load_model(
    spec: str,
    *,
    shape: tuple[int, ...] | None = None,
    params: Any = None,
    per_example: bool = False,
    layout: Literal["declared", "nhwc"] = "declared",
) -> Model:
    """Read `FILE.onnx`, or import `package.module:attribute`, which runs the code of that module.

    Args:
      spec: the model.
      shape: of one image. An ONNX file declares its own; it is only used for what the file leaves open.
      params: of an imported model, as for `load_import_path`; not for ONNX files.
      per_example: the imported function takes one image; not for ONNX files.
      layout: of the images of an ONNX file, as for `load_onnx`; imported models take what they take.

    Raises:
      ModelError: where the model cannot be read, or does not map images to logits.
    """
    module, colon, attribute = spec.rpartition(":")
    imported = bool(colon) and module.replace(".", "").isidentifier() and attribute.replace(".", "").isidentifier()
    if spec.endswith(".onnx"):
        if params is not None or per_example:
            raise ModelError(
                f"{spec} is an ONNX file, which has its own parameters and batch: leave those options out."
            )
        return load_onnx(Path(spec), shape=shape, layout=layout)
    if imported:
        if layout != "declared":
            raise ModelError(f"layout={layout!r} is for ONNX files; {spec} takes images as it is written to.")
        return load_import_path(spec, shape=shape, params=params, per_example=per_example)
    hint = "; mixtrain_jax.load_run reads the network of a run" if spec and os.path.isdir(spec) else ""
    raise ModelError(f"Expected a model as FILE.onnx or package.module:attribute, got {spec!r}{hint}.")
