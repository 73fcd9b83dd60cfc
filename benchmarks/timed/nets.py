"""The networks that are timed, as lists of layers that JAX and PyTorch can both make."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mixtrain_jax as mt

EPS = 0.01  # how long a bound takes does not depend on it
DOMAIN = (0.0, 1.0)  # of pixels
Params = Sequence[tuple[jax.Array, ...]]  # of a layer: weight, bias, weight, bias, ...; HWIO, and [in, out]


class Conv(NamedTuple):
    """A convolution and a ReLU."""

    channels: int
    kernel: int
    stride: int
    padding: int = 1


class Block(NamedTuple):
    """Two convolutions beside one that matches the shape, and a ReLU of their sum, as `models.Block` has it."""

    channels: int
    stride: int

    def convolutions(self) -> tuple[Conv, Conv, Conv]:
        """The first and the second of the long way, and the one of the short way."""
        first = Conv(self.channels, 3 if self.stride == 1 else 4, self.stride)
        return first, Conv(self.channels, 3, 1), Conv(self.channels, self.stride, self.stride, 0)


class Dense(NamedTuple):
    """A dense layer, with a ReLU unless it is the last."""

    units: int


class Net(NamedTuple):
    """A network, and how many examples it is timed with."""

    shape: tuple[int, int, int]  # height, width, channels
    layers: tuple[Conv | Block | Dense, ...]
    batch: int
    few: int  # for bounds that want far more memory and time: symbolic and CROWN

    def with_classes(self, classes: int) -> Net:
        """The same network with so many logits."""
        return self._replace(layers=(*self.layers[:-1], Dense(classes)))

    @property
    def classes(self) -> int:
        """Number of logits."""
        last = self.layers[-1]
        assert isinstance(last, Dense)
        return last.units


def _small(width: int) -> tuple[Conv | Dense, ...]:
    return Conv(16, 4, 2), Conv(32, 4, 2), Dense(width), Dense(10)


_LARGE = (Conv(32, 3, 1), Conv(32, 4, 2), Conv(64, 3, 1), Conv(64, 4, 2), Dense(512), Dense(512), Dense(10))
_CNN7 = (*(Conv(64, 3, 1),) * 2, Conv(128, 3, 2), *(Conv(128, 3, 1),) * 2, Dense(512), Dense(10))
NETS = {
    "digits_mlp": Net((8, 8, 1), (Dense(512), Dense(10)), 128, 10),
    "digits_cnn": Net((8, 8, 1), _small(100), 128, 10),
    "mnist_small": Net((28, 28, 1), _small(100), 128, 10),
    "cifar_small": Net((32, 32, 3), _small(100), 128, 10),
    "cifar_large": Net((32, 32, 3), _LARGE, 32, 1),
    "cnn7": Net((32, 32, 3), _CNN7, 16, 1),
    "cifar_resnet": Net(
        (32, 32, 3),
        (Conv(16, 3, 1), Block(16, 1), Block(16, 1), Block(32, 2), Block(64, 2), Dense(1000), Dense(10)),
        16,
        1,
    ),
    "imagenet200_resnet": Net(
        (64, 64, 3),
        (Conv(16, 7, 2, 3), Block(16, 2), Block(16, 1), Block(32, 2), Block(64, 2), Dense(512), Dense(200)),
        16,
        1,
    ),
}


def random_params(net: Net, seed: int = 0) -> Params:
    """He weights and small biases of every layer."""
    rng = np.random.default_rng(seed)

    def affine(*shape: int) -> tuple[jax.Array, jax.Array]:
        scale = math.sqrt(2 / math.prod(shape[:-1]))
        weight, bias = scale * rng.standard_normal(shape, np.float32), 0.1 * rng.standard_normal(shape[-1], np.float32)
        return jnp.asarray(weight), jnp.asarray(bias)

    params: list[tuple[jax.Array, ...]] = []
    size, channels, flat = net.shape[0], net.shape[2], False
    for layer in net.layers:
        if isinstance(layer, Dense):
            params.append(affine(channels if flat else channels * size * size, layer.units))
            channels, flat = layer.units, True
            continue
        if isinstance(layer, Conv):
            params.append(affine(layer.kernel, layer.kernel, channels, layer.channels))
        else:
            inputs = (channels, layer.channels, channels)
            convs = zip(layer.convolutions(), inputs, strict=True)
            params.append(sum((affine(conv.kernel, conv.kernel, into, conv.channels) for conv, into in convs), ()))
        first = layer if isinstance(layer, Conv) else layer.convolutions()[0]
        size = (size + 2 * first.padding - first.kernel) // first.stride + 1
        channels = layer.channels
    return params


def apply(net: Net, params: Params, x: jax.Array) -> jax.Array:
    """Logits `[n, classes]` of images `[n, height, width, channels]`."""

    def conv(layer: Conv, x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
        strides, padding = (layer.stride,) * 2, [(layer.padding,) * 2] * 2
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, weight, strides, padding, dimension_numbers=numbers) + bias

    last = len(net.layers) - 1
    for i, (layer, arrays) in enumerate(zip(net.layers, params, strict=True)):
        if isinstance(layer, Conv):
            x = conv(layer, x, *arrays)
        elif isinstance(layer, Block):
            first, second, short = layer.convolutions()
            inner = jax.nn.relu(conv(first, x, *arrays[:2]))
            x = conv(second, inner, *arrays[2:4]) + conv(short, x, *arrays[4:])
        else:
            x = x.reshape(len(x), -1) @ arrays[0] + arrays[1]
        x = x if i == last else jax.nn.relu(x)
    return x


class Problem(NamedTuple):
    """What is bounded, attacked and trained on: a network with random weights, images, and what it says they are."""

    net: Net
    params: Params
    images: jax.Array
    labels: jax.Array
    ball: mt.Interval  # all within `EPS` of the images, in the domain

    def apply(self, params: Any, x: jax.Array) -> jax.Array:
        """Logits of images."""
        return apply(self.net, params, x)


def make_problem(net: Net, batch: int) -> Problem:
    """So many random images for a network of random weights."""
    params = random_params(net)
    images = jnp.asarray(np.random.default_rng(0).random((batch, *net.shape), np.float32))
    labels = jax.jit(functools.partial(apply, net))(params, images).argmax(-1)
    return Problem(net, params, images, labels, mt.linf_ball(images, EPS, DOMAIN))
