"""Queries in VNN-LIB against an evaluation of their text that shares nothing with the reader."""

import functools
import gzip
import operator
import random
import re
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtrain_jax.errors import QueryError
from mixtrain_jax.verify.vnnlib import as_assignment, as_pairs, parse_query, read_query

NETWORK = "(vnnlib-version <2.0>)\n(declare-network f (declare-input X float32 [1,2])\n (declare-output Y Real [2]))\n"
BOX = "(assert (and (>= X[0,0] -1) (<= X[0,0] 1.0)))\n(assert (>= X[0,1] 0.1)) (assert (<= X[0,1] 2e-1))\n"
CLASSIC = "".join(f"(declare-const {name} Real)\n" for name in ("X_0", "X_1", "Y_0", "Y_1"))


# An oracle: nested lists of words, evaluated one assertion after another.

COMPARE = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
}


def nested(text):
    stack = [[]]
    for word in re.findall(r"[()]|[^\s()]+", re.sub(r";[^\n]*", "", text)):
        if word == "(":
            stack.append([])
        elif word == ")":
            inner = stack.pop()
            stack[-1].append(inner)
        else:
            stack[-1].append(word)
    return stack[0]


def evaluated(expression, values):
    if isinstance(expression, str):
        return values[expression] if expression in values else Fraction(expression)
    head, *rest = expression
    parts = [evaluated(part, values) for part in rest]
    match head:
        case "and":
            return all(parts)
        case "or":
            return any(parts)
        case "+":
            return sum(parts)
        case "*":
            return functools.reduce(operator.mul, parts)
        case "-":
            return -parts[0] if len(parts) == 1 else parts[0] - sum(parts[1:])
    return COMPARE[head](*parts)


def satisfied(text, inputs, outputs):
    values = {f"X[0,{i}]": Fraction(float(x)) for i, x in enumerate(inputs)}
    values |= {f"Y[{j}]": Fraction(float(y)) for j, y in enumerate(outputs)}
    return all(evaluated(command[1], values) for command in nested(text) if command[0] == "assert")


# Few numbers, so that points on the boundary are met.
NUMBERS = st.sampled_from(["-2", "-0.5", "0", "0.25", "1", "2.0", "15e-1", "0.1"])
ATOMS = st.sampled_from(["X[0,0]", "X[0,1]", "Y[0]", "Y[1]"])
SUMS = st.recursive(
    NUMBERS | ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner).map(lambda p: f"(- {p[0]})"),
        st.lists(inner, min_size=2, max_size=3).map(lambda p: f"(+ {' '.join(p)})"),
        st.lists(inner, min_size=2, max_size=3).map(lambda p: f"(- {' '.join(p)})"),
        st.tuples(inner, inner).map(lambda p: f"(* {p[0]} {p[1]})"),
    ),
    max_leaves=4,
)
COMPARISONS = st.tuples(st.sampled_from(sorted(COMPARE)), SUMS, SUMS).map(lambda p: f"({p[0]} {p[1]} {p[2]})")
SIMPLE = st.tuples(st.sampled_from(["<=", ">=", "<", ">"]), ATOMS, NUMBERS).map(lambda p: f"({p[0]} {p[1]} {p[2]})")
FORMULAS = st.recursive(
    SIMPLE | COMPARISONS,
    lambda inner: st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=1, max_size=3)).map(
        lambda p: f"({p[0]} {' '.join(p[1])})"
    ),
    max_leaves=6,
)
POINTS = st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0])


def features(query, inputs, outputs):
    """The vector that specifications are of, in exact arithmetic."""
    values = [*map(Fraction, inputs), *map(Fraction, outputs[::-1])]
    products = [functools.reduce(operator.mul, (values[i] for i in monomial)) for monomial in query.features]
    return np.array([*map(float, outputs), *map(float, products)])


@settings(max_examples=150, deadline=None)
@given(st.lists(FORMULAS, min_size=1, max_size=3), st.lists(POINTS, min_size=4, max_size=4))
def test_cases_hold_where_the_text_does(formulas, point):
    text = NETWORK + "(assert (and (>= X[0,0] -1) (<= X[0,0] 1.5) (<= -1 X[0,1]) (>= 2 X[0,1])))"
    text += "".join(f"(assert {formula})" for formula in formulas)
    inputs, outputs = np.array(point[:2]), np.array(point[2:])
    query = parse_query(text)
    wanted = satisfied(text, inputs, outputs)
    assert any(query.holds(case, inputs, outputs) for case in query.cases) == wanted
    inside = [case for case in query.cases if np.all((case.lower <= inputs) & (inputs <= case.upper))]
    specifications = [query.specification(case) for case in inside]
    worst = max((spec.violation(features(query, inputs, outputs)) for spec in specifications), default=-np.inf)
    if wanted:
        assert worst >= -1e-12  # what a proof excludes holds the boundary
    if worst > 1e-12 and all(case.contains(inputs) for case in inside):
        assert wanted  # what is strictly unsafe is unsafe


@given(st.integers(-(10**9), 10**9), st.integers(0, 12), st.sampled_from(["", "0" * 17 + "1", "9" * 17]))
def test_boxes_are_rounded_outwards(digits, shift, tail):
    """Also where a long decimal number lies beside a float32 number, which float64 cannot tell from it."""
    near = np.float32(digits / 10**shift)
    for value in (f"{digits}e-{shift}", f"{float(near):.30f}{tail}"):
        text = NETWORK + f"(assert (and (>= X[0,0] {value}) (<= X[0,0] {value}) (== X[0,1] 0)))(assert (<= Y[0] 0))"
        (case,) = parse_query(text).cases
        exact = Fraction(value)
        assert Fraction(float(case.lower[0])) <= exact <= Fraction(float(case.upper[0]))
        assert np.nextafter(case.lower[0], np.float32(np.inf)) >= case.upper[0]
        assert case.least[0] == case.greatest[0] == float(value)


def test_the_example_in_both_versions_is_one_query():
    new = parse_query(NETWORK + BOX + "(assert (or (<= Y[0] Y[1]) (and (> Y[0] 1) (< Y[1] (+ Y[0] 0.5)))))")
    old = parse_query(
        CLASSIC + "; bounds\n(assert (>= X_0 -1))(assert (<= X_0 1.0))(assert (<= X_1 0.2))(assert (>= X_1 0.1))"
        "(assert (or (and (<= Y_0 Y_1)) (and (>= Y_0 1) (<= Y_1 (+ Y_0 0.5)))))"
    )
    assert (new.version, old.version) == ("2.0", "1.0")
    for query in (new, old):
        (case,) = query.cases
        spec = query.specification(case)
        np.testing.assert_array_equal(spec.rows, [[-1, 1], [1, 0], [1, -1]])
        np.testing.assert_array_equal(spec.offsets, [0, -1, 0.5])
        np.testing.assert_array_equal(spec.clause, [0, 1, 1])
        assert case.lower.dtype == case.upper.dtype == np.float32
    assert [network.name for network in new.networks] == ["f"]
    assert new.networks[0].inputs.shape == (1, 2)


def test_boxes_joined_by_or_are_cases_of_their_own():
    boxes = ("(>= X_0 0) (<= X_0 1) (>= Y_0 2)", "(>= X_0 0) (<= X_0 1) (<= Y_0 1)", "(>= X_0 3) (<= X_0 4)")
    disjuncts = " ".join(f"(and {box})" for box in (*boxes, "(>= X_0 1) (<= X_0 -1)"))
    query = parse_query(CLASSIC + f"(assert (== X_1 7)) (assert (or {disjuncts}))")
    assert [case.lower.tolist() for case in query.cases] == [[0, 7], [3, 7]]
    assert [len(case.clauses) for case in query.cases] == [2, 1]
    assert query.specification(query.cases[1]).violation([0.0, 0.0]) > 0  # every output is unsafe


def test_inputs_in_comparisons_become_features():
    query = parse_query(NETWORK + BOX + "(assert (>= (- Y[0] (* 0.3 X[0,0])) (* X[0,1] X[0,1] Y[1])))")
    assert query.features == ((-2, 1, 1), (0,))
    (case,) = query.cases
    spec = query.specification(case)
    assert spec.outputs == 4
    rows = dict(zip([(-1,), (-2,), *query.features], spec.rows[0], strict=True))
    assert rows == {(-1,): 1, (-2,): 0, (0,): -0.3, (-2, 1, 1): -1}
    assert 0 < spec.offsets[0] < 1e-15  # that -0.3 is no float64 number


def test_coefficients_of_outputs_are_exact_or_refused():
    query = parse_query(NETWORK + BOX + "(assert (<= (* 0.1 Y[0]) (* 0.3 Y[1])))")
    np.testing.assert_array_equal(query.specification(query.cases[0]).rows, [[-1, 3]])
    query = parse_query(NETWORK + BOX + "(assert (<= (* 0.12345678901234567891 Y[0]) Y[1]))")
    with pytest.raises(QueryError, match=r"cannot hold the coefficients of outputs of a comparison, -0\.1234"):
        query.specification(query.cases[0])


def test_an_equal_network_shares_its_file_and_has_inputs_of_its_own():
    other = "(declare-network g (equal-to f) (declare-input A float32 [1,2]) (declare-output B Real [2]))\n"
    query = parse_query(NETWORK + other + BOX + "(assert (and (== A[0,0] 1) (== A[0,1] 2) (>= B[1] Y[0])))")
    assert [(network.name, network.same_as) for network in query.networks] == [("f", ""), ("g", "f")]
    assert (query.inputs, query.outputs) == (4, 4)
    spec = query.specification(query.cases[0])
    np.testing.assert_array_equal(spec.rows, [[-1, 0, 0, 1]])
    np.testing.assert_array_equal(query.cases[0].upper[2:], [1, 2])


def test_reported_inputs_are_inside_and_round_to_what_was_tried():
    query = parse_query(NETWORK + "(assert (and (>= X[0,0] 0.1) (<= X[0,0] 0.1) (>= X[0,1] 0.1) (< X[0,1] 0.3)))")
    (case,) = query.cases
    lower, upper = case.attacked()
    for tried in (lower, upper, (lower + upper) / 2):
        reported = case.reported(tried)
        assert case.contains(reported)
        np.testing.assert_array_equal(reported.astype(np.float32), tried)
    assert 0.1 < float(lower[1]) < float(upper[1]) < 0.3  # float32 numbers between the bounds
    assert lower[0] == upper[0] == np.float32(0.1)
    assert case.reported(lower)[0] == 0.1


def test_assignments_are_written_as_the_standards_say():
    query = parse_query(NETWORK + BOX)
    inputs, outputs = np.array([0.5, 0.1]), np.float32([1, -2])
    assert as_assignment(query, inputs, outputs) == "X float32 [1,2]\n0.5\n0.1\nY Real [2]\n1.0\n-2.0"
    assert as_pairs(inputs, outputs) == "((X_0 0.5)\n(X_1 0.1)\n(Y_0 1.0)\n(Y_1 -2.0))"


def test_files_may_be_packed(tmp_path):
    (tmp_path / "a.vnnlib").write_text(NETWORK + BOX)
    (tmp_path / "b.vnnlib.gz").write_bytes(gzip.compress((NETWORK + BOX).encode()))
    plain, packed = (read_query(tmp_path / name).cases[0].lower for name in ("a.vnnlib", "b.vnnlib.gz"))
    np.testing.assert_array_equal(plain, packed)


def specifications(text):
    query = parse_query(text)
    return [query.specification(case) for case in query.cases]


REFUSED = {
    "nothing": ("", "variables X_0"),
    "no assertion": (NETWORK, "nothing is asserted"),
    "open": (NETWORK + "(assert (<= Y[0] 1)", "ends within 1 parentheses"),
    "closed twice": (NETWORK + BOX + ")", "has no opening one"),
    "hidden": ('(declare-network f (declare-hidden H real [1] "h"))', r"\(declare-hidden"),
    "two inputs": ("(declare-network f (declare-input X real [1])(declare-input Z real [1]))", "2 inputs and 0 out"),
    "initializer": ("(declare-network f (declare-input X real [1] initialized))", "initializers"),
    "type": ("(declare-network f (declare-input X float64 [1])(declare-output Y real [1]))", "of type float64"),
    "no entries": ("(declare-network f (declare-input X real [0])(declare-output Y real [1]))", "no entries"),
    "memory": ("(declare-network f (declare-input X real [99999,99999])(declare-output Y real [1]))", "at most"),
    "version": ("(vnnlib-version <3.0>)", "version <3.0> is not supported; 1.0 to 2.1 are"),
    "not": (NETWORK + "(assert (not (<= Y[0] 1)))", r"\(not \.\.\.\) is not supported"),
    "undeclared": (NETWORK + "(assert (<= Z[0] 1))", "variable 'Z' is not declared"),
    "index": (NETWORK + "(assert (<= X[0,2] 1))", "outside its shape"),
    "indices": (NETWORK + "(assert (<= X[0] 1))", "wants 2 indices"),
    "gap": ("(declare-const X_1 Real)(declare-const Y_0 Real)(assert (<= Y_0 1))", "without a gap"),
    "twice": ("(declare-const X_0 Real)(declare-const X_0 Real)", "declared twice"),
    "name": ("(declare-const Z_0 Real)", "no X_i and no Y_j"),
    "one side": (NETWORK + "(assert (<= Y[0]))", "wants two sides"),
    "a formula in a sum": (NETWORK + "(assert (<= (and (<= Y[0] 1)) 1))", "something else stands there"),
    "unbounded": (NETWORK + "(assert (<= X[0,1] 1))", "Input 0 has no lower bound"),
    "nesting": (NETWORK + "(assert " + "(and " * 100_000, "more than 200 parentheses"),
    "digits": (NETWORK + f"(assert (<= Y[0] 1{'0' * 500}))", "more than 400 digits"),
    "exponent": (NETWORK + "(assert (<= Y[0] 1e99999))", "more than 400 digits"),
    "exponent's digits": (NETWORK + f"(assert (<= Y[0] 1e{'9' * 9}))", "more than 400 digits"),
    "digits of another script": (NETWORK + "(assert (<= Y[0] \u0663))", "the variable '\u0663' is not declared"),
    "networks": (
        "".join(
            f"(declare-network n{i} (declare-input a{i} real [1])(declare-output b{i} real [1]))" for i in range(17)
        ),
        "more than 16 networks",
    ),
    "huge bound": (NETWORK + "(assert (<= X[0,0] 1e39))", "beyond the range of float32"),
    "degree": (NETWORK + f"(assert (<= (* {'Y[0] ' * 9}) 1))", "degree of more than 8"),
    "powers of a number": (NETWORK + f"(assert (<= (* {'1.1e300 ' * 90} Y[0]) 1))", "thousands of digits"),
    "huge coefficient": (NETWORK + BOX + "(assert (<= (* 1e399 Y[0]) 1))", "beyond the range of float64"),
    "many products": (NETWORK + f"(assert (<= (* {'(+ Y[0] Y[1] X[0,0] X[0,1] 1)' * 8} 0) 1))" * 12, "all in all"),
    "product of sums": (NETWORK + f"(assert (<= (* {'(+ Y[0] Y[1] X[0,0] X[0,1] 1)' * 9}) 1))", "degree of more"),
    "product of ors": (NETWORK + BOX + "(assert (or (<= Y[0] 1) (>= Y[1] 1)))" * 19, "multiply to 524288 cases"),
    "outside": (NETWORK + "word", "outside of commands"),
    "stray bracket": (NETWORK + BOX + "]", "no part of a query"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_said_in_one_error(name):
    text, said = REFUSED[name]
    started = time.process_time()
    with pytest.raises(QueryError, match=said):
        specifications(text)
    assert time.process_time() - started < 5


def test_the_line_of_a_fault_is_named(tmp_path):
    path = tmp_path / "a.vnnlib"
    path.write_text(NETWORK + "; comment\n(assert (<= Q[0] 1))\n")
    with pytest.raises(QueryError, match=rf"^{re.escape(str(path))}: Line 5: the variable 'Q' is not declared"):
        read_query(path)


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(QueryError, match="No such file"):
        read_query(tmp_path / "missing.vnnlib")
    with pytest.raises(QueryError, match="not a regular file"):
        read_query(tmp_path)
    damaged = {
        "cut.gz": (gzip.compress(NETWORK.encode())[:-20], "begins as a gzip file"),
        "binary": (b"\xff\xfe\x00", "is no text: byte 0"),
        "bomb.gz": (gzip.compress(bytes(2**22)), "more than 1048576 bytes once unpacked"),
    }
    for name, (content, said) in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(QueryError, match=said):
            read_query(tmp_path / name, max_bytes=2**20)


WHOLE = NETWORK + BOX + "(assert (or (<= (+ Y[0] 0.5) Y[1]) (and (> Y[0] 1e-2) (!= X[0,0] (* 2 X[0,1])))))\n"
PIECES = [*'()[]";- 0\x00é\u0663', "1e999999999", "<=", "and", "assert", "X[0,0]", "1e9", "declare-input"]


def mutated(text, draw):
    """The text with some of it removed, doubled, moved or replaced."""
    for _ in range(draw.randint(1, 3)):
        a, b = sorted(draw.choices(range(len(text) + 1), k=2))
        b = min(b, a + draw.choice([1, 5, 50]))
        piece = draw.choice([text[a:b] * 2, "", draw.choice(PIECES), text[a:b][::-1], draw.choice(PIECES) * 300])
        text = text[:a] + piece + text[b:]
    return text


@pytest.mark.parametrize("whole", [WHOLE, CLASSIC + "(assert (and (<= X_0 1) (>= X_0 -1) (== X_1 2) (<= Y_0 Y_1)))"])
def test_damaged_files_are_read_or_refused(whole):
    accepted, longest, started = 0, 0, time.process_time()
    for seed in range(500):
        try:
            specifications(mutated(whole, random.Random(seed)))
            accepted += 1
        except QueryError as error:
            longest = max(longest, len(str(error)))
    assert 5 < accepted < 250
    assert longest < 500
    assert time.process_time() - started < 60


def test_many_cases_are_read_at_once():
    """As many as a file of half a MB has; they take less than a second."""
    disjuncts = "\n".join(f"(and (>= X_0 {i}.5) (<= X_0 {i}.75) (<= Y_0 0.{i}))" for i in range(5_000))
    started = time.process_time()
    query = parse_query(CLASSIC + f"(assert (== X_1 0)) (assert (or {disjuncts}))")
    assert len(query.cases) == 5_000
    assert time.process_time() - started < 10
