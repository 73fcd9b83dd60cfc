"""What ONNX operators compute, as the operations that bounds are known for.

Every function takes the attributes of a node and its inputs. Values that are known when the graph is traced, such as
shapes, are NumPy arrays; all others are jax arrays. An operator of `FOLDABLE` whose inputs are all known is evaluated
at trace time, whether it is written for NumPy or for jax, so its outputs are known too.

Operators are those of https://onnx.ai/onnx/operators, in the form of opset 21; older nodes are brought into it, and
the attribute "since" is the opset of the schema that they were written to.
"""

from __future__ import annotations

from mixtrain_jax.foreign.onnx_ops import (
    arithmetic,
    comparisons,
    indexing,
    layers,
    recurrent,
    reductions,
    resizing,
    shapes,
    windows,
)
from mixtrain_jax.foreign.onnx_ops.values import MAX_KNOWN, Operators, is_known

__all__ = ["ENDS", "FOLDABLE", "KNOWN_INPUTS", "MAX_KNOWN", "OPERATIONS", "is_known"]

# Inputs that should be known, where a weight could stand as well.
KNOWN_INPUTS = {
    "Clip": (1, 2),
    "Dropout": (1,),
    "If": (0,),
    "Pad": (2,),
    "Pow": (1,),
    "Resize": (1, 2),
    "Upsample": (1,),
}
# What shape arithmetic is made of. Each bounds its work by the sizes of its inputs, or by MAX_KNOWN.
FOLDABLE: Operators = {
    **arithmetic.OPERATIONS,
    **comparisons.OPERATIONS,
    **indexing.OPERATIONS,
    **reductions.OPERATIONS,
    **shapes.OPERATIONS,
}
OPERATIONS: Operators = {
    **FOLDABLE,
    **layers.OPERATIONS,
    **recurrent.OPERATIONS,
    **resizing.OPERATIONS,
    **windows.OPERATIONS,
}
# Operators that mean something else where they make the output.
ENDS: Operators = reductions.ENDS
