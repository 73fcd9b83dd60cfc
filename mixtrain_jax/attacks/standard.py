"""The standard ensemble of attacks (AutoAttack; Croce and Hein, arXiv 2003.01690, section 5)."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mixtrain_jax.attacks.apgd import apgd
from mixtrain_jax.attacks.fab import fab_targeted
from mixtrain_jax.attacks.in_turn import EachTarget, Poll, Record, in_turn
from mixtrain_jax.attacks.objectives import cross_entropy, dlr
from mixtrain_jax.attacks.search import Attack, LogitsFn
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
    """`standard_record` as an attack: its inputs alone.

    Args:
      key: as for `standard_record`, and so are all others.
      logits_fn: `[n, ...] -> [n, classes]`.
      x: inputs `[n, ...]` in `ball`.
      labels: integer labels `[n]`.
      ball: where the attacks may go.
      budget: of each attack.
      domain: of inputs.
      batch_size: of everything that runs on the device.
      poll: called with progress.

    Returns:
      The input of the lowest margin that was met for each example, `[n, ...]`, inside the ball.

    Raises:
      BoundsError: as `standard_record` does.
    """
    options: dict[str, Any] = {"budget": budget, "domain": domain, "batch_size": batch_size, "poll": poll}
    return jnp.asarray(standard_record(key, logits_fn, x, labels, ball, **options).adversarial)


def standard_record(
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
) -> Record:
    """Attack by APGD on the cross-entropy, APGD on the targeted DLR, FAB-T and Square, each what the others left.

    The order and the budgets are the published ones. A run is one attack on one example at one target. Runs wait in a
    queue and go to the device in batches of exactly `batch_size`, the last ones padded, so that nothing is compiled
    twice and memory does not depend on `n`; those of examples that fell meanwhile are dropped from the queue, and a
    batch in which all have fallen ends within ten steps.

    It looks at values between batches, so it does not run inside `jax.jit`.

    Args:
      key: a random key.
      logits_fn: `[n, ...] -> [n, classes]`, examples independent of each other; hashable.
      x: inputs `[n, ...]` in `ball`; images `[n, height, width, channels]` for Square.
      labels: integer labels `[n]`.
      ball: where the attacks may go, the domain included: a box, or a Euclidean ball for each example.
      budget: of each attack; `QUICK` for a first look.
      domain: lowest and highest value of inputs, for FAB, which searches outside the ball too.
      batch_size: runs on the device at a time.
      poll: called after every batch with the name of the attack, its runs that are done or dropped, and all its runs;
        whatever it raises ends the attack.

    Raises:
      BoundsError: inside `jax.jit`, or where the ball is of the l1 norm.
    """
    attacks = standard_attacks(budget, domain)
    return in_turn(key, logits_fn, x, labels, ball, attacks, batch_size=batch_size, poll=poll)


def standard_attacks(
    budget: Budget = Budget(),  # noqa: B008, a tuple
    domain: tuple[float, float] | None = None,
) -> dict[str, Attack | EachTarget]:
    """The attacks of the ensemble in their published order, for `in_turn`.

    Args:
      budget: of each attack; `QUICK` for a first look.
      domain: lowest and highest value of inputs, for FAB, which searches outside the ball too.
    """
    climb = functools.partial(apgd, steps=budget.steps, early_exit=True)
    closest = functools.partial(fab_targeted, steps=budget.steps, domain=domain, early_exit=True)
    attacks: dict[str, Attack | EachTarget] = {}
    if budget.steps:
        attacks["apgd-ce"] = functools.partial(climb, objective=cross_entropy)
    if budget.steps and budget.targets:
        attacks["apgd-dlr-t"] = EachTarget(functools.partial(climb, objective=dlr), budget.targets)
        attacks["fab-t"] = EachTarget(closest, budget.targets)
    if budget.queries:
        attacks["square"] = functools.partial(square, queries=budget.queries)
    return attacks
