"""Bounds compose with JAX: jit, vmap, grad, chunks, pytrees, dtypes, wrappers inside and outside."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS

import mixtrain_jax as mt

METHODS = [mt.ibp, mt.crown_ibp, mt.symbolic, mt.crown]


@pytest.fixture
def network() -> Any:
    f, params, x = NETWORKS["residual_mlp"](3)
    return f, jax.tree.map(jnp.asarray, params), jnp.asarray(x)


@pytest.mark.parametrize("method", METHODS)
def test_jit_and_vmap_change_nothing(method: mt.bounds.Method, network: Any) -> None:
    f, params, x = network
    ball = mt.linf_ball(x, 0.1)
    one = method(lambda v: f(params, v[None])[0])
    mapped = jax.vmap(one)(ball)
    jitted = jax.jit(jax.vmap(one))(ball)
    for i in range(len(x)):
        single = one(jax.tree.map(lambda a, i=i: a[i], ball))
        for found in (mapped, jitted):
            np.testing.assert_allclose(found.lower[i], single.lower, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(found.upper[i], single.upper, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_scalar_label_takes_one_example(method: mt.bounds.Method, network: Any) -> None:
    f, params, x = network
    batch = mt.margins(method, functools.partial(f, params))(mt.linf_ball(x, 0.1), jnp.array([1, 0, 3]))
    one = mt.margins(method, lambda v: f(params, v[None])[0])(mt.linf_ball(x[2], 0.1), 3)
    assert batch.shape == (3, 3)
    np.testing.assert_allclose(batch[2], one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_margins_of_many_examples_are_those_of_each(method: mt.bounds.Method, network: Any) -> None:
    f, params, _ = network
    x = jnp.asarray(np.random.default_rng(0).random((12, 6)), jnp.float32)
    labels = jnp.arange(12) % 4
    batch = jax.jit(mt.margins(method, functools.partial(f, params)))(mt.linf_ball(x, 0.1), labels)
    assert batch.shape == (12, 3)
    single = jax.jit(mt.margins(method, lambda v: f(params, v[None])[0]))
    for i in range(12):
        np.testing.assert_allclose(batch[i], single(mt.linf_ball(x[i], 0.1), labels[i]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [mt.crown_ibp, mt.symbolic, mt.crown])
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_chunks_change_nothing(method: Any, chunk: int, network: Any) -> None:
    f, params, x = network
    ball, labels = mt.linf_ball(x, 0.1), jnp.array([1, 0, 3])
    whole = jax.jit(mt.margins(method, functools.partial(f, params)))(ball, labels)
    chunked = jax.jit(mt.margins(functools.partial(method, chunk=chunk), functools.partial(f, params)))(ball, labels)
    np.testing.assert_allclose(chunked, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_finite_differences(method: mt.bounds.Method) -> None:
    with jax.enable_x64(True):
        f, params, x = NETWORKS["deep_mlp"](5)
        params, x = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, x))

        @jax.jit
        @functools.partial(jax.value_and_grad, argnums=(0, 1))
        def objective(params: Any, eps: jax.Array) -> jax.Array:
            return jnp.sum(mt.margins(method, functools.partial(f, params))(mt.linf_ball(x, eps), jnp.array([0, 1, 2])))

        eps = jnp.asarray(0.05)
        _, gradient = objective(params, eps)
        rng = np.random.default_rng(0)
        direction = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), (params, eps))

        def along(t: float) -> jax.Array:
            return objective(*jax.tree.map(lambda a, d: a + t * d, (params, eps), direction))[0]

        slope = (along(1e-7) - along(-1e-7)) / 2e-7
        dot = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
        np.testing.assert_allclose(dot, slope, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_finite_where_boxes_are_points_or_zero(method: mt.bounds.Method) -> None:
    def objective(w: jax.Array) -> jax.Array:
        logits = lambda x: jax.nn.relu(jax.nn.relu(x @ w) @ w) @ w  # noqa: E731
        return jnp.sum(mt.margins(method, logits)(mt.linf_ball(jnp.zeros((2, 3)), 0.0), jnp.array([0, 1])))

    gradient = jax.jit(jax.grad(objective))
    assert np.all(np.isfinite(gradient(jnp.zeros((3, 3)))))
    assert np.all(np.isfinite(gradient(jnp.eye(3))))


@pytest.mark.parametrize("method", METHODS)
def test_wrappers_around_parts_of_a_function_change_nothing(method: mt.bounds.Method) -> None:
    w = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)), jnp.float32)

    @jax.custom_jvp
    def custom(x: jax.Array) -> jax.Array:
        return jnp.maximum(x, 0)

    custom.defjvps(lambda g, y, x: g)

    @jax.custom_vjp
    def reverse(x: jax.Array) -> jax.Array:
        return x @ w

    reverse.defvjp(lambda x: (x @ w, None), lambda _, g: (g @ w.T,))

    def plain(x: jax.Array) -> jax.Array:
        return jax.nn.relu(jax.nn.relu(x @ w) @ w) @ w

    def wrapped(x: jax.Array) -> jax.Array:
        return jax.jit(jax.checkpoint(lambda v: reverse(custom(jax.jit(reverse)(custom(v @ w))))))(x)

    ball = mt.linf_ball(jnp.ones(4), 0.2)
    expected, found = method(plain)(ball), method(wrapped)(ball)
    np.testing.assert_allclose(found.lower, expected.lower, rtol=1e-6)
    np.testing.assert_allclose(found.upper, expected.upper, rtol=1e-6)


def test_exact_parts_keep_their_own_derivatives() -> None:
    @jax.custom_jvp
    def weight(w: jax.Array) -> jax.Array:
        return w

    weight.defjvps(lambda g, y, w: 10 * g)
    ball = mt.linf_ball(jnp.ones(2), 0.0)
    gradient = jax.grad(lambda w: mt.ibp(lambda x, w: x * weight(w))(ball, w).lower.sum())(3.0)
    assert gradient == 20


def test_exact_parts_may_hold_loops_and_conditions() -> None:
    def f(x: jax.Array) -> jax.Array:
        total = jax.lax.fori_loop(0, 4, lambda i, t: t + i, 0)
        scale = jax.lax.cond(total > 3, lambda: 2.0, lambda: 3.0)
        return x * scale + jax.lax.scan(lambda c, _: (c + 1.0, None), 0.0, None, length=3)[0]

    out = mt.crown(f)(mt.linf_ball(jnp.ones(2), 0.5))
    np.testing.assert_allclose(out.lower, 4)
    np.testing.assert_allclose(out.upper, 6)


def test_any_leaf_may_be_an_interval_and_outputs_keep_their_structure() -> None:
    params = {"w": mt.linf_ball(jnp.array([[1.0, -1.0], [0.5, 2.0]]), 0.1), "b": jnp.array([0.0, 1.0])}

    def f(params: Any, x: jax.Array, flip: bool) -> Any:
        y = x @ params["w"] + params["b"]
        return {"y": -y if flip else y, "b": params["b"]}

    x = mt.linf_ball(jnp.array([1.0, -2.0]), 0.5)
    out = mt.ibp(f)(params, x, True)
    rng = np.random.default_rng(0)
    for _ in range(200):
        t = np.round(rng.random((2, 2)))
        w = params["w"].lower + t * (params["w"].upper - params["w"].lower)
        v = x.lower + np.round(rng.random(2)) * (x.upper - x.lower)
        y = -(v @ w + params["b"])
        assert np.all(out["y"].lower - 1e-6 <= y)
        assert np.all(y <= out["y"].upper + 1e-6)
    np.testing.assert_array_equal(out["b"].lower, params["b"])
    assert isinstance(out["b"], mt.Interval)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_dtype_of_the_input_is_kept(method: mt.bounds.Method, dtype: Any) -> None:
    f, params, x = NETWORKS["deep_mlp"](1)
    params, x = jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, x))
    out = jax.jit(method(lambda v: f(params, v[None])[0]))(mt.linf_ball(x[0], jnp.asarray(0.1, dtype)))
    assert out.dtype == dtype
    assert np.all(np.asarray(out.lower, np.float32) <= np.asarray(out.upper, np.float32))


def test_an_interval_is_a_pytree_that_passes_through_scan() -> None:
    ball = mt.linf_ball(jnp.ones(3), 0.5)
    wider, _ = jax.lax.scan(lambda b, _: (mt.Interval(b.lower - 1, b.upper + 1), None), ball, None, length=3)
    np.testing.assert_allclose(wider.lower, -2.5)
    assert wider.shape == (3,)
