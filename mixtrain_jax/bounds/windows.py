"""Backward passes of convolutions over the windows that their entries see.

An entry of a convolution's output depends on a window of what comes before: its receptive field. A backward pass for
every entry needs no more than the coefficients in there, a small part of the map in the first layers. So each entry of
one position is pulled back through convolutions of windows; what belongs to places, such as slopes and boxes, is cut
out per position. Entries of a window beyond the edge of the map are padding, of which nothing is known: their
coefficients are set to 0 as soon as they arise. Where windows get large or an operation does not keep them, they are
put into the whole map, and the pass goes on as any other.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives

from mixtrain_jax.bounds import rules
from mixtrain_jax.bounds.backward import Analysis, Linear, pull, slackened
from mixtrain_jax.bounds.interval import Ball, Interval
from mixtrain_jax.bounds.loops import map_rows
from mixtrain_jax.bounds.rules import Affine, Arrays, Relaxation
from mixtrain_jax.bounds.tape import Op, Ref, Tape

LARGEST = 0.5  # part of a map from which windows of it are not worth their while


class Span(NamedTuple):
    """The windows along one dimension: `size` entries from `step * position[axis] + start` on."""

    axis: int
    step: int
    start: int
    size: int

    def at(self, position: jax.Array, first: int = 0) -> jax.Array:
        """Where the window of a position starts, in a map whose first entry is number `first`."""
        return self.step * position[self.axis] + (self.start - first)

    def ends(self, grid: Sequence[int]) -> tuple[int, int]:
        """The lowest start, and the highest end."""
        return self.start, self.start + self.step * (grid[self.axis] - 1) + self.size


Place = tuple[Span | None, ...]  # the windows of a ref, one span a dimension; None for all of a dimension
Position = jax.Array  # of an entry along the dimensions that have windows


def tightened(tape: Tape, known: Analysis, ref: Ref, sound: bool = False, chunk: int | None = None) -> Interval | None:
    """Box of a ref from a backward pass over each of its entries, by windows; the same as without them.

    Args:
      tape: the recorded function.
      known: what is known of what comes before the ref.
      ref: the value to bound.
      sound: whether the bounds hold in floating point too.
      chunk: rows of a pass without windows that fit in memory; there are more at a time here, as they are smaller.

    Returns:
      The box; None where there are no windows, or none that are small.
    """
    places = _plan(tape, known, ref) or {}
    if (place := places.get(ref.index)) is None:
        return None
    upstream, moving = _refs(tape, places), [d for d, span in enumerate(place) if span]
    grid, still = [ref.shape[d] for d in moving], [d for d in range(len(place)) if d not in moving]
    parts, boxes = _parts(tape, known, places, grid)
    kept = dataclasses.replace(tape, ops=tuple(part.op for part in parts))
    count, shape = math.prod(ref.shape[d] for d in still), _shape(ref, place)
    rows = _rows(upstream, places, chunk)

    def of_position(position: Position) -> Interval:
        here = _at(known, parts, boxes, position)

        def entry(i: jax.Array) -> Interval:
            seed = (jnp.arange(count) == i).astype(ref.dtype).reshape(shape)
            return pull(kept, here, Linear({ref.index: seed}), sound)

        return map_rows(entry, jnp.arange(count), rows and _divisor(count, rows))

    positions = jnp.asarray(np.indices(grid).reshape(len(grid), -1).T)
    bound = map_rows(of_position, positions, rows and _divisor(len(positions), rows // count))
    order = np.argsort([*moving, *still])
    return jax.tree.map(lambda x: x.reshape(*grid, *(ref.shape[d] for d in still)).transpose(order), bound)


# --- which windows --------------------------------------------------------------------------------------------------


def _plan(tape: Tape, known: Analysis, ref: Ref) -> dict[int, Place | None] | None:
    """The windows of every ref that a pass gets to, None for those it needs whole; None if no convolution has any."""
    first = _first(tape, ref)
    if first is None:
        return None
    places: dict[int, Place | None] = {ref.index: first}
    small = False
    for op, relaxed in reversed(list(zip(tape.ops, known.relaxations, strict=False))):
        reached = [out.index for out in op.outputs if out.index in places]
        if not reached or (relaxed is None and not rules.is_affine(op)):
            continue
        before = _before(op, places)
        if before is None:
            places.update(dict.fromkeys(reached))
            before = [None] * len(op.refs)
        for x, place in zip(op.refs, before, strict=True):
            joined = _joined(places[x.index], place) if x.index in places else place
            whole = joined is None or _large(x, joined) or isinstance(known.boxes[x.index], Ball)
            places[x.index] = None if whole else joined
        small |= _is_window_sum(op) and places[op.refs[0].index] is not None
    return places if small else None


def _first(tape: Tape, ref: Ref) -> Place | None:
    """One entry along the spatial dimensions of a convolution that the ref comes from; None if there is none."""
    entry = tuple(Span(d, 1, 0, 1) if n != 1 else None for d, n in enumerate(ref.shape))
    places: dict[int, Place | None] = {ref.index: entry}
    for op in reversed(tape.ops):
        place = places.get(op.outputs[0].index)
        if place is None:
            continue
        if op.primitive is primitives.conv_general_dilated_p:
            moving = sorted(span.axis for d in op.params["dimension_numbers"].out_spec[2:] if (span := place[d]))
            first = tuple(Span(moving.index(d), 1, 0, 1) if d in moving else None for d in range(len(entry)))
            return first if moving else None
        if not _is_window_sum(op) and (before := _before(op, places)):
            places.update((x.index, place) for x, place in zip(op.refs, before, strict=True))
    return None


def _before(op: Op, places: dict[int, Place | None]) -> list[Place | None] | None:
    """The windows of an op's operands from those of its output; None where it needs them whole."""
    place = places.get(op.outputs[0].index)
    if place is None or len(op.outputs) != 1 or not all(jnp.issubdtype(x.dtype, jnp.floating) for x in op.refs):
        return None
    if _is_entrywise(op):
        return [place] * len(op.refs)
    if op.primitive is primitives.transpose_p:
        return [tuple(place[op.params["permutation"].index(d)] for d in range(len(place)))]
    if op.primitive in (primitives.reshape_p, primitives.squeeze_p, primitives.broadcast_in_dim_p):
        return _before_reshape(op, place)
    if _is_window_sum(op):
        return _before_sum(op, place)
    return None


_MOVES = (primitives.copy_p, primitives.convert_element_type_p, primitives.stop_gradient_p)
_SUMS = (primitives.add_p, primitives.add_jaxvals_p, primitives.sub_p, primitives.neg_p)
_OTHERS = (primitives.mul_p, primitives.div_p, primitives.max_p, primitives.min_p)


def _is_entrywise(op: Op) -> bool:
    """Whether each entry of the output depends on the entries of the operands at its own place alone."""
    kept = all(x.shape == op.outputs[0].shape for x in op.refs)
    return kept and (op.primitive in (*_MOVES, *_SUMS, *_OTHERS) or rules.find(op).family == "curve")


def _before_reshape(op: Op, place: Place) -> list[Place | None] | None:
    """Of an op that only adds and drops dimensions of one entry."""
    (x,), (out,) = op.refs, op.outputs
    here, there = ([d for d, n in enumerate(ref.shape) if n != 1] for ref in (out, x))
    if [out.shape[d] for d in here] != [x.shape[d] for d in there]:
        return None
    if any(span and d not in here for d, span in enumerate(place)):
        return None
    found: list[Span | None] = [None] * len(x.shape)
    for d, e in zip(here, there, strict=True):
        found[e] = place[d]
    return [tuple(found)]


class Stencil(NamedTuple):
    """How a convolution or a sum over windows runs along one spatial dimension."""

    out: int  # the dimension of the output
    operand: int  # and of the operand
    size: int
    stride: int
    dilation: int
    padding: int  # before the first entry


def _is_window_sum(op: Op) -> bool:
    return op.primitive is primitives.reduce_window_sum_p or (
        op.primitive is primitives.conv_general_dilated_p
        and isinstance(op.operands[0], Ref)
        and not isinstance(op.operands[1], Ref)
    )


def _stencils(op: Op) -> Iterator[Stencil]:
    params, strides, padding = op.params, op.params["window_strides"], op.params["padding"]
    if op.primitive is primitives.reduce_window_sum_p:
        sizes, dilations = params["window_dimensions"], params["window_dilation"]
        dims = [(d, d) for d in range(len(sizes))]
    else:
        lhs, rhs, out = params["dimension_numbers"]
        sizes, dilations = [op.operands[1].shape[d] for d in rhs[2:]], params["rhs_dilation"]
        dims = list(zip(out[2:], lhs[2:], strict=True))
    for pair, size, stride, dilation, (low, high) in zip(dims, sizes, strides, dilations, padding, strict=True):
        if op.primitive is not primitives.reduce_window_sum_p or (size, stride, low, high) != (1, 1, 0, 0):
            yield Stencil(*pair, size, stride, dilation, low)


def _before_sum(op: Op, place: Place) -> list[Place | None] | None:
    pool = op.primitive is primitives.reduce_window_sum_p
    spread = op.params["base_dilation" if pool else "lhs_dilation"]
    if any(d != 1 for d in spread) or op.params.get("batch_group_count", 1) != 1:
        return None
    found: list[Span | None] = list(place) if pool else [None] * len(place)
    stencils = list(_stencils(op))
    if not pool and {d for d, span in enumerate(place) if span} - {s.out for s in stencils}:
        return None
    for s in stencils:
        span = place[s.out] or Span(0, 0, 0, 1)
        if place[s.out] is None and op.outputs[0].shape[s.out] != 1:
            return None
        size = (span.size - 1) * s.stride + (s.size - 1) * s.dilation + 1
        found[s.operand] = Span(span.axis, span.step * s.stride, span.start * s.stride - s.padding, size)
    return [tuple(found)]


def _joined(a: Place | None, b: Place | None) -> Place | None:
    """The windows that hold both; None where these move differently."""
    if a is None or b is None or [s and s[:2] for s in a] != [s and s[:2] for s in b]:
        return None
    spans: list[Span | None] = []
    for s, t in zip(a, b, strict=True):
        if s is None or t is None:
            spans.append(None)
            continue
        start = min(s.start, t.start)
        spans.append(s._replace(start=start, size=max(s.start + s.size, t.start + t.size) - start))
    return tuple(spans)


def _large(ref: Ref, place: Place) -> bool:
    return math.prod(_shape(ref, place)) > LARGEST * math.prod(ref.shape)


def _shape(ref: Ref, place: Place | None) -> tuple[int, ...]:
    """The shape of a ref's windows."""
    return ref.shape if place is None else tuple(s.size if s else n for n, s in zip(ref.shape, place, strict=True))


def _refs(tape: Tape, places: dict[int, Place | None]) -> list[Ref]:
    refs = (*tape.input_refs(), *(ref for op in tape.ops for ref in op.outputs))
    return [ref for ref in refs if ref.index in places]


def _rows(refs: Sequence[Ref], places: dict[int, Place | None], chunk: int | None) -> int | None:
    """How many rows of windows take the memory of `chunk` rows without."""
    if chunk is None:
        return None
    sizes = (max(math.prod(_shape(ref, place[ref.index])) for ref in refs) for place in (dict.fromkeys(places), places))
    whole, windows = sizes
    return max(1, chunk * whole // windows)


def _divisor(n: int, most: int) -> int:
    """The largest divisor of `n` that is not above `most`: a rest would be compiled once more."""
    return max(k for k in range(1, max(1, min(n, most)) + 1) if n % k == 0)


# --- relaxations of windows -----------------------------------------------------------------------------------------

# What a position makes of an op: its relaxation there.
Step = Callable[[Position], Relaxation | None]


class Part(NamedTuple):
    """An op that a pass goes through."""

    op: Op
    at: Step
    slack: Arrays | None
    floor: jax.Array | None  # that of the whole map: no less than that of a window


def _parts(
    tape: Tape, known: Analysis, places: dict[int, Place | None], grid: Sequence[int]
) -> tuple[list[Part], dict[int, Callable[[Position], Interval]]]:
    """The ops that a pass goes through, and at a position the boxes that it ends at."""
    parts, produced = [], set()
    for op, relaxed, slack, floor in zip(tape.ops, known.relaxations, known.slack, known.floor, strict=False):
        if not any(out.index in places for out in op.outputs):
            continue
        if relaxed is None and not rules.is_affine(op):
            continue
        if (before := _before(op, places)) is None:
            parts.append(Part(op, functools.partial(lambda relaxed, position: relaxed, relaxed), slack, floor))
            continue
        parts.append(Part(op, _step(op, relaxed, slack, before, places, grid), None, floor))
        produced.add(op.outputs[0].index)
    boxes = {}
    for ref in _refs(tape, places):
        place, box = places[ref.index], known.boxes[ref.index]
        if place is not None and ref.index not in produced:
            boxes[ref.index] = _of_box(box, place, grid)
    return parts, boxes


def _at(known: Analysis, parts: Sequence[Part], boxes: Any, position: Position) -> Analysis:
    """What is known, at a position."""
    here = list(known.boxes)
    for index, box in boxes.items():
        here[index] = box(position)
    relaxations = [part.at(position) for part in parts]
    return Analysis(here, known.reach, relaxations, [part.slack for part in parts], [part.floor for part in parts])


def _of_box(box: Interval, place: Place, grid: Sequence[int]) -> Callable[[Position], Interval]:
    lower, upper = _cropped(box.lower, place, grid), _cropped(box.upper, place, grid)
    return lambda position: Interval(lower(position), upper(position))


def _step(op: Op, relaxed: Any, slack: Any, before: Sequence[Any], places: Any, grid: Sequence[int]) -> Step:
    """The relaxation of an op over windows; all that does not depend on the position is computed here."""
    (out,) = op.outputs
    place = places[out.index]
    fits = [_fitted(op, x, given, places[x.index], grid) for x, given in zip(op.refs, before, strict=True)]
    small = op if _is_entrywise(op) else _small(op, place, before)
    relaxation = relaxed if relaxed is not None else rules.derive(small)
    if slack is not None:
        relaxation = slackened(relaxation, slack)
    maps = {id(side.transpose): _transpose(op, side, place, grid) for side in relaxation[:2]}
    offsets = [_offsets(side, out, place, grid) for side in relaxation[:2]]

    def at(position: Position) -> Relaxation:
        placed = [functools.partial(fit, position) for fit in fits]
        transposes = {key: _then(transpose(position), placed) for key, transpose in maps.items()}
        lower, upper = (
            Affine(transposes[id(side.transpose)], offset(position))
            for side, offset in zip(relaxation[:2], offsets, strict=True)
        )
        return Relaxation(lower, lower if relaxation.lower is relaxation.upper else upper)

    return at


def _small(op: Op, place: Place, before: Sequence[Place]) -> Op:
    """The op on windows, without padding."""
    (x,), (out,) = op.refs, op.outputs
    x, out = (dataclasses.replace(ref, shape=_shape(ref, p)) for ref, p in ((x, before[0]), (out, place)))
    operands, params = (x, *op.operands[1:]), dict(op.params)
    if "padding" in params:
        params["padding"] = ((0, 0),) * len(params["padding"])
    if op.primitive in (primitives.reshape_p, primitives.squeeze_p, primitives.broadcast_in_dim_p):
        return Op(op.primitive, params, operands, (out,), op.sources, lambda v: v.reshape(out.shape))
    return dataclasses.replace(op, params=params, operands=operands, outputs=(out,))


Map = Callable[[Arrays], Arrays]


def _transpose(op: Op, side: Affine, place: Place, grid: Sequence[int]) -> Callable[[Position], Map]:
    if not _is_entrywise(op):
        return lambda position: side.transpose
    slopes = _slopes(op, side, place, grid)
    return lambda position: functools.partial(_scaled, [slope(position) for slope in slopes])


def _scaled(slopes: Sequence[Any], coefficients: Arrays) -> Arrays:
    (a,) = coefficients
    return tuple(a * slope if isinstance(slope, float) else rules.times(a, slope) for slope in slopes)


def _slopes(op: Op, side: Affine, place: Place, grid: Sequence[int]) -> list[Callable[[Position], Any]]:
    """The slopes of an entrywise op in each of its refs: its transpose at 1."""
    (out,) = op.outputs
    if op.primitive in _MOVES + _SUMS:
        minus = op.primitive is primitives.neg_p, op.primitive in (primitives.neg_p, primitives.sub_p)
        signs = [-1.0 if minus[i > 0] else 1.0 for i, x in enumerate(op.operands) if isinstance(x, Ref)]
        return [functools.partial(lambda sign, position: sign, sign) for sign in signs]
    found = side.transpose((jnp.ones(out.shape, out.dtype),))
    return [_cropped(jnp.broadcast_to(x, out.shape).astype(out.dtype), place, grid) for x in found]


def _offsets(side: Affine, out: Ref, place: Place, grid: Sequence[int]) -> Callable[[Position], Arrays | None]:
    if side.offsets is None:
        return lambda position: None
    crop = _cropped(jnp.broadcast_to(jnp.asarray(side.offsets[0], out.dtype), out.shape), place, grid)
    return lambda position: (crop(position),)


def _then(transpose: Map, placed: Sequence[Callable[[jax.Array], jax.Array]]) -> Map:
    return lambda coefficients: tuple(f(a) for f, a in zip(placed, transpose(coefficients), strict=True))


# --- arrays of windows ----------------------------------------------------------------------------------------------


def _cropped(x: jax.Array, place: Place, grid: Sequence[int]) -> Callable[[Position], jax.Array]:
    """The windows of an array, 0 beyond its edges."""
    ends = [span.ends(grid) if span else (0, n) for span, n in zip(place, x.shape, strict=True)]
    edges = [(max(0, -low), max(0, high - n), 0) for (low, high), n in zip(ends, x.shape, strict=True)]
    sizes = [span.size if span else n for span, n in zip(place, x.shape, strict=True)]
    padded = lax.pad(x, jnp.zeros((), x.dtype), edges)

    def at(position: Position) -> jax.Array:
        starts = [span.at(position, -low) if span else 0 for span, (low, _, _) in zip(place, edges, strict=True)]
        return lax.dynamic_slice(padded, starts, sizes)

    return at


def _fitted(
    op: Op, ref: Ref, given: Place, wanted: Place | None, grid: Sequence[int]
) -> Callable[[Position, jax.Array], jax.Array]:
    """Coefficients on the windows that an op gives, on those that are wanted of the ref."""

    def at(position: Position, a: jax.Array) -> jax.Array:
        a = a.astype(ref.dtype)
        if wanted is None:
            return _whole(a, ref, given, position, grid)
        if _is_window_sum(op):
            a = _masked(a, ref, given, position, grid)
        edges = [
            (s.start - w.start, w.size - s.size - s.start + w.start, 0) if s and w else (0, 0, 0)
            for s, w in zip(given, wanted, strict=True)
        ]
        return lax.pad(a, jnp.zeros((), a.dtype), edges)

    return at


def _masked(a: jax.Array, ref: Ref, place: Place, position: Position, grid: Sequence[int]) -> jax.Array:
    """Coefficients without those of entries beyond the edges of the map."""
    for d, (span, n) in enumerate(zip(place, ref.shape, strict=True)):
        if span and not (span.ends(grid)[0] >= 0 and span.ends(grid)[1] <= n):
            entries = span.at(position) + lax.broadcasted_iota(jnp.int32, a.shape, d)
            a = jnp.where((entries >= 0) & (entries < n), a, 0)
    return a


def _whole(a: jax.Array, ref: Ref, place: Place, position: Position, grid: Sequence[int]) -> jax.Array:
    """Coefficients put into the whole map, without those beyond its edges."""
    ends = [span and (span.start, span.ends(grid)[1] - span.size) for span in place]  # the lowest and the highest start
    lows = [max(0, end[1]) if end else 0 for end in ends]
    highs = [
        max(0, n - span.size - end[0]) if span and end else 0
        for n, span, end in zip(ref.shape, place, ends, strict=True)
    ]
    padded = lax.pad(a, jnp.zeros((), a.dtype), [(low, high, 0) for low, high in zip(lows, highs, strict=True)])
    starts = [low - span.at(position) if span else 0 for span, low in zip(place, lows, strict=True)]
    return lax.dynamic_slice(padded, starts, ref.shape)
