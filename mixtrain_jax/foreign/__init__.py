"""Models from elsewhere as `apply(params, images[n, ...]) -> logits [n, classes]`: ONNX files and Python objects."""

from mixtrain_jax.foreign.import_path import from_object, load_import_path
from mixtrain_jax.foreign.load import load_model
from mixtrain_jax.foreign.model import Model
from mixtrain_jax.foreign.onnx_check import onnxruntime_of
from mixtrain_jax.foreign.onnx_images import load_onnx_for
from mixtrain_jax.foreign.onnx_model import load_onnx

__all__ = ["Model", "from_object", "load_import_path", "load_model", "load_onnx", "load_onnx_for", "onnxruntime_of"]
