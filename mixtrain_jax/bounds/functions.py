"""Functions that are known as a whole, such as `gelu` and `softmax`, and how they are found on a tape.

Piece by piece such a function is bounded loosely, because one number enters it in several places. It is found by what
it computes, not by its name: the operations that the jax at hand records for it must be those on the tape, one by one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive

from mixtrain_jax.bounds import curves, rounding
from mixtrain_jax.bounds.curves import Curve
from mixtrain_jax.bounds.elementwise import curve_rule
from mixtrain_jax.bounds.interval import Interval, concrete
from mixtrain_jax.bounds.relaxations import Slopes
from mixtrain_jax.bounds.rules import Affine, Arrays, Errors, Relaxation, Rule, Value, register
from mixtrain_jax.bounds.tape import Op, Operand, Ref, reference


@dataclasses.dataclass(frozen=True, eq=False)
class _Known:
    """A function to look for: `function(x, **settings)`.

    Attributes:
      primitive: the name it goes by on the tape.
      function: of one array and of settings by keyword.
      settings: from the op it may begin with, the settings to try.
      numbers: keywords of settings that are numbers on the tape, found there.
      admits: of these numbers, whether the rule holds for them; a call with others is bounded piece by piece.
    """

    primitive: Primitive
    function: Callable[..., jax.Array]
    settings: Callable[[Op], Sequence[dict[str, Any]]] = lambda op: [{}]
    numbers: tuple[str, ...] = ()
    admits: Callable[..., bool] = lambda *numbers: True


_KNOWN: list[_Known] = []


def _know(
    name: str,
    function: Callable[..., jax.Array],
    rule: Rule | Curve,
    numbers: tuple[str, ...] = (),
    admits: Callable[..., bool] = lambda *numbers: True,
) -> None:
    """Look for an entrywise function `function(x, **numbers)`; the ops of its rule have the numbers as `params`."""
    primitive = Primitive(name)
    register(curve_rule(rule, steps=8) if isinstance(rule, Curve) else rule, primitive)
    _KNOWN.insert(0, _Known(primitive, function, numbers=numbers, admits=admits))


def recognize(ops: Sequence[Op], outputs: Sequence[Operand]) -> list[Op]:
    """Put one operation in the place of each run of operations that is a known function."""
    uses: dict[int, int] = {}
    for ref in (*(ref for op in ops for ref in op.refs), *(x for x in outputs if isinstance(x, Ref))):
        uses[ref.index] = uses.get(ref.index, 0) + 1
    found, i = [], 0
    while i < len(ops):
        match = next(_matches(ops, i, uses), None)
        found.append(match[0] if match else ops[i])
        i += match[1] if match else 1
    return found


def _matches(ops: Sequence[Op], i: int, uses: dict[int, int]) -> Iterator[tuple[Op, int]]:
    """The longest first, which is a function that has another within."""
    results = []
    (x, *_) = ops[i].refs
    for known in _KNOWN:
        for settings in known.settings(ops[i]):
            if not _may_begin(known, tuple(sorted(settings.items())), ops, i, x):
                continue
            expected = _expected(known, tuple(sorted(settings.items())), x.shape, x.dtype)
            if expected is None:
                continue
            numbers = _match(ops[i : i + len(expected)], expected, x, uses, len(known.numbers))
            if numbers is not None and known.admits(*numbers):
                params = {**settings, **dict(zip(known.numbers, numbers, strict=True))}
                last = ops[i + len(expected) - 1]
                function = functools.partial(known.function, **params)
                op = Op(known.primitive, params, (x,), last.outputs, last.sources, function)
                results.append((op, len(expected)))
    return iter(sorted(results, key=lambda result: -result[1]))


# What stands for a number that is not known before the tape is read.
_PLACES = (0.31830987, 0.57721564)


def _may_begin(known: _Known, settings: tuple, ops: Sequence[Op], i: int, x: Ref) -> bool:
    """Whether the primitives are the right ones; asked first, because it takes no recording for every shape."""
    expected = _expected(known, settings, (2,) * len(x.shape), x.dtype) or []
    return [op.primitive for op in ops[i : i + len(expected)]] == [op.primitive for op in expected] != []


@functools.lru_cache(maxsize=4096)
def _expected(known: _Known, settings: tuple, shape: tuple[int, ...], dtype: Any) -> list[Op] | None:
    numbers = {name: np.asarray(place, dtype) for name, place in zip(known.numbers, _PLACES, strict=False)}
    try:
        return reference(lambda x: known.function(x, **dict(settings), **numbers), Ref(0, shape, dtype))
    except (TypeError, ValueError):  # a shape or dtype the function doesn't take
        return None


def _match(ops: Sequence[Op], expected: Sequence[Op], x: Ref, uses: dict[int, int], count: int) -> list[float] | None:
    """The numbers with which the expected operations are those of the tape; None if they aren't."""
    if len(ops) != len(expected):
        return None
    names, numbers = {0: x.index}, [None] * count
    seen: dict[int, int] = {}
    for op, other in zip(ops, expected, strict=True):
        if op.primitive is not other.primitive or not _same_params(op.params, other.params):
            return None
        for a, b in zip(op.operands, other.operands, strict=True):
            if isinstance(a, Ref) != isinstance(b, Ref):
                return None
            if isinstance(a, Ref) and isinstance(b, Ref):
                if names.get(b.index) != a.index:
                    return None
                seen[a.index] = seen.get(a.index, 0) + 1
            elif not _same_value(a, b, numbers):
                return None
        names.update((b.index, a.index) for a, b in zip(op.outputs, other.outputs, strict=True))
    inner = [ref.index for op in ops[:-1] for ref in op.outputs]
    if any(uses.get(index, 0) != seen.get(index, 0) for index in inner) or None in numbers:
        return None  # Something else looks at a value on the way.
    return numbers  # type: ignore[return-value]


def _same_params(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(a[key] == b[key] for key in a if "jaxpr" not in key)


def _same_value(a: Any, b: Any, numbers: list[Any]) -> bool:
    a, b = concrete(a), concrete(b)
    if a is None or b is None or a.dtype != b.dtype:
        return False
    for i, place in enumerate(_PLACES[: len(numbers)]):
        if np.all(b == np.asarray(place, b.dtype)) and a.size and np.all(a == a.flat[0]):
            number = float(a.flat[0])
            if numbers[i] is not None and numbers[i] != number:
                return False
            numbers[i] = number
            return True
    return a.shape == b.shape and bool(np.all(a == b))


# --- log-sum-exp and its kin ----------------------------------------------------------------------------------------


class _Planes:
    """Affine functions below and above `log(sum(exp(x)))` over a box, `weights . x + offset` on either side.

    Below it is the tangent at the center, as the function is convex. Above it every `exp` is below its chord, so the
    function is below the logarithm of an affine function, and that below its tangent (Wei et al., arXiv 2303.01713).
    """

    def __init__(self, x: Interval, axis: tuple[int, ...]):
        x = _within_reach(x, axis)
        center = x.center
        top = jax.lax.stop_gradient(x.upper.max(axis, keepdims=True))
        self.lower_weights = jax.nn.softmax(center, axis)
        self.lower_offset = jax.nn.logsumexp(center, axis, keepdims=True) - (self.lower_weights * center).sum(
            axis, keepdims=True
        )
        low, high = jnp.exp(x.lower - top), jnp.exp(x.upper - top)
        wide = x.upper > x.lower
        chord = jnp.where(wide, (high - low) / jnp.where(wide, x.upper - x.lower, 1), low)
        mean = ((low + high) / 2).sum(axis, keepdims=True)
        self.upper_weights = chord / mean
        self.upper_offset = jnp.log(mean) + top - (self.upper_weights * center).sum(axis, keepdims=True)


def _within_reach(x: Interval, axis: tuple[int, ...]) -> Interval:
    """The box with what vanishes beside others wherever it is, such as a mask's -inf, raised to where it still does.

    To vanish, an upper end has to be far below the highest *lower* end: that is all the largest entry is sure to reach.
    """
    least = jax.lax.stop_gradient(x.lower.max(axis, keepdims=True)) - 800
    gone = x.upper < least
    return Interval(jnp.where(gone, least, x.lower), jnp.where(gone, least, x.upper))


def _others(x: Interval, axis: tuple[int, ...]) -> Interval:
    """Range of `log(sum over j of exp(x_j - x_i))`: every exponent but that of `i`, which is 0, is at its end."""
    # What is subtracted keeps its value, as far as it is finite: of a logarithm it is all there is.
    end = -float(jnp.finfo(x.dtype).max) / 4
    own, x = Interval(jnp.maximum(x.lower, end), jnp.maximum(x.upper, end)), _within_reach(x, axis)

    def flat(v: jax.Array) -> jax.Array:
        v = jnp.moveaxis(v, axis, range(-len(axis), 0))
        return v.reshape(*v.shape[: v.ndim - len(axis)], -1)

    low, high = flat(x.lower), flat(x.upper)
    own_low, own_high = flat(own.lower), flat(own.upper)
    same = jnp.eye(low.shape[-1], dtype=bool)

    def unflat(v: jax.Array) -> jax.Array:
        shape = [x.shape[i] for i in range(x.lower.ndim) if i not in axis] + [x.shape[i] for i in axis]
        return jnp.moveaxis(v.reshape(shape), range(-len(axis), 0), axis)

    def total(one: jax.Array, other: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(jnp.where(same, 0, other[..., None, :] - one[..., :, None]), -1)

    return Interval(unflat(total(own_high, low)), unflat(total(own_low, high)))


def _axes(op: Op) -> tuple[int, ...]:
    axis = op.params["axis"]
    axes = tuple(axis) if isinstance(axis, Sequence) else (axis,)
    axes = tuple(map(int, axes))
    return tuple(i % len(op.refs[0].shape) for i in axes)


def _interval_of_softmax(op: Op, operands: Sequence[Value]) -> list[Interval]:
    others = _others(_box(operands), _axes(op))
    return [Interval(jnp.exp(-others.upper), jnp.exp(-others.lower))]


def _interval_of_log_softmax(op: Op, operands: Sequence[Value]) -> list[Interval]:
    others = _others(_box(operands), _axes(op))
    return [Interval(-others.upper, -others.lower)]


def _interval_of_logsumexp(op: Op, operands: Sequence[Value]) -> list[Interval]:
    x = _box(operands)
    return [Interval(*(op.bind(end)[0] for end in (x.lower, x.upper)))]


def _box(operands: Sequence[Value]) -> Interval:
    (x,) = operands
    assert isinstance(x, Interval)
    return x


def _linear(f: Callable[[jax.Array], jax.Array], x: Interval) -> Callable[[Arrays], Arrays]:
    _, vjp = jax.vjp(f, jnp.zeros_like(x.lower))
    return lambda coefficients: vjp(coefficients[0])


def _relax_softmax(op: Op, operands: Sequence[Value], slopes: Slopes) -> Relaxation:
    """`exp` of `x_i - logsumexp(x)`, whose range is known: its tangent and chord, of the planes of the difference."""
    x, axis = _box(operands), _axes(op)
    planes, others = _Planes(x, axis), _others(x, axis)
    lines = curves.lines(curves.EXP, -others.upper, -others.lower, "adaptive")

    def side(slope: jax.Array, offset: jax.Array | None, weights: jax.Array, constant: jax.Array) -> Affine:
        transpose = _linear(lambda v: slope * (v - (weights * v).sum(axis, keepdims=True)), x)
        assert offset is not None
        return Affine(transpose, (offset - slope * constant,))

    lower = side(lines.lower_slope, lines.lower_offset, planes.upper_weights, planes.upper_offset)
    upper = side(lines.upper_slope, lines.upper_offset, planes.lower_weights, planes.lower_offset)
    sizes = _sizes(x, planes, axis)
    scale = (sizes + 1) * (jnp.abs(lines.lower_slope) + jnp.abs(lines.upper_slope))
    for offset in (lines.lower_offset, lines.upper_offset):
        scale = scale + (0 if offset is None else jnp.abs(offset))
    return Relaxation(lower, upper, (scale,))


def _relax_log_softmax(op: Op, operands: Sequence[Value], slopes: Slopes) -> Relaxation:
    x, axis = _box(operands), _axes(op)
    planes = _Planes(x, axis)

    def side(weights: jax.Array, constant: jax.Array) -> Affine:
        transpose = _linear(lambda v: v - (weights * v).sum(axis, keepdims=True), x)
        return Affine(transpose, (jnp.broadcast_to(-constant, x.shape),))

    sides = side(planes.upper_weights, planes.upper_offset), side(planes.lower_weights, planes.lower_offset)
    return Relaxation(*sides, (_sizes(x, planes, axis),))


def _relax_logsumexp(op: Op, operands: Sequence[Value], slopes: Slopes) -> Relaxation:
    x, axis = _box(operands), _axes(op)
    planes, shape = _Planes(x, axis), op.outputs[0].shape

    def side(weights: jax.Array, constant: jax.Array) -> Affine:
        transpose = _linear(lambda v: (weights * v).sum(axis, keepdims=True).reshape(shape), x)
        return Affine(transpose, (constant.reshape(shape),))

    scale = _sizes(x, planes, axis).max(axis, keepdims=True).reshape(shape)
    return Relaxation(
        side(planes.lower_weights, planes.lower_offset), side(planes.upper_weights, planes.upper_offset), (scale,)
    )


def _sizes(x: Interval, planes: _Planes, axis: tuple[int, ...]) -> jax.Array:
    """A number above all that is summed on the way to a plane of one entry."""
    size = rounding.magnitude(_within_reach(x, axis))
    weighted = (jnp.maximum(planes.lower_weights, planes.upper_weights) * size).sum(axis, keepdims=True)
    return size + 4 * weighted + 2 * (jnp.abs(planes.lower_offset) + jnp.abs(planes.upper_offset)) + 1


def _rounded(op: Op, operands: Sequence[Value], outputs: Sequence[Interval]) -> Errors:
    """Exponents are off by roundings of their size, sums by their number; a probability by as much of itself, or 1."""
    x, (out,) = _box(operands), outputs
    n, _ = _terms(op)
    error = rounding.gamma(n + rounding.ELEMENTARY, out.dtype)
    size = rounding.magnitude(_within_reach(x, _axes(op))).max(_axes(op), keepdims=True)
    if op.primitive is _SOFTMAX:
        most = (
            error * jnp.minimum(end * (1 + 2 * size), 2) + rounding.tiny(out.dtype) for end in (out.lower, out.upper)
        )
        return (rounding.Error(*most),)
    size = jnp.broadcast_to(size, x.shape) if out.shape == x.shape else size.reshape(out.shape)
    return (error * (1 + 2 * size + jnp.where(jnp.isinf(out.lower), 0, rounding.magnitude(out))),)


def _limits(op: Op, operands: Sequence[Value]) -> Interval:
    (out,) = op.outputs
    below, above = (jnp.asarray(op.primitive is not known) for known in (_SOFTMAX, _LOG_SOFTMAX))
    return rounding.one_sided(below, above, out.dtype)


def _terms(op: Op) -> tuple[int, int]:
    n = int(np.prod([op.refs[0].shape[i] for i in _axes(op)]))
    return n + rounding.ELEMENTARY, n + rounding.ELEMENTARY


_SOFTMAX, _LOG_SOFTMAX, _LOGSUMEXP = Primitive("softmax"), Primitive("log_softmax"), Primitive("logsumexp")
for _primitive, _interval, _relaxed in (
    (_SOFTMAX, _interval_of_softmax, _relax_softmax),
    (_LOG_SOFTMAX, _interval_of_log_softmax, _relax_log_softmax),
    (_LOGSUMEXP, _interval_of_logsumexp, _relax_logsumexp),
):
    register(
        Rule(
            "log-sum-exp",
            _interval,
            relax=_relaxed,
            rounded=_rounded,
            terms=_terms,
            limits=_limits,
            way="planes of log-sum-exp",
        ),
        _primitive,
    )


def _over_axes(*extra: dict[str, Any]) -> Callable[[Op], list[dict[str, Any]]]:
    def settings(op: Op) -> list[dict[str, Any]]:
        if op.primitive.name != "reduce_max":
            return []
        axes = op.params["axes"]
        return [{"axis": axes if len(axes) > 1 else axes[0], **more} for more in extra or ({},)]

    return settings


def _plain_softmax(x: jax.Array, axis: Any) -> jax.Array:
    unnormalized = jnp.exp(x - x.max(axis, keepdims=True))
    return unnormalized / unnormalized.sum(axis, keepdims=True)


_KNOWN += [
    _Known(_SOFTMAX, jax.nn.softmax, _over_axes()),
    _Known(_SOFTMAX, _plain_softmax, _over_axes()),
    _Known(_LOG_SOFTMAX, jax.nn.log_softmax, _over_axes()),
    _Known(_LOGSUMEXP, jax.nn.logsumexp, _over_axes({"keepdims": False}, {"keepdims": True})),
]


def _of_numbers(make: Callable[..., Curve], *names: str, exact: bool = False) -> Rule:
    return curve_rule(lambda op: make(*(op.params[name] for name in names)), steps=8, exact=exact)


# Roundings are counted in units of the operand and the result, of which a factor far from 1 makes more.
_ORDINARY = 64

_know("gelu", lambda x: jax.nn.gelu(x, approximate=False), curves.GELU)
_know("gelu_tanh", lambda x: jax.nn.gelu(x, approximate=True), curves.GELU_TANH)
_know("silu", jax.nn.silu, curves.SILU)
_know("mish", jax.nn.mish, curves.MISH)
_know("softplus", jax.nn.softplus, curves.SOFTPLUS)
_know("soft_sign", jax.nn.soft_sign, curves.SOFTSIGN)
_know("hard_swish", jax.nn.hard_swish, curves.HARD_SWISH)
_know(
    "leaky_relu",
    jax.nn.leaky_relu,
    _of_numbers(curves.leaky_relu, "negative_slope"),
    ("negative_slope",),
    admits=math.isfinite,
)
_know("elu", jax.nn.elu, _of_numbers(curves.elu, "alpha"), ("alpha",), admits=lambda alpha: abs(alpha) <= _ORDINARY)
_know(
    "celu",
    jax.nn.celu,
    _of_numbers(curves.celu, "alpha"),
    ("alpha",),
    admits=lambda alpha: 0 < alpha <= _ORDINARY,  # a negative one lets its exponent grow without limit
)
_know("relu6", jax.nn.relu6, curve_rule(curves.clamp(0.0, 6.0), exact=True))
_know("hard_tanh", jax.nn.hard_tanh, curve_rule(curves.clamp(-1.0, 1.0), exact=True))
_know(
    "clip",
    lambda x, low, high: jnp.clip(x, low, high),
    _of_numbers(curves.clamp, "low", "high", exact=True),
    ("low", "high"),
)
