"""Reparametrisations: what every one of them is, and networks trained, certified and loaded through them."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

import mixtrain_jax as mt
from mixtrain_jax import data, models
from mixtrain_jax.config import of_flags
from mixtrain_jax.errors import ConfigError
from mixtrain_jax.reparam import REPARAMS, Kronecker, Mask, Plain, wrapped
from mixtrain_jax.report.display import Display
from mixtrain_jax.training.run import run

NETWORK = models.build("mlp", classes=10, width=24)
PREDICTOR = models.single(NETWORK)
IMAGES = np.random.default_rng(0).uniform(size=(5, 8, 8, 1)).astype(np.float32)
each = pytest.mark.parametrize("reparam", REPARAMS.members.values(), ids=REPARAMS.members)


@pytest.fixture(autouse=True)
def promoting():
    with jax.numpy_dtype_promotion("standard"):  # which optax wants
        yield


@pytest.fixture(scope="module")
def params():
    return NETWORK.init(jax.random.key(0), IMAGES)


def numbers(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@each
def test_realised_parameters_are_those_of_the_network(reparam, params):
    realised = jax.jit(lambda params: reparam.realise(reparam.init(params)))(params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), realised) == jax.tree.map(lambda x: (x.shape, x.dtype), params)
    logits = wrapped(reparam, PREDICTOR).apply(reparam.init(params), IMAGES)
    np.testing.assert_allclose(logits, NETWORK.apply(realised, IMAGES), rtol=1e-4, atol=1e-5)


@each
def test_training_descends_and_the_structure_stays(reparam, params):
    apply, theta, tx = wrapped(reparam, PREDICTOR).apply, reparam.init(params), optax.adamw(0.05, weight_decay=0.1)

    @jax.jit
    def step(theta, state):
        def loss(theta):
            return optax.softmax_cross_entropy_with_integer_labels(apply(theta, IMAGES), jnp.arange(5)).mean()

        value, gradient = jax.value_and_grad(loss)(theta)
        updates, state = tx.update(gradient, state, theta)
        return optax.apply_updates(theta, updates), state, value

    state, losses, start = tx.init(theta), [], theta
    for _ in range(40):
        theta, state, value = step(theta, state)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
    if isinstance(reparam, Mask):
        same = jax.tree.map(lambda a, b: bool(((a == 0) == (b == 0)).all()) if a.ndim > 1 else True, start, theta)
        assert all(jax.tree.leaves(same))


def test_the_plain_one_is_the_network_itself(params):
    assert wrapped(Plain(), PREDICTOR) is PREDICTOR
    assert Plain().init(params) is params


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 1.0])
def test_a_mask_keeps_the_largest_share_of_the_weights_and_all_biases(keep, params):
    theta = Mask(keep).init(params)
    before, after = ([np.asarray(leaf) for leaf in jax.tree.leaves(tree)] for tree in (params, theta))
    weights, kept = (np.concatenate([x.ravel() for x in leaves if x.ndim > 1]) for leaves in (before, after))
    assert (kept != 0).sum() == round(keep * weights.size)
    np.testing.assert_array_equal(kept[kept != 0], weights[kept != 0])
    if 0 < keep < 1:
        assert np.abs(weights[kept != 0]).min() > np.abs(weights[kept == 0]).max()
    for a, b in zip(before, after, strict=True):
        if a.ndim == 1:
            np.testing.assert_array_equal(a, b)


def test_factors_are_the_nearest_sum_of_products():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(12, 20)).astype(np.float32)
    rearranged = matrix.reshape(3, 4, 4, 5).transpose(0, 2, 1, 3).reshape(12, 20)
    sizes = np.linalg.svd(rearranged.astype(np.float64), compute_uv=False)
    for terms in (1, 2, 5):
        found = Kronecker(terms).realise({"w": Kronecker(terms)._factors(jnp.asarray(matrix))})["w"]
        np.testing.assert_allclose(np.linalg.norm(found - matrix), np.linalg.norm(sizes[terms:]), rtol=1e-4)
    product = np.kron(rng.normal(size=(3, 4)), rng.normal(size=(4, 5))).astype(np.float32)
    found = Kronecker(1).realise(Kronecker(1).init({"w": jnp.asarray(product)}))["w"]
    np.testing.assert_allclose(found, product, rtol=1e-3, atol=1e-4)


def test_factors_are_fewer_numbers_and_convolutions_stay(params):
    theta = Kronecker().init(params)
    assert numbers(theta) < 0.2 * numbers(params)
    kernel = {"kernel": jnp.ones((3, 3, 4, 8)), "dense": jnp.ones((16, 16)), "bias": jnp.ones(4)}
    theta = Kronecker().init(kernel)
    assert theta["kernel"] is kernel["kernel"]
    assert numbers(theta["dense"]) == 32


@pytest.mark.parametrize(
    "params", [{"w": jnp.ones((7, 5))}, {"b": jnp.ones(4)}, {"w": jnp.ones((2, 2))}], ids=["primes", "none", "tiny"]
)
def test_a_network_that_cannot_be_factored_is_refused(params):
    with pytest.raises(ConfigError, match=r"makes no matrix of this network smaller .* Choose fewer terms"):
        Kronecker(4).init(params)


@pytest.mark.parametrize("name", ["mask", "kronecker"])
def test_a_run_is_certified_and_loaded_with_its_realised_parameters(name, tmp_path):
    values = {"reparam.name": name, "model.width": 16, "training.epochs": 3, "data.holdout": 97, "training.points": 2}
    values |= {"certify.bounds": ("ibp",), "certify.attack_steps": 2, "certify.curve_examples": 0, "threat.eps": 0.02}
    summary = run(of_flags(values), tmp_path, Display(Console(file=io.StringIO(), width=200)))
    assert summary["verified_accuracy"] <= summary["attacked_accuracy"] <= summary["clean_accuracy"]
    loaded = mt.load_run(tmp_path)
    kernels = [leaf for leaf in jax.tree.leaves(loaded.params) if leaf.ndim == 2]
    assert [kernel.shape for kernel in kernels] == [(64, 16), (16, 10)]
    if name == "mask":
        assert sum(int((kernel != 0).sum()) for kernel in kernels) == round(0.1 * (64 * 16 + 160))
    assert json.loads((tmp_path / "config.json").read_text())["reparam"]["name"] == name
    test = data.load("digits").test.floats()
    right = np.asarray(loaded.apply(loaded.params, jnp.asarray(test.images))).argmax(-1) == test.labels
    np.testing.assert_allclose(right.mean(), summary["clean_accuracy"], atol=0.003)
