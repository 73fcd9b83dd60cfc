"""The one engine: boxes forwards, linear functions backwards.

Forwards, each operation turns the boxes of its operands into boxes of its outputs. Backwards, a linear function of some
value on the tape is pulled through the operations that made it, each replaced by the affine functions below and above
it, until it is a linear function of values whose boxes are known. Domains differ only in what they relax and which
intermediate boxes they tighten that way.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mixtrain_jax.bounds import rules
from mixtrain_jax.bounds.errors import BoundsError
from mixtrain_jax.bounds.interval import Interval, intersect
from mixtrain_jax.bounds.relaxations import Slopes
from mixtrain_jax.bounds.rules import Arrays, Relaxation
from mixtrain_jax.bounds.tape import Op, Operand, Ref, Tape, record


class Reach(enum.IntEnum):
    """How a box relates to the values its ref can really take."""

    FREE = 0  # entries range over the box independently of each other
    EXACT = 1  # each entry attains both ends, though not together with the others
    LOOSE = 2  # the box may be wider than the range


class Analysis(NamedTuple):
    """What a domain knows after its way forwards, one entry a ref and one an op."""

    boxes: list[Interval]
    reach: list[Reach]
    relaxations: list[Relaxation | None]  # of ops that are not affine; None: bounded by their boxes alone


def analyse(tape: Tape, *, slopes: Slopes | None = None, tighten: bool = False, chunk: int | None = None) -> Analysis:
    """Walk the tape forwards.

    Args:
      tape: the recorded function.
      slopes: how to relax the ops that are not affine; None not to.
      tighten: whether the operands of relaxed ops get boxes from a backward pass, intersected with their interval ones.
      chunk: rows of a backward pass that are in memory at a time; None for all.
    """
    known = Analysis(list(tape.inputs), [Reach.FREE] * len(tape.inputs), [])
    for op in tape.ops:
        rule = rules.find(op)
        relaxed = None
        if slopes and rule.relax and not rules.is_affine(op):
            for ref in op.refs if tighten else ():
                known.boxes[ref.index] = tightened(tape, known, ref, chunk)
                known.reach[ref.index] = min(known.reach[ref.index], Reach.EXACT)
            relaxed = rule.relax(op, _read(known, op), slopes)
        known.boxes.extend(rule.interval(op, _read(known, op)))
        known.reach.extend([_reach(op, rule, known.reach)] * len(op.outputs))
        known.relaxations.append(relaxed)
    return known


def _read(known: Analysis, op: Op) -> list[rules.Value]:
    return [known.boxes[x.index] if isinstance(x, Ref) else x for x in op.operands]


def _reach(op: Op, rule: rules.Rule, reach: list[Reach]) -> Reach:
    if len(op.refs) != 1:
        return Reach.LOOSE
    (ref,) = op.refs
    before = reach[ref.index]
    if rule.entrywise:
        copies = math.prod(op.outputs[0].shape) > math.prod(ref.shape)
        return max(before, Reach.EXACT) if copies else before
    return Reach.EXACT if rules.is_affine(op) and before is Reach.FREE else Reach.LOOSE


def tightened(tape: Tape, known: Analysis, ref: Ref, chunk: int | None = None) -> Interval:
    """Box of a ref from a backward pass over each of its entries, never looser than the box known already."""
    box = known.boxes[ref.index]
    if known.reach[ref.index] is not Reach.LOOSE or not jnp.issubdtype(ref.dtype, jnp.floating):
        return box
    size = math.prod(ref.shape)

    def entry(i: jax.Array) -> Interval:
        seed = (jnp.arange(size) == i).astype(ref.dtype).reshape(ref.shape)
        return pull(tape, known, {ref.index: seed})

    bound = _map_rows(entry, jnp.arange(size), chunk)
    return intersect(box, jax.tree.map(lambda x: x.reshape(ref.shape), bound))


def linear(tape: Tape, known: Analysis, ref: Ref, rows: jax.Array, chunk: int | None = None) -> Interval:
    """Bounds of linear functions of a ref, never looser than stopping at the last ops that are not affine.

    Args:
      tape: the recorded function.
      known: what a domain found on its way forwards.
      ref: the value the functions are of.
      rows: their coefficients, `[rows, *ref.shape]`.
      chunk: rows in memory at a time.

    Returns:
      An `Interval` of shape `[rows]`.
    """

    def bound(relaxations: list[Relaxation | None]) -> Interval:
        part = known._replace(relaxations=relaxations)
        return _map_rows(lambda row: pull(tape, part, {ref.index: row}), rows, chunk)

    folded = bound([None] * len(known.relaxations))
    return intersect(folded, bound(known.relaxations)) if any(known.relaxations) else folded


def _map_rows(f: Callable[[jax.Array], Interval], rows: jax.Array, chunk: int | None) -> Interval:
    if chunk is None or chunk >= len(rows):
        return jax.vmap(f)(rows)
    return jax.lax.map(f, rows, batch_size=chunk)


class Sides(NamedTuple):
    """Coefficients of the function below and of the one above; the same object twice where they agree."""

    lower: Any
    upper: Any


def pull(tape: Tape, known: Analysis, seeds: Mapping[int, jax.Array]) -> Interval:
    """Bound one linear function of values on the tape by pulling it back to its inputs.

    Args:
      tape: the recorded function.
      known: boxes of every ref and relaxations of every op that the seeds depend on.
      seeds: coefficients of each ref the function is of, in the ref's shape.

    Returns:
      A scalar `Interval`.
    """
    pending = {index: Sides(seed, seed) for index, seed in seeds.items()}
    lower = upper = jnp.zeros((), next(iter(seeds.values())).dtype)
    for op, relaxed in reversed(list(zip(tape.ops, known.relaxations, strict=False))):
        if not any(ref.index in pending for ref in op.outputs):
            continue
        relaxation = rules.derive(op) if rules.is_affine(op) else relaxed
        if relaxation is None:
            continue  # Its outputs stay pending: their boxes are the end of the way.
        outs = [pending.pop(ref.index, None) or Sides(ref.zeros(), ref.zeros()) for ref in op.outputs]
        same = all(side.lower is side.upper for side in outs)
        out = Sides(tuple(s.lower for s in outs), tuple(s.upper for s in outs))
        out = Sides(out.lower, out.lower) if same else out
        coefficients, offset = _through(relaxation, out)
        lower, upper = lower + offset.lower, upper + offset.upper
        for ref, low, high in zip(op.refs, coefficients.lower, coefficients.upper, strict=True):
            pending[ref.index] = _add(pending.get(ref.index), Sides(low, high))
    for index, sides in pending.items():
        end = _concretize(sides, known.boxes[index])
        lower, upper = lower + end.lower, upper + end.upper
    return Interval(lower, upper)


def _through(relaxation: Relaxation, out: Sides) -> tuple[Sides, Sides]:
    """Coefficients of an op's operands from those of its outputs, and what its offsets add to either bound."""
    below, above = relaxation
    if below is above:
        coefficients = _shared(below.transpose, out)
        return coefficients, Sides(_dot(out.lower, below.offsets), _dot(out.upper, below.offsets))
    positive = Sides(*(jax.tree.map(lambda a: jnp.maximum(a, 0), side) for side in out))
    negative = Sides(*(jax.tree.map(lambda a: jnp.minimum(a, 0), side) for side in out))
    offset = Sides(
        _dot(positive.lower, below.offsets) + _dot(negative.lower, above.offsets),
        _dot(positive.upper, above.offsets) + _dot(negative.upper, below.offsets),
    )
    if below.transpose is above.transpose:
        return _shared(below.transpose, out), offset
    lower = jax.tree.map(jnp.add, below.transpose(positive.lower), above.transpose(negative.lower))
    upper = jax.tree.map(jnp.add, above.transpose(positive.upper), below.transpose(negative.upper))
    return Sides(lower, upper), offset


def _shared(transpose: Callable[[Arrays], Arrays], out: Sides) -> Sides:
    lower = transpose(out.lower)
    return Sides(lower, lower if out.upper is out.lower else transpose(out.upper))


def _add(a: Sides | None, b: Sides) -> Sides:
    if a is None:
        return b
    lower = a.lower + b.lower
    return Sides(lower, lower if a.lower is a.upper and b.lower is b.upper else a.upper + b.upper)


def _concretize(sides: Sides, box: Interval) -> Interval:
    """Exact range of a linear function over a box (Gowal et al., arXiv 1810.12715, eq. 6)."""
    return Interval(
        jnp.vdot(sides.lower, box.center) - jnp.vdot(jnp.abs(sides.lower), box.radius),
        jnp.vdot(sides.upper, box.center) + jnp.vdot(jnp.abs(sides.upper), box.radius),
    )


def _dot(coefficients: Arrays, values: Arrays | None) -> jax.Array | float:
    if values is None:
        return 0.0
    return sum(jnp.vdot(a, jnp.broadcast_to(v, a.shape)) for a, v in zip(coefficients, values, strict=True))


@dataclasses.dataclass(frozen=True)
class Bounded:
    """A function of intervals that returns intervals; what `ibp(f)` and the other domains return.

    Attributes:
      f: the function that is bounded.
      analyse: the domain: what it makes of a tape on its way forwards.
      backward: whether outputs are bounded by a backward pass, or by their boxes alone.
      chunk: rows of a backward pass that are in memory at a time; None for all.
    """

    f: Callable[..., Any]
    analyse: Callable[[Tape], Analysis]
    backward: bool = False
    chunk: int | None = None

    def __call__(self, *args: Any) -> Any:
        """Bound `f(*args)`, where any leaf of `args` may be an `Interval` and every other leaf is exact.

        Returns:
          The outputs of `f`, every array an `Interval` of its shape.

        Raises:
          BoundsError: where an interval is malformed.
          UnsupportedPrimitiveError: where an interval meets a primitive that has no rule for it.
        """
        tape = record(self.f, args)
        known = self.analyse(tape)
        return jax.tree.unflatten(tape.out_tree, [self._box(tape, known, out) for out in tape.outputs])

    def rows(self, rows: jax.Array, *args: Any) -> Interval:
        """Bound the linear functions `sum(rows[i] * f(*args))`, folded into the affine maps that end `f`.

        Args:
          rows: coefficients, `[rows, *shape of f's output]`.
          *args: as for a call.

        Returns:
          An `Interval` of shape `[rows]`.

        Raises:
          BoundsError: where `f` returns anything but one array, or `rows` don't fit it; and as a call does.
        """
        tape = record(self.f, args)
        if len(tape.outputs) != 1:
            raise BoundsError(f"rows wants a function of one output array, got one of {len(tape.outputs)}.")
        (out,) = tape.outputs
        if rows.shape[1:] != out.shape:
            raise BoundsError(f"rows wants coefficients of shape [rows, {_list(out.shape)}], got {list(rows.shape)}.")
        if not isinstance(out, Ref):
            value = jnp.tensordot(rows, out, axes=out.ndim)
            return Interval(value, value)
        return linear(tape, self.analyse(tape), out, rows, self.chunk)

    def _box(self, tape: Tape, known: Analysis, out: Operand) -> Interval:
        if not isinstance(out, Ref):
            return Interval(out, out)
        return tightened(tape, known, out, self.chunk) if self.backward else known.boxes[out.index]


def _list(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
