"""CROWN: symbolic bounds whose lower line adapts to the ReLU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from mixtrain_jax.bounds.backward import Bounded, analyse


def crown(f: Callable[..., Any], *, chunk: int | None = None) -> Bounded:
    """Bound `f` by CROWN (Zhang et al., arXiv 1811.00866): lower slope 0 or 1, whichever leaves the smaller area.

    Args:
      f: as for `ibp`.
      chunk: as for `symbolic`.

    Returns:
      As `symbolic` does; never looser than `ibp`, on most networks tighter than `symbolic`.
    """
    return Bounded(f, functools.partial(analyse, slopes="adaptive", tighten=True, chunk=chunk), True, chunk)


def crown_ibp(f: Callable[..., Any], *, chunk: int | None = None) -> Bounded:
    """Bound `f` by one CROWN backward pass over interval boxes inside (Zhang et al., arXiv 1906.06316).

    Args:
      f: as for `ibp`.
      chunk: as for `symbolic`.

    Returns:
      As `symbolic` does; cheaper than `crown`, which also pulls back every hidden layer, and looser.
    """
    return Bounded(f, functools.partial(analyse, slopes="adaptive", chunk=chunk), True, chunk)
