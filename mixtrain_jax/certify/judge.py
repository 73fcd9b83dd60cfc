"""The judge: robust accuracy from both sides, for any classifier."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.attacks import (
    NO_CLASS,
    QUICK,
    Attack,
    Budget,
    LogitsFn,
    Poll,
    cross_entropy,
    flags,
    interval_attack,
    pgd,
    standard_attacks,
)
from mixtrain_jax.bounds import Bounded, BoundsError, Hidden, Method, Undefined, crown_ibp, explain
from mixtrain_jax.bounds import methods as bounds_of
from mixtrain_jax.certify.complete import Completion, complete
from mixtrain_jax.certify.evaluation import Curve, Evaluation, evaluate, measure_curve
from mixtrain_jax.data import Split
from mixtrain_jax.fingerprints import by_name
from mixtrain_jax.threat import Threat

METHODS = ("ibp", "symbolic", "crown", "alpha_crown")
CUSTOMARY = "pgd-20"
SUITES = ("customary", "quick", "strong")
_LOOKED_AT = 256  # images, for signs of what misleads attacks
_GAP = 0.05  # of accuracy, from which a gap between two attacks or to a bound is named


@dataclasses.dataclass(frozen=True)
class Layer:
    """The boxes that a method finds at one op that is not affine, over the images that were looked at.

    Attributes:
      method: the method.
      operation: name of the op, `max` for a ReLU.
      source: the line that made it.
      entries: numbers that it takes in an image.
      width: mean of upper minus lower bound.
      unstable: share of the entries over which the op bends; None where it bends everywhere.
    """

    method: str
    operation: str
    source: str
    entries: int
    width: float
    unstable: float | None


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the judge found.

    Attributes:
      evaluation: what is known of every image.
      curve: accuracies against the radius; None where none was asked for.
      layers: how loose the boxes of each method are at each layer, from the input on.
      warnings: what makes the numbers doubtful, in words; empty where nothing does.
      completion: what complete verification found of the images that were open; None where it was not asked for.
    """

    evaluation: Evaluation
    curve: Curve | None
    layers: list[Layer]
    warnings: list[str]
    completion: Completion | None = None

    def columns(self) -> dict[str, np.ndarray]:
        """Which images are right, withstand the customary attack, withstand all, and are proved: bool `[n]` each."""
        at = self.evaluation
        return {
            "clean": at.clean,
            CUSTOMARY: at.withstood([CUSTOMARY]),
            "attacked": at.attacked,
            "verified": at.verified,
        }


def judge(
    apply: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    split: Split,
    threat: Threat,
    *,
    key: jax.Array | None = None,
    attacks: Mapping[str, Attack] | None = None,
    methods: Mapping[str, Method] | None = None,
    skip_proved: bool = False,
    seconds: float | None = None,
    curve_examples: int = 0,
    layer_examples: int = 16,
    batch_size: int = 128,
    poll: Poll = lambda what, done, total: None,
) -> Judgement:
    """Find how many images are certainly robust, and how many at most.

    Robust accuracy lies between the share that is verified and the share that withstands every attack.

    Args:
      apply: `(params, images [n, ...]) -> logits [n, classes]`, examples independent of each other.
      params: weights of the network, any pytree.
      split: images and labels.
      threat: what may be done to an image.
      key: random key of the attacks; by default that of seed 0.
      attacks: by name, cheapest first; by default the suite `strong`.
      methods: bounds by name, cheapest first; by default IBP, symbolic intervals, CROWN and alpha-CROWN, all sound in
        floating point.
      skip_proved: as for `evaluate`.
      seconds: limit of complete verification for each image that is still open then; None to leave these open.
      curve_examples: of how many of the first images the accuracies are measured over a range of radii.
      layer_examples: of how many of the first images the boxes of every layer are looked at.
      batch_size: images on the device at a time.
      poll: called with progress after every batch; whatever it raises ends the judgement.

    Raises:
      BoundsError: as `evaluate` does, and where a parameter is NaN.
      SoundnessError: where an image is both proved and broken, or an attack leaves its ball.
      UnsupportedPrimitiveError: where bounds have no rule for an operation of the network.
    """
    _refuse_nan(params)
    key = jax.random.key(0) if key is None else key
    attacks = suite("strong", threat) if attacks is None else attacks
    chosen = bounds_of(METHODS) if methods is None else methods
    logits_fn = functools.partial(apply, params)
    common = {"batch_size": batch_size, "poll": poll}
    evaluation = evaluate(
        key, logits_fn, split, threat, attacks=attacks, methods=chosen, skip_proved=skip_proved, **common
    )
    curve, completion = None, None
    if seconds is not None:
        evaluation, completion = complete(evaluation, apply, params, split, seconds, poll=poll)
    if (few := min(curve_examples, len(split))) and chosen:
        curve = measure_curve(key, logits_fn, split[:few], evaluation.first(few), methods=chosen, **common)
    layers = []
    for name in [name for name in ("ibp", "crown") if name in chosen and layer_examples]:
        layers += look_at_layers(name, chosen[name], logits_fn, split[:layer_examples], threat)
    lost = without_bounds(chosen, logits_fn, split, threat, evaluation)
    few = split[:_LOOKED_AT].floats()
    signs = flags(logits_fn, jnp.asarray(few.images), jnp.asarray(few.labels), broken_by=evaluation.broken_by)
    doubts = [*threat.doubts(split.images.shape[1:]), *overflows(evaluation), *signs, *gaps(evaluation), *lost]
    return Judgement(evaluation, curve, layers, doubts, completion)


def _refuse_nan(params: Any) -> None:
    for name, leaf in by_name(params).items():
        if np.issubdtype(leaf.dtype, np.inexact) and np.isnan(leaf).any():
            raise BoundsError(f"A network wants parameters that are numbers; {name} has {np.isnan(leaf).sum()} NaN.")


def suite(name: str, threat: Threat) -> dict[str, Attack]:
    """Attacks by name, cheapest first.

    Args:
      name: `customary`, 20 steps of PGD on the cross-entropy from a random start, as papers report it; `strong`, that,
        the standard ensemble with its published budgets, and in l-infinity the interval attack; `quick`, the same with
        short budgets.
      threat: what may be done to an image.

    Raises:
      ValueError: where there is no such suite.
    """
    if name not in SUITES:
        raise ValueError(f"A suite is one of {', '.join(SUITES)}, got {name!r}.")
    step = {"objective": cross_entropy, "random_start": True, "step_size": 2.5 / 20}
    attacks: dict[str, Attack] = {CUSTOMARY: functools.partial(pgd, steps=20, restarts=1, **step)}
    if name == "customary":
        return attacks
    attacks |= standard_attacks(QUICK if name == "quick" else Budget(), threat.domain)
    if threat.norm == "linf":
        one = functools.partial(pgd, steps=20 if name == "quick" else 100, restarts=1)
        attacks["interval"] = functools.partial(
            interval_attack, attack=one, method=crown_ibp, rounds=(1,) if name == "quick" else (3, 3, 1)
        )
    return attacks


def look_at_layers(name: str, method: Method, logits_fn: LogitsFn, split: Split, threat: Threat) -> list[Layer]:
    """How wide the boxes of a method are at every op that is not affine, and how many of its entries bend."""
    split = split.floats()

    def hidden(image: jax.Array) -> list[Hidden]:
        balls = threat.ball(image[None], threat.radii(1))
        return method(lambda x: logits_fn(x[None])[0]).hidden(jax.tree.map(lambda x: x[0], balls))

    with jax.default_matmul_precision("highest"):
        found = jax.jit(lambda images: jax.lax.map(hidden, images, batch_size=4))(jnp.asarray(split.images))
    return [
        Layer(
            name,
            layer.operation,
            layer.source,
            layer.box.lower[0].size,
            float((layer.box.upper.astype(np.float32) - layer.box.lower.astype(np.float32)).mean()),  # of bool too
            None if layer.unstable is None else float(layer.unstable.mean()),
        )
        for layer in found
    ]


def overflows(evaluation: Evaluation) -> list[str]:
    """Of how many images the logits are no numbers, in words."""
    count = int((evaluation.predictions == NO_CLASS).sum())
    if not count:
        return []
    return [
        f"overflow: logits of {count} of the {len(evaluation.predictions)} images are NaN or infinite. They count as "
        "misclassified; look for weights or normalizations that overflow float32."
    ]


def without_bounds(
    methods: Mapping[str, Method], logits_fn: LogitsFn, split: Split, threat: Threat, evaluation: Evaluation
) -> list[str]:
    """Where the bounds of images become NaN, in words, if no method has a bound of them."""
    lost = np.flatnonzero(evaluation.clean & np.isneginf(evaluation.margin))
    if not methods or not lost.size:
        return []
    name, method = list(methods.items())[-1]
    way, image = method(lambda x: logits_fn(x[None])[0]), jnp.asarray(split[lost[:1]].floats().images)

    def undefined(image: jax.Array) -> list[Undefined]:
        balls = threat.ball(image, jnp.full(1, threat.eps, image.dtype))
        return way.undefined(jax.tree.map(lambda x: x[0], balls))

    said = f"{len(lost)} of {len(split)} images have no bound by any method"
    if not isinstance(way, Bounded):
        return [f"{said}."]
    with jax.default_matmul_precision("highest"):
        found = jax.jit(undefined)(image)
    return [f"{said}. That of {name} of image {lost[0]} is NaN or infinite. {explain(found)}"]


def gaps(evaluation: Evaluation) -> list[str]:
    """What the distances between the columns suggest, in words."""
    said = []
    customary = evaluation.withstood([CUSTOMARY]).mean()
    attacked, verified = evaluation.attacked.mean(), evaluation.verified.mean()
    if CUSTOMARY in evaluation.seconds and customary - attacked > _GAP:
        said.append(
            f"{customary:.1%} of the images withstand {CUSTOMARY} but only {attacked:.1%} the stronger attacks: the "
            "gradients of this network mislead attacks (gradient masking), and its customary number misleads too."
        )
    if attacked - verified > _GAP:
        said.append(
            f"{attacked - verified:.1%} of the images are neither broken nor proved: the bounds are too loose for this "
            "network. Training with a sound loss closes the gap; tighter methods narrow it."
        )
    return said
