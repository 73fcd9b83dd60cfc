import functools
import html.parser
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks as networks
from rich.console import Console

from mixtrain_jax import certify
from mixtrain_jax.attacks import fgsm, pgd
from mixtrain_jax.certify import CUSTOMARY, Threat, judge, suite
from mixtrain_jax.data import Split
from mixtrain_jax.errors import SoundnessError
from mixtrain_jax.report import judgement as report


def apply(params, x):
    hidden, out = params
    return jax.nn.relu(jnp.reshape(x, (len(x), -1)) @ hidden) @ out


@pytest.fixture(scope="module")
def net():
    rng = np.random.default_rng(3)
    params = tuple(jnp.asarray(rng.normal(size=s) / s[0] ** 0.5, jnp.float32) for s in ((9, 16), (16, 4)))
    split = networks.labelled(functools.partial(apply, params), networks.images(4, 40))
    labels = split.labels.copy()
    labels[::8] = (labels[::8] + 1) % 4
    return params, Split(split.images, labels)


@pytest.fixture(scope="module")
def judged(net):
    params, split = net
    threat = Threat(0.1)
    attacks = suite("quick", threat)
    methods = certify.methods(["ibp", "crown"])
    return judge(apply, params, split, threat, attacks=attacks, methods=methods, curve_examples=8, batch_size=16)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_image_is_verified_attacked_and_clean_in_this_order(net, norm, judged):
    params, split = net
    threat = Threat(0.25, norm=norm)
    if norm == "l2":
        found = judge(
            *(apply, params, split, threat),
            attacks=suite("quick", threat),
            methods=certify.methods(["ibp", "crown"]),
            batch_size=16,
        )
    else:
        found = judged
    columns = found.columns()
    assert list(columns) == ["clean", CUSTOMARY, "attacked", "verified"]
    for better, worse in zip(list(columns.values())[1:], columns.values(), strict=False):
        assert (better <= worse).all()
    at = found.evaluation
    assert 0 < at.verified.sum() <= at.attacked.sum() < at.clean.sum() < len(split)
    broken = at.broken_by != ""
    np.testing.assert_array_equal(broken, at.clean & ~at.attacked)
    assert not at.threat.outside(split.images, at.adversarial).any()
    logits = np.asarray(apply(params, at.adversarial))
    np.testing.assert_array_equal(logits.argmax(-1)[broken], at.seen_as[broken])
    assert (at.seen_as[broken] != split.labels[broken]).all()
    assert set(at.seconds) >= {CUSTOMARY, "apgd-ce", "apgd-dlr-t", "fab-t", "square", "ibp", "crown"}


@pytest.mark.parametrize("seed", range(6))
def test_of_many_images_none_is_both_proved_and_broken(seed):
    """The judge itself raises an error where one is; here there are enough of both kinds."""
    logits_fn = networks.mlp(seed, 9, 4, width=12)
    split = networks.labelled(logits_fn, networks.images(seed, 500))
    attacks = {"pgd": functools.partial(pgd, steps=20, restarts=2)}
    methods = certify.methods(["ibp", "crown"], sound=False)
    at = certify.evaluate(
        *(jax.random.key(seed), logits_fn, split, Threat(0.05)), attacks=attacks, methods=methods, batch_size=500
    )
    assert at.verified.sum() > 50
    assert (~at.attacked).sum() > 20
    assert not (at.verified & ~at.attacked).any()


def test_methods_after_the_first_see_what_is_open_alone(judged):
    at = judged.evaluation
    assert set(at.proved_by) <= {"", "ibp", "crown"}
    assert not (at.verified & (at.broken_by != "")).any()


def test_an_attack_that_leaves_its_ball_is_caught(net):
    params, split = net

    def cheat(key, logits_fn, x, labels, ball):
        return np.clip(fgsm(key, logits_fn, x, labels, ball) + 1e-6, 0, 1)

    with pytest.raises(SoundnessError, match=r"not within l-infinity eps 0\.1 of their image"):
        judge(apply, params, split, Threat(0.1), attacks={"cheat": cheat}, methods={}, layer_examples=0)


def test_an_attack_that_does_nothing_breaks_nothing(net):
    params, split = net
    found = judge(
        *(apply, params, split, Threat(0.5)),
        attacks={"idle": lambda key, f, x, labels, ball: x},
        methods={},
        layer_examples=0,
    )
    np.testing.assert_array_equal(found.evaluation.attacked, found.evaluation.clean)


def test_layers_are_the_relus_and_crown_is_tighter(judged):
    ibp, crown = judged.layers
    assert (ibp.method, crown.method) == ("ibp", "crown")
    assert ibp.operation == crown.operation == "max"
    assert ibp.entries == crown.entries == 16
    assert 0 < crown.width <= ibp.width * (1 + 1e-5)
    assert 0 < crown.unstable <= ibp.unstable < 1
    assert "test_judge.py" in ibp.source


def test_masked_gradients_are_exposed():
    """Rounded inputs and huge logits: the customary attack has nothing to follow, a search without gradients does."""
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(36, 3)), jnp.float32)

    def masked(params, x):
        return 1e4 * (jnp.round(6 * jnp.reshape(x, (len(x), -1))) / 6 @ params)

    split = networks.labelled(functools.partial(masked, w), networks.images(1, 32, side=6))
    threat = Threat(0.3)
    attacks = suite("quick", threat)
    found = judge(masked, w, split, threat, attacks=attacks, methods={}, layer_examples=0)
    columns = found.columns()
    assert columns[CUSTOMARY].mean() > 0.8
    assert columns["attacked"].mean() < 0.5
    said = " ".join(found.warnings)
    assert "gradient masking" in said
    assert "zero gradient" in said
    assert "square: without gradients it broke" in said


def test_an_open_gap_to_the_bounds_is_named(net):
    params, split = net
    found = judge(apply, params, split, Threat(0.05), attacks={}, methods={}, layer_examples=0)
    assert any("neither broken nor proved" in warning for warning in found.warnings)


def test_a_plain_network_is_above_suspicion(judged):
    kinds = ("randomised", "softmax", "zero gradient", "square", "loop", "steps")
    assert not [warning for warning in judged.warnings if warning.startswith(kinds)]


def test_the_numbers_add_up(judged, net):
    _, split = net
    numbers = report.to_json(judged, split)
    assert json.loads(json.dumps(numbers, allow_nan=False)) is not None
    n = len(split)
    assert n * numbers["clean_accuracy"] - sum(numbers["broken_by"].values()) == n * numbers["attacked_accuracy"]
    assert sum(numbers["verified_by"].values()) == round(n * numbers["verified_accuracy"])
    for name in ("clean", "attacked", "verified"):
        per_class = sum(of["examples"] * of[name] for of in numbers["classes"].values())
        assert per_class == pytest.approx(n * numbers[f"{name}_accuracy"])
    assert numbers["pgd_20_accuracy"] >= numbers["attacked_accuracy"]
    bench = report.robustbench(numbers, "net", "toy")
    assert bench["verified_acc"] == f"{100 * numbers['verified_accuracy']:.2f}"
    assert bench["verifier"] == ", ".join(numbers["verified_by"])
    assert bench["Linf"] is True


def test_the_table_shows_every_class_attack_and_warning(judged, net):
    _, split = net
    numbers = {**report.to_json(judged, split), "warnings": ["softmax: odd [thing]"]}
    console = Console(record=True, width=120)
    report.show(console, numbers)
    text = console.export_text()
    for word in ("clean", CUSTOMARY, "attacked", "verified", "all", "square", "crown", "Mind: softmax: odd [thing]"):
        assert word in text
    assert f"{numbers['verified_accuracy']:.1%}" in text


class Tags(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)

    def handle_data(self, data):
        self.open.append(data)


def test_the_page_has_the_curve_the_broken_images_and_the_layers(judged, net):
    _, split = net
    numbers = report.to_json(judged, split)
    page = Tags(report.render(judged, numbers, split, {"model": "a <b> net", "seed": 0}))
    assert page.seen.count("svg") == 2
    text = " ".join(page.open)
    for word in ("a <b> net", "Accuracy against the radius", "Images that were broken", "layer by layer", "fab-t"):
        assert word in text
    bare = report.render(
        judge(apply, net[0], split, Threat(0.0), attacks={}, methods={}, layer_examples=0), numbers, split, {}
    )
    assert "<svg" not in bare


def test_suites():
    threat = Threat(0.1)
    assert list(suite("customary", threat)) == [CUSTOMARY]
    assert list(suite("strong", threat))[1:] == ["apgd-ce", "apgd-dlr-t", "fab-t", "square", "interval"]
    assert "interval" not in suite("strong", Threat(0.1, norm="l2"))
    with pytest.raises(ValueError, match="customary, quick, strong, got 'all'"):
        suite("all", threat)


def test_progress_is_told(net):
    params, split = net
    seen = []
    threat = Threat(0.1)
    poll = lambda what, done, total: seen.append((what, done, total))  # noqa: E731
    attacks = {"mine": functools.partial(pgd, steps=2, restarts=1)}
    judge(apply, params, split, threat, attacks=attacks, methods=certify.methods(["ibp"]), batch_size=16, poll=poll)
    assert {what for what, _, _ in seen} == {"predict", "mine", "certify by ibp"}
    assert all(0 < done <= total for _, done, total in seen)
