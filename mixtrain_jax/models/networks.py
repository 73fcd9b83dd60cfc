"""The networks of the MixTrain paper, and one hidden layer for what is smaller than its data.

They have biases everywhere and no batch normalisation, and start as the paper's do: weights of convolutions normal with
standard deviation `sqrt(2 / (k * k * channels out))` and no bias (Wong and Kolter, arXiv 1711.00851), those of dense
layers uniform within `1 / sqrt(fan in)`, biases too (PyTorch's default).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

_dense_weights = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _conv_weights(key: jax.Array, shape: tuple[int, ...], dtype: Any = float) -> jax.Array:
    height, width, _, features = shape
    return (2 / (height * width * features)) ** 0.5 * jax.random.normal(key, shape, dtype)


def _conv(features: int, kernel: int, stride: int, padding: int = 1) -> Callable[[jax.Array], jax.Array]:
    return nn.Conv(features, (kernel, kernel), stride, padding=padding, kernel_init=_conv_weights)


def _dense(features: int, x: jax.Array, scale: float = 1.0) -> jax.Array:
    """A dense layer of the flattened examples `x`, its first weights and biases times `scale`."""
    x = x.reshape((x.shape[0], -1))
    limit = x.shape[-1] ** -0.5

    def weights(key: jax.Array, shape: tuple[int, ...], dtype: Any = float) -> jax.Array:
        return scale * _dense_weights(key, shape, dtype)

    def biases(key: jax.Array, shape: tuple[int, ...], dtype: Any = float) -> jax.Array:
        return scale * jax.random.uniform(key, shape, dtype, -limit, limit)

    return nn.Dense(features, kernel_init=weights, bias_init=biases)(x)


class MLP(nn.Module):
    """One hidden layer of ReLUs, with Flax's own first weights.

    Attributes:
      classes: number of logits.
      width: hidden units.
    """

    classes: int
    width: int = 1024

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[n, classes]` of images `[n, ...]`."""
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(self.classes)(x)


class Small(nn.Module):
    """The paper's small network: two strided convolutions and a hidden layer.

    166,406 parameters and 4,804 ReLUs on 28x28x1, 214,918 and 6,244 on 32x32x3.

    Attributes:
      classes: number of logits.
      width: units of the hidden layer.
    """

    classes: int
    width: int = 100

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[n, classes]` of images `[n, height, width, channels]`."""
        x = nn.relu(_conv(16, 4, 2)(x))
        x = nn.relu(_conv(32, 4, 2)(x))
        x = nn.relu(_dense(self.width, x))
        return _dense(self.classes, x)


class Large(nn.Module):
    """The paper's large network: four convolutions, two of them strided, and two hidden layers.

    1,974,762 parameters and 48,064 ReLUs on 28x28x1, 2,466,858 and 62,464 on 32x32x3.

    Attributes:
      classes: number of logits.
      width: units of each hidden layer.
    """

    classes: int
    width: int = 512

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[n, classes]` of images `[n, height, width, channels]`."""
        for features in (32, 64):
            x = nn.relu(_conv(features, 3, 1)(x))
            x = nn.relu(_conv(features, 4, 2)(x))
        x = nn.relu(_dense(self.width, x))
        x = nn.relu(_dense(self.width, x))
        return _dense(self.classes, x)


class Block(nn.Module):
    """A residual block: two convolutions beside one that matches the shape, and a ReLU of their sum.

    Attributes:
      features: channels out.
      stride: 1, or 2 to halve height and width.
    """

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[n, height, width, channels] -> [n, height / stride, width / stride, features]`."""
        inner = nn.relu(_conv(self.features, 3 if self.stride == 1 else 4, self.stride)(x))
        return nn.relu(_conv(self.features, 3, 1)(inner) + _conv(self.features, self.stride, self.stride, padding=0)(x))


class ResNet(nn.Module):
    """The paper's residual networks: a first convolution, four blocks and a hidden layer.

    On 32x32x3: 4,214,850 parameters and 107,496 ReLUs; with `first_stride=2`, as in the authors' code, 1,145,410 and
    39,912.
    On 64x64x3 with `stem=7`, `first_stride=2`, `width=512` and 200 classes: 739,720 and 39,424.

    Attributes:
      classes: number of logits.
      width: units of the hidden layer.
      first_stride: stride of the first block.
      stem: side of the first convolution's kernel: 3, or 7 with stride 2.
      last_scale: the last layer's first weights are multiplied by this. With 200 classes and a sound loss over all of
        them, first logits of the usual size make first gradients that switch every ReLU off.
    """

    classes: int
    width: int = 1000
    first_stride: int = 1
    stem: int = 3
    last_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[n, classes]` of images `[n, height, width, channels]`."""
        x = nn.relu(_conv(16, self.stem, 1 if self.stem == 3 else 2, padding=self.stem // 2)(x))
        for features, stride in ((16, self.first_stride), (16, 1), (32, 2), (64, 2)):
            x = Block(features, stride)(x)
        x = nn.relu(_dense(self.width, x))
        return _dense(self.classes, x, self.last_scale)


class Normalized(nn.Module):
    """A network of `(images - mean) / std`, so that eps is a radius in pixels whatever the network likes to see.

    Attributes:
      network: the network.
      mean: of each channel, `[channels]`.
      std: standard deviation of each channel, `[channels]`.
    """

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[n, classes]` of images `[n, height, width, channels]`, pixels from 0 to 1."""
        shape = (1,) * (x.ndim - 1) + (-1,)
        mean, std = (np.asarray(v, x.dtype).reshape(shape) for v in (self.mean, self.std))
        return self.network((x - mean) / std)
