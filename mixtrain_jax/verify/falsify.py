"""Counterexamples: searched by gradients, believed after a replay on the deployed network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.attacks.geometry import project, steepest
from mixtrain_jax.attacks.pgd import ascend, falling
from mixtrain_jax.bounds import Ball, Interval
from mixtrain_jax.verify.network import Network
from mixtrain_jax.verify.problem import Problem
from mixtrain_jax.verify.specification import Specification

_POINTS = 16  # searched from at a time
_TRIED = 8  # of them that are replayed
_LENGTHS = 0.3, 0.003  # of the first and the last step that improve a point, in radii of the ball


@dataclasses.dataclass(frozen=True)
class Counterexample:
    """An input in the ball whose output, as the deployed network computes it, is strictly unsafe.

    Attributes:
      x: the input, of the network's shape and dtype.
      output: what the network makes of it, `[outputs]`.
      violation: by how much it is unsafe, above 0; `Specification.violation`.
    """

    x: np.ndarray
    output: np.ndarray
    violation: float


class Target(NamedTuple):
    """What counterexamples are sought of: a network, its weights, the property, and where inputs lie."""

    network: Network
    params: Any
    spec: Specification
    ball: Interval


def replayed(target: Target, x: np.ndarray) -> Counterexample | None:
    """The input as a counterexample, if it is in the ball and the deployed network strictly violates the property."""
    x = np.asarray(x, target.network.dtype)
    if not _inside(target.ball, x):
        return None
    output = target.network.deployed(target.params, x)
    violation = float(target.spec.violation(output))
    return Counterexample(x, output, violation) if violation > 0 else None


def first_replayed(target: Target, points: np.ndarray, violations: np.ndarray) -> Counterexample | None:
    """The first of the likeliest points that is a counterexample; one that fails its replay is passed over.

    Args:
      target: of what.
      points: `[n, ...]`; moved into the ball of counterexamples, which may be smaller than the one that is proved.
      violations: how unsafe they are, about; those that are not above 0 are left out.
    """
    for i in np.argsort(-violations)[:_TRIED]:
        if violations[i] > 0:
            inside = project(batched(target.ball, 1), jnp.asarray(points[i])[None])[0]
            if found := replayed(target, np.asarray(inside)):
                return found
    return None


def search(
    key: jax.Array,
    target: Target,
    problem: Problem,
    clauses: Sequence[int] | np.ndarray,
    *,
    steps: int = 50,
    restarts: int = 2,
) -> Counterexample | None:
    """Projected gradient ascent on the violation of one clause a start, the clauses in turn.

    Args:
      key: a random key.
      target: what is attacked.
      problem: its specification as arrays.
      clauses: those that are still open.
      steps: gradient steps of each start.
      restarts: rounds of starts; the first is the center, the others are random.
    """
    several, many = batched(target.ball, _POINTS), target.network.many
    network: Any = many  # its weights are part of the goal, so that one program attacks all
    turn = np.asarray(clauses)[np.arange(_POINTS) % len(clauses)]
    options = {"steps": steps, "restarts": restarts, "step_size": falling, "momentum": 0.0, "random_start": False}
    goal = (target.params, problem.rows[turn], problem.offsets[turn])
    points = ascend(key, network, measure, None, middle(several), several, goal, **options)
    outputs = np.asarray(many(target.params, points))
    return first_replayed(target, np.asarray(points), target.spec.violation(outputs))


def measure(
    many: Callable[..., jax.Array], option: Hashable, points: jax.Array, goal: tuple
) -> tuple[jax.Array, jax.Array]:
    """How unsafe outputs are by one clause each, and the negative of that: `Measure` of an attack."""
    params, rows, offsets = goal
    values = jnp.einsum("nko,no->nk", rows, many(params, points), precision=jax.lax.Precision.HIGHEST) + offsets
    worst = -jnp.max(values, -1)
    return worst, -worst


def lowest(ball: Interval, coefficients: jax.Array) -> jax.Array:
    """Points of balls `[n, ...]` where linear functions of these coefficients are least, `[n, ...]`."""
    if isinstance(ball, Ball) and ball.norm == 1:
        return ball.point
    return project(ball, middle(ball) - steepest(ball, coefficients))


def improved(
    unsafe: Callable[[jax.Array], jax.Array], ball: Interval, point: jax.Array, steps: int | jax.Array = 5
) -> tuple[jax.Array, jax.Array]:
    """A point of a ball that is more unsafe, by short gradient steps, and how much it is; for use under `vmap`.

    Args:
      unsafe: a measure of one input.
      ball: of one input.
      point: in the ball.
      steps: looks taken, each but the last followed by a step; they shrink from one length to another.
    """
    one, (first, last) = batched(ball, 1), _LENGTHS

    def step(i: jax.Array, carry: tuple) -> tuple:
        here, best, most = carry
        value, uphill = jax.value_and_grad(unsafe)(here)
        better = value > most
        best, most = jnp.where(better, here, best), jnp.where(better, value, most)
        uphill = jnp.where(jnp.isfinite(uphill), uphill, 0)
        size = first * jnp.asarray(last / first, point.dtype) ** (i / steps)
        moved = project(one, here[None] + steepest(one, uphill[None], size))[0]
        return moved, best, most

    _, best, most = jax.lax.fori_loop(0, steps, step, (point, point, jnp.full((), -jnp.inf, point.dtype)))
    return best, most


def middle(ball: Interval) -> jax.Array:
    """A point inside a ball."""
    return ball.point if isinstance(ball, Ball) else jnp.clip(ball.center, ball.lower, ball.upper)


def batched(ball: Interval, n: int) -> Interval:
    """A ball `n` times, `[n, ...]`."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (n, *x.shape)), ball)


def _inside(ball: Interval, x: np.ndarray) -> bool:
    lower, upper = np.asarray(ball.lower), np.asarray(ball.upper)
    if not np.all((lower <= x) & (x <= upper)):
        return False
    if not isinstance(ball, Ball):
        return True
    away = np.abs(x.astype(np.float64) - np.asarray(ball.point, np.float64)).ravel()
    length = np.linalg.norm(away, ball.norm) * (1 + 4 * away.size * np.finfo(np.float64).eps)
    return bool(length <= float(ball.eps))
