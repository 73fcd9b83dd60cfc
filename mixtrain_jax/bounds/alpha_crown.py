"""Alpha-CROWN: lower slopes of the ReLUs that are optimized for each row."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mixtrain_jax.bounds import rules
from mixtrain_jax.bounds.backward import Analysis, Linear, pull
from mixtrain_jax.bounds.engine import Bounded, Domain, joined, linear, read, slack, uses_of
from mixtrain_jax.bounds.errors import BoundsError
from mixtrain_jax.bounds.interval import Interval, intersect
from mixtrain_jax.bounds.loops import map_rows
from mixtrain_jax.bounds.symbolic import Method
from mixtrain_jax.bounds.tape import Op, Tape

Alphas = dict[int, jax.Array]  # position of an op on the tape -> slope of each entry, in [0, 1]


def alpha_crown(
    f: Callable[..., Any],
    *,
    steps: int = 20,
    tx: Any = None,
    chunk: int | None = None,
    budget: int | None = None,
    sound: bool = False,
    intersect: Sequence[Method] = (),
) -> Bounded:
    """Bound `f` by CROWN, then tighten each bound by gradient steps on the lower slopes (Xu et al., arXiv 2011.13824).

    Any slope between 0 and 1 is sound, so every step is, and the best one counts: the result is never looser than
    `crown`'s. Each row and each side of it has slopes of its own; the boxes of hidden layers are those of `crown`.

    Args:
      f: as for `ibp`.
      steps: gradient steps.
      tx: an `optax.GradientTransformation` for them; by default `optax.adam(0.1)`, which needs optax.
      chunk: as for `symbolic`.
      budget: as for `symbolic`.
      sound: as for `ibp`.
      intersect: as for `symbolic`.

    Returns:
      As `symbolic` does.

    Raises:
      BoundsError: where `steps` is not a positive integer.
    """
    if not isinstance(steps, int) or steps < 1:
        raise BoundsError(f"alpha_crown wants steps to be a positive integer, got {steps!r}.")
    if tx is None:
        tx = importlib.import_module("optax").adam(0.1)  # the one use of it here, when it is asked for
    domain = Domain("adaptive", tighten=True, chunk=chunk, budget=budget, sound=sound)
    return joined(f, domain, intersect, functools.partial(_finish, steps=steps, tx=tx))


def _finish(tape: Tape, known: Analysis, rows: Linear, domain: Domain, *, steps: int, tx: Any) -> Interval:
    plain = linear(tape, known, rows, domain)
    ops = {i: op for i, op in enumerate(tape.ops) if rules.find(op).tunable and known.relaxations[i] is not None}
    if not ops:
        return plain
    uses = uses_of(tape)

    def bound(row: Linear, alphas: Alphas) -> Interval:
        return pull(tape, with_slopes(known, ops, alphas, uses, domain), row, domain.sound)

    start = {i: adaptive_slopes(op, known) for i, op in ops.items()}

    def optimized(row: Linear) -> Interval:
        lower = _ascend(lambda alphas: bound(row, alphas).lower, start, steps, tx)
        return Interval(lower, -_ascend(lambda alphas: -bound(row, alphas).upper, start, steps, tx))

    return intersect(plain, map_rows(optimized, rows, domain.rows_at_a_time(tape)))


def with_slopes(known: Analysis, ops: dict[int, Op], alphas: Alphas, uses: Sequence[int], domain: Domain) -> Analysis:
    """The analysis with these lower slopes of ops, each in [0, 1]."""
    relaxations, slacks = list(known.relaxations), list(known.slack)
    for i, op in ops.items():
        relax = rules.find(op).relax
        relaxation = relax(op, read(known, op), alphas[i]) if relax else None
        assert relaxation is not None  # ops that are tunable have one
        relaxations[i] = relaxation
        slacks[i] = slack(op, relaxation, known, uses) if domain.sound else None
    return known._replace(relaxations=relaxations, slack=slacks)


def adaptive_slopes(op: Op, known: Analysis) -> jax.Array:
    """The slopes `crown` takes, which are where the steps start."""
    x, y = read(known, op)
    if not isinstance(x, Interval):
        x, y = y, x  # as the relaxation does
    low, high = rules.lower_end(x) - rules.upper_end(y), rules.upper_end(x) - rules.lower_end(y)
    if op.primitive.name == "min":
        low, high = -high, -low
    return jnp.broadcast_to(jax.lax.stop_gradient((high > -low).astype(high.dtype)), op.outputs[0].shape)


def _ascend(f: Callable[[Alphas], jax.Array], alphas: Alphas, steps: int, tx: Any) -> jax.Array:
    """The largest value of `f` met on the way; its gradient is that at the slopes found."""

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        alphas, state, best, chosen = carry
        value, gradient = jax.value_and_grad(f)(alphas)
        better = value > best
        chosen = jax.tree.map(lambda new, old: jnp.where(better, new, old), alphas, chosen)
        with jax.numpy_dtype_promotion("standard"):  # which optax wants, whatever the caller does
            updates, state = tx.update(jax.tree.map(_downhill, gradient), state, alphas)
        alphas = jax.tree.map(lambda a, b: jnp.clip(a + b, 0, 1), alphas, updates)
        return (alphas, state, jnp.where(better, value, best), chosen), None

    first = (alphas, tx.init(alphas), jnp.full_like(jax.eval_shape(f, alphas), -jnp.inf), alphas)
    (last, _, best, chosen), _ = jax.lax.scan(step, jax.lax.stop_gradient(first), length=steps)
    value = f(last)
    chosen = jax.tree.map(lambda new, old: jnp.where(value > best, new, old), last, chosen)
    return f(jax.lax.stop_gradient(chosen))


def _downhill(gradient: jax.Array) -> jax.Array:
    """Minus the gradient; a slope without one stays where it is, for NaN would end the search of all."""
    return jnp.where(jnp.isfinite(gradient), -gradient, 0)
