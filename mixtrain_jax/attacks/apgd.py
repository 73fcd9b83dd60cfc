"""Auto-PGD: projected gradient ascent that chooses its own step sizes (Croce and Hein, arXiv 2003.01690, alg. 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.attacks.geometry import check, project, spread, steepest, uniform
from mixtrain_jax.attacks.gradients import value_and_gradient
from mixtrain_jax.attacks.objectives import Objective, cross_entropy, lead
from mixtrain_jax.attacks.search import LogitsFn, stepwise
from mixtrain_jax.bounds import Interval

_MOMENTUM = 0.75  # share of the new step; the rest repeats the last one


class _Search(NamedTuple):
    """Where an attack stands; points `[n, ...]`, all else `[n]`."""

    points: jax.Array
    before: jax.Array  # points of the step before
    value: jax.Array  # of the objective at the points
    gradient: jax.Array
    top: jax.Array  # the points of the highest value
    top_value: jax.Array
    top_gradient: jax.Array
    size: jax.Array  # of a step, in radii
    rises: jax.Array  # steps since the last checkpoint that rose
    checked: jax.Array  # `top_value` at the last checkpoint
    halved: jax.Array  # whether the last checkpoint halved the step
    best: jax.Array  # the points of the lowest margin
    margin: jax.Array  # of the best


def apgd(
    key: jax.Array,
    logits_fn: LogitsFn,
    x: jax.Array,
    labels: jax.Array,
    ball: Interval,
    *,
    steps: int = 100,
    restarts: int = 1,
    objective: Objective = cross_entropy,
    targets: jax.Array | None = None,
    rho: float = 0.75,
    early_exit: bool = False,
) -> jax.Array:
    """Gradient ascent with momentum from uniform starts; the step of an example halves at checkpoints.

    It starts at two radii and halves where fewer than a share `rho` of the steps since the last checkpoint rose, or
    where neither the step nor the highest value changed; the example then goes on from its highest value.

    Called outside `jax.jit`, every step is one compiled call; compilation happens once for a `logits_fn`, which must be
    hashable, an objective and a shape. Inside `jax.jit` it is a loop in the compiled program, many times slower on CPU
    where the network has convolutions.

    Args:
      key: a random key.
      logits_fn: `[n, ...] -> [n, classes]`, examples independent of each other.
      x: inputs `[n, ...]` in `ball`.
      labels: integer labels `[n]`.
      ball: where the attack may go, the domain included: a box, or a Euclidean ball for each example.
      steps: gradient steps a start.
      restarts: starts.
      objective: what is ascended.
      targets: classes `[n]` to aim at, for objectives that have targets.
      rho: share of the steps that have to rise.
      early_exit: stop once every label has lost, looked at every ten steps; outside `jax.jit` alone.

    Returns:
      The input of the lowest margin that was met for each example, that of `x` included, `[n, ...]`, inside the ball.

    Raises:
      BoundsError: where the ball is none that attacks know, or labels are no classes `[n]` of the network.
    """
    check(logits_fn, x, labels, ball)
    x, labels = jnp.asarray(x), jnp.asarray(labels)
    loop, (begin, advance) = stepwise(_parts, logits_fn, objective, arrays=(key, x, labels, ball, targets))
    windows = _windows(steps)
    shares = np.where(np.arange(steps) == 0, 1.0, _MOMENTUM).astype(x.dtype)
    aim = (labels, ball, targets)

    def step(i: Any, search: _Search) -> _Search:
        window, share = (table[i] if isinstance(i, int) else jnp.asarray(table)[i] for table in (windows, shares))
        return advance(search, *aim, window, share, rho)

    def broken(search: _Search) -> jax.Array:
        return (search.margin < 0).all()

    def start(i: Any, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        search = begin(jax.random.fold_in(key, i), *found, *aim)
        search = loop(0, steps, step, search, broken if early_exit else None)
        return search.best, search.margin

    _, (look,) = stepwise(_looking, logits_fn, arrays=(key, x, labels, ball, targets))
    return loop(0, restarts, start, (x, look(x, labels)[1]))[0]


def _windows(steps: int) -> np.ndarray:
    """Steps since the checkpoint before, at those steps that end in a checkpoint, 0 at the others: `[steps]`."""
    windows = np.zeros(steps, np.int32)
    window, end = max(22 * steps // 100, 1), 0
    while end + window <= steps:
        end += window
        windows[end - 1] = window
        window = max(window - max(3 * steps // 100, 1), 6 * steps // 100, 1)
    return windows


def _looking(logits_fn: LogitsFn) -> tuple[Callable[..., tuple[jax.Array, jax.Array]]]:
    def look(points: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits and margins of points."""
        logits = logits_fn(points)
        return logits, lead(logits, labels)

    return (look,)


def _parts(logits_fn: LogitsFn, objective: Objective) -> tuple[Callable[..., _Search], Callable[..., _Search]]:
    """The start of a search, and one step of it."""
    (look,) = _looking(logits_fn)

    def climb(
        points: jax.Array, labels: jax.Array, targets: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Value of the objective, its gradient and the margin."""

        def measure(points: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits, margins = look(points, labels)
            return objective(logits, labels, targets), margins

        return value_and_gradient(measure, points)

    def begin(
        key: jax.Array,
        best: jax.Array,
        least: jax.Array,
        labels: jax.Array,
        ball: Interval,
        targets: jax.Array | None,
    ) -> _Search:
        points = uniform(key, ball)
        value, gradient, margins = climb(points, labels, targets)
        lower = margins < least
        none = jnp.zeros_like(value)
        return _Search(
            *(points, points, value, gradient, points, value, gradient),
            *(jnp.full_like(value, 2.0), none, value, none == 0),
            *(jnp.where(spread(lower, points), points, best), jnp.where(lower, margins, least)),
        )

    def advance(
        search: _Search,
        labels: jax.Array,
        ball: Interval,
        targets: jax.Array | None,
        window: jax.Array,
        share: jax.Array,
        rho: float,
    ) -> _Search:
        points = search.points
        step = spread(search.size, points) * steepest(ball, search.gradient)
        moved = project(ball, points + step)
        moved = project(ball, points + share * (moved - points) + (1 - share) * (points - search.before))
        value, gradient, margins = climb(moved, labels, targets)
        rises = search.rises + (value > search.value).astype(value.dtype)
        high, low = value > search.top_value, margins < search.margin
        top = jnp.where(spread(high, moved), moved, search.top)
        top_value = jnp.where(high, value, search.top_value)
        top_gradient = jnp.where(spread(high, moved), gradient, search.top_gradient)
        few = rises < rho * window.astype(value.dtype)
        stuck = ~search.halved & (top_value <= search.checked)
        check = window > 0
        halve = check & (few | stuck)
        again = spread(halve, moved)
        return _Search(
            points=jnp.where(again, top, moved),
            before=points,
            value=jnp.where(halve, top_value, value),
            gradient=jnp.where(again, top_gradient, gradient),
            top=top,
            top_value=top_value,
            top_gradient=top_gradient,
            size=jnp.where(halve, search.size / 2, search.size),
            rises=jnp.where(check, 0.0, rises),
            checked=jnp.where(check, top_value, search.checked),
            halved=jnp.where(check, halve, search.halved),
            best=jnp.where(spread(low, moved), moved, search.best),
            margin=jnp.where(low, margins, search.margin),
        )

    return begin, advance
