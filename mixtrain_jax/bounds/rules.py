"""The registry: primitive -> rule, one family at a time.

A rule says three things: how a primitive maps intervals, whether it is affine in its interval operands (then its
backward map is derived with `jax.vjp`, never written by hand), and, where it is not, which affine functions lie below
and above it. To teach the library a primitive, `register` it with the family that fits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive, primitives

from mixtrain_jax.bounds import convolution, relaxations, rounding
from mixtrain_jax.bounds.cpu import times_absolute
from mixtrain_jax.bounds.errors import unsupported
from mixtrain_jax.bounds.interval import Interval, concrete
from mixtrain_jax.bounds.relaxations import Slopes
from mixtrain_jax.bounds.tape import Op, Ref

Value = Interval | jax.Array
Arrays = tuple[jax.Array, ...]
Errors = Sequence[rounding.Error | jax.Array]


class Affine(NamedTuple):
    """An affine function of an operation's interval operands."""

    transpose: Callable[[Arrays], Arrays]  # coefficients of the outputs -> coefficients of each interval operand
    offsets: Arrays | None  # value at 0, one an output; None where it is 0


class Relaxation(NamedTuple):
    """Affine functions below and above an operation; the same object twice where the operation is affine itself."""

    lower: Affine
    upper: Affine
    scale: Arrays | None = None  # sum of the sizes of their terms, one an output: what rounding errors are relative to
    floor: jax.Array | float = 0.0  # what underflow inside of them may add to a bound


def rounded_once(op: Op, operands: Sequence[Value], outputs: Sequence[Interval]) -> Errors:
    """Rounding errors of an op whose outputs are each rounded once."""
    return tuple(map(rounding.once, outputs))


def accurate_to(units: float) -> Callable[[Op, Sequence[Value], Sequence[Interval]], Errors]:
    """Rounding errors of ops whose outputs are off by at most so many units of roundoff of their own."""
    return lambda op, operands, outputs: [rounding.once(out, units) for out in outputs]


def never(op: Op) -> bool:
    """Of a rule whose ops are never affine."""
    return False


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
      rounded: `(op, operands, intervals) -> errors`, how far an output of the op in floating point may be from its
        exact value, beyond the sums that `terms` counts: an array, or a `rounding.Error` where the ends of a box
        differ; None for ops that move and compare but never compute.
      terms: `op -> (n, m)`: numbers of products that an output sums, and that the transpose of the op sums.
      stable: `(op, operands) -> array`, where a relaxation is exact already, so that tighter boxes are of no use.
      limits: `(op, operands) -> interval` that no output leaves however it is rounded, such as that of the numbers
        above 0 for a sum of numbers above 0; None where nothing is known.
      tunable: `relax` also takes an array of slopes in [0, 1], of the output's shape.
      way: what the relaxation is, in the words of the coverage table.
    """

    family: str
    interval: Callable[[Op, Sequence[Value]], Sequence[Interval]]
    affine: Callable[[Op], bool] = never
    relax: Callable[[Op, Sequence[Value], Slopes], Relaxation | None] | None = None
    homogeneous: bool = False
    entrywise: bool = False
    rounded: Callable[[Op, Sequence[Value], Sequence[Interval]], Errors] | None = rounded_once
    terms: Callable[[Op], tuple[int, int]] = lambda op: (1, 1)
    stable: Callable[[Op, Sequence[Value]], jax.Array] | None = None
    limits: Callable[[Op, Sequence[Value]], Interval] | None = None
    tunable: bool = False
    way: str = ""


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
            "If it never decreases in any operand, these lines teach the library interval bounds of it.\n"
            "  For sound=True say how many units of roundoff the backend may be off by:\n"
            f"    from {_module(op.primitive)} import {op.primitive.name}_p\n"
            "    from mixtrain_jax.bounds import rules\n"
            '    rules.register(rules.Rule("monotone", rules.endpoints, rounded=rules.accurate_to(64)), '
            f"{op.primitive.name}_p)",
        )
    return _REGISTRY[op.primitive]


def is_affine(op: Op) -> bool:
    """Whether an op is affine jointly in its interval operands; over integers nothing is."""
    return find(op).affine(op) and all(map(is_float, (*op.refs, *op.outputs)))


_ACCUMULATING = (
    primitives.dot_general_p,
    primitives.conv_general_dilated_p,
    primitives.reduce_sum_p,
    primitives.reduce_window_sum_p,
    primitives.cumsum_p,
    primitives.scatter_add_p,
)


def accumulates(op: Op) -> bool:
    """Whether an op sums products, of which absolute values give it its scale."""
    return op.primitive in _ACCUMULATING and find(op).terms(op)[0] > 1


def is_float(ref: Ref) -> bool:
    """Whether a ref is a floating number."""
    return jnp.issubdtype(ref.dtype, jnp.floating)


def _module(primitive: Primitive) -> str:
    """Where a primitive can be imported from; the maker of one of their own will know."""
    for module in (primitives, jax.lax):
        if getattr(module, f"{primitive.name}_p", None) is primitive:
            return module.__name__
    return "..."


def derive(op: Op) -> Relaxation:
    """An affine op as its own relaxation: the transpose is the vector-Jacobian product at 0."""
    if (transpose := convolution.transposed(op)) is not None:
        itself = Affine(transpose, None)
        return Relaxation(itself, itself)
    values, vjp = jax.vjp(op.of_refs, *(ref.zeros() for ref in op.refs))
    homogeneous = find(op).homogeneous or len(op.refs) == len(op.operands)
    if op.primitive is primitives.select_n_p:  # A mask's -inf is no number that a coefficient 0 could remove.
        values = tuple(jnp.clip(v, float(jnp.finfo(v.dtype).min), float(jnp.finfo(v.dtype).max)) for v in values)
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
    """Center and radius through a product; with both sides uncertain, Rump's formula (BIT 39, 1999, eq. 3.2).

    Of factors that are known to be no less than 0, the ends: what is large does not round off what is small.
    """
    if not all(map(is_float, op.refs)):
        raise unsupported(op, "an operand is an interval of integers, and only floating ones are handled")
    x, y = operands
    if isinstance(x, Interval) and isinstance(y, Interval):
        center = op.bind(x.center, y.center)
        spread = (op.bind(jnp.abs(x.center), y.radius), op.bind(x.radius, jnp.abs(y.center) + y.radius))
        radius = tuple(a + b for a, b in zip(*spread, strict=True))
        positive = jnp.all(x.lower >= 0) & jnp.all(y.lower >= 0)
        return [
            Interval(jnp.where(positive, ends.lower, c - r), jnp.where(positive, ends.upper, c + r))
            for ends, c, r in zip(endpoints(op, operands), center, radius, strict=True)
        ]
    weights = concrete(_array(y if isinstance(x, Interval) else x))
    if weights is not None and np.all(weights >= 0):
        return endpoints(op, operands)
    if isinstance(x, Interval):
        center, radius = op.bind(x.center, y), _spread(op, x.radius, _array(y))
    else:
        center, radius = op.bind(x, _interval(y).center), op.bind(jnp.abs(_array(x)), _interval(y).radius)
    return [Interval(c - r, c + r) for c, r in zip(center, radius, strict=True)]


def _spread(op: Op, radius: jax.Array, weights: jax.Array) -> Arrays:
    if op.primitive is primitives.dot_general_p:
        return (times_absolute(radius, weights, **op.params),)
    return op.bind(radius, jnp.abs(weights))


def _limits_of_sum(op: Op, operands: Sequence[Value]) -> Interval:
    """Sums of numbers of one sign have that sign: what there is of the other adds up to nothing."""

    def total(end: Callable[[Value], jax.Array], part: Callable[..., jax.Array]) -> jax.Array:
        ends = map(end, operands)
        (out,) = op.bind(*(part(x, 0) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in ends))
        return out

    (out,) = op.outputs
    below, above = total(lower_end, jnp.minimum), total(upper_end, jnp.maximum)
    return rounding.one_sided(~(below >= 0), ~(above <= 0), out.dtype)


def _limits_of_addition(op: Op, operands: Sequence[Value]) -> Interval:
    """To add a number >= 0 takes nothing away: rounding keeps order."""
    (x, left), (y, right) = ((lower_end(v), upper_end(v)) for v in operands)
    lower = jnp.maximum(jnp.where(y >= 0, x, -jnp.inf), jnp.where(x >= 0, y, -jnp.inf))
    return Interval(lower, jnp.minimum(jnp.where(right <= 0, left, jnp.inf), jnp.where(left <= 0, right, jnp.inf)))


def _limits_of_difference(op: Op, operands: Sequence[Value]) -> Interval:
    x, y = operands
    (out,) = op.outputs
    sign = rounding.one_sided(~(lower_end(x) >= upper_end(y)), ~(upper_end(x) <= lower_end(y)), out.dtype)
    return rounding.within(_limits_of_addition(op, [x, _negated(y)]), sign)


def _limits_of_product(op: Op, operands: Sequence[Value]) -> Interval:
    """Signs of factors, entry by entry, or of sums of products those of whole operands; so too of quotients."""
    x, y = operands
    (out,) = op.outputs
    combine = (lambda sign: sign) if op.primitive in (primitives.mul_p, primitives.div_p) else jnp.all
    (x_up, x_down), (y_up, y_down) = ((combine(lower_end(v) >= 0), combine(upper_end(v) <= 0)) for v in (x, y))
    return rounding.one_sided(~((x_up & y_up) | (x_down & y_down)), ~((x_up & y_down) | (x_down & y_up)), out.dtype)


def limits_of_sign(op: Op, operands: Sequence[Value], root: float = 0.0) -> Interval:
    """Of what never decreases and is 0 at the root."""
    (x,) = (operand for operand in operands if isinstance(operand, Interval))
    (out,) = op.outputs
    at = jnp.asarray(root, x.dtype)
    return rounding.one_sided(~(x.lower >= at), ~(x.upper <= at), out.dtype)


def _mul(op: Op, operands: Sequence[Value]) -> list[Interval]:
    """Entrywise products: the extremes are among the products of the ends."""
    x, y = operands
    products = [op.bind(a, b)[0] for a in _ends(x) for b in _ends(y)]
    lower = upper = products[0]
    for product in products[1:]:
        lower, upper = jnp.minimum(lower, product), jnp.maximum(upper, product)
    return [Interval(lower, upper)]


def _div(op: Op, operands: Sequence[Value]) -> list[Interval]:
    """Only exact divisors get here: other quotients are lowered to products."""
    x, y = operands
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
    """Of an interval predicate, every case that it allows."""
    which, *cases = operands
    if not isinstance(which, Interval):
        return endpoints(op, operands)
    lower, upper = (x.astype(jnp.int32) for x in (which.lower, which.upper))
    shape = op.outputs[0].shape
    out = None
    for i, case in enumerate(cases):
        allowed = (lower <= i) & (i <= upper)
        ends = [
            jnp.where(allowed, jnp.broadcast_to(end, shape), void)
            for end, void in zip((lower_end(case), upper_end(case)), _void(op.outputs[0].dtype), strict=True)
        ]
        out = ends if out is None else [jnp.minimum(out[0], ends[0]), jnp.maximum(out[1], ends[1])]
    assert out is not None
    return _pair((out[0],), (out[1],))


def _relax_select(op: Op, operands: Sequence[Value], slopes: Slopes) -> Relaxation | None:
    """Where the predicate is certain it chooses a case; elsewhere the output is in its box."""
    which, *cases = operands
    if not all(map(is_float, op.refs[1:])) or not isinstance(which, Interval):
        return None
    (box,) = _select(op, operands)
    chosen = which.lower.astype(jnp.int32)
    certain = chosen == which.upper.astype(jnp.int32)
    exact = [
        jnp.where(certain & (chosen == i), lower_end(case), 0)
        for i, case in enumerate(cases)
        if not isinstance(case, Interval)
    ]
    constant = sum(exact, jnp.zeros(op.outputs[0].shape, op.outputs[0].dtype))
    masks = [certain & (chosen == i) for i, case in enumerate(cases) if isinstance(case, Interval)]

    def transpose(coefficients: Arrays) -> tuple[Any, ...]:
        (a,) = coefficients
        return None, *(jnp.where(mask, a, 0) for mask in masks)

    below, above = (jnp.where(certain, constant, end) for end in (box.lower, box.upper))
    scale = rounding.magnitude(box)
    return Relaxation(Affine(transpose, (below,)), Affine(transpose, (above,)), (scale,))


def _void(dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Ends of the box of no value at all."""
    if jnp.issubdtype(dtype, jnp.bool_):
        return jnp.array(True), jnp.array(False)
    info = jnp.finfo(dtype) if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype)
    high, low = (jnp.inf, -jnp.inf) if jnp.issubdtype(dtype, jnp.floating) else (info.max, info.min)
    return jnp.array(high, dtype), jnp.array(low, dtype)


def _affine_select(op: Op) -> bool:
    return not isinstance(op.operands[0], Ref)


def _convert(op: Op, operands: Sequence[Value]) -> list[Interval]:
    """Rounding and truncation never decrease; an integer that may not fit its new type can come out as any."""
    (x,), (target,) = operands, op.outputs
    x = _interval(x)
    if jnp.issubdtype(target.dtype, jnp.complexfloating):
        raise unsupported(op, "complex numbers have no order")
    if jnp.issubdtype(target.dtype, jnp.bool_):
        return [Interval((x.lower > 0) | (x.upper < 0), (x.lower != 0) | (x.upper != 0))]
    (converted,) = endpoints(op, operands)
    if is_float(target) or jnp.issubdtype(x.dtype, jnp.bool_):
        return [converted]
    info, source = jnp.iinfo(target.dtype), jnp.finfo(x.dtype) if is_float(op.refs[0]) else jnp.iinfo(x.dtype)
    # Ends of the new type as the old one has them: of floats none that rounds to the next number beyond.
    low, high = (np.asarray(float(end)) if is_float(op.refs[0]) else end for end in (info.min, info.max))
    fits = jnp.ones(x.shape, bool)
    if source.min < low:
        fits &= x.lower >= jnp.asarray(low, x.dtype)
    if source.max > high:
        fits &= x.upper < jnp.asarray(high, x.dtype) if is_float(op.refs[0]) else x.upper <= jnp.asarray(high, x.dtype)
    least, most = (jnp.asarray(end, target.dtype) for end in (info.min, info.max))
    return [Interval(jnp.where(fits, converted.lower, least), jnp.where(fits, converted.upper, most))]


def _gather(op: Op, operands: Sequence[Value]) -> list[Interval]:
    if any(isinstance(x, Interval) for x in operands[1:]):
        raise unsupported(op, "an index depends on an interval, and only exact indices are handled")
    return endpoints(op, operands)


def _relax_max(op: Op, operands: Sequence[Value], slopes: Slopes) -> Relaxation:
    """`max(x, t)` is `relu(x - t) + t`, for an exact threshold `t` and, with more freedom than there is, any other."""
    first, second = operands
    if isinstance(first, Interval) and isinstance(second, Interval):
        return _relax_max_of_two(first, second, slopes)
    x, threshold = (first, second) if isinstance(first, Interval) else (second, first)
    x, threshold = _interval(x), _array(threshold)
    lines = relaxations.relu(x.lower - threshold, x.upper - threshold, slopes)
    return entrywise_relaxation(lines, x, threshold)


def _relax_max_of_two(x: Interval, y: Interval, slopes: Slopes) -> Relaxation:
    lines = relaxations.relu(x.lower - y.upper, x.upper - y.lower, slopes)

    def mixed(slope: jax.Array) -> Callable[[Arrays], Arrays]:
        return lambda coefficients: (coefficients[0] * slope, coefficients[0] * (1 - slope))

    below = mixed(lines.lower_slope)
    above = below if lines.upper_slope is lines.lower_slope else mixed(lines.upper_slope)
    offsets = [None if offset is None else (offset,) for offset in (lines.lower_offset, lines.upper_offset)]
    scale = rounding.magnitude(x) + rounding.magnitude(y)
    return Relaxation(Affine(below, offsets[0]), Affine(above, offsets[1]), (2 * scale,))


def _relax_min(op: Op, operands: Sequence[Value], slopes: Slopes) -> Relaxation:
    """`min(x, y)` is `-max(-x, -y)`."""
    below, above, scale, _ = _relax_max(op, [_negated(x) for x in operands], slopes)
    lower, upper = (
        Affine(side.transpose, None if side.offsets is None else tuple(-b for b in side.offsets))
        for side in (above, below)
    )
    return Relaxation(lower, upper, scale)


def _negated(x: Value) -> Value:
    return Interval(-x.upper, -x.lower) if isinstance(x, Interval) else -x


def _stable_max(op: Op, operands: Sequence[Value]) -> jax.Array:
    x, y = operands
    return (lower_end(x) >= upper_end(y)) | (upper_end(x) <= lower_end(y))


def _relax_bilinear(op: Op, operands: Sequence[Value], slopes: Slopes) -> Relaxation:
    """A product of two intervals is its linear part at the centers, give or take the product of the radii.

    That is the mean of McCormick's two planes (Math. Programming 10, 1976) on either side; both share their slopes.
    """
    x, y = (_interval(operand) for operand in operands)  # numbers times exact ones are affine
    _, vjp = jax.vjp(lambda a, b: op.bind(a, b), x.center, y.center)
    (constant,), (spread,) = op.bind(x.center, y.center), op.bind(x.radius, y.radius)
    (scale,) = op.bind(rounding.magnitude(x), rounding.magnitude(y))
    return Relaxation(Affine(vjp, (-constant - spread,)), Affine(vjp, (-constant + spread,)), (4 * scale,))


def _update(op: Op, operands: Sequence[Value]) -> list[Interval]:
    if any(isinstance(x, Interval) for x in operands[2:]):
        raise unsupported(op, "an index depends on an interval, and only exact indices are handled")
    return endpoints(op, operands)


def _scatter(op: Op, operands: Sequence[Value]) -> list[Interval]:
    if isinstance(operands[1], Interval):
        raise unsupported(op, "an index depends on an interval, and only exact indices are handled")
    return endpoints(op, operands)


def _relax_identity(op: Op, operands: Sequence[Value], slopes: Slopes) -> Relaxation:
    """For what is the identity but has, by design, another derivative, so that `derive` would be wrong."""
    itself = Affine(lambda coefficients: coefficients, None)
    return Relaxation(itself, itself)


def times(coefficients: jax.Array, slope: jax.Array) -> jax.Array:
    """Coefficients times slopes of their shape, or of one that broadcasts to it.

    Taken as one row of entries: the gradient for the slopes is a sum over all rows that share them, for which XLA's CPU
    backend takes ten times as long where there are more dimensions.
    """
    flat = jnp.broadcast_to(slope, coefficients.shape).reshape(-1)
    return (coefficients.reshape(-1) * flat).reshape(coefficients.shape)


def entrywise_relaxation(lines: relaxations.Lines, x: Interval, shift: jax.Array | None = None) -> Relaxation:
    """Lines for `g(x - shift) + shift` from lines for `g`, over the box of `x`."""
    value = None if shift is None else concrete(shift)
    centered = shift is None or (value is not None and not value.any())  # a literal 0, as in relu

    def side(slope: jax.Array, offset: jax.Array | None, transpose: Callable[[Arrays], Arrays]) -> Affine:
        if centered:
            return Affine(transpose, None if offset is None else (offset,))
        return Affine(transpose, (shift - slope * shift + (0 if offset is None else offset),))

    def scale(slope: jax.Array) -> Callable[[Arrays], Arrays]:
        return lambda coefficients: (times(coefficients[0], slope),)

    below = scale(lines.lower_slope)
    above = below if lines.upper_slope is lines.lower_slope else scale(lines.upper_slope)
    terms = jnp.maximum(jnp.abs(lines.lower_slope), jnp.abs(lines.upper_slope)) * rounding.magnitude(x)
    for offset in (lines.lower_offset, lines.upper_offset):
        terms = terms + (0 if offset is None else jnp.abs(offset))
    terms = terms + (0 if centered else 2 * jnp.abs(_array(shift)))
    return Relaxation(
        side(lines.lower_slope, lines.lower_offset, below), side(lines.upper_slope, lines.upper_offset, above), (terms,)
    )


def _copies(op: Op) -> tuple[int, int]:
    """Of an op that copies entries: nothing is summed, but the transpose sums the copies."""
    return 1, max(1, math.prod(op.outputs[0].shape) // max(1, min(math.prod(ref.shape) for ref in op.refs)))


def _any_copies(op: Op) -> tuple[int, int]:
    return 1, math.prod(op.outputs[0].shape)


def _additions(op: Op) -> tuple[int, int]:
    """Of additions at indices, which XLA makes one after the other in the dtype of the array."""
    n = 1 + math.prod(op.operands[2].shape)
    return n * max(1, round(rounding.unit(op.outputs[0].dtype) / rounding.unit(jnp.float32))), n


def _sums(op: Op) -> tuple[int, int]:
    (ref,) = op.refs
    if "window_dimensions" in op.params:
        n = math.prod(op.params["window_dimensions"])
        return n, n
    if "axis" in op.params:
        n = ref.shape[op.params["axis"]]
        return n, n
    return math.prod(ref.shape[axis] for axis in op.params["axes"]), 1


def _products(op: Op) -> tuple[int, int]:
    """The terms of a matrix product or of a convolution, and those of its transpose in either operand."""
    x, y = (operand.shape for operand in op.operands)
    (out,) = op.outputs
    if op.primitive is primitives.conv_general_dilated_p:
        params, kernel = op.params, op.params["dimension_numbers"].rhs_spec
        features, sizes = y[kernel[0]], [y[d] for d in kernel[2:]]
        forward = math.prod(y) // features
        groups = params["feature_group_count"] * params["batch_group_count"]
        # Of a stride, an entry of the operand meets only the taps that fall on it.
        steps = zip(sizes, params["window_strides"], params["rhs_dilation"], strict=True)
        taps = math.prod(-(-size * math.gcd(stride, dilation) // stride) for size, stride, dilation in steps)
        of_operand = taps * features // groups
        of_kernel = math.prod(out.shape) if isinstance(op.operands[1], Ref) else 1
        return forward, max(of_operand, of_kernel)
    (contracted, _), (batched, _) = op.params["dimension_numbers"]
    forward = math.prod(x[i] for i in contracted)
    shared = max(1, forward * math.prod(x[i] for i in batched))
    others = [
        math.prod(shape) // shared
        for shape, operand in ((y, op.operands[0]), (x, op.operands[1]))
        if isinstance(operand, Ref)
    ]
    return forward, max(1, *others)


def _always(op: Op) -> bool:
    return True


def _one_ref(op: Op) -> bool:
    return len(op.refs) == 1


def _compare(op: Op, operands: Sequence[Value]) -> list[Interval]:
    """A comparison is certain where the boxes say so, and else both; with NaN, nothing is."""
    x, y = operands
    swapped = op.primitive in (primitives.gt_p, primitives.ge_p)
    if swapped:
        x, y = y, x
    if op.primitive in (primitives.lt_p, primitives.gt_p):
        return [Interval(upper_end(x) < lower_end(y), ~(lower_end(x) >= upper_end(y)))]
    if op.primitive in (primitives.le_p, primitives.ge_p):
        return [Interval(upper_end(x) <= lower_end(y), ~(lower_end(x) > upper_end(y)))]
    if op.operands[0] is op.operands[1]:  # which asks for NaN
        same = (lower_end(x) == lower_end(y)) & (upper_end(x) == upper_end(y))
        apart = jnp.zeros_like(same)
    else:
        apart = (lower_end(x) > upper_end(y)) | (upper_end(x) < lower_end(y))
        same = (lower_end(x) == upper_end(x)) & (lower_end(y) == upper_end(y)) & (lower_end(x) == lower_end(y))
    return [Interval(same, ~apart) if op.primitive is primitives.eq_p else Interval(apart, ~same)]


def _not(op: Op, operands: Sequence[Value]) -> list[Interval]:
    _boolean(op)
    return _neg(op, operands)


def _boolean_endpoints(op: Op, operands: Sequence[Value]) -> list[Interval]:
    _boolean(op)
    return endpoints(op, operands)


def _xor(op: Op, operands: Sequence[Value]) -> list[Interval]:
    _boolean(op)
    cases = [
        op.bind(a, b)[0]
        for a in (lower_end(operands[0]), upper_end(operands[0]))
        for b in (lower_end(operands[1]), upper_end(operands[1]))
    ]
    lower = upper = cases[0]
    for case in cases[1:]:
        lower, upper = lower & case, upper | case
    return [Interval(lower, upper)]


def _boolean(op: Op) -> None:
    if any(ref.dtype != bool for ref in op.refs):
        raise unsupported(op, "bitwise operations are known for intervals of booleans only")


def _is_finite(op: Op, operands: Sequence[Value]) -> list[Interval]:
    (x,) = (_interval(operand) for operand in operands)
    ends = op.bind(x.lower)[0] & op.bind(x.upper)[0]
    return [Interval(ends, jnp.ones_like(ends))]


def _rem(op: Op, operands: Sequence[Value]) -> list[Interval]:
    """Between two multiples of the divisor the remainder rises with `x`; else it is anything of the sign of `x`."""
    x, y = operands
    if not isinstance(x, Interval) or isinstance(y, Interval):
        raise unsupported(op, "the divisor is an interval, and only exact divisors are handled")
    low, high = op.bind(x.lower, y)[0], op.bind(x.upper, y)[0]
    size = jnp.where(y == 0, jnp.nan, jnp.abs(y))
    same = (jnp.trunc(x.lower / y) == jnp.trunc(x.upper / y)) & (x.upper - x.lower < size) & (low <= high)
    lower = jnp.where(same, low, jnp.where(x.lower >= 0, 0 * size, -size))  # NaN as the divisor is
    upper = jnp.where(same, high, jnp.where(x.upper <= 0, 0 * size, size))
    return [Interval(jnp.maximum(lower, jnp.minimum(x.lower, 0)), jnp.minimum(upper, jnp.maximum(x.upper, 0)))]


def _limits_of_remainder(op: Op, operands: Sequence[Value]) -> Interval:
    return limits_of_sign(op, operands[:1])


def _sort(op: Op, operands: Sequence[Value]) -> list[Interval]:
    if len(operands) != 1:
        raise unsupported(op, "it sorts by an interval what belongs to it, and which is where is not known")
    return endpoints(op, operands)


# Entries moved about, one to one.
register(
    Rule("structural", endpoints, _always, entrywise=True, rounded=None),
    primitives.reshape_p,
    primitives.transpose_p,
    primitives.squeeze_p,
    primitives.rev_p,
    primitives.slice_p,
    primitives.pad_p,
    primitives.copy_p,
)
# Entries copied, joined or split.
_COPIES = Rule("structural", endpoints, _always, rounded=None, terms=_copies)
register(_COPIES, primitives.broadcast_in_dim_p, primitives.concatenate_p)
for _name in ("split_p", "stack_p", "unstack_p", "tile_p"):  # only some versions of jax have them
    if hasattr(jax.lax, _name):
        register(_COPIES, getattr(jax.lax, _name))
register(
    Rule("sum", endpoints, _always, terms=_sums, limits=_limits_of_sum),
    primitives.reduce_sum_p,
    primitives.reduce_window_sum_p,
    primitives.cumsum_p,
)
register(
    Rule("structural", _convert, _always, entrywise=True, limits=limits_of_sign), primitives.convert_element_type_p
)
register(
    Rule(
        "structural", _select, _affine_select, _relax_select, rounded=None, way="the case that is certain, or the box"
    ),
    primitives.select_n_p,
)
# Out of bounds a gather may fill with a constant.
register(Rule("structural", _gather, _always, rounded=None, terms=_any_copies), primitives.gather_p)
register(Rule("structural", _gather, _always, homogeneous=True, rounded=None), primitives.dynamic_slice_p)
register(Rule("structural", _update, _always, rounded=None), primitives.dynamic_update_slice_p)
register(Rule("structural", _scatter, _always, rounded=None), primitives.scatter_p)
register(Rule("sum", _scatter, _always, terms=_additions, limits=_limits_of_sum), primitives.scatter_add_p)
register(Rule("structural", endpoints, relax=_relax_identity, entrywise=True, rounded=None), primitives.stop_gradient_p)
register(
    Rule("sum", endpoints, _always, entrywise=True, limits=_limits_of_addition),
    primitives.add_p,
    primitives.add_jaxvals_p,
)
register(Rule("sum", _sub, _always, entrywise=True, limits=_limits_of_difference), primitives.sub_p)
register(Rule("sum", _neg, _always, entrywise=True, rounded=None), primitives.neg_p)
_BILINEAR = "McCormick planes at the centers"
_PRODUCT = Rule("product", _mul, _one_ref, _relax_bilinear, homogeneous=True, limits=_limits_of_product, way=_BILINEAR)
register(dataclasses.replace(_PRODUCT, entrywise=True), primitives.mul_p)
register(dataclasses.replace(_PRODUCT, interval=_div, relax=None, entrywise=True, way=""), primitives.div_p)
register(
    dataclasses.replace(_PRODUCT, interval=_bilinear, terms=_products),
    primitives.dot_general_p,
    primitives.conv_general_dilated_p,
)
_CHORD = "chord, and the adaptive or parallel line"
register(
    Rule(
        "maximum",
        endpoints,
        relax=_relax_max,
        entrywise=True,
        rounded=None,
        stable=_stable_max,
        tunable=True,
        way=_CHORD,
    ),
    primitives.max_p,
)
register(
    Rule(
        "maximum",
        endpoints,
        relax=_relax_min,
        entrywise=True,
        rounded=None,
        stable=_stable_max,
        tunable=True,
        way=_CHORD,
    ),
    primitives.min_p,
)
register(
    Rule("monotone", endpoints, rounded=None),
    primitives.cummax_p,
    primitives.cummin_p,
)
register(
    Rule("step", endpoints, entrywise=True, rounded=None),
    primitives.floor_p,
    primitives.ceil_p,
    primitives.round_p,
    primitives.sign_p,
)
register(Rule("step", _rem, entrywise=True, limits=_limits_of_remainder), primitives.rem_p)
register(Rule("monotone", endpoints, entrywise=True, limits=limits_of_sign), primitives.reduce_precision_p)
register(Rule("monotone", _sort, rounded=None), primitives.sort_p)
register(
    Rule("comparison", _compare, entrywise=True, rounded=None),
    primitives.lt_p,
    primitives.le_p,
    primitives.gt_p,
    primitives.ge_p,
    primitives.eq_p,
    primitives.ne_p,
)
register(Rule("comparison", _is_finite, entrywise=True, rounded=None), primitives.is_finite_p)
register(
    Rule("logic", _boolean_endpoints, rounded=None),
    primitives.and_p,
    primitives.or_p,
    primitives.reduce_and_p,
    primitives.reduce_or_p,
)
register(Rule("logic", _not, rounded=None), primitives.not_p)
register(Rule("logic", _xor, rounded=None), primitives.xor_p)
