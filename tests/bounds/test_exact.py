"""Bounds equal what independent arithmetic gives: exact rationals, closed forms, another form of the same domain."""

from __future__ import annotations

import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixtrain_jax as mt

METHODS = [mt.ibp, mt.crown_ibp, mt.symbolic, mt.crown]
pytestmark = pytest.mark.usefixtures("x64")


def _dyadic(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Multiples of 1/8, on which float64 arithmetic of small networks is exact."""
    return rng.integers(-16, 17, shape) / 8


def _exact(x: np.ndarray) -> np.ndarray:
    return np.vectorize(Fraction, otypes=[object])(x)


def _exact_affine(lower: np.ndarray, upper: np.ndarray, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    positive, negative = np.maximum(w, 0), np.minimum(w, 0)
    return lower @ positive + upper @ negative + b, upper @ positive + lower @ negative + b


@pytest.mark.parametrize("seed", range(10))
def test_ibp_is_exact_interval_arithmetic(seed: int) -> None:
    rng = np.random.default_rng(seed)
    (w1, b1), (w2, b2) = ((_dyadic(rng, n, m), _dyadic(rng, m)) for n, m in ((5, 7), (7, 3)))
    x, eps = _dyadic(rng, 5), 0.375
    out = mt.ibp(lambda v: jax.nn.relu(v @ w1 + b1) @ w2 + b2)(mt.linf_ball(x, eps))
    hidden = _exact_affine(_exact(x - eps), _exact(x + eps), _exact(w1), _exact(b1))
    lower, upper = _exact_affine(*(np.maximum(h, 0) for h in hidden), _exact(w2), _exact(b2))
    assert np.all(_exact(np.asarray(out.lower)) == lower)
    assert np.all(_exact(np.asarray(out.upper)) == upper)


@pytest.mark.parametrize(("stride", "padding"), [(1, "SAME"), (2, "VALID"), (2, ((1, 2), (0, 1)))])
def test_ibp_of_a_convolution_is_exact_interval_arithmetic(stride: int, padding: object) -> None:
    rng = np.random.default_rng(0)
    kernel, x, eps = _dyadic(rng, 3, 2, 2, 3), _dyadic(rng, 1, 5, 4, 2), 0.25

    def f(v: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            v, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    # The convolution as a matrix, read off unit inputs.
    matrix = np.stack([np.asarray(f(e.reshape(x.shape))).ravel() for e in np.eye(x.size)])
    lower, upper = _exact_affine(
        _exact(x - eps).ravel(), _exact(x + eps).ravel(), _exact(matrix), _exact(np.zeros(matrix.shape[1]))
    )
    out = mt.ibp(f)(mt.linf_ball(x, eps))
    assert np.all(_exact(np.asarray(out.lower)).ravel() == lower)
    assert np.all(_exact(np.asarray(out.upper)).ravel() == upper)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_exact_margin_of_a_linear_model(method: mt.bounds.Method) -> None:
    rng = np.random.default_rng(1)
    w, b, x, labels = rng.normal(size=(12, 5)), rng.normal(size=5), rng.normal(size=(8, 12)), rng.integers(0, 5, 8)
    eps = 0.07
    # Two layers with nothing between them are one.
    first = rng.normal(size=(12, 12))
    margins = mt.margins(method, lambda v: (v @ first) @ w + b[None])(mt.linf_ball(x, eps), labels)
    logits = x @ first @ w + b
    for i, y in enumerate(labels):
        others = np.delete(np.arange(5), y)
        spread = eps * np.abs((first @ w)[:, [y]] - (first @ w)[:, others]).sum(0)
        np.testing.assert_allclose(margins[i], logits[i, y] - logits[i, others] - spread, rtol=1e-12, atol=1e-12)


def _zonotope(x: np.ndarray, eps: float, layers: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Lower bounds by the paper's forward form: center, input coefficients, one error symbol an unstable ReLU."""
    center, symbols = x, eps * np.eye(len(x))
    box = x - eps, x + eps
    for i, (w, b) in enumerate(layers):
        center, symbols = center @ w + b, symbols @ w
        radius = np.abs(symbols).sum(0)
        natural = _exact_affine(*box, w, b)
        lower, upper = np.maximum(center - radius, natural[0]), np.minimum(center + radius, natural[1])
        if i == len(layers) - 1:
            return lower
        unstable = (lower < 0) & (upper > 0)
        slope = np.where(unstable, upper / np.where(unstable, upper - lower, 1), (lower >= 0) * 1.0)
        error = np.where(unstable, -slope * lower / 2, 0)
        center = slope * center + error
        symbols = np.concatenate([symbols * slope, np.diag(error)])
        box = np.maximum(lower, 0), np.maximum(upper, 0)
    raise AssertionError


@pytest.mark.parametrize("eps", [0.01, 0.1, 0.5])
def test_symbolic_equals_the_forward_form_of_the_paper(eps: float) -> None:
    rng = np.random.default_rng(2)
    widths = (6, 15, 12, 9, 4)
    layers = [(rng.normal(size=(n, m)) * n**-0.5, rng.normal(size=m) * 0.1) for n, m in itertools.pairwise(widths)]

    def f(v: jax.Array) -> jax.Array:
        for w, b in layers[:-1]:
            v = jax.nn.relu(v @ w + b)
        return v @ layers[-1][0] + layers[-1][1]

    x = rng.random(6)
    np.testing.assert_allclose(
        mt.symbolic(f)(mt.linf_ball(x, eps)).lower, _zonotope(x, eps, layers), rtol=1e-10, atol=1e-12
    )


def test_crown_takes_the_lower_slope_of_the_smaller_area() -> None:
    ball = mt.Interval(jnp.array([-1.0, -2.0, -1.0, 0.5, -3.0]), jnp.array([2.0, 1.0, 1.0, 2.0, -1.0]))
    lines = mt.bounds.relaxations.relu(ball.lower, ball.upper, "adaptive")
    np.testing.assert_array_equal(lines.lower_slope, [1, 0, 0, 1, 0])
    np.testing.assert_allclose(lines.upper_slope, [2 / 3, 1 / 3, 1 / 2, 1, 0])
    np.testing.assert_allclose(lines.upper_offset, [2 / 3, 2 / 3, 1 / 2, 0, 0])


@pytest.mark.parametrize("slopes", ["parallel", "adaptive"])
def test_relu_lies_between_its_lines(slopes: mt.bounds.relaxations.Slopes) -> None:
    ends = np.array([-5.0, -1.0, -1e-6, -1e-300, 0.0, 1e-300, 1e-6, 1.0, 5.0])
    lower, upper = (a.ravel() for a in np.meshgrid(ends, ends))
    lower, upper = lower[lower <= upper], upper[lower <= upper]
    lines = jax.device_get(mt.bounds.relaxations.relu(jnp.asarray(lower), jnp.asarray(upper), slopes))
    x = lower + np.linspace(0, 1, 501)[:, None] * (upper - lower)
    relu, slack = np.maximum(x, 0), 1e-15 * (1 + np.abs(x))
    assert np.all(lines.lower_slope * x <= relu + slack)
    assert np.all(relu <= lines.upper_slope * x + lines.upper_offset + slack)


def test_sharing_an_input_cancels_in_backward_bounds() -> None:
    ball = mt.linf_ball(jnp.ones(3), 0.5)
    out = mt.crown(lambda v: jax.nn.relu(v * 2 - v) - v)(ball)
    np.testing.assert_allclose(out.upper, 0, atol=1e-15)
    np.testing.assert_allclose(out.lower, 0, atol=1e-15)


def test_intersection_of_intervals() -> None:
    both = mt.intersect(
        mt.Interval(jnp.zeros(2), jnp.ones(2)), mt.Interval(jnp.array([-1.0, 0.5]), jnp.array([0.5, 2]))
    )
    np.testing.assert_array_equal(both.lower, [0, 0.5])
    np.testing.assert_array_equal(both.upper, [0.5, 1])
