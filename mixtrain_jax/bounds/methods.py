"""The one table of bound methods: name -> method."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal

from mixtrain_jax.bounds.alpha_crown import alpha_crown
from mixtrain_jax.bounds.crown import crown, crown_ibp
from mixtrain_jax.bounds.engine import Bounded
from mixtrain_jax.bounds.errors import BoundsError
from mixtrain_jax.bounds.ibp import ibp
from mixtrain_jax.bounds.symbolic import Method, symbolic

MethodName = Literal["ibp", "crown_ibp", "symbolic", "crown", "alpha_crown"]

METHODS: dict[str, Callable[..., Bounded]] = {
    "ibp": ibp,
    "crown_ibp": crown_ibp,
    "symbolic": symbolic,
    "crown": crown,
    "alpha_crown": alpha_crown,
}


def method(name: str, *, sound: bool = False) -> Method:
    """The bound method of a name, with its default options.

    Args:
      name: a key of `METHODS`.
      sound: whether bounds also hold in floating point; certificates want that, training need not pay for it.

    Raises:
      BoundsError: where there is no method of that name.
    """
    if name not in METHODS:
        raise BoundsError(f"There is no bound method {name!r}; known: {', '.join(METHODS)}.")
    return functools.partial(METHODS[name], sound=sound) if sound else METHODS[name]


def methods(names: Sequence[str], *, sound: bool = True) -> dict[str, Method]:
    """Several methods by name, in this order; as `method`."""
    return {name: method(name, sound=sound) for name in names}
