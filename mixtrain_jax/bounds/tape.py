"""From a JAX function to a flat list of the operations that touch an interval.

Operations whose inputs are all exact are run as they are met; calls (`jit`, `custom_jvp`, `custom_vjp`, `remat`) that
touch an interval are inlined, loops are unrolled, branches joined, and shards put together; operations that others
express better are lowered to these, and functions that are known as a whole, such as `gelu`, become one operation
again. What remains is a straight line that every domain walks both ways.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core, source_info_util
from jax.extend.core import primitives

from mixtrain_jax.bounds import interval as interval_lib
from mixtrain_jax.bounds import lowering, sharding
from mixtrain_jax.bounds.cpu import convolution
from mixtrain_jax.bounds.errors import unsupported
from mixtrain_jax.bounds.interval import Interval, concrete

# Call primitives, and the parameter that holds what they call.
CALLS = {
    primitives.jit_p: "jaxpr",
    primitives.remat_p: "jaxpr",
    primitives.closed_call_p: "call_jaxpr",
    primitives.custom_jvp_call_p: "call_jaxpr",
    primitives.custom_vjp_call_p: "call_jaxpr",
}


@dataclasses.dataclass(frozen=True)
class Ref:
    """A value that depends on an interval: its position on the tape, shape and dtype."""

    index: int
    shape: tuple[int, ...]
    dtype: Any

    def zeros(self) -> jax.Array:
        """An array of zeros of this shape and dtype."""
        return jnp.zeros(self.shape, self.dtype)


Operand = Ref | jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Op:
    """One primitive applied to operands, of which at least one is a `Ref`."""

    primitive: core.Primitive
    params: dict[str, Any]
    operands: tuple[Operand, ...]
    outputs: tuple[Ref, ...]
    sources: tuple[Any, ...]  # of the primitive, then of the calls around it, innermost first
    function: Callable[..., Any] | None = None  # what it computes, where that is not one primitive of jax

    @property
    def refs(self) -> tuple[Ref, ...]:
        """The operands that depend on an interval, in order, repeats included."""
        return tuple(x for x in self.operands if isinstance(x, Ref))

    def bind(self, *operands: Any) -> tuple[jax.Array, ...]:
        """Apply the primitive to other values of all its operands."""
        if self.function is not None:
            return (self.function(*operands),)
        return _bind(self.primitive, self.params, operands)

    def of_refs(self, *values: Any) -> tuple[jax.Array, ...]:
        """Apply the primitive as a function of its interval operands alone."""
        given = iter(values)
        return self.bind(*(next(given) if isinstance(x, Ref) else x for x in self.operands))

    def source(self) -> str:
        """The user's line that made this operation, `file:line (function)`."""
        return user_line(self.sources)


def user_line(sources: Sequence[Any]) -> str:
    """The user's line that made an operation, `file:line (function)`.

    Args:
      sources: of the operation, then of the calls around it, innermost first.
    """
    ours = __file__.rpartition("/")[0]
    for source in sources:  # What was traced once and cached has no line of the user's in it.
        frames = source_info_util.summarize(source, num_frames=100).splitlines()
        users = [line for line in frames if "site-packages" not in line and not line.startswith(ours)]
        if users:
            return users[-1]
    return "an unknown line"


@dataclasses.dataclass(frozen=True, eq=False)
class Tape:
    """A function of intervals as straight-line code.

    Refs are numbered in the order in which they get their value: the inputs first, then each operation's outputs.
    """

    inputs: tuple[Interval, ...]
    ops: tuple[Op, ...]
    outputs: tuple[Operand, ...]
    out_tree: Any

    def input_refs(self) -> tuple[Ref, ...]:
        """One ref an input interval."""
        return tuple(Ref(i, x.shape, x.dtype) for i, x in enumerate(self.inputs))


Rewrite = Callable[[Sequence[Op], Sequence[Operand]], list[Op]]


def record(f: Callable[..., Any], args: Sequence[Any], rewrite: Rewrite = lambda ops, outputs: list(ops)) -> Tape:
    """Trace `f` at `args`, of which any leaf may be an `Interval`; every other leaf is exact.

    Args:
      f: any function of arrays and pytrees.
      args: its arguments.
      rewrite: `(ops, outputs) -> ops` that compute the same.

    Raises:
      BoundsError: where an interval is malformed.
    """
    leaves, tree = jax.tree.flatten(tuple(args), is_leaf=is_interval)
    slots = [i for i, leaf in enumerate(leaves) if is_interval(leaf)]
    inputs = tuple(interval_lib.check(leaves[i]) for i in slots)
    out_trees = []

    def of_intervals(*values: jax.Array) -> list[Any]:
        filled = list(leaves)
        for i, value in zip(slots, values, strict=True):
            filled[i] = value
        outputs, out_tree = jax.tree.flatten(f(*jax.tree.unflatten(tree, filled)))
        out_trees.append(out_tree)
        return outputs

    closed = jax.make_jaxpr(of_intervals)(*(x.lower for x in inputs))
    refs = [Ref(i, x.shape, x.dtype) for i, x in enumerate(inputs)]
    recorder = _Recorder(len(refs))
    outputs = recorder.run(closed, refs)
    ops, outputs = _renumbered(live(rewrite(live(recorder.ops, outputs), outputs), outputs), outputs, refs)
    return Tape(inputs, tuple(ops), tuple(outputs), out_trees[-1])


def at_highest_precision(tape: Tape) -> Tape:
    """The tape with every product of full float precision, whatever the accelerator's default is."""
    highest = {"precision": (jax.lax.Precision.HIGHEST,) * 2}
    ops = (
        dataclasses.replace(op, params={**op.params, **highest}) if "precision" in op.params else op for op in tape.ops
    )
    return dataclasses.replace(tape, ops=tuple(ops))


def reference(f: Callable[..., Any], *refs: Ref) -> list[Op]:
    """The operations of a function of arrays like these, as `record` would see them."""
    with jax.ensure_compile_time_eval():
        return operations(f, *refs)[0]


def operations(f: Callable[..., Any], *refs: Ref) -> tuple[list[Op], list[Operand]]:
    """The operations of a function of arrays like these, and its outputs; refs are numbered from 0."""
    closed = jax.make_jaxpr(f)(*(jax.ShapeDtypeStruct(ref.shape, ref.dtype) for ref in refs))
    own = [Ref(i, ref.shape, ref.dtype) for i, ref in enumerate(refs)]
    recorder = _Recorder(len(own))
    outputs = recorder.run(closed, own)
    return live(recorder.ops, outputs), outputs


def live(ops: Sequence[Op], outputs: Sequence[Operand]) -> list[Op]:
    """The operations that an output depends on."""
    needed = {x.index for x in outputs if isinstance(x, Ref)}
    live = []
    for op in reversed(ops):
        if any(ref.index in needed for ref in op.outputs):
            needed.update(ref.index for ref in op.refs)
            live.append(op)
    return live[::-1]


def _renumbered(ops: Sequence[Op], outputs: Sequence[Operand], inputs: Sequence[Ref]) -> tuple[list[Op], list[Operand]]:
    names = {ref.index: ref for ref in inputs}

    def rename(x: Ref) -> Ref:
        return names.setdefault(x.index, Ref(len(names), x.shape, x.dtype))

    def name(x: Operand) -> Operand:
        return rename(x) if isinstance(x, Ref) else x

    renamed = [
        dataclasses.replace(op, operands=tuple(map(name, op.operands)), outputs=tuple(map(rename, op.outputs)))
        for op in ops
    ]
    return renamed, [name(x) for x in outputs]


class _Recorder:
    def __init__(self, count: int):
        self.count = count
        self.ops: list[Op] = []

    def run(self, closed: Any, args: Sequence[Operand], callers: tuple[Any, ...] = ()) -> list[Operand]:
        # `remat` holds an open jaxpr, and newer jax has one class for both kinds.
        jaxpr = getattr(closed, "jaxpr", closed)
        env: dict[Any, Operand] = dict(zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))
        for eqn in jaxpr.eqns:
            operands = [_read(env, v) for v in eqn.invars]
            env.update(zip(eqn.outvars, self.step(eqn, operands, callers), strict=True))
        return [_read(env, v) for v in jaxpr.outvars]

    def step(self, eqn: Any, operands: list[Operand], callers: tuple[Any, ...]) -> Sequence[Operand]:
        if not any(isinstance(x, Ref) for x in operands):
            return _evaluate(eqn.primitive, eqn.params, operands)
        sources = (eqn.source_info, *callers)
        if eqn.primitive in CALLS:
            return self.run(eqn.params[CALLS[eqn.primitive]], operands, sources)
        if eqn.primitive in _CONTROL:
            return _CONTROL[eqn.primitive](self, eqn, operands, sources)
        if eqn.primitive.name == "shard_map":
            return self.inline(sharding.unsharded(eqn.params, CALLS), operands, sources)
        refs = [x if isinstance(x, Ref) else None for x in operands]
        if (better := lowering.find(eqn.primitive, eqn.params, operands, refs)) is not None:
            return self.inline(better, operands, sources)
        outputs = []
        for var in eqn.outvars:
            outputs.append(Ref(self.count, var.aval.shape, var.aval.dtype))
            self.count += 1
        self.ops.append(Op(eqn.primitive, eqn.params, tuple(operands), tuple(outputs), sources))
        return outputs

    def inline(self, f: Callable[..., Any], operands: Sequence[Operand], sources: tuple[Any, ...]) -> list[Operand]:
        """Run a function of ours in the place of an operation."""
        closed = jax.make_jaxpr(f)(*(jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in operands))
        return self.run(closed, operands, sources)

    def scan(self, eqn: Any, operands: list[Operand], sources: tuple[Any, ...]) -> list[Operand]:
        length, constants, carried = eqn.params["length"], *scan_sizes(eqn.params)
        consts, rest = operands[:constants], operands[constants:]
        carry, sequences = rest[:carried], rest[carried:]
        rows: list[list[Operand]] = []
        for i in range(length)[:: -1 if eqn.params["reverse"] else 1]:
            pick = functools.partial(jax.lax.index_in_dim, index=i, keepdims=False)
            elements = [self.inline(pick, [x], sources)[0] for x in sequences]
            results = self.run(eqn.params["jaxpr"], [*consts, *carry, *elements], sources)
            carry = results[:carried]
            rows.append(results[carried:])
        if not rows:
            return [*carry, *(jnp.zeros(v.aval.shape, v.aval.dtype) for v in eqn.outvars[carried:])]
        columns = zip(*rows[:: -1 if eqn.params["reverse"] else 1], strict=True)
        return [*carry, *(self.inline(lambda *x: jnp.stack(x), column, sources)[0] for column in columns)]

    def loop(self, eqn: Any, operands: list[Operand], sources: tuple[Any, ...]) -> list[Operand]:
        tests, steps = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        of_test, of_step, carry = operands[:tests], operands[tests : tests + steps], operands[tests + steps :]
        while True:
            (go,) = self.run(eqn.params["cond_jaxpr"], [*of_test, *carry], sources)
            if isinstance(go, Ref) or concrete(go) is None:
                why = "whether it goes on depends on an interval" if isinstance(go, Ref) else "its condition is traced"
                raise unsupported(
                    Op(eqn.primitive, eqn.params, tuple(operands), (), sources),
                    f"{why}, and a loop is bounded step by step",
                    "Let the number of steps be a Python integer, or a concrete one outside jit.",
                )
            if not go:
                return list(carry)
            carry = self.run(eqn.params["body_jaxpr"], [*of_step, *carry], sources)

    def branch(self, eqn: Any, operands: list[Operand], sources: tuple[Any, ...]) -> list[Operand]:
        """Take the branch if it is known which; else bound all of them and choose as far as the index is known."""
        branches, (index, *args) = eqn.params["branches"], operands
        last = len(branches) - 1
        if not isinstance(index, Ref) and concrete(index) is not None:
            return self.run(branches[min(max(int(index), 0), last)], args, sources)
        results = [self.run(branch, args, sources) for branch in branches]

        def choose(i: jax.Array, *cases: jax.Array) -> jax.Array:
            return jax.lax.select_n(jnp.clip(i.astype(jnp.int32), 0, last), *cases)

        return [self.inline(choose, [index, *cases], sources)[0] for cases in zip(*results, strict=True)]


# Control flow that touches an interval.
_CONTROL: dict[Any, Callable[..., list[Operand]]] = {
    primitives.scan_p: _Recorder.scan,
    primitives.while_p: _Recorder.loop,
    primitives.cond_p: _Recorder.branch,
}


def scan_sizes(params: dict[str, Any]) -> tuple[int, int]:
    """How many constants and how many carried values a scan has."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    constants, carry, _ = params["ft_in"].unpack()
    return len(constants), len(carry)


def _read(env: dict[Any, Operand], atom: Any) -> Operand:
    return atom.val if isinstance(atom, core.Literal) else env[atom]


_SMALL = 64  # entries


def _evaluate(primitive: core.Primitive, params: dict[str, Any], operands: Sequence[Any]) -> tuple[jax.Array, ...]:
    """Run an operation on exact values; small concrete ones stay concrete inside `jit`, as loop counters must."""
    placed = primitive.name in ("pvary", "pcast")  # by shard_map, and nowhere else
    if not placed and all(concrete(x) is not None and jnp.size(x) <= _SMALL for x in operands):
        with jax.ensure_compile_time_eval():
            return _bind(primitive, params, operands)
    return _bind(primitive, params, operands)


def _bind(primitive: core.Primitive, params: dict[str, Any], operands: Sequence[Any]) -> tuple[jax.Array, ...]:
    if primitive is primitives.conv_general_dilated_p:
        return (convolution(*operands, **params),)
    outputs = primitive.bind(*operands, **primitive.get_bind_params(params))
    return tuple(outputs) if primitive.multiple_results else (outputs,)


def is_interval(x: Any) -> bool:
    """Whether this leaf of a pytree is an interval."""
    return isinstance(x, Interval)
