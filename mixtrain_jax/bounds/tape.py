"""From a JAX function to a flat list of the operations that touch an interval.

The one file of the package that knows how a jaxpr is laid out. Operations whose inputs are all exact are run as they
are met; calls (`jit`, `custom_jvp`, `custom_vjp`, `remat`) that touch an interval are inlined; what remains is a
straight line of primitives that every domain walks forwards or backwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core, source_info_util
from jax.extend.core import primitives

from mixtrain_jax.bounds import interval as interval_lib
from mixtrain_jax.bounds.interval import Interval

# Call primitives, and the parameter that holds what they call.
_CALLS = {
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

    @property
    def refs(self) -> tuple[Ref, ...]:
        """The operands that depend on an interval, in order, repeats included."""
        return tuple(x for x in self.operands if isinstance(x, Ref))

    def bind(self, *operands: Any) -> tuple[jax.Array, ...]:
        """Apply the primitive to other values of all its operands."""
        return _bind(self.primitive, self.params, operands)

    def of_refs(self, *values: Any) -> tuple[jax.Array, ...]:
        """Apply the primitive as a function of its interval operands alone."""
        given = iter(values)
        return self.bind(*(next(given) if isinstance(x, Ref) else x for x in self.operands))

    def source(self) -> str:
        """The user's line that made this operation, `file:line (function)`."""
        ours = __file__.rpartition("/")[0]
        for source in self.sources:  # What was traced once and cached has no line of the user's in it.
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


def record(f: Callable[..., Any], args: Sequence[Any]) -> Tape:
    """Trace `f` at `args`, of which any leaf may be an `Interval`; every other leaf is exact.

    Raises:
      BoundsError: where an interval is malformed.
    """
    leaves, tree = jax.tree.flatten(tuple(args), is_leaf=_is_interval)
    slots = [i for i, leaf in enumerate(leaves) if _is_interval(leaf)]
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
    recorder = _Recorder(len(inputs))
    refs = [Ref(i, x.shape, x.dtype) for i, x in enumerate(inputs)]
    outputs = recorder.run(closed, refs)
    return Tape(inputs, tuple(recorder.ops), tuple(outputs), out_trees[-1])


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
            return _bind(eqn.primitive, eqn.params, operands)
        sources = (eqn.source_info, *callers)
        if eqn.primitive in _CALLS:
            return self.run(eqn.params[_CALLS[eqn.primitive]], operands, sources)
        outputs = []
        for var in eqn.outvars:
            outputs.append(Ref(self.count, var.aval.shape, var.aval.dtype))
            self.count += 1
        self.ops.append(Op(eqn.primitive, eqn.params, tuple(operands), tuple(outputs), sources))
        return outputs


def _read(env: dict[Any, Operand], atom: Any) -> Operand:
    return atom.val if isinstance(atom, core.Literal) else env[atom]


def _bind(primitive: core.Primitive, params: dict[str, Any], operands: Sequence[Any]) -> tuple[jax.Array, ...]:
    outputs = primitive.bind(*operands, **primitive.get_bind_params(params))
    return tuple(outputs) if primitive.multiple_results else (outputs,)


def _is_interval(x: Any) -> bool:
    return isinstance(x, Interval)
