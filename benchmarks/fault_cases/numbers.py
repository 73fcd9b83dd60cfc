"""Numbers that are none, arguments that make no sense, and networks at the edge of floating point."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mixtrain_jax as mt
from mixtrain_jax import attacks, certify, data
from mixtrain_jax.config import of_flags
from mixtrain_jax.data import Dataset, Split
from mixtrain_jax.training.build import prepare

from .trials import Trial, judged, pick, spawned

METHODS = {name: certify.methods([name])[name] for name in ("ibp", "crown_ibp", "symbolic", "crown", "alpha_crown")}


def network(width: int = 6, scale: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a net of one hidden layer, `[4, width]` and `[width, 3]`."""
    rng = np.random.default_rng(seed)
    pair = rng.normal(size=(4, width)), rng.normal(size=(width, 3))
    return tuple((scale * w).astype(np.float32) for w in pair)  # type: ignore[return-value]


def logits_of(weights: tuple[np.ndarray, np.ndarray]) -> Callable[[jax.Array], jax.Array]:
    """The net on images `[n, 2, 2, 1]`."""
    return lambda x: jax.nn.relu(x.reshape(len(x), 4) @ weights[0]) @ weights[1]


IMAGES = np.random.default_rng(1).uniform(0.2, 0.8, (6, 2, 2, 1)).astype(np.float32)
WEIGHTS = network()
LOGITS = logits_of(WEIGHTS)
LABELS = np.asarray(LOGITS(IMAGES)).argmax(-1).astype(np.int32)


def edges(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """F13: NaN and infinity in data, labels out of range, equal logits, radii 0 and 1, huge, tiny and no weights."""
    nets = {
        "ordinary weights": WEIGHTS,
        "weights of 1e30": network(scale=1e30),
        "weights of 1e-30": network(scale=1e-30),
        "subnormal weights": network(scale=1e-41),
        "equal logits": (WEIGHTS[0], np.ones((6, 3), np.float32)),
        "zero weights": network(scale=0.0),
        "no units": network(width=0),
        "NaN weights": network(scale=float("nan")),
        "infinite weights": (np.full((4, 6), np.inf, np.float32), WEIGHTS[1]),
    }
    plans: list[tuple[str, Callable[[], str]]] = []
    for bad, where in itertools.product((np.nan, np.inf, -np.inf, 2.0, -1e30), ("train", "test")):
        plans.append((f"a pixel of {bad} in the {where} split", functools.partial(_bad_pixel, bad, where)))
    for label in (-1, 10, 2**31 - 1):
        plans.append((f"the label {label}", functools.partial(_bad_label, label)))
    for (name, weights), eps in itertools.product(nets.items(), (0.0, 0.05, 1.0)):
        plans.append((f"{name} at radius {eps}", functools.partial(_evaluated, weights, eps)))
    for i in rng.permutation(len(plans))[:count]:
        yield Trial(*plans[i])


def _dataset(images: np.ndarray, labels: np.ndarray, where: str) -> Dataset:
    good = Split(np.full((6, 2, 2, 1), 0.5, np.float32), np.zeros(6, np.int32))
    bad = Split(images, labels)
    return Dataset("made", bad if where == "train" else good, bad if where == "test" else good, 10, (0.0, 1.0))


def _bad_pixel(value: float, where: str) -> str:
    images = IMAGES.copy()
    images[3, 1, 0, 0] = value
    return judged(lambda: data.check(_dataset(images, LABELS, where)), None, ["example 3", where])


def _bad_label(label: int) -> str:
    labels = LABELS.copy()
    labels[2] = label
    return judged(lambda: data.check(_dataset(IMAGES, labels, "train")), None, ["example 2", str(label)])


def _evaluated(weights: tuple[np.ndarray, np.ndarray], eps: float) -> str:
    """What is verified holds in float64 at corners and at random points, and what is attacked was attacked."""
    logits_fn, split = logits_of(weights), Split(IMAGES, LABELS)
    threat = certify.Threat(eps)
    pgd = functools.partial(attacks.pgd, steps=2, restarts=1)
    chosen = {name: METHODS[name] for name in ("ibp", "crown")}
    key = jax.random.key(0)
    found = certify.evaluate(key, logits_fn, split, threat, attacks={"pgd": pgd}, methods=chosen, batch_size=6)
    if (found.verified & ~found.attacked).any() or (found.attacked & ~found.clean).any():
        return "the three accuracies are not in order"
    rng = np.random.default_rng(0)
    shifts = np.concatenate([rng.choice([-1.0, 1.0], (64, 1, 4)), rng.uniform(-1, 1, (64, 1, 4))])
    points = np.clip(IMAGES.reshape(1, 6, 4).astype(np.float64) + eps * shifts, 0, 1)
    with np.errstate(all="ignore"):
        logits = np.maximum(points @ weights[0].astype(np.float64), 0) @ weights[1].astype(np.float64)
    others = np.where(np.arange(3) == LABELS[:, None], -np.inf, logits).max(-1)
    label = np.take_along_axis(logits, np.broadcast_to(LABELS[None, :, None], (128, 6, 1)), -1)[..., 0]
    right = (label > others).all(0)
    wrong = np.flatnonzero(found.verified & ~right)
    return f"image {wrong[0]} is verified, and is not robust" if wrong.size else ""


def misuse(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """X6: ranks, dtypes, layouts, radii, bounds, labels and networks that do not fit."""
    for _, draw in spawned(rng, count):
        name = str(pick(draw, MISUSES))
        method = str(pick(draw, METHODS))
        yield Trial(f"{name}, {method}", functools.partial(_misused, name, method))


def _misused(name: str, method: str) -> str:
    return judged(lambda: jax.block_until_ready(MISUSES[name](METHODS[method])))


def _ball(x: Any = IMAGES, eps: Any = 0.1, domain: Any = (0.0, 1.0)) -> Any:
    return mt.linf_ball(x, eps, domain)


def _evaluate(method: Any, logits_fn: Any = LOGITS, images: Any = IMAGES, labels: Any = LABELS, **options: Any) -> Any:
    pgd = functools.partial(attacks.pgd, steps=1, restarts=1)
    threat = certify.Threat(0.1)
    given = {"attacks": {"pgd": pgd}, "methods": {"m": method}, **options}
    return certify.evaluate(jax.random.key(0), logits_fn, Split(images, labels), threat, **given)


def _attack(x: Any = IMAGES, labels: Any = LABELS, ball: Any = None, **options: Any) -> Any:
    return attacks.pgd(jax.random.key(0), LOGITS, x, labels, _ball() if ball is None else ball, steps=1, **options)


def _margins(method: Any, ball: Any = None, labels: Any = LABELS, f: Any = LOGITS) -> Any:
    return mt.margins(method, f)(_ball() if ball is None else ball, labels)


def _bounded(method: Any, ball: Any) -> Any:
    return method(lambda x: LOGITS(x[None])[0])(ball)


MISUSES: dict[str, Callable[[Any], Any]] = {
    "integer images": lambda m: _ball(np.ones((2, 2), np.uint8), 0.1),
    "complex images": lambda m: _ball(np.ones((2, 2), np.complex64), 0.1),
    "a radius below 0": lambda m: _ball(eps=-0.1),
    "a radius of NaN": lambda m: _ball(eps=float("nan")),
    "an infinite radius": lambda m: _ball(eps=float("inf")),
    "radii of another shape": lambda m: _ball(eps=np.ones(5)),
    "radii of the batch without axes": lambda m: _ball(eps=np.ones(6)),
    "NaN in images": lambda m: _ball(np.full((2, 2), np.nan, np.float32)),
    "images outside the domain": lambda m: _ball(IMAGES * 255),
    "a domain the wrong way round": lambda m: _ball(domain=(1.0, 0.0)),
    "a domain of NaN": lambda m: _ball(domain=(float("nan"), 1.0)),
    "a threat below 0": lambda m: certify.Threat(-1.0),
    "a threat of NaN": lambda m: certify.Threat(float("nan")),
    "a threat of l3": lambda m: certify.Threat(0.1, norm="l3"),  # type: ignore[arg-type]
    "a threat with an empty domain": lambda m: certify.Threat(0.1, (1.0, 1.0)),
    "bounds the wrong way round": lambda m: _bounded(m, mt.Interval(jnp.ones((2, 2, 1)), jnp.zeros((2, 2, 1)))),
    "bounds of NaN": lambda m: _bounded(m, mt.Interval(jnp.full((2, 2, 1), jnp.nan), jnp.ones((2, 2, 1)))),
    "bounds of two shapes": lambda m: _bounded(m, mt.Interval(jnp.zeros((2, 2, 1)), jnp.ones((2, 2)))),
    "bounds of two dtypes": lambda m: _bounded(m, mt.Interval(jnp.zeros((2, 2, 1)), jnp.ones((2, 2, 1), jnp.float16))),
    "bounds of integers": lambda m: _bounded(m, mt.Interval(jnp.zeros((2, 2, 1), int), jnp.ones((2, 2, 1), int))),
    "labels that are floats": lambda m: _margins(m, labels=LABELS.astype(np.float32)),
    "labels one too few": lambda m: _margins(m, labels=LABELS[:5]),
    "labels of two axes": lambda m: _margins(m, labels=LABELS[:, None]),
    "labels that are no class": lambda m: _margins(m, labels=LABELS + 3),
    "labels below 0": lambda m: _margins(m, labels=LABELS - 3),
    "one class": lambda m: _margins(m, f=lambda x: LOGITS(x)[:, :1], labels=LABELS * 0),
    "logits of three axes": lambda m: _margins(m, f=lambda x: LOGITS(x)[:, None]),
    "a batch of l2 balls without vmap": lambda m: _margins(m, mt.l2_ball(IMAGES, 0.1)),
    "l2 radii of a batch": lambda m: mt.l2_ball(IMAGES, np.ones(6, np.float32)),
    "an attack in an l1 ball": lambda m: _attack(ball=jax.vmap(lambda x: mt.l1_ball(x, 0.1))(jnp.asarray(IMAGES))),
    "an attack in one l2 ball": lambda m: _attack(ball=mt.l2_ball(IMAGES, 0.1)),
    "a method that does not exist": lambda m: certify.methods(["deeppoly"]),
    "a primitive without a rule": lambda m: _bounded_by_fft(m),
    "no data": lambda m: data.check(_dataset(IMAGES[:0], LABELS[:0], "test")),
    "images without channels": lambda m: data.check(_dataset(IMAGES[..., 0], LABELS, "test")),
    "fewer labels than images": lambda m: data.check(_dataset(IMAGES, LABELS[:4], "train")),
    "labels of the evaluation one too few": lambda m: _evaluate(m, labels=LABELS[:5]),
    "labels of the evaluation that are floats": lambda m: _evaluate(m, labels=LABELS.astype(np.float32)),
    "an evaluation of NaN": lambda m: _evaluate(m, images=np.full_like(IMAGES, np.nan)),
    "an evaluation outside the domain": lambda m: _evaluate(m, images=IMAGES * 255),
    "an evaluation of logits of one image": lambda m: _evaluate(m, lambda x: LOGITS(x)[0]),
    "an evaluation in batches of 0": lambda m: _evaluate(m, batch_size=0),
    "attacked labels one too few": lambda m: _attack(labels=LABELS[:5]),
    "attacked labels that are floats": lambda m: _attack(labels=LABELS.astype(np.float32)),
    "an attack on other images than the ball's": lambda m: _attack(x=IMAGES[:3]),
    "an attack of -1 starts": lambda m: _attack(restarts=-1),
    "held out more than there are": lambda m: prepare(of_flags({"data.holdout": 5000})),
    "a network of another data set": lambda m: prepare(of_flags({"model.name": "resnet_imagenet", "model.width": 1})),
}


def _bounded_by_fft(method: Any) -> Any:
    return method(lambda x: jnp.fft.fft(x.ravel()).real)(_ball(IMAGES[0]))
