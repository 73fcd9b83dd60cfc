"""Every primitive in the registry is held against sampled points and corners, by every method."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit
from jax import lax
from jax.extend.core.primitives import add_jaxvals_p

import mixtrain_jax as mt
from mixtrain_jax.bounds import functions as known
from mixtrain_jax.bounds import rules, tape

W = np.linspace(-1.0, 1.3, 12).reshape(4, 3)
KERNEL = np.linspace(-1.0, 1.0, 12).reshape(2, 3, 1, 2)
NHWC = ("NHWC", "HWIO", "NHWC")
MASK = np.array([True, False, True, False])


def _w(x: jax.Array) -> np.ndarray:
    return W.astype(x.dtype)


def _filled(x: jax.Array) -> jax.Array:
    return x.at[np.array([1, 9])].get(mode="fill", fill_value=3.0)


# Primitive -> functions of a box of shape [4] that use it.
PROBES: dict[str, list[Callable[[jax.Array], jax.Array]]] = {
    "reshape": [lambda x: x.reshape(2, 2)],
    "transpose": [lambda x: x.reshape(2, 2).T],
    "squeeze": [lambda x: jnp.squeeze(x[None], 0)],
    "rev": [lambda x: x[::-1]],
    "slice": [lambda x: x[1:3], lambda x: lax.slice(x, (0,), (4,), (2,))],
    "pad": [lambda x: jnp.pad(x, 1, constant_values=0.7), lambda x: lax.pad(x, 0.0, [(1, 2, 1)])],
    "copy": [lambda x: jnp.copy(x)],
    "broadcast_in_dim": [lambda x: jnp.broadcast_to(x[None], (3, 4))],
    "concatenate": [lambda x: jnp.concatenate([x, 2 * x, jnp.ones(2)])],
    "split": [lambda x: jnp.split(x, [1, 3])[1] * 2 - jnp.split(x, 2)[0]],
    "stack": [lambda x: jnp.stack([x, x[::-1]])],
    "unstack": [lambda x: jnp.unstack(x)[2][None] - jnp.unstack(x)[0][None]],
    "tile": [lambda x: jnp.tile(x, 2)],
    "reduce_sum": [lambda x: x.sum(), lambda x: x.reshape(2, 2).mean(0)],
    "reduce_window_sum": [lambda x: lax.reduce_window(x, 0.0, lax.add, (2,), (1,), [(1, 0)])],
    "cumsum": [lambda x: jnp.cumsum(x), lambda x: lax.cumsum(x, reverse=True)],
    "convert_element_type": [
        lambda x: x.astype(jnp.float32).astype(x.dtype) * 2,
        lambda x: (3 * x).astype(jnp.int32).astype(x.dtype),
        lambda x: (300 * x).astype(jnp.int32).astype(jnp.int8).astype(x.dtype),
        lambda x: (3 * jnp.abs(x)).astype(jnp.uint8).astype(x.dtype),
        lambda x: jnp.round(x).astype(bool).astype(x.dtype),
        lambda x: ((3 * x).astype(jnp.int32) * 2 - (x[::-1]).astype(jnp.int32)).astype(x.dtype),
    ],
    "stop_gradient": [lambda x: lax.stop_gradient(x) * 2],
    "select_n": [
        lambda x: jnp.where(MASK, x, -x),
        lambda x: jnp.where(MASK, 0.3, x),
        lambda x: lax.switch(jnp.sum(x > 0).astype(jnp.int32), [lambda y: y, lambda y: -y, lambda y: y * 2], x),
    ],
    "gather": [lambda x: x[np.array([3, 3, 0])], lambda x: jnp.take(x, np.array([[1, 2]])), _filled],
    "dynamic_slice": [lambda x: lax.dynamic_slice(x, (1,), (2,))],
    "add": [lambda x: x + x[::-1], lambda x: x + 0.5],
    "add_any": [lambda x: add_jaxvals_p.bind(x, 2 * x[::-1])],
    "sub": [lambda x: x - x[::-1], lambda x: 1.5 - x, lambda x: x - 0.25],
    "neg": [lambda x: -x],
    "mul": [lambda x: x * _w(x)[:, 0], lambda x: -2.0 * x, lambda x: x * x[::-1], lambda x: 1.5 / (3 + x) * x],
    "div": [lambda x: x / np.array([1.0, -2.0, 0.5, 4.0], x.dtype)],
    "dot_general": [
        lambda x: x @ _w(x),
        lambda x: _w(x).T @ x,
        lambda x: x @ (x[::-1] + 0.1),
        lambda x: jnp.tensordot(x, x[::-1] - 0.2, 0),
    ],
    "conv_general_dilated": [
        lambda x: lax.conv_general_dilated(
            x.reshape(1, 2, 2, 1), KERNEL.astype(x.dtype), (1, 2), "SAME", rhs_dilation=(1, 2), dimension_numbers=NHWC
        ),
        lambda x: lax.conv_general_dilated(
            jnp.ones((1, 3, 3, 1)), x.reshape(2, 2, 1, 1), (1, 1), "VALID", dimension_numbers=NHWC
        ),
    ],
    **{
        name: [getattr(lax, name)] for name in ("abs", "asinh", "atan", "cbrt", "ceil", "cos", "cosh", "erf", "erfc")
    },
    **{name: [getattr(lax, name)] for name in ("exp", "exp2", "expm1", "floor", "logistic", "round", "sign", "sin")},
    **{name: [getattr(lax, name)] for name in ("sinh", "square", "tanh", "sort", "cummax", "cummin")},
    **{f.__name__: [lambda x, f=f: f(x * x + 0.1)] for f in (lax.log, lax.log1p, lax.rsqrt, lax.sqrt)},
    "erf_inv": [lambda x: lax.erf_inv(0.2 * x)],
    "custom_curve": [mt.bounds.custom_rule(jnp.exp, mt.bounds.Curve(jnp.exp, True), rounding=lambda x: 1e-14)],
    "custom_rule": [
        mt.bounds.custom_rule(
            jnp.sort,
            mt.bounds.CustomRule(lambda x: mt.Interval(jnp.sort(x.lower), jnp.sort(x.upper))),
            rounding=lambda x: 0.0,
        )
    ],
    "reduce_max": [lambda x: x.reshape(2, 2).max(1), jnp.max],
    "reduce_min": [lambda x: x.reshape(2, 2).min(0), jnp.min],
    "reduce_window_max": [
        lambda x: lax.reduce_window(x, -np.inf, lax.max, (3,), (2,), [(1, 1)]),
        lambda x: lax.reduce_window(x, -np.inf, lax.max, (3,), (2,), "VALID", (2,), (2,)),
    ],
    "reduce_window_min": [lambda x: lax.reduce_window(x, np.inf, lax.min, (2,), (1,), "VALID")],
    "integer_pow": [lambda x: x**3, lambda x: x**4, lambda x: (x + 5) ** -1, lambda x: (x - 5) ** -2],
    "pow": [lambda x: jnp.abs(x) ** 1.5, lambda x: jnp.abs(x) ** 0.3],
    "clamp": [lambda x: lax.clamp(-0.2, x, 0.4), lambda x: lax.clamp(x[::-1], x, 2 + x)],
    "rem": [lambda x: lax.rem(x, 0.3 * jnp.ones(4)), lambda x: jnp.mod(x, -0.7)],
    "reduce_precision": [lambda x: lax.reduce_precision(x, 8, 10)],
    "dynamic_update_slice": [lambda x: lax.dynamic_update_slice(2 * x, x[:2] - 1, (1,))],
    "scatter": [lambda x: x.at[np.array([2, 0])].set(3 * x[:2]), lambda x: jnp.ones(4).at[1].set(x[0])],
    "scatter-add": [lambda x: x.at[np.array([2, 2])].add(3 * x[:2])],
    "lt": [lambda x: jnp.where(x < 0.1, x, 2 * x), lambda x: (x < x[::-1]).astype(x.dtype)],
    "le": [lambda x: jnp.where(x <= _w(x)[:, 0], 1.0, x)],
    "gt": [lambda x: jnp.where(x > 0, x, x**2)],
    "ge": [lambda x: jnp.where(x[0] >= 0.2, x, -x)],
    "eq": [lambda x: jnp.where(jnp.round(x) == 0, x, 3.0)],
    "ne": [lambda x: jnp.where(jnp.sign(x) != jnp.sign(x[::-1]), x, 3.0)],
    "is_finite": [lambda x: jnp.where(jnp.isfinite(x), x, 0.0)],
    "and": [lambda x: jnp.where((x > 0) & (x[::-1] > 0), x, 5.0)],
    "or": [lambda x: jnp.where((x > 0.3) | (x[::-1] > 0), x, 5.0)],
    "not": [lambda x: jnp.where(~(x > 0.3), x, 5.0)],
    "xor": [lambda x: jnp.where((x > 0.3) ^ (x[::-1] > 0), x, 5.0)],
    "reduce_and": [lambda x: jnp.where((x > -0.2).all(), x, 5.0)],
    "reduce_or": [lambda x: jnp.where((x > 0.5).any(), x, 5.0)],
    "softmax": [jax.nn.softmax, lambda x: jax.nn.softmax(x.reshape(2, 2), 0), lambda x: jax.nn.softmax(50 * x)],
    "log_softmax": [jax.nn.log_softmax, lambda x: jax.nn.log_softmax(x.reshape(2, 2), (0, 1))],
    "logsumexp": [jax.nn.logsumexp, lambda x: jax.nn.logsumexp(x.reshape(2, 2), 1, keepdims=True)],
    "gelu": [lambda x: jax.nn.gelu(x, approximate=False)],
    "gelu_tanh": [jax.nn.gelu],
    **{
        name: [getattr(jax.nn, name)]
        for name in ("silu", "mish", "softplus", "soft_sign", "hard_swish", "relu6", "hard_tanh", "celu")
    },
    "leaky_relu": [jax.nn.leaky_relu, lambda x: jax.nn.leaky_relu(x, 1.5), lambda x: jax.nn.leaky_relu(x, -0.3)],
    "elu": [jax.nn.elu, lambda x: jax.nn.elu(x, 1.7), lambda x: jax.nn.elu(x, 0.2)],
    "clip": [lambda x: jnp.clip(x, -0.2, 0.4), lambda x: jnp.clip(x, 0, 1)],
    "max": [lambda x: jnp.maximum(x, 0.1), lambda x: jnp.maximum(_w(x)[:, 0], x), lambda x: jnp.maximum(x, x[::-1])],
    "min": [lambda x: jnp.minimum(x, 0.1), lambda x: jnp.minimum(x, x[::-1])],
}  # fmt: skip
METHODS = [mt.ibp, mt.symbolic, mt.crown]
SOUND = [functools.partial(method, sound=True) for method in (mt.ibp, mt.crown)]
CASES = [pytest.param(name, f, id=f"{name}-{i}") for name, fs in PROBES.items() for i, f in enumerate(fs)]


def test_every_registered_primitive_has_a_probe() -> None:
    assert {primitive.name for primitive in rules.registered()} == set(PROBES)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "f"), CASES)
def test_primitive_is_bounded(name: str, f: Callable[[jax.Array], Any]) -> None:
    rng = np.random.default_rng(0)
    bounds = jit(lambda ball: [method(f)(ball) for method in METHODS + SOUND])
    for x, eps in (([0.2, -0.4, 0.1, 0.6], 0.3), ([0.0, 0.0, 0.0, 0.0], 0.5), ([-1.0, 2.0, 1.0, 0.3], 0.01)):
        ball = mt.linf_ball(jnp.array(x), eps)
        t = rng.random((400, 4))
        points = ball.lower[None] + jnp.asarray(np.concatenate([t, np.round(t)])) * (ball.upper - ball.lower)[None]
        points = jnp.clip(points, ball.lower[None], ball.upper[None])
        assert name in {op.primitive.name for op in tape.record(f, (ball,), known.recognize).ops}
        values = np.asarray(jax.vmap(f)(points), np.float64)
        for method, bound in zip(METHODS + SOUND, jax.device_get(bounds(ball)), strict=True):
            # Rounding to fewer bits on the way there, which is no error of a sound bound.
            coarse = name in ("convert_element_type", "reduce_precision")
            slack = 0 if isinstance(method, functools.partial) else 1e-3 if coarse else 1e-12
            assert np.all(bound.lower - slack <= values), method
            assert np.all(values <= bound.upper + slack), method


@pytest.mark.usefixtures("x64")
def test_backward_maps_of_affine_primitives_are_exact() -> None:
    """On affine functions the backward bound is the exact range, which interval arithmetic alone would miss."""
    ball = mt.linf_ball(jnp.array([0.2, -0.4, 0.1, 0.6]), 0.3)
    corners = np.array(np.meshgrid(*zip(ball.lower.tolist(), ball.upper.tolist(), strict=True))).reshape(4, -1).T
    affine = {primitive.name for primitive, rule in rules.registered().items() if rule.affine is not rules.never}
    for name in sorted(affine - {"convert_element_type"}):
        f = PROBES[name][0]

        def g(x: jax.Array, f: Callable[[jax.Array], jax.Array] = f) -> jax.Array:
            y = f(x @ np.array(np.diag([1.0, 2, -1, 1])) + x[::-1])
            return y - 0.5 * y[..., ::-1] if y.ndim else y

        values, bound = jax.jit(lambda points, ball, g=g: (jax.vmap(g)(points), mt.crown(g)(ball)))(corners, ball)
        np.testing.assert_allclose(bound.lower, values.min(0), atol=1e-12, err_msg=name)
        np.testing.assert_allclose(bound.upper, values.max(0), atol=1e-12, err_msg=name)
