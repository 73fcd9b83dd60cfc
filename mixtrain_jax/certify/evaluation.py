"""Clean, attacked and verified accuracy, image by image.

Everything here runs at the highest matmul precision: the defaults of accelerators are far too coarse for a proof.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax import bounds, environment
from mixtrain_jax.attacks import NO_CLASS, Attack, LogitsFn, Poll, Record, in_turn, pgd, smaller
from mixtrain_jax.bounds import Method, margins
from mixtrain_jax.bounds.outward import domain_ends, round_up
from mixtrain_jax.certify.network import check_network
from mixtrain_jax.data import Split
from mixtrain_jax.errors import SoundnessError
from mixtrain_jax.threat import Threat

Spread = Callable[[Callable[..., Any]], Callable[..., Any]]  # as in `parallel`, which is not for certificates to know


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is known of every image of a split under one threat; arrays of `[n]` unless said otherwise."""

    threat: Threat
    seconds: dict[str, float]  # spent in each attack and each method, compilation included
    predictions: np.ndarray  # classes of the unperturbed images; -1 where a logit is NaN or infinite, here and below
    clean: np.ndarray  # bool: classified rightly
    attacked: np.ndarray  # bool: and still so under every attack
    verified: np.ndarray  # bool: and proved so for the whole ball
    margin: np.ndarray  # largest lower bound of the smallest margin that a method found; -inf where none was tried
    proved_by: np.ndarray  # str: first method that proved it, "" where none did
    broken_by: np.ndarray  # str: first attack that broke it, "" where none did
    adversarial: np.ndarray  # [n, ...]: input of the lowest margin that an attack met; the image where that was wrong
    seen_as: np.ndarray  # classes of those inputs

    def first(self, count: int) -> Evaluation:
        """What is known of the first `count` images."""
        per_image = {field.name: getattr(self, field.name)[:count] for field in dataclasses.fields(self)[2:]}
        return dataclasses.replace(self, **per_image)

    def accuracies(self) -> dict[str, float]:
        """The three shares of the images."""
        return {
            "clean_accuracy": float(self.clean.mean()),
            "attacked_accuracy": float(self.attacked.mean()),
            "verified_accuracy": float(self.verified.mean()),
        }

    def withstood(self, attacks: Sequence[str]) -> np.ndarray:
        """Which images are classified rightly and were broken by none of these attacks, `[n]`."""
        return self.clean & ~np.isin(self.broken_by, attacks)


@dataclasses.dataclass(frozen=True)
class Curve:
    """The three accuracies over a range of radii, `[points]` each, and the radius proved for every image, `[n]`."""

    eps: np.ndarray
    clean: np.ndarray
    attacked: np.ndarray
    verified: np.ndarray
    radius: np.ndarray  # -1 where not even the image itself is classified rightly


def evaluate(
    key: jax.Array,
    logits_fn: LogitsFn,
    split: Split,
    threat: Threat,
    *,
    attacks: Mapping[str, Attack],
    methods: Mapping[str, Method],
    skip_proved: bool = False,
    batch_size: int = 128,
    poll: Poll = lambda what, done, total: None,
    spread: Spread = lambda f: f,
) -> Evaluation:
    """Measure a classifier on a whole split.

    Attacks come one after another, each on the images that are still standing, and so do methods, each on the images
    that are neither proved nor broken; but the first method, the cheapest, has to fail on the broken ones too. Batches
    that there is too little memory for are halved.

    What is proved cannot be broken, so a network that is mostly proved is measured many times faster where attacks skip
    what is. The numbers are the same; but that no attack breaks what is proved is then seen of the first attack alone.

    Args:
      key: random key of the attacks.
      logits_fn: `[n, ...] -> [n, classes]`, examples independent of each other.
      split: images and labels.
      threat: what may be done to an image.
      attacks: by name, cheapest first.
      methods: bounds by name, cheapest first.
      skip_proved: whether the first method comes right after the first attack, and the other attacks skip the images
        that it proves.
      batch_size: images on the device at a time; attacks take fewer where that is faster.
      poll: called with progress after every batch; whatever it raises ends the evaluation.
      spread: what every function of a batch goes through, such as `parallel.data_parallel(mesh)`; by default nothing.

    Raises:
      BoundsError: where images, labels, logits or `batch_size` are not as described above, labels no classes, pixels
        not in the domain, images mixed by the network, or there is too little memory for a single image.
      SoundnessError: where an image is both proved and broken, or an attack returns a point outside the ball.
    """
    split, n = split.floats(), len(split)
    _check(split, threat, batch_size)
    with jax.default_matmul_precision("highest"):
        predict = jax.jit(logits_fn)

        def logits_of(images: np.ndarray) -> np.ndarray:
            over = spread if len(images) == batch_size else lambda f: f
            return _in_batches(predict, [images], len(images), lambda done, total: None, over)

        check_network(logits_fn, split, batch_size, logits_of=logits_of, claims=bool(methods))
        logits = _in_batches(predict, [split.images], batch_size, functools.partial(poll, "predict"), spread)
        predictions = np.where(np.isfinite(logits).all(-1), logits.argmax(-1), NO_CLASS).astype(np.int32)
        clean = predictions == split.labels
        standing, adversarial, seen_as = clean.copy(), split.images.copy(), predictions.copy()
        broken_by, lowest = np.full(n, "", dtype=object), np.full(n, np.inf)
        proved_by, margin = np.full(n, "", dtype=object), np.full(n, -np.inf)
        seconds: dict[str, float] = {}

        def attack(rows: np.ndarray, attacks: Mapping[str, Attack], key: jax.Array) -> None:
            record = attack_all(key, attacks, logits_fn, split[rows], threat, batch_size, poll, spread)
            standing[rows], broken_by[rows] = record.standing, record.broken_by
            lower = ~(record.margin >= lowest[rows])  # NaN too
            adversarial[rows[lower]], seen_as[rows[lower]] = record.adversarial[lower], record.seen_as[lower]
            lowest[rows[lower]] = record.margin[lower]
            seconds.update(record.seconds)

        def prove(rows: np.ndarray, name: str) -> None:
            started = time.monotonic()
            bound = jax.jit(functools.partial(_smallest_margin, methods[name], logits_fn, threat))
            found = _in_batches(
                bound,
                [split.images[rows], split.labels[rows], threat.radii(len(rows))],
                batch_size,
                functools.partial(poll, f"certify by {name}"),
                spread,
            )
            margin[rows] = np.fmax(margin[rows], found)
            proved_by[rows[found > 0]] = name  # NaN proves nothing
            seconds[name] = time.monotonic() - started

        names, count = list(attacks), 1 if skip_proved and methods else len(attacks)
        now, later = ({name: attacks[name] for name in part} for part in (names[:count], names[count:]))
        attack(np.flatnonzero(clean), now, key)
        for i, name in enumerate(methods):
            prove(np.flatnonzero(clean & (proved_by == "") & (standing | (i == 0))), name)
            if i == 0 and later:
                attack(np.flatnonzero(standing & (proved_by == "")), later, jax.random.fold_in(key, len(names)))
    verified = proved_by != ""
    _assert_sound(verified & ~standing, threat.eps)
    return Evaluation(
        threat,
        seconds,
        predictions,
        clean,
        standing,
        verified,
        margin,
        proved_by.astype(str),
        broken_by.astype(str),
        adversarial,
        seen_as,
    )


def _check(split: Split, threat: Threat, batch_size: int) -> None:
    images, labels = split.images, split.labels
    if batch_size < 1:
        raise bounds.BoundsError(f"An evaluation wants a batch_size of 1 or more, got {batch_size}.")
    if images.shape[:1] != labels.shape or not np.issubdtype(labels.dtype, np.integer):
        raise bounds.BoundsError(
            f"An evaluation wants one integer label an image, got {labels.dtype}{list(labels.shape)} for images "
            f"{list(images.shape)}."
        )
    low, high = domain_ends(threat.domain, np.float32)
    inside = ((images >= low) & (images <= high)).reshape(len(images), -1).all(-1)  # NaN is not
    if not inside.all():
        raise bounds.BoundsError(
            f"An evaluation wants pixels in {threat.domain}; image {np.argmin(inside)} has others "
            f"({(~inside).sum()} such images)."
        )


def measure_curve(
    key: jax.Array,
    logits_fn: LogitsFn,
    split: Split,
    at: Evaluation,
    *,
    methods: Mapping[str, Method],
    reach: float = 2.5,
    points: int = 21,
    attack_steps: int = 100,
    batch_size: int = 128,
    poll: Poll = lambda what, done, total: None,
    spread: Spread = lambda f: f,
) -> Curve:
    """Accuracies as functions of the radius, from 0 to `reach` times the radius of an evaluation, that one included.

    The proved radius of an image is found by bisection, to within a four-thousandth of the range; being proved at a
    radius proves all smaller ones. An image that an attack broke at a radius counts as broken at all larger ones.

    Args:
      key: random key of the attacks.
      logits_fn: as for `evaluate`.
      split: as for `evaluate`.
      at: the evaluation of this split, which the curve agrees with at its radius.
      methods: bounds by name. The one that proved most is used: the others have little to add, and a radius takes a
        dozen bounds to find.
      reach: largest radius as a multiple of the evaluation's.
      points: radii that are attacked.
      attack_steps: of PGD, one start.
      batch_size: as for `evaluate`.
      poll: as for `evaluate`.
      spread: as for `evaluate`.

    Raises:
      SoundnessError: where an image is proved at a radius at which it was broken.
    """
    split, eps, limit = split.floats(), at.threat.eps, reach * at.threat.eps
    method = methods[max(methods, key=lambda name: (at.proved_by == name).sum())]
    grid = np.linspace(0.0, limit, points)
    grid[np.abs(grid - eps).argmin()] = eps  # there to the bit, so that the curve agrees with the evaluation
    radius = np.where(at.clean, 0.0, -1.0)
    with jax.default_matmul_precision("highest"):
        todo = np.flatnonzero(at.clean)
        bound = jax.jit(functools.partial(_smallest_margin, method, logits_fn, at.threat))

        def proved(radii: np.ndarray) -> np.ndarray:
            arrays = [split.images[todo], split.labels[todo], radii]
            return _in_batches(bound, arrays, batch_size, functools.partial(poll, "proved radius"), spread) > 0

        radius[todo] = _largest_proved(proved, len(todo), limit)
        radius = np.where(at.verified, np.maximum(radius, eps), radius)
        standing = at.clean.copy()
        attacked = np.empty((points, len(split)), bool)
        for i, here in enumerate(grid):
            rows = np.flatnonzero(standing)
            threat = dataclasses.replace(at.threat, eps=float(here))
            named = {f"attack at {here:.3g}": functools.partial(pgd, steps=attack_steps, restarts=1)}
            record = attack_all(key, named, logits_fn, split[rows], threat, batch_size, poll, spread)
            standing[rows] = record.standing
            if here >= eps:
                standing &= at.attacked
            attacked[i] = standing
            _assert_sound((radius >= here) & ~standing, here)
    proved = radius[None, :] >= grid[:, None]
    return Curve(grid, np.full(points, at.clean.mean()), attacked.mean(1), proved.mean(1), radius)


def attack_all(
    key: jax.Array,
    attacks: Mapping[str, Attack],
    logits_fn: LogitsFn,
    split: Split,
    threat: Threat,
    batch_size: int,
    poll: Poll,
    spread: Spread,
) -> Record:
    """What attacks do to examples that are classified rightly.

    Raises:
      SoundnessError: where a point is not in its ball.
    """
    ball = threat.inner(split.images, np.full(len(split), threat.eps))
    if fast := bounds.group_size(None, logits_fn, split.images.shape[1:]):
        batch_size = min(batch_size, fast)
    record = in_turn(
        key, logits_fn, split.images, split.labels, ball, attacks, batch_size=batch_size, poll=poll, spread=spread
    )
    if (outside := threat.outside(split.images, record.adversarial)).any():
        raise SoundnessError(
            f"{int(outside.sum())} point(s) that an attack returned are not within {threat} of their image or not in "
            f"the domain {threat.domain}. Please report this, or mend the attack."
        )
    return record


def _smallest_margin(
    method: Method,
    logits_fn: LogitsFn,
    threat: Threat,
    images: jax.Array,
    labels: jax.Array,
    eps: jax.Array,
) -> jax.Array:
    group = bounds.group_size(method, logits_fn, images.shape[1:])
    found = margins(method, logits_fn, group=group)(threat.ball(images, eps), labels)
    return jnp.where(jnp.isfinite(found).all(-1), found.min(-1), jnp.nan)  # what overflows proves nothing


def _largest_proved(proved: Callable[[np.ndarray], np.ndarray], count: int, limit: float) -> np.ndarray:
    """Radii up to the limit at which examples are proved, `[count]`, by bisection; `proved` takes one of each.

    In float32, as `proved` computes, so that a radius that is returned is to the bit one that was proved.
    """
    low, high = np.zeros(count, np.float32), np.full(count, round_up(limit, np.float32))
    low = np.where(proved(high), high, low)
    for _ in range(12):
        middle = (low + high) / 2
        good = proved(middle)
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    return low


def _in_batches(
    f: jax.stages.Wrapped,
    arrays: Sequence[np.ndarray],
    batch_size: int,
    poll: Callable[[int, int], None],
    spread: Spread,
) -> np.ndarray:
    """Apply a function to batches of one size, the last one padded, and put the outputs together.

    Where the device has too little memory for a batch, the rest goes on in batches of half the size.
    """
    n = len(arrays[0])
    if not n:
        out = jax.eval_shape(f, *(np.zeros((batch_size, *a.shape[1:]), a.dtype) for a in arrays))
        return np.zeros((0, *out.shape[1:]), out.dtype)
    run, outputs, start = spread(_within_memory(f)), [], 0
    while start < n:
        rows = np.minimum(np.arange(start, start + batch_size), n - 1)
        try:
            out = jax.device_get(run(*(a[rows] for a in arrays)))
        except jax.errors.JaxRuntimeError as error:
            batch_size = smaller(batch_size, error)
            continue
        outputs.append(out[: min(batch_size, n - start)])
        start = min(start + batch_size, n)
        poll(start, n)
    return np.concatenate(outputs)


def _within_memory(f: jax.stages.Wrapped) -> Callable[..., jax.Array]:
    """A jitted function that says so where it would need more memory than the host has.

    Accelerators say it themselves. On a host Linux promises memory that is not there, and kills who uses it. The
    processes of one run have to agree on their batches, so where there are several nobody is asked.
    """
    if jax.default_backend() != "cpu" or jax.process_count() > 1:
        return f
    programs: dict[Any, Callable[..., jax.Array]] = {}

    def call(*args: Any) -> jax.Array:
        shapes = tuple(jnp.shape(leaf) for leaf in args)
        if shapes not in programs:
            program = f.lower(*args).compile()
            devices = max((len(leaf.sharding.device_set) for leaf in args if isinstance(leaf, jax.Array)), default=1)
            plan, free = program.memory_analysis(), environment.free_memory()
            needed = devices * (plan.temp_size_in_bytes + plan.output_size_in_bytes) if plan else 0
            if free is not None and needed > free:
                needs, has = (f"{size / 2**30:.1f} GiB" for size in (needed, free))
                raise jax.errors.JaxRuntimeError(
                    f"RESOURCE_EXHAUSTED: {len(args[0])} image(s) at a time want {needs} of memory, and {has} are free."
                )
            programs[shapes] = program
        return programs[shapes](*args)

    return call


def _assert_sound(both: np.ndarray, eps: float) -> None:
    if both.any():
        raise SoundnessError(
            f"{int(both.sum())} image(s) are both proved and broken at eps {eps:.6g}, the first is number "
            f"{int(np.flatnonzero(both)[0])} of the split. Please report this: a bound or its arithmetic is wrong."
        )
