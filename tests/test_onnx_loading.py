import numpy as np
import pytest
from onnx import TensorProto, helper
from test_onnx import SMALL, WIDE, assert_as_onnxruntime, classifier, integers, normal

node = helper.make_node


# Shape arithmetic.

DIMENSION = [node("Shape", ["images"], ["sizes"]), node("Gather", ["sizes", "one"], ["size"], axis=0)]  # 0-d
KNOWN = {"zero": np.array(0), "one": np.array(1), "two": np.array(2), "first": integers(0), "rest": integers(-1)}
ARITHMETIC = {
    "Add": [node("Add", ["size", "two"], ["found"])],
    "Sub": [node("Sub", ["size", "two"], ["found"])],
    "Mul": [node("Mul", ["size", "two"], ["found"])],
    "Div": [node("Div", ["size", "two"], ["found"])],
    "Max": [node("Max", ["size", "two"], ["found"])],
    "Min": [node("Min", ["size", "two"], ["found"])],
    "Neg": [node("Neg", ["size"], ["a"]), node("Neg", ["a"], ["found"])],
    "Abs": [node("Neg", ["size"], ["a"]), node("Abs", ["a"], ["found"])],
    "Clip": [node("Clip", ["size", "one", "two"], ["found"])],
    "Where": [node("Equal", ["size", "two"], ["a"]), node("Where", ["a", "two", "size"], ["found"])],
    "Pow": [node("Pow", ["size", "two"], ["found"])],
    "ReduceMax": [node("ReduceMax", ["sizes"], ["found"], keepdims=0)],
    "ReduceSum": [node("ReduceSum", ["sizes"], ["found"], keepdims=0)],
    "Reshape": [node("Reshape", ["size", "rest"], ["a"]), node("Squeeze", ["a"], ["found"])],
    "Expand": [node("Expand", ["size", "two_"], ["a"]), node("ReduceMin", ["a"], ["found"], keepdims=0)],
    "Pad": [node("Pad", ["sizes", "pads"], ["a"]), node("ReduceMax", ["a"], ["found"], keepdims=0)],
    "Sqrt": [
        node("Cast", ["size"], ["a"], to=TensorProto.DOUBLE),
        node("Sqrt", ["a"], ["b"]),
        node("Mul", ["b", "b"], ["c"]),
        node("Add", ["c", "half"], ["d"]),
        node("Cast", ["d"], ["found"], to=TensorProto.INT64),
    ],
    "Scaled by a vector": [
        node("Cast", ["sizes"], ["a"], to=TensorProto.FLOAT),
        node("Mul", ["a", "scales"], ["b"]),
        node("Cast", ["b"], ["c"], to=TensorProto.INT64),
        node("ReduceMax", ["c"], ["found"], keepdims=0),
    ],
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_shape_arithmetic_is_done_when_the_graph_is_traced(name, tmp_path):
    """As exporters write it: scalars taken from shapes, computed with, and put into the shape of a Reshape."""
    target = [
        node("Unsqueeze", ["found", "first"], ["width"]),
        node("ConstantOfShape", ["width"], ["values"], value=helper.make_tensor("", TensorProto.FLOAT, [1], [2.0])),
        node("ReduceSum", ["values"], ["sum"], keepdims=0),
        node("Mul", ["images", "sum"], ["out"]),
    ]
    known = {**KNOWN, "two_": integers(2), "pads": integers(2, 0), "half": np.array(0.5)}
    known["scales"] = np.array([2.5, 2], np.float32)
    used = {value for part in (*DIMENSION, *ARITHMETIC[name], *target) for value in part.input}
    nodes = [*DIMENSION, *ARITHMETIC[name], *target]
    model = classifier(nodes, {key: value for key, value in known.items() if key in used}, WIDE, 17)
    assert_as_onnxruntime(model, normal(WIDE), tmp_path)


def test_a_view_as_the_legacy_exporter_writes_it(tmp_path):
    """`x.view(n, x.shape[1] // 2, 2).flatten(1)` with every size a scalar of the graph."""
    nodes = [
        node("Shape", ["images"], ["s0"]),
        node("Gather", ["s0", "zero"], ["n"], axis=0),
        node("Shape", ["images"], ["s1"]),
        node("Gather", ["s1", "one"], ["c"], axis=0),
        node("Div", ["c", "two"], ["half"]),
        node("Unsqueeze", ["n", "first"], ["n1"]),
        node("Unsqueeze", ["half", "first"], ["half1"]),
        node("Unsqueeze", ["two", "first"], ["two1"]),
        node("Concat", ["n1", "half1", "two1"], ["shape"], axis=0),
        node("Reshape", ["images", "shape"], ["out"]),
    ]
    known = {name: KNOWN[name] for name in ("zero", "one", "two", "first")}
    assert_as_onnxruntime(classifier(nodes, known, WIDE, 17), normal(WIDE), tmp_path)


def test_sizes_of_64_bits_stay_so(tmp_path):
    nodes = [
        node("Mul", ["big", "big"], ["square"]),
        node("Div", ["square", "big"], ["again"]),
        node("Slice", ["images", "first", "again", "axis"], ["out"]),
    ]
    known = {"big": integers(2**31 - 1), "first": integers(0), "axis": integers(1)}
    assert_as_onnxruntime(classifier(nodes, known, WIDE, 17), normal(WIDE), tmp_path)


def test_a_vector_that_sizes_are_computed_from_is_no_parameter(tmp_path):
    nodes = [
        node("Cast", ["scales"], ["a"], to=TensorProto.INT64),
        node("Expand", ["images", "a"], ["b"]),
        node("Mul", ["b", "w"], ["out"]),
    ]
    known = {"scales": np.ones(3, np.float32), "w": normal((2, 1, 1))}
    ours = assert_as_onnxruntime(classifier(nodes, known, SMALL, 17), normal(SMALL), tmp_path)
    assert set(ours.params) == {"w"}
