"""Multiple-gradient descent: the direction that serves both terms."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from mixtrain_jax.mixing.base import Horizon, MixRule, Signals, Weights, scalar, stateless


def mgda() -> MixRule:
    """The convex weights whose mixed gradient is shortest (Sener and Koltun, arXiv 1810.04650, equation 4).

    A step along it lowers both losses, or the point is Pareto stationary. The shorter gradient gets the larger weight,
    so a clean loss that is nearly fitted takes all of it and nothing is verified; `balanced` does not have that fault.

    Where a step goes without a term, whose gradient then is 0, the other one has the whole weight: the shortest
    gradient would be none at all.

    Raises:
      ValueError: (its update) where the objective has other than two terms.
    """

    def weights(signals: Signals) -> Weights:
        if len(signals.terms) != 2:
            raise ValueError(f"mgda mixes two terms, got {len(signals.terms)} ({', '.join(signals.terms)}).")
        assert signals.products is not None
        (aa, ab), (_, bb) = signals.products
        apart = aa - 2 * ab + bb  # squared distance of the gradients
        share = jnp.clip((bb - ab) / jnp.where(apart > 0, apart, 1), 0, 1)
        share = jnp.where(apart > 0, share, 0.5)
        share = jnp.where(bb == 0, 1.0, jnp.where(aa == 0, 0.0, share))
        first, second = signals.terms
        return {first: scalar(share), second: scalar(1 - share)}

    return stateless(weights)._replace(needs_products=True)


@dataclasses.dataclass(frozen=True)
class Mgda:
    """Settings of `mgda`, which has none."""

    def rule(self, horizon: Horizon) -> MixRule:
        """The rule, whatever the length of the run."""
        return mgda()
