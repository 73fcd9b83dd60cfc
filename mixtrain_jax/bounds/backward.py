"""The backward pass: a linear function of values on the tape becomes one of values whose boxes are known.

It is pulled through the operations that made those values, each replaced by the affine functions below and above it.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mixtrain_jax.bounds import rounding, rules
from mixtrain_jax.bounds.interval import Ball, Interval
from mixtrain_jax.bounds.rules import Affine, Arrays, Relaxation
from mixtrain_jax.bounds.tape import Tape


class Reach(enum.IntEnum):
    """How a box relates to the values its ref can really take."""

    FREE = 0  # entries range over the box independently of each other
    EXACT = 1  # each entry attains both ends, though not together with the others
    ROUND = 2  # an affine function of a ball that is no box, whose range a backward pass finds exactly
    LOOSE = 3  # the box may be wider than the range


class Analysis(NamedTuple):
    """What a domain knows after its way forwards, one entry a ref and one an op."""

    boxes: list[Interval]
    reach: list[Reach]
    relaxations: list[Relaxation | None]  # of ops that are not affine; None: bounded by their boxes alone
    slack: list[Arrays | None]  # what rounding may add to an op's outputs, on its way forwards and back; None for 0
    floor: list[jax.Array | None]  # what underflow may add to a bound that is pulled through an op


class Linear(NamedTuple):
    """A linear function of values on the tape, or many, one a row."""

    seeds: dict[int, jax.Array]  # coefficients of each ref that it is of, in the ref's shape
    constant: jax.Array | float = 0.0


class Sides(NamedTuple):
    """Coefficients of the function below and of the one above; the same object twice where they agree."""

    lower: Any
    upper: Any


def pull(tape: Tape, known: Analysis, row: Linear, sound: bool = False) -> Interval:
    """Bound one linear function of values on the tape by pulling it back to its inputs.

    Args:
      tape: the recorded function.
      known: boxes of every ref and relaxations of every op that the row depends on; of affine ones they may be None.
      row: the function; where `sound` is asked for, its constant is 0.
      sound: whether the bound holds in floating point too.

    Returns:
      A scalar `Interval`.
    """
    pending, terms = pulled(tape, known, row.seeds, sound)
    terms += [_concretize(sides, known.boxes[index], sound) for index, sides in pending.items()]
    return _sum([*terms, Sides(row.constant, row.constant)], next(iter(row.seeds.values())).dtype, sound)


def pulled(
    tape: Tape, known: Analysis, seeds: Mapping[int, jax.Array], sound: bool = False
) -> tuple[dict[int, Sides], list[Sides]]:
    """The functions below and above that `pull` ends with: coefficients of refs, and the terms of their constants."""
    dot = rounding.total if sound else jnp.vdot
    pending = {index: Sides(seed, seed) for index, seed in seeds.items()}
    terms: list[Sides] = []
    ops = list(zip(tape.ops, known.relaxations, known.slack, known.floor, strict=False))
    for op, relaxed, slack, floor in reversed(ops):
        if not any(ref.index in pending for ref in op.outputs):
            continue
        relaxation = rules.derive(op) if relaxed is None and rules.is_affine(op) else relaxed
        if relaxation is None:
            continue  # Its outputs stay pending: their boxes are the end of the way.
        if slack is not None:
            relaxation = slackened(relaxation, slack)
        outs = [pending.pop(ref.index, None) or Sides(ref.zeros(), ref.zeros()) for ref in op.outputs]
        same = all(side.lower is side.upper for side in outs)
        out = Sides(tuple(s.lower for s in outs), tuple(s.upper for s in outs))
        out = Sides(out.lower, out.lower) if same else out
        coefficients, offset = _through(relaxation, out, dot)
        terms.append(offset)
        if floor is not None:
            terms.append(Sides(-floor, floor))
        for ref, low, high in zip(op.refs, coefficients.lower, coefficients.upper, strict=True):
            if low is not None:  # as it is for what is no number
                pending[ref.index] = _add(pending.get(ref.index), Sides(low, high))
    return pending, terms


def _sum(terms: list[Sides], dtype: Any, sound: bool) -> Interval:
    if not sound:
        terms = [Sides(*(jnp.asarray(x, dtype) for x in term)) for term in terms]
        return Interval(*(sum((getattr(term, side) for term in terms), jnp.zeros((), dtype)) for side in Sides._fields))
    wide = dtype if rounding.unit(dtype) <= rounding.unit(jnp.float32) else jnp.float32
    terms = [Sides(*(jnp.asarray(x, wide) for x in term)) for term in terms]
    total = Interval(*(sum((getattr(term, side) for term in terms), jnp.zeros((), wide)) for side in Sides._fields))
    sizes = Sides(
        *(sum((jnp.abs(getattr(term, side)) for term in terms), jnp.zeros((), wide)) for side in Sides._fields)
    )
    # Of the sum, and of the result in its own dtype.
    error = (rounding.gamma(len(terms), wide) + 4 * rounding.unit(dtype)) * jnp.maximum(*sizes) + rounding.tiny(dtype)
    return jax.tree.map(lambda x: x.astype(dtype), rounding.widen(total, error))


def slackened(relaxation: Relaxation, slack: Arrays) -> Relaxation:
    """The relaxation of an op that may be off by as much."""
    below, above = (side.offsets or (0.0,) * len(slack) for side in relaxation[:2])
    return Relaxation(
        Affine(relaxation.lower.transpose, tuple(b - e for b, e in zip(below, slack, strict=True))),
        Affine(relaxation.upper.transpose, tuple(b + e for b, e in zip(above, slack, strict=True))),
    )


def _through(relaxation: Relaxation, out: Sides, dot: Callable[..., jax.Array]) -> tuple[Sides, Sides]:
    """Coefficients of an op's operands from those of its outputs, and what its offsets add to either bound."""
    below, above = relaxation[:2]

    def _dot(coefficients: Arrays, values: Arrays | None) -> jax.Array | float:
        if values is None:
            return 0.0
        return sum(dot(a, jnp.broadcast_to(v, a.shape)) for a, v in zip(coefficients, values, strict=True))

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


def _concretize(sides: Sides, box: Interval, sound: bool) -> Sides:
    """Exact range of a linear function over a box (Gowal et al., arXiv 1810.12715, eq. 6), or over a ball inside it."""
    dot, size = jnp.vdot, math.prod(box.shape)
    end = _over_ball(sides, box, sound) if isinstance(box, Ball) else None
    if sound:
        dot, box = rounding.total, rounding.inflate(box, rounding.steps(size))
    ranges = Sides(
        dot(sides.lower, box.center) - dot(jnp.abs(sides.lower), box.radius),
        dot(sides.upper, box.center) + dot(jnp.abs(sides.upper), box.radius),
    )
    if sound:  # of the two products, and of their difference
        ranges = _widen_by(ranges, sides, rounding.magnitude(box), size)
    return ranges if end is None else Sides(jnp.maximum(end.lower, ranges.lower), jnp.minimum(end.upper, ranges.upper))


def _over_ball(sides: Sides, ball: Ball, sound: bool) -> Sides:
    """Exact range over a ball of the norm `p`: the dual norm of the coefficients is its half width (Hoelder)."""
    dot, size = rounding.total if sound else jnp.vdot, math.prod(ball.shape)

    def reach(a: jax.Array) -> jax.Array:
        if ball.norm == 1:
            return jnp.max(jnp.abs(a), initial=0)
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(a), initial=0))
        unit = jnp.where(largest > 0, largest, 1)  # so that squares neither overflow nor vanish
        square = dot(a / unit, a / unit)
        return unit * jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)

    spread = Sides(*(ball.eps * reach(a) for a in sides))
    ranges = Sides(dot(sides.lower, ball.point) - spread.lower, dot(sides.upper, ball.point) + spread.upper)
    if not sound:
        return ranges
    error = rounding.gamma(rounding.steps(size), ball.dtype)
    ranges = _widen_by(ranges, sides, jnp.abs(ball.point), size)
    return Sides(ranges.lower - error * spread.lower, ranges.upper + error * spread.upper)


def _widen_by(ranges: Sides, sides: Sides, sizes: jax.Array, size: int) -> Sides:
    error, least = rounding.gamma(2 * rounding.steps(size), sizes.dtype), rounding.tiny(sizes.dtype)
    low, high = (error * rounding.total(jnp.abs(a), sizes) + least * (size + sizes.sum()) for a in sides)
    return Sides(ranges.lower - low, ranges.upper + high)
