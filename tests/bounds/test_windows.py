"""Backward passes over windows give the numbers of those over whole maps."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit
from jax import lax
from test_probes import promotion_as_users_have_it

from mixtrain_jax.bounds import backward, engine, windows
from mixtrain_jax.bounds.interval import Interval, l2_ball, linf_ball

__all__ = ["promotion_as_users_have_it"]  # a fixture that every test of this file uses
Net = Callable[[Any, jax.Array], jax.Array]
NHWC, NCHW, NWC = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("NWC", "WIO", "NWC")


def conv(
    x: jax.Array,
    weights: jax.Array,
    stride: int = 1,
    padding: Any = "SAME",
    numbers: Any = NHWC,
    **options: Any,
) -> jax.Array:
    rank = x.ndim - 2
    return lax.conv_general_dilated(x, weights, (stride,) * rank, padding, dimension_numbers=numbers, **options)


def strides(p: Any, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(conv(x[None], p(3, 3, 2, 3)))
    x = jax.nn.relu(conv(x, p(4, 4, 3, 4), 2, ((1, 2), (0, 1))))
    x = jax.nn.relu(conv(x, p(1, 1, 4, 3)))
    return conv(x, p(2, 2, 3, 3), 1, "VALID")


def large_strides(p: Any, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(conv(x[None], p(5, 5, 2, 3), 1, ((2, 0), (4, 1))))
    return conv(jax.nn.relu(x), p(2, 3, 3, 4), 3, ((2, 3), (1, 1)))


def skipping(p: Any, x: jax.Array) -> jax.Array:
    """Strides larger than kernels, and padding that crops."""
    x = jax.nn.tanh(conv(x[None], p(3, 3, 2, 3), 1, ((-1, 1), (1, -1))))
    return conv(x, p(1, 2, 3, 3), 3, ((0, 0), (-2, 1)))


def dilated(p: Any, x: jax.Array) -> jax.Array:
    x = jax.nn.sigmoid(conv(x[None], p(2, 2, 2, 3)))
    return conv(x, p(3, 2, 3, 3), rhs_dilation=(2, 3))


def groups(p: Any, x: jax.Array) -> jax.Array:
    x = jax.nn.sigmoid(conv(x[None], p(3, 3, 1, 4), feature_group_count=2))
    return conv(x, p(3, 3, 1, 4), 2, feature_group_count=4)


def channels_first(p: Any, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(conv(x.transpose(2, 0, 1)[None], p(3, 2, 3, 3), numbers=NCHW) + p(3)[:, None, None])
    return conv(x, p(4, 3, 4, 4), 2, ((1, 1), (1, 1)), NCHW) + p(4)[:, None, None]


def mixed_layouts(p: Any, x: jax.Array) -> jax.Array:
    x = jax.nn.softplus(conv(x[None], p(3, 3, 2, 3))).transpose(0, 3, 2, 1)
    return conv(x, p(3, 2, 3, 4), 2, "SAME", ("NCHW", "HWIO", "NHWC"))


def biases_alone(p: Any, x: jax.Array) -> jax.Array:
    """Nothing between convolutions that would remove what is beyond the edges."""
    x = jnp.tanh(conv(x[None], p(3, 3, 2, 3)))
    return conv(conv(x, p(3, 3, 3, 3)) + p(3), p(3, 3, 3, 3))


def scales(p: Any, x: jax.Array) -> jax.Array:
    x = conv(x[None], p(3, 3, 2, 3)) + p(3)
    x = jnp.where(p(*x.shape) > 0.1, x, p(3))
    x = -((conv(x, p(3, 3, 3, 3)) - p(3)) * p(3) / 3 + p(3))
    return conv(jnp.exp(0.1 * x), p(3, 3, 3, 2))


def residual(p: Any, x: jax.Array) -> jax.Array:
    def norm(x: jax.Array) -> jax.Array:
        return (x - p(x.shape[-1])) * p(x.shape[-1]) + p(x.shape[-1])

    x = jax.nn.relu(norm(conv(x[None], p(3, 3, 2, 3))))
    inner = jax.nn.relu(norm(conv(x, p(3, 3, 3, 4), 2)))
    x = norm(conv(inner, p(3, 3, 4, 4))) + conv(x, p(1, 1, 3, 4), 2)
    return p(1)[0] - conv(jax.nn.leaky_relu(x), p(1, 2, 4, 4)) - x


def two_branches(p: Any, x: jax.Array) -> jax.Array:
    x = x[None]
    a, b, c = conv(x, p(3, 3, 2, 3)), conv(x, p(2, 2, 2, 3)), conv(x, p(1, 1, 2, 3))
    return conv(jnp.maximum(a, b) * jax.nn.gelu(c) - jnp.minimum(-a, 0.3), p(2, 2, 3, 3), 2)


def average_pool(p: Any, x: jax.Array) -> jax.Array:
    x = jnp.clip(conv(x[None], p(2, 2, 2, 3)), -0.2, 0.4)
    x = lax.reduce_window(x, 0.0, lax.add, (1, 3, 2, 1), (1, 2, 1, 1), ((0, 0), (1, 1), (0, 1), (0, 0))) / 6
    return conv(jax.nn.relu(x), p(2, 2, 3, 3))


def maximum_pool(p: Any, x: jax.Array) -> jax.Array:
    """The maximum keeps no windows, and makes those of what it is added to whole."""
    x = jax.nn.relu(conv(x[None], p(2, 2, 2, 3)))
    y = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "SAME")
    return conv(jax.nn.sigmoid(conv(y, p(2, 2, 3, 3))) + x, p(2, 2, 3, 3))


def flat(p: Any, x: jax.Array) -> jax.Array:
    """Neither does a reshape of the input."""
    x = jax.nn.sigmoid(conv((2 * x.reshape(-1)).reshape(1, *x.shape), p(2, 2, 2, 3)))
    return conv(x, p(3, 3, 3, 3))


def batch(p: Any, x: jax.Array) -> jax.Array:
    x = jax.nn.sigmoid(conv(jnp.stack([x, 2 * x]), p(3, 3, 2, 3)))
    return conv(x, p(3, 3, 3, 2), 2)


def line(p: Any, x: jax.Array) -> jax.Array:
    x = jax.nn.sigmoid(conv(x[:, 0][None], p(3, 2, 3), numbers=NWC))
    return conv(x, p(4, 3, 3), 2, ((1, 3),), NWC)


NETS = {
    f.__name__: f
    for f in (
        strides,
        large_strides,
        skipping,
        dilated,
        groups,
        channels_first,
        mixed_layouts,
        biases_alone,
        scales,
        residual,
        two_branches,
        average_pool,
        maximum_pool,
        flat,
        batch,
        line,
    )
}


def drawn(seed: int, dtype: Any) -> Callable[..., jax.Array]:
    """Parameters of any shape, one after the other, which are numbers of float32."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> jax.Array:
        values = rng.normal(size=shape) / math.sqrt(max(1, math.prod(shape[:-1])))
        return jnp.asarray(values.astype(np.float32), dtype)

    return draw


def image(dtype: Any, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).random(shape, np.float32), dtype)


def weighted(bounds: list[Interval]) -> jax.Array:
    """A smooth function of bounds in which each entry counts differently."""
    flat = jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(bounds)])
    return jnp.sum(flat * jnp.sin(jnp.arange(flat.size, dtype=flat.dtype)))


def both(
    net: Net,
    ball: Interval,
    slopes: Any = "adaptive",
    sound: bool = False,
    chunk: int | None = None,
    params: Any = None,
    count: int = 1,
) -> tuple[list[Interval], list[Interval]]:
    """Boxes of the last values that have windows, the last first, with and without them."""
    domain = engine.Domain(slopes, sound=sound)
    tape = engine.Bounded(functools.partial(net, params or drawn(0, ball.dtype)), domain)._record((ball,))
    known = engine.analyse(tape, domain)
    found, wanted = [], []
    for op in reversed(tape.ops):
        (ref,) = op.outputs
        if len(found) < count and (bound := windows.tightened(tape, known, ref, sound, chunk)) is not None:
            found.append(bound)
            wanted.append(dense(tape, known, ref, sound))
    assert not found or found[0].shape == tape.outputs[0].shape
    return found, wanted


def dense(tape: Any, known: Any, ref: Any, sound: bool) -> Interval:
    size = math.prod(ref.shape)
    rows = jnp.eye(size, dtype=ref.dtype).reshape(size, *ref.shape)
    bound = jax.vmap(lambda row: backward.pull(tape, known, backward.Linear({ref.index: row}), sound))(rows)
    return jax.tree.map(lambda x: x.reshape(ref.shape), bound)


def check(found: list[Interval], wanted: list[Interval], tolerance: float) -> None:
    assert found
    for a, b in zip(found, wanted, strict=True):
        scale = float(jnp.maximum(jnp.abs(b.lower), jnp.abs(b.upper)).max())
        np.testing.assert_allclose(a.lower, b.lower, rtol=0, atol=tolerance * scale)
        np.testing.assert_allclose(a.upper, b.upper, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("net", NETS)
def test_same_as_whole_maps(net: str, x64: None) -> None:
    x = image(np.float64, 9, 8, 2)
    check(*jax.jit(functools.partial(both, NETS[net], count=2))(linf_ball(x, 0.1)), 1e-12)


@pytest.mark.parametrize(("largest", "shape"), [(0.3, (9, 8, 2)), (1.0, (6, 6, 2)), (100.0, (6, 6, 2))])
@pytest.mark.parametrize("net", ["strides", "biases_alone"])
def test_windows_of_any_size(
    net: str, largest: float, shape: tuple[int, ...], x64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "LARGEST", largest)
    x = image(np.float64, *shape)
    check(*jax.jit(functools.partial(both, NETS[net]))(linf_ball(x, 0.1)), 1e-12)


@pytest.mark.parametrize(("chunk", "slopes"), [(1, "adaptive"), (2, "parallel"), (7, "adaptive")])
def test_in_chunks(chunk: int, slopes: str) -> None:
    x = image(np.float32, 7, 6, 2)
    check(*jax.jit(functools.partial(both, strides, slopes=slopes, chunk=chunk))(linf_ball(x, 0.1)), 2e-6)


@pytest.mark.parametrize("net", ["residual", "average_pool"])
def test_sound(net: str) -> None:
    x = image(np.float32, 6, 6, 2)
    sound, plain = (jit(functools.partial(both, NETS[net], sound=sound)) for sound in (True, False))
    for eps in (0.0, 0.05):
        ball = linf_ball(x, eps)
        (found, wanted), (_, (rounded,)) = sound(ball), plain(ball)
        check(found, wanted, 1e-5)
        assert jnp.all(found[0].lower < rounded.lower)
        assert jnp.all(rounded.upper < found[0].upper)
        mix = np.random.default_rng(2).integers(0, 2, (50, *x.shape)).astype(bool)
        points = np.where(mix, ball.lower, ball.upper)
        for values in (outputs(net, points, np.float32), outputs(net, points, np.float64)):
            assert np.all(np.asarray(found[0].lower, np.float64) <= values)
            assert np.all(values <= np.asarray(found[0].upper, np.float64))


def outputs(net: str, points: np.ndarray, dtype: Any) -> np.ndarray:
    with jax.enable_x64(dtype == np.float64):
        f = jit(jax.vmap(lambda x: NETS[net](drawn(0, dtype), x)))
        return np.asarray(f(jnp.asarray(points, dtype)), np.float64)


@pytest.mark.parametrize("net", ["strides", "maximum_pool"])
def test_gradients(net: str, x64: None) -> None:
    x, params, draw = image(np.float64, 7, 6, 2), [], drawn(0, np.float64)
    NETS[net](lambda *shape: params.append(draw(*shape)) or params[-1], x)

    def total(params: list[jax.Array], x: jax.Array, which: int) -> jax.Array:
        given = iter(params)
        return weighted(both(NETS[net], linf_ball(x, 0.1), chunk=4, params=lambda *shape: next(given))[which])

    found, wanted = (jax.jit(jax.grad(functools.partial(total, which=i), (0, 1)))(params, x) for i in range(2))
    assert all(jnp.abs(a).max() > 0 for a in found[0][:2])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), found, wanted)


def test_examples(x64: None) -> None:
    x = image(np.float64, 3, 7, 6, 2)
    each = jax.jit(jax.vmap(lambda x: both(residual, linf_ball(x, 0.1), chunk=5)))
    found, wanted = each(x)
    check(found, wanted, 1e-12)
    assert len({float(v) for v in found[0].lower[:, 0, 0, 0, 0]}) == 3


@pytest.mark.parametrize("net", ["strides", "flat"])
def test_balls_are_whole(net: str, x64: None) -> None:
    x = image(np.float64, 7, 6, 2)
    check(*jax.jit(functools.partial(both, NETS[net]))(l2_ball(x, 0.3)), 1e-12)


def test_nothing_without_small_windows() -> None:
    ball = linf_ball(image(np.float32, 5, 5, 2), 0.1)
    for net in (
        lambda p, x: jax.nn.relu(x.reshape(1, -1) @ p(50, 4)) @ p(4, 4),
        lambda p, x: conv(jax.nn.relu(x[None]), p(5, 5, 2, 3)),
        lambda p, x: conv(jax.nn.relu(x[None]), p(2, 2, 2, 3), lhs_dilation=(2, 2), padding=((1, 1), (1, 1))),
        lambda p, x: conv(p(1, 5, 5, 2), jax.nn.relu(x[:2, :2, :, None])),
    ):
        assert jax.eval_shape(functools.partial(both, net), ball) == ([], [])
