"""Each wrong input gets one clear error that says what was expected, what came and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import primitives

import mixtrain_jax as mt
from mixtrain_jax.bounds import rules

X = np.full((2, 3), 0.5, np.float32)
BALL = mt.Interval(jnp.zeros(3), jnp.ones(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, -0.1), "eps >= 0, got -0.1"),
        ((X, np.nan), "eps >= 0, got nan"),
        ((X, np.inf), "eps >= 0, got inf"),
        ((X, np.ones((3, 1), np.float32)), r"broadcast to the shape \(2, 3\) of x, got shape \(3, 1\)"),
        ((X.astype(np.uint8), 0.1), "floating inputs, got uint8; scale the images"),
        ((X * np.nan, 0.1), "finite inputs"),
        ((X + 1, 0.1, (0.0, 1.0)), r"inside the domain \(0.0, 1.0\), got values in \[1.5, 1.5\]"),
        ((X, 0.1, (1.0, 0.0)), r"low < high, got \(1.0, 0.0\)"),
    ],
)
def test_linf_ball_says_what_is_wrong(arguments: tuple, message: str) -> None:
    with pytest.raises(mt.BoundsError, match=message):
        mt.linf_ball(*arguments)


def test_linf_ball_checks_constants_inside_jit() -> None:
    with pytest.raises(mt.BoundsError, match="eps >= 0"):
        jax.jit(lambda x: mt.linf_ball(x, -1.0))(X)


def test_linf_ball_is_clipped_and_takes_radii_of_any_broadcastable_shape() -> None:
    ball = mt.linf_ball(X, np.array([[0.1], [0.7]], np.float32), (0.0, 1.0))
    np.testing.assert_allclose(ball.lower, [[0.4] * 3, [0.0] * 3], rtol=1e-6)
    np.testing.assert_allclose(ball.upper, [[0.6] * 3, [1.0] * 3], rtol=1e-6)
    np.testing.assert_allclose(ball.center, 0.5, rtol=1e-6)
    np.testing.assert_allclose(ball.radius, [[0.1] * 3, [0.5] * 3], rtol=1e-6)


@pytest.mark.parametrize(
    ("ball", "message"),
    [
        (mt.Interval(jnp.ones(3), jnp.zeros(3)), "lower <= upper everywhere"),
        (mt.Interval(jnp.full(3, jnp.nan), jnp.ones(3)), "crossed or NaN"),
        (mt.Interval(jnp.zeros(3), jnp.ones(4)), r"one shape and dtype, got float32\[3\] and float32\[4\]"),
        (mt.Interval(jnp.zeros(3, int), jnp.ones(3, int)), "floating bounds, got int32"),
    ],
)
@pytest.mark.parametrize("method", [mt.ibp, mt.symbolic])
def test_a_malformed_interval_is_refused(method: mt.bounds.Method, ball: mt.Interval, message: str) -> None:
    with pytest.raises(mt.BoundsError, match=message):
        method(lambda x: x * 2.0)(ball)


@pytest.mark.parametrize("method", [mt.ibp, mt.crown])
def test_a_primitive_without_rule_is_named_with_its_line_and_a_way_out(method: mt.bounds.Method) -> None:
    def user_function(x: jax.Array) -> jax.Array:
        return jax.lax.asin(x) + 1

    with pytest.raises(mt.UnsupportedPrimitiveError) as caught:
        method(user_function)(BALL)
    line = user_function.__code__.co_firstlineno + 1
    message = str(caught.value).splitlines()
    assert message[0] == "Cannot bound the primitive 'asin' (interval): there is no rule for it."
    assert f"test_errors.py:{line}" in message[1]
    assert "user_function" in message[1]
    assert (
        message[-1].strip()
        == 'rules.register(rules.Rule("monotone", rules.endpoints, rounded=rules.accurate_to(64)), asin_p)'
    )
    assert message[-3].strip() == "from jax.extend.core.primitives import asin_p"


def test_the_advice_of_the_error_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_REGISTRY", rules.registered())
    with pytest.raises(mt.UnsupportedPrimitiveError, match="import asin_p"):
        mt.ibp(jax.lax.asin)(BALL)
    rules.register(rules.Rule("monotone", rules.endpoints, rounded=rules.accurate_to(64)), primitives.asin_p)
    for method in (mt.ibp, mt.crown):
        out = method(lambda x: jax.lax.asin(x / 2) * 2)(BALL)
        np.testing.assert_allclose(out.upper, 1.0471976, rtol=1e-6)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (
            lambda x: jax.lax.while_loop(lambda c: c.sum() < 4, lambda c: c + 1, x),
            r"'while' \(interval\): whether it goes on depends on an interval.*a Python integer",
        ),
        (lambda x: jax.lax.sort((x, x), num_keys=1)[1], "'sort'.*which is where is not known"),
        (lambda x: jax.lax.rem(2.0 * jnp.ones(3), x), "'rem' .*the divisor is an interval"),
        (lambda x: jnp.fft.fft(x).real, "'convert_element_type'.*complex numbers have no order"),
        (lambda x: ~x.astype(jnp.int32), "'not'.*for intervals of booleans only"),
        (lambda x: jnp.arange(9.0)[x.astype(jnp.int32)], "'gather'.*an index depends on an interval"),
        (
            lambda x: primitives.dynamic_slice_p.bind(x, x[0].astype(jnp.int32), slice_sizes=(1,)),
            "'dynamic_slice'.*an index depends on an interval",
        ),
        (lambda x: x.astype(jnp.int32) @ jnp.eye(3, dtype=jnp.int32), "'dot_general'.*an interval of integers"),
    ],
)
def test_an_interval_where_a_value_must_be_exact_is_named(f: Callable[..., Any], message: str) -> None:
    with pytest.raises(mt.UnsupportedPrimitiveError, match=f"(?s){message}") as caught:
        mt.ibp(f)(BALL)
    assert "test_errors.py" in str(caught.value)
    assert "endpoints" not in str(caught.value)  # advice for monotone primitives, which would be unsound here


def test_a_loop_with_a_traced_condition_says_so() -> None:
    def steps(x: jax.Array, n: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, n, lambda i, y: 2 * y, x)

    assert mt.ibp(steps)(BALL, 3).upper.tolist() == [8.0] * 3
    with pytest.raises(mt.UnsupportedPrimitiveError, match="its condition is traced"):
        jax.jit(mt.ibp(steps))(BALL, 3)


@pytest.mark.parametrize("option", [{"chunk": 0}, {"chunk": 2.0}, {"budget": -1}])
def test_options_that_are_no_positive_integer_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(mt.BoundsError, match=f"{next(iter(option))} to be a positive integer or None, got"):
        mt.crown(lambda x: x, **option)
    with pytest.raises(mt.BoundsError, match="steps to be a positive integer, got 0"):
        mt.alpha_crown(lambda x: x, steps=0)


def test_a_ball_is_one_example() -> None:
    with pytest.raises(mt.BoundsError, match=r"a scalar eps for one input, got shape \(2, 1\); use jax.vmap"):
        mt.l2_ball(X, np.ones((2, 1), np.float32))
    batch = jax.vmap(lambda x: mt.l1_ball(x, 0.1))(X)
    with pytest.raises(mt.BoundsError, match=r"one example, got radii of shape \[2\]; .* with jax.vmap"):
        mt.ibp(lambda x: x)(batch)


LABELS = np.array([0, 1])
BATCH = mt.linf_ball(X, 0.1)


@pytest.mark.parametrize(
    ("f", "ball", "labels", "message"),
    [
        (lambda x: x, BATCH, LABELS[:1], r"one label an example, got a ball of shape \[2, 3\] and 1 labels"),
        (lambda x: x, BATCH, LABELS * 1.0, "integer labels"),
        (lambda x: x, BATCH, LABELS[None], "integer labels, a scalar"),
        (lambda x: x, BATCH, np.array([0, 3]), "labels between 0 and 2, got 3"),
        (lambda x: x, BATCH, np.array([-1, 0]), "labels between 0 and 2, got -1"),
        (lambda x: x[:, :1], BATCH, LABELS, "at least 2 classes"),
        (lambda x: x[:, :, None], BATCH, LABELS, "at least 2 classes"),
    ],
)
def test_margins_say_what_is_wrong(f: object, ball: mt.Interval, labels: np.ndarray, message: str) -> None:
    with pytest.raises(mt.BoundsError, match=message):
        mt.margins(mt.ibp, f)(ball, labels)


def test_rows_say_what_is_wrong() -> None:
    with pytest.raises(mt.BoundsError, match=r"shape \[rows, 3\], got \[2, 4\]"):
        mt.ibp(lambda x: x * 2.0).rows(jnp.ones((2, 4)), BALL)
    with pytest.raises(mt.BoundsError, match="one output array, got one of 2"):
        mt.ibp(lambda x: (x, x)).rows(jnp.ones((2, 3)), BALL)


def test_nan_weights_never_certify() -> None:
    for method in (mt.ibp, mt.crown_ibp, mt.symbolic, mt.crown):
        w = jnp.eye(3).at[0, 0].set(jnp.nan)
        with pytest.raises(mt.BoundsError, match="such as weights, is NaN"):
            mt.margins(method, lambda x, w=w: jax.nn.relu(x @ w) @ w)(BATCH, LABELS)


def _unruled(x: jax.Array) -> jax.Array:
    return jax.lax.asin(x) + 1


def _indexing(x: jax.Array) -> jax.Array:
    return jnp.arange(9.0)[x.astype(jnp.int32)]


WRONG: dict[str, Callable[[], Any]] = {
    "no rule for a primitive": lambda: mt.ibp(_unruled)(BALL),
    "an interval where a value must be exact": lambda: mt.crown(_indexing)(BALL),
    "ends of different shapes": lambda: mt.ibp(_unruled)(mt.Interval(jnp.zeros(3), jnp.ones(4))),
    "labels that don't fit": lambda: mt.margins(mt.ibp, lambda x: x)(BATCH, LABELS[:1]),
    "rows that don't fit": lambda: mt.ibp(lambda x: x * 2.0).rows(jnp.ones((2, 4)), BALL),
    "lower above upper": lambda: mt.ibp(_unruled)(mt.Interval(jnp.ones(3), jnp.zeros(3))),
    "NaN in a box": lambda: mt.ibp(_unruled)(mt.Interval(jnp.full(3, jnp.nan), jnp.ones(3))),
    "NaN in an input": lambda: mt.linf_ball(X * np.nan, 0.1),
    "a negative radius": lambda: mt.linf_ball(X, -0.1),
    "an input off its domain": lambda: mt.linf_ball(X + 1, 0.1, (0.0, 1.0)),
    "a radius for a whole batch": lambda: mt.l2_ball(X, np.ones((2, 1), np.float32)),
    "no rows at a time": lambda: mt.crown(lambda x: x, chunk=0),
}


@pytest.mark.parametrize("name", WRONG)
def test_messages_are_these(name: str, snapshot: Any) -> None:
    """What a user reads, in whole; `pytest --snapshot-update` accepts new words."""
    with pytest.raises((mt.BoundsError, mt.UnsupportedPrimitiveError)) as caught:
        WRONG[name]()
    assert re.sub(r"\S*test_errors\.py:[\d:]+", "test_errors.py:LINE", str(caught.value)) == snapshot
