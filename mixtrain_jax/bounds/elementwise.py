"""Rules of the functions of one number, from their curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend.core import primitives

from mixtrain_jax.bounds import curves, rounding
from mixtrain_jax.bounds.curves import Curve
from mixtrain_jax.bounds.interval import Interval, concrete
from mixtrain_jax.bounds.relaxations import Slopes
from mixtrain_jax.bounds.rules import Arrays, Relaxation, Rule, Value, endpoints, entrywise_relaxation, register
from mixtrain_jax.bounds.tape import Op, Ref


def curve_rule(curve: Curve | Callable[[Op], Curve | None], steps: int = 1) -> Rule:
    """The rule of an entrywise function from its curve: exact intervals, and the best lines above and below.

    Args:
      curve: of the function; or a function of the op, for a curve that depends on parameters or exact operands, which
        may return None where the op is only known never to decrease.
      steps: operations of floating point one after the other, for what is computed in more than one.
    """

    def of(op: Op) -> Curve | None:
        return curve if isinstance(curve, Curve) else curve(op)

    def interval(op: Op, operands: Sequence[Value]) -> list[Interval]:
        known = of(op)
        if known is None:
            return endpoints(op, operands)
        x = _box(operands)
        return [Interval(*curves.extremes(known, x.lower, x.upper))]

    def relax(op: Op, operands: Sequence[Value], slopes: Slopes) -> Relaxation | None:
        known, x = of(op), _box(operands)
        if known is None:
            return None
        kind: Any = slopes if isinstance(slopes, str) else "adaptive"
        return entrywise_relaxation(curves.lines(known, x.lower, x.upper, kind), x)

    def rounded(op: Op, operands: Sequence[Value], outputs: Sequence[Interval]) -> Arrays:
        (out,) = outputs
        error = rounding.once(out, rounding.ELEMENTARY)
        if steps > 1:  # A sum on the way may cancel: its error is relative to the operand.
            error = error + steps * rounding.once(_box(operands), rounding.ELEMENTARY)
        return (error,)

    return Rule(
        "curve",
        interval,
        relax=relax,
        entrywise=True,
        rounded=rounded,
        terms=lambda op: (rounding.ELEMENTARY, rounding.ELEMENTARY),
        way="chord and tangent",
    )


def _box(operands: Sequence[Value]) -> Interval:
    (x,) = (operand for operand in operands if isinstance(operand, Interval))
    return x


def _clamp(op: Op) -> Curve | None:
    low, _, high = op.operands
    if isinstance(low, Ref) or isinstance(high, Ref):
        return None
    return curves.clamp(low, high)


def _power(op: Op) -> Curve:
    (exponent,) = (concrete(x) for x in op.operands if not isinstance(x, Ref))  # others are lowered
    assert exponent is not None
    return curves.power(float(exponent))


for _name, _curve in {
    "abs": curves.ABS,
    "asinh": curves.ASINH,
    "atan": curves.ATAN,
    "cbrt": curves.CBRT,
    "cos": curves.COS,
    "cosh": curves.COSH,
    "erf": curves.ERF,
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
    register(curve_rule(_curve), getattr(primitives, f"{_name}_p"))
register(curve_rule(lambda op: curves.integer_pow(op.params["y"])), primitives.integer_pow_p)
register(curve_rule(_power), primitives.pow_p)
register(curve_rule(_clamp), primitives.clamp_p)
