"""Affine functions given as programs: what they are made of, and how far off rounding may take them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import primitives

from mixtrain_jax.bounds import rounding, rules
from mixtrain_jax.bounds.errors import BoundsError
from mixtrain_jax.bounds.interval import Interval
from mixtrain_jax.bounds.tape import Op, Operand, Ref, live, operations


class Sizes(NamedTuple):
    """What rounding errors of an affine function and of its transpose are relative to.

    `outputs` times `gamma(2)` is a bound of what they add to the product of the outputs with coefficients of size 1;
    `floor` is one of what underflow adds to any.
    """

    outputs: tuple[jax.Array, ...]
    floor: jax.Array


@dataclasses.dataclass(frozen=True)
class AffineProgram:
    """Affine operations, one after the other."""

    inputs: tuple[Ref, ...]
    ops: tuple[Op, ...]
    outputs: tuple[Operand, ...]

    def __call__(self, *values: jax.Array) -> list[jax.Array]:
        """The outputs at other inputs."""
        known: dict[int, jax.Array] = dict(enumerate(values))
        for op in self.ops:
            results = op.bind(*(known[x.index] if isinstance(x, Ref) else x for x in op.operands))
            known.update((ref.index, y) for ref, y in zip(op.outputs, results, strict=True))
        return [known[x.index] if isinstance(x, Ref) else x for x in self.outputs]

    def of_outputs(self, which: Iterable[int]) -> AffineProgram:
        """The program of some of the outputs."""
        outputs = tuple(self.outputs[i] for i in which)
        return AffineProgram(self.inputs, tuple(live(self.ops, outputs)), outputs)

    def sizes(self, boxes: Sequence[Interval]) -> Sizes:
        """Over boxes of the inputs, the sums of the absolute values of all terms.

        A product along a path through the program is rounded as often as there are terms on its way, so it is off by
        at most `gamma` of the number of all of them.
        """
        known = {ref.index: rounding.magnitude(box) for ref, box in zip(self.inputs, boxes, strict=True)}
        terms, floor = len(self.ops), jnp.zeros(())
        for op in self.ops:
            theirs, ours = rules.find(op).terms(op)
            terms += theirs + ours + len(op.refs)
            for ref in op.refs:
                floor = floor + (ours + 1) * rounding.tiny(ref.dtype) * known[ref.index].sum().astype(floor.dtype)
            operands = [known[x.index] if isinstance(x, Ref) else _size(x) for x in op.operands]
            known.update((ref.index, y) for ref, y in zip(op.outputs, _of_sizes(op, operands), strict=True))
        outputs = [known[x.index] if isinstance(x, Ref) else jnp.abs(x) for x in self.outputs]
        return Sizes(tuple(rounding.gamma(terms, x.dtype) / rounding.gamma(2, x.dtype) * x for x in outputs), floor)


def affine_program(f: Callable[..., Any], refs: Sequence[Ref]) -> AffineProgram:
    """A function of arrays like these, if all that it does to them is affine.

    Raises:
      BoundsError: where it is not.
    """
    inputs = tuple(Ref(i, ref.shape, ref.dtype) for i, ref in enumerate(refs))
    ops, outputs = operations(f, *inputs)
    for op in ops:
        if op.primitive not in rules.registered() or not rules.is_affine(op):
            raise BoundsError(
                f"returned a function that is not affine in the arguments that are intervals: it takes "
                f"{op.primitive.name!r} of one."
            )
    return AffineProgram(inputs, tuple(ops), tuple(outputs))


def _size(x: jax.Array) -> jax.Array:
    return jnp.abs(x) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x


def _of_sizes(op: Op, operands: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """An affine op on absolute values, with nothing taken off anything."""
    if op.primitive is primitives.sub_p:
        return (operands[0] + operands[1],)
    return tuple(operands) if op.primitive is primitives.neg_p else op.bind(*operands)
