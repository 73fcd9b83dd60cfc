"""Networks and ensembles of them as two pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

Apply = Callable[[Any, jax.Array], jax.Array]


class Predictor(NamedTuple):
    """What is trained, attacked, bounded and certified.

    Attributes:
      init: `(key, images [n, height, width, channels]) -> params`.
      apply: `(params, images) -> logits [n, classes]`.
    """

    init: Callable[[jax.Array, Any], Any]
    apply: Apply


def single(network: nn.Module) -> Predictor:
    """One network."""

    def apply(params: Any, images: jax.Array) -> jax.Array:
        logits = network.apply(params, images)
        assert isinstance(logits, jax.Array)
        return logits

    return Predictor(network.init, apply)


def ensemble(member: Predictor, members: int) -> Predictor:
    """The mean logits of several networks of one kind, whose parameters have a leading axis.

    It is one network, block by block, with a mean at its end, so its bounds and certificates are those of any network.

    Args:
      member: one network.
      members: how many; each starts from a key of its own.
    """

    def init(key: jax.Array, images: Any) -> Any:
        return jax.vmap(member.init, (0, None))(jax.random.split(key, members), images)

    def apply(params: Any, images: jax.Array) -> jax.Array:
        return jax.vmap(member.apply, (0, None))(params, images).mean(0)

    return Predictor(init, apply)
