"""Functions with parameters, wild ones included: bounds hold samples in float64, and the values as deployed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixtrain_jax as mt

INF, NAN = np.inf, np.nan
METHODS = (mt.ibp, mt.crown, mt.symbolic)
SLOPES = (0.0, 1.0, 0.5, -0.25, 1.75, -2.5, 1e-30, 1e8, -1e30)
EXPONENTS = (0.0, 1.0, 0.5, -0.25, 1.75, -2.5, 3.0, -2.0, 64.0, 1e-30, 2.0**31, -1e30)
LIMITS = ((1, -1), (0, 0), (-1, 2), (1, 2), (-3, -2), (1e30, 2), (-INF, 1), (-INF, INF), (INF, -INF))


def _clamp(x: jax.Array, low: float, high: float) -> jax.Array:
    return jax.lax.clamp(jnp.asarray(low, x.dtype), x, jnp.asarray(high, x.dtype))


FAMILIES: dict[str, tuple[Callable[..., jax.Array], Any]] = {
    "leaky_relu": (jax.nn.leaky_relu, [(a,) for a in SLOPES]),
    "elu": (jax.nn.elu, [(a,) for a in SLOPES]),
    "celu": (jax.nn.celu, [(a,) for a in SLOPES if a]),
    "clip": (lambda x, low, high: jnp.clip(x, low, high), LIMITS),
    "clamp": (_clamp, LIMITS),
    "pow": (lambda x, p: jnp.power(x, jnp.asarray(p, x.dtype)), [(p,) for p in EXPONENTS]),
    "integer_pow": (jax.lax.integer_pow, [(n,) for n in (0, 1, 2, 3, -1, -2, -3, 1001)]),
    "rem": (lambda x, y: jax.lax.rem(x, jnp.full_like(x, y)), [(y,) for y in (1.0, -1.0, 0.25, -2.5, 1e8, INF)]),
}
BOXES = 48


def _boxes(rng: np.random.Generator, numbers: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of all widths: one-sided, across a kink, of one point, tiny and huge."""
    near = [0.0, 0.0, 1.0, -1.0, *(v for v in numbers if abs(v) < 1e6), *rng.normal(size=3), *(30 * rng.normal(size=3))]
    width = 10 ** rng.uniform(-6, 2, BOXES)
    lower = (rng.choice(near, BOXES) - width * rng.choice([0.5, 0.0, 1.0, 0.1, 1.2], BOXES)).astype(np.float32)
    upper = np.maximum(lower, (lower + width).astype(np.float32))
    upper[:3] = lower[:3]
    lower[3:7], upper[3:7] = (-1e30, 0, -1e-37, -1e-30), (1e30, 1e-37, 1e-37, 1e-30)
    return lower, upper


def _samples(lower: np.ndarray, upper: np.ndarray, numbers: tuple[float, ...]) -> np.ndarray:
    low, high, t = lower.astype(float), upper.astype(float), np.linspace(0, 1, 101)[:, None]
    near_zero = np.sinh(np.arcsinh(low) + t * (np.arcsinh(high) - np.arcsinh(low)))
    special = [np.full((1, BOXES), v) for v in (0.0, 1.0, *np.resize(numbers, 2))]
    return np.clip(np.concatenate([low + t * (high - low), near_zero, *special]).astype(np.float32), lower, upper)


def _bounded(method: Any, f: Callable[[jax.Array], jax.Array], box: mt.Interval) -> mt.Interval:
    """Bounds in floating point, NaN where nothing is known: under `vmap` that is no error."""
    batch = jax.vmap(method(f, sound=True))(jax.tree.map(lambda x: x[None], box))
    return jax.tree.map(lambda x: x[0], batch)


def _assert_holds(f: Callable[[jax.Array], jax.Array], box: mt.Interval, points: np.ndarray) -> None:
    with jax.enable_x64(True):
        exact = np.asarray(f(jnp.asarray(points, jnp.float64)))
    deployed = np.asarray(jax.jit(f)(jnp.asarray(points))).astype(np.float64)
    known = np.isfinite(deployed) & (np.abs(exact) < 3e38)
    for method in METHODS:
        out = _bounded(method, f, box)
        lower, upper = (np.asarray(end, np.float64) for end in (out.lower, out.upper))
        for values in (exact, deployed):
            outside = known & ((values < lower) | (values > upper))  # NaN certifies nothing
            i = tuple(np.argwhere(outside)[0]) if outside.any() else None
            assert i is None, (method.__name__, i, points[i], values[i], lower[i[1:]], upper[i[1:]])
        certified = (np.abs(lower) < 1e37) & (np.abs(upper) < 1e37)
        assert not np.any(np.isnan(deployed) & certified), method.__name__


@pytest.mark.parametrize("name", FAMILIES)
def test_bounds_hold_for_every_parameter(name: str) -> None:
    rng, (f, several) = np.random.default_rng(len(name)), FAMILIES[name]
    boxes = [_boxes(rng, numbers) for numbers in several]
    points = np.stack([_samples(*box, numbers) for box, numbers in zip(boxes, several, strict=True)], 1)
    factors = (rng.choice([-1, 1], len(several)) * 10 ** rng.uniform(-1, 1, len(several))).astype(np.float32)

    def each(x: jax.Array) -> jax.Array:
        """A row for each choice of the numbers, less a multiple of it."""
        rows = (x[..., i, :] for i in range(len(several)))
        cases = zip(rows, several, factors, strict=True)
        return jnp.stack([f(row, *numbers) - jnp.asarray(c, row.dtype) * row for row, numbers, c in cases], -2)

    _assert_holds(each, mt.Interval(*(jnp.stack(ends) for ends in zip(*boxes, strict=True))), points)


def test_celu_with_negative_alpha_is_not_taken_for_convex() -> None:
    box = mt.Interval(jnp.array(-3.0), jnp.array(-0.5))
    for sound, method in itertools.product((False, True), METHODS):
        out = method(lambda x: jax.nn.celu(x, -1.0) - 7.375 * x, sound=sound)(box)
        assert out.upper >= 8.361
        assert out.lower <= 3.0389


@pytest.mark.parametrize("f", [jax.nn.celu, jax.nn.elu, jax.nn.leaky_relu, FAMILIES["pow"][0]])
def test_parameters_that_are_no_numbers_certify_nothing_false(f: Callable[..., Any]) -> None:
    lower, upper = (np.resize(np.float32(x), BOXES) for x in ([-2, -1, 0, 0, 0.5], [-1, 1, 0, 2, 3]))
    box, points = mt.Interval(jnp.asarray(lower), jnp.asarray(upper)), _samples(lower, upper, (-1.0, 2.0))
    for alpha in (0.0, INF, -INF, NAN):
        _assert_holds(lambda x, alpha=alpha: f(x, alpha), box, points)


def test_a_remainder_of_a_division_by_zero_is_unknown() -> None:
    box = mt.Interval(jnp.array([1.0, 1.0]), jnp.array([2.0, 2.0]))
    for divisor in (0.0, NAN):
        out = _bounded(mt.ibp, lambda x, y=divisor: jax.lax.rem(x, jnp.array([y, 1.0])), box)
        assert np.isnan([out.lower[0], out.upper[0]]).all()
        np.testing.assert_allclose(out.upper[1], 1, rtol=1e-6)
