"""Many attacks on many examples, each attack on what the ones before it left."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mixtrain_jax.attacks.combinators import Targeted
from mixtrain_jax.attacks.geometry import check
from mixtrain_jax.attacks.objectives import lead, likeliest
from mixtrain_jax.attacks.search import Attack, LogitsFn, Poll, stepwise
from mixtrain_jax.bounds import BoundsError, Interval

NO_CLASS = -1  # of logits that are no numbers
# The second is all that some kernels of CPUs say where they get no memory to work in.
_NO_MEMORY = ("RESOURCE_EXHAUSTED", "YNNPACK operation failed")


@dataclasses.dataclass(frozen=True)
class Record:
    """What attacks did to every example.

    Attributes:
      adversarial: the input of the lowest margin met, `[n, ...]`; the example itself where that was wrong before.
      margin: its margin, `[n]`, the label's logit minus the largest other one.
      seen_as: class that the network takes it for, `[n]`; -1 where a logit is NaN or infinite, which is wrong too.
      broken_by: str `[n]`, "clean" where the example was wrong before, else the attack; "" where it stands.
      seconds: spent in each attack, in order, compilation included.
    """

    adversarial: np.ndarray
    margin: np.ndarray
    seen_as: np.ndarray
    broken_by: np.ndarray
    seconds: dict[str, float]

    @property
    def attacks(self) -> tuple[str, ...]:
        """The attacks that were run, in order."""
        return tuple(self.seconds)

    @property
    def standing(self) -> np.ndarray:
        """Examples that are classified rightly under all attacks, bool `[n]`."""
        return self.broken_by == ""


def in_turn(
    key: jax.Array,
    logits_fn: LogitsFn,
    x: ArrayLike,
    labels: ArrayLike,
    ball: Interval,
    attacks: Mapping[str, Attack],
    *,
    batch_size: int = 128,
    poll: Poll = lambda what, done, total: None,
    spread: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda f: f,
) -> Record:
    """Run attacks one after the other, each on the examples that are still standing.

    A run is one attack on one example, at one of the targets where it is `targeted`. Runs wait in a queue and go to the
    device in batches of exactly `batch_size`, the last ones padded, so that nothing is compiled twice and memory does
    not depend on `n`; those of examples that fell meanwhile are dropped from the queue. Whether an example fell is not
    for the attack to say: what it returns is classified anew. Where the device has too little memory for a batch, the
    rest goes on in batches of half the size.

    It looks at values between batches, so it does not run inside `jax.jit`.

    Args:
      key: a random key.
      logits_fn: `[n, ...] -> [n, classes]`, examples independent of each other; hashable.
      x: inputs `[n, ...]` in `ball`.
      labels: integer labels `[n]`.
      ball: where the attacks may go, the domain included: a box, or a Euclidean ball for each example.
      attacks: by name, cheapest first.
      batch_size: runs on the device at a time.
      poll: called after every batch with the name of the attack, its runs that are done or dropped, and all its runs;
        whatever it raises ends the attack.
      spread: what every function of a batch goes through, such as `parallel.data_parallel(mesh)`; by default nothing.

    Raises:
      BoundsError: inside `jax.jit`, where the ball is none that attacks know, labels are no classes `[n]`, or there is
        too little memory for a single example.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((key, x, labels, ball))):
        raise BoundsError("Attacks in turn look at values and can't run inside jax.jit; call them outside.")
    check(logits_fn, x, labels, ball, batch_size)
    images, labels = np.asarray(x), np.asarray(labels, np.int32)
    ball, n = jax.tree.map(np.asarray, ball), len(images)
    _, (look,) = stepwise(_looking, logits_fn, arrays=images)
    look = spread(look)

    def looked(points: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Margins `[rows]`, classes `[rows]` and wrong ones, likeliest first, of a batch of points."""
        return jax.device_get(look(points, labels[rows]))

    adversarial, least, seen_as, likeliest_first = images.copy(), np.empty(n, images.dtype), labels.copy(), []
    start = 0
    while start < n:
        rows = np.arange(start, min(start + batch_size, n))
        padded = _padded(rows, batch_size)
        try:
            found = [part[: len(rows)] for part in looked(images[padded], padded)]
        except jax.errors.JaxRuntimeError as error:
            batch_size = smaller(batch_size, error)
            continue
        least[rows], seen_as[rows] = found[:2]
        likeliest_first.append(found[2])
        start += len(rows)
    broken_by, seconds = np.where(seen_as == labels, "", "clean").astype(object), {}
    targets = np.concatenate(likeliest_first) if n else np.empty((0, 1), labels.dtype)

    for number, (name, attack) in enumerate(attacks.items()):
        started, attack_key = time.monotonic(), jax.random.fold_in(key, number)
        run, ranks = attack, 0
        if isinstance(attack, Targeted):
            run, ranks = attack.attack, min(attack.classes, targets.shape[1])
        run = spread(run)
        standing = np.flatnonzero(broken_by == "")
        queue, rank = np.tile(standing, ranks or 1), np.repeat(np.arange(ranks or 1), len(standing))
        total, batch = len(queue), 0
        while len(queue):
            places = _padded(np.arange(min(len(queue), batch_size)), batch_size)
            rows, count = queue[places], min(len(queue), batch_size)
            aim = {"targets": targets[rows, rank[places]]} if ranks else {}
            parts = jax.tree.map(lambda leaf, rows=rows: leaf[rows], (images, labels, ball))
            try:
                met = np.asarray(run(jax.random.fold_in(attack_key, batch), logits_fn, *parts, **aim))
                margins, classes, _ = (part[:count] for part in looked(met, rows))
            except jax.errors.JaxRuntimeError as error:
                batch_size = smaller(batch_size, error)
                continue
            met, rows, batch = met[:count], rows[:count], batch + 1
            wrong = classes != labels[rows]
            order = np.argsort(-margins, kind="stable")  # the lowest of an example last, which an assignment keeps
            order = order[wrong[order] | (margins[order] < least[rows[order]])]
            adversarial[rows[order]], least[rows[order]] = met[order], margins[order]
            seen_as[rows[order]] = classes[order]
            broken_by[rows[wrong]] = name
            left = broken_by[queue] == ""
            left[:count] = False
            queue, rank = queue[left], rank[left]
            poll(name, total - len(queue), total)
        seconds[name] = time.monotonic() - started
    return Record(adversarial, least, seen_as, broken_by.astype(str), seconds)


def smaller(batch_size: int, error: jax.errors.JaxRuntimeError) -> int:
    """Half the size of a batch that the device had too little memory for.

    Raises:
      BoundsError: where it was a single example.
      jax.errors.JaxRuntimeError: the error itself, where that is another one.
    """
    if not any(words in str(error) for words in _NO_MEMORY):
        raise error
    if batch_size == 1:
        raise BoundsError(f"There is too little memory for a single example: {str(error).splitlines()[0]}") from error
    return batch_size // 2


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    return rows[np.minimum(np.arange(size), len(rows) - 1)]


def _looking(logits_fn: LogitsFn) -> tuple[Callable[..., Any]]:
    def look(points: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        logits = logits_fn(points)
        is_class = jnp.isfinite(logits).all(-1)  # the largest of logits that overflow says nothing
        seen_as = jnp.where(is_class, jnp.argmax(logits, -1), NO_CLASS).astype(labels.dtype)
        return lead(logits, labels), seen_as, likeliest(logits, labels, logits.shape[-1])

    return (look,)
