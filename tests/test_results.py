"""From synthetic run folders, written as a run writes them, to records and the page."""

import json
import math

import judged
import pytest
import results
from experiments import experiment
from results_page import numbers, records, studies

from mixtrain_jax.errors import ConfigError, MixtrainError

DIGITS = {"data": "digits", "epochs": 100, "batch_size": 16, "robust_examples": 16, "certify": ("ibp",)}


def write_run(folder, clean=0.9, verified=0.7, seconds=10.0, curve=((5, 0.5), (10, 0.7)), **fields):
    """A finished run folder."""
    config = experiment(**{**DIGITS, **fields})
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_json(), indent=2) + "\n")
    rows = [
        {
            **{"step": step, "epoch": step / 2, "clean_loss": 1.0, "seconds": step / 10},
            **{"heldout_clean_accuracy": 0.9, "heldout_verified_accuracy": accuracy},
        }
        for step, accuracy in curve
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {
        **{"clean_accuracy": clean, "attacked_accuracy": 0.8, "verified_accuracy": verified, "eps": config.threat.eps},
        **{"method": "ibp", "attack": "PGD 20 steps x 1 starts", "seconds": seconds, "certify_seconds": 1.0},
        **{"seed": config.seed, "test_examples": records.TEST_EXAMPLES[config.data.name], "verified_by": {"ibp": 350}},
        **{"params_sha256": "ab" * 32, "state_sha256": "cd" * 32},
        **{"versions": {"python": "3.11.7", "jax": "0.10.2"}, "device": "cpu (cpu), 2 host cores"},
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return folder


@pytest.fixture
def docs(tmp_path):
    (tmp_path / "docs").mkdir()
    return tmp_path / "docs"


@pytest.fixture
def page(docs):
    """The command: records the runs given, and returns the page."""

    def run(*paths, group=None, code=0):
        named = ["--group", group] if group else []
        assert results.main([*map(str, paths), *named, "--out", str(docs / "results")]) == code
        return (docs / "results.md").read_text() if (docs / "results.md").exists() else ""

    return run


def row(text, start):
    """The cells of the first row of a table that begins so."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture
def study(tmp_path):
    """Shares of 1, 1/2 and 1/4, two seeds, at equal epochs and at equal time."""
    folder = tmp_path / "runs" / "subsampling-digits"
    verified = {
        "ibp-1-epochs": (16, 100, (0.70, 0.74)),
        "ibp-2-epochs": (8, 100, (0.69, 0.71)),
        "ibp-2-time": (8, 160, (0.72, 0.77)),
        "ibp-4-time": (4, 200, (0.73, 0.77)),
    }
    for name, (k, epochs, values) in verified.items():
        for seed, value in enumerate(values):
            write_run(
                folder / f"{name}-{seed}",
                verified=value,
                robust_examples=k,
                epochs=epochs,
                seed=seed,
                seconds=5.0 * (1 + (k == 16)),
            )
    steps = {"device": "cpu (cpu), 2 host cores", "ibp": {"1": 0.004, "2": 0.0025, "4": 0.002}}
    (folder / "steps.json").write_text(json.dumps(steps))
    return folder


def test_a_run_of_a_config_is_recorded_under_its_name(tmp_path):
    folder = write_run(tmp_path / "runs" / "mnist_small_0.1-1a2b3c4d", data="mnist", model="small", seed=3)
    [record] = records.gather([folder])
    assert (record["group"], record["name"], record["config"]["seed"]) == ("configs", "mnist_small_0.1", 3)
    assert record["curve"] == [[5, 0.5, 0.9, 0.5], [10, 1.0, 0.9, 0.7]]
    assert set(record["summary"]) == set(records.SUMMARY)
    assert records.dump([record]).count("\n") == 1


def test_a_run_of_a_study_is_recorded_in_its_group_with_the_steps(study):
    *_, run = found = records.gather([study / "ibp-2-time-1"])
    assert (run["group"], run["name"]) == ("subsampling-digits", "ibp-2-time")
    assert found[0] == {"group": "subsampling-digits", "steps": json.loads((study / "steps.json").read_text())}
    # A wildcard names the steps too.
    everything = records.gather(sorted(study.glob("*")))
    assert sum("steps" in record for record in everything) == 1
    assert len(everything) == 9


def test_records_are_added_replaced_and_dropped_with_their_config(tmp_path, docs, page, capsys):
    first = [write_run(tmp_path / f"digits-0000000{seed}", seed=seed, verified=0.7) for seed in (0, 1)]
    page(*first)
    page(write_run(tmp_path / "again" / "digits-00000001", seed=1, verified=0.8))
    kept = records.load(docs / "results.jsonl")
    assert [(run["config"]["seed"], run["summary"]["verified_accuracy"]) for run in kept] == [(0, 0.7), (1, 0.8)]
    assert "Dropped" not in capsys.readouterr().out
    page(write_run(tmp_path / "other" / "digits-00000002", seed=1, epochs=7))
    [kept] = records.load(docs / "results.jsonl")
    assert (kept["config"]["seed"], kept["config"]["training.epochs"]) == (1, 7)
    assert "Dropped digits of configs, seed 0" in capsys.readouterr().out


def test_a_record_older_than_a_field_is_no_rival(tmp_path):
    [old] = records.gather([write_run(tmp_path / "a" / "digits-00000000", seed=0)])
    [new] = records.gather([write_run(tmp_path / "a" / "digits-00000001", seed=1)])
    del old["config"]["schedule.warmup"]
    assert records.merge([old], [new]) == ([old, new], [])


def test_page_and_record_are_the_same_bytes_twice(docs, page, study):
    page(*study.glob("*"))
    once = {path.name: path.read_bytes() for path in docs.iterdir()}
    assert set(once) == {"results.jsonl", "results.md", "results-subsampling-digits.svg"}
    for again in ([], reversed(sorted(study.glob("*")))):
        page(*again)
        assert {path.name: path.read_bytes() for path in docs.iterdir()} == once
    assert str(study.parent) not in "".join(content.decode() for content in once.values())


def test_shares_at_equal_epochs_and_equal_time(page, study):
    text = page(*study.glob("*"))
    # Standard deviation of two values is their distance over sqrt(2), and the error of their mean half of it.
    assert row(text, "1") == [
        *["1", "1.00", "90.00 ± 0.00", "72.00 ± 2.83", "1.00"],
        *["100", "90.00 ± 0.00", "72.00 ± 2.83", "-"],
    ]
    assert row(text, "1/2") == [
        *["1/2", "0.625", "90.00 ± 0.00", "70.00 ± 1.41", "0.500"],
        *["160", "90.00 ± 0.00", "74.50 ± 3.54", "+2.50 ± 0.50"],
    ]
    assert row(text, "1/4") == [
        *["1/4", "0.500", "-", "-", "-"],
        *["200", "90.00 ± 0.00", "75.00 ± 2.83", "+3.00 ± 0.00"],
    ]
    against = "verified accuracy against all examples:"
    assert f"At equal time, {against} 1 in 2: 2.50 ± 0.50 points more; 1 in 4: 3.00 ± 0.00 points more." in text
    assert f"At equal epochs, {against} 1 in 2: no difference beyond noise (-2.00 ± 1.00)." in text
    assert "![Verified accuracy against the share of sound examples](results-subsampling-digits.svg)" in text


def test_equal_time_that_is_equal_epochs_is_told_by_its_name(tmp_path):
    for name, k in (("ibp-1-epochs", 16), ("ibp-2-epochs", 8), ("ibp-2-time", 8)):
        write_run(tmp_path / "subsampling-digits" / f"{name}-0", robust_examples=k)
    found = numbers.regimes(records.gather(sorted((tmp_path / "subsampling-digits").glob("*"))))
    named = {regime: [run["name"] for some in by.values() for run in some] for regime, by in found.items()}
    assert named == {"epochs": ["ibp-1-epochs", "ibp-2-epochs"], "time": ["ibp-1-epochs", "ibp-2-time"]}


def test_differences_in_words():
    # By seed 2 and 4: mean 3, standard error 1.
    assert numbers.difference({0: 72.0, 1: 78.0}, {0: 70.0, 1: 74.0}) == (3.0, pytest.approx(1.0))
    # Without common seeds the errors add in squares: each is sqrt(2) / sqrt(2) = 1.
    value, error = numbers.difference({0: 71.0, 1: 73.0}, {2: 70.0, 3: 72.0})
    assert (value, error) == (1.0, pytest.approx(math.sqrt(2)))
    assert numbers.difference({0: 71.0}, {0: 70.0}) == (1.0, None)
    assert numbers.in_words(-3.0, 1.0) == "3.00 ± 1.00 points less"
    assert numbers.in_words(3.0, 1.5) == "no difference beyond noise (+3.00 ± 1.50)"
    assert numbers.in_words(0.0, 0.0) == "no difference beyond noise (+0.00 ± 0.00)"
    assert "noise unknown" in numbers.in_words(3.0, None)


def test_the_paper_beside_ours(tmp_path, page):
    small = {"data": "mnist", "model": "small", "eps": 0.3, "holdout": 5000}
    runs = [
        write_run(tmp_path / f"mnist_small_0.3-0000000{seed}", seed=seed, verified=verified, seconds=seconds, **small)
        for seed, verified, seconds in ((0, 0.8, 100), (1, 0.82, 300))
    ]
    half = {"data": "imagenet200/train250", "model": "resnet_imagenet", "eps": 0.007, "trainer": "robust"}
    text = page(*runs, write_run(tmp_path / "imagenet-0000000a", **half), write_run(tmp_path / "digits-0000000b"))
    cells = row(text, "MNIST, 0.3, small")
    assert "60.1 of the first 1,000 images" in cells[1]
    assert cells[2:] == [
        *["93.0, CROWN-IBP", "93.99, IBP with a clean share, tuned"],
        *["90.00 ± 0.00", "80.00 ± 0.00", "81.00 ± 1.41", "2"],
    ]
    assert row(text, "MNIST, 0.1, small")[1:] == ["97.1", "97.8, IBP and CROWN-IBP", "98.22, SABR", *"----"]
    trained = "ImageNet-200, trained on half of the training images, 0.007, resnet_imagenet"
    assert row(text, trained)[1] == "19.4"
    assert row(text, "digits, 0.1, mlp")[1:4] == ["-", "-", "-"]
    assert row(text, "`mnist_small_0.3`") == [
        *["`mnist_small_0.3`", "MNIST, 0.3, small", "`ibp`, 16 of 16", "100", "200"],
        *["ibp", "PGD 20 steps x 1 starts", "10,000", "cpu (cpu), 2 host cores"],
    ]


def test_time_counts_steps_at_their_measured_cost(tmp_path, page):
    folder = tmp_path / "time-digits"
    curves = {"standard": (0.0, 0.0), "pgd-7": (0.0, 0.1), "robust": (0.5, 0.6), "mixtrain": (0.4, 0.7)}
    for name, (early, late) in curves.items():
        fields = {"trainer": name.partition("-")[0], "robust_examples": 2, "epochs": 2}
        write_run(folder / f"ibp-{name}-0", curve=((5, early), (10, late)), **fields)
    cost = {"ibp-standard": 0.001, "ibp-pgd-7": 0.006, "ibp-robust": 0.008, "ibp-mixtrain": 0.002}
    (folder / "steps.json").write_text(json.dumps({"ibp": cost}))
    text = page(*folder.glob("*"))
    # 30, 45 and 54 %, of the 60 % that robust ends with.
    assert row(text, "trainer")[7:] == ["to 30 %, s", "to 45 %, s", "to 54 %, s"]
    assert row(text, "standard")[1:4] == ["1.00", "1.00", "0.00500"]
    assert row(text, "pgd-7")[1:] == ["6.00", "6.00", "0.0300", "90.00", "80.00", "70.00", "-", "-", "-"]
    assert row(text, "robust")[7:] == ["0.0400", "0.0400", "0.0800"]
    assert row(text, "mixtrain")[7:] == ["0.0100", "0.0200", "0.0200"]
    assert "A step of `pgd-7` 3.00 times, of `robust` 4.00 times that of `mixtrain`." in text
    assert "`robust` takes 4.00 times as long. The paper" in text


def test_time_by_the_clock_where_no_step_was_measured(tmp_path, page):
    text = page(write_run(tmp_path / "time-digits" / "ibp-mixtrain-0", seconds=2.0))
    assert row(text, "mixtrain")[1] == "200"  # 2 s for the 10 steps of the log
    assert "by the clock of each run" in text


def test_dynamic_weights_against_the_front_of_fixed_ones(tmp_path, page):
    folder = tmp_path / "weights-digits"
    fixed = {0.1: (0.95, 0.5), 0.5: (0.9, 0.6), 0.75: (0.85, 0.55), 0.9: (0.8, 0.7)}
    for share, (clean, verified) in fixed.items():
        write_run(folder / f"ibp-convex-{share}-0", clean=clean, verified=verified, mixing="convex", share=share)
    for seed, verified in enumerate((0.67, 0.69)):
        write_run(folder / f"ibp-constrained-0.99-{seed}", clean=0.85, verified=verified, target=0.99, seed=seed)
    write_run(folder / "ibp-authors-0", clean=0.96, verified=0.9, mixing="authors")
    text = page(*folder.glob("*"))
    assert [line.split(" |")[0][2:] for line in text.splitlines() if line.startswith(("| convex", "| stair"))] == [
        *[f"convex {share}" for share in fixed],
        "staircase",
    ]
    # The front is 0.8 -> 0.7, 0.9 -> 0.6: at 0.85 it is 65.
    assert row(text, "constrained 0.99")[1:] == ["85.00 ± 0.00", "68.00 ± 1.41", "3.00 ± 1.00 points more"]
    assert row(text, "staircase")[3] == "cleaner than every fixed weight"
    assert studies.front([(95, 50), (85, 55), (90, 60), (80, 70)]) == [(80, 70), (90, 60), (95, 50)]
    assert (tmp_path / "docs" / "results-weights-digits.svg").read_text().startswith("<svg")


def test_empty_sections_say_what_would_fill_them(page):
    text = page()
    assert text.count("Not run yet: `python ") == 5
    study, then = "python benchmarks/study.py time --data digits", "python benchmarks/results.py runs/time-digits/*"
    assert f"`{study}`, then `{then}`" in text


def test_how_it_was_measured(page, study):
    text = page(*study.glob("*"))
    assert "- 8 runs of `subsampling-digits`, seeds 0, 1: cpu (cpu), 2 host cores; jax 0.10.2, python 3.11.7." in text


def spoil(study, what):
    """A path that cannot be recorded, and what is said of it."""
    run = study / "ibp-1-epochs-0"
    match what:
        case "unfinished":
            (run / "summary.json").unlink()
            return run, f"{run} has not finished: it has no summary.json"
        case "no run folder":
            return study, f"{study} is no run folder: it has no config.json. Give the folders of runs, here {study}/*."
        case "missing":
            return study / "nowhere", f"{study / 'nowhere'} is no run folder"
        case "damaged":
            (run / "summary.json").write_text("{")
            return run, f"{run} is damaged or of another version"
        case "no log":
            (run / "metrics.jsonl").unlink()
            return run, f"{run} is damaged or of another version (ValueError('metrics.jsonl has no row'))"
        case "part of the test set":
            summary = json.loads((run / "summary.json").read_text())
            (run / "summary.json").write_text(json.dumps({**summary, "test_examples": 100}))
            return run, f"{run} was measured on 100 test images, not on all 500 of digits"
        case "unknown group":
            other = write_run(study.parent / "other" / "x-0")
            return other, "The page has no section for group 'other'. Say --group with one of configs, subsampling-NAME"


KINDS = ["unfinished", "no run folder", "missing", "damaged", "no log", "part of the test set", "unknown group"]


@pytest.mark.parametrize("what", KINDS)
def test_errors_name_the_folder_and_leave_everything_as_it_was(what, docs, page, study, capsys):
    page(study / "ibp-2-epochs-0")
    before = {path.name: path.read_bytes() for path in docs.iterdir()}
    path, said = spoil(study, what)
    page(study / "ibp-2-epochs-1", path, code=2)
    assert said in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in docs.iterdir()} == before


def test_two_runs_of_one_name_and_different_configs_are_refused(tmp_path):
    one, other = (write_run(tmp_path / f"digits-0000000{i}", seed=i, epochs=5 + i) for i in (0, 1))
    with pytest.raises(ConfigError, match="both 'digits' of group 'configs' and differ in more than the seed"):
        records.gather([one, other])


def test_a_group_can_be_said(docs, page, tmp_path):
    page(write_run(tmp_path / "elsewhere" / "ibp-authors-0", mixing="authors"), group="weights-digits")
    [record] = records.load(docs / "results.jsonl")
    assert (record["group"], record["name"]) == ("weights-digits", "ibp-authors")


def test_nothing_is_half_written(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(MixtrainError, match="Cannot write"):
        records.write({tmp_path / "a": "new", tmp_path / "missing" / "b": "new"})
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def judgement(folder, verified, warnings=()):
    """A report of the judge, as far as the page reads it."""
    folder.mkdir(parents=True)
    found = {
        **{"model": "m", "data": "digits", "eps": 0.1, "norm": "linf", "examples": 500, "clean_accuracy": 0.9},
        **{"pgd_20_accuracy": 0.8, "attacked_accuracy": 0.75, "verified_accuracy": verified},
        **{"broken_by": {"pgd-20": 50, "square": 25}, "verified_by": {"ibp": 350}, "warnings": list(warnings)},
        **{"seconds": {"pgd-20": 1.0, "square": 2.0, "ibp": 3.4}, "seed": 0, "params_sha256": "ab" * 32},
        **{"device": "cpu", "jax": "0.10.2", "attacks": "strong"},
    }
    (folder / "judgement.json").write_text(json.dumps(found))
    return folder


def test_judged_models_stand_side_by_side_and_stay_on_the_page(tmp_path, docs, capsys):
    paths = [judgement(tmp_path / "digits-robust", 0.7), judgement(tmp_path / "digits-pgd", 0.2, ["too loose"])]
    out = ["--out", str(docs / "judged")]
    assert judged.main([*map(str, paths), *out]) == 0
    text = (docs / "judged.md").read_text()
    assert "## digits, linf eps 0.1, 500 test images" in text
    assert row(text, "")[1:] == ["pgd", "robust"]
    assert row(text, "**verified**")[1:] == ["20.0", "70.0"]
    assert row(text, "neither proved nor broken")[1:] == ["55.0", "5.0"]
    assert row(text, "`square`")[1:] == ["25", "25"]
    assert row(text, "`ibp`")[1:] == ["350", "350"]
    assert row(text, "seconds in all")[1:] == ["6", "6"]
    assert "Of pgd: too loose." in text
    again = judgement(tmp_path / "later" / "digits-pgd", 0.3)
    assert judged.main([str(again), *out]) == 0
    assert row((docs / "judged.md").read_text(), "**verified**")[1:] == ["30.0", "70.0"]
    before = (docs / "judged.md").read_text()
    (again / "judgement.json").write_text("{")
    assert judged.main([str(again), *out]) == 2
    assert "no whole report" in capsys.readouterr().err
    assert judged.main(out) == 0
    assert (docs / "judged.md").read_text() == before
