"""The one engine: boxes forwards, linear functions backwards.

Forwards, each operation turns the boxes of its operands into boxes of its outputs; backward passes make them tighter.
Domains differ only in what they relax and which intermediate boxes they tighten that way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives
from jax.typing import ArrayLike

from mixtrain_jax.bounds import custom_rule, elementwise, functions, pooling, rounding, rules, windows  # noqa: F401  (the first four register)
from mixtrain_jax.bounds.affine_end import differences_over, through_affine_end
from mixtrain_jax.bounds.backward import Analysis, Linear, Reach, Sides, pull, pulled
from mixtrain_jax.bounds.errors import BoundsError
from mixtrain_jax.bounds.interval import Ball, Interval, concrete, intersect, refined
from mixtrain_jax.bounds.loops import map_rows
from mixtrain_jax.bounds.relaxations import Slopes
from mixtrain_jax.bounds.rules import Arrays, Relaxation
from mixtrain_jax.bounds.tape import Op, Operand, Ref, Tape, at_highest_precision, is_interval, record
from mixtrain_jax.bounds.undefined import Undefined, explain, undefined

_FEW = 32  # classes, up to which it saves more to leave the label out than it costs to tell the others apart


@dataclasses.dataclass(frozen=True)
class Domain:
    """What a way of bounding does.

    Attributes:
      slopes: how ops that are not affine are relaxed; None not to, but to stop at their boxes.
      tighten: whether the operands of relaxed ops get boxes from a backward pass, intersected with their interval ones.
      chunk: rows of a backward pass that are in memory at a time; None for all.
      budget: bytes that the rows of a backward pass may take, for one call that is not under `vmap`; it sets `chunk`.
      sound: whether bounds hold in floating point too.
    """

    slopes: Slopes | None = None
    tighten: bool = False
    chunk: int | None = None
    budget: int | None = None
    sound: bool = False

    def __post_init__(self) -> None:
        for name in ("chunk", "budget"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise BoundsError(f"A bound wants {name} to be a positive integer or None, got {value!r}.")

    def within(self, other: Domain) -> Domain:
        """As it is where it is part of another: sound if that is, and with that one's limits if it has none."""
        sound = self.sound or other.sound
        if self.chunk or self.budget:
            return dataclasses.replace(self, sound=sound)
        return dataclasses.replace(self, sound=sound, chunk=other.chunk, budget=other.budget)

    def rows_at_a_time(self, tape: Tape) -> int | None:
        """Rows of a backward pass that fit the budget."""
        if self.chunk is not None or self.budget is None:
            return self.chunk
        refs = (*tape.input_refs(), *(ref for op in tape.ops for ref in op.outputs))
        largest = max((math.prod(ref.shape) * jnp.dtype(ref.dtype).itemsize for ref in refs), default=1)
        # Coefficients of both sides, before and after an op, their positive and negative parts, and a scratch copy.
        return max(1, self.budget // max(1, 10 * largest))


def analyse(tape: Tape, domain: Domain, hints: Sequence[Analysis] = (), uses: Sequence[int] | None = None) -> Analysis:
    """Walk the tape forwards.

    Args:
      tape: the recorded function.
      domain: what to do.
      hints: other analyses of the tape, whose boxes are intersected with those found here.
      uses: how many coefficients a backward pass adds up for each ref; by default as many as it is an operand.
    """
    known = Analysis(list(tape.inputs), [_of_input(x) for x in tape.inputs], [], [], [])
    uses = uses_of(tape) if uses is None else uses
    for op in tape.ops:
        rule, affine = rules.find(op), rules.is_affine(op)
        relaxed = None
        if not affine:
            _tighten_operands(tape, known, op, rule, domain)
        if domain.slopes and rule.relax and not affine and all(map(rules.is_float, op.outputs)):
            relaxed = rule.relax(op, read(known, op), domain.slopes)
        boxes = _forwards(op, rule, read(known, op), domain.sound)
        for hint in hints:
            others = (hint.boxes[ref.index] for ref in op.outputs)
            boxes = [intersect(box, other) for box, other in zip(boxes, others, strict=True)]
        known.boxes.extend(boxes)
        known.reach.extend([_reach(op, rule, known.reach)] * len(op.outputs))
        known.relaxations.append(relaxed)
        relaxation = rules.derive(op) if affine else relaxed
        known.slack.append(slack(op, relaxation, known, uses) if domain.sound and relaxation else None)
        known.floor.append(_floor(op, known, relaxation) if domain.sound and relaxation else None)
    return known


def _of_input(x: Interval) -> Reach:
    return Reach.ROUND if isinstance(x, Ball) else Reach.FREE


def _tighten_operands(tape: Tape, known: Analysis, op: Op, rule: rules.Rule, domain: Domain) -> None:
    for ref in op.refs:
        if (domain.tighten and domain.slopes and rule.relax) or known.reach[ref.index] is Reach.ROUND:
            needed = None
            if rule.stable and len(op.refs) == 1:
                needed = jnp.broadcast_to(~rule.stable(op, read(known, op)), ref.shape)
            known.boxes[ref.index] = tightened(tape, known, ref, domain, needed)
            known.reach[ref.index] = min(known.reach[ref.index], Reach.EXACT)


def _forwards(op: Op, rule: rules.Rule, operands: list[rules.Value], sound: bool) -> list[Interval]:
    """Boxes of the outputs of an op; for sums and products of many, through a box that rounding can't leave."""
    if not sound:
        return list(rule.interval(op, operands))
    terms, _ = rule.terms(op)
    inflated = operands
    if rules.accumulates(op) and all(map(rules.is_float, op.refs)):
        inflated = [rounding.inflate(x, terms) if isinstance(x, Interval) else x for x in operands]
    boxes = list(rule.interval(op, inflated))
    errors = rule.rounded(op, operands, boxes) if rule.rounded else [None] * len(boxes)
    boxes = [_widened(box, error) for box, error in zip(boxes, errors, strict=True)]
    if inflated is not operands:
        boxes = [_widened(box, jnp.asarray(terms * rounding.tiny(box.dtype), box.dtype)) for box in boxes]
    if rule.limits is None or not all(map(rules.is_float, op.outputs)):
        return boxes
    return [rounding.within(box, rule.limits(op, operands)) for box in boxes]


def _widened(box: Interval, error: rounding.Error | jax.Array | None) -> Interval:
    if error is None or not jnp.issubdtype(box.dtype, jnp.floating):
        return box
    return rounding.widen(box, error)


def slack(op: Op, relaxation: Relaxation, known: Analysis, uses: Sequence[int]) -> Arrays | None:
    """How much rounding may move an op from its relaxation, and the relaxation's backward pass from itself.

    With `A` the coefficients of the outputs, an error `e` in an output adds at most `|A| |e|`. So do errors of the
    backward map, which are relative to `|A| |W| |x|`, `|W| |x|` being the op's scale; and those of summing the offsets.
    """
    rule, operands = rules.find(op), read(known, op)
    boxes = [known.boxes[ref.index] for ref in op.outputs]
    (theirs, ours), paths = rule.terms(op), max(uses[ref.index] for ref in op.refs)
    if rules.is_affine(op) and rule.rounded is None and max(ours, paths) == 1 and relaxation.lower.offsets is None:
        return None
    if relaxation.scale is not None:
        scale = relaxation.scale
    elif rules.accumulates(op):
        scale = op.bind(*(rounding.magnitude(x) if _is_floating(x) else x for x in operands))
    else:
        scale = tuple(map(rounding.magnitude, boxes))
    errors = map(rounding.largest, rule.rounded(op, operands, boxes)) if rule.rounded else (0.0,) * len(boxes)
    offsets = [side.offsets or (0.0,) * len(boxes) for side in relaxation[:2]]
    dtype = rounding.coarsest(*(ref.dtype for ref in (*op.refs, *op.outputs)))
    return tuple(
        (rounding.gamma(theirs + ours, dtype) + 2 * (paths - 1) * rounding.unit(dtype)) * size
        + error
        + rounding.gamma(rounding.steps(math.prod(ref.shape)), dtype) * jnp.maximum(jnp.abs(a), jnp.abs(b))
        for ref, size, error, a, b in zip(op.outputs, scale, errors, *offsets, strict=True)
    )


def _is_floating(x: rules.Value) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _floor(op: Op, known: Analysis, relaxation: Relaxation) -> jax.Array:
    """A product of coefficients may vanish where it is tiny, and then loses as much times what it multiplies."""
    _, ours = rules.find(op).terms(op)
    floor = jnp.zeros(()) + relaxation.floor
    for ref in op.refs:
        if rules.is_float(ref):
            box = known.boxes[ref.index]
            floor = floor + (ours + 1) * rounding.tiny(ref.dtype) * rounding.magnitude(box).sum().astype(floor.dtype)
    return floor


def uses_of(tape: Tape) -> list[int]:
    """How often each ref is an operand."""
    count = [0] * (1 + max((ref.index for op in tape.ops for ref in op.outputs), default=len(tape.inputs) - 1))
    for op in tape.ops:
        for ref in op.refs:
            count[ref.index] += 1
    return count


def read(known: Analysis, op: Op) -> list[rules.Value]:
    """The operands of an op, boxes in the place of refs."""
    return [known.boxes[x.index] if isinstance(x, Ref) else x for x in op.operands]


def _reach(op: Op, rule: rules.Rule, reach: list[Reach]) -> Reach:
    before = [reach[ref.index] for ref in op.refs]
    if rules.is_affine(op) and Reach.ROUND in before and Reach.LOOSE not in before:
        return Reach.ROUND
    if len(before) != 1:
        return Reach.LOOSE
    (ref,) = op.refs
    copies = math.prod(op.outputs[0].shape) > math.prod(ref.shape)
    if rule.entrywise or (op.primitive is primitives.broadcast_in_dim_p and not copies):  # a new axis of one
        return max(before[0], Reach.EXACT) if copies else before[0]
    return Reach.EXACT if rules.is_affine(op) and before[0] is Reach.FREE else Reach.LOOSE


def tightened(tape: Tape, known: Analysis, ref: Ref, domain: Domain, needed: jax.Array | None = None) -> Interval:
    """Box of a ref from a backward pass over each of its entries, never looser than the box known already.

    Args:
      tape: the recorded function.
      known: what is known of what comes before the ref.
      ref: the value to bound.
      domain: what to do.
      needed: entries for which a better box is of use; chunks without any are left out. None for all.
    """
    box = known.boxes[ref.index]
    if known.reach[ref.index] < Reach.ROUND or not jnp.issubdtype(ref.dtype, jnp.floating):
        return box
    size, chunk = math.prod(ref.shape), domain.rows_at_a_time(tape)
    if (bound := windows.tightened(tape, known, ref, domain.sound, chunk)) is not None:
        return refined(box, bound)

    def entry(i: jax.Array) -> Interval:
        seed = (jnp.arange(size) == i).astype(ref.dtype).reshape(ref.shape)
        return pull(tape, known, Linear({ref.index: seed}), domain.sound)

    if needed is None or chunk is None or chunk >= size:
        bound = map_rows(entry, jnp.arange(size), chunk)
    else:
        bound = _map_needed(entry, needed.reshape(-1), box, chunk)
    return refined(box, jax.tree.map(lambda x: x.reshape(ref.shape), bound))


def _map_needed(f: Callable[[jax.Array], Interval], needed: jax.Array, box: Interval, chunk: int) -> Interval:
    """Rows in chunks, the needed ones first, and nothing for chunks of which none is."""
    size = needed.size
    order = jnp.argsort(~needed, stable=True)
    order = jnp.concatenate([order, order[: -size % chunk]]).reshape(-1, chunk)
    known = Interval(box.lower.reshape(-1), box.upper.reshape(-1))

    def rows(places: jax.Array) -> Interval:
        return jax.lax.cond(
            needed[places].any(), jax.vmap(f), lambda i: Interval(known.lower[i], known.upper[i]), places
        )

    found = jax.lax.map(rows, order)
    places = order.reshape(-1)[:size]
    return jax.tree.map(lambda x, y: x.at[places].set(y.reshape(-1)[:size]), known, found)


def linear(tape: Tape, known: Analysis, rows: Linear, domain: Domain) -> Interval:
    """Bounds of linear functions, never looser than stopping at the last ops that are not affine.

    Args:
      tape: the recorded function.
      known: what a domain found on its way forwards.
      rows: the functions.
      domain: what to do.

    Returns:
      An `Interval` of shape `[rows]`.
    """

    def bound(relaxations: list[Relaxation | None]) -> Interval:
        part = known._replace(relaxations=relaxations)
        return map_rows(lambda row: pull(tape, part, row, domain.sound), rows, domain.rows_at_a_time(tape))

    folded = bound([None] * len(known.relaxations))
    return refined(folded, bound(known.relaxations)) if any(known.relaxations) else folded


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hidden:
    """What is known of one operand of an op that is not affine.

    Attributes:
      operation: name of the op; `max` for a ReLU.
      source: the user's line that made it.
      box: all values the operand can take.
      unstable: bool of the box's shape, entries over which the op bends; None for ops that bend everywhere.
    """

    operation: str = dataclasses.field(metadata={"static": True})
    source: str = dataclasses.field(metadata={"static": True})
    box: Interval
    unstable: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Bounded:
    """A function of intervals that returns intervals; what `ibp(f)` and the other domains return.

    Attributes:
      f: the function that is bounded.
      domain: how.
      others: further ways of bounding it; their boxes and results are intersected with its own.
      finish: how linear functions of an output are bounded at the end, `linear` unless a domain knows better.
    """

    f: Callable[..., Any]
    domain: Domain
    others: tuple[Bounded, ...] = ()
    finish: Callable[[Tape, Analysis, Linear, Domain], Interval] = linear

    def __call__(self, *args: Any) -> Any:
        """Bound `f(*args)`, where any leaf of `args` may be an `Interval` and every other leaf is exact.

        Returns:
          The outputs of `f`, every array an `Interval` of its shape.

        Raises:
          BoundsError: where an interval is malformed or no argument is one; and where a bound is NaN, with the
            operation and the line in which NaN arises. Under `jit` and `vmap`, where values are not known, it is
            returned and proves nothing.
          UnsupportedPrimitiveError: where an interval meets a primitive that has no rule for it.
        """
        tape = self._record(args)
        analyses = self._analyses(tape)
        bounds = [_box(tape, analyses, out) for out in tape.outputs]
        _refuse_nan(bounds, tape, analyses)
        return jax.tree.unflatten(tape.out_tree, bounds)

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
        tape, out, rows = self._record_rows(rows, args)
        if not isinstance(out, Ref):
            return _exact_rows(rows, out, self.domain.sound)
        return self._best_of(tape, _of_rows(out, rows))

    def differences(self, label: ArrayLike, *args: Any) -> Interval:
        """Bound `f(*args)[label] - f(*args)[j]` for every other index `j`, folded into the affine maps that end `f`.

        As `rows` of such differences, at a fraction of their cost where there are many: what the maps make of each
        output does not depend on the label.

        Args:
          label: an index.
          *args: as for a call; `f` returns an array `[classes]` of them.

        Returns:
          An `Interval` of shape `[classes - 1]`, the others in order.

        Raises:
          BoundsError: where `f` returns anything but one array of one dimension; and as a call does.
        """
        tape = self._record(args)
        shapes = [jnp.shape(out) for out in tape.outputs]
        if len(shapes) != 1 or len(shapes[0]) != 1:
            raise BoundsError(f"differences wants a function of one output array [classes], got outputs of {shapes}.")
        (out,), ((classes,),) = tape.outputs, shapes
        many = classes > _FEW

        def others(x: jax.Array) -> jax.Array:
            before = (jnp.arange(classes - 1) < label).reshape(-1, *[1] * (x.ndim - 1))
            return jnp.where(before, x[:-1], x[1:])

        def differ(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_index_in_dim(x, label) - (x if many else others(x))

        every = jnp.eye(classes, dtype=jnp.result_type(out))
        if not isinstance(out, Ref):
            bound = _exact_rows(differ(every), out, self.domain.sound)
        elif self.domain.sound:  # rounding is reckoned op by op
            bound = self._best_of(tape, _of_rows(out, differ(every)))
        else:
            every, known = through_affine_end(tape, out), self._analyses(tape)
            boxes = known[0][1].boxes
            forwards = len(known) == 1 and not self.domain.slopes and self.finish is linear
            if many and forwards and not any(isinstance(boxes[index], Ball) for index in every.seeds):
                bound = differences_over(every, label, boxes)
            else:
                bound = self._best_of(tape, jax.tree.map(differ, every))
        return jax.tree.map(others, bound) if many else bound

    def _best_of(self, tape: Tape, rows: Linear) -> Interval:
        analyses = self._analyses(tape)
        bound = _best([way.finish(tape, known, rows, way.domain) for way, known in analyses])
        _refuse_nan([bound], tape, analyses)
        return bound

    def coefficients(self, rows: jax.Array, x: Interval) -> tuple[Interval, Sides]:
        """As `rows` for one input, with the coefficients of the linear functions of it that bound each row.

        Args:
          rows: coefficients, `[rows, *shape of f's output]`.
          x: the ball, `[...]`.

        Returns:
          The bounds `[rows]`, as `rows` does; and coefficients below and above, `[rows, ...]`. They are those of the
          last backward pass of this way of bounding, also where another pass or another way is tighter.

        Raises:
          BoundsError: where the way has no linear functions, as `ibp` has none; and as `rows` does.
        """
        if self.domain.slopes is None:
            raise BoundsError("Coefficients come from linear bounds (symbolic, crown, crown_ibp), and ibp has none.")
        tape, out, rows = self._record_rows(rows, (x,))
        nothing = jnp.zeros((len(rows), *x.shape), x.dtype)
        if not isinstance(out, Ref):
            return _exact_rows(rows, out, self.domain.sound), Sides(nothing, nothing)
        analyses = self._analyses(tape)
        known = analyses[0][1]

        def of(row: jax.Array) -> Sides:
            return pulled(tape, known, {out.index: row})[0].get(0, Sides(nothing[0], nothing[0]))  # x is the first ref

        bounds = [way.finish(tape, known, _of_rows(out, rows), way.domain) for way, known in analyses]
        return _best(bounds), map_rows(of, rows, self.domain.rows_at_a_time(tape))

    def _record_rows(self, rows: jax.Array, args: Sequence[Any]) -> tuple[Tape, Operand, jax.Array]:
        tape = self._record(args)
        if len(tape.outputs) != 1:
            raise BoundsError(f"rows wants a function of one output array, got one of {len(tape.outputs)}.")
        (out,) = tape.outputs
        if jnp.shape(rows)[1:] != jnp.shape(out):
            raise BoundsError(
                f"rows wants coefficients of shape [rows, {_list(out.shape)}], got {list(jnp.shape(rows))}."
            )
        return tape, out, jnp.asarray(rows, jnp.result_type(out))

    def hidden(self, *args: Any) -> list[Hidden]:
        """The boxes at every op that is not affine, such as the inputs of ReLUs, in the order of the computation.

        Args:
          *args: as for a call.

        Raises:
          BoundsError: as a call does.
        """
        tape = self._record(args)
        known = self._analyses(tape)[0][1]
        found = []
        for op in tape.ops:
            rule = rules.find(op)
            if rule.relax and not rules.is_affine(op):
                unstable = None
                if rule.stable and len(op.refs) == 1:
                    unstable = jnp.broadcast_to(~rule.stable(op, read(known, op)), op.refs[0].shape)
                found.extend(Hidden(op.primitive.name, op.source(), known.boxes[r.index], unstable) for r in op.refs)
        return found

    def undefined(self, *args: Any) -> list[Undefined]:
        """Every operation, in the order of the computation, with whether NaN arises in it.

        `bounds.explain` says what that means. Works under `jit` and `vmap` too, where a NaN bound raises no error.

        Args:
          *args: as for a call.

        Raises:
          BoundsError: where an interval is malformed.
        """
        tape = self._record(args)
        return undefined(tape, self._analyses(tape)[0][1])

    def _record(self, args: Sequence[Any]) -> Tape:
        if not any(is_interval(leaf) for leaf in jax.tree.leaves(args, is_leaf=is_interval)):
            raise BoundsError(
                "None of the arguments is an Interval, so there is nothing to bound. Give the input as one, such as "
                "mt.linf_ball(x, eps=8 / 255, domain=(0, 1))."
            )
        tape = record(self.f, args, functions.recognize)
        return at_highest_precision(tape) if self.domain.sound else tape

    def _analyses(self, tape: Tape) -> list[tuple[Bounded, Analysis]]:
        """This way of bounding, alone or with the boxes of all ways, and the others each by itself."""
        alone = [(way, analyse(tape, way.domain)) for way in (self, *self.others)]
        if not self.others:
            return alone
        return [(self, analyse(tape, self.domain, [known for _, known in alone])), *alone]


def _refuse_nan(bounds: Sequence[Interval], tape: Tape, analyses: Sequence[tuple[Bounded, Analysis]]) -> None:
    """Raise where a bound has a value and that is NaN."""
    ends = [concrete(end) for bound in bounds for end in (bound.lower, bound.upper)]
    values = [end for end in ends if end is not None]
    if len(values) < len(ends) or not any(np.isnan(end).any() for end in values):
        return
    raise BoundsError(f"The bound is NaN. {explain(undefined(tape, analyses[0][1]))}")


def joined(
    f: Callable[..., Any],
    domain: Domain,
    methods: Sequence[Callable[[Callable[..., Any]], Bounded]],
    finish: Callable[[Tape, Analysis, Linear, Domain], Interval] = linear,
) -> Bounded:
    """A way of bounding `f` whose boxes are intersected with those of other methods.

    What holds of it must hold of all it uses: the other methods are sound where it is, and take no more memory.

    Raises:
      BoundsError: where another method is none.
    """
    if not isinstance(methods, Sequence):
        raise BoundsError(f"intersect wants a tuple of methods, such as (mt.symbolic,), got {methods!r}.")
    others: list[Bounded] = []
    for method in methods:
        way = method(f) if callable(method) else None
        if not isinstance(way, Bounded):
            raise BoundsError(f"intersect wants methods such as mt.ibp and mt.symbolic, got {method!r}.")
        ways = (dataclasses.replace(way, others=()), *way.others)
        others.extend(dataclasses.replace(each, domain=each.domain.within(domain)) for each in ways)
    return Bounded(f, domain, tuple(others), finish)


def _of_rows(ref: Ref, rows: jax.Array) -> Linear:
    return Linear({ref.index: rows}, jnp.zeros(len(rows), rows.dtype))


def _exact_rows(rows: jax.Array, out: jax.Array, sound: bool) -> Interval:
    """Linear functions of an output that no interval reaches."""
    value = jnp.tensordot(rows, out, axes=jnp.ndim(out), precision=jax.lax.Precision.HIGHEST)
    if not sound:
        return Interval(value, value)
    sizes = jnp.tensordot(jnp.abs(rows), jnp.abs(out), axes=jnp.ndim(out), precision=jax.lax.Precision.HIGHEST)
    error = rounding.gamma(jnp.size(out), rows.dtype) * sizes + jnp.size(out) * rounding.tiny(rows.dtype)
    return rounding.widen(Interval(value, value), error.astype(value.dtype))


def _box(tape: Tape, analyses: Sequence[tuple[Bounded, Analysis]], out: Operand) -> Interval:
    if not isinstance(out, Ref):
        return Interval(out, out)
    return _best([_finished(tape, way, known, out) for way, known in analyses])


def _finished(tape: Tape, way: Bounded, known: Analysis, out: Ref) -> Interval:
    floating = jnp.issubdtype(out.dtype, jnp.floating)
    if way.finish is not linear and floating and known.reach[out.index] is Reach.LOOSE:
        size = math.prod(out.shape)
        rows = jnp.eye(size, dtype=out.dtype).reshape(size, *out.shape)
        bound = way.finish(tape, known, _of_rows(out, rows), way.domain)
        return refined(known.boxes[out.index], jax.tree.map(lambda x: x.reshape(out.shape), bound))
    if way.domain.slopes or known.reach[out.index] is Reach.ROUND:
        return tightened(tape, known, out, way.domain)
    return known.boxes[out.index]


def _best(bounds: Sequence[Interval]) -> Interval:
    best, *rest = bounds
    for bound in rest:
        best = intersect(best, bound)
    return best


def _list(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
