"""What assertions are made of: polynomials of inputs and outputs, comparisons of them, and formulas of those.

All of it is exact: numbers are fractions until a specification or a box is made of them.
"""

from __future__ import annotations

import dataclasses
import decimal
import math
import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np

from mixtrain_jax.errors import QueryError

MAX_DEGREE = 8
MAX_TERMS = 100_000
_MAX_DIGITS = 400  # of a number, and of its exponent's value
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE]([+-]?\d+))?", re.ASCII)
_EXACT = decimal.Context(
    prec=10_000,
    Emin=-10_000,
    Emax=10_000,
    traps=[decimal.Inexact, decimal.Overflow, decimal.Underflow, decimal.Subnormal, decimal.InvalidOperation],
)

# Inputs are numbered 0, 1, ...; output j has the number -1 - j. A monomial is the sorted tuple of its variables.
Monomial = tuple[int, ...]
Polynomial = dict[Monomial, Decimal]
_ZERO, _ONE, _MINUS_ONE = Decimal(0), Decimal(1), Decimal(-1)
_LARGEST = float(np.finfo(np.float32).max)


class Bound(NamedTuple):
    """`x <= value` or `x >= value` of one input.

    Attributes:
      variable: number of the input.
      upper: whether it is a bound from above.
      nearest: the value in float64; of a strict bound the next number inside.
      outward: the value in float32, rounded to the side on which no input is lost.
    """

    variable: int
    upper: bool
    nearest: float
    outward: float


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Row:
    """`polynomial >= 0`, or `> 0` where it is strict."""

    polynomial: Polynomial
    strict: bool


class Junction(NamedTuple):
    """Formulas that hold all, or of which one does; none of none is true of "and" alone."""

    kind: Literal["and", "or"]
    parts: Sequence[Formula]


Formula = Bound | Row | Junction
TRUE, FALSE = Junction("and", ()), Junction("or", ())


def number(text: str) -> Decimal | None:
    """A decimal number as it is written; None where the text is none."""
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    if len(text) > _MAX_DIGITS or abs(int(found[1] or 0)) > _MAX_DIGITS:
        raise QueryError(f"the number {text[:40]}... has more than {_MAX_DIGITS} digits")
    return Decimal(text)


def add(parts: Sequence[Polynomial], signs: Sequence[int]) -> Polynomial:
    """The sum of polynomials, each times 1 or -1."""
    total: Polynomial = {}
    for part, sign in zip(parts, signs, strict=True):
        _accumulate(total, part.items(), sign)
    if len(total) > MAX_TERMS:
        raise QueryError(f"a sum has more than {MAX_TERMS} terms")
    return {monomial: coefficient for monomial, coefficient in total.items() if coefficient}


def multiply(parts: Sequence[Polynomial]) -> Polynomial:
    """The product of polynomials."""
    product: Polynomial = {(): Decimal(1)}
    for part in parts:
        if len(product) * len(part) > MAX_TERMS:
            raise QueryError(f"a product has more than {MAX_TERMS} terms")
        terms: Polynomial = {}
        for left, a in product.items():
            scaled = [(tuple(sorted(left + right)), _exactly(_EXACT.multiply, a, b)) for right, b in part.items()]
            _accumulate(terms, scaled, 1)
        product = {monomial: coefficient for monomial, coefficient in terms.items() if coefficient}
        if any(len(monomial) > MAX_DEGREE for monomial in product):
            raise QueryError(f"a product has a degree of more than {MAX_DEGREE}")
    return product


def _accumulate(total: Polynomial, terms: Iterable[tuple[Monomial, Decimal]], sign: int) -> None:
    plus = _EXACT.add if sign == 1 else _EXACT.subtract
    for monomial, coefficient in terms:
        total[monomial] = _exactly(plus, total.get(monomial, _ZERO), coefficient)


def _exactly(operation: Callable[[Decimal, Decimal], Decimal], a: Decimal, b: Decimal) -> Decimal:
    try:
        return operation(a, b)
    except decimal.DecimalException:
        raise QueryError("arithmetic of constants gives numbers of thousands of digits") from None


def compare(operator: str, left: Polynomial, right: Polynomial) -> Formula:
    """The formula of a comparison."""
    match operator:
        case "=" | "==":
            return Junction("and", (compare("<=", left, right), compare(">=", left, right)))
        case "!=":
            return Junction("or", (compare("<", left, right), compare(">", left, right)))
    above = operator[0] == ">"
    return _positive(add([left, right], [1, -1] if above else [-1, 1]), strict=len(operator) == 1)


def compare_with_number(operator: str, variable: int, value: Decimal) -> Formula:
    """The formula of the comparison of a variable with a number, by one of the four inequalities."""
    upper, strict = operator[0] == "<", len(operator) == 1
    if variable >= 0:
        return bound(variable, upper, strict, value)
    slope, constant = (_MINUS_ONE, value) if upper else (_ONE, -value)
    return Row({(variable,): slope, (): constant} if value else {(variable,): slope}, strict)


def _positive(polynomial: Polynomial, strict: bool) -> Formula:
    constant = polynomial.get((), _ZERO)
    monomials = [monomial for monomial in polynomial if monomial]
    if not monomials:
        return TRUE if constant > 0 or (constant == 0 and not strict) else FALSE
    if len(monomials) == 1 and len(monomials[0]) == 1 and monomials[0][0] >= 0:
        slope = polynomial[monomials[0]]
        value = -constant if slope == 1 else constant if slope == -1 else -Fraction(constant) / Fraction(slope)
        return bound(monomials[0][0], slope < 0, strict, value)
    return Row(polynomial, strict)


def bound(variable: int, upper: bool, strict: bool, value: Decimal | Fraction) -> Bound:
    """A bound of an input.

    Args:
      variable: number of the input.
      upper: whether it is from above.
      strict: whether the value itself is outside.
      value: exact.
    """
    try:
        nearest = float(value)
    except OverflowError:
        nearest = math.inf
    if not -_LARGEST <= value <= _LARGEST:
        raise QueryError("a bound of an input is beyond the range of float32")
    side = math.inf if upper else -math.inf
    near = np.float32(nearest)
    outward = float(near)
    # Comparisons of Python's floats with decimals and fractions are exact.
    if value > outward if upper else value < outward:
        outward = float(np.nextafter(near, np.float32(side)))
    inside = math.nextafter(nearest, -side) if strict else nearest
    return Bound(variable, upper, inside, outward)
