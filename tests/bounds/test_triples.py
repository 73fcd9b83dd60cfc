"""Random (network, ball, point) triples over every primitive: nothing reached lies outside a bound.

No tolerance: bounds are those of `sound=True`, and points are run through the network in float32. Programs are many and
large, so they are compiled as cheaply as those of other tests; `test_primitives` and `test_arb` compile as users do.

Every function that `test_primitives` knows is a layer of some network, between random dense ones. Each network is drawn
`DRAWS` times, weights, input and radius, and each ball is sampled at `POINTS` points: a third of them corners.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from test_primitives import PROBES
from test_probes import METHODS, one_by_one, promotion_as_users_have_it

import mixtrain_jax as mt

__all__ = ["promotion_as_users_have_it"]  # a fixture that every test of this file uses

WAYS = {**METHODS, "alpha_crown": functools.partial(mt.alpha_crown, steps=1)}
DRAWS, POINTS, DEPTH = 12, 24, 3
RADII = np.array([0.0, 1e-6, 1e-4, 1e-2, 0.1, 0.5])
Layer = Callable[[jax.Array], jax.Array]


def _chains() -> dict[str, list[Layer]]:
    """Every probe once, in an order drawn at random, `DEPTH` to a network."""
    named = [(f"{name}_{i}", f) for name, fs in PROBES.items() for i, f in enumerate(fs)]
    order = np.random.default_rng(0).permutation(len(named))
    groups = [[named[i] for i in order[k : k + DEPTH]] for k in range(0, len(order), DEPTH)]
    return {"-".join(name for name, _ in group): [f for _, f in group] for group in groups}


CHAINS = _chains()


def _network(layers: list[Layer], weights: list[Any], x: jax.Array) -> jax.Array:
    for f, (matrix, bias) in zip(layers, weights[:-1], strict=True):
        x = f(matrix @ x + bias).reshape(-1)
    matrix, bias = weights[-1]
    return matrix @ x + bias


def _draws(layers: list[Layer]) -> tuple[list[Any], np.ndarray, np.ndarray]:
    """Weights, inputs and radii, with a leading axis of draws; numbers of float32."""
    rng, width, weights = np.random.default_rng(1), 4, []

    def normal(*shape: int, scale: float) -> np.ndarray:
        return (scale * rng.normal(size=(DRAWS, *shape))).astype(np.float32)

    for f in (*layers, None):
        rows = 4 if f else 3
        weights.append((normal(rows, width, scale=0.8 * width**-0.5), normal(rows, scale=0.3)))
        if f:
            shape = jax.eval_shape(f, jax.ShapeDtypeStruct((4,), np.float32)).shape
            width = int(np.prod(shape))
    radii = np.resize(RADII, DRAWS).astype(np.float32)
    return weights, normal(4, scale=1.0), radii


@functools.cache
def _cases(chain: str) -> tuple[Any, mt.Interval, np.ndarray]:
    """Weights, balls `[draws, 4]`, and what the network returns at points of them, `[draws, points, 3]`."""
    layers = CHAINS[chain]
    weights, x, radii = _draws(layers)
    balls = mt.linf_ball(x, radii[:, None])
    t = np.random.default_rng(2).random((DRAWS, POINTS, 4))
    t[:, ::3] = np.round(t[:, ::3])
    lower, upper = (np.asarray(end)[:, None] for end in (balls.lower, balls.upper))
    points = np.clip((lower + t * (upper - lower)).astype(np.float32), lower, upper)
    outputs = jax.jit(jax.vmap(lambda w, p: jax.vmap(functools.partial(_network, layers, w))(p)))(weights, points)
    return weights, balls, np.asarray(outputs)


def _bounds(chain: str, method: str, weights: Any, balls: mt.Interval) -> mt.Interval:
    def bound(w: Any, ball: mt.Interval) -> mt.Interval:
        return WAYS[method](functools.partial(_network, CHAINS[chain], w), sound=True)(ball)

    return one_by_one(jax.jit(bound), weights, balls)


def _pairs() -> list[Any]:
    """Each network with `ibp` and with one of the other methods in turn."""
    others = [name for name in WAYS if name != "ibp"]
    return [
        pytest.param(chain, name, id=f"{chain}-{name}")
        for i, chain in enumerate(CHAINS)
        for name in ("ibp", others[i % len(others)])
    ]


@pytest.mark.parametrize(("chain", "method"), _pairs())
def test_sound_bounds_hold_what_the_network_returns(chain: str, method: str) -> None:
    weights, balls, outputs = _cases(chain)
    bound = _bounds(chain, method, weights, balls)
    assert not np.isnan(outputs).any()
    assert not np.any(outputs < bound.lower[:, None])
    assert not np.any(bound.upper[:, None] < outputs)
    assert np.isnan(bound.lower).mean() < 0.2  # which claims nothing: a box over a pole, times one that holds 0


def test_there_are_more_than_ten_thousand() -> None:
    assert len(_pairs()) * DRAWS * POINTS > 10_000
