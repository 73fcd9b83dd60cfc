"""The experiments behind the page of results, on toys."""

from __future__ import annotations

import json
import sys

import jax
import pytest
import study
from results_page import records

TINY = {
    "training.epochs": 1,
    "model.width": 8,
    "training.points": 1,
    "certify.attack_steps": 1,
    "certify.bounds": ["ibp"],
}


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("subsampling", {"ibp-1-epochs-0", "ibp-16-epochs-0", "ibp-16-time-0"}),
        ("weights", {"ibp-convex-0.5-0", "ibp-staircase-0"}),
        ("time", {"ibp-pgd-7-0"}),
    ],
)
def test_a_study_makes_runs_that_the_page_reads_and_goes_on_where_it_was_stopped(name, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "SHARES", (1, 16))
    monkeypatch.setattr(study, "WEIGHTS", (0.5,))
    monkeypatch.setattr(study, "TARGETS", {"digits": ()})
    monkeypatch.setattr(study, "TRAINERS", {"pgd-7": study.TRAINERS["pgd-7"]})
    options = ["--seeds", "0", "--fields", json.dumps(TINY), "--label", "toy", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["study.py", name, "--data", "digits", *options])
    folder = tmp_path / f"{name}-digits-toy"
    with jax.numpy_dtype_promotion("standard"):  # which optax wants
        study.main()
        found = records.gather(sorted(path for path in folder.glob("*") if path.is_dir()))
        assert {f"{run['name']}-{run['config']['seed']}" for run in found if "name" in run} == runs
        steps = [record["steps"] for record in found if "steps" in record]
        assert len(steps) == (name != "weights")
        assert all(seconds > 0 for record in steps for seconds in record["ibp"].values())
        ended = {path: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}
        study.main()
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")} == ended
