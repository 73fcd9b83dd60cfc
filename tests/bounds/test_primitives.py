"""Every primitive in the registry is held against sampled points and corners, by every method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core.primitives import add_jaxvals_p

import mixtrain_jax as mt
from mixtrain_jax.bounds import rules, tape

W = np.linspace(-1.0, 1.3, 12).reshape(4, 3)
KERNEL = np.linspace(-1.0, 1.0, 12).reshape(2, 3, 1, 2)
NHWC = ("NHWC", "HWIO", "NHWC")
MASK = np.array([True, False, True, False])


def _filled(x: jax.Array) -> jax.Array:
    return x.at[np.array([1, 9])].get(mode="fill", fill_value=3.0)


# Primitive -> functions of a box of shape [4] that use it; the ReLU keeps backward passes busy.
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
        lambda x: ((3 * x).astype(jnp.int32) * 2 - (x[::-1]).astype(jnp.int32)).astype(x.dtype),
    ],
    "stop_gradient": [lambda x: lax.stop_gradient(x) * 2],
    "select_n": [lambda x: jnp.where(MASK, x, -x), lambda x: jnp.where(MASK, 0.3, x)],
    "gather": [lambda x: x[np.array([3, 3, 0])], lambda x: jnp.take(x, np.array([[1, 2]])), _filled],
    "dynamic_slice": [lambda x: lax.dynamic_slice(x, (1,), (2,))],
    "add": [lambda x: x + x[::-1], lambda x: x + 0.5],
    "add_any": [lambda x: add_jaxvals_p.bind(x, 2 * x[::-1])],
    "sub": [lambda x: x - x[::-1], lambda x: 1.5 - x, lambda x: x - 0.25],
    "neg": [lambda x: -x],
    "mul": [lambda x: x * W[:, 0], lambda x: -2.0 * x, lambda x: x * x, lambda x: x * x[::-1]],
    "div": [lambda x: x / np.array([1.0, -2.0, 0.5, 4.0])],
    "dot_general": [lambda x: x @ W, lambda x: W.T @ x, lambda x: x @ x, lambda x: jnp.tensordot(x, x[::-1] - 0.2, 0)],
    "conv_general_dilated": [
        lambda x: lax.conv_general_dilated(
            x.reshape(1, 2, 2, 1), KERNEL, (1, 2), "SAME", rhs_dilation=(1, 2), dimension_numbers=NHWC
        ),
        lambda x: lax.conv_general_dilated(
            jnp.ones((1, 3, 3, 1)), x.reshape(2, 2, 1, 1), (1, 1), "VALID", dimension_numbers=NHWC
        ),
    ],
    "max": [lambda x: jnp.maximum(x, 0.1), lambda x: jnp.maximum(W[:, 0], x), lambda x: jnp.maximum(x, x[::-1])],
    "min": [lambda x: jnp.minimum(x, 0.1), lambda x: jnp.minimum(x, x[::-1])],
}  # fmt: skip
METHODS = [mt.ibp, mt.crown_ibp, mt.symbolic, mt.crown]
CASES = [pytest.param(name, f, id=f"{name}-{i}") for name, fs in PROBES.items() for i, f in enumerate(fs)]


def test_every_registered_primitive_has_a_probe() -> None:
    assert {primitive.name for primitive in rules.registered()} == set(PROBES)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "f"), CASES)
def test_primitive_is_bounded(name: str, f: Callable[[jax.Array], Any]) -> None:
    def around(x: jax.Array) -> jax.Array:
        return -2.0 * f(jax.nn.relu(3 * x - 0.5) + x)

    rng = np.random.default_rng(0)
    for x, eps in (([0.2, -0.4, 0.1, 0.6], 0.3), ([0.0, 0.0, 0.0, 0.0], 0.5), ([-1.0, 2.0, 1.0, 0.3], 0.01)):
        ball = mt.linf_ball(jnp.array(x), eps)
        t = rng.random((400, 4))
        points = ball.lower[None] + jnp.asarray(np.concatenate([t, np.round(t)])) * (ball.upper - ball.lower)[None]
        for function in (f, around):
            recorded = tape.record(function, (ball,))
            assert function is around or name in {op.primitive.name for op in recorded.ops}
            values = np.asarray(jax.vmap(function)(points), np.float64)
            for method in METHODS:
                bound = method(function)(ball)
                slack = 1e-6 if name == "convert_element_type" else 1e-12  # float32 on the way there
                assert np.all(np.asarray(bound.lower) - slack <= values), method
                assert np.all(values <= np.asarray(bound.upper) + slack), method


@pytest.mark.usefixtures("x64")
def test_backward_maps_of_affine_primitives_are_exact() -> None:
    """On affine functions the backward bound is the exact range, which interval arithmetic alone would miss."""
    ball = mt.linf_ball(jnp.array([0.2, -0.4, 0.1, 0.6]), 0.3)
    corners = np.array(np.meshgrid(*zip(ball.lower.tolist(), ball.upper.tolist(), strict=True))).reshape(4, -1).T
    nonlinear = {"max", "min", "convert_element_type"}
    for name, functions in PROBES.items():
        f = functions[0]
        if name in nonlinear:
            continue

        def g(x: jax.Array, f: Callable[[jax.Array], jax.Array] = f) -> jax.Array:
            y = f(x @ np.array(np.diag([1.0, 2, -1, 1])) + x[::-1])
            return y - 0.5 * y[..., ::-1] if y.ndim else y

        values = np.asarray(jax.vmap(g)(jnp.asarray(corners)))
        bound = mt.crown(g)(ball)
        np.testing.assert_allclose(bound.lower, values.min(0), atol=1e-12, err_msg=name)
        np.testing.assert_allclose(bound.upper, values.max(0), atol=1e-12, err_msg=name)
