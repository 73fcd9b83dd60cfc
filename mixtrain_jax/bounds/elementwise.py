"""Rules of the functions of one number, from their curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import primitives

from mixtrain_jax.bounds import curves, rounding
from mixtrain_jax.bounds.curves import Curve
from mixtrain_jax.bounds.errors import unsupported
from mixtrain_jax.bounds.interval import Interval, concrete
from mixtrain_jax.bounds.relaxations import Slopes
from mixtrain_jax.bounds.rules import (
    Errors,
    Relaxation,
    Rule,
    Value,
    endpoints,
    entrywise_relaxation,
    is_float,
    limits_of_sign,
    register,
)
from mixtrain_jax.bounds.tape import Op, Ref


def curve_rule(
    curve: Curve | Callable[[Op], Curve | None],
    steps: int = 1,
    units: Callable[[Op, Interval], Any] | None = None,
    exact: bool = False,
) -> Rule:
    """The rule of an entrywise function from its curve: exact intervals, and the best lines above and below.

    Args:
      curve: of the function; or a function of the op, for a curve that depends on parameters or exact operands, which
        may return None where the op is only known never to decrease.
      steps: operations of floating point one after the other, for what is computed in more than one.
      units: accuracy of the function on a box in units of roundoff; None for `rounding.ELEMENTARY`.
      exact: whether the function only moves and compares, so that nothing is rounded.
    """

    def of(op: Op) -> Curve | None:
        return curve if isinstance(curve, Curve) else curve(op)

    def interval(op: Op, operands: Sequence[Value]) -> list[Interval]:
        known = of(op)
        if known is None:
            return endpoints(op, operands)
        x = _box(operands)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise unsupported(op, f"its operand is an interval of {x.dtype}, and only floating ones are handled")
        lower, upper = curves.extremes(known, x.lower, x.upper)
        # Of NaN, and where the function is undefined, nothing is known, and nothing after it may forget that.
        nowhere = jnp.isinf(lower) & jnp.isinf(upper) & (lower < upper)
        return [Interval(*(jnp.where(nowhere, jnp.nan, end) for end in (lower, upper)))]

    def relax(op: Op, operands: Sequence[Value], slopes: Slopes) -> Relaxation | None:
        known = of(op)
        if known is None:
            return None
        x = _box(operands)
        kind: Any = slopes if isinstance(slopes, str) else "adaptive"
        return entrywise_relaxation(curves.lines(known, x.lower, x.upper, kind), x)

    def rounded(op: Op, operands: Sequence[Value], outputs: Sequence[Interval]) -> Errors:
        (out,) = outputs
        error = rounding.once(out, units(op, _box(operands)) if units else rounding.ELEMENTARY)
        if steps > 1:  # A sum on the way may cancel: its error is relative to the operand.
            more = steps * rounding.largest(rounding.once(_box(operands), rounding.ELEMENTARY))
            error = rounding.Error(error.lower + more, error.upper + more)
        return (error,)

    def limits(op: Op, operands: Sequence[Value]) -> Interval:
        (out,), known = op.outputs, of(op)
        if known is None:
            return Interval(*(jnp.full((), end, out.dtype) for end in (-jnp.inf, jnp.inf)))
        low, high = (jnp.full((), end, out.dtype) for end in known.codomain)
        if known.root is None:
            return Interval(low, high)
        return rounding.within(limits_of_sign(op, operands, known.root), Interval(low, high))

    return Rule(
        "curve",
        interval,
        relax=relax,
        entrywise=True,
        rounded=None if exact else rounded,
        terms=lambda op: (rounding.ELEMENTARY, rounding.ELEMENTARY),
        limits=limits,
        way="chord and tangent",
    )


def _box(operands: Sequence[Value]) -> Interval:
    (x,) = (operand for operand in operands if isinstance(operand, Interval))
    return x


def _clamp(op: Op) -> Curve | None:
    low, _, high = op.operands
    if isinstance(low, Ref) or isinstance(high, Ref) or not is_float(op.outputs[0]):
        return None
    return curves.clamp(low, high)


def _power(op: Op) -> Curve:
    (exponent,) = (concrete(x) for x in op.operands if not isinstance(x, Ref))  # others are lowered
    assert exponent is not None
    return curves.power(float(exponent))


def _of_exponent(least: int) -> Callable[[Op, Interval], Any]:
    """The exponent is rounded before it is one, and so is the sum that XLA makes of those of a product."""
    return lambda op, x: least + 2 * rounding.magnitude(x)


# Where that is not `rounding.ELEMENTARY`. On CPU tests/bounds/test_accuracy.py finds erf_inv off by 97 units next to 1,
# log1p by 240 next to -0.4 in float64, erfc by 12 next to 1 and further out as its exponent has it.
_UNITS: dict[str, Callable[[Op, Interval], Any]] = {
    "cosh": _of_exponent(8),
    "sinh": _of_exponent(12),
    "exp": _of_exponent(8),
    "exp2": _of_exponent(8),
    "expm1": lambda op, x: 12,
    "erfc": lambda op, x: 20 + 2 * jnp.square(jnp.maximum(x.upper, 0)),
    "erf_inv": lambda op, x: 200,
    "log1p": lambda op, x: 500 if x.dtype.itemsize > 4 else rounding.ELEMENTARY,
}
for _name, _curve in {
    "abs": curves.ABS,
    "asinh": curves.ASINH,
    "atan": curves.ATAN,
    "cbrt": curves.CBRT,
    "cos": curves.COS,
    "cosh": curves.COSH,
    "erf": curves.ERF,
    "erf_inv": curves.ERF_INV,
    "erfc": curves.ERFC,
    "exp": curves.EXP,
    "exp2": curves.EXP2,
    "expm1": curves.EXPM1,
    "log": curves.LOG,
    "log1p": curves.LOG1P,
    "logistic": curves.LOGISTIC,
    "rsqrt": curves.RSQRT,
    "sin": curves.SIN,
    "sinh": curves.SINH,
    "sqrt": curves.SQRT,
    "square": curves.SQUARE,
    "tanh": curves.TANH,
}.items():
    register(curve_rule(_curve, units=_UNITS.get(_name), exact=_name == "abs"), getattr(primitives, f"{_name}_p"))
register(
    curve_rule(
        lambda op: curves.integer_pow(op.params["y"]),
        units=lambda op, x: max(8, 2 * abs(op.params["y"])),
    ),
    primitives.integer_pow_p,
)
register(curve_rule(_power), primitives.pow_p)
register(curve_rule(_clamp, exact=True), primitives.clamp_p)
