import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from mixtrain_jax import models

MNIST, CIFAR, IMAGENET = (28, 28, 1), (32, 32, 3), (64, 64, 3)
# Name, image, classes, parameters, ReLUs: the paper's table.
PAPER = [
    ("small", MNIST, 10, 166_406, 4_804),
    ("large", MNIST, 10, 1_974_762, 48_064),
    ("small", CIFAR, 10, 214_918, 6_244),
    ("large", CIFAR, 10, 2_466_858, 62_464),
    ("resnet", CIFAR, 10, 4_214_850, 107_496),
    ("resnet_mixtrain", CIFAR, 10, 1_145_410, 39_912),
    ("resnet_imagenet", IMAGENET, 200, 739_720, 39_424),
]


@functools.cache
def initialized(name, shape, classes, seed=0, **options):
    network = models.build(name, classes=classes, **options)
    return network, jax.jit(network.init)(jax.random.key(seed), jnp.zeros((1, *shape)))


def relus(jaxpr):
    """Elements of all ReLUs that a traced function computes."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.params.get("name") == "relu":
            count += equation.outvars[0].aval.size
        else:
            count += sum(relus(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params))
    return count


@pytest.mark.parametrize(("name", "shape", "classes", "parameters", "units"), PAPER)
def test_networks_have_the_papers_parameters_and_relus(name, shape, classes, parameters, units):
    network = models.build(name, classes=classes)
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters
    traced = jax.make_jaxpr(network.apply)(params, jnp.zeros((1, *shape)))
    assert relus(traced.jaxpr) == units
    assert traced.out_avals[0].shape == (1, classes)


@pytest.mark.parametrize(("name", "shape", "classes"), [PAPER[i][:3] for i in (0, 5, 6)])
def test_first_weights_are_the_papers(name, shape, classes):
    _, params = initialized(name, shape, classes)
    last = f"Dense_{sum('Dense' in key for key in params['params']) - 1}"
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        layer, kind = path[-2].key, path[-1].key
        leaf = np.asarray(leaf)
        if layer.startswith("Conv") and kind == "bias":
            assert not leaf.any()
        elif layer.startswith("Conv"):
            expected = (2 / (leaf.shape[0] * leaf.shape[1] * leaf.shape[3])) ** 0.5
            assert abs(leaf.mean()) < 4 * expected / leaf.size**0.5
            np.testing.assert_allclose(leaf.std(), expected, rtol=4 / (2 * leaf.size) ** 0.5)
        elif kind == "kernel":
            limit = leaf.shape[0] ** -0.5 * (0.1 if classes == 200 and layer == last else 1)
            assert np.abs(leaf).max() <= limit
            np.testing.assert_allclose(leaf.std(), limit / 3**0.5, rtol=4 / (2 * leaf.size) ** 0.5)
        else:
            assert 0 < np.abs(leaf).max() <= params["params"][layer]["kernel"].shape[0] ** -0.5


def test_first_weights_follow_the_key():
    _, one = initialized("small", MNIST, 10)
    _, other = initialized("small", MNIST, 10, seed=1)
    same = jax.tree.map(lambda a, b: bool((a == b).all() and a.any()), one, other)
    assert not any(jax.tree.leaves(same))


@pytest.mark.parametrize("name", [name for name in models.MODELS if name != "resnet_imagenet"])
def test_width_is_that_of_the_hidden_layers(name):
    network = models.build(name, classes=10, width=7)
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *MNIST)))
    dense = [value["kernel"].shape for key, value in params["params"].items() if "Dense" in key]
    assert dense[-1] == (7, 10)
    assert all(shape[1] == 7 for shape in dense[:-1])


def test_normalization_is_part_of_the_network(key):
    mean, std = (0.5, 0.25, 0.125), (0.25, 0.5, 2.0)
    network, params = initialized("small", CIFAR, 10, normalization=(mean, std))
    images = jax.random.uniform(key, (2, *CIFAR))
    inside = models.build("small", classes=10)
    whitened = (np.asarray(images) - np.float32(mean)) / np.float32(std)
    expected = inside.apply({"params": params["params"]["network"]}, whitened)
    np.testing.assert_allclose(network.apply(params, images), expected, rtol=1e-5, atol=1e-6)


def test_residual_blocks_add_what_they_are_told_to(key):
    """By hand: 1x1 or 2x2 convolution beside two others, no ReLU before the sum."""
    from mixtrain_jax.models.networks import Block

    for stride in (1, 2):
        block = Block(5, stride)
        x = jax.random.normal(key, (2, 8, 8, 3))
        params = jax.jit(block.init)(key, x)
        layers = params["params"]

        def conv(layer, x, stride, padding, layers=layers):
            w = layers[layer]["kernel"]
            return jax.lax.conv_general_dilated(
                x, w, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        inner = conv("Conv_1", jax.nn.relu(conv("Conv_0", x, stride, 1)), 1, 1)
        np.testing.assert_allclose(
            block.apply(params, x), jax.nn.relu(inner + conv("Conv_2", x, stride, 0)), rtol=1e-4, atol=1e-5
        )
