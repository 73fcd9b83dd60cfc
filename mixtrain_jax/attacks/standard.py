"""The standard ensemble of attacks (AutoAttack; Croce and Hein, arXiv 2003.01690, section 5)."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixtrain_jax.attacks.apgd import apgd
from mixtrain_jax.attacks.combinators import targeted
from mixtrain_jax.attacks.fab import fab
from mixtrain_jax.attacks.in_turn import in_turn
from mixtrain_jax.attacks.objectives import cross_entropy, dlr
from mixtrain_jax.attacks.search import Attack, LogitsFn, Poll
from mixtrain_jax.attacks.square import square
from mixtrain_jax.bounds import Interval


class Budget(NamedTuple):
    """How much each attack of the ensemble may do; the defaults are the published budget. Zero leaves attacks out."""

    steps: int = 100  # of APGD and FAB, for each target
    targets: int = 9  # of APGD and FAB
    queries: int = 5000  # of Square


QUICK = Budget(steps=20, targets=3, queries=200)


def standard(
    key: jax.Array,
    logits_fn: LogitsFn,
    x: jax.Array,
    labels: jax.Array,
    ball: Interval,
    *,
    budget: Budget = Budget(),  # noqa: B008, a tuple
    domain: tuple[float, float] | None = None,
    batch_size: int = 128,
    poll: Poll = lambda what, done, total: None,
) -> jax.Array:
    """The standard ensemble as one attack: `standard_attacks` in turn, each on what the others left.

    Args:
      key: a random key.
      logits_fn: `[n, ...] -> [n, classes]`, examples independent of each other; hashable.
      x: inputs `[n, ...]` in `ball`; images `[n, height, width, channels]` for Square.
      labels: integer labels `[n]`.
      ball: where the attacks may go, the domain included: a box, or a Euclidean ball for each example.
      budget: as for `standard_attacks`.
      domain: as for `standard_attacks`.
      batch_size: as for `in_turn`.
      poll: as for `in_turn`.

    Returns:
      The input of the lowest margin that was met for each example, `[n, ...]`, inside the ball.

    Raises:
      BoundsError: inside `jax.jit`, or where the ball is of the l1 norm.
    """
    attacks = standard_attacks(budget, domain)
    return jnp.asarray(in_turn(key, logits_fn, x, labels, ball, attacks, batch_size=batch_size, poll=poll).adversarial)


def standard_attacks(
    budget: Budget = Budget(),  # noqa: B008, a tuple
    domain: tuple[float, float] | None = None,
) -> dict[str, Attack]:
    """APGD on the cross-entropy, APGD on the targeted DLR, FAB-T and Square, in their published order, for `in_turn`.

    A batch in which all examples have fallen ends within ten steps.

    Args:
      budget: of each attack; `QUICK` for a first look.
      domain: lowest and highest value of inputs, for FAB, which searches outside the ball too.
    """
    climb = functools.partial(apgd, steps=budget.steps, early_exit=True)
    closest = functools.partial(fab, steps=budget.steps, domain=domain, early_exit=True)
    attacks: dict[str, Attack] = {}
    if budget.steps:
        attacks["apgd-ce"] = functools.partial(climb, objective=cross_entropy)
    if budget.steps and budget.targets:
        attacks["apgd-dlr-t"] = targeted(functools.partial(climb, objective=dlr), budget.targets)
        attacks["fab-t"] = targeted(closest, budget.targets)
    if budget.queries:
        attacks["square"] = functools.partial(square, queries=budget.queries)
    return attacks
