"""Few weights that are not zero."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from mixtrain_jax.schema import Range


@dataclasses.dataclass(frozen=True)
class Mask:
    """Weights that are zero from the start and stay so: global magnitude pruning (Han et al., arXiv 1506.02626).

    All arrays of two dimensions or more share one threshold; biases are kept. A weight of zero has no gradient, so
    neither steps nor weight decay bring it back, and the mask needs no place of its own.

    Attributes:
      keep: Share of the weights that are kept, those of the largest magnitude; 0 to 1.
    """

    keep: Annotated[float, Range(0, 1)] = 0.1

    def init(self, params: Any) -> Any:
        """The parameters, zero where they are pruned."""
        sizes = [jnp.abs(leaf).ravel() for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
        if not sizes:
            return params
        every = jnp.sort(jnp.concatenate(sizes), descending=True)
        kept = round(self.keep * every.size)
        least = every[kept - 1] if kept else jnp.inf
        return jax.tree.map(lambda leaf: jnp.where(jnp.abs(leaf) >= least, leaf, 0) if leaf.ndim > 1 else leaf, params)

    def realise(self, theta: Any) -> Any:
        """The same numbers, without a gradient where they are zero."""
        return jax.tree.map(lambda leaf: jnp.where(leaf != 0, leaf, 0) if leaf.ndim > 1 else leaf, theta)
