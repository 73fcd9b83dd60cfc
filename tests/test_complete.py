import functools
import io

import jax
import numpy as np
import program
import pytest
import small_networks as networks
from rich.console import Console
from test_judge import apply

from mixtrain_jax import certify
from mixtrain_jax.attacks import fgsm
from mixtrain_jax.certify import Threat, certificates_of, judge
from mixtrain_jax.config import of_flags
from mixtrain_jax.doctor import examine
from mixtrain_jax.report import judgement as report
from mixtrain_jax.report.display import Display
from mixtrain_jax.training.run import run


@pytest.fixture(scope="module")
def judged():
    """By a weak attack and a loose bound, so that both leave images to complete verification."""
    rng = np.random.default_rng(3)
    params = tuple((rng.normal(size=s) / s[0] ** 0.5).astype(np.float32) for s in ((9, 16), (16, 4)))
    split = networks.labelled(functools.partial(apply, params), networks.images(4, 24))
    options = {"attacks": {"fgsm": fgsm}, "methods": certify.methods(["ibp"]), "layer_examples": 0}
    options["seconds"] = float(program.LIMIT)
    return judge(apply, params, split, Threat(0.05), batch_size=8, **options), params, split


def test_every_image_is_decided_by_the_first_that_can(judged):
    at = judged[0].evaluation
    assert np.array_equal(at.attacked, at.verified)
    assert (at.proved_by == "complete").any()
    assert (at.proved_by == "ibp").any()
    assert np.array_equal(at.proved_by != "", at.margin > 0)
    assert at.seconds["complete"] > 0


def test_counterexamples_are_in_the_ball_and_of_another_class(judged):
    found, params, split = judged
    at, rows = found.evaluation, np.flatnonzero(found.evaluation.broken_by == "complete")
    assert rows.size
    assert not at.threat.outside(split.images[rows], at.adversarial[rows]).any()
    seen_as = np.asarray(apply(params, at.adversarial[rows])).argmax(-1)
    assert np.array_equal(seen_as, at.seen_as[rows])
    assert np.all(seen_as != split.labels[rows])


def test_what_took_branching_has_no_certificate_of_one_bound(judged):
    found, params, split = judged
    methods = {record.method for record in certificates_of(found.evaluation, apply, params, split).records}
    assert methods == {"ibp"}


def test_the_report_says_by_what_in_how_many_domains_and_seconds(judged):
    found, _, split = judged
    numbers = report.to_json(found, split)
    summary, at = numbers["complete"], found.evaluation
    assert summary["images"] == sum(sum(summary[status].values()) for status in ("proved", "broken", "open"))
    assert sum(summary["proved"].values()) == numbers["verified_by"]["complete"] == (at.proved_by == "complete").sum()
    console = Console(file=io.StringIO(), width=200)
    report.show(console, numbers)
    counted = f"Complete verification of {summary['images']} open images"
    assert f"{counted}, {program.LIMIT} s each: " in console.file.getvalue()
    assert " by inputs" in console.file.getvalue()
    assert "Complete verification" in report.render(found, numbers, split, {"model": "net"})


def test_images_that_stay_open_count_by_the_reason(judged):
    _found, params, split = judged
    loose = certify.evaluate(
        jax.random.key(0),
        functools.partial(apply, params),
        split,
        Threat(0.05),
        attacks={"fgsm": fgsm},
        methods=certify.methods(["ibp"]),
        batch_size=8,
    )
    at, completion = certify.complete(loose, apply, params, split, 1e-9)
    summary = completion.summary()
    assert summary["open"].get("timeout", 0) == (at.attacked & ~at.verified).sum() > 0


def test_a_run_decides_its_open_images_where_it_is_asked_to(tmp_path):
    values = {"model.width": 8, "training.epochs": 3, "data.holdout": 97, "training.points": 2, "threat.eps": 0.02}
    values |= {"certify.bounds": ("ibp",), "certify.attack_steps": 1, "certify.curve_examples": 0}
    values["certify.complete"] = float(program.LIMIT)
    shown = io.StringIO()
    with jax.numpy_dtype_promotion("standard"):  # which optax wants
        summary = run(of_flags(values), tmp_path, Display(Console(file=shown, width=200)))
    assert summary["attacked_accuracy"] == summary["verified_accuracy"] > 0
    assert summary["complete"]["images"] > 0
    assert sum(summary["verified_by"].values()) == round(500 * summary["verified_accuracy"])
    assert summary["attack"].endswith("and complete verification")
    assert "Complete verification of" in (tmp_path / "report.html").read_text()
    assert not [finding for finding in examine(tmp_path) if finding.verdict == "fault"]
