"""The standard ensemble of attacks (AutoAttack; Croce and Hein, arXiv 2003.01690, section 5)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.attacks.apgd import apgd
from mixtrain_jax.attacks.fab import fab_targeted
from mixtrain_jax.attacks.geometry import check_norm
from mixtrain_jax.attacks.loops import LogitsFn, is_traced
from mixtrain_jax.attacks.objectives import cross_entropy, dlr, likeliest, margin
from mixtrain_jax.attacks.square import square
from mixtrain_jax.bounds import BoundsError, Interval

Poll = Callable[[str, int, int], None]  # (which attack, its runs done, its runs in all); may raise to stop


class Budget(NamedTuple):
    """How much each attack of the ensemble may do; the defaults are the published budget. Zero leaves attacks out."""

    steps: int = 100  # of APGD and FAB, for each target
    targets: int = 9  # of APGD and FAB
    queries: int = 5000  # of Square


QUICK = Budget(steps=20, targets=3, queries=200)


@dataclasses.dataclass(frozen=True)
class Record:
    """What the ensemble did to every example."""

    adversarial: (
        np.ndarray
    )  # [n, ...]: the input of the lowest margin met; the example itself where it was wrong before
    broken_by: np.ndarray  # [n], str: "clean" where it was wrong before, else the attack; "" where it stands
    attacks: tuple[str, ...]  # those that were run, in order

    @property
    def standing(self) -> np.ndarray:
        """Examples that are classified rightly under all attacks, bool `[n]`."""
        return self.broken_by == ""


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
    check_norm(ball)
    if is_traced(key, x, labels, ball):
        raise BoundsError("The standard ensemble looks at values and can't run inside jax.jit; call it outside.")
    clean, truth = np.asarray(x), np.asarray(labels)
    ball = jax.tree.map(np.asarray, ball)
    look, attacks = _look(logits_fn), _attacks(budget, domain)
    n, aims = len(clean), max(budget.targets, 1)
    adversarial, least = clean.copy(), np.empty(n, clean.dtype)
    right, classes = np.empty(n, bool), []
    for start in range(0, n, batch_size):
        rows = np.arange(start, min(start + batch_size, n))
        padded = _padded(rows, batch_size)
        found = jax.device_get(look(clean[padded], truth[padded], targets=aims))
        least[rows], right[rows] = (part[: len(rows)] for part in found[:2])
        classes.append(found[2][: len(rows)])
    classes = np.concatenate(classes) if classes else np.empty((0, aims), truth.dtype)
    broken_by = np.where(right, "", "clean").astype(object)

    batches = 0
    for name, (attack, targeted) in attacks.items():
        standing = np.flatnonzero(broken_by == "")
        count = classes.shape[1] if targeted else 1
        images, ranks = np.tile(standing, count), np.repeat(np.arange(count), len(standing))
        total = len(images)
        while len(images):
            rows, padded = images[:batch_size], _padded(np.arange(min(len(images), batch_size)), batch_size)
            of_batch = images[padded]
            aim = {"targets": classes[of_batch, ranks[padded]]} if targeted else {}
            parts = jax.tree.map(lambda leaf, of=of_batch: leaf[of], (clean, truth, ball))
            met = attack(jax.random.fold_in(key, batches), logits_fn, *parts, **aim)
            found = jax.device_get((met, *look(met, truth[of_batch], targets=aims)[:2]))
            batches += 1
            met, margins, right = (part[: len(rows)] for part in found)
            order = np.argsort(-margins)  # the lowest of an example last, which is what an assignment keeps
            order = order[~right[order] | (margins[order] < least[rows[order]])]
            adversarial[rows[order]], least[rows[order]] = met[order], margins[order]
            broken_by[rows[~right]] = name
            still = broken_by[images] == ""
            still[: len(rows)] = False
            images, ranks = images[still], ranks[still]
            poll(name, total - len(images), total)
    return Record(adversarial, broken_by.astype(str), tuple(attacks))


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    return rows[np.minimum(np.arange(size), len(rows) - 1)]


def _attacks(budget: Budget, domain: tuple[float, float] | None) -> dict[str, tuple[Callable[..., jax.Array], bool]]:
    """The ensemble: each attack, and whether it has targets."""
    climb = functools.partial(apgd, steps=budget.steps, early_exit=True)
    closest = functools.partial(fab_targeted, steps=budget.steps, domain=domain, early_exit=True)
    attacks: dict[str, tuple[Callable[..., jax.Array], bool]] = {}
    if budget.steps:
        attacks["apgd-ce"] = functools.partial(climb, objective=cross_entropy), False
    if budget.steps and budget.targets:
        attacks["apgd-dlr-t"] = functools.partial(climb, objective=dlr), True
        attacks["fab-t"] = closest, True
    if budget.queries:
        attacks["square"] = functools.partial(square, queries=budget.queries), False
    return attacks


@functools.lru_cache(maxsize=1)  # of the network at hand; no other one's weights are kept alive
def _look(logits_fn: LogitsFn) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """Margins of points, whether they are classified rightly, and the likeliest other classes."""

    @functools.partial(jax.jit, static_argnames="targets")
    def look(points: jax.Array, labels: jax.Array, *, targets: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        logits = logits_fn(points)
        right = jnp.argmax(logits, -1).astype(labels.dtype) == labels
        return -margin(logits, labels), right, likeliest(logits, labels, targets)

    return look
