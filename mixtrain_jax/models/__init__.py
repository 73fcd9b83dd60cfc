"""Networks by name, as Flax linen modules of `[n, height, width, channels] -> [n, classes]`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from mixtrain_jax.models.networks import MLP, Large, Normalized, ResNet, Small

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "small": Small,
    "large": Large,
    "resnet": ResNet,
    "resnet_mixtrain": functools.partial(ResNet, first_stride=2),
    "resnet_imagenet": functools.partial(ResNet, width=512, first_stride=2, stem=7, last_scale=0.1),
}


def build(
    name: str, *, classes: int, width: int = 0, normalization: tuple[Sequence[float], Sequence[float]] | None = None
) -> nn.Module:
    """A network by its name in `MODELS`.

    Args:
      name: which network.
      classes: number of logits.
      width: units of its hidden layers; 0 for its own number.
      normalization: mean and standard deviation of each channel; None for a network that sees pixels as they are.
    """
    network = MODELS[name](classes=classes, **({"width": width} if width else {}))
    if normalization is None:
        return network
    mean, std = normalization
    return Normalized(network, tuple(mean), tuple(std))


def pure_apply(network: nn.Module) -> Callable[[Any, jax.Array], jax.Array]:
    """A network as `(params, images [n, height, width, channels]) -> logits [n, classes]`."""

    def apply(params: Any, images: jax.Array) -> jax.Array:
        logits = network.apply(params, images)
        assert isinstance(logits, jax.Array)
        return logits

    return apply


__all__ = ["MLP", "MODELS", "Large", "Normalized", "ResNet", "Small", "build", "pure_apply"]
