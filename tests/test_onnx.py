import os
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import mutated_onnx as files
import numpy as np
import onnx
import onnx_operators
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_cases import CASES, WIDE, branches, classifier, integers, normal

import mixtrain_jax as mt
from mixtrain_jax.attacks import pgd
from mixtrain_jax.errors import ModelError
from mixtrain_jax.foreign import load_onnx, onnx_graph, onnx_model

OPSETS = (13, 17, 21)


def saved(model, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def assert_as_onnxruntime(model, images, tmp_path, **options):
    theirs = files.reference(model.SerializeToString(), images)
    assert theirs is not None, "the test's own model is not valid"
    ours = load_onnx(saved(model, tmp_path), **options)
    with jax.disable_jit():
        found = np.asarray(ours.apply(ours.params, images))
    assert files.agree(found, theirs), f"{np.abs(found - theirs).max()} off"
    return ours


@pytest.mark.parametrize("name", CASES)
def test_operators_compute_what_onnxruntime_computes(name, tmp_path):
    """In every opset in which the operator changed."""
    case = CASES[name]
    for opset in case.opsets():
        assert_as_onnxruntime(case.model(opset), case.images(), tmp_path)


@pytest.mark.parametrize("name", ["HardSwish", "Mish", "LayerNormalization", "Pad axes", "ReduceL2 1", "CastLike"])
def test_operators_of_later_opsets_are_refused_before(name, tmp_path):
    case = CASES[name]
    with pytest.raises(ModelError, match=r"opset|unknown|inputs"):
        load_onnx(saved(case.model(case.first - 1), tmp_path))


@pytest.mark.parametrize(
    ("opset", "sizes", "attributes"), [(13, (2, 6), {}), (13, (), {}), (18, (), {"num_outputs": 3})]
)
def test_splits(opset, sizes, attributes, tmp_path):
    count = attributes.get("num_outputs", 2)
    names = [f"part{i}" for i in range(count)]
    inputs, weights = (["images", "sizes"], {"sizes": integers(*sizes)}) if sizes else (["images"], {})
    if opset == 18 and not sizes and not attributes:
        attributes = {"num_outputs": 2}
    nodes = [
        helper.make_node("Split", inputs, names, axis=1, **attributes),
        helper.make_node("Concat", [names[-1], *names[:-1]], ["out"], axis=1),
    ]
    assert_as_onnxruntime(classifier(nodes, weights, WIDE, opset), normal(WIDE), tmp_path)


def drawn(rng, kind, spatial):
    """Random attributes of a convolution or a pool of 1 or 2 spatial dimensions, and its input channels and groups."""
    kernel = [int(k) for k in rng.integers(1, 4, spatial)]
    group = int(rng.choice([1, 1, 2])) if "Conv" in kind else 1
    attributes = {"kernel_shape": kernel, "strides": [int(s) for s in rng.integers(1, 4, spatial)]}
    if kind != "AveragePool":
        attributes["dilations"] = [int(d) for d in rng.integers(1, 3, spatial)]
    if "Conv" in kind:
        attributes["group"] = group
    style = str(rng.choice(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if kind == "ConvTranspose":
        attributes["output_padding"] = [int(rng.integers(0, stride)) for stride in attributes["strides"]]
        style = "NOTSET"
    if style == "NOTSET":
        attributes["pads"] = [int(rng.integers(0, k)) for k in kernel * 2]
        if "Pool" in kind:
            attributes["ceil_mode"] = int(rng.integers(2))
    else:
        attributes["auto_pad"] = style
        attributes.pop("dilations", None)
    if kind == "AveragePool":
        attributes["count_include_pad"] = int(rng.integers(2))
    return attributes, group


@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "MaxPool", "AveragePool"])
def test_windows_of_random_attributes(kind, opset, tmp_path):
    rng = np.random.default_rng(opset)
    compared = 0
    for i in range(14):
        spatial = int(rng.integers(1, 3))
        attributes, group = drawn(rng, kind, spatial)
        shape = (2, 2 * group, *(int(n) for n in rng.integers(6, 11, spatial)))
        weights = {}
        if "Conv" in kind:
            swap = kind == "ConvTranspose"
            weights["w"] = normal((2 * group, 3 if swap else 2, *attributes["kernel_shape"]), i)
            if rng.integers(2):
                weights["b"] = normal(3 * group if swap else 2 * group, i)
        nodes = [helper.make_node(kind, ["images", *weights], ["out"], **attributes)]
        model, images = classifier(nodes, weights, shape, opset), normal(shape, i)
        if files.reference(model.SerializeToString(), images) is None:
            continue  # windows that ONNX Runtime does not know either
        assert_as_onnxruntime(model, images, tmp_path)
        compared += 1
    assert compared >= 8


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("make", [files.mlp, files.convnet], ids=lambda make: make.__name__)
def test_networks_compute_what_onnxruntime_computes(make, opset, tmp_path):
    shape = dict(files.SEEDS)[make]
    ours = assert_as_onnxruntime(make(0, opset), normal(shape), tmp_path)
    assert ours.shape == shape[1:]
    assert ours.classes == 3


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_a_network_that_ends_with_the_class_is_read_as_its_logits(op, tmp_path):
    nodes = [
        helper.make_node("MatMul", ["images", "w"], ["scores"]),
        helper.make_node(op, ["scores"], ["out"], axis=-1, keepdims=0),
    ]
    model = files.graph(nodes, {"w": normal((8, 3))}, ["n", 8], 17, output="out")
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    ours, images = load_onnx(saved(model, tmp_path)), normal((16, 8))
    logits = ours.apply(ours.params, images)
    assert logits.dtype == jnp.float32
    np.testing.assert_array_equal(np.argmax(logits, -1), files.reference(model.SerializeToString(), images))
    nodes[1].attribute[0].i = 0
    refused(files.graph(nodes, {"w": normal((8, 3))}, ["n", 8], 17, output="out"), tmp_path, "along axis 0")
    nodes = [helper.make_node("ArgMax", ["images"], ["i"], axis=1), helper.make_node("Cast", ["i"], ["out"], to=1)]
    refused(classifier(nodes, {}, WIDE, 17), tmp_path, "integers of the images")


def test_a_branch_is_chosen_by_what_is_known_alone(tmp_path):
    nodes = [helper.make_node("ReduceMax", ["images"], ["m"], keepdims=0), helper.make_node("Less", ["m", "z"], ["c"])]
    model = classifier([*nodes, branches("c")], {"z": np.array(0, np.float32), "w": normal(8)}, WIDE, 17)
    refused(model, tmp_path, "condition depends on the images")
    model = CASES["If True"].model(17)
    model.graph.node[0].attribute[0].g.node[-1].input[0] = "nowhere"
    refused(model, tmp_path, "wants 'nowhere'.*dangles")
    model = CASES["If True"].model(17)
    model.graph.node[0].attribute[0].g.output.append(model.graph.node[0].attribute[0].g.output[0])
    refused(model, tmp_path, "has 1 outputs, a branch of it 2")


def test_weights_are_parameters_and_shapes_are_not(tmp_path):
    ours = load_onnx(saved(files.residual(), tmp_path))
    assert {name: leaf.shape for name, leaf in ours.params.items()} == {
        "w1": (2, 2, 3, 3),
        "w2": (2, 2, 1, 1),
        "b2": (2,),
        "fc": (2, 3),
    }
    images = normal((4, 2, 5, 5))
    doubled = {**ours.params, "fc": 2 * ours.params["fc"]}
    np.testing.assert_allclose(ours.apply(doubled, images), 2 * ours.apply(ours.params, images), rtol=1e-6)
    gradient = jax.grad(lambda params: ours.apply(params, images).sum())(ours.params)
    assert all(np.abs(leaf).max() > 0 for leaf in gradient.values())


def test_weights_given_as_constants_are_parameters_too(tmp_path):
    made = files.mlp()
    kept = [tensor for tensor in made.graph.initializer if tensor.name != "w1"]
    (moved,) = [tensor for tensor in made.graph.initializer if tensor.name == "w1"]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    made.graph.node.insert(0, helper.make_node("Constant", [], ["w1"], value=moved))
    assert set(assert_as_onnxruntime(made, normal((4, 6)), tmp_path).params) == {"w1", "b1", "w2", "b2"}


def test_a_shape_as_pytorch_exports_expand(tmp_path):
    """-1 stands for a size that stays: ConstantOfShape, Mul, Equal and Where put 1 in its place."""
    nodes = [
        helper.make_node("ConstantOfShape", ["rank"], ["ones"], value=numpy_helper.from_array(integers(1))),
        helper.make_node("Mul", ["ones", "minus"], ["negative"]),
        helper.make_node("Equal", ["wanted", "negative"], ["free"]),
        helper.make_node("Where", ["free", "ones", "wanted"], ["sizes"]),
        helper.make_node("Expand", ["images", "sizes"], ["wide"]),
        helper.make_node("Shape", ["wide"], ["all"], start=1),
        helper.make_node("Slice", ["all", "first", "second"], ["length"]),
        helper.make_node("Cast", ["length"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["wide", "number"], ["out"]),
    ]
    known = {"rank": integers(3), "minus": integers(-1), "wanted": integers(-1, 5, 2), "first": integers(0)}
    model = classifier(nodes, {**known, "second": integers(1)}, (3, 1, 2), 17)
    assert_as_onnxruntime(model, normal((3, 1, 2)), tmp_path)


@pytest.mark.parametrize("values", [(7, 2), (-7, 2), (7, -2), (-7, -2), (-8, 2)])
def test_integers_are_divided_towards_zero(values, tmp_path):
    nodes = [
        helper.make_node("Div", ["a", "b"], ["c"]),
        helper.make_node("Cast", ["c"], ["d"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["images", "d"], ["out"]),
    ]
    model = classifier(nodes, {"a": integers(values[0]), "b": integers(values[1])}, WIDE, 17)
    assert_as_onnxruntime(model, normal(WIDE), tmp_path)


def test_an_open_batch_takes_any_number_and_a_fixed_one_its_multiples(tmp_path):
    whole = load_onnx(saved(files.convnet(), tmp_path))
    images = normal((6, 1, 8, 8))
    logits = np.asarray(whole.apply(whole.params, images))
    for n in (1, 5):
        np.testing.assert_allclose(whole.apply(whole.params, images[:n]), logits[:n], rtol=1e-5, atol=1e-5)
    fixed = files.convnet()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    fixed.graph.node[-2].CopyFrom(helper.make_node("Reshape", ["d", "shape"], ["e"]))
    fixed.graph.initializer.append(numpy_helper.from_array(integers(2, 16), "shape"))
    ours = load_onnx(saved(fixed, tmp_path))
    np.testing.assert_allclose(ours.apply(ours.params, images), logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(ModelError, match="2 images at a time; 5 is no multiple"):
        ours.apply(ours.params, images[:5])


def test_images_may_come_with_channels_last(tmp_path):
    path = saved(files.residual(), tmp_path)
    declared, last = load_onnx(path), load_onnx(path, layout="nhwc")
    images = normal((2, 2, 5, 5))
    found = last.apply(last.params, images.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(found, declared.apply(declared.params, images))
    wide = load_onnx(saved(files.convnet(), tmp_path), layout="nhwc")
    assert wide.shape == (8, 8, 1)
    with pytest.raises(ModelError, match="wants 4 dimensions"):
        load_onnx(saved(files.mlp(), tmp_path), layout="nhwc")


def test_open_dimensions_can_be_given(tmp_path):
    model = files.convnet()
    for dim in model.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_param = "open"
    path = saved(model, tmp_path)
    unknown, known = load_onnx(path), load_onnx(path, shape=(1, 8, 8))
    assert (unknown.shape, unknown.classes) == ((None, None, None), None)
    assert (known.shape, known.classes) == ((1, 8, 8), 3)
    images = normal((2, 1, 8, 8))
    np.testing.assert_array_equal(unknown.apply(unknown.params, images), known.apply(known.params, images))
    with pytest.raises(ModelError, match="Gemm"):
        load_onnx(path, shape=(1, 9, 16))
    with pytest.raises(ModelError, match=re.escape("takes float32 images [n, 1, 8, 8]")):
        known.apply(known.params, normal((2, 1, 8, 9)))


def assert_contains(model, box, ball, count):
    """Bounds contain the outputs at random points and corners of a ball."""
    rng = np.random.default_rng(0)
    points = rng.uniform(ball.lower, ball.upper, (count, *ball.shape)).astype(np.float32)
    corners = np.where(rng.integers(2, size=points.shape), ball.upper, ball.lower)
    apply = jax.jit(jax.vmap(lambda x: model.apply(model.params, x)))
    found = np.asarray(apply(np.concatenate([points, corners])))
    slack = 1e-4 * np.maximum(1, np.abs(found).max())
    assert np.isfinite(found).all()
    assert (np.asarray(box.lower) <= found.min(0) + slack).all()
    assert (np.asarray(box.upper) >= found.max(0) - slack).all()


@pytest.mark.parametrize(("make", "shape"), files.SEEDS, ids=lambda value: getattr(value, "__name__", ""))
def test_bounds_of_networks_contain_what_they_compute(make, shape, tmp_path):
    model = load_onnx(saved(make(), tmp_path))
    images = normal((2, *shape[1:]), 1)

    @jax.jit
    def boxes(ball):
        return [method(lambda x: model.apply(model.params, x))(ball) for method in (mt.ibp, mt.crown)]

    for eps in (0.01, 0.3):
        ball = mt.linf_ball(images, eps)
        box, tighter = boxes(ball)
        assert_contains(model, box, ball, 50)
        assert_contains(model, tighter, ball, 50)
        assert np.mean(tighter.upper - tighter.lower) < np.mean(box.upper - box.lower)


def test_bounds_are_those_of_the_same_network_written_in_jax(tmp_path):
    model = load_onnx(saved(files.mlp(), tmp_path))
    ball = mt.linf_ball(normal((2, 6), 1), 0.1)

    def written(x):
        p = model.params
        return jax.nn.relu(x @ p["w1"] + p["b1"][None]) @ p["w2"] + p["b2"][None]

    found, expected = mt.crown(lambda x: model.apply(model.params, x))(ball), mt.crown(written)(ball)
    np.testing.assert_allclose(found.lower, expected.lower, rtol=1e-5)
    np.testing.assert_allclose(found.upper, expected.upper, rtol=1e-5)


def test_margins_and_attacks_of_an_imported_network(key, tmp_path):
    model = load_onnx(saved(files.mlp(), tmp_path))
    images = jnp.asarray(normal((2, 6), 1))
    labels = jnp.argmax(model.apply(model.params, images), -1)
    ball = mt.linf_ball(images, 0.02)

    def logits_fn(x):
        return model.apply(model.params, x)

    def margin(points):
        logits = np.array(logits_fn(points))
        own = logits[np.arange(2), labels]
        logits[np.arange(2), labels] = -np.inf
        return own - logits.max(-1)

    proved = np.asarray(mt.margins(mt.crown, logits_fn)(ball, labels).min(-1))
    attacked = margin(pgd(key, logits_fn, images, labels, ball, steps=5, restarts=1))
    assert (proved <= attacked + 1e-4).all()
    assert (attacked < margin(images) - 1e-3).all()


@pytest.mark.parametrize("name", {case.op: name for name, case in reversed(CASES.items())}.values())
def test_every_operator_has_bounds(name, tmp_path):
    """Nothing is computed: an operation without a rule is an error as soon as the function is traced."""
    case = CASES[name]
    ours = load_onnx(saved(case.model(case.last), tmp_path))
    ball = mt.linf_ball(case.images(), 0.05)
    box = jax.eval_shape(mt.crown_ibp(lambda x: ours.apply(ours.params, x)), ball)
    assert box.lower.shape == (len(case.images()), ours.classes)


BOUNDED = (
    *("PRelu channels", "Gelu", "HardSwish", "BatchNormalization", "AveragePool", "Gemm all", "Where of images"),
    *("Round", "Equal", "Xor", "Shrink bias", "Mod", "TopK", "CumSum back before", "ScatterND of images", "RNN relu"),
    *("ReduceProd 0", "Resize sizes", "GroupNormalization", "LRN", "MatMul itself", "Cast bool", "LpPool 3"),
    *("LSTM both", "GRU before"),
)


@pytest.mark.parametrize("name", BOUNDED)
def test_bounds_of_operators_contain_what_they_compute(name, tmp_path):
    case = CASES[name]
    ours = load_onnx(saved(case.model(case.last), tmp_path))
    ball = mt.linf_ball(case.images(), 0.3 if case.op != "LpPool" else 0.05)
    method = mt.ibp if case.op in ("LSTM", "GRU") else mt.crown_ibp  # in a tenth of the time
    assert_contains(ours, jax.jit(method(lambda x: ours.apply(ours.params, x)))(ball), ball, 20)


def test_the_page_of_operators_is_up_to_date():
    page = Path(__file__).parents[1] / "docs" / "onnx-operators.md"
    assert page.read_text() == onnx_operators.page(), "python benchmarks/onnx_operators.py > docs/onnx-operators.md"


WILD = {
    **{op: [{"alpha": a} for a in (0.0, -1.0, -2.5, 1.75, 1e8, 1e-30, -1e30)] for op in ("Elu", "LeakyRelu", "Selu")},
    "Celu": [{"alpha": a} for a in (-1.0, -2.5, 1.75, 1e8, 1e-30)],
    "HardSigmoid": [{"alpha": a, "beta": b} for a, b in ((-1.0, 0.5), (0.0, 2.0), (1e8, -1e8), (1e-30, 1e30))],
}


@pytest.mark.parametrize("op", WILD)
def test_bounds_hold_whatever_the_attributes(op, tmp_path):
    images = normal((500, 6)) * np.array([0.1, 0.3, 1, 3, 10, 30], np.float32)
    box = mt.Interval(jnp.asarray(images.min(0)), jnp.asarray(images.max(0)))
    for attributes in WILD[op]:
        node = helper.make_node(op, ["images"], ["out"], **attributes)
        model = load_onnx(saved(classifier([node], {}, (1, 6), 17), tmp_path))
        logits = np.asarray(model.apply(model.params, images))
        known = np.isfinite(logits)
        for method in (mt.ibp, mt.crown):
            bound = method(lambda x, model=model: model.apply(model.params, x[None])[0], sound=True)
            out = jax.vmap(bound)(jax.tree.map(lambda x: x[None], box))  # one of NaN is no error there
            outside = (logits < np.asarray(out.lower)) | (logits > np.asarray(out.upper))
            assert not np.any(known & outside), (method.__name__, attributes)  # NaN certifies nothing


# What is refused.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("op", ["Elu", "Celu", "LeakyRelu", "Selu", "HardSigmoid"])
def test_attributes_that_are_not_finite_are_refused(op, value, tmp_path):
    model = classifier([helper.make_node(op, ["images"], ["out"], alpha=value)], {}, WIDE, 17)
    refused(model, tmp_path, "the attribute 'alpha' must be finite, got")


def test_a_division_by_an_alpha_of_zero_is_refused(tmp_path):
    model = classifier([helper.make_node("Celu", ["images"], ["out"], alpha=0.0)], {}, WIDE, 17)
    refused(model, tmp_path, "alpha must not be 0")


def refused(model, tmp_path, match, **options):
    with pytest.raises(ModelError, match=match):
        load_onnx(saved(model, tmp_path), **options)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ModelError, match="No such file"):
        load_onnx(tmp_path / "nothing.onnx")
    with pytest.raises(ModelError, match="not a regular file"):
        load_onnx(tmp_path)
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ModelError, match="not a regular file"):
        load_onnx(tmp_path / "pipe.onnx")
    refused(b"", tmp_path, "opset")
    refused(b"PK\x03\x04 something else", tmp_path, "damaged or no ONNX file")
    refused(b"\x80\x04K\x01.", tmp_path, "damaged or no ONNX file")  # a pickle
    refused(files.mlp(), tmp_path, "max_bytes allows 100", max_bytes=100)


def test_graphs_that_are_no_networks(tmp_path):
    model = files.mlp()
    model.graph.node[0].domain = "com.example"
    model.graph.node[0].name = "odd"
    refused(model, tmp_path, r"node 0 \(MatMul 'odd'\) is of the operator domain 'com.example'")
    model = files.mlp()
    model.graph.node[2].op_type = "Loop"
    refused(model, tmp_path, r"node 2 \(Loop\): this operator is not supported")
    model = files.mlp()
    model.graph.node[0].input[0] = "d"
    refused(model, tmp_path, "node 0.* wants 'd'.*cycle")
    model = files.mlp()
    model.graph.node[1].input[1] = "nowhere"
    refused(model, tmp_path, "wants 'nowhere'.*dangles")
    model = files.mlp()
    model.graph.node[1].output[0] = "a"
    refused(model, tmp_path, "makes 'a', which exists already")
    model = files.mlp()
    model.graph.output[0].name = "nothing"
    refused(model, tmp_path, "nothing makes the output")
    model = files.mlp()
    model.graph.output.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, None))
    refused(model, tmp_path, "output=NAME")
    model = files.mlp()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    refused(model, tmp_path, "32-bit floats")
    refused(
        files.graph([helper.make_node("Relu", ["w"], ["logits"])], {"w": normal(3)}, ["n", 3]),
        tmp_path,
        "does not depend on any input",
    )


def test_nodes_that_their_schema_does_not_know(tmp_path):
    model = files.convnet()
    model.graph.node[0].attribute.append(helper.make_attribute("stride", [1, 1]))
    refused(model, tmp_path, "attribute 'stride', which is unknown")
    model = files.convnet()
    model.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("kernel_shape", "3"))
    refused(model, tmp_path, "wrong type")
    model = files.convnet()
    del model.graph.node[0].input[1:]
    refused(model, tmp_path, "has 1 inputs, expected 2 to 3")
    model = files.convnet()
    model.graph.node[3].output.append("indices")
    assert load_onnx(saved(model, tmp_path)).classes == 3  # nothing needs them
    model.graph.node.insert(4, helper.make_node("Cast", ["indices"], ["floats"], to=1))
    model.graph.node[5].input[0] = "floats"
    refused(model, tmp_path, r"'indices'\]; only the first 1 are supported")
    model = files.mlp()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((6, 8)), "w1"))
    refused(model, tmp_path, r"cannot take an input of type tensor\(double\)")
    model = files.mlp()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(normal((7, 8)), "w1"))
    refused(model, tmp_path, r"node 0 \(MatMul\) cannot take inputs of shapes \[\[3, 6\], \[7, 8\]\]")


def test_weights_that_are_not_what_they_say(tmp_path):
    for dims, match in (([6, 9], "needs 216"), ([-6, -8], "not supported"), ([2**40, 2**40], "needs")):
        model = files.mlp()
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)
        refused(model, tmp_path, match)
    model = files.mlp()
    model.graph.initializer[0].data_type = TensorProto.STRING
    refused(model, tmp_path, "only float, double, int32, int64, bool")
    model = files.mlp()
    model.graph.initializer[0].float_data.extend([1.0] * 48)
    refused(model, tmp_path, "more than one place")


def bomb(op, weights, inputs=("sizes",)):
    nodes = [helper.make_node(op, list(inputs), ["big"])]
    if "images" not in inputs:
        nodes += [
            helper.make_node("ReduceSum", ["big"], ["s"], keepdims=0),
            helper.make_node("Add", ["images", "s"], ["out"]),
        ]
    else:
        nodes += [helper.make_node("Identity", ["big"], ["out"])]
    return classifier(nodes, weights, WIDE, 17)


@pytest.mark.parametrize(
    "model",
    [
        bomb("ConstantOfShape", {"sizes": integers(2**20, 2**20)}),
        bomb("ConstantOfShape", {"sizes": integers(2**62, 2**62)}),
        bomb("Expand", {"sizes": integers(2**16, 2**16, 1), "one": integers(1)}, ("one", "sizes")),
        bomb("Expand", {"sizes": integers(2**16, 2**16, 1, 1)}, ("images", "sizes")),
        bomb("Pad", {"sizes": integers(0, 2**40, 0, 0)}, ("images", "sizes")),
        bomb("Add", {"a": np.zeros((2**12, 1), np.int64), "b": np.zeros((1, 2**12), np.int64)}, ("a", "b")),
        bomb("Gather", {"a": np.zeros((1, 2**12), np.int64), "b": np.zeros(2**12, np.int64)}, ("a", "b")),
        bomb("Tile", {"a": integers(1, 2), "b": integers(2**40)}, ("a", "b")),
        bomb("Tile", {"b": integers(1, 2**40)}, ("images", "b")),
        bomb("Range", {"a": np.array(0), "b": np.array(2**62), "c": np.array(1)}, ("a", "b", "c")),
        bomb("OneHot", {"a": integers(1), "b": np.array(2**40), "c": integers(0, 1)}, ("a", "b", "c")),
        bomb("Resize", {"b": integers(3, 2**40)}, ("images", "", "", "b")),
        bomb("Resize", {"b": np.array([1, 1e30], np.float32)}, ("images", "", "b")),
        bomb("EyeLike", {"a": np.zeros((2**11, 2**11), np.int64)}, ("a",)),
    ],
    ids=range(14),
)
def test_a_few_bytes_cannot_ask_for_much_memory(model, tmp_path):
    refused(model, tmp_path, r"constant of shape|too large|cannot take inputs|too many|not understood|makes floats")


def test_values_that_double_with_every_node_are_refused(tmp_path):
    nodes = [helper.make_node("Concat", ["c0", "c0"], ["c1"], axis=0)]
    nodes += [helper.make_node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(1, 40)]
    nodes += [helper.make_node("ReduceSum", ["c40"], ["s"], keepdims=0), helper.make_node("Cast", ["s"], ["t"], to=1)]
    nodes += [helper.make_node("Add", ["images", "t"], ["out"])]
    refused(classifier(nodes, {"c0": integers(1, 2)}, WIDE, 17), tmp_path, "constant of shape")
    nodes = [helper.make_node("Concat", ["images", "images"], ["c1"], axis=1)]
    nodes += [helper.make_node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=1) for i in range(1, 40)]
    nodes += [helper.make_node("Identity", ["c40"], ["out"])]
    refused(classifier(nodes, {}, WIDE, 17), tmp_path, "too large, refused")


def test_many_fields_and_many_nodes_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "MAX_FIELDS", 5000)
    empty_nodes = b"\x0a\x00" * 5001
    refused(
        b"\x3a" + bytes([len(empty_nodes) & 127 | 128, len(empty_nodes) >> 7 & 127]) + empty_nodes, tmp_path, "fields"
    )
    monkeypatch.setattr(onnx_graph, "MAX_NODES", 3)
    refused(files.mlp(), tmp_path, "has 5 nodes; at most 3")


def external(location, **entries):
    model = files.mlp()
    tensor = model.graph.initializer[0]
    values = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return model, values


def test_weights_beside_the_file(tmp_path):
    folder = tmp_path / "inside"
    (folder / "deeper").mkdir(parents=True)
    model, values = external("deeper/weights", offset=4, length=192)
    (folder / "deeper" / "weights").write_bytes(b"1234" + values)
    ours, whole = load_onnx(saved(model, folder)), load_onnx(saved(files.mlp(), tmp_path))
    np.testing.assert_array_equal(ours.params["w1"], whole.params["w1"])
    refused(external("deeper/weights", offset=8, length=192)[0], folder, "wants bytes 8 to 200")
    refused(external("deeper/weights", offset=-4)[0], folder, "wants bytes")
    refused(external("deeper/weights", offset="x")[0], folder, "cannot find")
    refused(external("deeper/weights", length=190)[0], folder, "has 190 bytes of external data")
    refused(external("nothing")[0], folder, "cannot find")
    refused(external("")[0], folder, "outside the folder")
    refused(external("deeper")[0], folder, "Cannot read|not a regular file")


def test_weights_outside_the_folder_are_refused(tmp_path):
    folder = tmp_path / "inside"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(192))
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "up").symlink_to(tmp_path)
    for location in ("../secret", str(tmp_path / "secret"), "link", "up/secret", "x/../../secret", "/dev/zero"):
        refused(external(location)[0], folder, "outside the folder|cannot find")
    refused(external("loop")[0], folder, "cannot find")
    os.mkfifo(folder / "pipe")
    refused(external("pipe")[0], folder, "not a regular file")


def test_the_package_onnx_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    with pytest.raises(ModelError, match=r"pip install mixtrain_jax\[onnx\]"):
        load_onnx(path)


def test_every_supported_operator_is_one_of_onnx_and_is_tested():
    tested = {case.op for case in CASES.values()}
    assert tested == onnx_model._SUPPORTED
    assert all(onnx.defs.has(op) for op in tested)


@pytest.mark.parametrize(("make", "shape"), files.SEEDS, ids=lambda value: getattr(value, "__name__", ""))
def test_damaged_files_are_refused_or_computed_as_they_stand(make, shape, tmp_path):
    rng, whole = np.random.default_rng(1), make().SerializeToString()
    found = [files.judge(files.damaged(whole, rng), tmp_path, shape) for _ in range(130)]
    assert set(found) <= {"same", "refused", "refused by ONNX Runtime alone"}
    assert found.count("same") > 10
    assert found.count("refused") > 50
