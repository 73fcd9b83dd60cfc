"""Networks whose gradients or logits are not finite somewhere: attacks go on with what is finite, and flags say so."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_networks as networks
from experiments import experiment

import mixtrain_jax as mt
from mixtrain_jax.attacks import (
    apgd,
    descend,
    dlr,
    fab,
    feature,
    fgsm,
    flags,
    in_turn,
    interval_attack,
    pgd,
    square,
    standard_attacks,
    targeted,
)
from mixtrain_jax.attacks.gradients import finite, value_and_gradient
from mixtrain_jax.bounds.alpha_crown import _ascend
from mixtrain_jax.report.display import Display
from mixtrain_jax.training.build import prepare
from mixtrain_jax.training.finish import finish
from mixtrain_jax.training.measure import log_row
from mixtrain_jax.training.resume import untrained
from mixtrain_jax.training.rundir import RunDir
from mixtrain_jax.training.signals import Stop

SIDE, CLASSES, EPS, DOMAIN = 6, 4, 0.3, (0.0, 1.0)
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(SIDE * SIDE, CLASSES)).astype(np.float32)
OF_FEATURES = RNG.normal(size=(SIDE, CLASSES)).astype(np.float32)
IMAGES = np.zeros((16, SIDE, SIDE, 1), np.float32)
IMAGES[:, 1:-1, 1:-1] = networks.images(0, 16, side=SIDE - 2) * 0.6 + 0.2  # a black border


def flat(x):
    return jnp.reshape(x, (len(x), -1))


def rows(x):
    return jnp.reshape(x, (len(x), SIDE, SIDE))


# Some features have no gradient on the border.
BORDERS = {
    "sqrt": lambda x: jnp.sqrt(flat(x)) @ WEIGHTS,
    "norm": lambda x: flat(x) @ WEIGHTS + jnp.linalg.norm(rows(x), axis=-1) @ OF_FEATURES,
    "std": lambda x: flat(x) @ WEIGHTS + jnp.std(rows(x), axis=-1) @ OF_FEATURES,
}
ATTACKS = {
    "fgsm": fgsm,
    "pgd from the image": functools.partial(pgd, steps=20, restarts=1),
    "pgd with momentum": functools.partial(pgd, steps=20, restarts=1, momentum=0.9),
    "apgd": functools.partial(apgd, steps=20),
    "targeted apgd on the dlr": targeted(functools.partial(apgd, steps=20, objective=dlr), 3),
    "fab": functools.partial(fab, steps=20, domain=DOMAIN),
    "square": functools.partial(square, queries=200),
    "descend": lambda key, logits_fn, x, labels, ball: descend(key, logits_fn, labels, ball, steps=20),
}


def broken(logits_fn, points, labels):
    return np.asarray(logits_fn(jnp.asarray(points)).argmax(-1)) != labels


def ball_of(norm):
    if norm == "linf":
        return mt.linf_ball(IMAGES, EPS, DOMAIN)
    return jax.vmap(lambda image: mt.l2_ball(image, 4 * EPS, DOMAIN))(jnp.asarray(IMAGES))


@pytest.mark.parametrize(("kind", "norm"), [("sqrt", "linf"), ("norm", "linf"), ("std", "l2")])
def test_pixels_without_a_gradient_disarm_no_attack(key, kind, norm):
    logits_fn = BORDERS[kind]
    labels = networks.labelled(logits_fn, IMAGES).labels
    for name, attack in ATTACKS.items():
        found = attack(key, logits_fn, IMAGES, labels, ball_of(norm))
        assert np.isfinite(found).all(), name
        assert broken(logits_fn, found, labels).mean() == 1, name


def test_they_don_t_disarm_the_attack_on_features(key):
    logits_fn, smooth = BORDERS["sqrt"], lambda x: jnp.sqrt(jnp.maximum(flat(x), 1e-6))
    labels = networks.labelled(logits_fn, IMAGES).labels
    attack = functools.partial(feature, images=IMAGES[::-1], steps=20, restarts=1, random_start=False)
    found = [
        attack(key, logits_fn, IMAGES, labels, ball_of("linf"), features_fn=features)
        for features in (lambda x: jnp.sqrt(flat(x)), smooth)
    ]
    here, there = (broken(logits_fn, points, labels) for points in found)
    assert there.mean() > 0.2
    assert here[there].all()


def test_they_don_t_disarm_the_interval_attack(key):
    logits_fn = BORDERS["sqrt"]
    labels = networks.labelled(logits_fn, IMAGES).labels
    step = functools.partial(pgd, steps=1, restarts=1, step_size=0.1)  # too little, so that it has to move
    attack = functools.partial(interval_attack, attack=step, rounds=(2,), method=mt.crown_ibp)
    ball = mt.linf_ball(IMAGES, 0.1, DOMAIN)
    assert not broken(logits_fn, step(key, logits_fn, IMAGES, labels, ball), labels).all()
    assert broken(logits_fn, attack(key, logits_fn, IMAGES, labels, ball), labels).mean() == 1


@pytest.mark.parametrize("kind", BORDERS)
def test_they_raise_a_flag_with_their_share(kind):
    labels = networks.labelled(BORDERS[kind], IMAGES).labels
    raised = [found for found in flags(BORDERS[kind], IMAGES, labels) if found.startswith("non-finite gradient")]
    share = {"sqrt": 20 / 36, "norm": 12 / 36, "std": 12 / 36}[kind]  # the whole border, its first and last row
    for name, found in zip(("cross-entropy", "dlr"), raised, strict=True):
        assert f"that of the {name} is NaN or infinite at {100 * share:.3g}% of the entries, on 100% of" in found


def test_a_run_says_that_its_attacks_missed_some_pixels(tmp_path):
    with jax.numpy_dtype_promotion("standard"):  # which optax wants
        fields = {"width": 4, "certify": ("ibp",), "attack_steps": 1, "attack_restarts": 1, "curve_examples": 0}
        setup = prepare(experiment(**fields))
        setup = setup._replace(network=lambda params, x, apply=setup.network: apply(params, jnp.sqrt(x)))
        folder, saved = RunDir(tmp_path), untrained(setup)
        folder.append_metrics({**log_row(setup, saved.state, (0.0, 0.0), 0), "clean_loss": 1.0})
        found = finish(setup, saved, folder, Stop(), Display())
    assert found["warnings"][0].startswith("non-finite gradient: that of the cross-entropy is NaN or infinite at")
    assert found["warnings"][0] in (tmp_path / "report.html").read_text()


def test_finite_gradients_keep_their_bits_and_infinite_ones_their_sign():
    gradient = jax.random.normal(jax.random.key(0), (5, 3, 3, 1))
    np.testing.assert_array_equal(finite(gradient), gradient)
    odd = jnp.asarray([[1.0, -3.0, jnp.nan], [jnp.inf, -jnp.inf, 2.0], [0.0, jnp.nan, -jnp.inf]])
    np.testing.assert_array_equal(finite(odd), [[1, -3, 0], [2, -2, 2], [0, 0, -1]])


def test_a_slope_without_a_gradient_does_not_end_the_search_of_alpha_crown():
    def bound(slopes):
        return -jnp.square(slopes[0] - 0.7).sum() + 0 * jnp.sqrt(slopes[1]).sum()

    slopes = {i: jnp.zeros(2) for i in range(2)}
    assert _ascend(bound, slopes, 30, optax.adam(0.1)) > -0.05  # -0.98 at the start


def test_values_that_are_nan_are_the_lowest():
    points = jnp.asarray([[-1.0], [4.0]])
    values, gradient, _ = value_and_gradient(lambda x: (jnp.sqrt(x)[:, 0], None), points)
    np.testing.assert_array_equal(values, [-np.inf, 2.0])
    np.testing.assert_array_equal(gradient, [[0.0], [0.25]])


# --- logits that are NaN at some points -----------------------------------------------------------------------------


def holes(x):
    """A linear network, but NaN where the first pixel is about 0.3."""
    first = flat(x)[:, :1]
    return flat(x) @ WEIGHTS + 0 * jnp.log(jnp.abs(first - 0.3) - 0.05)


def test_points_without_logits_are_nobody_s_best_and_lose_none(key):
    images = IMAGES + 0.02
    images[::2, 0, 0] = 0.3  # no logits at all, from where attacks start
    rest = flat(jnp.asarray(images)) @ WEIGHTS
    labels = np.asarray(rest.argmax(-1), np.int32)
    ball = mt.linf_ball(images, EPS, DOMAIN)
    random = {
        "apgd": functools.partial(apgd, steps=20, restarts=4),
        "square": ATTACKS["square"],
        "pgd": functools.partial(pgd, steps=20, restarts=4),
        "fab": functools.partial(fab, steps=20, restarts=3, domain=DOMAIN),
    }
    for name, attack in random.items():
        found = attack(key, holes, images, labels, ball)
        logits = np.asarray(holes(found))
        assert np.isfinite(logits).all(), name
        assert (logits.argmax(-1) != labels).all(), name
    record = in_turn(key, holes, images, labels, ball, random, batch_size=16)
    assert np.isfinite(np.asarray(holes(jnp.asarray(record.adversarial)))[record.broken_by != "clean"]).all()


# --- few classes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("aimed", [False, True])
def test_the_dlr_has_a_gradient_whatever_the_number_of_classes(classes, aimed):
    logits = jnp.asarray(RNG.normal(size=(200, classes)), jnp.float32)
    labels = logits.argmax(-1)
    for rank in range(1, classes if aimed else 2):
        targets = jnp.argsort(logits, -1, descending=True)[:, rank] if aimed else None
        slope = jax.grad(lambda z, targets=targets: dlr(z, labels, targets).sum())(logits)
        assert (jnp.abs(slope).max(-1) > 1e-3).all()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", ["untargeted", "targeted"])
def test_apgd_on_the_dlr_breaks_what_a_linear_network_of_few_classes_lets_it(key, classes, name):
    w, b, logits_fn = networks.linear(3, 9, classes)
    split = networks.labelled(logits_fn, networks.images(1, 64))
    margin, fall = networks.exact_margins(w, b, split)
    breakable = (margin - 0.1 * fall).min(-1) < 0
    assert 10 < breakable.sum() < 54
    attack = functools.partial(apgd, steps=20, objective=dlr, restarts=1 if name == "targeted" else 4)
    attack = targeted(attack) if name == "targeted" else attack
    found = attack(key, logits_fn, split.images, split.labels, mt.linf_ball(split.images, 0.1))
    np.testing.assert_array_equal(broken(logits_fn, found, split.labels), breakable)
    assert flags(logits_fn, split.images, split.labels) == []


def test_the_standard_ensemble_of_two_classes_runs_the_dlr(key):
    w, b, logits_fn = networks.linear(3, 9, 2)
    split = networks.labelled(logits_fn, networks.images(1, 64))
    ball = mt.linf_ball(split.images, 0.1)
    margin, fall = networks.exact_margins(w, b, split)
    only = {"apgd-dlr-t": standard_attacks()["apgd-dlr-t"]}
    record = in_turn(key, logits_fn, split.images, split.labels, ball, only, batch_size=64)
    np.testing.assert_array_equal(record.broken_by == "apgd-dlr-t", (margin - 0.1 * fall).min(-1) < 0)
