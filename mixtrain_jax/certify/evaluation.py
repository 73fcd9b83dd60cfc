"""Clean, attacked and verified accuracy, image by image.

Everything here runs at the highest matmul precision: the defaults of accelerators are far too coarse for a proof.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax import bounds
from mixtrain_jax.attacks import pgd
from mixtrain_jax.bounds import Method, linf_ball, margins
from mixtrain_jax.data import Split
from mixtrain_jax.errors import SoundnessError

LogitsFn = Callable[[jax.Array], jax.Array]
Poll = Callable[[str, int, int], None]  # (what is done, images done, images in all); may raise to stop

_METHODS: dict[str, Callable[..., bounds.Bounded]] = {
    "ibp": bounds.ibp,
    "crown_ibp": bounds.crown_ibp,
    "symbolic": bounds.symbolic,
    "crown": bounds.crown,
    "alpha_crown": bounds.alpha_crown,
}


def methods(names: Sequence[str], *, sound: bool = True) -> dict[str, Method]:
    """The bound methods of these names, in this order; certificates want sound ones, which hold in floating point."""
    return {name: functools.partial(_METHODS[name], sound=sound) for name in names}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is known of every image of a split at one radius; arrays of `[n]` unless said otherwise."""

    eps: float
    predictions: np.ndarray  # classes of the unperturbed images
    clean: np.ndarray  # bool: classified rightly
    attacked: np.ndarray  # bool: and still so under attack
    verified: np.ndarray  # bool: and proved so for the whole ball
    margin: np.ndarray  # largest lower bound of the smallest margin that a method found; -inf where none was tried
    proved_by: np.ndarray  # str: first method that proved it, "" where none did
    adversarial: np.ndarray  # [n, ...]: worst input the attack found

    def first(self, count: int) -> Evaluation:
        """What is known of the first `count` images."""
        per_image = {field.name: getattr(self, field.name)[:count] for field in dataclasses.fields(self)[1:]}
        return dataclasses.replace(self, **per_image)

    def accuracies(self) -> dict[str, float]:
        """The three shares of the images."""
        return {
            "clean_accuracy": float(self.clean.mean()),
            "attacked_accuracy": float(self.attacked.mean()),
            "verified_accuracy": float(self.verified.mean()),
        }


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
    eps: float,
    *,
    domain: tuple[float, float],
    methods: Mapping[str, Method],
    attack_steps: int = 100,
    attack_restarts: int = 3,
    batch_size: int = 128,
    poll: Poll = lambda what, done, total: None,
) -> Evaluation:
    """Measure a classifier on a whole split.

    Args:
      key: random key of the attack.
      logits_fn: `[n, ...] -> [n, classes]`, examples independent of each other.
      split: images and labels.
      eps: l-infinity radius in pixel units.
      domain: lowest and highest pixel.
      methods: bounds tried in turn, cheapest first, each on the images that are still open.
      attack_steps: of PGD.
      attack_restarts: of PGD.
      batch_size: images on the device at a time.
      poll: called with progress after every batch; whatever it raises ends the evaluation.

    Raises:
      SoundnessError: where an image is both proved and broken.
    """
    split = split.floats()
    with jax.default_matmul_precision("highest"):
        n = len(split)
        predictions = _predict(logits_fn, split, batch_size, poll)
        clean = predictions == split.labels
        attack = _attack_fn(key, logits_fn, domain, attack_steps, attack_restarts)
        adversarial, attacked = _attack(attack, split, clean, eps, batch_size, poll)
        margin, proved_by = np.full(n, -np.inf), np.full(n, "", dtype=object)
        for name, method in methods.items():
            todo = np.flatnonzero(clean & (proved_by == ""))
            bound = jax.jit(functools.partial(_smallest_margin, method, logits_fn, domain=domain))
            found = _in_batches(
                bound,
                [split.images[todo], split.labels[todo], np.full(len(todo), eps, np.float32)],
                batch_size,
                functools.partial(poll, f"certify by {name}"),
            )
            margin[todo] = np.fmax(margin[todo], found)
            proved_by[todo[found > 0]] = name  # NaN proves nothing
    verified = proved_by != ""
    _assert_sound(verified & ~attacked, eps)
    return Evaluation(eps, predictions, clean, attacked, verified, margin, proved_by.astype(str), adversarial)


def measure_curve(
    key: jax.Array,
    logits_fn: LogitsFn,
    split: Split,
    at: Evaluation,
    *,
    domain: tuple[float, float],
    method: Method,
    reach: float = 2.5,
    points: int = 21,
    attack_steps: int = 100,
    batch_size: int = 128,
    poll: Poll = lambda what, done, total: None,
) -> Curve:
    """Accuracies as functions of the radius, from 0 to `reach` times the radius of an evaluation, that one included.

    The proved radius of an image is found by bisection, to within a four-thousandth of the range; being proved at a
    radius proves all smaller ones. An image that an attack broke at a radius counts as broken at all larger ones.

    Args:
      key: random key of the attacks.
      logits_fn: as for `evaluate`.
      split: as for `evaluate`.
      at: the evaluation of this split, which the curve agrees with at its radius.
      domain: as for `evaluate`.
      method: the bound, best the tightest.
      reach: largest radius as a multiple of the evaluation's.
      points: radii that are attacked.
      attack_steps: of PGD, one start.
      batch_size: as for `evaluate`.
      poll: as for `evaluate`.

    Raises:
      SoundnessError: where an image is proved at a radius at which it was broken.
    """
    split, limit = split.floats(), reach * at.eps
    grid = np.linspace(0.0, limit, points)
    grid[np.abs(grid - at.eps).argmin()] = at.eps  # there to the bit, so that the curve agrees with the evaluation
    radius = np.where(at.clean, 0.0, -1.0)
    with jax.default_matmul_precision("highest"):
        todo = np.flatnonzero(at.clean)
        bound = jax.jit(functools.partial(_smallest_margin, method, logits_fn, domain=domain))

        def proved(eps: np.ndarray) -> np.ndarray:
            arrays = [split.images[todo], split.labels[todo], eps]
            return _in_batches(bound, arrays, batch_size, functools.partial(poll, "proved radius")) > 0

        radius[todo] = _largest_proved(proved, len(todo), limit)
        radius = np.where(at.verified, np.maximum(radius, at.eps), radius)
        attack = _attack_fn(key, logits_fn, domain, attack_steps, 1)
        standing = at.clean.copy()
        attacked = np.empty((points, len(split)), bool)
        for i, eps in enumerate(grid):
            _, still = _attack(attack, split, standing, eps, batch_size, poll)
            standing &= still
            if eps >= at.eps:
                standing &= at.attacked
            attacked[i] = standing
            _assert_sound((radius >= eps) & ~standing, eps)
    proved = radius[None, :] >= grid[:, None]
    return Curve(grid, np.full(points, at.clean.mean()), attacked.mean(1), proved.mean(1), radius)


def _predict(logits_fn: LogitsFn, split: Split, batch_size: int, poll: Poll) -> np.ndarray:
    predict = jax.jit(lambda images: jnp.argmax(logits_fn(images), -1))
    return _in_batches(predict, [split.images], batch_size, functools.partial(poll, "predict"))


AttackFn = Callable[..., tuple[jax.Array, jax.Array]]


def _attack_fn(key: jax.Array, logits_fn: LogitsFn, domain: tuple[float, float], steps: int, restarts: int) -> AttackFn:
    def attack(images: jax.Array, labels: jax.Array, eps: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        ball = linf_ball(jnp.asarray(images), _per_image(eps, images), domain)
        batch_key = jax.random.fold_in(key, index[0])
        found = pgd(batch_key, logits_fn, images, labels, ball, steps=steps, restarts=restarts)
        return found, predict(found) == labels

    predict = jax.jit(lambda images: jnp.argmax(logits_fn(images), -1))

    return attack


def _attack(
    attack: AttackFn, split: Split, standing: np.ndarray, eps: float, batch_size: int, poll: Poll
) -> tuple[np.ndarray, np.ndarray]:
    """Attack the images that still stand: worst inputs `[n, ...]`, and which images stand now `[n]`."""
    adversarial, still = split.images.copy(), standing.copy()
    todo = np.flatnonzero(standing)
    adversarial[todo], still[todo] = _in_batches(
        attack,
        [split.images[todo], split.labels[todo], np.full(len(todo), eps, np.float32), todo.astype(np.int32)],
        batch_size,
        functools.partial(poll, f"attack at {eps:.3g}"),
    )
    return adversarial, still


def _smallest_margin(
    method: Method,
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    eps: jax.Array,
    *,
    domain: tuple[float, float],
) -> jax.Array:
    ball = linf_ball(images, _per_image(eps, images), domain)
    return margins(method, logits_fn)(ball, labels).min(-1)


def _largest_proved(proved: Callable[[np.ndarray], np.ndarray], count: int, limit: float) -> np.ndarray:
    """Radii up to the limit at which examples are proved, `[count]`, by bisection; `proved` takes one of each.

    In float32, as `proved` computes, so that a radius that is returned is to the bit one that was proved.
    """
    low, high = np.zeros(count, np.float32), np.full(count, limit, np.float32)
    low = np.where(proved(high), high, low)
    for _ in range(12):
        middle = (low + high) / 2
        good = proved(middle)
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    return low


def _per_image(eps: jax.Array, images: jax.Array) -> jax.Array:
    return eps.reshape(eps.shape + (1,) * (images.ndim - 1))


def _in_batches(
    f: Callable[..., Any], arrays: Sequence[np.ndarray], batch_size: int, poll: Callable[[int, int], None]
) -> Any:
    """Apply a jitted function to batches of one size, the last one padded, and put the outputs together."""
    n = len(arrays[0])
    outputs = []
    for start in range(0, max(n, 1), batch_size):
        count = min(batch_size, n - start)
        if count <= 0:  # nothing to do: run once on padding for the shapes
            batch = [np.zeros((batch_size, *a.shape[1:]), a.dtype) for a in arrays]
        else:
            rows = np.minimum(np.arange(start, start + batch_size), n - 1)
            batch = [a[rows] for a in arrays]
        out = jax.device_get(f(*batch))
        outputs.append(jax.tree.map(lambda x, count=count: x[: max(count, 0)], out))
        poll(min(start + batch_size, n), n)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)


def _assert_sound(both: np.ndarray, eps: float) -> None:
    if both.any():
        raise SoundnessError(
            f"{int(both.sum())} image(s) are both proved and broken at eps {eps:.6g}, the first is number "
            f"{int(np.flatnonzero(both)[0])} of the split. Please report this: a bound or its arithmetic is wrong."
        )
