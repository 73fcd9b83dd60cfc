"""Small networks that train in seconds on a CPU."""

from __future__ import annotations

import flax.linen as nn
import jax


class MLP(nn.Module):
    """One hidden layer of ReLUs.

    Attributes:
      classes: number of logits.
      width: hidden units.
    """

    classes: int
    width: int = 512

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[n, classes]` of images `[n, ...]`."""
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(self.classes)(x)


class CNN(nn.Module):
    """The paper's small network: two strided 4x4 convolutions of 16 and 32 channels and a hidden layer.

    166,406 parameters and 4,804 ReLUs on 28x28x1 with the default width.

    Attributes:
      classes: number of logits.
      width: units of the hidden layer.
    """

    classes: int
    width: int = 100

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[n, classes]` of images `[n, height, width, channels]`."""
        x = nn.relu(nn.Conv(16, (4, 4), strides=2, padding=1)(x))
        x = nn.relu(nn.Conv(32, (4, 4), strides=2, padding=1)(x))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(self.classes)(x)
