"""A formula as cases: boxes of inputs, each with the clauses of outputs that are unsafe in it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from mixtrain_jax.bounds.outward import round_down, round_up
from mixtrain_jax.errors import QueryError
from mixtrain_jax.verify.specification import Specification
from mixtrain_jax.verify.vnnlib.terms import Bound, Formula, Junction, Monomial, Row

MAX_CONJUNCTIONS = 2**18
_MAX_ATOMS = 2**24  # in all of them
_MAX_ENTRIES = 2**25  # of all boxes

Clause = tuple[Row, ...]
_Conjunction = tuple[Bound | Row, ...]


class Case(NamedTuple):
    """A box, and what is unsafe for the inputs in it. A query is satisfied where it is in one of its cases.

    Attributes:
      lower: float32 `[inputs]`, rounded down: no input of the query is outside.
      upper: float32 `[inputs]`, rounded up.
      least: the smallest inputs of the query, float64 `[inputs]`, rounded to nearest.
      greatest: the greatest.
      clauses: conjunctions of rows, at least one; all rows of one of them hold.
    """

    lower: np.ndarray
    upper: np.ndarray
    least: np.ndarray
    greatest: np.ndarray
    clauses: tuple[Clause, ...]

    def contains(self, inputs: np.ndarray) -> bool:
        """Whether float64 inputs are those of the query."""
        return bool(np.all((self.least <= inputs) & (inputs <= self.greatest)))

    def attacked(self) -> tuple[np.ndarray, np.ndarray]:
        """Where float32 counterexamples may lie: in the query's box; between narrow bounds, rounded to nearest."""
        lower, upper = round_up(self.least, np.float32), round_down(self.greatest, np.float32)
        narrow = lower > upper
        nearest = (self.least.astype(np.float32), self.greatest.astype(np.float32))
        return np.where(narrow, nearest[0], lower), np.where(narrow, nearest[1], upper)

    def reported(self, inputs: np.ndarray) -> np.ndarray:
        """The float64 inputs of the query that float32 ones are rounded from: themselves, or a bound next to them."""
        return np.clip(inputs.astype(np.float64), self.least, self.greatest)

    def unsafe(self, values: Sequence[float]) -> bool:
        """Whether values of all variables, outputs from the end on, satisfy a clause; in exact arithmetic."""
        exact: dict[int, Fraction] = {}

        def value(variable: int) -> Fraction:
            if variable not in exact:
                exact[variable] = Fraction(values[variable])
            return exact[variable]

        def holds(row: Row) -> bool:
            terms = (Fraction(c) * math.prod(map(value, monomial)) for monomial, c in row.polynomial.items())
            total = sum(terms, Fraction(0))
            return total > 0 or (total == 0 and not row.strict)

        return any(all(map(holds, clause)) for clause in self.clauses)


def cases_of(asserted: Sequence[Formula], inputs: int) -> list[Case]:
    """The cases of what is asserted, in the order of the text; boxes without any point are left out.

    Args:
      asserted: formulas that hold all.
      inputs: number of inputs.

    Raises:
      QueryError: where an input is not bounded on both sides, or there are too many cases.
    """
    common, rest = _parted(asserted)
    conjunctions = _product([_disjunction(formula) for formula in rest])
    box = _Box(inputs)
    box.narrow(atom for atom in common if isinstance(atom, Bound))
    shared = tuple(atom for atom in common if isinstance(atom, Row))
    groups: dict[tuple[int, ...], tuple[list[Bound], list[Clause]]] = {}
    for conjunction in conjunctions:
        bounds = [atom for atom in conjunction if isinstance(atom, Bound)]
        rows = tuple(atom for atom in conjunction if isinstance(atom, Row))
        groups.setdefault(tuple(map(id, bounds)), (bounds, []))[1].append(shared + rows)
    if len(groups) * inputs > _MAX_ENTRIES:
        raise QueryError(f"{len(groups)} boxes of {inputs} inputs are more than fit into memory.")
    found = (box.case(bounds, tuple(clauses)) for bounds, clauses in groups.values())
    return [case for case in found if np.all(case.lower <= case.upper)]


def _parted(asserted: Iterable[Formula]) -> tuple[list[Bound | Row], list[Junction]]:
    """Atoms that hold in any case, and disjunctions."""
    atoms: list[Bound | Row] = []
    rest: list[Junction] = []
    left = list(asserted)[::-1]
    while left:
        formula = left.pop()
        if not isinstance(formula, Junction):
            atoms.append(formula)
        elif formula.kind == "and" or len(formula.parts) == 1:
            left.extend(reversed(formula.parts))
        else:
            rest.append(formula)
    return atoms, rest


def _disjunction(formula: Formula) -> list[_Conjunction]:
    """Disjunctive normal form; as deep a recursion as parentheses are open at a time."""
    if not isinstance(formula, Junction):
        return [(formula,)]
    if formula.kind == "or":
        return list(itertools.chain.from_iterable(map(_disjunction, formula.parts)))
    atoms = tuple(part for part in formula.parts if not isinstance(part, Junction))
    return _product([[atoms], *(_disjunction(part) for part in formula.parts if isinstance(part, Junction))])


def _product(factors: Sequence[list[_Conjunction]]) -> list[_Conjunction]:
    product: list[_Conjunction] = [()]
    for factor in factors:
        longest = max(map(len, product), default=0) + max(map(len, factor), default=0)
        count = len(product) * len(factor)
        if count > MAX_CONJUNCTIONS or count * longest > _MAX_ATOMS:
            raise QueryError(
                f"Its disjunctions multiply to {count} cases of up to {longest} comparisons; at most "
                f"{MAX_CONJUNCTIONS} cases are read, and {_MAX_ATOMS} comparisons."
            )
        product = [left + right for left in product for right in factor]
    return product


class _Box:
    """Bounds of all inputs as they come together."""

    def __init__(self, inputs: int):
        self.lower, self.upper = np.full(inputs, -np.inf), np.full(inputs, np.inf)
        self.least, self.greatest = self.lower.copy(), self.upper.copy()

    def narrow(self, bounds: Iterable[Bound]) -> None:
        for variable, upper, nearest, outward in bounds:
            if upper:
                self.upper[variable] = min(self.upper[variable], outward)
                self.greatest[variable] = min(self.greatest[variable], nearest)
            else:
                self.lower[variable] = max(self.lower[variable], outward)
                self.least[variable] = max(self.least[variable], nearest)

    def case(self, bounds: Sequence[Bound], clauses: tuple[Clause, ...]) -> Case:
        box = self
        if bounds:
            box = _Box.__new__(_Box)
            for name in ("lower", "upper", "least", "greatest"):
                setattr(box, name, getattr(self, name).copy())
            box.narrow(bounds)
        for side, values in (("lower", box.lower), ("upper", box.upper)):
            if not np.isfinite(values).all():
                variable = int(np.flatnonzero(~np.isfinite(values))[0])
                raise QueryError(f"Input {variable} has no {side} bound; every input needs two.")
        return Case(box.lower.astype(np.float32), box.upper.astype(np.float32), box.least, box.greatest, clauses)


def features_of(cases: Iterable[Case]) -> tuple[Monomial, ...]:
    """The monomials of clauses that are no single outputs, each once."""
    rows = {row for case in cases for clause in case.clauses for row in clause}
    found = {monomial: None for row in rows for monomial in row.polynomial if monomial}
    return tuple(sorted(monomial for monomial in found if len(monomial) > 1 or monomial[0] >= 0))


def specification_of(case: Case, outputs: int, features: Sequence[Monomial]) -> Specification:
    """The clauses as rows over all outputs and, behind them, the features; what is unsafe only grows by rounding.

    Args:
      case: the case.
      outputs: number of outputs.
      features: of the query.

    Raises:
      QueryError: where float64 cannot hold a coefficient of an output.
    """
    names: list[Monomial] = [*((-1 - j,) for j in range(outputs)), *features]
    columns = {monomial: i for i, monomial in enumerate(names)}
    clauses = [clause or (None,) for clause in case.clauses]
    rows = np.zeros((sum(map(len, clauses)), outputs + len(features)))
    offsets = np.ones(len(rows))  # of a clause without any row, which is unsafe whatever the outputs
    for i, row in enumerate(itertools.chain.from_iterable(clauses)):
        if row is not None:
            coefficients, offsets[i] = _rounded(row, case)
            for monomial, coefficient in coefficients.items():
                rows[i, columns[monomial]] = coefficient
    return Specification(rows, offsets, np.repeat(np.arange(len(clauses)), list(map(len, clauses))))


def _rounded(row: Row, case: Case) -> tuple[dict[Monomial, float], float]:
    """A row in float64, scaled so that coefficients of outputs are exact, and an offset that covers the rest."""
    exact = {monomial: Fraction(c) for monomial, c in row.polynomial.items() if monomial}
    of_outputs = [c for monomial, c in exact.items() if monomial[0] < 0]
    scale = _exact_scale(of_outputs)
    offset = Fraction(row.polynomial.get((), 0)) * scale
    coefficients = {}
    for monomial, c in exact.items():
        near = _float(c * scale)
        coefficients[monomial] = near
        if (error := abs(c * scale - Fraction(near))) != 0:
            sizes = (Fraction(max(abs(float(case.lower[i])), abs(float(case.upper[i])))) for i in monomial)
            offset += error * math.prod(sizes)
    near = _float(offset)
    return coefficients, near if Fraction(near) >= offset else math.nextafter(near, math.inf)


def _exact_scale(coefficients: Sequence[Fraction]) -> Fraction:
    if not coefficients:
        return Fraction(1)
    common = math.lcm(*(c.denominator for c in coefficients))
    for scale in (Fraction(1), Fraction(common), 1 / abs(coefficients[0])):
        if all(Fraction(_float(c * scale)) == c * scale for c in coefficients):
            return scale
    first = _float(coefficients[0])
    raise QueryError(f"float64 cannot hold the coefficients of outputs of a comparison, {first} first.")


def _float(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        raise QueryError("A comparison has numbers beyond the range of float64.") from None
