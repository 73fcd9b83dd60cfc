"""Symbolic intervals, the domain of MixTrain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mixtrain_jax.bounds.engine import Bounded, Domain, joined

Method = Callable[[Callable[..., Any]], Bounded]


def symbolic(
    f: Callable[..., Any],
    *,
    chunk: int | None = None,
    budget: int | None = None,
    sound: bool = False,
    intersect: Sequence[Method] = (),
) -> Bounded:
    """Bound `f` by symbolic intervals: every unstable ReLU lies between two parallel lines of slope `u / (u - l)`.

    The backward form of Wang et al. (arXiv 1811.02625), of Fast-Lin (1804.09699) and of the DeepZ zonotope. The box of
    every ReLU's operand is the intersection of its interval and its symbolic bound, and so is the result, which is
    therefore never looser than `ibp`'s.

    Args:
      f: as for `ibp`.
      chunk: rows of a backward pass in memory at a time; None for all. Lower it when memory runs out. In chunks, rows
        of ReLUs that intervals prove stable are left out, unless the call is under `jax.vmap`.
      budget: bytes that rows may take, from which `chunk` follows; for a call that is not under `jax.vmap`.
      sound: as for `ibp`.
      intersect: other methods, such as `mt.ibp` or `mt.crown`. Every box is then the intersection of those of all
        methods, and the result is never looser than that of any of them. They are sound where this one is, and have
        its `chunk` and `budget` where they have none of their own.

    Returns:
      As `ibp` does. Functions of a batch are best bounded one example at a time under `jax.vmap`, because every entry
      of the output is a row that is pulled back through the whole batch.

    Raises:
      BoundsError: where `chunk` or `budget` is not a positive integer, or `intersect` holds anything but methods.
    """
    domain = Domain("parallel", tighten=True, chunk=chunk, budget=budget, sound=sound)
    return joined(f, domain, intersect)
