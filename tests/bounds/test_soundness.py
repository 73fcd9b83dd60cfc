"""No reachable value lies outside a bound: sampled points, corners and attacked points of random networks."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import NETWORKS

import mixtrain_jax as mt
from mixtrain_jax.attacks import pgd

METHODS = {"ibp": mt.ibp, "crown_ibp": mt.crown_ibp, "symbolic": mt.symbolic, "crown": mt.crown}
SEEDS = st.integers(0, 2**31)
RADII = st.sampled_from([0.0, 1e-6, 1e-3, 0.03, 0.1, 0.5, 3.0])


@pytest.fixture(scope="module", autouse=True)
def _promotion_as_users_have_it() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@functools.cache
def _bounds(network: str, method: str) -> Any:
    f = NETWORKS[network](0)[0]

    def bounds(params: Any, x: jax.Array, labels: jax.Array, eps: jax.Array) -> Any:
        apply = functools.partial(f, params)
        ball = mt.linf_ball(x, eps)
        single = METHODS[method](lambda v: apply(v[None])[0])
        return jax.vmap(single)(ball), mt.margins(METHODS[method], apply)(ball, labels)

    return jax.jit(bounds)


@functools.cache
def _outputs(network: str) -> Any:
    f = NETWORKS[network](0)[0]

    def outputs(params: Any, x: jax.Array, labels: jax.Array, eps: jax.Array) -> jax.Array:
        """Logits at 60 uniform points, 60 corners and an attacked point, `[samples, n, classes]`."""
        apply = functools.partial(f, params)
        ball = mt.linf_ball(x, eps)
        key = jax.random.key(0)
        t = jax.random.uniform(key, (60, *x.shape), x.dtype)
        t = jnp.concatenate([t, jnp.round(t)])
        inside = ball.lower[None] + t * (ball.upper - ball.lower)[None]
        attacked = pgd(key, apply, x, labels, ball, steps=20, restarts=2)
        return jax.lax.map(apply, jnp.concatenate([inside, attacked[None]]))

    return jax.jit(outputs)


def _case(network: str, seed: int, dtype: type) -> tuple[Any, jax.Array, jax.Array]:
    _, params, x = NETWORKS[network](seed)
    params, x = jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, x))
    return params, x, jnp.asarray(np.random.default_rng(seed).integers(0, 4, len(x)))


def _reached_margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    rows = [np.delete(logits[:, i, y, None] - logits[:, i], y, axis=-1) for i, y in enumerate(labels)]
    return np.stack(rows, axis=1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", NETWORKS)
@given(seed=SEEDS, eps=RADII)
def test_bounds_hold_every_point_in_float64(network: str, method: str, seed: int, eps: float) -> None:
    with jax.enable_x64(True):
        case = _case(network, seed, np.float64)
        bound, margins = jax.device_get(_bounds(network, method)(*case, eps))
        logits = jax.device_get(_outputs(network)(*case, eps))
    assert logits.dtype == np.float64
    slack = 1e-12 * (1 + np.abs(logits).max())  # round-off of float64 on both sides
    assert np.all(bound.lower - slack <= logits)
    assert np.all(logits <= bound.upper + slack)
    assert np.all(margins - slack <= _reached_margins(logits, np.asarray(case[2])))


@pytest.mark.parametrize("network", NETWORKS)
@given(seed=SEEDS, eps=RADII)
def test_backward_margins_are_never_looser_than_ibp(network: str, seed: int, eps: float) -> None:
    with jax.enable_x64(True):
        case = _case(network, seed, np.float64)
        ibp = np.asarray(_bounds(network, "ibp")(*case, eps)[1])
        for method in ("crown_ibp", "symbolic", "crown"):
            margins = np.asarray(_bounds(network, method)(*case, eps)[1])
            assert np.all(margins >= ibp - 1e-12 * (1 + np.abs(ibp)))


@pytest.mark.parametrize("method", METHODS)
@given(seed=SEEDS, network=st.sampled_from(list(NETWORKS)))
def test_at_radius_zero_every_bound_is_the_value(method: str, network: str, seed: int) -> None:
    with jax.enable_x64(True):
        case = _case(network, seed, np.float64)
        bound, _ = _bounds(network, method)(*case, 0.0)
        logits = _outputs(network)(*case, 0.0)[0]
        np.testing.assert_allclose(bound.lower, logits, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(bound.upper, logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["ibp", "crown"])
@pytest.mark.parametrize("network", ["deep_mlp", "cnn"])
@given(seed=SEEDS, eps=RADII)
def test_float32_bounds_are_the_float64_ones_to_round_off(network: str, method: str, seed: int, eps: float) -> None:
    single = np.asarray(_bounds(network, method)(*_case(network, seed, np.float32), eps)[1], np.float64)
    with jax.enable_x64(True):
        double = np.asarray(_bounds(network, method)(*_case(network, seed, np.float64), eps)[1])
    np.testing.assert_allclose(single, double, atol=2e-5 * (1 + np.abs(double).max()))
