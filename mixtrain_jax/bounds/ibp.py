"""Interval bound propagation: boxes forwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mixtrain_jax.bounds.engine import Bounded, Domain


def ibp(f: Callable[..., Any], *, sound: bool = False) -> Bounded:
    """Bound `f` by interval arithmetic (Gowal et al., arXiv 1810.12715), center and radius through products.

    Costs about two forward passes.

    Args:
      f: any function of arrays and pytrees made of the primitives the registry knows.
      sound: whether bounds also hold in floating point, whatever the order of sums (`docs/float-soundness.md`).

    Returns:
      A function of the same arguments, of which any leaf may be an `Interval`; it returns `f`'s outputs as `Interval`s.

    Example:
      >>> import jax.numpy as jnp
      >>> import mixtrain_jax as mt
      >>> out = mt.ibp(lambda x: jnp.maximum(x, 0) - 1)(mt.linf_ball(jnp.array([0.0, 2.0]), eps=0.5))
      >>> out.lower.tolist(), out.upper.tolist()
      ([-1.0, 0.5], [-0.5, 1.5])
    """
    return Bounded(f, Domain(sound=sound))
