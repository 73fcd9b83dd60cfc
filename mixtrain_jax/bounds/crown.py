"""CROWN: symbolic bounds whose lower line adapts to the ReLU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mixtrain_jax.bounds.engine import Bounded, Domain, joined
from mixtrain_jax.bounds.symbolic import Method


def crown(
    f: Callable[..., Any],
    *,
    chunk: int | None = None,
    budget: int | None = None,
    sound: bool = False,
    intersect: Sequence[Method] = (),
) -> Bounded:
    """Bound `f` by CROWN (Zhang et al., arXiv 1811.00866): lower slope 0 or 1, whichever leaves the smaller area.

    Args:
      f: as for `ibp`.
      chunk: as for `symbolic`.
      budget: as for `symbolic`.
      sound: as for `ibp`.
      intersect: as for `symbolic`.

    Returns:
      As `symbolic` does; never looser than `ibp`, on most networks tighter than `symbolic`.
    """
    domain = Domain("adaptive", tighten=True, chunk=chunk, budget=budget, sound=sound)
    return joined(f, domain, intersect)


def crown_ibp(
    f: Callable[..., Any],
    *,
    chunk: int | None = None,
    budget: int | None = None,
    sound: bool = False,
    intersect: Sequence[Method] = (),
) -> Bounded:
    """Bound `f` by one CROWN backward pass over interval boxes inside (Zhang et al., arXiv 1906.06316).

    Args:
      f: as for `ibp`.
      chunk: as for `symbolic`.
      budget: as for `symbolic`.
      sound: as for `ibp`.
      intersect: as for `symbolic`.

    Returns:
      As `symbolic` does; cheaper than `crown`, which also pulls back every hidden layer, and looser.
    """
    domain = Domain("adaptive", chunk=chunk, budget=budget, sound=sound)
    return joined(f, domain, intersect)
