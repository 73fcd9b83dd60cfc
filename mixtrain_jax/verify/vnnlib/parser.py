"""The text of a query as declarations and one formula: a shift-reduce parser of parentheses, without recursion."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

from mixtrain_jax.errors import QueryError
from mixtrain_jax.verify.vnnlib import terms
from mixtrain_jax.verify.vnnlib.declarations import Network, Symbols, split_indices
from mixtrain_jax.verify.vnnlib.terms import Formula, Junction

MAX_DEPTH = 200
MAX_PRODUCTS = 2**22  # terms that are multiplied, all in all
VERSIONS = ((1, 0), (2, 1))  # the first and the last that are read
# A comparison of a variable with a number is one token: most of a large file. The quantifiers that end in "+" never
# give back what they took, so that no text takes long.
_TOKEN = re.compile(
    r"""\s++ | ;[^\n]*+
    | (?P<bound>\(\s*+(?P<operator>[<>]=?)\s++(?P<variable>[A-Za-z]\w*+(?:\s*+\[[\d,\s]*+\])?+)\s++
        (?P<number>-?\d++(?:\.\d*+)?+(?:[eE][+-]?\d++)?+)\s*+\))
    | (?P<bracket>[()])
    | (?P<text>"(?:[^"\\]|\\.)*+")
    | (?P<symbol>[^\s()\[\];"]++(?:\s*+\[[^\[\]()]*+\])?+)""",
    re.VERBOSE | re.ASCII,
)
_COMPARISONS = ("<=", ">=", "<", ">", "=", "==", "!=")
_IGNORED = ("set-logic", "set-info", "set-option", "check-sat", "get-model", "exit")
_DECLARATIONS = ("declare-input", "declare-output", "equal-to", "isomorphic-to")


def parse(text: str) -> tuple[str, tuple[Network, ...], list[Formula]]:
    """The version, the networks, and what is asserted.

    Raises:
      QueryError: where the text is damaged or asks for something that is not supported; with the line.
    """
    parser = _Parser()
    position = 0
    try:
        for found in _TOKEN.finditer(text):
            if found.start() != position:
                break
            parser.take(found)
            position = found.end()
        if position != len(text):
            raise QueryError(f"{text[position : position + 20]!r} is no part of a query")
        return parser.finished()
    except QueryError as error:
        raise QueryError(f"Line {text.count(chr(10), 0, position) + 1}: {str(error)[:300]}.") from None


class _Parser:
    """Open parentheses, innermost last, each with what it holds so far: words, polynomials, formulas, declarations."""

    def __init__(self) -> None:
        self.symbols = Symbols()
        self.version = "1.0"
        self.asserted: list[Formula] = []
        self.open: list[list[Any]] = [[]]
        self.bounds: dict[str, Formula] = {}
        self.products = 0

    def take(self, found: re.Match[str]) -> None:
        kind = found.lastgroup
        if kind == "bound":
            self.open[-1].append(self._bound(found))
        elif kind == "bracket":
            self._bracket(found[0])
        elif kind is not None:
            self.open[-1].append(found[0])

    def _bound(self, found: re.Match[str]) -> Formula:
        """The formula of a comparison with a number; the same text is the same object."""
        formula = self.bounds.get(found[0])
        if formula is None:
            _, operator, variable, text = found.groups()[:4]
            value = terms.number(text)
            assert value is not None  # the token is one
            formula = terms.compare_with_number(operator, self.symbols.variable(variable), value)
            self.bounds[found[0]] = formula
        return formula

    def _bracket(self, bracket: str) -> None:
        if bracket == "(":
            if len(self.open) > MAX_DEPTH:
                raise QueryError(f"more than {MAX_DEPTH} parentheses are open")
            self.open.append([])
            return
        if len(self.open) == 1:
            raise QueryError("a closing parenthesis has no opening one")
        parts = self.open.pop()
        made = self._made(parts)
        if made is not None:
            self.open[-1].append(made)

    def _made(self, parts: list[Any]) -> Any:
        """What a pair of parentheses stands for; None where it is a command, which is done."""
        if not parts:
            return ()  # of a declare-fun
        head, *rest = parts
        if not isinstance(head, str) or terms.number(head) is not None:
            return _pair(parts)
        if head in _COMPARISONS:
            left, right = _two(head, rest[0] if len(rest) == 1 and isinstance(rest[0], list) else rest)
            return terms.compare(head, self._polynomial(left), self._polynomial(right))
        if head in ("and", "or"):
            return Junction(head, [_formula(part, head) for part in _some(head, rest)])
        if head in ("+", "-", "*"):
            return self._arithmetic(head, [self._polynomial(part) for part in _some(head, rest)])
        if head in _DECLARATIONS:
            return self._declaration(head, rest)
        if len(self.open) == 1:
            self._command(head, rest)
            return None
        raise QueryError(f"({head} ...) is not supported")

    def _command(self, head: str, rest: list[Any]) -> None:
        match head, [part for part in rest if part != ()]:
            case "assert", [formula]:
                self.asserted.append(_formula(formula, head))
            case "declare-const" | "declare-fun", [str() as name, str() as kind]:
                if kind.lower() != "real":
                    raise QueryError(f"{name} is of type {kind}; Real is supported")
                self.symbols.declare_classic(name)
            case "declare-network", [str() as name, *parts]:
                if not all(isinstance(part, tuple) and part for part in parts):
                    raise QueryError(f"network {name} is damaged: it holds something that is no declaration")
                self.symbols.declare_network(name, parts)
            case "vnnlib-version", [str() as version]:
                self.version = _version(version)
            case name, _ if name in _IGNORED:
                pass
            case "declare-hidden", _:
                raise QueryError("hidden variables (declare-hidden) are not supported")
            case _:
                raise QueryError(f"({head} ...) is damaged or not supported")

    def _declaration(self, head: str, rest: list[Any]) -> tuple:
        """A part of a network. The type is read with the shape behind it, as a variable with its indices."""
        match head, rest:
            case (("equal-to" | "isomorphic-to"), [str() as name]):
                return head, name
            case (("declare-input" | "declare-output"), [str() as name, str() as kind]):
                kind, shape = split_indices(kind)
                if shape is None:
                    raise QueryError(f"({head} {name} ...) has no shape")
                return head, name, kind, shape
            case _, [*_, "initialized"]:
                raise QueryError("inputs with initializers are not supported")
        raise QueryError(f"({head} ...) is damaged")

    def _polynomial(self, part: Any) -> terms.Polynomial:
        if isinstance(part, dict):
            return part
        if not isinstance(part, str):
            raise QueryError("a number, a variable or a sum is expected, and something else stands there")
        value = terms.number(part)
        if value is None:
            return {(self.symbols.variable(part),): Decimal(1)}
        return {(): value} if value else {}

    def _arithmetic(self, head: str, parts: list[terms.Polynomial]) -> terms.Polynomial:
        if head == "*":
            self.products += math.prod(max(len(part), 1) for part in parts)
            if self.products > MAX_PRODUCTS:
                raise QueryError(f"products of sums have more than {MAX_PRODUCTS} terms, all in all")
            return terms.multiply(parts)
        signs = [1] * len(parts)
        if head == "-":
            signs = [-1] if len(parts) == 1 else [1] + [-1] * (len(parts) - 1)
        return terms.add(parts, signs)

    def finished(self) -> tuple[str, tuple[Network, ...], list[Formula]]:
        """All that was read."""
        if len(self.open) > 1:
            raise QueryError(f"the text ends within {len(self.open) - 1} parentheses")
        if self.open[0]:
            raise QueryError("something stands outside of commands such as (assert ...)")
        networks = self.symbols.finished()
        if not self.asserted:
            raise QueryError("nothing is asserted")
        return self.version, networks, self.asserted


def _pair(parts: list[Any]) -> list[Any]:
    """Two terms without an operator, as some generators write the sides of a comparison: `(<= (3 (- y 1)))`."""
    if len(parts) != 2:
        raise QueryError("parentheses begin with no operator")
    return parts


def _two(head: str, parts: list[Any]) -> list[Any]:
    if len(parts) != 2:
        raise QueryError(f"({head} ...) wants two sides, got {len(parts)}")
    return parts


def _some(head: str, parts: list[Any]) -> list[Any]:
    if not parts:
        raise QueryError(f"({head}) wants something to join")
    return parts


def _formula(part: Any, head: str) -> Formula:
    if isinstance(part, terms.Bound | terms.Row | Junction):
        return part
    raise QueryError(f"({head} ...) wants comparisons, and, or; something else stands there")


def _version(text: str) -> str:
    found = re.fullmatch(r"<(\d{1,3})\.(\d{1,3})>", text)
    if found is None or not VERSIONS[0] <= (int(found[1]), int(found[2])) <= VERSIONS[1]:
        first, last = (f"{major}.{minor}" for major, minor in VERSIONS)
        raise QueryError(f"version {text[:20]} is not supported; {first} to {last} are")
    return text[1:-1]
