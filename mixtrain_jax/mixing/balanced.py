"""Weights that give every term a gradient of one length."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from mixtrain_jax.mixing.base import Horizon, MixRule, Signals, Weights, scalar, stateless


def balanced() -> MixRule:
    """Weights inversely proportional to the lengths of the terms' gradients, their sum being 1.

    So no loss drowns the others, whatever its scale: the aim of GradNorm (Chen et al., arXiv 1711.02257), which reaches
    it by gradient descent on the weights. A term whose gradient is 0, as where a step goes without it, weighs nothing.
    """

    def weights(signals: Signals) -> Weights:
        assert signals.products is not None
        norms = jnp.sqrt(jnp.diagonal(signals.products))
        inverse = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)
        shares = inverse / jnp.maximum(inverse.sum(), jnp.finfo(inverse.dtype).tiny)
        return {name: scalar(share) for name, share in zip(signals.terms, shares, strict=True)}

    return stateless(weights)._replace(needs_products=True)


@dataclasses.dataclass(frozen=True)
class Balanced:
    """Settings of `balanced`, which has none."""

    def rule(self, horizon: Horizon) -> MixRule:
        """The rule, whatever the length of the run."""
        return balanced()
