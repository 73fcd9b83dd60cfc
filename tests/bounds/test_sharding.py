"""Functions that spread over devices inside: their bounds are those of the function of whole arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from test_probes import METHODS

import mixtrain_jax as mt

RNG = np.random.default_rng(0)
W1, W2 = RNG.normal(size=(4, 8)).astype(np.float32), RNG.normal(size=(8, 2)).astype(np.float32)
X = RNG.normal(size=(4, 4)).astype(np.float32)
Function = Callable[[Any], Any]


def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def split(f: Callable[..., Any], specs: Any, out: Any, *others: Any, check: bool = True) -> Function:
    whole = jax.shard_map(f, mesh=mesh(), in_specs=specs, out_specs=out, check_vma=check)
    return lambda x: whole(x, *others)


def mlp(x: Any, w1: Any, w2: Any) -> Any:
    return jax.nn.relu(x @ w1) @ w2


def columns(x: Any, w1: Any, w2: Any) -> Any:
    return lax.psum(mlp(x, w1, w2), "b")


def plain(x: Any) -> Any:
    return mlp(x, W1, W2)


# Sharded, and the same of whole arrays.
CASES: dict[str, tuple[Function, Function]] = {
    "rows": (split(mlp, (P("a"), P(), P()), P("a"), W1, W2), plain),
    "rows over both axes": (split(mlp, (P(("a", "b")), P(), P()), P(("a", "b")), W1, W2), plain),
    "columns, then a sum": (split(columns, (P("a"), P(None, "b"), P("b")), P("a"), W1, W2), plain),
    "jit inside and outside": (jax.jit(split(jax.jit(mlp), (P("a"), P(), P()), P("a"), W1, W2)), plain),
    "pmean": (split(lambda x: lax.pmean(x.sum(0), "a"), (P("a"),), P()), lambda x: x.reshape(2, 2, 4).sum(1).mean(0)),
    "pmax": (split(lambda x: lax.pmax(x.max(0), "a"), (P("a"),), P()), lambda x: x.max(0)),
    "pmin": (split(lambda x: lax.pmin(x.min(0), "a"), (P("a"),), P()), lambda x: x.min(0)),
    "all_gather": (
        split(lambda x: lax.all_gather(2 * x, "a", tiled=True), (P("a"),), P("a")),
        lambda x: jnp.concatenate([2 * x, 2 * x]),
    ),
    "ppermute": (
        split(lambda x: lax.ppermute(x, "a", [(0, 1), (1, 0)]) - x, (P("a"),), P("a")),
        lambda x: jnp.concatenate([x[2:], x[:2]]) - x,
    ),
    "axis_index": (
        split(lambda x: x * (1.0 + lax.axis_index("a").astype(np.float32)), (P("a"),), P("a")),
        lambda x: x * np.array([[1], [1], [2], [2]], np.float32),
    ),
    "psum_scatter": (
        split(lambda x: lax.psum_scatter(jnp.tanh(x), "a", tiled=True), (P(None, "b"),), P("a", "b")),
        lambda x: 2 * jnp.tanh(x),
    ),
    "all_to_all": (
        split(lambda x: lax.all_to_all(x, "a", 1, 0, tiled=True), (P("a"),), P(None, "a")),
        lambda x: x,
    ),
    "checks off": (split(columns, (P("a"), P(None, "b"), P("b")), P("a"), W1, W2, check=False), plain),
    "pmap": (
        jax.pmap(lambda row: lax.psum(jax.nn.relu(row @ W1), "i"), axis_name="i"),
        lambda x: jnp.broadcast_to(jax.nn.relu(x @ W1).sum(0), (4, 8)),
    ),
}


@pytest.mark.parametrize("method", ["ibp", "crown", "crown_ibp"])
@pytest.mark.parametrize("name", CASES)
def test_bounds_are_those_of_whole_arrays(name: str, method: str) -> None:
    sharded, whole = CASES[name]
    np.testing.assert_allclose(sharded(X), whole(X), rtol=1e-5, atol=1e-6)
    ball = mt.linf_ball(X, 0.1)
    found, expected = (jax.jit(METHODS[method](f))(ball) for f in (sharded, whole))
    for end in ("lower", "upper"):
        np.testing.assert_allclose(getattr(found, end), getattr(expected, end), rtol=1e-5, atol=1e-5)


def test_outside_jit_no_mesh_comes_out() -> None:
    found = mt.ibp(CASES["columns, then a sum"][0])(mt.linf_ball(X, 0.1))
    assert not jax.typeof(found.lower).sharding.mesh.axis_names


@pytest.mark.parametrize("name", ["columns, then a sum", "pmap"])
def test_gradients_are_those_of_whole_arrays(name: str) -> None:
    found, expected = (
        jax.jit(jax.grad(lambda x, f=f: jnp.sum(mt.crown_ibp(f)(mt.linf_ball(x, 0.1)).lower)))(X) for f in CASES[name]
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_sharded_parameters_may_be_intervals() -> None:
    f = jax.shard_map(columns, mesh=mesh(), in_specs=(P("a"), P(None, "b"), P("b")), out_specs=P("a"), check_vma=False)
    box = mt.linf_ball(W1, 0.01)
    found, expected = (jax.jit(mt.ibp(g))(X, box, W2) for g in (f, mlp))
    np.testing.assert_allclose(found.lower, expected.lower, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.upper, expected.upper, rtol=1e-5, atol=1e-5)
