import sys
import time

import mutated_onnx as files
import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_cases import SMALL, WIDE, classifier, integers, normal
from test_onnx import assert_as_onnxruntime, refused, saved

from mixtrain_jax.errors import ModelError
from mixtrain_jax.foreign import load_onnx, onnx_ops

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


# Older opsets.

CHANNELS = {"s": normal(2), "b": normal(2, 1), "m": normal(2, 2), "v": normal(2, 3) ** 2}
# name: nodes, weights, shape of the images, opsets
OLD = {
    "Clip": ([node("Clip", ["images"], ["out"], min=-0.5, max=0.7)], {}, WIDE, (8, 10)),
    "Clip above": ([node("Clip", ["images"], ["out"], max=0.7)], {}, WIDE, (8,)),
    "Squeeze": ([node("Squeeze", ["images"], ["out"], axes=[1])], {}, (3, 1, 4), (8, 12)),
    "Unsqueeze": ([node("Unsqueeze", ["images"], ["out"], axes=[1, 3])], {}, WIDE, (8, 12)),
    "Softmax": ([node("Softmax", ["images"], ["out"])], {}, SMALL, (8, 12)),
    "Softmax axis": ([node("Softmax", ["images"], ["out"], axis=2)], {}, SMALL, (8, 11)),
    "LogSoftmax": ([node("LogSoftmax", ["images"], ["out"], axis=-2)], {}, SMALL, (11, 12)),
    "Slice": ([node("Slice", ["images"], ["out"], starts=[1, -3], ends=[9, 99], axes=[2, 3])], {}, SMALL, (8, 9)),
    "Slice first": ([node("Slice", ["images"], ["out"], starts=[0, 1], ends=[9, 7])], {}, WIDE, (8,)),
    "Pad": ([node("Pad", ["images"], ["out"], pads=[0, 0, 1, 2, 0, 0, 3, 0], value=0.5)], {}, SMALL, (8, 10)),
    "Pad reflect": ([node("Pad", ["images"], ["out"], pads=[0, 2, 0, 1], mode="reflect")], {}, WIDE, (8,)),
    "Reduce": (
        [node("ReduceSum", ["images"], ["a"], axes=[2], keepdims=0), node("ReduceMax", ["a"], ["out"], axes=[1])],
        {},
        SMALL,
        (8, 12),
    ),
    "Split": (
        [
            node("Split", ["images"], ["a", "b"], axis=1, split=[5, 3]),
            node("Split", ["a"], ["c", "d", "e", "f", "g"], axis=1),
            node("Concat", ["b", "g"], ["out"], axis=1),
        ],
        {},
        WIDE,
        (8, 12),
    ),
    "Gemm": ([node("Gemm", ["images", "w", "b"], ["out"])], {"w": normal((8, 4)), "b": normal(4)}, WIDE, (8, 10, 12)),
    "BatchNormalization": (
        [node("BatchNormalization", ["images", "s", "b", "m", "v"], ["out"], epsilon=0.01)],
        CHANNELS,
        SMALL,
        (8, 9, 12),
    ),
    "Dropout": ([node("Dropout", ["images"], ["out"], ratio=0.4)], {}, WIDE, (8, 10)),
    "AveragePool": (
        [node("AveragePool", ["images"], ["out"], kernel_shape=[2, 3], pads=[1, 0, 0, 2], count_include_pad=1)],
        {},
        SMALL,
        (8, 11),
    ),
    "MaxPool": ([node("MaxPool", ["images"], ["out"], kernel_shape=[2, 3], strides=[2, 2])], {}, SMALL, (8, 10, 12)),
    "Constant": (
        [
            node("Constant", [], ["w"], value=helper.make_tensor("", TensorProto.FLOAT, [8], range(8))),
            node("Pow", ["images", "two"], ["a"]),
            node("Mul", ["a", "w"], ["out"]),
        ],
        {"two": np.array(2, np.float32)},
        WIDE,
        (8, 11, 12),
    ),
}


@pytest.mark.parametrize("name", OLD)
def test_files_of_older_opsets_compute_what_onnxruntime_computes(name, tmp_path):
    nodes, weights, shape, opsets = OLD[name]
    for opset in opsets:
        ours = assert_as_onnxruntime(classifier(nodes, weights, shape, opset), normal(shape), tmp_path)
        assert f"opset {opset}" in ours.notes[0]


def test_opsets_that_are_too_old_or_too_new_are_refused(tmp_path):
    for opset in (7, 22):
        refused(files.mlp(opset=opset), tmp_path, "opset of ai.onnx from 8 to 21")
    twice = files.mlp(opset=11)
    twice.opset_import.append(helper.make_opsetid("ai.onnx", 11))
    assert load_onnx(saved(twice, tmp_path)).classes == 3
    twice.opset_import.append(helper.make_opsetid("", 12))
    refused(twice, tmp_path, r"\[11, 12\]")


# Layouts of inputs and outputs.


def network(nodes, weights, source, outputs=("logits",), opset=13):
    """A file whose input has the shape `source`."""
    made = files.graph(nodes, weights, list(source), opset, outputs[0])
    for name in outputs[1:]:
        made.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return made


LAYOUTS = {
    "a vector": ([node("MatMul", ["images", "w"], ["logits"])], {"w": normal((8, 3))}, [8], (8,)),
    "a column": ([node("MatMul", ["w", "images"], ["logits"])], {"w": normal((3, 8))}, [8, 1], (8, 1)),
    "ones in front": (
        [node("Flatten", ["images"], ["a"]), node("MatMul", ["a", "w"], ["logits"])],
        {"w": normal((5, 5))},
        [1, 1, 1, 5],
        (1, 1, 5),
    ),
    "a column of a batch": (
        [node("Flatten", ["images"], ["a"]), node("MatMul", ["a", "w"], ["logits"])],
        {"w": normal((8, 3))},
        [1, 8, 1],
        (8, 1),
    ),
    "the batch squeezed": (
        [node("Reshape", ["images", "all"], ["a"]), node("MatMul", ["a", "w"], ["logits"])],
        {"w": normal((8, 3)), "all": integers(8)},
        [1, 8],
        (8,),
    ),
    "one view of an open batch": (
        [node("Reshape", ["images", "all"], ["a"]), node("MatMul", ["a", "w"], ["logits"])],
        {"w": normal((8, 3)), "all": integers(1, -1)},
        ["n", 2, 4],
        (2, 4),
    ),
    "images out": ([node("Relu", ["images"], ["logits"])], {}, ["n", 2, 3], (2, 3)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_inputs_and_outputs(name, tmp_path):
    nodes, weights, source, shape = LAYOUTS[name]
    model = network(nodes, weights, source)
    ours = load_onnx(saved(model, tmp_path), check=True)
    assert ours.shape == shape
    assert "agrees with ONNX Runtime" in ours.notes[-1]
    images = normal((3, *shape))
    rows = [image if len(source) == len(shape) else image[None] for image in images]
    theirs = np.stack([files.reference(model.SerializeToString(), row) for row in rows]).reshape(3, -1)
    assert ours.classes == theirs.shape[1]
    assert files.agree(np.asarray(ours.apply(ours.params, images)), theirs)


def test_what_is_computed_one_by_one_is_said(tmp_path):
    one_by_one = {"a vector", "a column", "one view of an open batch"}
    for name, (nodes, weights, source, _) in LAYOUTS.items():
        notes = load_onnx(saved(network(nodes, weights, source), tmp_path)).notes
        assert bool(notes) == (name in one_by_one)
        assert all("one by one" in note for note in notes)


def test_a_file_of_several_outputs_gives_the_one_that_is_named(tmp_path):
    nodes = [node("Relu", ["images"], ["a"]), node("Neg", ["a"], ["b"])]
    path = saved(network(nodes, {}, ["n", 8], ("a", "b")), tmp_path)
    images = normal((2, 8))
    for name, sign in (("a", 1), ("b", -1)):
        ours = load_onnx(path, output=name, check=True)
        np.testing.assert_array_equal(ours.apply(ours.params, images), sign * np.maximum(images, 0))
    with pytest.raises(ModelError, match=r"the outputs \['a', 'b'\].*output=NAME"):
        load_onnx(path)
    with pytest.raises(ModelError, match=r"no output 'c', only \['a', 'b'\]"):
        load_onnx(path, output="c")


def test_a_file_of_several_inputs_takes_the_others_as_constants(tmp_path):
    model = network(
        [node("Mul", ["images", "mask"], ["a"]), node("Add", ["a", "w"], ["logits"])], {"w": normal(8)}, ["n", 8]
    )
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 8]))
    path, mask, images = saved(model, tmp_path), normal((1, 8), 3), normal((2, 8))
    ours = load_onnx(path, fixed={"mask": mask}, check=True)
    assert set(ours.params) == {"w"}
    np.testing.assert_allclose(ours.apply(ours.params, images), images * mask + normal(8), rtol=1e-6)
    for fixed, match in (
        (None, r"the inputs \['images', 'mask'\], where one is expected.*fixed="),
        ({"maks": mask}, "no input 'maks' that could be fixed"),
        ({"mask": mask[0]}, r"'mask' wants float32\[1, 8\], got float32\[8\]"),
        ({"mask": mask > 0, "images": images}, "does not depend on any input"),
        ({"mask": mask.astype(np.complex64)}, "got complex64"),
    ):
        with pytest.raises(ModelError, match=match):
            load_onnx(path, fixed=fixed)


def test_an_input_that_the_output_does_not_need_is_no_matter(tmp_path):
    model = files.mlp()
    model.graph.input.append(helper.make_tensor_value_info("labels", TensorProto.INT64, ["n"]))
    assert load_onnx(saved(model, tmp_path)).classes == 3


def test_a_batch_normalisation_of_training_is_refused_by_its_name(tmp_path):
    order = ["images", "s", "b", "m", "v"]
    trained = node("BatchNormalization", order, ["out", "mean", "var"], training_mode=1)
    for opset, made in ((9, node("BatchNormalization", order, ["out", "a", "c"])), (14, trained), (17, trained)):
        refused(classifier([made], CHANNELS, SMALL, opset), tmp_path, r"training mode.*model\.eval\(\)")


def test_a_check_against_onnxruntime_sees_what_is_wrong(tmp_path, monkeypatch):
    path = saved(files.mlp(), tmp_path)
    monkeypatch.setitem(onnx_ops.OPERATIONS, "Relu", lambda attributes, x: x)
    with pytest.raises(ModelError, match="ONNX Runtime computes something else"):
        load_onnx(path, check=True)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match="pip install onnxruntime"):
        load_onnx(path, check=True)


def test_a_graph_of_thousands_of_nodes_loads_in_seconds(tmp_path):
    """Of processor time: a busy machine takes longer."""
    nodes, last = [], "images"
    for i in range(1500):
        nodes += [node("Add", [last, "w"], [f"a{i}"]), node("Relu", [f"a{i}"], [f"b{i}"])]
        last = f"b{i}"
    nodes.append(node("Identity", [last], ["out"]))
    path, start = saved(classifier(nodes, {"w": normal(8)}, WIDE, 17), tmp_path), time.process_time()
    load_onnx(path)
    assert time.process_time() - start < 10
