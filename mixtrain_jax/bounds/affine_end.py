"""The affine operations that end a function, all of its outputs at once.

What they make of each output does not depend on any box. So under `jax.vmap` over examples it is found once for all of
them, and where a function ends in a product with weights, it is these weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives
from jax.typing import ArrayLike

from mixtrain_jax.bounds import rules
from mixtrain_jax.bounds.backward import Analysis, Linear, pulled
from mixtrain_jax.bounds.interval import Interval
from mixtrain_jax.bounds.tape import Op, Ref, Tape

# Ops that keep all entries, and their order, where they don't change their number.
_RELABELLING = {
    *(primitives.reshape_p, primitives.squeeze_p, primitives.broadcast_in_dim_p, primitives.slice_p),
    *(primitives.copy_p, primitives.convert_element_type_p),
}
_SUMS = {primitives.add_p, primitives.add_jaxvals_p}
_AT_A_TIME = 16  # columns: enough for a sum not to wait for memory, few enough for its gradient not to


def through_affine_end(tape: Tape, out: Ref) -> Linear:
    """Every entry of an output as a linear function of what goes into the affine ops that end the tape.

    Args:
      tape: the recorded function.
      out: an output of it, of shape `[n]`.

    Returns:
      `n` rows. Their coefficients are those of real arithmetic, rounded.
    """
    needed, start = {out.index}, len(tape.ops)
    for op in reversed(tape.ops):
        if any(ref.index in needed for ref in op.outputs):
            if not rules.is_affine(op):
                break
            needed |= {operand.index for operand in op.refs}
        start -= 1
    (count,) = out.shape
    ref, ops, constant = out, list(tape.ops[start:]), jnp.zeros(count, out.dtype)
    rows = jnp.eye(count, dtype=out.dtype)
    # As long as the rows are the identity there is nothing to multiply.
    while ops:
        op = ops.pop()
        if ref not in op.outputs:
            continue
        matrix = _identity(op) if (same := _same(op, ref)) else _weights(op)
        if matrix is None:
            ops.append(op)
            break
        if op.primitive in _SUMS:
            constant = constant + op.of_refs(op.refs[0].zeros())[0].reshape(count)
        ref, rows = op.refs[0], matrix.astype(op.refs[0].dtype)
        if not same:
            break
    nothing: list[Any] = [None] * len(ops)
    known = Analysis([], [], nothing, nothing, nothing)

    def pull(row: jax.Array) -> Linear:
        pending, terms = pulled(dataclasses.replace(tape, ops=tuple(ops)), known, {ref.index: row})
        total = sum((term.lower for term in terms), jnp.zeros((), row.dtype))
        return Linear({index: sides.lower for index, sides in pending.items()}, total)

    rest = jax.vmap(pull)(rows.reshape(count, *ref.shape))
    return Linear(rest.seeds, constant + jnp.asarray(rest.constant, constant.dtype))


def differences_over(every: Linear, label: ArrayLike, boxes: Sequence[Interval]) -> Interval:
    """Bounds of `row[label] - row[j]` for each of many rows `j`, over boxes of what the rows are functions of.

    All differences of `n` rows of `m` entries are `n * m` numbers for every label, of which no more than `n * 16` are
    in memory here at a time, in the gradient too.

    Args:
      every: the rows.
      label: one of them.
      boxes: of all refs.

    Returns:
      An `Interval` of shape `[n]`; at the label it is 0.
    """
    value, radius = jnp.asarray(every.constant), jnp.zeros((), jnp.result_type(every.constant))
    for index, rows in every.seeds.items():
        matrix, box = rows.reshape(len(rows), -1), boxes[index]
        value = value + matrix @ box.center.reshape(-1)
        radius = radius + _distances(matrix, label, box.radius.reshape(-1))
    difference = jax.lax.dynamic_index_in_dim(value, label) - value
    return Interval(difference - radius, difference + radius)


def _distances(matrix: jax.Array, label: ArrayLike, weights: jax.Array) -> jax.Array:
    """Weighed l1 distances of a row from each row, `[n]`."""
    n, m = matrix.shape
    padded = jnp.pad(matrix, ((0, 0), (0, -m % _AT_A_TIME)))
    row = jax.lax.dynamic_index_in_dim(padded, label, keepdims=False)

    def add(total: jax.Array, some: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        parts = [jnp.abs(own - others) * weight for others, own, weight in zip(*some, strict=True)]
        return sum(parts, total), None

    parts = [x.reshape(-1, _AT_A_TIME, *x.shape[1:]) for x in (padded.T, row, jnp.pad(weights, (0, -m % _AT_A_TIME)))]
    return jax.lax.scan(jax.checkpoint(add, prevent_cse=False), jnp.zeros(n, matrix.dtype), tuple(parts))[0]


def _same(op: Op, ref: Ref) -> bool:
    """Whether the op hands on the entries of its one interval operand, in order, but for constants added to them."""
    if len(op.refs) != 1 or len(op.outputs) != 1 or math.prod(op.refs[0].shape) != math.prod(ref.shape):
        return False
    return op.primitive in _RELABELLING or op.primitive in _SUMS


def _identity(op: Op) -> jax.Array:
    size = math.prod(op.refs[0].shape)
    return jnp.eye(size, dtype=op.refs[0].dtype)


def _weights(op: Op) -> jax.Array | None:
    """The matrix `[outputs, inputs]` of the product of a vector with weights; None for anything else."""
    if op.primitive is not primitives.dot_general_p or len(op.refs) != 1:
        return None
    contracted, batch = op.params["dimension_numbers"]
    (ref,), mine = op.refs, int(isinstance(op.operands[1], Ref))
    weights, ours, theirs = jnp.asarray(op.operands[1 - mine]), contracted[mine], contracted[1 - mine]
    free = [i for i in range(len(ref.shape)) if i not in ours]
    if batch[0] or any(ref.shape[i] != 1 for i in free):
        return None
    columns = [theirs[i] for i in np.argsort(ours)]  # as the operand has its entries
    rows = [i for i in range(weights.ndim) if i not in theirs]
    return jnp.transpose(weights, (*rows, *columns)).reshape(-1, math.prod(ref.shape))
