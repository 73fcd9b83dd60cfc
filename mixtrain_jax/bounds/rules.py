"""The registry: primitive -> rule, one family at a time.

A rule says three things: how a primitive maps intervals, whether it is affine in its interval operands (then its
backward map is derived with `jax.vjp`, never written by hand), and, where it is not, which affine functions lie below
and above it. To teach the library a primitive, `register` it with the family that fits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, primitives

from mixtrain_jax.bounds import relaxations
from mixtrain_jax.bounds.errors import UnsupportedPrimitiveError
from mixtrain_jax.bounds.interval import Interval, concrete
from mixtrain_jax.bounds.relaxations import Slopes
from mixtrain_jax.bounds.tape import Op, Ref

Value = Interval | jax.Array
Arrays = tuple[jax.Array, ...]


class Affine(NamedTuple):
    """An affine function of an operation's interval operands."""

    transpose: Callable[[Arrays], Arrays]  # coefficients of the outputs -> coefficients of each interval operand
    offsets: Arrays | None  # value at 0, one an output; None where it is 0


class Relaxation(NamedTuple):
    """Affine functions below and above an operation; the same object twice where the operation is affine itself."""

    lower: Affine
    upper: Affine


@dataclasses.dataclass(frozen=True)
class Rule:
    """What the library knows of a primitive.

    Attributes:
      family: the word the coverage table shows.
      interval: `(op, operands) -> intervals`, one an output; an operand is an interval where the op's is a ref.
      affine: whether the op is affine jointly in its interval operands, these being floating.
      relax: `(op, operands, slopes) -> Relaxation` for ops that are not affine; None to bound the op by its intervals
        alone, which is always sound.
      homogeneous: 0 maps to 0 whatever the exact operands are, so an affine op has no offset.
      entrywise: every output entry depends on one input entry, when there is one interval operand.
    """

    family: str
    interval: Callable[[Op, Sequence[Value]], Sequence[Interval]]
    affine: Callable[[Op], bool] = lambda op: False
    relax: Callable[[Op, Sequence[Value], Slopes], Relaxation | None] | None = None
    homogeneous: bool = False
    entrywise: bool = False


_REGISTRY: dict[Primitive, Rule] = {}


def register(rule: Rule, *prims: Primitive) -> None:
    """Give primitives a rule; a later call replaces an earlier one."""
    for primitive in prims:
        _REGISTRY[primitive] = rule


def registered() -> dict[Primitive, Rule]:
    """A copy of the registry."""
    return dict(_REGISTRY)


def find(op: Op) -> Rule:
    """The rule of an op, or the error that says how to write one."""
    if op.primitive not in _REGISTRY:
        raise unsupported(
            op,
            "there is no rule for it",
            "If it never decreases in any operand, these lines teach the library interval bounds of it:\n"
            f"    from {_module(op.primitive)} import {op.primitive.name}_p\n"
            "    from mixtrain_jax.bounds import rules\n"
            f'    rules.register(rules.Rule("monotone", rules.endpoints), {op.primitive.name}_p)',
        )
    return _REGISTRY[op.primitive]


def is_affine(op: Op) -> bool:
    """Whether an op is affine jointly in its interval operands; over integers nothing is."""
    return find(op).affine(op) and all(map(_is_float, (*op.refs, *op.outputs)))


def _is_float(ref: Ref) -> bool:
    return jnp.issubdtype(ref.dtype, jnp.floating)


def unsupported(
    op: Op, why: str, way_out: str = "Keep that operand exact, or put a rule of your own in place with rules.register."
) -> UnsupportedPrimitiveError:
    """Name the primitive, the user's line and the way out."""
    kinds = ", ".join("interval" if isinstance(x, Ref) else "exact" for x in op.operands)
    return UnsupportedPrimitiveError(
        f"Cannot bound the primitive '{op.primitive}' ({kinds}): {why}.\n  It comes from {op.source()}\n  {way_out}"
    )


def _module(primitive: Primitive) -> str:
    """Where a primitive can be imported from; the maker of one of their own will know."""
    for module in (primitives, jax.lax):
        if getattr(module, f"{primitive.name}_p", None) is primitive:
            return module.__name__
    return "..."


def derive(op: Op) -> Relaxation:
    """An affine op as its own relaxation: the transpose is the vector-Jacobian product at 0."""
    values, vjp = jax.vjp(op.of_refs, *(ref.zeros() for ref in op.refs))
    homogeneous = find(op).homogeneous or len(op.refs) == len(op.operands)
    affine = Affine(vjp, None if homogeneous else values)
    return Relaxation(affine, affine)


# --- families -------------------------------------------------------------------------------------------------------


def endpoints(op: Op, operands: Sequence[Value]) -> list[Interval]:
    """Intervals of an op that never decreases in any operand: apply it to the lower ends, then to the upper ends."""
    return _pair(op.bind(*map(lower_end, operands)), op.bind(*map(upper_end, operands)))


def lower_end(x: Value) -> jax.Array:
    """Lower end of an interval; an exact value is its own."""
    return x.lower if isinstance(x, Interval) else x


def upper_end(x: Value) -> jax.Array:
    """Upper end of an interval; an exact value is its own."""
    return x.upper if isinstance(x, Interval) else x


def _pair(lowers: Arrays, uppers: Arrays) -> list[Interval]:
    return [Interval(lower, upper) for lower, upper in zip(lowers, uppers, strict=True)]


def _sub(op: Op, operands: Sequence[Value]) -> list[Interval]:
    x, y = operands
    return _pair(op.bind(lower_end(x), upper_end(y)), op.bind(upper_end(x), lower_end(y)))


def _neg(op: Op, operands: Sequence[Value]) -> list[Interval]:
    (x,) = operands
    return _pair(op.bind(upper_end(x)), op.bind(lower_end(x)))


def _bilinear(op: Op, operands: Sequence[Value]) -> list[Interval]:
    """Center and radius through a product; with both sides uncertain, Rump's formula (BIT 39, 1999, eq. 3.2)."""
    if not all(map(_is_float, op.refs)):
        raise unsupported(op, "an operand is an interval of integers, and only floating ones are handled")
    x, y = operands
    if isinstance(x, Interval) and isinstance(y, Interval):
        center = op.bind(x.center, y.center)
        spread = (op.bind(jnp.abs(x.center), y.radius), op.bind(x.radius, jnp.abs(y.center) + y.radius))
        radius = tuple(a + b for a, b in zip(*spread, strict=True))
    elif isinstance(x, Interval):
        center, radius = op.bind(x.center, y), op.bind(x.radius, jnp.abs(_array(y)))
    else:
        center, radius = op.bind(x, _interval(y).center), op.bind(jnp.abs(_array(x)), _interval(y).radius)
    return [Interval(c - r, c + r) for c, r in zip(center, radius, strict=True)]


def _mul(op: Op, operands: Sequence[Value]) -> list[Interval]:
    """Entrywise products: the extremes are among the products of the ends."""
    x, y = operands
    products = [op.bind(a, b)[0] for a in _ends(x) for b in _ends(y)]
    lower = upper = products[0]
    for product in products[1:]:
        lower, upper = jnp.minimum(lower, product), jnp.maximum(upper, product)
    return [Interval(lower, upper)]


def _div(op: Op, operands: Sequence[Value]) -> list[Interval]:
    x, y = operands
    if isinstance(y, Interval):
        raise unsupported(op, "the divisor is an interval, and only exact divisors are handled")
    a, b = (op.bind(end, y)[0] for end in _ends(x))
    return [Interval(jnp.minimum(a, b), jnp.maximum(a, b))]


def _interval(x: Value) -> Interval:
    assert isinstance(x, Interval)
    return x


def _array(x: Value) -> jax.Array:
    assert not isinstance(x, Interval)
    return x


def _ends(x: Value) -> Arrays:
    return (x.lower, x.upper) if isinstance(x, Interval) else (x,)


def _select(op: Op, operands: Sequence[Value]) -> list[Interval]:
    if isinstance(operands[0], Interval):
        raise unsupported(op, "the predicate depends on an interval, and only exact predicates are handled")
    return endpoints(op, operands)


def _convert(op: Op, operands: Sequence[Value]) -> list[Interval]:
    """Rounding and truncation never decrease; comparing with 0 and wrapping around do."""
    (source,), (target,) = op.refs, op.outputs
    truncates = _is_float(source) and jnp.issubdtype(target.dtype, jnp.signedinteger) and target.dtype.itemsize >= 4
    if not (_is_float(target) or truncates):
        raise unsupported(op, f"the conversion from {source.dtype} to {target.dtype} is not monotone")
    return endpoints(op, operands)


def _gather(op: Op, operands: Sequence[Value]) -> list[Interval]:
    if any(isinstance(x, Interval) for x in operands[1:]):
        raise unsupported(op, "an index depends on an interval, and only exact indices are handled")
    return endpoints(op, operands)


def _relax_max(op: Op, operands: Sequence[Value], slopes: Slopes) -> Relaxation | None:
    """`max(x, t)` is `relu(x - t) + t` for an exact threshold `t`; of two intervals it is bounded by its interval."""
    if len(op.refs) != 1:
        return None
    first, second = operands
    x, threshold = (first, second) if isinstance(first, Interval) else (second, first)
    x, threshold = _interval(x), _array(threshold)
    return _entrywise_relaxation(relaxations.relu(x.lower - threshold, x.upper - threshold, slopes), threshold)


def _relax_identity(op: Op, operands: Sequence[Value], slopes: Slopes) -> Relaxation:
    """For what is the identity but has, by design, another derivative, so that `derive` would be wrong."""
    itself = Affine(lambda coefficients: coefficients, None)
    return Relaxation(itself, itself)


def _entrywise_relaxation(lines: relaxations.Lines, shift: jax.Array) -> Relaxation:
    """Lines for `g(x - shift) + shift` from lines for `g`."""
    value = concrete(shift)
    centered = value is not None and not value.any()  # a literal 0, as in relu

    def side(slope: jax.Array, offset: jax.Array | None, transpose: Callable[[Arrays], Arrays]) -> Affine:
        if centered:
            return Affine(transpose, None if offset is None else (offset,))
        return Affine(transpose, (shift - slope * shift + (0 if offset is None else offset),))

    def scale(slope: jax.Array) -> Callable[[Arrays], Arrays]:
        return lambda coefficients: (coefficients[0] * slope,)

    below = scale(lines.lower_slope)
    above = below if lines.upper_slope is lines.lower_slope else scale(lines.upper_slope)
    return Relaxation(
        side(lines.lower_slope, lines.lower_offset, below), side(lines.upper_slope, lines.upper_offset, above)
    )


def _always(op: Op) -> bool:
    return True


def _one_ref(op: Op) -> bool:
    return len(op.refs) == 1


# Entries moved about, one to one.
register(
    Rule("structural", endpoints, _always, entrywise=True),
    primitives.reshape_p,
    primitives.transpose_p,
    primitives.squeeze_p,
    primitives.rev_p,
    primitives.slice_p,
    primitives.pad_p,
    primitives.copy_p,
)
# Entries copied, joined, split or summed with weights >= 0.
register(
    Rule("structural", endpoints, _always),
    primitives.broadcast_in_dim_p,
    primitives.concatenate_p,
    primitives.reduce_sum_p,
    primitives.reduce_window_sum_p,
    primitives.cumsum_p,
)
# The same, from where only some versions of jax have them.
for _name in ("split_p", "stack_p", "unstack_p", "tile_p"):
    if hasattr(jax.lax, _name):
        register(Rule("structural", endpoints, _always), getattr(jax.lax, _name))
register(Rule("structural", _convert, _always, entrywise=True), primitives.convert_element_type_p)
register(Rule("structural", _select, _always), primitives.select_n_p)
register(Rule("structural", _gather, _always), primitives.gather_p)  # out of bounds it may fill with a constant
register(Rule("structural", _gather, _always, homogeneous=True), primitives.dynamic_slice_p)
register(Rule("structural", endpoints, relax=_relax_identity, entrywise=True), primitives.stop_gradient_p)
register(Rule("sum", endpoints, _always, entrywise=True), primitives.add_p, primitives.add_jaxvals_p)
register(Rule("sum", _sub, _always, entrywise=True), primitives.sub_p)
register(Rule("sum", _neg, _always, entrywise=True), primitives.neg_p)
register(Rule("product", _mul, _one_ref, homogeneous=True, entrywise=True), primitives.mul_p)
register(Rule("product", _div, _one_ref, homogeneous=True, entrywise=True), primitives.div_p)
register(
    Rule("product", _bilinear, _one_ref, homogeneous=True), primitives.dot_general_p, primitives.conv_general_dilated_p
)
register(Rule("monotone", endpoints, relax=_relax_max, entrywise=True), primitives.max_p)
register(Rule("monotone", endpoints, entrywise=True), primitives.min_p)
