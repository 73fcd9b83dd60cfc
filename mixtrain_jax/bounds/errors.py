"""What can go wrong when a bound is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


class BoundsError(ValueError):
    """The input of a bound is malformed: shapes, dtypes, NaN, crossed or negative radii."""


def check_classes(who: str, shape: Sequence[int]) -> None:
    """Refuse logits, `[..., classes]`, of fewer than two classes.

    Raises:
      BoundsError: with what makes two logits of one.
    """
    if not shape or shape[-1] < 2:
        raise BoundsError(
            f"{who} wants logits [..., classes] of at least 2 classes, got {list(shape)}. Where one logit z stands for "
            "class 1 if z > 0, stack a zero beside it: jnp.concatenate([jnp.zeros_like(z), z], axis=-1)."
        )


def check_labels(who: str, labels: np.ndarray | jax.Array, classes: int) -> None:
    """Refuse labels that are no classes.

    Raises:
      BoundsError: with one of them and the range of the classes.
    """
    if not labels.size:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        hint = " They look 1-based: subtract 1." if low > 0 and high == classes else ""
        raise BoundsError(f"{who} wants labels between 0 and {classes - 1}, got {low if low < 0 else high}.{hint}")


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
