"""`sound=True` holds in floating point, with no tolerance: against exact rationals and nets as they are deployed."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit, optimizing_jit

import mixtrain_jax as mt
from mixtrain_jax.bounds import rules
from mixtrain_jax.bounds.tape import record

METHODS = {
    "ibp": mt.ibp,
    "crown_ibp": mt.crown_ibp,
    "symbolic": mt.symbolic,
    "crown": mt.crown,
    "alpha_crown": functools.partial(mt.alpha_crown, steps=1),
}
exactly = np.vectorize(lambda v: Fraction(float(v)), otypes=[object])
RATIONAL = SimpleNamespace(
    dot=lambda x, w: x @ exactly(w),
    array=exactly,
    relu=lambda x: np.maximum(x, Fraction(0)),
    join=np.concatenate,
    cumsum=np.cumsum,
    total=lambda x: np.sum(x, keepdims=True),
)
FLOAT = SimpleNamespace(
    dot=lambda x, w: x @ jnp.asarray(w),
    array=jnp.asarray,
    relu=jax.nn.relu,
    join=jnp.concatenate,
    cumsum=jnp.cumsum,
    total=lambda x: jnp.sum(x, keepdims=True),
)
Net = Callable[..., Any]


def _nets() -> Iterator[tuple[str, Net, tuple[np.ndarray, ...]]]:
    """Names, networks of an arithmetic, an input and constants, and the constants; a network may come with several."""
    rng = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (rng.normal(size=shape) * scale).astype(np.float32)

    w, b = (
        [normal(6, 8, scale=0.5), normal(8, 8, scale=0.5), normal(8, 4, scale=0.5)],
        [normal(8), normal(8), normal(4)],
    )

    def mlp(m: Any, x: Any) -> Any:
        h = m.relu(m.dot(m.relu(m.dot(x, w[0]) + m.array(b[0])), w[1]) + m.array(b[1]))
        return m.dot(h, w[2]) + m.array(b[2])

    def in_one_layer(m: Any, x: Any, c: Any) -> Any:
        return m.dot(m.relu((m.dot(x, w[0]) + m.array(c)) - m.array(c)), w[2])

    def unevenly(m: Any, x: Any, c: Any) -> Any:
        return m.dot(m.relu(((m.dot(x, w[0]) + m.array(c)) - m.array(b[1])) - m.array(c)), w[2])

    def over_layers(m: Any, x: Any, c: Any) -> Any:
        h = m.dot(m.relu(m.dot(x, w[0]) + m.array(c)), np.eye(8, dtype=np.float32))
        return m.dot(m.relu(h - m.array(c)), w[2])

    def behind_relu(m: Any, x: Any, c: Any) -> Any:
        return m.relu(m.dot(x, w[0]) + m.array(c)) - m.array(c)

    def behind_residuals(m: Any, x: Any, c: Any) -> Any:
        h = m.dot(x, w[0])
        return m.dot((h + m.array(c)) - m.relu(h - m.array(b[0])) - m.array(c) + m.relu(h), w[2])

    def folded_batch_norm(m: Any, x: Any, wide: Any, fold: Any) -> Any:
        return m.dot(m.relu(m.dot(x, wide)), fold)

    yield "mlp", mlp, ()
    for e in (10, 25, 40):
        large = np.full(8, 2.0**e, np.float32)
        uneven = (normal(8) * 2.0**e).astype(np.float32)
        column = np.concatenate([normal(6, 4), normal(6, 4) * np.float32(2.0**e)], 1)
        fold = np.concatenate([normal(4, 3), np.zeros((4, 3), np.float32)])
        fold[4], fold[5] = 2.0**-10, -(2.0**-10)
        yield f"in one layer {e}", in_one_layer, (large,)
        yield f"unevenly {e}", unevenly, (uneven,)
        yield f"over layers {e}", over_layers, (large,)
        yield f"relu(x + c) - c {e}", behind_relu, (large,)
        yield f"behind residuals {e}", behind_residuals, (large,)
        yield f"as folded batch norm {e}", folded_batch_norm, (column, fold)
    yield "cumsum", lambda m, x: m.cumsum(m.relu(m.cumsum(m.dot(x, w[0]) * m.array(b[0])))), ()
    yield (
        "total",
        lambda m, x: m.total(m.relu(m.dot(x, w[0]))) - m.total(m.dot(x, w[0])) * m.array(np.float32(0.5)),
        (),
    )


NETS = {name: (net, constants) for name, net, constants in _nets()}


@functools.cache
def _bound(net: Net, method: str) -> Callable[..., mt.Interval]:
    def bound(lower: Any, upper: Any, *constants: Any) -> mt.Interval:
        return METHODS[method](lambda x: net(FLOAT, x, *constants), sound=True)(mt.Interval(lower, upper))

    return jit(bound)


@functools.cache
def _deployed(net: Net) -> Callable[..., jax.Array]:
    return optimizing_jit(functools.partial(net, FLOAT))


@pytest.mark.parametrize("name", NETS)
def test_boxes_enclose_exact_rationals_and_deployed_outputs(name: str) -> None:
    (net, constants), rng = NETS[name], np.random.default_rng(1)
    exact = [exactly(c) for c in constants]
    for eps in (0.0, None, 1e-7, 1e-5, 1e-4, 0.03):
        x = rng.normal(size=6).astype(np.float32)
        lower, upper = x, np.nextafter(x, np.float32(np.inf))
        if eps is not None:
            lower, upper = map(np.asarray, (mt.linf_ball(x, eps).lower, mt.linf_ball(x, eps).upper))
        points = [lower, upper, *(np.where(rng.random(6) < 0.5, lower, upper) for _ in range(4))]
        reached = [net(RATIONAL, exactly(p), *exact) for p in points]
        reached = np.stack(reached + [exactly(_deployed(net)(p, *constants)) for p in points])
        least, greatest = reached.min(0), reached.max(0)
        for method in METHODS if name in ("mlp", "over layers 25") else ("ibp", "crown"):
            box = _bound(net, method)(lower, upper, *constants)
            assert np.all(exactly(box.lower) <= least), (method, eps)
            assert np.all(greatest <= exactly(box.upper)), (method, eps)


def _holds(f: Callable[..., Any], x: Any, truth: float, radius: float = 0.0) -> None:
    x, keys = jnp.asarray(x), ("ibp", "crown_ibp", "crown")
    boxes = jit(lambda ball: [METHODS[key](f, sound=True)(ball) for key in keys])(mt.Interval(x - radius, x + radius))
    for key, box in zip(keys, boxes, strict=True):
        lower, upper = float(box.lower.reshape(-1)[0]), float(box.upper.reshape(-1)[0])
        assert lower <= truth <= upper or np.isnan(lower + upper), (key, lower, upper)


BIG = np.float32(2.0**25)


@pytest.mark.parametrize(
    ("f", "x", "truth"),
    [
        (lambda x: jnp.zeros(1).at[jnp.array([0, 0, 0])].add(x), [BIG, 1.0, -BIG], 1.0),
        (lambda x: jax.ops.segment_sum(x, jnp.array([0, 0, 0]), 1), [BIG, 1.0, -BIG], 1.0),
        (lambda x: (x @ jnp.full((1000, 1), 9e-20)) * 1e36, np.full(1000, 1e-19, np.float32), 9.0),
        (lambda x: jnp.cosh(x), [50.62], np.cosh(float(np.float32(50.62)))),
        (lambda x: jax.lax.exp2(x), [-100.65], 2.0 ** float(np.float32(-100.65))),
        (lambda x: jax.lax.integer_pow(x, 100), [-1.4227], float(np.float32(-1.4227)) ** 100),
        (lambda x: (x + 3e8).sum() - 9e8, [1.0, 2.0, 3.0], 6.0),
        (lambda x: jnp.cumsum(x)[-1:], [BIG, 1.0, -BIG], 1.0),
        (lambda x: x / x, [3e-39 * 1e5], 1.0),
        (lambda x: (x * x - x) * x, [1e10], (1e20 - 1e10) * 1e10),
    ],
)
def test_known_traps(f: Callable[..., Any], x: Any, truth: float) -> None:
    _holds(f, np.asarray(x, np.float32), truth)


def test_vanishing_coefficients_never_certify() -> None:
    def first(x: jax.Array) -> jax.Array:
        return jnp.stack([x[1] * 1e-30, x[0] * 1e-30 * 1e-30])

    def second(x: jax.Array) -> jax.Array:
        small = jnp.maximum(x[0] * 0 + 1e-35, 0)
        return jnp.stack([small, jax.nn.relu(x[0] * 1e20 * 1e-25 * 1e-25 + x[1] * 1e-36)])

    for f, point in ((first, [1e38, 1e5]), (second, [1.0, 1.0])):
        x = jnp.asarray(point, jnp.float32)
        for method in METHODS.values():
            margin = mt.margins(functools.partial(method, sound=True), f)(mt.Interval(x, x), jnp.array(0))
            assert not margin[0] > 0


@pytest.mark.parametrize(
    "f",
    [
        lambda x: jnp.stack([jnp.where(x[0] * jnp.nan > 0, -2.0, 2.0), x[1]]),
        lambda x: jnp.stack([jnp.where(jnp.isnan(x[0] * jnp.nan), -2.0, 2.0), x[1]]),
        lambda x: jnp.stack([2 + jax.nn.sigmoid(jnp.tanh(x[0] * jnp.nan)), x[1]]),
        lambda x: jnp.stack([2 + jax.nn.sigmoid(jnp.log(x[0] - 5)), x[1]]),
        lambda x: jnp.stack([2 + jax.nn.sigmoid(jnp.sqrt(x[0] - 0.5)), x[1]]),
        lambda x: jnp.stack([2 + jax.nn.sigmoid(jax.nn.sigmoid((x[0] - 0.5) / (x[0] - 0.5))), x[1]]),
        lambda x: jnp.stack([jax.nn.relu(x[0] * jnp.nan) + 2, x[1]]),
    ],
)
@pytest.mark.parametrize("sound", [False, True])
def test_nan_never_certifies(f: Callable[..., Any], sound: bool) -> None:
    ball = mt.linf_ball(jnp.array([0.5, 0.5]), 0.1)
    for method in METHODS.values():
        margin = mt.margins(functools.partial(method, sound=sound), f)
        with contextlib.suppress(mt.BoundsError):  # NaN is reported where there is any
            assert not margin(ball, jnp.array(0))[0] > 0
        (silent,) = jax.vmap(lambda b, margin=margin: margin(b, jnp.array(0)))(jax.tree.map(lambda x: x[None], ball))
        assert not silent[0] > 0


def test_overflow_inside_the_bound_does_not_decide_a_predicate() -> None:
    ball = mt.Interval(jnp.full(2, -3e38), jnp.full(2, 3e38))
    box = mt.ibp(lambda x: jnp.where(x @ jnp.zeros((2, 1)) > -1, -1.0, 1.0), sound=True)(ball)
    assert not box.lower[0] > -1


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_a_sum_is_inside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=300).astype(np.float32), rng.normal(size=300).astype(np.float32)
    products = x * w
    orders = [products, products[::-1], np.sort(products), *(rng.permutation(products) for _ in range(5))]
    sums = [functools.reduce(lambda a, b: np.float32(a + b), order) for order in orders]
    sums += [np.sum(products), np.float32(sum(map(Fraction, map(float, products))))]
    for key in ("ibp", "crown_ibp"):
        box = METHODS[key](lambda v: v @ jnp.asarray(w)[:, None], sound=True)(
            mt.Interval(jnp.asarray(x), jnp.asarray(x))
        )
        assert float(box.lower[0]) <= min(sums) <= max(sums) <= float(box.upper[0])


def test_the_default_precision_changes_nothing() -> None:
    f = functools.partial(NETS["mlp"][0], FLOAT)
    ball = mt.linf_ball(jnp.arange(6.0), 0.1)
    for method in (mt.ibp, mt.crown):
        expected = jit(method(f, sound=True))(ball)
        for precision in ("bfloat16", "tensorfloat32"):
            with jax.default_matmul_precision(precision):
                found = jit(method(f, sound=True))(ball)
            np.testing.assert_array_equal(expected.lower, found.lower)
            np.testing.assert_array_equal(expected.upper, found.upper)


def test_what_is_robust_by_construction_is_certified() -> None:
    x = jnp.asarray(np.random.default_rng(0).random((5, 64)), jnp.float32)
    w = jnp.zeros((64, 3)).at[:, 0].set(1 / 64)
    for method in METHODS.values():
        margin = mt.margins(functools.partial(method, sound=True), lambda v: jax.nn.relu(v @ w) @ jnp.eye(3))
        assert np.all(jit(margin)(mt.linf_ball(x, 0.1, (0.0, 1.0)), jnp.zeros(5, int)) > 0.2)


@pytest.mark.parametrize("eps", [0.01, 0.1])
def test_ordinary_bounds_widen_little(eps: float) -> None:
    """By the largest logit, at most 1e-3: worst-case error bounds of sums of 64 and 100 terms allow no less."""
    rng = np.random.default_rng(0)
    w1, w2 = (jnp.asarray(rng.normal(size=s) * (2 / s[0]) ** 0.5, jnp.float32) for s in ((64, 100), (100, 10)))
    ball = mt.linf_ball(jnp.asarray(rng.random(64), jnp.float32), eps, (0.0, 1.0))
    for method in (mt.ibp, mt.crown_ibp, mt.symbolic, mt.crown):
        plain, sound = (jit(method(lambda x: jax.nn.relu(x @ w1) @ w2, sound=s))(ball) for s in (False, True))
        wider = jnp.maximum(plain.lower - sound.lower, sound.upper - plain.upper)
        assert wider.min() > 0
        assert wider.max() < 1e-3 * jnp.abs(jnp.stack([plain.lower, plain.upper])).max()


@pytest.mark.parametrize(("feature_groups", "batch_groups"), [(1, 1), (2, 1), (1, 2)])
def test_terms_of_a_convolution_are_counted(feature_groups: int, batch_groups: int) -> None:
    """With ones for weights and coefficients, sums are how many terms they have: of the map, and of its transpose."""
    for size, stride, dilation, spread, padding in itertools.product((1, 3, 4), (1, 2, 3), (1, 2), (1, 2), ((2, 1),)):
        kernel, x = np.ones((size, 4 // feature_groups, 4), np.float32), jnp.ones((2, 13, 4))

        def conv(v: jax.Array, kernel=kernel, stride=stride, dilation=dilation, spread=spread, padding=padding) -> Any:
            layout = ("NWC", "WIO", "NWC")
            return jax.lax.conv_general_dilated(
                v, kernel, (stride,), [padding], (spread,), (dilation,), layout, feature_groups, batch_groups
            )

        (op,) = record(conv, (mt.Interval(x, x),), lambda ops, _: ops).ops
        theirs, ours = rules.find(op).terms(op)
        sums, (counts,) = jit(lambda x, y, conv=conv: (conv(x), jax.linear_transpose(conv, x)(y)))(
            x, jnp.ones(op.outputs[0].shape)
        )
        assert sums.max() <= theirs == size * 4 // feature_groups
        assert counts.max() <= ours
        if (spread, dilation, batch_groups) == (1, 1, 1) and size >= stride:
            assert counts.max() == ours  # as few as there are
