"""What cannot be certified, attacked or trained is refused at every door, with what to do."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
import small_networks as networks
from onnx import helper, numpy_helper

import mixtrain_jax as mt
from mixtrain_jax import certify, losses
from mixtrain_jax.bounds import BoundsError
from mixtrain_jax.certify import Threat, evaluate
from mixtrain_jax.data import Split
from mixtrain_jax.errors import CertificateError, ModelError

IMAGES = networks.images(0, 8)
THREAT = Threat(0.01)
IBP = certify.methods(["ibp"])
SHORT = {"attacks": {"PGD": functools.partial(mt.attacks.pgd, steps=2, restarts=1)}, "methods": IBP}
LINEAR = networks.linear(0, 9, 4)[2]
HONEST = networks.labelled(LINEAR, IMAGES)


def apply(params, x):
    return jnp.reshape(x, (len(x), -1)) @ params


def negated(params, x):
    """Looks at the size of the batch, which no operation of its jaxpr shows."""
    return -apply(params, x) if len(x) > 1 else apply(params, x)


def shifted(params, x):
    return apply(params, x - x.mean(0, keepdims=True))


def noisy(params, x):
    return apply(params, x + 0.1 * jax.random.normal(jax.random.key(0), x.shape))


PARAMS = jnp.asarray(np.random.default_rng(1).normal(size=(9, 4)), jnp.float32)


@pytest.mark.parametrize("network", [negated, shifted, noisy])
def test_a_network_that_mixes_the_batch_is_neither_judged_nor_certified(network):
    with pytest.raises(BoundsError, match="mixes the images of a batch"):
        certify.judge(network, PARAMS, HONEST, THREAT, batch_size=4, **SHORT)
    split = networks.labelled(functools.partial(apply, PARAMS), IMAGES)
    found = evaluate(jax.random.key(0), functools.partial(apply, PARAMS), split, THREAT, batch_size=4, **SHORT)
    certificates = certify.certificates_of(found, apply, PARAMS, split)
    assert certify.verify(certificates, apply, PARAMS, split, THREAT).accepted.all()
    with pytest.raises(CertificateError, match=r"mixes the images of a batch|does not know the primitive"):
        certify.verify(certificates, network, PARAMS, split, THREAT)


def test_a_batch_size_that_alone_misbehaves_is_found():
    def network(x):
        return -LINEAR(x) if len(x) == 7 else LINEAR(x)

    with pytest.raises(BoundsError, match="in a batch of 7"):
        evaluate(jax.random.key(0), network, HONEST, THREAT, batch_size=7, **SHORT)


def test_attacks_alone_may_measure_a_network_with_noise():
    found = certify.judge(noisy, PARAMS, HONEST, THREAT, batch_size=4, **{**SHORT, "methods": {}})
    assert any(warning.startswith("randomised") for warning in found.warnings)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2, 3, 4, 1, 2, 3, 4], "between 0 and 3, got 4. They look 1-based: subtract 1"),
        ([0, 1, 2, 3, 0, 1, 2, -1], "between 0 and 3, got -1"),
        ([0, 1, 2, 3, 0, 1, 2, 99], "between 0 and 3, got 99"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, message):
    labels, message = np.array(labels, np.int32), re.escape(message)
    split = Split(IMAGES, labels)
    with pytest.raises(BoundsError, match=message):
        certify.judge(apply, PARAMS, split, THREAT, **SHORT)
    with pytest.raises(BoundsError, match=message):
        mt.margins(mt.ibp, LINEAR)(mt.linf_ball(jnp.asarray(IMAGES), 0.1), labels)
    certificates = certify.Certificates(
        certify.Header("0" * 64, "0" * 64, "linf", (0.0, 1.0), IMAGES.shape[1:], len(split), {}), ()
    )
    with pytest.raises(CertificateError, match=message):
        certify.verify(certificates, apply, PARAMS, split, THREAT)


def one_logit(x):
    return LINEAR(x)[:, :1]


def refused_by(door):
    split = Split(IMAGES, np.zeros(8, np.int32))
    images, labels = jnp.asarray(IMAGES), jnp.zeros(8, jnp.int32)
    ball = mt.linf_ball(images, 0.1)
    doors = {
        "margins": lambda: mt.margins(mt.ibp, one_logit)(ball, labels),
        "margins of one": lambda: mt.margins(mt.ibp, lambda x: one_logit(x[None])[0])(ball_of_one(ball), 0),
        "evaluate": lambda: evaluate(jax.random.key(0), one_logit, split, THREAT, **SHORT),
        "judge": lambda: certify.judge(lambda _, x: one_logit(x), {}, split, THREAT, **SHORT),
        "attack": lambda: mt.attacks.pgd(jax.random.key(0), one_logit, images, labels, ball),
        "clean loss": lambda: losses.clean_loss(one_logit(images), labels),
        "robust loss": lambda: losses.robust_loss(jnp.zeros((8, 0))),
        "model": lambda: mt.foreign.from_object(one_logit, shape=IMAGES.shape[1:]),
    }
    return doors[door]


def ball_of_one(ball):
    return jax.tree.map(lambda leaf: leaf[0], ball)


@pytest.mark.parametrize(
    "door", ["margins", "margins of one", "evaluate", "judge", "attack", "clean loss", "robust loss", "model"]
)
def test_one_logit_is_refused_with_what_makes_two_of_it(door):
    with pytest.raises((BoundsError, ModelError), match=r"jnp.concatenate\(\[jnp.zeros_like\(z\), z\]"):
        refused_by(door)()


def test_logits_that_overflow_are_wrong_and_never_proved():
    def network(params, x):  # class 0 always, and infinite or NaN for bright first pixels
        pixel = jnp.reshape(x, (len(x), -1))[:, :1]
        big = jnp.where(pixel > 0.5, params, 1.0) * 1e38
        return jnp.concatenate([big * (1 + pixel), -big * 0, -big * 0], -1)

    images = np.full((6, 3, 3, 1), 0.1, np.float32)
    images[3:, 0, 0] = 0.9
    split = Split(images, np.zeros(6, np.int32))
    found = certify.judge(network, jnp.float32(100.0), split, THREAT, **SHORT)
    np.testing.assert_array_equal(found.evaluation.predictions, [0, 0, 0, -1, -1, -1])
    np.testing.assert_array_equal(found.evaluation.clean, [True] * 3 + [False] * 3)
    assert not found.evaluation.verified[3:].any()
    assert any("3 of the 6 images" in warning and "NaN or infinite" in warning for warning in found.warnings)


def test_a_bound_that_overflows_proves_nothing():
    def network(x):  # finite at the images, infinite on most of the ball
        return jnp.stack([jnp.exp(1000 * jnp.reshape(x, (len(x), -1))[:, 0]), jnp.zeros(len(x))], -1)

    split = Split(np.full((2, 3, 3, 1), 0.05, np.float32), np.zeros(2, np.int32))
    found = evaluate(jax.random.key(0), network, split, Threat(0.5), **{**SHORT, "attacks": {}})
    assert found.clean.all()
    assert not found.verified.any()


def test_parameters_that_are_nan_are_refused_by_name():
    params = {"dense": {"w": PARAMS.at[0, 0].set(jnp.nan), "b": jnp.zeros(4)}}
    with pytest.raises(BoundsError, match=r"dense.*w.* has 1 NaN"):
        certify.judge(lambda p, x: apply(p["dense"]["w"], x), params, HONEST, THREAT, **SHORT)


@pytest.mark.parametrize(("norm", "eps", "warned"), [("linf", 8, True), ("linf", 0.5, False), ("l2", 8, True)])
def test_a_radius_beyond_the_domain_is_named(norm, eps, warned):
    found = certify.judge(apply, PARAMS, HONEST, Threat(eps, norm=norm), **{**SHORT, "methods": {}})
    assert any("8 / 255" in warning for warning in found.warnings) is warned


def onnx_file(tmp_path, batch, *nodes):
    """An ONNX file of a linear layer of 4 classes with further nodes on its logits."""
    shapes = [batch, 9], [batch, 4]
    given, made = (helper.make_tensor_value_info(n, 1, s) for n, s in zip(("x", "out"), shapes, strict=True))
    constants = {"w": np.asarray(PARAMS), "one": np.ones(4, np.float32), "zero": np.zeros(1, np.int64)}
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    weights.append(numpy_helper.from_array(np.array([-1, 4]), "rows"))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["z"]), *nodes], "net", [given], [made], weights)
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


NORM = {"training_mode": 1, "epsilon": 1e-5}
ONNX = {
    "softmax": [("Softmax", ["z"], ["out"], {"axis": 0})],
    "sum": [("ReduceSum", ["z", "zero"], ["s"], {"keepdims": 1}), ("Sub", ["z", "s"], ["out"], {})],
    "transpose": [("Transpose", ["z"], ["t"], {}), ("Reshape", ["t", "rows"], ["out"], {})],
    "batch norm": [("BatchNormalization", ["z", "one", "one", "one", "one"], ["out"], NORM)],
}


@pytest.mark.parametrize("batch", ["n", 4])
@pytest.mark.parametrize("name", ONNX)
def test_onnx_files_that_mix_the_batch_do_not_load(name, batch, tmp_path):
    nodes = [helper.make_node(op, inputs, outputs, **more) for op, inputs, outputs, more in ONNX[name]]
    with pytest.raises(ModelError, match="training" if name == "batch norm" else r"mixes the images.*node \d \("):
        mt.foreign.load_onnx(onnx_file(tmp_path, batch, *nodes))


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_onnx_files_that_do_not_are_loaded(batch, tmp_path):
    model = mt.foreign.load_onnx(onnx_file(tmp_path, batch, helper.make_node("Softmax", ["z"], ["out"], axis=1)))
    assert model.classes == 4


def test_a_model_that_looks_at_the_size_of_the_batch_does_not_load():
    with pytest.raises(ModelError, match=r"model is refused\. The network mixes"):
        mt.foreign.from_object((negated, PARAMS), shape=IMAGES.shape[1:])
    assert mt.foreign.from_object((apply, PARAMS), shape=IMAGES.shape[1:]).classes == 4
