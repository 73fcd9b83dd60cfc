"""A specification as arrays of the network's dtype, without losing what rounding takes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.bounds import rounding
from mixtrain_jax.bounds.outward import round_down, round_up
from mixtrain_jax.verify.specification import Specification


class Problem(NamedTuple):
    """The negated rows of each clause: it is refuted where a weighted sum of them is positive.

    Clauses of fewer rows than the longest have their first row more than once.
    """

    rows: jax.Array  # [clauses, rows, outputs]
    offsets: jax.Array  # [clauses, rows], rounded down
    errors: jax.Array  # [clauses, rows, outputs]: how far a coefficient may be from its number, rounded up


def problem_of(spec: Specification, dtype: np.typing.DTypeLike) -> Problem:
    """The problem of a specification, in the dtype of a network."""
    longest = int(np.bincount(spec.clause).max())
    members = [np.flatnonzero(spec.clause == c) for c in range(spec.clauses)]
    index = np.stack([np.pad(rows, (0, longest - len(rows)), constant_values=rows[0]) for rows in members])
    rows = (-spec.rows).astype(dtype)
    errors = round_up(np.abs(-spec.rows - rows.astype(np.float64)), dtype)
    return Problem(*(jnp.asarray(x[index]) for x in (rows, round_down(-spec.offsets, dtype), errors)))


def refuted_by(lower: jax.Array, row: jax.Array, offset: jax.Array, error: jax.Array, sizes: jax.Array) -> jax.Array:
    """A lower bound of `row @ y + offset`, of the numbers that were specified, from one of the rounded row.

    Args:
      lower: of the rounded row's product, sound in floating point.
      row: `[outputs]`.
      offset: rounded down.
      error: how far coefficients may be off, `[outputs]`.
      sizes: how large outputs can be, `[outputs]`.
    """
    off = jnp.where(jnp.any(error > 0), rounding.total(error, sizes), 0)
    off = off * (1 + rounding.gamma(rounding.steps(row.size), row.dtype))
    total = lower + offset
    once = 4 * rounding.unit(row.dtype)
    return jnp.where((offset == 0) & (off == 0), lower, total - off - once * (jnp.abs(total) + off))


def weighted(problem: Problem, clause: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Row, offset and error of a weighted sum of the rows of a clause.

    Args:
      problem: the clauses.
      clause: number of one.
      weights: no less than 0, `[rows]`; of a single row they count as 1.
    """
    rows, offsets, errors = (x[clause] for x in problem)
    if len(rows) == 1:
        return rows[0], offsets[0], errors[0]
    precise = {"precision": jax.lax.Precision.HIGHEST}
    share = rounding.gamma(len(rows), rows.dtype)
    # Products and sums are rounded, unless a single row has all the weight.
    share = jnp.where(jnp.max(weights) == jnp.sum(weights), jnp.where(jnp.max(weights) == 1, 0, share), share)
    row, offset = jnp.matmul(weights, rows, **precise), jnp.matmul(weights, offsets, **precise)
    least = jnp.where(share > 0, rounding.tiny(rows.dtype), 0)
    error = (1 + share) * jnp.matmul(weights, errors, **precise)
    error = error + share * jnp.matmul(weights, jnp.abs(rows), **precise) + least
    return row, offset - share * jnp.matmul(weights, jnp.abs(offsets), **precise) - least, error
