"""What ONNX operators compute, as the operations that bounds are known for.

Every function takes the attributes of a node and its inputs. Values that are known when the graph is traced, such as
shapes, are NumPy arrays and stay so (their 64-bit integers would not survive in jax); all others are jax arrays.
Operators are those of https://onnx.ai/onnx/operators, opset 13 to 21.
"""

from __future__ import annotations

from mixtrain_jax.foreign.onnx_ops import arithmetic, layers, reductions, shapes, windows
from mixtrain_jax.foreign.onnx_ops.values import MAX_KNOWN, Operators, is_known

__all__ = ["KNOWN_INPUTS", "MAX_KNOWN", "OPERATIONS", "is_known"]

# Inputs that should be known, where a weight could stand as well.
KNOWN_INPUTS = {"Clip": (1, 2), "Dropout": (1,), "Pad": (2,), "Pow": (1,)}
OPERATIONS: Operators = {
    **arithmetic.OPERATIONS,
    **layers.OPERATIONS,
    **windows.OPERATIONS,
    **reductions.OPERATIONS,
    **shapes.OPERATIONS,
}
