"""What must not happen: unsafe outputs as a disjunction of conjunctions of linear inequalities."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixtrain_jax.bounds import BoundsError


@dataclasses.dataclass(frozen=True, eq=False)
class Specification:
    """The unsafe outputs of a network in disjunctive normal form.

    An output `y`, flattened to `[outputs]`, is unsafe if there is a clause of which every row `i` has
    `rows[i] @ y + offsets[i] >= 0`. A clause is refuted over a set of inputs by one row that is negative on all of it.
    The property is proved where every clause is refuted, and broken by an output for which every row of one clause is
    positive; of outputs on the boundary neither is claimed.

    Attributes:
      rows: coefficients, float64 `[k, outputs]`.
      offsets: float64 `[k]`.
      clause: number of the clause that each row belongs to, integer `[k]`, sorted, from 0 on without a gap.

    Raises:
      BoundsError: where shapes don't fit, numbers are not finite, or clauses are not numbered so.

    Example:
      >>> from mixtrain_jax.verify import Specification
      >>> both_negative = Specification([[-1, 0], [0, -1]], [0, 0], [0, 0])  # unsafe: y0 <= 0 and y1 <= 0
      >>> both_negative.violation([[-1, -2], [-1, 2]]).tolist()
      [1.0, -2.0]
    """

    rows: np.ndarray
    offsets: np.ndarray
    clause: np.ndarray

    def __post_init__(self) -> None:
        rows, offsets = np.asarray(self.rows, np.float64), np.asarray(self.offsets, np.float64)
        clause = np.asarray(self.clause)
        if rows.ndim != 2 or not rows.size or offsets.shape != rows.shape[:1] or clause.shape != rows.shape[:1]:
            raise BoundsError(
                "A specification wants rows [k, outputs], offsets [k] and clause [k], with k and outputs at least 1, "
                f"got {list(rows.shape)}, {list(offsets.shape)} and {list(clause.shape)}."
            )
        if not (np.isfinite(rows).all() and np.isfinite(offsets).all()):
            raise BoundsError("A specification wants finite rows and offsets, got NaN or infinity.")
        steps = np.diff(clause, prepend=-1)
        if not np.issubdtype(clause.dtype, np.integer) or steps[0] != 1 or not np.isin(steps[1:], (0, 1)).all():
            raise BoundsError(f"A specification wants clauses in order, numbered 0, 1, 2, ..., got {clause.tolist()}.")
        for name, value in {"rows": rows, "offsets": offsets, "clause": clause.astype(np.int32)}.items():
            object.__setattr__(self, name, value)

    @property
    def clauses(self) -> int:
        """Number of clauses."""
        return int(self.clause[-1]) + 1

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.rows.shape[1]

    def violation(self, outputs: ArrayLike) -> np.ndarray:
        """By how much outputs are unsafe: positive where every row of a clause is, whatever rounding does here.

        Args:
          outputs: `[..., outputs]`.

        Returns:
          float64 `[...]`: over clauses the largest of the least row; NaN where an output is not finite.
        """
        outputs = np.asarray(outputs, np.float64)
        finite = np.all(np.isfinite(outputs), axis=-1)
        outputs = np.where(np.expand_dims(finite, -1), outputs, 0)
        values = outputs @ self.rows.T + self.offsets
        sizes = np.abs(outputs) @ np.abs(self.rows.T) + np.abs(self.offsets)
        # A difference of two float32 numbers is exact; what rounding may add to longer sums is taken off.
        error = np.where(_terms(self.rows, self.offsets) > 2, 2 * self.outputs * np.finfo(np.float64).eps, 0)
        values = values - error * sizes
        starts = np.searchsorted(self.clause, np.arange(self.clauses))
        return np.where(finite, np.minimum.reduceat(values, starts, axis=-1).max(-1), np.nan)


def _terms(rows: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Number of terms of each row; a coefficient other than 1 and -1 counts twice, for its product is rounded."""
    return ((rows != 0) + (~np.isin(rows, (-1, 0, 1)))).sum(-1) + (offsets != 0)


def margins_of(label: int, classes: int) -> Specification:
    """Unsafe: another class has a logit that is no less than the label's.

    Args:
      label: the class that must win.
      classes: number of logits.

    Raises:
      BoundsError: where the label is none of the classes, or there is one class only.
    """
    if not 0 <= label < classes or classes < 2:
        raise BoundsError(f"A label is one of at least 2 classes, got label {label} of {classes} classes.")
    rows = np.delete(np.eye(classes), label, axis=0)
    rows[:, label] = -1
    return Specification(rows, np.zeros(classes - 1), np.arange(classes - 1))


def all_positive(rows: ArrayLike, offsets: ArrayLike = 0.0) -> Specification:
    """Safe: `rows @ y + offsets > 0` in every entry.

    Args:
      rows: `[k, outputs]`.
      offsets: `[k]`, or a scalar for all.

    Raises:
      BoundsError: as `Specification` does.
    """
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2:
        raise BoundsError(f"Linear specifications are rows [k, outputs], got shape {list(rows.shape)}.")
    offsets = np.broadcast_to(np.asarray(offsets, np.float64), rows.shape[:1])
    return Specification(-rows, -offsets, np.arange(len(rows)))


def unsafe_if_any(clauses: Sequence[tuple[ArrayLike, ArrayLike]]) -> Specification:
    """Unsafe: all rows of one of the clauses are no less than 0.

    Args:
      clauses: pairs of rows `[k, outputs]` and offsets `[k]`, one a conjunction.

    Raises:
      BoundsError: where there is no clause, and as `Specification` does.
    """
    if not clauses:
        raise BoundsError("A specification wants at least one clause: without any, no output is unsafe.")
    parts = [(np.atleast_2d(np.asarray(rows, np.float64)), np.atleast_1d(offsets)) for rows, offsets in clauses]
    numbers = np.repeat(np.arange(len(parts)), [len(rows) for rows, _ in parts])
    rows, offsets = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Specification(rows, offsets, numbers)


def specified(spec: Any, outputs: int) -> Specification:
    """A specification from what users write.

    Args:
      spec: the label whose margins must be positive, a pair `(rows, offsets)` of what must be positive, or a
        `Specification`.
      outputs: number of outputs of the network.

    Raises:
      BoundsError: where it is none of these, or is of another number of outputs.
    """
    if isinstance(spec, tuple) and len(spec) == 2:
        spec = all_positive(*spec)
    elif np.ndim(spec) == 0 and np.issubdtype(np.asarray(spec).dtype, np.integer):
        return margins_of(int(spec), outputs)
    if not isinstance(spec, Specification):
        raise BoundsError(f"A specification is a label, (rows, offsets) or a Specification, got {spec!r}.")
    if spec.outputs != outputs:
        raise BoundsError(f"The specification is of {spec.outputs} outputs, and the network has {outputs}.")
    return spec
