"""Networks by name, as Flax linen modules of `[n, height, width, channels] -> [n, classes]`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn

from mixtrain_jax.models.networks import MLP, Large, Normalized, ResNet, Small
from mixtrain_jax.models.predictor import Predictor, ensemble, single

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


def predictor(
    name: str,
    *,
    classes: int,
    width: int = 0,
    members: int = 1,
    normalization: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Predictor:
    """A network, or the mean logits of several, as two pure functions; the arguments are those of `build`."""
    member = single(build(name, classes=classes, width=width, normalization=normalization))
    return ensemble(member, members) if members > 1 else member


__all__ = [
    "MLP",
    "MODELS",
    "Large",
    "Normalized",
    "Predictor",
    "ResNet",
    "Small",
    "build",
    "ensemble",
    "predictor",
    "single",
]
