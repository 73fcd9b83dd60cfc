"""`sound=True` against ball arithmetic at 160 bits: the exact values of nonlinear functions, with no tolerance."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit
from flint import arb, ctx
from jax import lax, nn
from test_probes import promotion_as_users_have_it

import mixtrain_jax as mt

__all__ = ["promotion_as_users_have_it"]  # a fixture that every test of this file uses
BOXES, POINTS = 120, 6


class Case(NamedTuple):
    """A function, what it is in exact arithmetic, and where it is defined."""

    f: Callable[[jax.Array], jax.Array]
    exact: Callable[[Any], Any]
    domain: tuple[float, float] = (-math.inf, math.inf)


def _logistic(a: Any) -> Any:
    return 1 / (1 + (-a).exp())


def _softplus(a: Any) -> Any:
    return a.exp().log1p()


def _constant(x: float) -> Any:
    """A number as a float32 network has it."""
    return arb(float(np.float32(x)))


POSITIVE = (1e-20, math.inf)
CASES = {
    "relu": Case(nn.relu, lambda a: a.max(arb(0))),
    "asinh": Case(lax.asinh, arb.asinh),
    "atan": Case(lax.atan, arb.atan),
    "cos": Case(lax.cos, arb.cos),
    "erf": Case(lax.erf, arb.erf),
    "exp": Case(lax.exp, arb.exp),
    "expm1": Case(lax.expm1, arb.expm1),
    "log": Case(lax.log, arb.log, POSITIVE),
    "log1p": Case(lax.log1p, arb.log1p, (-0.999, math.inf)),
    "logistic": Case(lax.logistic, _logistic),
    "rsqrt": Case(lax.rsqrt, arb.rsqrt, POSITIVE),
    "sin": Case(lax.sin, arb.sin),
    "sqrt": Case(lax.sqrt, arb.sqrt, POSITIVE),
    "tanh": Case(lax.tanh, arb.tanh),
    "tan": Case(jnp.tan, arb.tan, (-1.5, 1.5)),
    "cube": Case(lambda x: x**3, lambda a: a**3),
    "inverse square": Case(lambda x: x**-2, lambda a: 1 / a**2, POSITIVE),
    "square": Case(jnp.square, lambda a: a * a),
    "gelu": Case(
        functools.partial(nn.gelu, approximate=False), lambda a: a / 2 * (1 + (a / arb(2).sqrt()).erf())
    ),
    "gelu_tanh": Case(
        nn.gelu, lambda a: a / 2 * (1 + ((2 / arb.pi()).sqrt() * (a + arb("0.044715") * a**3)).tanh())
    ),
    "silu": Case(nn.silu, lambda a: a * _logistic(a)),
    "mish": Case(nn.mish, lambda a: a * _softplus(a).tanh()),
    "softplus": Case(nn.softplus, _softplus),
    "soft_sign": Case(nn.soft_sign, lambda a: a / (1 + abs(a))),
    "hard_swish": Case(nn.hard_swish, lambda a: a * (a + 3).max(arb(0)).min(arb(6)) / 6),
    "elu": Case(nn.elu, lambda a: a.max(arb(0)) + a.min(arb(0)).expm1()),
    "log_sigmoid": Case(nn.log_sigmoid, lambda a: -_softplus(-a)),
}  # fmt: skip


def _boxes(domain: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of every size and place: around 0, far away, next to nothing; some are points."""
    rng, third = np.random.default_rng(0), BOXES // 3
    tiny = np.exp(rng.uniform(-20, 6, third)) * np.sign(rng.normal(size=third))
    lower = np.concatenate([rng.normal(size=third), rng.normal(size=third) * 6, tiny])
    width = np.exp(rng.uniform(np.log(1e-8), np.log(8), BOXES)) * np.maximum(np.abs(lower), 1e-3)
    width[::10] = 0
    if domain == POSITIVE:
        lower = np.abs(lower) + POSITIVE[0]
    lower = np.clip(lower, *domain)
    return lower.astype(np.float32), np.minimum(lower + width, domain[1]).astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_bounds_hold_exact_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctx, "prec", 160)
    f, exact, domain = CASES[name]
    lower, upper = _boxes(domain)
    upper = np.maximum(lower, upper)
    t = np.random.default_rng(1).random((POINTS, BOXES)).astype(np.float32)
    t[0], t[1] = 0, 1
    points = np.clip(lower + t * (upper - lower), lower, upper)
    values = [[exact(arb(float(p))) for p in row] for row in points]
    tilted = [
        [v + _constant(0.3) * arb(float(p)) for v, p in zip(*pair, strict=True)]
        for pair in zip(values, points, strict=True)
    ]
    held = 0
    for method, g, reached in (
        (mt.ibp, f, values),
        (mt.crown_ibp, lambda x: f(x) + x * np.float32(0.3), tilted),
    ):
        bound = jit(jax.vmap(method(g, sound=True)))(mt.Interval(jnp.asarray(lower), jnp.asarray(upper)))
        low, high = np.asarray(bound.lower), np.asarray(bound.upper)
        deployed = np.asarray(jit(g)(points))
        finite = np.isfinite(deployed)
        assert not np.any(((deployed < low) | (high < deployed)) & finite)  # NaN claims nothing
        for row in reached:
            for value, a, b in zip(row, low, high, strict=True):
                assert not (value < arb(float(a))) if np.isfinite(a) else True
                assert not (value > arb(float(b))) if np.isfinite(b) else True
                held += np.isfinite(a) and np.isfinite(b)
    assert held > POINTS * BOXES  # most bounds are finite
