"""Symbolic intervals, the domain of MixTrain."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from mixtrain_jax.bounds.backward import Bounded, analyse


def symbolic(f: Callable[..., Any], *, chunk: int | None = None) -> Bounded:
    """Bound `f` by symbolic intervals: every unstable ReLU lies between two parallel lines of slope `u / (u - l)`.

    The backward form of Wang et al. (arXiv 1811.02625), of Fast-Lin (1804.09699) and of the DeepZ zonotope. The box of
    every ReLU's operand is the intersection of its interval and its symbolic bound, and so is the result, which is
    therefore never looser than `ibp`'s.

    Args:
      f: as for `ibp`.
      chunk: rows of a backward pass in memory at a time; None for all. Lower it when memory runs out.

    Returns:
      As `ibp` does. Functions of a batch are best bounded one example at a time under `jax.vmap`, because every entry
      of the output is a row that is pulled back through the whole batch.
    """
    return Bounded(f, functools.partial(analyse, slopes="parallel", tighten=True, chunk=chunk), True, chunk)
