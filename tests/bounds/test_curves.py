"""Functions by their shape: lines and ranges are held against dense grids, their gradients against differences."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mixtrain_jax.bounds import curves
from mixtrain_jax.bounds.curves import Curve

CURVES = {name: value for name, value in vars(curves).items() if isinstance(value, Curve)}
CURVES |= {f"integer_pow({n})": curves.integer_pow(n) for n in (0, 1, 3, -2, -3)}
CURVES |= {f"power({p})": curves.power(p) for p in (0.3, 1.5, -0.5)}
CURVES |= {f"leaky_relu({a})": curves.leaky_relu(a) for a in (0.1, -0.5, 2.0)}
CURVES |= {f"elu({a})": curves.elu(a) for a in (1.67, -1.0)}
CURVES |= {"celu(2.0)": curves.celu(2.0), "relu6": curves.clamp(0.0, 6.0)}
KINKS = {"relu6": (0.0, 6.0), "celu(2.0)": (0.0,)} | {name: (0.0,) for name in CURVES if name[:3] in ("lea", "elu")}
SEEDS = st.integers(0, 2**31)
BOXES = 64
every_curve = pytest.mark.parametrize("name", CURVES)
# One of every shape, and all that have a way of their own through the code; each compiles for seconds.
SHAPES = ["ABS", "EXP", "LOG", "SQRT", "RECIPROCAL", "TANH", "CBRT", "GELU", "SIN", "relu6", "integer_pow(-2)"]
every_shape = pytest.mark.parametrize("name", SHAPES)
few = settings(max_examples=3)


def _features(name: str) -> np.ndarray:
    curve = CURVES[name]
    return np.array([*curve.critical, *curve.inflections, *KINKS.get(name, ())], np.float64)


def _boxes(name: str, seed: int, dtype: Any, widest: float = 1e3) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of all widths inside the domain: about 0, about where the curve bends, anywhere, of no width, of an ulp."""
    curve, rng = CURVES[name], np.random.default_rng(seed)
    width = 10 ** rng.uniform(-6, np.log10(widest), BOXES)
    anchor = rng.choice([0.0, 0.0, *_features(name), *rng.normal(size=8), *(30 * rng.normal(size=4))], BOXES)
    lower = anchor - width * rng.choice([0.5, 0.5, 0.0, 1.0, 0.1, 0.9, 0.99, 1.2], BOXES)
    lower, upper = lower.astype(dtype), (lower + width).astype(dtype)
    if curve.pole is not None:
        side = rng.choice([-1, 1], BOXES).astype(dtype)
        lower, upper = (side * (np.abs(x) + dtype(1e-3)) for x in (lower, upper))
    elif curve.domain[0] > -np.inf and curve.domain[1] == np.inf:
        closed = np.isfinite(curve.f(jnp.asarray(curve.domain[0])))
        lower, upper = (dtype(curve.domain[0] + (not closed) * 1e-3) + np.abs(x) for x in (lower, upper))
    elif curve.domain[0] > -np.inf:
        lower, upper = (np.clip(x, *np.array(curve.domain, dtype) * dtype(0.999)) for x in (lower, upper))
    lower, upper = np.minimum(lower, upper), np.maximum(lower, upper)
    upper[:4] = lower[:4]
    upper[4:8] = np.nextafter(lower[4:8], dtype(np.inf))
    return lower, upper


def _grid(name: str, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """2001 points of each box and more, among them those where something happens, `[points, boxes]`."""
    t = np.linspace(0, 1, 2001)[:, None]
    low, high = lower.astype(np.float64), upper.astype(np.float64)
    flat = low + t * (high - low)
    near_zero = np.sinh(np.arcsinh(low) + t[::4] * (np.arcsinh(high) - np.arcsinh(low)))
    features = np.broadcast_to(_features(name)[:, None], (len(_features(name)), BOXES))
    points = np.concatenate([flat, near_zero, features]).astype(lower.dtype)
    points[0], points[2000] = lower, upper
    return np.clip(points, lower, upper)


@functools.cache
def _evaluate(name: str) -> Callable[..., Any]:
    curve = CURVES[name]

    def evaluate(lower: jax.Array, upper: jax.Array, points: jax.Array) -> Any:
        both = [curves.lines(curve, lower, upper, slopes) for slopes in ("adaptive", "parallel")]
        return both, curves.extremes(curve, lower, upper), curve.f(points)

    return jax.jit(evaluate)


def _run(name: str, lower: np.ndarray, upper: np.ndarray) -> Any:
    points = _grid(name, lower, upper)
    both, extremes, values = jax.device_get(_evaluate(name)(lower, upper, points))
    assert values.dtype == lower.dtype == both[0].upper_offset.dtype == extremes[0].dtype
    double = functools.partial(jax.tree.map, lambda x: x.astype(np.float64))
    return double((points, values)), double(both), double(extremes)


def _assert_sound(name: str, seed: int, dtype: Any, ulps: float) -> None:
    lower, upper = _boxes(name, seed, dtype)
    (x, y), both, (low, high) = _run(name, lower, upper)
    finite, size = np.isfinite(y).all(0), np.maximum(np.abs(lower), np.abs(upper)).astype(np.float64)
    eps, flushed = ulps * np.finfo(dtype).eps, 8 * float(np.finfo(dtype).tiny)
    for lines in both:
        assert all(np.isfinite(part).all() for part in lines)
        with np.errstate(invalid="ignore", over="ignore"):
            for slope, offset, sign in ((lines[0], lines[1], 1), (lines[2], lines[3], -1)):
                # An offset is a difference of values and products with ends, and values round as their operands do.
                slack = eps * (np.abs(slope) * size + np.abs(offset) + np.abs(y) + np.minimum(size, 1)) + flushed
                assert np.all((sign * (slope * x + offset - y) <= slack)[:, finite])
    inside = eps * (np.abs(y) + np.minimum(size, 1)) + flushed
    with np.errstate(invalid="ignore"):
        assert np.all((low <= y + inside)[:, finite])
        assert np.all((y - inside <= high)[:, finite])
        # Ranges are exact: both ends are values, to rounding and, where a periodic curve turns, to the grid.
        loose = inside.max(0) + (((upper - lower) / 2000) ** 2 if CURVES[name].period else 0)
        assert np.all((low >= y.min(0) - loose)[finite])
        assert np.all((high <= y.max(0) + loose)[finite])


@every_curve
@few
@given(seed=SEEDS)
def test_lines_and_ranges_hold_a_grid_in_float64(name: str, seed: int) -> None:
    with jax.enable_x64(True):
        _assert_sound(name, seed, np.float64, ulps=16)  # 4e-15, some way below 1e-12


@pytest.mark.parametrize("name", [*SHAPES, "GELU_TANH"])
@few
@example(seed=1)  # wide boxes in which tanh is flat but for rounding
@given(seed=SEEDS)
def test_lines_and_ranges_hold_a_grid_in_float32(name: str, seed: int) -> None:
    _assert_sound(name, seed, np.float32, ulps=8)


def _envelope(x: np.ndarray, y: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Concave envelope of points at the midpoint: over all slopes the least of the highest line's value there."""
    order = np.argsort(x, 0)
    x, y = np.take_along_axis(x, order, 0), np.take_along_axis(y, order, 0)
    run = np.diff(x, axis=0)
    slopes = np.where(run > 0, np.diff(y, axis=0) / np.where(run > 0, run, 1), 0)
    low, high, best = slopes.min(0) - 1e-9, slopes.max(0) + 1e-9, np.full(middle.shape, np.inf)
    for _ in range(60):
        slope = (low + high) / 2
        heights = y - slope * (x - middle)
        top = heights.argmax(0)
        best = np.minimum(best, heights.max(0))
        ahead = np.take_along_axis(x, top[None], 0)[0] > middle
        low, high = np.where(ahead, slope, low), np.where(ahead, high, slope)
    return best


@pytest.mark.usefixtures("x64")
@every_curve
def test_adaptive_lines_support_the_envelopes_at_the_midpoint(name: str) -> None:
    curve = CURVES[name]
    lower, upper = _boxes(name, 1, np.float64, widest=6.0 if curve.period else 30.0)
    (x, y), (lines, _), _ = _run(name, lower, upper)
    middle, end = lower + (upper - lower) / 2, np.maximum(np.abs(lower), np.abs(upper))
    chord = y[0] + (x - lower) * ((y[2000] - y[0]) / np.where(upper > lower, upper - lower, 1))
    gap = np.abs(y - chord).max(0)
    # Rounding, the resolution of the grid (2e-6 of the gap), and for several inflections that of the search.
    rounding = 1e-13 * (np.abs(lines.upper_slope * end) + np.abs(lines.lower_slope * end) + np.abs(y).max(0) + 1)
    slack = rounding + gap * (5e-6 if len(curve.inflections) < 2 else 1e-4)
    known = np.abs(y).max(0) < 1e100  # above constants are the lines
    above = lines.upper_slope * middle + lines.upper_offset
    below = lines.lower_slope * middle + lines.lower_offset
    assert known.sum() > BOXES // 2
    assert np.all((above <= _envelope(x, y, middle) + slack)[known])
    assert np.all((below >= -_envelope(x, -y, middle) - slack)[known])


@every_shape
def test_parallel_lines_share_one_slope(name: str) -> None:
    def check(x: jax.Array) -> None:
        parallel = curves.lines(CURVES[name], x, x, "parallel")
        adaptive = curves.lines(CURVES[name], x, x, "adaptive")
        assert parallel.lower_slope is parallel.upper_slope
        assert adaptive.lower_slope is not adaptive.upper_slope

    jax.eval_shape(check, jnp.ones(2))


MAGNITUDES = np.array([0.0, 1e-300, 1e-20, 1.0, 3.0, 1e18, 1e120, 1e150, 1e300, np.inf])


@pytest.mark.usefixtures("x64")
@every_shape
def test_boxes_of_any_size_and_off_the_domain_are_bounded(name: str) -> None:
    """No NaN and no value outside, where numbers overflow, vanish or are infinite or where there is no function."""
    ends = np.unique([*MAGNITUDES, *-MAGNITUDES])
    rows = len(_grid(name, np.zeros(BOXES), np.ones(BOXES)))
    points = np.resize([*ends, *np.linspace(-9, 9, 101), 0.5, -0.5, 1e10, -1e10], rows)[:, None]
    weights = np.random.default_rng(0).uniform(0.5, 1.5, 10)
    pairs = ends[np.stack(np.triu_indices(len(ends)))]
    for k in range(0, pairs.shape[1], BOXES):
        lower, upper = pairs[:, np.arange(k, k + BOXES) % pairs.shape[1]]
        x = np.clip(points, lower, upper)
        both, (low, high), y = jax.device_get(_evaluate(name)(lower, upper, x))
        assert not np.isnan(low).any()
        assert not np.isnan(high).any()
        with np.errstate(invalid="ignore", over="ignore"):
            slack = 1e-14 * (np.where(np.isfinite(y), np.abs(y), 0) + np.minimum(np.abs(x), 1))
            assert np.all(((low <= y + slack) & (y - slack <= high))[~np.isnan(y)])
            size, known = np.maximum(np.abs(lower), np.abs(upper)), np.isfinite(x) & np.isfinite(y)
            for lines in both:
                assert all(np.isfinite(part).all() for part in lines)
                for slope, offset, sign in ((lines[0], lines[1], 1), (lines[2], lines[3], -1)):
                    slack = 1e-14 * (np.abs(np.where(slope, slope * size, 0)) + np.abs(offset) + np.abs(y) + 1)
                    assert np.all((sign * (slope * x + offset - y) <= slack)[known])
        finite = np.isfinite(lower) & np.isfinite(upper)
        gradients = _gradients(name)(weights, np.where(finite, lower, 0), np.where(finite, upper, 0))[1]
        assert np.isfinite(gradients).all()


def test_ranges_stop_where_the_domain_does() -> None:
    def range_of(name: str, lower: float, upper: float) -> list[float]:
        found = jax.jit(functools.partial(curves.extremes, CURVES[name]))(jnp.float32(lower), jnp.float32(upper))
        return [float(x) for x in found]

    assert range_of("SQRT", 0.0, 4.0) == [0.0, 2.0]
    assert range_of("LOG", 0.0, 1.0) == [-np.inf, 0.0]
    for name, lower, upper in (("SQRT", -1.0, 4.0), ("LOG", -1.0, 1.0), ("RECIPROCAL", -1.0, 2.0), ("TAN", 1.0, 2.0)):
        assert range_of(name, lower, upper) == [-np.inf, np.inf]
    assert range_of("RECIPROCAL", -2.0, -0.5) == [-2.0, -0.5]
    assert range_of("SIN", -np.inf, 2.0) == [-1.0, 1.0]
    assert range_of("SIN", 1e6, 1e6 + 1) == [-1.0, 1.0]


@pytest.mark.parametrize("slopes", ["adaptive", "parallel"])
def test_thresholds_of_entries_vmap_and_small_dtypes(slopes: Any) -> None:
    """Thresholds broadcast against a box, also under `vmap`, and a batch is its examples."""
    low, high = jnp.array([-1.0, 0.0, -0.5]), jnp.array([1.0, 0.5, 2.0])
    curve = curves.clamp(low, high)
    lower = jnp.linspace(-3.0, 1.0, 12).reshape(4, 3)
    batch = jax.jit(lambda x: jax.vmap(lambda x: curves.lines(curve, x, x + 2, slopes))(x))(lower)
    single = jax.jit(lambda x: curves.lines(curve, x, x + 2, slopes))(lower[1])
    for whole, part in zip(batch, single, strict=True):
        np.testing.assert_allclose(whole[1], part, rtol=1e-6, atol=1e-6)
    t = jnp.linspace(0.0, 2.0, 41)[:, None, None] + lower[None]
    y = jnp.minimum(jnp.maximum(t, low[None, None]), high[None, None])
    assert jnp.all(batch.lower_slope[None] * t + batch.lower_offset[None] <= y + 2e-6)
    assert jnp.all(y <= batch.upper_slope[None] * t + batch.upper_offset[None] + 2e-6)
    for name in ("TANH", "EXP"):
        rough = lower.astype(jnp.bfloat16)
        lines = jax.jit(lambda x, name=name: curves.lines(CURVES[name], x, x + 2, slopes))(rough)
        assert all(part.dtype == jnp.bfloat16 and jnp.isfinite(part).all() for part in lines)
        s, o, steep, top = (part.astype(jnp.float32)[None] for part in lines)
        x = jnp.linspace(0.0, 1.0, 41)[:, None, None] * (rough + 2 - rough).astype(jnp.float32)[None]
        x = x + rough.astype(jnp.float32)[None]
        slack = 2.0**-5 * (1 + jnp.abs(CURVES[name].f(x)))  # four ulps
        assert jnp.all((s * x + o <= CURVES[name].f(x) + slack) & (CURVES[name].f(x) <= steep * x + top + slack))


def _mixture(name: str, weights: jax.Array, lower: jax.Array, upper: jax.Array) -> jax.Array:
    """The two ends of the range and the arrays of both lines of both kinds, in one sum a box."""
    curve = CURVES[name]
    lines = [curves.lines(curve, lower, upper, slopes) for slopes in ("adaptive", "parallel")]
    parts = (*curves.extremes(curve, lower, upper), *lines[0], *lines[1])
    return sum(weight * part for weight, part in zip(weights, parts, strict=True))


@functools.cache
def _gradients(name: str) -> Callable[..., Any]:
    """Mixtures and their gradients with respect to lower ends and to upper ends."""

    def gradients(weights: jax.Array, lower: jax.Array, upper: jax.Array) -> Any:
        mixture, pull = jax.vjp(functools.partial(_mixture, name, weights), lower, upper)
        return mixture, pull(jnp.ones_like(mixture))

    return jax.jit(gradients)


@pytest.mark.usefixtures("x64")
@every_shape
def test_gradients_are_finite_and_those_of_differences(name: str) -> None:
    curve, step = CURVES[name], 1e-6
    run = functools.partial(_gradients(name), np.random.default_rng(0).uniform(0.5, 1.5, 10))
    lower, upper = _boxes(name, 2, np.float64)
    assert all(np.isfinite(part).all() for part in run(lower, upper)[1])
    # Generic boxes: of middling width, and none of their ends or midpoints where something happens.
    lower, upper = _boxes(name, 3, np.float64, widest=4.0)
    lower, upper = lower + 0.0137, np.maximum(upper, lower + 0.2) + 0.0291
    keep = (np.abs(lower + upper) < 20) & (upper < curve.domain[1] - 0.1)
    if curve.pole is not None:
        keep &= lower * upper > 0.01
    assert keep.sum() > 10
    lower, upper = (np.where(keep, x, 0.3 + k) for k, x in enumerate((lower, upper)))
    value, (by_lower, by_upper) = run(lower, upper)
    for gradient, a, b in ((by_lower, step, 0), (by_upper, 0, step)):
        difference = (run(lower + a, upper + b)[0] - run(lower - a, upper - b)[0]) / (2 * step)
        close = np.isclose(gradient, difference, rtol=1e-5, atol=1e-7 * (1 + np.abs(value)) / step * 1e-2)
        assert np.all(close), (lower[~close], upper[~close], gradient[~close], difference[~close])
