"""The 31 operations that bound libraries are compared by, each between two affine maps, by every method.

Bounds are computed in float32 as users compute them, and held against what points, corners and attacked points of the
same boxes reach in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mixtrain_jax as mt

Net = Callable[[jax.Array], jax.Array]

METHODS = {"ibp": mt.ibp, "crown_ibp": mt.crown_ibp, "symbolic": mt.symbolic, "crown": mt.crown}


@pytest.fixture(scope="module", autouse=True)
def promotion_as_users_have_it() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# --- what a function reaches, and whether a bound holds it ----------------------------------------------------------


def boxes(shape: tuple[int, ...]) -> mt.Interval:
    """A point, small and large boxes, one symmetric about 0, and 16 in which one or two entries alone vary.

    The last are where bounds touch what is reached, for on a line every neuron is at an end of its box at once.

    Returns:
      Boxes `[23, *shape]`.
    """
    rng = np.random.default_rng(0)
    eps = np.array([0.0, 1e-4, 0.02, 0.1, 0.3, 1.0, 0.5, *[0.03, 0.1, 0.3, 1.0, 1.0, 2.0, 0.5, 0.5] * 2], np.float32)
    centers = rng.uniform(-1, 1, (len(eps), np.prod(shape))).astype(np.float32)
    radii = np.repeat(eps[:, None], centers.shape[1], 1)
    for i in range(7, len(eps)):
        radii[i] = 0
        radii[i, rng.choice(centers.shape[1], 1 + (i >= 15), replace=False)] = eps[i]
    centers[[6, 13, 14, 21, 22]] = 0
    return mt.Interval((centers - radii).reshape(-1, *shape), (centers + radii).reshape(-1, *shape))


def reached(f: Net, ball: mt.Interval, samples: int = 300, steps: int = 6) -> mt.Interval:
    """What `f`, a vector of one example, takes in float64 over a batch of boxes.

    Args:
      f: the function.
      ball: boxes, `[n, ...]`.
      samples: points of each box, half of them corners.
      steps: of the ascent of every output and its negative from one of them; 0 for none.

    Returns:
      The least and the greatest value of every output in every box, `[n, outputs]`.
    """
    t = np.random.default_rng(1).random((samples, *ball.shape[1:]))
    t[: samples // 2] = t[: samples // 2].round()

    def of_box(lower: jax.Array, upper: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        points = lower + t * (upper - lower)
        values = jax.vmap(f)(points)
        if steps:
            values = jnp.concatenate([values, attacked(lower, upper, points[-1], values.shape[1])])
        return values.min(0), values.max(0)

    def attacked(lower: jax.Array, upper: jax.Array, start: jax.Array, outputs: int) -> jax.Array:
        directions = jnp.concatenate([jnp.eye(outputs), -jnp.eye(outputs)])
        slopes = jax.vmap(jax.grad(lambda x, c: c @ f(x)))

        def step(x: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = jnp.clip(x + size * (upper - lower) * jnp.sign(slopes(x, directions)), lower, upper)
            return x, jax.vmap(f)(x)

        starts = jnp.broadcast_to(start, (len(directions), *start.shape))
        return lax.scan(step, starts, 0.5 ** jnp.arange(steps))[1].reshape(-1, outputs)

    with jax.enable_x64(True):
        ends = (np.asarray(end, np.float64) for end in (ball.lower, ball.upper))
        found = jax.device_get(jax.jit(jax.vmap(of_box, (0, 0, None)))(*ends, t))
    assert found[0].dtype == np.float64
    return mt.Interval(*found)


def one_by_one(bound: Callable[..., mt.Interval], *batch: Any) -> mt.Interval:
    """A compiled bound of each example of a batch; mapped, it would take up to twice as long to trace and compile."""
    count = len(jax.tree.leaves(batch)[0])
    found = [bound(*jax.tree.map(lambda leaf, i=i: leaf[i], batch)) for i in range(count)]
    return jax.tree.map(lambda *ends: np.stack(ends), *jax.device_get(found))


def assert_holds(bound: mt.Interval, values: mt.Interval, ulps: float = 8, dtype: Any = np.float32) -> None:
    """Fail unless a bound is finite and holds the values reached, up to round-off of the bound's own arithmetic."""
    lower, upper = np.asarray(bound.lower, np.float64), np.asarray(bound.upper, np.float64)
    assert lower.shape == values.shape
    assert np.all(np.isfinite(lower)), "the lower bound is not finite"
    assert np.all(np.isfinite(upper)), "the upper bound is not finite"
    size = 1 + np.maximum(np.abs(values.lower), np.abs(values.upper)).max(-1, keepdims=True)
    slack = ulps * float(jnp.finfo(dtype).eps) * size
    below, above = lower - values.lower, values.upper - upper
    assert np.all(below <= slack), f"the lower bound excludes a value by {(below / slack).max():g} times the slack"
    assert np.all(above <= slack), f"the upper bound excludes a value by {(above / slack).max():g} times the slack"


# --- the nets -------------------------------------------------------------------------------------------------------


def weights(seed: int, *shape: int) -> np.ndarray:
    """Fixed float32 weights, scaled to keep the size of what they are applied to; drawn when a net is traced."""
    scale = (np.prod(shape[:-1]) if len(shape) > 1 else 10) ** -0.5
    return (np.random.default_rng([seed, *shape]).normal(size=shape) * scale).astype(np.float32)


def dense(x: jax.Array, features: int, seed: int = 0) -> jax.Array:
    return x @ weights(seed, x.shape[-1], features) + weights(seed, features)


def conv(x: jax.Array, features: int, seed: int = 0, groups: int = 1, size: int = 3, dilation: int = 1) -> jax.Array:
    """A convolution of one image, `[height, width, channels]`, that keeps its height and width."""
    kernel = jnp.asarray(weights(seed, size, size, x.shape[-1] // groups, features), x.dtype)
    y = lax.conv_general_dilated(
        x[None],
        kernel,
        (1, 1),
        "SAME",
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return y[0] + weights(seed, features)


def _entries(op: Net) -> tuple[Net, tuple[int, ...]]:
    """An op on a vector; no bias before it, so that boxes about 0 stay symmetric."""
    return lambda x: dense(op(2 * x @ weights(0, 6, 8)).ravel(), 3, 1), (6,)


def _tokens(op: Net) -> tuple[Net, tuple[int, ...]]:
    return lambda x: dense(op(dense(x, 4)).ravel(), 3, 1), (3, 4)


def _image(op: Net) -> tuple[Net, tuple[int, ...]]:
    return lambda x: dense(op(conv(x, 4)).ravel(), 3, 1), (5, 5, 2)


def _gelu(x: jax.Array) -> jax.Array:
    return jnp.stack([jax.nn.gelu(x, approximate=True), jax.nn.gelu(x, approximate=False)])


def _self_attention(x: jax.Array) -> jax.Array:
    query, key, value = (dense(x, 4, seed) for seed in (2, 3, 4))
    return jax.nn.softmax(query @ key.T / 2) @ value


def _layer_norm(x: jax.Array) -> jax.Array:
    return nn.LayerNorm().apply({"params": {"scale": 1 + weights(2, 4), "bias": weights(3, 4)}}, x)


def _group_norm(x: jax.Array) -> jax.Array:
    return nn.GroupNorm(2).apply({"params": {"scale": 1 + weights(2, 4), "bias": weights(3, 4)}}, x[None])


def _batch_norm(x: jax.Array) -> jax.Array:
    variables = {
        "params": {"scale": 1 + weights(2, 4), "bias": weights(3, 4)},
        "batch_stats": {"mean": weights(4, 4), "var": 0.5 + weights(5, 4) ** 2},
    }
    return jax.nn.relu(nn.BatchNorm(use_running_average=True).apply(variables, x[None]))


def _residual(x: jax.Array) -> jax.Array:
    return jax.nn.relu(x + dense(jax.nn.relu(dense(x, 8, 2)), 8, 3))


def _transposed(x: jax.Array) -> jax.Array:
    kernel = jnp.asarray(weights(2, 3, 3, 4, 3), x.dtype)
    return jax.nn.relu(lax.conv_transpose(x[None], kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))


def _bilinear(x: jax.Array) -> jax.Array:
    a, b = dense(x, 4, 2), dense(x, 4, 3)
    return jnp.concatenate([a * b, jnp.einsum("i,ijk,j->k", a, weights(4, 4, 4, 4), b), (a @ b)[None]])


# Name -> a net of one example with outputs `[3]`, and the shape of the example.
PROBES: dict[str, tuple[Net, tuple[int, ...]]] = {
    "relu": _entries(jax.nn.relu),
    "leaky_relu": _entries(jax.nn.leaky_relu),
    "sigmoid": _entries(jax.nn.sigmoid),
    "silu": _entries(jax.nn.silu),
    "tanh": _entries(jnp.tanh),
    "softplus": _entries(jax.nn.softplus),
    "exp": _entries(jnp.exp),
    "abs": _entries(jnp.abs),
    "elu": _entries(jax.nn.elu),
    "gelu": _entries(_gelu),
    "clip": _entries(lambda x: jnp.clip(x, -0.5, 0.7)),
    "sin": _entries(lambda x: jnp.sin(2 * x)),
    "sqrt(x^2+1)": _entries(lambda x: jnp.sqrt(x**2 + 1)),
    "x*x": _entries(lambda x: x * x),
    "max(x,y)": _entries(lambda x: jnp.maximum(x[:4], x[4:])),
    "softmax": _entries(jax.nn.softmax),
    "log_softmax": _entries(jax.nn.log_softmax),
    "self_attention": _tokens(_self_attention),
    "layer_norm": _tokens(_layer_norm),
    "group_norm": _image(_group_norm),
    "batch_norm": _image(_batch_norm),
    "residual": _entries(_residual),
    "global_mean": _image(lambda x: jax.nn.relu(x).mean((0, 1))),
    "average_pool": _image(lambda x: nn.avg_pool(jax.nn.relu(x), (2, 2), (2, 2))),
    "max_pool_2": _image(lambda x: nn.max_pool(x, (2, 2), (2, 2))),
    "max_pool_3_stride_2": _image(lambda x: nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))),
    "conv_relu": _image(lambda x: jax.nn.relu(conv(jax.nn.relu(x), 3, 2))),
    "depthwise": _image(lambda x: jax.nn.relu(conv(jax.nn.relu(x), 8, 2, groups=4))),
    "dilated": _image(lambda x: jax.nn.relu(conv(jax.nn.relu(x), 3, 2, dilation=2))),
    "transposed": _image(_transposed),
    "bilinear": _entries(_bilinear),
}
# Name -> how many times the width reached in a small box a bound may be wide: by intervals, and by a backward pass.
WIDTHS: dict[str, tuple[float, float]] = {
    "relu": (2.2, 1.1),
    "leaky_relu": (2.3, 1.1),
    "sigmoid": (2.7, 1.1),
    "silu": (2.5, 1.2),
    "tanh": (2.2, 1.1),
    "softplus": (2.7, 1.1),
    "exp": (2.0, 1.1),
    "abs": (2.4, 1.2),
    "elu": (2.9, 1.1),
    "gelu": (2.8, 1.2),
    "clip": (1.4, 1.2),
    "sin": (2.4, 1.2),
    "sqrt(x^2+1)": (2.2, 1.2),
    "x*x": (2.1, 1.2),
    "max(x,y)": (1.7, 1.4),
    "softmax": (5.0, 1.4),
    "log_softmax": (3.2, 1.2),
    "self_attention": (13.0, 2.0),
    "layer_norm": (18.0, 9.0),
    "group_norm": (15.0, 2.5),
    "batch_norm": (3.7, 1.2),
    "residual": (6.5, 1.8),
    "global_mean": (3.6, 1.2),
    "average_pool": (3.3, 1.2),
    "max_pool_2": (2.3, 1.2),
    "max_pool_3_stride_2": (3.0, 1.2),
    "conv_relu": (8.5, 1.6),
    "depthwise": (7.0, 1.3),
    "dilated": (6.5, 1.2),
    "transposed": (13.0, 1.8),
    "bilinear": (13.0, 2.0),
}
# `symbolic` differs from `crown` in the slopes of curves, of which images have the same ones.
CASES = [(name, method) for name in PROBES for method in METHODS if method != "symbolic" or len(PROBES[name][1]) < 3]


@functools.cache
def _bounds(name: str, method: str) -> mt.Interval:
    f, shape = PROBES[name]
    lowered = jax.jit(METHODS[method](f)).lower(jax.tree.map(lambda end: end[0], boxes(shape)))
    found, program = _found(name), lowered.as_text()
    if program not in found:  # With one curve `crown_ibp` is the program that `crown` is.
        found[program] = one_by_one(lowered.compile(), boxes(shape))
    return found[program]


@functools.cache
def _found(name: str) -> dict[str, mt.Interval]:
    """The bounds of a probe that programs have given, by the text of the program."""
    return {}


@functools.cache
def _reached(name: str) -> mt.Interval:
    f, shape = PROBES[name]
    return reached(f, boxes(shape))


def test_there_are_31_probes() -> None:
    assert len(PROBES) == 31
    assert set(WIDTHS) == set(PROBES)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_probe_is_bounded(name: str, method: str) -> None:
    """Points, corners and attacked points lie inside finite bounds."""
    assert_holds(_bounds(name, method), _reached(name))


@pytest.mark.parametrize("name", list(PROBES)[: list(PROBES).index("self_attention")])
def test_probe_with_curves_is_bounded_in_float64(name: str) -> None:
    """What float32 would hide, such as a line that touches a curve a little too early, shows here."""
    f, shape = PROBES[name]
    with jax.enable_x64(True):
        ball = jax.tree.map(lambda end: jnp.asarray(end, jnp.float64), boxes(shape))
        bound = one_by_one(jax.jit(mt.crown(f)), ball)
    assert bound.lower.dtype == np.float64
    assert_holds(bound, _reached(name), dtype=np.float64)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_backward_bounds_are_never_looser_than_ibp(name: str, method: str) -> None:
    """Each end of a backward bound lies inside the interval bound, up to round-off."""
    outer, inner = _bounds(name, "ibp"), _bounds(name, method)
    slack = 1e-6 * (1 + np.maximum(np.abs(outer.lower), np.abs(outer.upper)))
    assert np.all(inner.lower >= outer.lower - slack)
    assert np.all(inner.upper <= outer.upper + slack)


def _times_too_wide(name: str, method: str) -> float:
    """Width of the bound over the width reached, both summed over outputs, in the box of radius 0.02."""
    bound, values = _bounds(name, method), _reached(name)
    return float((bound.upper - bound.lower)[2].sum() / (values.upper - values.lower)[2].sum())


@pytest.mark.parametrize(("name", "method"), CASES)
def test_probe_is_not_vacuous(name: str, method: str) -> None:
    """Bounds of a small box are at most some times as wide as what is reached in it."""
    limit = WIDTHS[name][method != "ibp"]
    assert _times_too_wide(name, method) <= limit
