"""Projected gradient ascent inside a ball: of what the logits say, or of any other measure."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mixtrain_jax.attacks import geometry
from mixtrain_jax.attacks.gradients import value_and_gradient
from mixtrain_jax.attacks.objectives import Objective, cross_entropy, lead, margin
from mixtrain_jax.attacks.search import Best, LogitsFn, keep, stepwise, unknown
from mixtrain_jax.bounds import BoundsError, Interval
from mixtrain_jax.bounds.cpu import ordered

Measure = Callable[[LogitsFn, Any, jax.Array, Any], tuple[jax.Array, jax.Array]]
"""`(logits_fn, option, points, goal) -> (what to ascend, margins)`, both `[n]`."""

StepSize = float | Callable[[jax.Array], jax.Array]
"""A share of the ball's radius; or that as a function of the share of all steps that is done, from 0 to 1."""


class _Search(NamedTuple):
    points: jax.Array
    velocity: jax.Array | None  # None without momentum
    best: Best


def falling(done: jax.Array) -> jax.Array:
    """A quarter of the radius, falling linearly to a hundredth of that: ends inside fine structure as at corners."""
    return 0.25 * jnp.maximum(1 - done, 0.01)


def pgd(
    key: jax.Array,
    logits_fn: LogitsFn,
    x: jax.Array,
    labels: jax.Array,
    ball: Interval,
    *,
    steps: int = 100,
    restarts: int = 3,
    objective: Objective = margin,
    targets: jax.Array | None = None,
    step_size: StepSize = falling,
    momentum: float = 0.0,
    random_start: bool = False,
) -> jax.Array:
    """Projected gradient ascent (Madry et al., arXiv 1706.06083), on the margin (Carlini and Wagner, 1608.04644).

    Steps follow the gradient's sign in a box and its direction in a Euclidean ball. Called outside `jax.jit`, every
    step is one compiled call; compilation happens once for a `logits_fn`, which must be hashable, options and a shape.
    Inside `jax.jit` it is a loop in the compiled program.

    Args:
      key: a random key.
      logits_fn: `[n, ...] -> [n, classes]`, examples independent of each other.
      x: inputs `[n, ...]` in `ball`.
      labels: integer labels `[n]`.
      ball: where the attack may go, the domain included: a box, or a batch of Euclidean balls.
      steps: gradient steps a start.
      restarts: starts. The first is `x` itself, the others are random in the ball.
      objective: what to ascend.
      targets: classes `[n]` that the objective aims at; None for any class but the label.
      step_size: length of a step as a share of the ball's radius, or a function of the share of steps done.
      momentum: what a step keeps of the one before, its gradients scaled to l1 norm 1 (MI-FGSM, arXiv 1710.06081).
      random_start: whether the first start is random too.

    Returns:
      The input of the lowest margin that was met for each example, `[n, ...]`, inside the ball. Whatever the objective
      and the targets, it is the margin of the label over the largest other class.

    Raises:
      BoundsError: where the ball is none that attacks know, labels are no classes `[n]` of the network, or `restarts`
        is below 1.
    """
    geometry.check(logits_fn, x, labels, ball)
    goal = (jnp.asarray(labels), None if targets is None else jnp.asarray(targets))
    return ascend(
        *(key, logits_fn, _of_logits, objective, x, ball, goal),
        **{"steps": steps, "restarts": restarts, "random_start": random_start},
        **{"step_size": step_size, "momentum": momentum},
    )


def _of_logits(
    logits_fn: LogitsFn, objective: Objective, points: jax.Array, goal: tuple[jax.Array, jax.Array | None]
) -> tuple[jax.Array, jax.Array]:
    logits = logits_fn(points)
    return objective(logits, *goal), lead(logits, goal[0])


def fgsm(
    key: jax.Array,
    logits_fn: LogitsFn,
    x: jax.Array,
    labels: jax.Array,
    ball: Interval,
    *,
    objective: Objective = cross_entropy,
    targets: jax.Array | None = None,
    random_start: bool = False,
) -> jax.Array:
    """One gradient step to the edge of the ball, on the cross-entropy (Goodfellow et al., arXiv 1412.6572).

    The step is two radii long and cut to the ball, so it ends in a corner also where the domain cuts the box. Else as
    `pgd`: `x` is returned where the step made the margin no smaller.
    """
    options = {"objective": objective, "targets": targets, "random_start": random_start}
    return pgd(key, logits_fn, x, labels, ball, steps=1, restarts=1, step_size=2.0, **options)


def ascend(
    key: jax.Array,
    logits_fn: LogitsFn,
    measure: Measure,
    option: Hashable,
    x: jax.Array,
    ball: Interval,
    goal: Any,
    *,
    steps: int,
    restarts: int,
    step_size: StepSize,
    momentum: float,
    random_start: bool,
) -> jax.Array:
    """`pgd` on any measure of the points.

    Args:
      key: as for `pgd`.
      logits_fn: as for `pgd`.
      measure: `(logits_fn, option, points, goal) -> (what to ascend, margins)`; a function of a module.
      option: what the measure depends on and no array is, hashable.
      x: as for `pgd`.
      ball: as for `pgd`.
      goal: a pytree of arrays that the measure depends on.
      steps: as for `pgd`.
      restarts: as for `pgd`.
      step_size: as for `pgd`.
      momentum: as for `pgd`.
      random_start: as for `pgd`.
    """
    if restarts < 1 or steps < 0:  # an attack that is none would break nothing
        raise BoundsError(f"PGD wants restarts >= 1 and steps >= 0, got {restarts} and {steps}.")
    x = jnp.asarray(x)
    options = (measure, option, step_size, momentum)
    loop, (look, advance) = stepwise(_parts, logits_fn, *options, arrays=(key, x, ball, goal))

    def step(i: int | jax.Array, search: _Search) -> _Search:
        return advance(jnp.asarray(i / steps, x.dtype), search, ball, goal)

    def start(i: int | jax.Array, best: Best) -> Best:
        points = geometry.uniform(jax.random.fold_in(key, i), ball)
        points = points if random_start else jnp.where(i == 0, x, points)
        search = _Search(points, jnp.zeros_like(points) if momentum else None, best)
        search = loop(0, steps, step, search)
        return look(search.best, search.points, goal)

    return loop(0, restarts, start, look(unknown(x), x, goal)).points


def _parts(
    logits_fn: LogitsFn, measure: Measure, option: Hashable, step_size: StepSize, momentum: float
) -> tuple[Callable[..., Best], Callable[..., _Search]]:
    """Looking at points, and one step after the share `done` of all."""

    def look(best: Best, points: jax.Array, goal: Any) -> Best:
        return keep(best, points, measure(logits_fn, option, points, goal)[1])

    def advance(done: jax.Array, search: _Search, ball: Interval, goal: Any) -> _Search:
        points, velocity, best = search
        _, uphill, found = value_and_gradient(lambda z: measure(logits_fn, option, z, goal), points)
        if velocity is not None:
            axes = tuple(range(1, uphill.ndim))
            size = jnp.maximum(jnp.sum(jnp.abs(uphill), axes, keepdims=True), jnp.finfo(uphill.dtype).tiny)
            uphill = velocity = momentum * velocity + uphill / size
        size = step_size(done) if callable(step_size) else step_size
        moved = geometry.project(ball, points + geometry.steepest(ball, uphill, size))
        return _Search(moved, velocity, keep(best, points, found))

    return look, advance


def descend(
    key: jax.Array,
    logits_fn: LogitsFn,
    labels: jax.Array,
    ball: Interval,
    *,
    steps: int,
    objective: Objective = cross_entropy,
) -> jax.Array:
    """The attack of adversarial training (Madry et al., arXiv 1706.06083): cheap, and a new one every step of training.

    Gradient ascent on an objective from one random start, in steps of 2.5 radii over their number. It returns
    where it ends, one gradient a step and nothing else; `pgd` is the stronger attack to measure with.

    Args:
      key: a random key.
      logits_fn: `[n, ...] -> [n, classes]`, examples independent of each other.
      labels: integer labels `[n]`.
      ball: where the attack may go, the domain included, `[n, ...]`.
      steps: gradient steps.
      objective: what to ascend.

    Returns:
      Inputs `[n, ...]` in the ball.
    """
    geometry.check_ball(ball)
    climb = ordered(
        functools.partial(value_and_gradient, lambda points: (objective(logits_fn(points), labels, None), None))
    )

    def step(_: jax.Array, points: jax.Array) -> jax.Array:
        return geometry.project(ball, points + geometry.steepest(ball, climb(points)[1], 2.5 / steps))

    return jax.lax.fori_loop(0, steps, step, geometry.uniform(key, ball))
