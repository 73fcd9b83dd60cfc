import json
import time

import faults
import program
import pytest
from fault_cases import inputs
from fault_cases.trials import Trial

from mixtrain_jax import checkpoints
from mixtrain_jax.config import Config
from mixtrain_jax.errors import MixtrainError

# Where a file is missing, tensorstore answers some reads after Orbax has closed the loop that they were asked from.

# Case: trials of it that run here. Those of F9 and F16 that train come last and are left to the whole.
SHORT = {
    **{"F1": 8, "F2": 6, "F8": 4, "F9": 8, "F10": 8, "F11": 4, "F13": 3, "F15": 8, "F16": 4},
    **{"X1": 200, "X2": 12, "X4": 100, "X5": 30, "X6": 15, "X7": 60},
}


def tried(name, count, **options):
    return faults.run(name, share=count / faults.CASES[name].count, seconds=program.LIMIT, **options)


@pytest.mark.parametrize("name", SHORT)
def test_nothing_fails(name):
    for module in {"X2": ("onnx", "onnxruntime"), "X5": ("tensorflow_datasets", "PIL")}.get(name, ()):
        pytest.importorskip(module)
    row = tried(name, SHORT[name])
    assert row.failures == []
    assert row.tried == SHORT[name]


def test_every_case_is_in_the_short_form_or_starts_processes():
    assert SHORT.keys() == {name for name, entry in faults.CASES.items() if not entry.processes}


def test_orbax_alone_restores_flipped_bits_which_is_told_and_is_no_failure_of_ours(capsys):
    assert faults.main(["F1-orbax", "--share", "0.03", "--seconds", str(program.LIMIT)]) == 0
    assert "restored wrong numbers without a word" in capsys.readouterr().out
    assert faults.run("F2-orbax", share=0.2, seconds=program.LIMIT).tried == 11


def test_without_the_manifest_flipped_bits_are_failures(monkeypatch):
    monkeypatch.setattr(checkpoints, "manifest", lambda leaves: {})
    row = tried("F1", 12)
    assert row.failed > 0
    assert "restored wrong numbers" in row.failures[0]


def test_without_checksums_a_damaged_header_is_a_failure(monkeypatch):
    monkeypatch.setattr(inputs.zipfile.ZipFile, "testzip", lambda self: None)
    number = list(inputs.bombs()).index("a header of fewer entries than there are")
    row = faults.run("X4", only=number, seconds=program.LIMIT)
    assert (row.tried, row.failed) == (1, 1)
    assert "was accepted" in row.failures[0]


def test_a_config_that_is_not_read_is_a_failure(monkeypatch):
    monkeypatch.setattr(inputs.config, "load", lambda name, folder: Config())
    assert tried("X1", 20).failed > 0


def test_a_trial_says_what_is_wrong(monkeypatch):
    def raising():
        raise KeyError("x")

    def sleeping():
        time.sleep(5)
        return ""

    assert faults.outcome(Trial("", lambda: "")) == ""
    assert faults.outcome(Trial("", lambda: "wrong")) == "wrong"
    assert faults.outcome(Trial("", raising)) == "raised KeyError: 'x'"
    assert faults.outcome(Trial("", sleeping), 1) == "raised TimeoutError: more than 1 seconds"
    monkeypatch.setattr(faults, "BYTES", -1)
    assert "of memory" in faults.outcome(Trial("", lambda: ""))


def test_errors_must_be_typed_and_say_what_is_asked():
    def raising():
        raise MixtrainError("the file a")

    assert faults.saved.judged(raising, None, ["file", "a"]) == ""
    assert "does not say b" in faults.saved.judged(raising, None, ["b"])
    assert "was accepted: 3" in faults.saved.judged(lambda: 3)
    assert "wrong result" in faults.saved.judged(lambda: 3, lambda found: found == 4)
    with pytest.raises(ZeroDivisionError):
        faults.saved.judged(lambda: 1 / 0)


def test_the_command_prints_a_table_and_exits_with_1_where_a_trial_fails(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(faults.sys, "unraisablehook", None)
    assert faults.main(["F11", "--seconds", str(program.LIMIT), "--out", str(tmp_path / "faults.json")]) == 0
    assert "| F11 | two runs in one folder, stale locks | 4 | 4 | 0 |" in capsys.readouterr().out
    (case,) = json.loads((tmp_path / "faults.json").read_text())["cases"]
    assert (case["case"], case["tried"], case["failed"]) == ("F11", 4, 0)

    def spoilt(rng, count, tmp):
        yield Trial("one", lambda: "")
        yield Trial("two", lambda: "is wrong")

    monkeypatch.setitem(faults.CASES, "F11", faults.Entry("spoilt", spoilt, 2))
    assert faults.main(["F11", "--seed", "7"]) == 1
    out = capsys.readouterr().out
    assert "| F11 | spoilt | 2 | 1 | 1 |" in out
    assert "python benchmarks/faults.py F11 --seed 7 --only NUMBER\n  1, two: is wrong\n" in out
    with pytest.raises(SystemExit):
        faults.main(["X3"])
    assert "X3 needs VNN-LIB, which is not there" in capsys.readouterr().err


def test_a_number_and_a_seed_stand_for_one_fault():
    few = [trial.what for trial in inputs.configs(faults.np.random.default_rng(3), 10, faults.Path())]
    many = [trial.what for trial in inputs.configs(faults.np.random.default_rng(3), 20, faults.Path())]
    assert many[:10] == few
