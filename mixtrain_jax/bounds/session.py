"""Trace a function once, analyse it on many subdomains, bound many rows: what complete verification is a loop over.

A subdomain keeps operands of nonlinear ops on one side of a split point. Its analysis intersects boxes that are known
for the whole domain with the split and propagates them forwards again; a backward pass may add multipliers of the
splits. All of it are pure functions of arrays, so that under `jax.vmap` many subdomains are one call and no trace.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import primitives

from mixtrain_jax.bounds import engine, functions, rounding, rules
from mixtrain_jax.bounds.alpha_crown import adaptive_slopes, with_slopes
from mixtrain_jax.bounds.backward import Analysis, Linear, pull, pulled
from mixtrain_jax.bounds.engine import Domain
from mixtrain_jax.bounds.errors import BoundsError
from mixtrain_jax.bounds.interval import Ball, Interval
from mixtrain_jax.bounds.tape import Op, Ref, Tape, at_highest_precision, record

Splits = Mapping[int, jax.Array]
"""Op on the tape -> the side of each entry's split point: -1 below, 1 above, 0 either; of the operand's shape."""

Points = Mapping[int, jax.Array]
"""Op on the tape -> the split point of each entry of its operand."""

_ROOT = Domain("adaptive", tighten=True, sound=True)
_PART = Domain("adaptive", sound=True)


def trace(f: Callable[..., Any], *args: Any) -> Tape:
    """Record `f(*args)`, of which any leaf may be an `Interval`, with every product of full precision.

    Raises:
      BoundsError: where an interval is malformed.
    """
    return at_highest_precision(record(f, args, functions.recognize))


def analyse(tape: Tape, *, budget: int | None = None) -> Analysis:
    """Boxes and relaxations of CROWN on the whole domain, sound in floating point.

    Args:
      tape: the recorded function.
      budget: bytes that the rows of a backward pass may take; for a call that is not under `jax.vmap`.
    """
    return engine.analyse(tape, dataclasses.replace(_ROOT, budget=budget))


def bound(tape: Tape, known: Analysis, rows: jax.Array) -> jax.Array:
    """Lower bounds of linear functions of the output, `[rows, *output] -> [rows]`, sound in floating point."""
    linear = Linear({output(tape).index: rows}, jnp.zeros(len(rows), rows.dtype))
    return engine.linear(tape, known, linear, _PART).lower


def split_points(tape: Tape, boxes: Sequence[Interval]) -> dict[int, jax.Array]:
    """Where operands can be split: at the kink of an op that has one, at the center of its box where it is smooth.

    Args:
      tape: the recorded function.
      boxes: of every ref, on the whole domain.

    Returns:
      The ops that can be split, in order. Maxima of several intervals, products and softmax are not among them.
    """
    points, taken = {}, set()
    for i, op in enumerate(tape.ops):
        point = _point(op, boxes)
        if point is not None and op.refs[0].index not in taken:  # what two ops share is split once, for both
            taken.add(op.refs[0].index)
            points[i] = jnp.broadcast_to(jnp.asarray(point, op.refs[0].dtype), op.refs[0].shape)
    return points


_AT_ZERO = ("abs", "leaky_relu")


def _point(op: Op, boxes: Sequence[Interval]) -> Any:
    rule = rules.find(op)
    if rules.is_affine(op) or not rule.relax or not rule.entrywise or len(op.refs) != 1 or len(op.outputs) != 1:
        return None
    (ref,), (out,) = op.refs, op.outputs
    if ref.shape != out.shape or not rules.is_float(ref):
        return None
    if op.primitive in (primitives.max_p, primitives.min_p):
        (threshold,) = (x for x in op.operands if not isinstance(x, Ref))
        return threshold
    if op.primitive.name in _AT_ZERO:
        return 0.0
    return boxes[ref.index].center if rule.family == "curve" else None


def unstable(tape: Tape, boxes: Sequence[Interval], points: Points) -> dict[int, jax.Array]:
    """Which entries have their split point strictly inside of their box, bool."""
    inside = {}
    for i, point in points.items():
        box = boxes[tape.ops[i].refs[0].index]
        inside[i] = (box.lower < point) & (point < box.upper)
    return inside


def clamped(tape: Tape, boxes: Sequence[Interval], points: Points, splits: Splits) -> list[Interval]:
    """The boxes with split operands on their side of the split point."""
    boxes = list(boxes)
    for i, signs in splits.items():
        index, point = tape.ops[i].refs[0].index, points[i]
        box = boxes[index]
        lower = jnp.where(signs > 0, jnp.maximum(box.lower, point), box.lower)
        upper = jnp.where(signs < 0, jnp.minimum(box.upper, point), box.upper)
        boxes[index] = dataclasses.replace(box, lower=lower, upper=upper)
    return boxes


def subdomain(tape: Tape, boxes: Sequence[Interval], points: Points, splits: Splits, *, sound: bool = True) -> Analysis:
    """The analysis of a subdomain: boxes forwards, within those of the whole domain and the splits.

    A box whose ends cross says that the subdomain is empty; all that follows from it is true.

    Args:
      tape: the recorded function.
      boxes: of every ref, on the whole domain.
      points: where operands are split.
      splits: the subdomain.
      sound: whether it holds in floating point.
    """
    known = clamped(tape, boxes, points, splits)
    inputs = known[: len(tape.inputs)]
    # Of a ball forwards the box alone: backward passes from every first layer are those of the whole domain.
    flat = dataclasses.replace(tape, inputs=tuple(Interval(x.lower, x.upper) for x in inputs))
    found = engine.analyse(
        flat, dataclasses.replace(_PART, sound=sound), [Analysis(known, [], [], [], [])], _uses(tape, points)
    )
    return found._replace(boxes=[*inputs, *found.boxes[len(inputs) :]])


def _uses(tape: Tape, points: Points) -> list[int]:
    """How many coefficients a backward pass adds up for each ref: multipliers come to those of its consumers."""
    uses = engine.uses_of(tape)
    for i in points:
        uses[tape.ops[i].refs[0].index] += 1
    return uses


def without_rounding(known: Analysis) -> Analysis:
    """The analysis for passes that reckon with real arithmetic: to search by, not to prove."""
    nothing: list[Any] = [None] * len(known.relaxations)
    return known._replace(slack=nothing, floor=nothing)


def start_slopes(tape: Tape, known: Analysis) -> dict[int, jax.Array]:
    """Lower slopes as CROWN takes them, of the ops whose slopes can be chosen."""
    return {i: adaptive_slopes(op, known) for i, op in _tunable(tape, known).items()}


def _tunable(tape: Tape, known: Analysis) -> dict[int, Op]:
    return {i: op for i, op in enumerate(tape.ops) if rules.find(op).tunable and known.relaxations[i] is not None}


def sloped(tape: Tape, known: Analysis, points: Points, slopes: Mapping[int, jax.Array], sound: bool) -> Analysis:
    """The analysis of a subdomain with other lower slopes, each in [0, 1]; any is sound."""
    ops = _tunable(tape, known)
    return with_slopes(known, ops, dict(slopes), _uses(tape, points), dataclasses.replace(_PART, sound=sound))


def seeds(tape: Tape, row: jax.Array, splits: Splits, multipliers: Mapping[int, jax.Array]) -> Linear:
    """The Lagrangian of a row: `row @ y - sum(multiplier * sign * z)` over split operands `z`, without its constant.

    Args:
      tape: the recorded function, of one output that depends on an interval.
      row: coefficients of the output, of its shape.
      splits: the subdomain.
      multipliers: no less than 0, of the operands' shapes (beta-CROWN, arXiv 2103.06624).
    """
    found = {output(tape).index: row}
    for i, signs in splits.items():
        index = tape.ops[i].refs[0].index
        assert index not in found  # no sum to be rounded
        found[index] = -multipliers[i] * signs.astype(row.dtype)
    return Linear(found)


def lower_bound(
    tape: Tape,
    known: Analysis,
    row: jax.Array,
    points: Points,
    splits: Splits,
    multipliers: Mapping[int, jax.Array],
    sound: bool,
) -> jax.Array:
    """A lower bound of `row @ y` on a subdomain, for any multipliers that are no less than 0 (weak duality).

    Args:
      tape: the recorded function, of one output that depends on an interval.
      known: the analysis of the subdomain; `without_rounding` where the bound is not `sound`.
      row: as for `seeds`.
      points: where operands are split.
      splits: as for `seeds`.
      multipliers: as for `seeds`.
      sound: whether the bound holds in floating point.

    Returns:
      A scalar.
    """
    lower = pull(tape, known, seeds(tape, row, splits, multipliers), sound).lower
    uses, unit = engine.uses_of(tape), rounding.unit(row.dtype)
    zero = jnp.zeros_like(lower)
    constant, size, error, least, steps = zero, zero, zero, zero, 8
    for i, signs in splits.items():
        index, weights = tape.ops[i].refs[0].index, multipliers[i] * signs.astype(row.dtype)
        constant = constant + rounding.total(weights, points[i])
        size = size + rounding.total(jnp.abs(weights), jnp.abs(points[i]))
        # Of adding multipliers to the coefficients of the operand; what that takes of these is in their slack.
        error = error + 4 * uses[index] * unit * rounding.total(
            jnp.abs(weights), rounding.magnitude(known.boxes[index])
        )
        least = least + rounding.tiny(row.dtype) * jnp.sum(points[i] != 0, dtype=row.dtype)
        steps += rounding.steps(points[i].size) + 1
    if not sound:
        return lower + constant
    share = rounding.gamma(steps, row.dtype)
    # Points at 0, as kinks of ReLUs are, add nothing.
    constant = jnp.where(least > 0, constant - share * (size + jnp.abs(lower)) - least, 0)
    error = jnp.where(error > 0, (1 + share) * error + 4 * unit * jnp.abs(lower), 0)
    return lower + constant - error


class Pressure(NamedTuple):
    """How a lower bound depends on what it is made of."""

    value: jax.Array
    coefficients: jax.Array  # of the first input, in the linear function that the bound is the least value of
    losses: dict[int, jax.Array]  # what the bound loses to the relaxation of each entry of an op, no less than 0


def pressure(tape: Tape, known: Analysis, points: Points, bound: Callable[[Analysis], jax.Array]) -> Pressure:
    """A lower bound, what it loses to each relaxation, and where in the input it is attained.

    An entry costs the gap between its lines and its function at the split point times its coefficient. For a ReLU that
    is `|min(coefficient, 0)| * -l u / (u - l)`, the intercept score of BaBSR (arXiv 1909.06588).

    Args:
      tape: the recorded function.
      known: an analysis.
      points: where operands are split.
      bound: the bound as a function of the analysis.
    """

    def disturbed(shift: jax.Array, shares: dict[int, jax.Array]) -> jax.Array:
        relaxations, boxes = list(known.relaxations), list(known.boxes)
        for i, share in shares.items():
            relaxations[i] = _moved(tape.ops[i], relaxations[i], points[i], share)
        boxes[0] = _shifted(boxes[0], shift)
        return bound(known._replace(relaxations=relaxations, boxes=boxes))

    none = {i: jnp.zeros_like(points[i]) for i in points if known.relaxations[i] is not None}
    value, (slopes, lost) = jax.value_and_grad(disturbed, (0, 1))(tape.input_refs()[0].zeros(), none)
    return Pressure(value, slopes, jax.tree.map(lambda slope: jnp.maximum(-slope, 0), lost))


def _shifted(box: Interval, by: jax.Array) -> Interval:
    moved = {"lower": box.lower + by, "upper": box.upper + by}
    return dataclasses.replace(box, **moved, **({"point": box.point + by} if isinstance(box, Ball) else {}))


def _moved(op: Op, relaxation: Any, at: jax.Array, share: jax.Array) -> rules.Relaxation:
    """The relaxation, its lines moved apart by a share of their distance from the function at a point."""
    (value,) = op.of_refs(at)

    def moved(side: rules.Affine, sign: int) -> rules.Affine:
        (slope,) = side.transpose((jnp.ones_like(at),))
        offset = jnp.zeros_like(at) if side.offsets is None else side.offsets[0]
        gap = jnp.maximum(sign * (slope * at + offset - value), 0)
        return rules.Affine(side.transpose, (offset + sign * share * gap,))

    return rules.Relaxation(moved(relaxation.lower, -1), moved(relaxation.upper, 1))


def coefficients(tape: Tape, known: Analysis, rows: Linear) -> jax.Array:
    """Coefficients of the first input in the linear function that bounds one row from below."""
    pending, _ = pulled(tape, known, rows.seeds)
    x = tape.input_refs()[0]
    return pending[x.index].lower if x.index in pending else x.zeros()


def output(tape: Tape) -> Ref:
    """The one output of a function.

    Raises:
      BoundsError: where there are several, or it does not depend on an interval.
    """
    if len(tape.outputs) != 1 or not isinstance(tape.outputs[0], Ref):
        raise BoundsError(
            f"Wanted a function of one output that depends on its input, got one of {len(tape.outputs)} outputs"
            f"{', a constant' if len(tape.outputs) == 1 else ''}."
        )
    return tape.outputs[0]
