"""Stochastic robust approximation: which few examples of a batch carry the robust loss."""

from __future__ import annotations

import jax


def draw(key: jax.Array, n: int, k: int, *, replace: bool = False) -> jax.Array:
    """Draw `k` of `n` indices uniformly, so that the mean over them is an unbiased estimate of the mean over all.

    Args:
      key: a random key.
      n: size of the batch.
      k: how many to draw.
      replace: draw with replacement, as the authors of MixTrain do.

    Returns:
      Indices `[k]`, int32.

    Example:
      >>> sorted(draw(jax.random.key(0), 3, 3).tolist())
      [0, 1, 2]

    Raises:
      ValueError: where `k` is not between 1 and `n`.
    """
    if not 1 <= k <= n:
        raise ValueError(f"draw wants 1 <= k <= n, got k = {k} of n = {n}.")
    return jax.random.choice(key, n, (k,), replace=replace)
