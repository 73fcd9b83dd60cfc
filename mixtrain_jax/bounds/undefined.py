"""Which operation made a bound NaN: by name, the user's line and the box that it got."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp

from mixtrain_jax.bounds.backward import Analysis
from mixtrain_jax.bounds.interval import Interval
from mixtrain_jax.bounds.tape import Op, Ref, Tape

_ADVICE = (
    "Keep that operand where the function is defined and finite: by a smaller ball, jnp.clip, jnp.maximum or a larger "
    "epsilon."
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Undefined:
    """An operation, and whether its box is NaN though those of its operands are not.

    Attributes:
      operation: name of the op.
      source: the user's line that made it.
      box: scalar ends that hold the boxes of its operands; where entry goes with entry, of those that make NaN.
      here: bool, whether NaN arises here.
      given: bool, whether one of its exact operands is NaN.
    """

    operation: str = dataclasses.field(metadata={"static": True})
    source: str = dataclasses.field(metadata={"static": True})
    box: Interval
    here: jax.Array
    given: jax.Array

    def __str__(self) -> str:
        """The operation and its line, in words."""
        got = f"whose operand has the box [{self.box.lower:.6g}, {self.box.upper:.6g}]"
        if self.given:
            got = "of which an exact operand, such as weights, is NaN"
        return f"the primitive '{self.operation}', {got}. It comes from {self.source}"


def undefined(tape: Tape, known: Analysis) -> list[Undefined]:
    """Every operation of the tape, in order, with whether NaN arises in it."""
    return [_at(op, known) for op in tape.ops]


def explain(found: Sequence[Undefined]) -> str:
    """What a NaN bound comes from, and what to do."""
    first = next((op for op in found if op.here), None)
    if first is None:
        return "No box inside is NaN, so coefficients or offsets overflowed on the way back: a smaller ball may help."
    return f"NaN arises in {first}\n  {_ADVICE}"


def _at(op: Op, known: Analysis) -> Undefined:
    boxes = [known.boxes[ref.index] for ref in op.outputs if _floating(ref)]
    ends = [(known.boxes[ref.index].lower, known.boxes[ref.index].upper) for ref in op.refs if _floating(ref)]
    before = _any(_has_nan(x) for pair in ends for x in pair)
    after = _any(_has_nan(x) for box in boxes for x in (box.lower, box.upper))
    lower, upper = jnp.full((), jnp.inf, jnp.float32), jnp.full((), -jnp.inf, jnp.float32)
    for low, high in ends:
        if boxes and low.shape == boxes[0].shape:
            makes = jnp.isnan(boxes[0].lower) | jnp.isnan(boxes[0].upper)
            low, high = jnp.where(makes, low, jnp.inf), jnp.where(makes, high, -jnp.inf)
        lower = jnp.minimum(lower, low.min(initial=jnp.inf).astype(jnp.float32))
        upper = jnp.maximum(upper, high.max(initial=-jnp.inf).astype(jnp.float32))
    given = _any(_has_nan(x) for x in op.operands if not isinstance(x, Ref))
    return Undefined(op.primitive.name, op.source(), Interval(lower, upper), after & ~before, given)


def _any(flags: Iterable[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.zeros((), bool), *flags]).any()


def _floating(x: Ref | jax.Array) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _has_nan(x: jax.Array) -> jax.Array:
    return jnp.isnan(x).any() if _floating(x) else jnp.zeros((), bool)
