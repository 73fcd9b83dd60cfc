import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks as networks

from mixtrain_jax import certify, environment
from mixtrain_jax.attacks import pgd, targeted
from mixtrain_jax.bounds import BoundsError, Interval
from mixtrain_jax.certify import Threat, evaluate, measure_curve
from mixtrain_jax.certify import evaluation as evaluation_module
from mixtrain_jax.data import Split
from mixtrain_jax.errors import SoundnessError

WIDE = (-100.0, 100.0)
PIXELS = (0.0, 1.0)
NAMES = ("ibp", "crown_ibp", "symbolic", "crown")
PGD = functools.partial(pgd, steps=10, restarts=1)
ATTACK = {"attacks": {"PGD": PGD}}


def claims(margin):
    """A method that says the same margin of everything."""

    def differences(label, ball):
        value = jnp.full(3, margin, jnp.float32) + 0 * ball.lower.sum()
        return Interval(value, value)

    return lambda f: SimpleNamespace(differences=differences)


@pytest.fixture(scope="module")
def linear():
    w, b, logits_fn = networks.linear(0, 9, 5)
    split = networks.labelled(logits_fn, networks.images(1, 21))
    labels = split.labels.copy()
    labels[::5] = (labels[::5] + 1) % 5
    return w, b, logits_fn, Split(split.images, labels)


@pytest.fixture(scope="module")
def random():
    logits_fn = networks.mlp(3, 9, 4)
    split = networks.labelled(logits_fn, networks.images(4, 30))
    labels = split.labels.copy()
    labels[::6] = (labels[::6] + 1) % 4
    return logits_fn, Split(split.images, labels)


@pytest.fixture(scope="module")
def sure():
    """A network that no perturbation can change the mind of."""

    def logits_fn(x):
        return jnp.asarray([[100.0, 0.0]]) + 0.01 * jnp.reshape(x, (len(x), -1))[:, :2]

    return logits_fn, Split(networks.images(0, 4), np.zeros(4, np.int32))


@pytest.mark.parametrize("name", NAMES)
def test_a_linear_network_is_verified_exactly_where_the_closed_form_says(key, linear, name):
    w, b, logits_fn, split = linear
    eps = 0.06
    margin, fall = networks.exact_margins(w, b, split)
    worst = (margin - eps * fall).min(-1)
    assert np.abs(worst).min() > 1e-4
    assert 3 < (worst > 0).sum() < (margin.min(-1) > 0).sum() < len(split)
    found = evaluate(key, logits_fn, split, Threat(eps, WIDE), methods=certify.methods([name]), batch_size=8, **ATTACK)
    np.testing.assert_array_equal(found.clean, margin.min(-1) > 0)
    np.testing.assert_array_equal(found.verified, worst > 0)
    assert (found.attacked >= found.verified).all()
    # Sound in floating point: below the exact margin, by some roundings of 64 products.
    assert (found.margin[found.clean] <= worst[found.clean]).all()
    assert (found.margin[found.clean] >= worst[found.clean] - 1e-4).all()
    np.testing.assert_array_equal(found.proved_by, np.where(worst > 0, name, ""))
    assert np.isneginf(found.margin[~found.clean]).all()


@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_verified_implies_attacked_implies_clean(key, random, eps):
    logits_fn, split = random
    found = evaluate(key, logits_fn, split, Threat(eps, PIXELS), methods=certify.methods(NAMES), **ATTACK)
    assert (found.verified <= found.attacked).all()
    assert (found.attacked <= found.clean).all()
    np.testing.assert_array_equal(found.clean, found.predictions == split.labels)
    np.testing.assert_array_equal(found.clean, np.arange(30) % 6 != 0)
    np.testing.assert_array_equal(found.verified, found.proved_by != "")
    np.testing.assert_array_equal(found.verified, found.margin > 0)
    shares = found.accuracies()
    assert shares == {
        "clean_accuracy": found.clean.mean(),
        "attacked_accuracy": found.attacked.mean(),
        "verified_accuracy": found.verified.mean(),
    }


def test_the_middle_radius_tells_the_three_accuracies_apart(key, random):
    logits_fn, split = random
    found = evaluate(key, logits_fn, split, Threat(0.1, PIXELS), methods=certify.methods(["ibp"]), **ATTACK)
    assert 0 < found.verified.sum() < found.attacked.sum() < found.clean.sum() < len(split)


def test_adversarial_inputs_lie_in_the_ball_and_break_what_they_are_said_to(key, random):
    logits_fn, split = random
    found = evaluate(key, logits_fn, split, Threat(0.1, PIXELS), methods={}, **ATTACK)
    assert np.abs(found.adversarial - split.images).max() <= 0.1
    assert found.adversarial.min() >= 0
    assert found.adversarial.max() <= 1
    still = np.asarray(logits_fn(jnp.asarray(found.adversarial)).argmax(-1)) == split.labels
    np.testing.assert_array_equal(found.attacked, found.clean & still)
    np.testing.assert_array_equal(found.adversarial[~found.clean], split.images[~found.clean])


def test_without_methods_nothing_is_verified(key, random):
    logits_fn, split = random
    found = evaluate(key, logits_fn, split, Threat(0.0, PIXELS), methods={}, **ATTACK)
    assert not found.verified.any()
    assert np.isneginf(found.margin).all()


@pytest.mark.parametrize("margin", [np.nan, -1.0, 0.0])
def test_margins_that_are_not_positive_never_verify(key, random, margin):
    logits_fn, split = random
    found = evaluate(key, logits_fn, split, Threat(0.0, PIXELS), methods={"claim": claims(margin)}, **ATTACK)
    assert not found.verified.any()
    assert not np.isnan(found.margin).any()


def test_nan_of_one_method_does_not_hide_what_the_next_one_proves(key, random):
    logits_fn, split = random
    only = evaluate(key, logits_fn, split, Threat(0.05, PIXELS), methods=certify.methods(["crown_ibp"]), **ATTACK)
    both = {"claim": claims(np.nan), **certify.methods(["crown_ibp"])}
    found = evaluate(key, logits_fn, split, Threat(0.05, PIXELS), methods=both, **ATTACK)
    assert only.verified.any()
    np.testing.assert_array_equal(found.verified, only.verified)
    np.testing.assert_array_equal(found.margin[found.attacked], only.margin[found.attacked])
    assert set(found.proved_by) == {"crown_ibp", ""}


def test_attacks_that_skip_what_is_proved_find_the_same(key, random):
    logits_fn, split = random
    seen = []

    def counted(key, logits_fn, x, labels, ball):
        seen.append(len(np.unique(np.asarray(x).reshape(len(x), -1), axis=0)))
        return pgd(key, logits_fn, x, labels, ball, steps=20, restarts=1)

    attacks = {"weak": functools.partial(pgd, steps=1, restarts=1), "PGD": counted}
    all_, some = (
        evaluate(
            *(key, logits_fn, split, Threat(0.1, PIXELS)),
            attacks=attacks,
            methods=certify.methods(["ibp", "crown"]),
            skip_proved=skip,
        )
        for skip in (False, True)
    )
    assert all_.accuracies() == some.accuracies()
    np.testing.assert_array_equal(all_.broken_by, some.broken_by)
    np.testing.assert_array_equal(all_.proved_by, some.proved_by)
    np.testing.assert_array_equal(all_.margin, some.margin)
    broken = all_.broken_by != ""
    assert {"weak", "PGD"} <= set(all_.broken_by)
    np.testing.assert_array_equal(all_.adversarial[broken], some.adversarial[broken])
    assert list(all_.seconds) == ["weak", "PGD", "ibp", "crown"]
    assert list(some.seconds) == ["weak", "ibp", "PGD", "crown"]
    after = all_.clean & (all_.broken_by != "weak")
    assert seen == [after.sum(), (after & (all_.proved_by != "ibp")).sum()]
    assert 0 < seen[1] < seen[0]


def test_what_is_proved_is_held_against_the_first_attack_even_where_the_others_skip_it(key, linear):
    *_, logits_fn, split = linear
    attacks = {"first": PGD, "PGD": PGD}
    with pytest.raises(SoundnessError, match="both proved and broken"):
        evaluate(
            key, logits_fn, split, Threat(0.4, WIDE), attacks=attacks, methods={"liar": claims(1.0)}, skip_proved=True
        )


def test_methods_are_tried_in_turn_on_what_is_open(key, random):
    logits_fn, split = random
    single = {
        name: evaluate(key, logits_fn, split, Threat(0.1, PIXELS), methods=certify.methods([name]), **ATTACK)
        for name in ("ibp", "crown_ibp")
    }
    found = evaluate(
        key, logits_fn, split, Threat(0.1, PIXELS), methods=certify.methods(["ibp", "crown_ibp"]), **ATTACK
    )
    broken = found.clean & ~found.attacked
    assert broken.any()
    # The first method has to fail on the broken ones too, the second one is spared them.
    np.testing.assert_array_equal(found.margin[broken], single["ibp"].margin[broken])
    crown_only = single["crown_ibp"].verified & ~single["ibp"].verified
    assert crown_only.any()
    np.testing.assert_array_equal(found.proved_by == "ibp", single["ibp"].verified)
    np.testing.assert_array_equal(found.proved_by == "crown_ibp", crown_only)


@pytest.mark.parametrize("n", [1, 8, 9])
def test_split_sizes_need_not_divide_into_batches(key, linear, n):
    _, _, logits_fn, split = linear
    part = split[-n:]
    options = {"methods": certify.methods(["ibp"]), **ATTACK}
    found = evaluate(key, logits_fn, part, Threat(0.06, WIDE), batch_size=8, **options)
    whole = evaluate(key, logits_fn, split, Threat(0.06, WIDE), batch_size=32, **options)
    for name in ("predictions", "clean", "attacked", "verified", "proved_by"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name)[-n:])
    np.testing.assert_allclose(found.margin, whole.margin[-n:], atol=1e-6)
    assert found.adversarial.shape == part.images.shape


def little_memory(most):
    """Devices that hold so many examples at a time."""

    def spread(f):
        def call(*args, **kwargs):
            if max(len(leaf) for leaf in jax.tree.leaves((args, kwargs)) if np.ndim(leaf)) > most:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.\nmore of it")
            return f(*args, **kwargs)

        return call

    return spread


def test_batches_too_large_for_the_memory_are_halved(key, random):
    logits_fn, split = random
    methods, threat = certify.methods(["ibp", "crown_ibp"]), Threat(0.1, PIXELS)
    few_steps = functools.partial(pgd, steps=3, restarts=1)
    attacks = {"pgd": few_steps, "targeted": targeted(few_steps, 2)}
    sizes = {"few": {"batch_size": 4}, "halved": {"batch_size": 19, "spread": little_memory(4)}}
    few, halved = (
        evaluate(key, logits_fn, split, threat, attacks=attacks, methods=methods, **options)
        for options in sizes.values()
    )
    assert 0 < few.verified.sum() < few.attacked.sum() < few.clean.sum()
    for name in ("predictions", "clean", "attacked", "verified", "proved_by", "broken_by"):
        np.testing.assert_array_equal(getattr(few, name), getattr(halved, name))
    np.testing.assert_allclose(few.margin, halved.margin, atol=1e-6)


def test_bounds_that_would_not_fit_into_the_host_are_never_started(key, random, monkeypatch):
    """Linux would kill the process: batches shrink by what XLA plans, before anything runs."""
    logits_fn, split = random
    wanted = []

    def free():
        wanted.append(True)
        return 40_000

    options = {"methods": certify.methods(["crown_ibp"]), "attacks": {}, "batch_size": 64}
    whole = evaluate(key, logits_fn, split, Threat(0.1, PIXELS), **options)
    monkeypatch.setattr(evaluation_module.environment, "free_memory", free)
    halved = evaluate(key, logits_fn, split, Threat(0.1, PIXELS), **options)
    assert len(wanted) > 2  # programs of fewer and fewer images
    np.testing.assert_array_equal(whole.verified, halved.verified)
    monkeypatch.setattr(evaluation_module.environment, "free_memory", lambda: 100)
    with pytest.raises(
        BoundsError, match=r"single example: RESOURCE_EXHAUSTED: 1 image.* want 0.0 GiB .* 0.0 GiB are free"
    ):
        evaluate(key, logits_fn, split, Threat(0.1, PIXELS), **options)


def test_free_memory_is_the_least_of_what_machine_and_control_group_leave(tmp_path):
    assert environment.free_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:     500 kB\n")
    assert environment.free_memory(tmp_path) == 500 * 1024
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert environment.free_memory(tmp_path) == 500 * 1024
    (group / "memory.max").write_text("300000\n")
    (group / "memory.current").write_text("250000\n")
    (group / "memory.stat").write_text("anon 200000\nfile 50000\ninactive_file 30000\nactive_file 20000\n")
    assert environment.free_memory(tmp_path) == 100_000
    (group / "memory.stat").write_text("inactive_file many\n")
    assert environment.free_memory(tmp_path) == 500 * 1024


def test_too_little_memory_for_one_example_is_said(key, random):
    logits_fn, split = random
    message = "too little memory for a single example: RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.$"
    with pytest.raises(BoundsError, match=message):
        evaluate(key, logits_fn, split, Threat(0.1, PIXELS), methods={}, spread=little_memory(0), **ATTACK)


def test_another_error_of_the_device_is_not_taken_for_it(key, random):
    logits_fn, split = random

    def broken(f):
        def call(*args):
            raise jax.errors.JaxRuntimeError("INTERNAL: broken")

        return call

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: broken"):
        evaluate(key, logits_fn, split, Threat(0.1, PIXELS), methods={}, spread=broken, **ATTACK)


def test_a_split_of_only_wrong_images_leaves_nothing_to_do(key, linear):
    _, _, logits_fn, split = linear
    right = np.asarray(logits_fn(jnp.asarray(split.images)).argmax(-1))
    wrong = Split(split.images, ((right + 1) % 5).astype(np.int32))
    options = {"batch_size": 8}
    found = evaluate(
        key, logits_fn, wrong, Threat(0.1, PIXELS), methods=certify.methods(["ibp", "crown"]), **options, **ATTACK
    )
    assert found.accuracies() == {"clean_accuracy": 0, "attacked_accuracy": 0, "verified_accuracy": 0}
    curve = measure_curve(
        key, logits_fn, wrong, found, methods=certify.methods(["ibp"]), points=3, attack_steps=2, **options
    )
    assert (curve.radius == -1).all()
    assert not curve.verified.any()


def test_an_unsound_method_is_caught(key, linear):
    _, _, logits_fn, split = linear
    with pytest.raises(
        SoundnessError, match=r"\d+ image\(s\) are both proved and broken at eps 1, the first is number 1"
    ):
        evaluate(key, logits_fn, split, Threat(1.0, WIDE), methods={"claim": claims(1e3)}, **ATTACK)


def test_an_unsound_method_is_caught_by_the_curve(key, linear):
    _, _, logits_fn, split = linear
    at = evaluate(key, logits_fn, split, Threat(0.01, WIDE), methods=certify.methods(["ibp"]), **ATTACK)
    with pytest.raises(SoundnessError, match="both proved and broken"):
        measure_curve(key, logits_fn, split, at, methods={"claim": claims(1e3)}, reach=100, points=3, attack_steps=5)


def test_poll_sees_progress_and_can_stop(key, linear):
    _, _, logits_fn, split = linear
    seen = []
    options = {"methods": certify.methods(["ibp"]), "batch_size": 8, **ATTACK}
    at = evaluate(key, logits_fn, split, Threat(0.06, WIDE), poll=lambda *args: seen.append(args), **options)
    assert all(done <= total for _, done, total in seen)
    assert [args for args in seen if args[0] == "predict"] == [
        ("predict", 8, 21),
        ("predict", 16, 21),
        ("predict", 21, 21),
    ]
    kinds = {what for what, _, _ in seen}
    assert "PGD" in kinds
    assert "certify by ibp" in kinds

    class Enough(Exception):
        pass

    def stop(what, done, total):
        raise Enough

    with pytest.raises(Enough):
        evaluate(key, logits_fn, split, Threat(0.06, WIDE), poll=stop, **options)
    with pytest.raises(Enough):
        measure_curve(key, logits_fn, split, at, methods=certify.methods(["ibp"]), batch_size=8, poll=stop)


def curve_of(key, logits_fn, split, at, name, **options):
    return measure_curve(key, logits_fn, split, at, methods=certify.methods([name]), attack_steps=8, **options)


def test_the_curve_falls_and_agrees_with_the_evaluation_at_its_radius(key, random):
    logits_fn, split = random
    at = evaluate(key, logits_fn, split, Threat(0.1, PIXELS), methods=certify.methods(["ibp"]), **ATTACK)
    curve = curve_of(key, logits_fn, split, at, "ibp")
    assert curve.eps[0] == 0
    assert curve.eps[-1] == 0.25
    assert (np.diff(curve.attacked) <= 0).all()
    assert (np.diff(curve.verified) <= 0).all()
    assert (curve.verified <= curve.attacked).all()
    assert (curve.attacked <= curve.clean).all()
    assert curve.attacked[0] == curve.verified[0] == at.clean.mean()
    here = list(curve.eps).index(0.1)
    assert curve.verified[here] == at.verified.mean() == (curve.radius >= 0.1).mean()
    assert curve.attacked[here] <= at.attacked.mean()
    np.testing.assert_array_equal(curve.radius == -1, ~at.clean)
    assert (curve.radius[at.verified] >= 0.1).all()


@pytest.mark.parametrize("eps", [0.1, 2 / 255, 31 / 255, 28 / 255])
def test_the_curve_knows_what_the_evaluation_proved_or_broke(key, sure, eps):
    logits_fn, split = sure
    at = evaluate(key, logits_fn, split, Threat(eps, PIXELS), methods={}, **ATTACK)
    nothing = {"methods": {"claim": claims(-1.0)}, "attack_steps": 1}
    here = np.argmin(np.abs(np.linspace(0, 2.5 * eps, 21) - eps))
    broken = dataclasses.replace(at, attacked=np.zeros_like(at.clean))
    assert measure_curve(key, logits_fn, split, broken, **nothing).attacked[here] == 0
    proved = dataclasses.replace(at, verified=at.clean)
    assert measure_curve(key, logits_fn, split, proved, **nothing).verified[here] == 1


def test_the_proved_radius_of_a_linear_network_is_the_closed_form(key, linear):
    w, b, logits_fn, split = linear
    margin, fall = networks.exact_margins(w, b, split)
    exact = (margin / fall).min(-1)
    at = evaluate(key, logits_fn, split, Threat(0.1, WIDE), methods={}, **ATTACK)
    curve = curve_of(key, logits_fn, split, at, "ibp", points=3)
    inside = at.clean & (exact < 0.25)
    assert inside.sum() > 5
    assert (curve.radius[inside] <= exact[inside] + 1e-6).all()
    rounding = 1e-4 / fall.min()  # of the margin, as a radius
    assert (curve.radius[inside] > exact[inside] - 0.25 / 4000 - rounding).all()
    assert (curve.radius[at.clean & ~inside] > 0.25 - 0.25 / 4000 - 1e-6).all()
    assert (curve.radius[~at.clean] == -1).all()


def test_an_image_proved_beyond_the_range_is_verified_all_over_it(key, sure):
    logits_fn, split = sure
    at = evaluate(key, logits_fn, split, Threat(0.1, PIXELS), methods=certify.methods(["ibp"]), **ATTACK)
    curve = curve_of(key, logits_fn, split, at, "ibp", points=6)
    np.testing.assert_array_equal(curve.verified, 1)


def test_a_radius_of_zero_is_no_problem(key, random):
    logits_fn, split = random
    at = evaluate(key, logits_fn, split, Threat(0.0, PIXELS), methods=certify.methods(["ibp"]), **ATTACK)
    np.testing.assert_array_equal(at.verified, at.clean)
    curve = curve_of(key, logits_fn, split, at, "ibp", points=3)
    np.testing.assert_array_equal(curve.verified, at.clean.mean())
    np.testing.assert_array_equal(curve.attacked, at.clean.mean())


def test_methods_come_by_name_in_order():
    assert list(certify.methods(["crown", "ibp"])) == ["crown", "ibp"]
    with pytest.raises(BoundsError, match="no bound method 'nothing'; known: ibp, crown_ibp"):
        certify.methods(["nothing"])


def test_the_key_alone_decides(random):
    logits_fn, split = random
    attack = functools.partial(pgd, steps=1, restarts=2)
    options = {"methods": {}, "attacks": {"PGD": attack}, "batch_size": 32}
    first, again = (evaluate(jax.random.key(1), logits_fn, split, Threat(0.2, PIXELS), **options) for _ in range(2))
    np.testing.assert_array_equal(first.adversarial, again.adversarial)
    another = evaluate(jax.random.key(2), logits_fn, split, Threat(0.2, PIXELS), **options)
    assert (first.adversarial != another.adversarial).any()


def test_a_proved_radius_is_to_the_bit_one_that_was_asked_about():
    asked, border = [], np.array([0.0, 0.05, 0.1, 0.2499, 0.3])

    def proved(eps):
        asked.append(eps)
        return eps <= border

    found = evaluation_module._largest_proved(proved, len(border), 0.25)
    for i, radius in enumerate(found):
        assert radius == 0 or any(eps[i] == radius and radius <= border[i] for eps in asked)
        assert radius >= min(border[i], 0.25) - 0.25 / 4000
    assert all(eps.dtype == np.float32 for eps in asked)


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (np.full((3, 3, 3, 1), np.nan, np.float32), np.zeros(3, np.int32), {}, r"pixels in \(0\.0, 1\.0\); image 0"),
        (np.full((3, 3, 3, 1), 1.5, np.float32), np.zeros(3, np.int32), {}, r"image 0 has others \(3 such images\)"),
        (networks.images(0, 3), np.zeros(2, np.int32), {}, r"one integer label an image, got int32\[2\]"),
        (networks.images(0, 3), np.zeros(3, np.float32), {}, r"one integer label an image, got float32\[3\]"),
        (networks.images(0, 3), np.zeros(3, np.int32), {"batch_size": 0}, "batch_size of 1 or more, got 0"),
        (
            networks.images(0, 3),
            np.zeros(3, np.int32),
            {"logits_fn": lambda x: x[0, :, :, 0]},
            r"logits \[n, classes\]",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused(key, images, labels, options, message):
    given = {"logits_fn": lambda x: x[:, 0, :, 0], "attacks": {}, "methods": {}, **options}
    with pytest.raises(BoundsError, match=message):
        certify.evaluate(key, given.pop("logits_fn"), Split(images, labels), certify.Threat(0.1), **given)
