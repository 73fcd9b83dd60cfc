"""Whether a network treats the images of a batch independently, read from its jaxpr.

Every value that depends on the images has a layout: which image an entry belongs to, as a function of its index. The
rules move layouts through an operation, or lose them: certainly, where an entry comes to depend on several images
(a sum over the batch), or possibly, where the rules cannot tell (a gather by computed indices).
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import primitives

from mixtrain_jax.bounds import sharding
from mixtrain_jax.bounds.tape import CALLS, scan_sizes, user_line


class Axis(NamedTuple):
    """A digit of the number of the image: an entry at `i` along `dim` has `i // stride % size`, times `weight`.

    `dim` is negative for a loop over images, in whose body every value belongs to one turn.
    """

    dim: int
    stride: int
    size: int
    weight: int

    @property
    def period(self) -> int:
        """Entries along `dim` after which the digit repeats."""
        return self.stride * self.size


class Layout(NamedTuple):
    """The axes that make up the number of an entry's image."""

    axes: frozenset[Axis]


class Lost(NamedTuple):
    """An entry depends on several images for certain, or possibly, because of an operation."""

    certain: bool
    cause: str


State = Layout | Lost | None  # None: depends on no image
Dims = Mapping[int, int]  # dimensions of an operand that entries keep their place along -> those of the output


class Verdict(NamedTuple):
    """What a jaxpr says of a network.

    Attributes:
      kind: `independent` and `mixing` are certain.
      cause: the operation and the user's line, "" for `independent`.
      size: of the batch.
      eps: machine epsilon of the coarsest float dtype that the network computes in.
    """

    kind: Literal["independent", "mixing", "undecided"]
    cause: str
    size: int
    eps: float


def batch_dependence(
    f: Callable[[jax.Array], Any], images: jax.ShapeDtypeStruct, *, alone: bool = True
) -> tuple[Verdict, Any]:
    """Read from the jaxpr of a network whether each of its outputs depends on one image alone.

    Args:
      f: `[n, ...] -> [n, ...]`.
      images: shape and dtype of a batch.
      alone: whether to trace `f` for a single image too, which it then must take. Where the two jaxprs compute
        different things the code looks at the size of the batch, and the verdict is `undecided` at best.

    Returns:
      The verdict, and the outputs of `f` as shapes and dtypes.
    """
    n = images.shape[0]
    layout = Layout(frozenset({Axis(0, 1, n, 1)}) if n > 1 else frozenset())
    batch, states, outputs = _walked(f, images, layout)
    moved = Lost(True, batch.moved) if batch.moved else Lost(False, "the layout of the output")
    lost = [state if isinstance(state, Lost) else moved for state in states if state not in (None, layout)]
    if alone and n > 1:
        single, *_ = _walked(f, jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype), Layout(frozenset()))
        if differ := [*(batch.computed - single.computed), *(single.computed - batch.computed)]:
            lost.append(Lost(False, f"'{differ[0][0]}', which is not the same for one image and for {n}"))
    lost.sort(key=lambda each: not each.certain)
    kind = "independent" if not lost else "mixing" if lost[0].certain else "undecided"
    return Verdict(kind, lost[0].cause if lost else "", n, batch.eps), outputs


def _walked(
    f: Callable[[jax.Array], Any], images: jax.ShapeDtypeStruct, layout: Layout
) -> tuple[_Walk, list[State], Any]:
    closed, outputs = jax.make_jaxpr(f, return_shape=True)(images)
    walk = _Walk()
    return walk, walk.run(closed, [layout]), outputs


class _Walk:
    """One walk through a jaxpr."""

    def __init__(self) -> None:
        self.eps = 0.0
        self.moved = ""  # the last operation that moved images to another place
        self.loops = 0
        self.computed: collections.Counter[tuple[str, ...]] = collections.Counter()

    def run(self, closed: Any, states: Sequence[State], callers: tuple[Any, ...] = ()) -> list[State]:
        jaxpr = getattr(closed, "jaxpr", closed)
        env: dict[Any, State] = dict(zip(jaxpr.invars, states, strict=True))

        def read(atom: Any) -> State:
            return None if isinstance(atom, core.Literal) else env.get(atom)

        for eqn in _live(jaxpr):
            found = self.step(eqn, [read(v) for v in eqn.invars], (eqn.source_info, *callers))
            env.update(zip(eqn.outvars, found, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def step(self, eqn: Any, states: list[State], sources: tuple[Any, ...]) -> Sequence[State]:
        if all(state is None for state in states):
            return [None] * len(eqn.outvars)
        self.note(eqn)
        name = eqn.primitive.name
        if (held := CALLS.get(eqn.primitive, "call" if name == "custom_vmap_call" else None)) is not None:
            return self.run(eqn.params[held], states, sources)
        if name == "shard_map":
            shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
            return self.run(jax.make_jaxpr(sharding.unsharded(eqn.params, CALLS))(*shapes), states, sources)
        scope = "/".join(filter(None, (str(source.name_stack) for source in reversed(sources))))
        cause = f"'{name}' at {user_line(sources)}{f', in {scope}' if scope else ''}"
        if eqn.primitive in _CONTROL:
            return _CONTROL[eqn.primitive](self, eqn, states, cause, sources)
        if any(isinstance(state, Lost) for state in states):
            return [_worst(states)] * len(eqn.outvars)
        if name == "optimization_barrier":
            return states
        if name == "reshape":
            return [self.reshaped(eqn, states[0], cause)]
        return [self.kept(eqn, states, cause)] * len(eqn.outvars)

    def note(self, eqn: Any) -> None:
        """Take down what is computed, but not how it is laid out, and in which dtypes."""
        floats = [v.aval.dtype for v in eqn.outvars if jnp.issubdtype(getattr(v.aval, "dtype", int), jnp.floating)]
        self.eps = max([self.eps, *(float(jnp.finfo(dtype).eps) for dtype in floats)])
        if eqn.primitive.name in _ARITHMETIC:
            numbers = (str(v.val) for v in eqn.invars if isinstance(v, core.Literal))
            self.computed[eqn.primitive.name, *numbers] += 1

    def kept(self, eqn: Any, states: Sequence[State], cause: str) -> State:
        """The layout that all operands agree on."""
        name, shapes = eqn.primitive.name, [v.aval.shape for v in eqn.invars]
        if name not in _KEPT:
            known = any(isinstance(state, Layout) and state.axes for state in states)
            return Lost(False, cause) if known else Layout(frozenset())
        certain, rule = _KEPT[name]
        dims = rule(eqn.params, shapes, states)
        found = [_moved(s, kept) for s, kept in zip(states, dims, strict=True) if isinstance(s, Layout)]
        if None in found:
            return Lost(certain, cause)
        if any(layout != found[0] for layout in found):
            return Lost(True, cause)
        if name == "transpose":
            self.moved = cause
        return found[0]

    def reshaped(self, eqn: Any, state: State, cause: str) -> State:
        assert isinstance(state, Layout)
        old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        pieces: list[Axis] = [axis for axis in state.axes if axis.dim < 0]
        for axis in state.axes.difference(pieces):
            if (found := _split(axis, old, new)) is None:
                return Lost(False, cause)
            pieces += found
        if len(pieces) > len(state.axes):
            self.moved = cause
        return Layout(_merged(pieces))

    def scan(self, eqn: Any, states: list[State], cause: str, sources: tuple[Any, ...]) -> list[State]:
        constants, carried = scan_sizes(eqn.params)
        self.loops += 1
        loop = -self.loops
        consts, carry, rows = states[:constants], states[constants:][:carried], states[constants + carried :]
        rows = [_enter(state, loop) for state in rows]

        def turn(carry: list[State]) -> list[State]:
            return self.run(eqn.params["jaxpr"], [*consts, *carry, *rows], sources)

        out, carry = self.settled(turn, carry, cause, loop)
        self.loops -= 1
        return [*carry, *(_leave(state, loop) for state in out[carried:])]

    def settled(
        self, turn: Callable[[list[State]], list[State]], carry: list[State], cause: str, loop: int | None
    ) -> tuple[list[State], list[State]]:
        """What a turn of a loop makes, and what it carries, once that is the same after every turn."""
        while True:
            before, computed = carry, self.computed.copy()
            out = turn(carry)
            after = [_carried(state, loop, cause) for state in out[: len(carry)]]
            carry = [_joined(pair, cause) for pair in zip(before, after, strict=True)]
            if carry == before:
                return out, carry
            self.computed = computed

    def loop(self, eqn: Any, states: list[State], cause: str, sources: tuple[Any, ...]) -> list[State]:
        tests, steps = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        of_test, of_step, carry = states[:tests], states[tests:][:steps], states[tests + steps :]

        def turn(carry: list[State]) -> list[State]:
            return self.run(eqn.params["body_jaxpr"], [*of_step, *carry], sources)

        _, carry = self.settled(turn, carry, cause, None)
        (go,) = self.run(eqn.params["cond_jaxpr"], [*of_test, *carry], sources)
        return [_guided(go, state, cause) for state in carry]

    def branch(self, eqn: Any, states: list[State], cause: str, sources: tuple[Any, ...]) -> list[State]:
        index, *args = states
        columns = zip(*(self.run(branch, args, sources) for branch in eqn.params["branches"]), strict=True)
        return [_guided(index, _joined(column, cause), cause) for column in columns]


_CONTROL: dict[Any, Callable[..., list[State]]] = {
    primitives.scan_p: _Walk.scan,
    primitives.while_p: _Walk.loop,
    primitives.cond_p: _Walk.branch,
}


def _live(jaxpr: Any) -> list[Any]:
    """The operations that an output depends on."""
    needed, live = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}, []
    for eqn in reversed(jaxpr.eqns):
        if any(v in needed for v in eqn.outvars):
            needed.update(v for v in eqn.invars if not isinstance(v, core.Literal))
            live.append(eqn)
    return live[::-1]


def _worst(states: Iterable[State]) -> Lost:
    lost = [state for state in states if isinstance(state, Lost)]
    return next((state for state in lost if state.certain), lost[0])


def _joined(states: Sequence[State], cause: str) -> State:
    """The layout of a value that is one of several."""
    states = [state for state in states if state is not None]
    if any(isinstance(state, Lost) for state in states):
        return _worst(states)
    return Lost(False, cause) if len(set(states)) > 1 else states[0] if states else None


def _guided(choice: State, state: State, cause: str) -> State:
    """The layout of a value that was chosen, or computed in so many turns, by a condition of one layout."""
    if isinstance(choice, Lost):
        return Lost(False, cause)  # what all images agree on may not matter
    return _joined([choice, state], cause)


def _moved(layout: Layout, dims: Dims) -> Layout | None:
    """The layout after dimensions went elsewhere; None where one that the images lie along is gone."""
    if any(axis.dim >= 0 and axis.dim not in dims for axis in layout.axes):
        return None
    return Layout(frozenset(a._replace(dim=dims[a.dim]) if a.dim >= 0 else a for a in layout.axes))


def _enter(state: State, loop: int) -> State:
    """A row of a sequence: the first dimension becomes the loop."""
    if not isinstance(state, Layout):
        return state
    return Layout(frozenset(a._replace(dim=loop if a.dim == 0 else a.dim - (a.dim > 0)) for a in state.axes))


def _leave(state: State, loop: int) -> State:
    if not isinstance(state, Layout):
        return state
    return Layout(frozenset(a._replace(dim=0 if a.dim == loop else a.dim + (a.dim >= 0)) for a in state.axes))


def _carried(state: State, loop: int | None, cause: str) -> State:
    """What goes from a turn of a loop over images to the next depends on several."""
    passed = isinstance(state, Layout) and any(axis.dim == loop for axis in state.axes)
    return Lost(True, cause) if passed else state


def _split(axis: Axis, old: Sequence[int], new: Sequence[int]) -> list[Axis] | None:
    """An axis of a reshaped array, in as many pieces as dimensions it now lies along; None where they don't fit."""
    low = axis.stride * math.prod(old[axis.dim + 1 :])  # distance of neighbours in the flat array
    high, pieces = low * axis.size, []
    for dim, extent in enumerate(new):
        inner = math.prod(new[dim + 1 :])
        start, end = max(low, inner), min(high, inner * extent)
        if start >= end:
            continue
        if end % start or start % low or start % inner or (inner * extent) % end:
            return None
        pieces.append(Axis(dim, start // inner, end // start, axis.weight * (start // low)))
    return pieces if math.prod(piece.size for piece in pieces) == axis.size else None


def _merged(axes: Iterable[Axis]) -> frozenset[Axis]:
    """Neighbouring digits as one."""
    merged: list[Axis] = []
    for axis in sorted(axes):
        last = merged[-1] if merged else None
        if last and (last.dim, last.period, last.weight * last.size) == (axis.dim, axis.stride, axis.weight):
            merged[-1] = last._replace(size=last.size * axis.size)
        else:
            merged.append(axis)
    return frozenset(merged)


# Rules: (parameters, shapes and layouts of the operands) -> the dimensions of each that entries keep their place along.
Rule = Callable[[Mapping[str, Any], Sequence[tuple[int, ...]], Sequence[State]], list[Dims]]


def _same(shape: Sequence[int], but: Iterable[int] = ()) -> Dims:
    return {d: d for d in range(len(shape)) if d not in set(but)}


def _without(shape: Sequence[int], gone: Iterable[int]) -> Dims:
    left = [d for d in range(len(shape)) if d not in set(gone)]
    return {d: i for i, d in enumerate(left)}


def _all_but(*names: str) -> Rule:
    """Entries keep their place along all dimensions but those that parameters name."""

    def rule(p: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], _: Any) -> list[Dims]:
        values = [p[name] for name in names if name in p]
        gone = {int(d) for value in values for d in (value if isinstance(value, tuple | list) else (value,))}
        return [_same(shape, gone) for shape in shapes]

    return rule


def _all_but_last(count: Callable[[Mapping[str, Any]], int]) -> Rule:
    return lambda p, shapes, _: [_same(shape, range(len(shape) - count(p), len(shape))) for shape in shapes]


def _reduce(p: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], _: Any) -> list[Dims]:
    return [_without(shape, p["axes"] if "axes" in p else p["dimensions"]) for shape in shapes]


def _squeeze(p: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], _: Any) -> list[Dims]:
    return [_without(shapes[0], p["dimensions"])]


def _transpose(p: Mapping[str, Any], *_: Any) -> list[Dims]:
    return [{int(d): i for i, d in enumerate(p["permutation"])}]


def _broadcast(p: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], _: Any) -> list[Dims]:
    places = p["broadcast_dimensions"]
    return [{d: int(place) for d, place in enumerate(places)}, *({} for _ in shapes[1:])]


def _dot(p: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], _: Any) -> list[Dims]:
    contracted, batch = p["dimension_numbers"]
    free = [_without(s, (*c, *b)) for s, c, b in zip(shapes, contracted, batch, strict=True)]
    starts = len(batch[0]), len(batch[0]) + len(free[0])
    return [
        {**{int(d): i for i, d in enumerate(b)}, **{d: start + i for d, i in rest.items()}}
        for b, rest, start in zip(batch, free, starts, strict=True)
    ]


def _convolution(p: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], _: Any) -> list[Dims]:
    numbers = p["dimension_numbers"]
    whole = p["batch_group_count"] == 1
    return [{numbers.lhs_spec[0]: numbers.out_spec[0]} if whole else {}, {}]


def _window(p: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], _: Any) -> list[Dims]:
    kept = (
        size == stride == spread == apart == 1 and tuple(padding) == (0, 0)
        for size, stride, padding, spread, apart in zip(
            p["window_dimensions"],
            p["window_strides"],
            p["padding"],
            p.get("base_dilation") or [1] * len(shapes[0]),
            p.get("window_dilation") or [1] * len(shapes[0]),
            strict=True,
        )
    )
    same = {d: d for d, good in enumerate(kept) if good}
    return [same if len(shape) == len(shapes[0]) else {} for shape in shapes]


def _pad(p: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], _: Any) -> list[Dims]:
    return [{d: d for d, config in enumerate(p["padding_config"]) if tuple(config) == (0, 0, 0)}, {}]


def _periods(states: Sequence[State], dim: int) -> int:
    """After how many entries along a dimension the images repeat."""
    axes = (axis for state in states if isinstance(state, Layout) for axis in state.axes)
    return math.lcm(*(axis.period for axis in axes if axis.dim == dim))


def _slice(p: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], states: Sequence[State]) -> list[Dims]:
    starts, strides = p["start_indices"], p["strides"] or [1] * len(shapes[0])
    kept = {}
    for d, (start, limit, stride) in enumerate(zip(starts, p["limit_indices"], strides, strict=True)):
        period = _periods(states, d)
        if stride == 1 and start % period == 0 and (limit - start) % period == 0:
            kept[d] = d
    return [kept]


def _concatenate(p: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], states: Sequence[State]) -> list[Dims]:
    d = p["dimension"]
    fits = all(shape[d] % _periods(states, d) == 0 for shape in shapes)
    return [_same(shape, () if fits else (d,)) for shape in shapes]


def _pieces(p: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], states: Sequence[State]) -> list[Dims]:
    d = p["axis"]
    fits = all(size % _periods(states, d) == 0 for size in p["sizes"])
    return [_same(shapes[0], () if fits else (d,))]


def _dynamic_slice(p: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], _: Any) -> list[Dims]:
    whole = {d: d for d, (size, n) in enumerate(zip(p["slice_sizes"], shapes[0], strict=True)) if size == n}
    return [whole, *({} for _ in shapes[1:])]


def _dynamic_update_slice(p: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], _: Any) -> list[Dims]:
    operand, update, *starts = shapes
    whole = {d: d for d, (a, b) in enumerate(zip(operand, update, strict=True)) if a == b}
    return [_same(operand), whole, *({} for _ in starts)]


def _gather(p: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], _: Any) -> list[Dims]:
    numbers, (operand, indices) = p["dimension_numbers"], shapes[:2]
    outside = [d for d in range(len(numbers.offset_dims) + len(indices) - 1) if d not in numbers.offset_dims]
    of_indices = dict(enumerate(outside))  # all but the last dimension of the indices, in order
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    windows = [d for d in range(len(operand)) if d not in gone]
    whole = [d for d in windows if p["slice_sizes"][d] == operand[d]]
    of_operand = {d: int(o) for d, o in zip(windows, numbers.offset_dims, strict=True) if d in whole}
    pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    return [of_operand | {int(d): of_indices[int(i)] for d, i in pairs}, of_indices]


def _scatter(p: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], _: Any) -> list[Dims]:
    numbers, (operand, _, update) = p["dimension_numbers"], shapes
    batching = dict(zip(numbers.scatter_indices_batching_dims, numbers.operand_batching_dims, strict=True))
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    windows = [d for d in range(len(operand)) if d not in gone]
    still = [d for d in windows if d not in numbers.scatter_dims_to_operand_dims]
    outside = [d for d in range(len(update)) if d not in numbers.update_window_dims]
    of_update = {u: d for u, d in zip(numbers.update_window_dims, windows, strict=True) if d in still}
    of_operand = {d: d for d in (*still, *batching.values())}
    return [of_operand, batching, of_update | {outside[i]: d for i, d in batching.items()}]


def _stack(p: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], _: Any) -> list[Dims]:
    return [{d: d + (d >= p["axis"]) for d in range(len(shape))} for shape in shapes]


def _unstack(p: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], _: Any) -> list[Dims]:
    return [_without(shapes[0], [p["axis"]])]


_COPIES = (
    *("convert_element_type", "copy", "copy_p", "device_put", "layout_constraint", "mesh_cast", "name", "pcast"),
    *("pvary", "reduce_precision", "reshard", "sharding_constraint", "stop_gradient", "with_memory_space_constraint"),
)
_ENTRYWISE = (
    *("abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e"),
    *("bessel_i1e", "cbrt", "ceil", "clamp", "clz", "complex", "conj", "cos", "cosh", "digamma", "div", "eq", "eq_to"),
    *("erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma", "igamma_grad_a", "igammac"),
    *("imag", "integer_pow", "is_finite", "le", "le_to", "lgamma", "log", "log1p", "logistic", "lt", "lt_to", "max"),
    *("min", "mul", "ne", "neg", "nextafter", "not", "or", "polygamma", "population_count", "pow", "real"),
    *("regularized_incomplete_beta", "rem", "round", "rsqrt", "select_n", "shift_left", "shift_right_arithmetic"),
    *("shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh", "xor", "zeta"),
)
_REDUCTIONS = (
    *("argmax", "argmin", "reduce", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod"),
    *("reduce_sum", "reduce_xor"),
)
_CUMULATIVE = ("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum")
_WINDOWS = (
    *("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum"),
    *("select_and_gather_add", "select_and_scatter_add"),
)
_SCATTERS = ("scatter", "scatter-add", "scatter-max", "scatter-min", "scatter-mul", "scatter-sub")
_MATRICES = ("cholesky", "eig", "eigh", "lu", "qr", "geqrf", "schur", "svd", "triangular_solve", "householder_product")
# Rules by primitive, each with whether a layout that it loses is mixed for certain.
_KEPT: dict[str, tuple[bool, Rule]] = {
    **dict.fromkeys((*_ENTRYWISE, *_COPIES, "tile"), (True, _all_but())),
    **dict.fromkeys(_REDUCTIONS, (True, _reduce)),
    **dict.fromkeys(_CUMULATIVE, (True, _all_but("axis"))),
    **dict.fromkeys(_WINDOWS, (True, _window)),
    **dict.fromkeys(_SCATTERS, (False, _scatter)),
    **dict.fromkeys(_MATRICES, (False, _all_but_last(lambda p: 2))),
    "rev": (True, _all_but("dimensions")),
    "sort": (False, _all_but("dimension")),
    "top_k": (False, _all_but("axis")),
    "fft": (True, _all_but_last(lambda p: len(p["fft_lengths"]))),
    "squeeze": (True, _squeeze),
    "transpose": (True, _transpose),
    "broadcast_in_dim": (True, _broadcast),
    "dot_general": (True, _dot),
    "conv_general_dilated": (False, _convolution),
    "pad": (False, _pad),
    "slice": (False, _slice),
    "concatenate": (False, _concatenate),
    "split": (False, _pieces),
    "dynamic_slice": (False, _dynamic_slice),
    "dynamic_update_slice": (False, _dynamic_update_slice),
    "gather": (False, _gather),
    "stack": (False, _stack),
    "unstack": (False, _unstack),
}
# What the code computes, however it lays arrays out for that.
_ARITHMETIC = (
    *(*_ENTRYWISE, *_REDUCTIONS, *_CUMULATIVE, *_WINDOWS, *_MATRICES),
    *("conv_general_dilated", "dot_general", "fft", "rev", "sort", "top_k"),
)
