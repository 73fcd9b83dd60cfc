"""A small network around each ONNX operator: what the tests compare with ONNX Runtime, and the page of operators.

python benchmarks/onnx_operators.py > docs/onnx-operators.md
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mutated_onnx as files
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mixtrain_jax.foreign import onnx_graph

SMALL, WIDE = (3, 2, 6, 7), (3, 8)
LAST = onnx_graph.OPSETS[1]

Inputs = dict[str, np.ndarray | None]


class Case(NamedTuple):
    """One operator on images.

    Attributes:
      op: its type.
      shape: of the images.
      inputs: its further inputs by name, None for one that is left out.
      attributes: of the node.
      first: opset from which on it can be written like this.
      last: opset up to which.
      nodes: from `images` to `out`, where that is more than one node of the images and the inputs.
    """

    op: str
    shape: tuple[int, ...]
    inputs: Inputs = {}  # noqa: RUF012
    attributes: dict[str, Any] = {}  # noqa: RUF012
    first: int = 13
    last: int = LAST
    nodes: Sequence[onnx.NodeProto] = ()

    def opsets(self) -> list[int]:
        """The last one, and those in which the operator changed."""
        history = (s for s in onnx.defs.get_all_schemas_with_history() if s.name == self.op and s.domain == "")
        changed = {schema.since_version for schema in history}
        return sorted({self.first, self.last, *(v for v in changed if self.first < v <= self.last)})

    def model(self, opset: int) -> onnx.ModelProto:
        """The network in an opset."""
        order = ["images", *self.inputs]
        nodes = self.nodes or [node(self.op, order, **self.attributes)]
        return classifier(nodes, {k: v for k, v in self.inputs.items() if v is not None}, self.shape, opset)

    def images(self) -> np.ndarray:
        """Images for it."""
        drawn = normal(self.shape, 5)
        return np.abs(drawn) + 0.1 if self.op in POSITIVE else drawn


def classifier(
    nodes: Sequence[onnx.NodeProto], weights: dict[str, np.ndarray], shape: tuple[int, ...], opset: int
) -> onnx.ModelProto:
    """Nodes from `images` to `out`, with their entries as logits: bounds and the importer want `[n, classes]`."""
    nodes = [*nodes, helper.make_node("Flatten", ["out"], ["logits"], axis=1)]
    return files.graph(nodes, weights, ["n", *shape[1:]], opset)


def normal(shape: int | tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Normal float32 numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def integers(*values: int) -> np.ndarray:
    """A list of int64."""
    return np.array(values, np.int64)


def scalar(value: float) -> np.ndarray:
    """A float32 without dimensions."""
    return np.array(value, np.float32)


def node(op: str, inputs: Sequence[str], output: str = "out", **attributes: Any) -> onnx.NodeProto:
    """A node of one output."""
    return helper.make_node(op, list(inputs), [output], **attributes)


def compared(op: str, *inputs: str, **attributes: Any) -> list[onnx.NodeProto]:
    """A comparison as floats."""
    return [node(op, inputs, "true", **attributes), node("Cast", ["true"], to=TensorProto.FLOAT)]


def both(op: str) -> list[onnx.NodeProto]:
    """Two comparisons of the images, and an operator of both."""
    return [node("Less", ["images", "w"], "a"), node("Greater", ["images", "v"], "b"), *compared(op, "a", "b")]


def over_time(op: str, outputs: int, **attributes: Any) -> list[onnx.NodeProto]:
    """A recurrent operator over the second dimension of images `[n, steps, inputs]`, its last outputs joined."""
    names = ["every", "hidden", "cell"][:outputs]
    inputs = ["sequence", "w", "r", "b"]
    joined = [node("Transpose", [name], f"{name} first", perm=[1, 0, 2]) for name in names[1:]]
    return [
        node("Transpose", ["images"], "sequence", perm=[1, 0, 2]),
        helper.make_node(op, inputs, names, hidden_size=2, **attributes),
        node("Transpose", ["every"], "every first", perm=[2, 0, 1, 3]),
        *joined,
        *(node("Flatten", [f"{name} first"], f"{name} flat") for name in names),
        node("Concat", [f"{name} flat" for name in names], axis=1),
    ]


def branches(condition: str) -> onnx.NodeProto:
    """An If of constants of its own and values around it."""
    made = {
        "then": [node("Constant", [], "two", value_float=2.0), node("Mul", ["images", "two"], "then")],
        "else": [node("Add", ["images", "w"], "sum"), node("Relu", ["sum"], "else")],
    }
    value = helper.make_tensor_value_info
    graphs = {
        f"{name}_branch": helper.make_graph(nodes, name, [], [value(name, TensorProto.FLOAT, None)])
        for name, nodes in made.items()
    }
    return node("If", [condition], **graphs)


def recurrent_weights(gates: int, directions: int = 1) -> Inputs:
    """Weights of four inputs and two hidden units."""
    sizes = {"w": (directions, 2 * gates, 4), "r": (directions, 2 * gates, 2), "b": (directions, 4 * gates)}
    return {name: normal(size, i) / 2 for i, (name, size) in enumerate(sizes.items())}


def reductions() -> dict[str, Case]:
    """All reductions, their axes an attribute before opset 18 (ReduceSum: 13) and an input since."""
    cases = {}
    for op in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"):
        op = f"Reduce{op}"
        first = 13 if op == "ReduceSum" else 18
        for keep in (0, 1):
            axes = {"axes": integers(1, -1)}
            cases[f"{op} {keep}"] = Case(op, SMALL, axes, {"keepdims": keep}, first)
            if first > 13:
                cases[f"{op} {keep} attribute"] = Case(
                    op, SMALL, {}, {"keepdims": keep, "axes": [1, -1]}, 13, first - 1
                )
    return cases


# Name: operator, shape of the images, other inputs, attributes, first opset.
CASES = {
    name: Case(*entry)
    for name, entry in {
        **{
            op: (op, WIDE, {}, {}, 13)
            for op in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Erf", "Exp", "Abs")
        },
        **{op: (op, WIDE, {}, {}, 13) for op in ("Neg", "Identity", "Elu", "Selu", "LeakyRelu", "HardSigmoid", "Celu")},
        **{op: (op, WIDE, {}, {}, 13) for op in ("Reciprocal", "Softmax", "LogSoftmax", "Dropout", "Log", "Sqrt")},
        "HardSwish": ("HardSwish", WIDE, {}, {}, 14),
        "Mish": ("Mish", WIDE, {}, {}, 18),
        "Gelu": ("Gelu", WIDE, {}, {}, 20),
        "Gelu tanh": ("Gelu", WIDE, {}, {"approximate": "tanh"}, 20),
        "LeakyRelu steep": ("LeakyRelu", WIDE, {}, {"alpha": 0.3}, 13),
        "Elu alpha": ("Elu", WIDE, {}, {"alpha": 0.3}, 13),
        "Celu alpha": ("Celu", WIDE, {}, {"alpha": 0.3}, 13),
        "Selu gamma": ("Selu", WIDE, {}, {"alpha": 0.3, "gamma": 2.0}, 13),
        "HardSigmoid alpha": ("HardSigmoid", WIDE, {}, {"alpha": 0.7, "beta": 0.1}, 13),
        "PRelu scalar": ("PRelu", WIDE, {"w": scalar(0.2)}, {}, 13),
        "PRelu channels": ("PRelu", SMALL, {"w": normal((2, 1, 1))}, {}, 13),
        "Softmax axis": ("Softmax", SMALL, {}, {"axis": 1}, 13),
        "LogSoftmax axis": ("LogSoftmax", SMALL, {}, {"axis": -2}, 13),
        "Add": ("Add", SMALL, {"w": normal((2, 1, 7))}, {}, 13),
        "Sub": ("Sub", SMALL, {"w": normal((7,))}, {}, 13),
        "Mul": ("Mul", SMALL, {"w": scalar(3.0)}, {}, 13),
        "Div": ("Div", SMALL, {"w": 2 + normal((1, 2, 1, 1)) ** 2}, {}, 13),
        "Sum": ("Sum", WIDE, {"w": normal(8), "v": normal((1, 8))}, {}, 13),
        "Max": ("Max", WIDE, {"w": normal(8), "v": scalar(0.1)}, {}, 13),
        "Min": ("Min", WIDE, {"w": normal((1, 1))}, {}, 13),
        "Pow square": ("Pow", WIDE, {"w": scalar(2.0)}, {}, 13),
        "Pow cube": ("Pow", WIDE, {"w": integers(3)}, {}, 13),
        "Pow root": ("Pow", WIDE, {"w": np.array([0.5], np.float32)}, {}, 13),
        "Pow each": ("Pow", WIDE, {"w": np.arange(8, dtype=np.float32) / 2}, {}, 13),
        "Clip": ("Clip", WIDE, {"lo": scalar(-0.5), "hi": scalar(0.7)}, {}, 13),
        "Clip below": ("Clip", WIDE, {"lo": scalar(-0.5)}, {}, 13),
        "Clip above": ("Clip", WIDE, {"": None, "hi": scalar(0.5)}, {}, 13),
        "MatMul": ("MatMul", SMALL, {"w": normal((7, 3))}, {}, 13),
        "MatMul batched": ("MatMul", SMALL, {"w": normal((2, 7, 3))}, {}, 13),
        "Gemm": ("Gemm", WIDE, {"w": normal((8, 4)), "b": normal(4)}, {}, 13),
        "Gemm all": (
            "Gemm",
            WIDE,
            {"w": normal((4, 8)), "b": scalar(2.0)},
            {"alpha": 0.5, "beta": -2.0, "transB": 1},
            13,
        ),
        "BatchNormalization": (
            "BatchNormalization",
            SMALL,
            {"s": normal(2), "b": normal(2, 1), "m": normal(2, 2), "v": normal(2, 3) ** 2},
            {"epsilon": 0.01},
            13,
        ),
        "LayerNormalization": ("LayerNormalization", SMALL, {"s": normal(7), "b": normal(7)}, {}, 17),
        "LayerNormalization axis": (
            "LayerNormalization",
            SMALL,
            {"s": normal((2, 6, 7))},
            {"axis": 1, "epsilon": 0.1},
            17,
        ),
        "GlobalAveragePool": ("GlobalAveragePool", SMALL, {}, {}, 13),
        "GlobalMaxPool": ("GlobalMaxPool", SMALL, {}, {}, 13),
        "Flatten": ("Flatten", SMALL, {}, {}, 13),
        "Transpose": ("Transpose", SMALL, {}, {"perm": [0, 3, 1, 2]}, 13),
        "Reshape": ("Reshape", SMALL, {"s": integers(0, -1, 7)}, {}, 13),
        "Reshape batch": ("Reshape", SMALL, {"s": integers(-1, 84)}, {}, 13),
        "Squeeze": ("Squeeze", (3, 1, 4, 1), {"a": integers(1, -1)}, {}, 13),
        "Squeeze all": ("Squeeze", (3, 1, 4, 1), {}, {}, 13),
        "Unsqueeze": ("Unsqueeze", WIDE, {"a": integers(-1, 1)}, {}, 13),
        "Concat": ("Concat", SMALL, {"w": normal((3, 2, 6, 2))}, {"axis": -1}, 13),
        "Expand": ("Expand", (3, 1, 4), {"s": integers(2, 1)}, {}, 13),
        "Slice": ("Slice", SMALL, {"s": integers(1, -9), "e": integers(5, 2**63 - 1), "a": integers(2, -1)}, {}, 13),
        "Slice back": (
            "Slice",
            WIDE,
            {"s": integers(-1), "e": integers(-(2**63)), "a": integers(1), "d": integers(-3)},
            {},
            13,
        ),
        "Slice first": ("Slice", WIDE, {"s": integers(0, 2), "e": integers(9, 7)}, {}, 13),
        "Gather": ("Gather", WIDE, {"i": integers(7, -2, 0, 0)}, {"axis": 1}, 13),
        "Gather one": ("Gather", SMALL, {"i": np.array(-1)}, {"axis": 2}, 13),
        "Gather matrix": ("Gather", WIDE, {"i": np.array([[1, 2], [3, -1]], np.int32)}, {"axis": -1}, 13),
        "Pad": ("Pad", SMALL, {"p": integers(0, 1, 0, 2, 0, 0, 3, 1), "v": scalar(0.5)}, {}, 13),
        "Pad crop": ("Pad", SMALL, {"p": integers(0, 0, -1, 2, 0, 0, -2, 1)}, {}, 13),
        "Pad reflect": ("Pad", SMALL, {"p": integers(0, 0, 2, 1, 0, 1, 3, 0)}, {"mode": "reflect"}, 13),
        "Pad edge": ("Pad", SMALL, {"p": integers(0, 0, 2, 1, 0, 1, 3, 0)}, {"mode": "edge"}, 13),
        "Pad axes": ("Pad", SMALL, {"p": integers(1, 2, 3, 0), "": None, "a": integers(3, -2)}, {}, 18),
        "Cast": ("Cast", WIDE, {}, {"to": TensorProto.FLOAT}, 13),
        "AveragePool": ("AveragePool", SMALL, {}, {"kernel_shape": [2, 3], "pads": [1, 0, 0, 2]}, 13),
        "MaxPool": ("MaxPool", SMALL, {}, {"kernel_shape": [2, 3], "pads": [1, 0, 0, 2]}, 13),
    }.items()
}
# More than one node, or not in all opsets.
CASES |= reductions() | {
    **{
        op: Case(op, WIDE)
        for op in ("Asinh", "Atan", "Ceil", "Cos", "Cosh", "Floor", "Round", "Sign", "Sin", "Sinh", "Tan")
    },
    "Mean": Case("Mean", WIDE, {"w": normal(8), "v": normal((1, 8))}),
    "Mod": Case("Mod", WIDE, {"w": scalar(-0.7)}, {"fmod": 1}),
    "CastLike": Case("CastLike", WIDE, {"w": scalar(1)}, {}, 15),
    "Cast bool": Case(
        "Cast", WIDE, nodes=[node("Relu", ["images"], "r"), node("Cast", ["r"], "c", to=9), *compared("Not", "c")]
    ),
    "ThresholdedRelu": Case("ThresholdedRelu", WIDE, {}, {"alpha": 0.4}),
    "Shrink": Case("Shrink", WIDE, {}, {"lambd": 0.5}),
    "Shrink bias": Case("Shrink", WIDE, {}, {"lambd": 0.5, "bias": 0.3}),
    "Shrink soft": Case("Shrink", WIDE, {}, {"lambd": 0.5, "bias": 0.5}),
    "Add itself": Case("Add", WIDE, nodes=[node("Tanh", ["images"], "t"), node("Add", ["t", "images"])]),
    "Mul itself": Case("Mul", WIDE, nodes=[node("Tanh", ["images"], "t"), node("Mul", ["t", "images"])]),
    "Div itself": Case("Div", WIDE, nodes=[node("Exp", ["images"], "t"), node("Div", ["images", "t"])]),
    "MatMul itself": Case("MatMul", (3, 4, 4), nodes=[node("Tanh", ["images"], "t"), node("MatMul", ["t", "images"])]),
    # Comparisons and logic.
    **{
        op: Case(op, WIDE, {"w": normal(8)}, nodes=compared(op, "images", "w"))
        for op in ("Less", "Greater", "LessOrEqual", "GreaterOrEqual")
    },
    "Equal": Case(
        "Equal",
        WIDE,
        {"w": np.arange(8, dtype=np.float32) % 3 - 1},
        nodes=[node("Round", ["images"], "r"), *compared("Equal", "r", "w")],
    ),
    "Not": Case("Not", WIDE, {"w": normal(8)}, nodes=[node("Less", ["images", "w"], "a"), *compared("Not", "a")]),
    **{op: Case(op, WIDE, {"w": normal(8), "v": normal(8, 1)}, nodes=both(op)) for op in ("And", "Or", "Xor")},
    "IsNaN": Case("IsNaN", WIDE, nodes=[node("Log", ["images"], "l"), *compared("IsNaN", "l")]),
    "IsInf": Case(
        "IsInf", WIDE, nodes=[node("Relu", ["images"], "r"), node("Reciprocal", ["r"], "s"), *compared("IsInf", "s")]
    ),
    "IsInf negative": Case(
        "IsInf",
        WIDE,
        nodes=[node("Relu", ["images"], "r"), node("Log", ["r"], "s"), *compared("IsInf", "s", detect_positive=0)],
    ),
    "Where": Case(
        "Where", WIDE, {"c": np.arange(8) % 3 == 0, "w": normal(8)}, nodes=[node("Where", ["c", "images", "w"])]
    ),
    "Where of images": Case(
        "Where", WIDE, {"w": normal(8)}, nodes=[node("Less", ["images", "w"], "a"), node("Where", ["a", "images", "w"])]
    ),
    # Products and normalisation.
    "Einsum": Case("Einsum", SMALL, {"w": normal((6, 4))}, {"equation": "nchw, hk -> nkcw"}),
    "Einsum one": Case("Einsum", SMALL, {}, {"equation": "nchw->nwc"}),
    "Einsum dots": Case("Einsum", SMALL, {"w": normal((7, 2))}, {"equation": "...w,wk->...k"}),
    "Einsum implied": Case("Einsum", WIDE, {"w": normal((8, 2))}, {"equation": "ab,bc"}),
    "Einsum three": Case("Einsum", WIDE, {"w": normal((8, 4)), "v": normal(4)}, {"equation": "ni,ik,k->nk"}),
    "InstanceNormalization": Case(
        "InstanceNormalization", SMALL, {"s": normal(2), "b": normal(2, 1)}, {"epsilon": 0.01}
    ),
    "GroupNormalization": Case(
        "GroupNormalization", (3, 4, 3, 2), {"s": normal(4), "b": normal(4, 1)}, {"num_groups": 2}, 21
    ),
    "LpNormalization": Case("LpNormalization", SMALL, {}, {"axis": 1}),
    "LpNormalization 1": Case("LpNormalization", SMALL, {}, {"p": 1}),
    "MeanVarianceNormalization": Case("MeanVarianceNormalization", SMALL, {}, {"axes": [1, 3]}),
    "LRN": Case("LRN", (3, 5, 4, 3), {}, {"size": 3, "alpha": 0.3, "beta": 0.7, "bias": 1.5}),
    # Windows.
    "Conv": Case("Conv", SMALL, {"w": normal((3, 2, 2, 3)), "b": normal(3)}, {"strides": [2, 1]}),
    "Conv 3-d": Case(
        "Conv", (2, 2, 3, 4, 5), {"w": normal((3, 2, 2, 3, 2)), "b": normal(3)}, {"pads": [1, 0, 1, 0, 2, 0]}
    ),
    "ConvTranspose": Case("ConvTranspose", SMALL, {"w": normal((2, 3, 2, 3))}, {"strides": [2, 1]}),
    "ConvTranspose 3-d": Case("ConvTranspose", (2, 2, 2, 3, 2), {"w": normal((2, 3, 2, 3, 2))}, {"strides": [2, 1, 2]}),
    "MaxPool 3-d": Case("MaxPool", (2, 2, 3, 4, 5), {}, {"kernel_shape": [2, 3, 2], "strides": [1, 2, 2]}),
    "AveragePool 3-d": Case(
        "AveragePool", (2, 2, 3, 4, 5), {}, {"kernel_shape": [2, 3, 2], "pads": [1, 1, 0, 0, 1, 1]}
    ),
    "LpPool": Case("LpPool", SMALL, {}, {"kernel_shape": [2, 3], "strides": [2, 1]}),
    "LpPool 3": Case("LpPool", SMALL, {}, {"kernel_shape": [2, 2], "p": 3, "pads": [1, 0, 0, 1]}),
    "GlobalLpPool": Case("GlobalLpPool", SMALL),
    # Recurrent.
    "LSTM": Case("LSTM", (3, 2, 4), recurrent_weights(4), nodes=over_time("LSTM", 3)),
    "LSTM both": Case(
        "LSTM", (3, 2, 4), recurrent_weights(4, 2), nodes=over_time("LSTM", 3, direction="bidirectional")
    ),
    "GRU": Case("GRU", (3, 2, 4), recurrent_weights(3), nodes=over_time("GRU", 2)),
    "GRU before": Case(
        "GRU", (3, 2, 4), recurrent_weights(3), nodes=over_time("GRU", 2, linear_before_reset=1, direction="reverse")
    ),
    "RNN": Case("RNN", (3, 2, 4), recurrent_weights(1), nodes=over_time("RNN", 2)),
    "RNN relu": Case(
        "RNN",
        (3, 2, 4),
        recurrent_weights(1, 2),
        nodes=over_time("RNN", 2, direction="bidirectional", activations=["Relu", "Tanh"]),
    ),
    # Entries moved, copied, picked or put.
    "CumSum": Case("CumSum", SMALL, {"a": np.array(2)}),
    "CumSum back": Case("CumSum", SMALL, {"a": np.array([-1], np.int32)}, {"reverse": 1}),
    "CumSum before": Case("CumSum", SMALL, {"a": np.array(2)}, {"exclusive": 1}),
    "CumSum back before": Case("CumSum", SMALL, {"a": np.array(1)}, {"exclusive": 1, "reverse": 1}),
    "DepthToSpace": Case("DepthToSpace", (2, 8, 2, 3), {}, {"blocksize": 2}),
    "DepthToSpace CRD": Case("DepthToSpace", (2, 8, 2, 3), {}, {"blocksize": 2, "mode": "CRD"}),
    "SpaceToDepth": Case("SpaceToDepth", (2, 3, 4, 6), {}, {"blocksize": 2}),
    "Resize": Case("Resize", SMALL, {"": None, "s": np.array([1, 1, 2, 1.5], np.float32)}),
    "Resize linear": Case("Resize", SMALL, {"": None, "s": np.array([1, 1, 2, 0.6], np.float32)}, {"mode": "linear"}),
    "Resize sizes": Case(
        "Resize", SMALL, {"s": integers(3, 2, 9, 4)}, nodes=[node("Resize", ["images", "", "", "s"], mode="cubic")]
    ),
    "Resize of opset 10": Case("Resize", SMALL, {"s": np.array([1, 1, 2, 1.5], np.float32)}, {}, 10, 10),
    "Upsample": Case("Upsample", SMALL, {"s": np.array([1, 1, 2, 3], np.float32)}, {}, 9, 9),
    "Upsample linear": Case("Upsample", SMALL, {"s": np.array([1, 1, 2, 2], np.float32)}, {"mode": "linear"}, 9, 9),
    "Pad wrap": Case("Pad", SMALL, {"p": integers(0, 0, 2, 1, 0, 1, 3, 0)}, {"mode": "wrap"}, 19),
    "Tile": Case("Tile", SMALL, {"r": integers(1, 2, 1, 3)}),
    "Trilu": Case("Trilu", SMALL, {}, {}, 14),
    "Trilu lower": Case("Trilu", SMALL, {"k": np.array(-2)}, {"upper": 0}, 14),
    "Split": Case(
        "Split",
        WIDE,
        {"s": integers(2, 6)},
        nodes=[helper.make_node("Split", ["images", "s"], ["a", "b"], axis=1), node("Concat", ["b", "a"], axis=1)],
    ),
    "GatherElements": Case("GatherElements", WIDE, {"i": np.arange(12).reshape(3, 4) % 8 - 4}, {"axis": 1}),
    "GatherND": Case("GatherND", SMALL, {"i": np.array([[[0, 1], [1, -2]]] * 3)}, {"batch_dims": 1}),
    "GatherND first": Case(
        "GatherND",
        (3, 8),
        {"i": np.array([[5], [0], [-1]])},
        nodes=[node("Transpose", ["images"], "t"), node("GatherND", ["t", "i"], "g"), node("Transpose", ["g"])],
    ),
    "ScatterElements": Case(
        "ScatterElements", WIDE, {"i": np.array([[0, 5, -1]] * 3), "w": normal((3, 3))}, {"axis": 1}
    ),
    "ScatterElements add": Case(
        "ScatterElements",
        WIDE,
        {"i": np.array([[0, 5, 5]] * 3), "w": normal((3, 3))},
        {"axis": 1, "reduction": "add"},
        16,
    ),
    "ScatterND": Case("ScatterND", WIDE, {"i": np.array([[0, 1], [2, 3], [1, -1]]), "w": normal(3)}),
    "ScatterND rows": Case("ScatterND", WIDE, {"i": np.array([[2], [0]]), "w": normal((2, 8))}),
    "ScatterND add": Case(
        "ScatterND", WIDE, {"i": np.array([[0, 1], [0, 1]]), "w": normal(2)}, {"reduction": "add"}, 16
    ),
    "ScatterND of images": Case(
        "ScatterND",
        (3, 2),
        {"z": normal((3, 4)), "i": np.stack(np.meshgrid(np.arange(3), np.array([3, 1]), indexing="ij"), -1)},
        nodes=[node("ScatterND", ["z", "i", "images"])],
    ),
    "TopK": Case(
        "TopK", WIDE, {"k": integers(3)}, nodes=[helper.make_node("TopK", ["images", "k"], ["out", "places"])]
    ),
    "TopK least": Case(
        "TopK",
        SMALL,
        {"k": integers(2)},
        nodes=[helper.make_node("TopK", ["images", "k"], ["out", "places"], axis=1, largest=0)],
    ),
    # Of constants alone.
    "ArgMax": Case(
        "ArgMax",
        WIDE,
        {"k": np.array([[3, 1, 4], [1, 5, 9]])},
        nodes=[node("ArgMax", ["k"], "i", axis=1, keepdims=0), node("Gather", ["images", "i"], axis=1)],
    ),
    "ArgMin": Case(
        "ArgMin",
        WIDE,
        {"k": np.ones((2, 8), np.int64)},
        nodes=[node("ArgMin", ["k"], "i", axis=-1, select_last_index=1), node("Gather", ["images", "i"], axis=1)],
    ),
    "NonZero": Case(
        "NonZero",
        WIDE,
        {"k": np.arange(8) % 3},
        nodes=[node("NonZero", ["k"], "i"), node("Gather", ["images", "i"], axis=1)],
    ),
    "OneHot": Case(
        "OneHot",
        WIDE,
        {"k": np.arange(8) % 5 - 2, "d": np.array(4), "v": np.array([0.5, 2], np.float32)},
        nodes=[node("OneHot", ["k", "d", "v"], "h"), node("MatMul", ["images", "h"])],
    ),
    "Range": Case(
        "Range",
        WIDE,
        {"a": np.array(7), "b": np.array(-1), "c": np.array(-3)},
        nodes=[node("Range", ["a", "b", "c"], "i"), node("Gather", ["images", "i"], axis=1)],
    ),
    "EyeLike": Case(
        "EyeLike",
        WIDE,
        {"k": normal((8, 4))},
        nodes=[node("EyeLike", ["k"], "e", k=1), node("MatMul", ["images", "e"])],
    ),
    "Size": Case(
        "Size",
        WIDE,
        nodes=[node("Size", ["images"], "s"), node("Cast", ["s"], "f", to=1), node("Div", ["images", "f"])],
    ),
    "Shape": Case(
        "Shape",
        WIDE,
        {"o": integers(1)},
        nodes=[
            node("Shape", ["images"], "s"),
            node("Gather", ["s", "o"], "l"),
            node("Cast", ["l"], "f", to=1),
            node("Div", ["images", "f"]),
        ],
    ),
    "Constant": Case(
        "Constant", WIDE, nodes=[node("Constant", [], "c", value_float=2.0), node("Mul", ["images", "c"])]
    ),
    "ConstantOfShape": Case(
        "ConstantOfShape",
        WIDE,
        {"s": integers(8)},
        nodes=[
            node("ConstantOfShape", ["s"], "c", value=numpy_helper.from_array(np.ones(1, np.float32))),
            node("Add", ["images", "c"]),
        ],
    ),
    **{
        f"If {chosen}": Case("If", WIDE, {"w": normal(8), "c": np.array(chosen)}, nodes=[branches("c")])
        for chosen in (True, False)
    },
    "Mod of integers": Case(
        "Mod",
        WIDE,
        {"a": np.arange(8) - 4, "b": np.array(3)},
        nodes=[node("Mod", ["a", "b"], "i"), node("Gather", ["images", "i"], axis=1)],
    ),
}
POSITIVE = {"Log", "Sqrt", "Pow", "Reciprocal", "ReduceLogSum", "LpPool", "GlobalLpPool", "Tan"}
