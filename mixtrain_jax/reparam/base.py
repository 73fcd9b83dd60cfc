"""The interface of a reparametrisation, and the one that changes nothing."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from mixtrain_jax.models import Predictor


class Reparam(Protocol):
    """A frozen dataclass whose fields are those of the config, each with a default."""

    def init(self, params: Any) -> Any:
        """The numbers that stand for parameters, exactly or as well as they can.

        Raises:
          ConfigError: where they cannot.
        """
        ...

    def realise(self, theta: Any) -> Any:
        """The parameters that the numbers stand for; pure and differentiable."""
        ...


def wrapped(reparam: Reparam, predictor: Predictor) -> Predictor:
    """A network as a function of the numbers and the images."""
    if isinstance(reparam, Plain):
        return predictor
    return Predictor(
        lambda key, images: reparam.init(predictor.init(key, images)),
        lambda theta, images: predictor.apply(reparam.realise(theta), images),
    )


@dataclasses.dataclass(frozen=True)
class Plain:
    """The parameters themselves."""

    def init(self, params: Any) -> Any:
        """The parameters."""
        return params

    def realise(self, theta: Any) -> Any:
        """The parameters."""
        return theta
