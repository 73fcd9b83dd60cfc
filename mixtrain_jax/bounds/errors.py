"""What can go wrong when a bound is asked for."""

from __future__ import annotations

from typing import Any


class BoundsError(ValueError):
    """The input of a bound is malformed: shapes, dtypes, NaN, crossed or negative radii."""


class UnsupportedPrimitiveError(NotImplementedError):
    """A function uses a primitive that has no rule for the interval operands it was given."""


def unsupported(
    op: Any, why: str, way_out: str = "Keep that operand exact, or put a rule of your own in place with rules.register."
) -> UnsupportedPrimitiveError:
    """Name the primitive of an op of a tape, the user's line and the way out."""
    kinds = ", ".join("interval" if any(x is ref for ref in op.refs) else "exact" for x in op.operands)
    return UnsupportedPrimitiveError(
        f"Cannot bound the primitive '{op.primitive}' ({kinds}): {why}.\n  It comes from {op.source()}\n  {way_out}"
    )
