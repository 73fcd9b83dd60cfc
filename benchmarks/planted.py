"""Networks of one hidden layer of ReLUs with a known least margin over a box: float64, linear programs over signs."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linprog

import mixtrain_jax as mt


def apply(params: tuple[jax.Array, ...], x: jax.Array) -> jax.Array:
    """Outputs `[n, outputs]` of inputs `[n, inputs]`."""
    w, b, v, c = params
    return jnp.maximum(x @ w + b[None], 0.0) @ v + c[None]


def least(params: tuple[np.ndarray, ...], row: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> float:
    """The least value of `row @ y` of the network `relu(x @ w + b) @ v + c` over a box."""
    w, b, v, c = (np.asarray(p, np.float64) for p in params)
    bounds, best = list(zip(np.float64(lower), np.float64(upper), strict=True)), np.inf
    center, radius = (np.float64(lower) + upper) / 2, (np.float64(upper) - lower) / 2
    reach, at = radius @ np.abs(w), center @ w + b
    choices = [(1,) if a - r >= 0 else (0,) if a + r <= 0 else (0, 1) for a, r in zip(at, reach, strict=True)]
    for on in itertools.product(*choices):
        on = np.array(on, np.float64)
        signs = 2 * on - 1
        objective, constant = (w * on) @ v @ row, (b * on) @ v @ row + c @ row
        found = linprog(objective, A_ub=-(w * signs).T, b_ub=signs * b, bounds=bounds)
        if found.status == 0:
            best = min(best, found.fun + constant)
    return best


def random_network(rng: np.random.Generator, inputs: int, width: int, outputs: int) -> tuple[np.ndarray, ...]:
    """Weights of a network of one hidden layer."""
    shapes = ((inputs, width), (width,), (width, outputs), (outputs,))
    scales = (inputs**-0.5, 0.3, width**-0.5, 0.3)
    return tuple((rng.normal(size=n) * s).astype(np.float32) for n, s in zip(shapes, scales, strict=True))


def shifted(params: tuple[np.ndarray, ...], label: int, by: float) -> tuple[np.ndarray, ...]:
    """The network with all margins of the label moved."""
    w, b, v, c = params
    c = c.astype(np.float64)
    c[label] += by
    return w, b, v, c.astype(np.float32)


def planted(
    seed: int, sizes: tuple[int, int, int], eps: float, by: float
) -> tuple[tuple[np.ndarray, ...], mt.Interval, int]:
    """A random network, a ball and a label whose least margin over the ball is `by` in exact arithmetic, about.

    Args:
      seed: of the weights and of the center.
      sizes: numbers of inputs, hidden units and classes.
      eps: radius of the ball.
      by: the margin: above 0 the network is robust, below there is a counterexample.
    """
    params, ball, label, margin = _before(seed, sizes, eps)
    return shifted(params, label, by - margin), ball, label


@functools.lru_cache(maxsize=4)
def _before(
    seed: int, sizes: tuple[int, int, int], eps: float
) -> tuple[tuple[np.ndarray, ...], mt.Interval, int, float]:
    """The random network, its ball, the class at the center, and that class's least margin."""
    rng = np.random.default_rng(seed)
    params, x = random_network(rng, *sizes), rng.random(sizes[0], np.float32)
    ball, label = mt.linf_ball(x, eps), int(np.argmax(np.asarray(apply(params, x[None]))[0]))
    ends = np.asarray(ball.lower), np.asarray(ball.upper)
    rows = [np.eye(sizes[2])[label] - np.eye(sizes[2])[j] for j in range(sizes[2]) if j != label]
    return params, ball, label, min(least(params, row, *ends) for row in rows)
