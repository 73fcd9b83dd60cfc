import contextlib
import dataclasses
import fcntl
import json
import re
import shutil
import sys
from pathlib import Path

import program
import pytest
from experiments import options

from mixtrain_jax import cli, mixing
from mixtrain_jax.config import Config, of_flags
from mixtrain_jax.doctor import examine
from mixtrain_jax.errors import ConfigError, MixtrainError
from mixtrain_jax.objectives import recipe
from mixtrain_jax.training.rundir import RunDir

CONFIGS = program.ROOT / "configs"
TINY = {"data.holdout": 97, "training.epochs": 3, "model.width": 16, "objective.examples": 8}
TINY |= {"certify.attack_steps": 3, "certify.attack_restarts": 1, "training.points": 3}
TINY |= {"certify.bounds": ("ibp", "crown_ibp")}


def flag(name):
    return f"--{name.replace('_', '-')}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, program.run(*options(TINY), "--workdir", workdir)


def test_help_lists_every_field():
    done = program.run("--help")
    assert done.returncode == 0
    for name in Config().flags():
        assert f"{flag(name)} " in done.stdout
    for words in ("--workdir", "digits", "Exit codes: 0 done", "75 preempted"):
        assert words in done.stdout


def test_a_reader_that_has_gone_is_no_traceback():
    process = program.start("--help")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1
    process.stderr.close()


def test_an_unknown_flag_exits_with_2_and_comes_with_the_nearest():
    done = program.run("--learning-rat", "1")
    assert done.returncode == 2
    assert "Perhaps you meant" in done.stderr
    assert "--optimizer.learning-rate" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digist"], r"train\.py: There is no config 'digist'; did you mean 'digits'"),
        (["--threat.eps", "-1"], r"train\.py: threat\.eps must be a number, 0 to 100; got -1\.0\."),
        (["--threat.eps", "8"], r"threat\.eps must be a number, 0 to 1, for the norm linf; got 8"),
        (["--threat.eps", "nan"], r"train\.py: threat\.eps must be a number"),
        (["--model.width", "many"], "--model.width"),
        (["--model.name", "rnn"], "--model.name"),
        (["--model", "rnn"], r"There is no option --model; it is --model\.name now"),
        (["--robust-examples=3"], r"There is no option --robust-examples; it is --objective\.examples now"),
        (["--objective.name", "sabre"], r"objective\.name must be one of mixtrain, .*; got 'sabre'"),
        (["--objective.name=json:JSONEncoder"], r"json:JSONEncoder must be a frozen dataclass"),
        (["--mixing.name", "nosuch.module:Rule"], r"mixing\.name: nosuch\.module:Rule cannot be imported"),
        (["--certify.bounds"], "certify"),
        (["--objective.examples", "200"], r"train\.py: objective\.examples must be at most training\.batch_size"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_arguments_exit_with_2_and_one_message(arguments, message):
    done = program.run(*arguments)
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_fields_are_overridden_one_by_one():
    config, *_ = cli.parse(
        [
            "digits",
            "--threat.eps",
            "0.2",
            "--objective.replace",
            "True",
            "--certify.bounds",
            "ibp",
            "crown",
            "--seed",
            "7",
        ],
        CONFIGS,
    )
    values = {"threat.eps": 0.2, "objective.replace": True, "certify.bounds": ("ibp", "crown"), "seed": 7}
    assert config == of_flags(values, cli.parse([], CONFIGS)[0])


def test_a_name_on_the_command_line_brings_its_own_options():
    config, *_ = cli.parse(
        ["digits", "--objective.steps", "3", "--objective.name", "pgd", "--mixing.name=convex"], CONFIGS
    )
    assert config.objective == recipe("pgd", steps=3)
    assert config.mixing == mixing.Convex()
    assert config.training == cli.parse([], CONFIGS)[0].training


def test_the_folder_is_named_after_the_config_and_its_digest(tmp_path):
    config, workdir, *_ = cli.parse(["--threat.eps", "0.2"], CONFIGS)
    assert workdir.as_posix() == f"runs/digits-{config.digest()}"
    (tmp_path / "mine.toml").write_text("[threat]\neps = 0.25")
    config, workdir, *_ = cli.parse([str(tmp_path / "mine.toml")], CONFIGS)
    assert (config.threat.eps, workdir.as_posix()) == (0.25, f"runs/mine-{config.digest()}")
    assert cli.parse(["--workdir", str(tmp_path)], CONFIGS)[1] == tmp_path


def test_a_run_ends_well_and_leaves_a_complete_folder(finished):
    workdir, done = finished
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert {path.name for path in workdir.iterdir()} - {".lock"} == {
        *("config.json", "metrics.jsonl", "checkpoints", "summary.json", "report.html", "certificates.npz"),
        "curve.json",
    }
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["width"] == 16
    assert list(config) == [field.name for field in dataclasses.fields(Config)]
    assert [int(path.name) for path in (workdir / "checkpoints").iterdir()] == [28]


def test_metrics_rise_in_steps_to_the_end(finished):
    rows = program.metrics(finished[0])
    assert [row["step"] for row in rows] == [9, 18, 27, 28]
    assert all(row.keys() == rows[0].keys() for row in rows)
    seconds = [row["seconds"] for row in rows]
    assert 0 < seconds[0] <= seconds[1] <= seconds[2] <= seconds[3]


def test_the_summary_is_complete_and_the_accuracies_are_in_order(finished):
    summary = program.summary(finished[0])
    required = {"clean_accuracy", "attacked_accuracy", "verified_accuracy", "eps", "method", "seconds", "seed"}
    assert required | {"versions", "device", "params_sha256", "state_sha256", "test_examples"} <= summary.keys()
    assert 0 <= summary["verified_accuracy"] <= summary["attacked_accuracy"] <= summary["clean_accuracy"] <= 1
    assert summary["clean_accuracy"] > 0.1
    assert (summary["eps"], summary["seed"], summary["test_examples"]) == (0.1, 0, 500)
    assert summary["method"] == "ibp, crown_ibp"
    assert {"python", "jax", "jaxlib", "flax", "optax", "numpy", "mixtrain_jax"} <= summary["versions"].keys()
    assert "cpu" in summary["device"]
    assert sum(summary["verified_by"].values()) == round(500 * summary["verified_accuracy"])


def test_the_report_is_self_contained(finished):
    text = (finished[0] / "report.html").read_text()
    assert text.count("<svg") == 4
    assert "<script" not in text
    targets = re.findall(r"(?:src|href)\s*=\s*[\"']?([^\"'\s>]*)", text)
    assert all(target.startswith(("#", "data:")) for target in targets)
    assert f"{program.summary(finished[0])['clean_accuracy']:.1%}" in text


def test_lines_are_plain_outside_a_terminal(finished):
    _, done = finished
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout
    assert "500 test images, l-infinity eps 0.1" in done.stdout
    assert f"Report: {finished[0] / 'report.html'}" in done.stdout


def test_the_same_command_again_tells_the_result_without_training(finished):
    workdir, first = finished
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file() and path.name != ".lock"}
    again = program.run(*options(TINY), "--workdir", workdir)
    assert again.returncode == 0
    assert "has ended already" in again.stdout
    table = first.stdout[first.stdout.index("500 test images, l-inf") :]
    assert table in again.stdout
    assert {path: path.read_bytes() for path in before} == before


def test_its_report_is_drawn_anew_from_its_records(finished, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(finished[0], tmp_path / "run")
    drawn = (run / "report.html").read_text()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "mixtrain_jax.report.plots", raising=False)
    monkeypatch.delattr("mixtrain_jax.report.plots", raising=False)
    assert cli.main(["report", str(run)]) == 0
    without = (run / "report.html").read_text()
    assert "<svg" not in without
    assert "pip install matplotlib, then mixtrain report" in without
    monkeypatch.undo()
    assert cli.main(["report", str(run)]) == 0
    assert (run / "report.html").read_text() == drawn
    assert f"Report: {run / 'report.html'}" in capsys.readouterr().out
    (run / "curve.json").unlink()  # as in runs of earlier versions
    assert cli.main(["report", str(run)]) == 0
    assert "there is no curve.json" in capsys.readouterr().out
    assert (run / "report.html").read_text().count("<svg") == 3


@pytest.mark.parametrize(
    ("name", "content", "code", "message"),
    [
        ("summary.json", None, 2, "holds no finished run: there is no summary.json"),
        ("config.json", None, 2, "is no run folder"),
        ("certificates.npz", None, 1, "No such file"),
        ("certificates.npz", b"PK\3\4damaged", 1, "are damaged"),
        ("curve.json", b"{}", 1, "are damaged"),
    ],
)
def test_a_report_without_its_records_is_an_error(name, content, code, message, finished, tmp_path, capsys):
    run = shutil.copytree(finished[0], tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content)
    before = (run / "report.html").read_bytes()
    assert cli.main(["report", str(run)]) == code
    assert message in capsys.readouterr().err
    assert (run / "report.html").read_bytes() == before


def test_files_of_one_set_are_written_together_or_not_at_all(tmp_path):
    folder = RunDir(tmp_path)
    folder.write_all({"first": "1", "second": b"2", "last": "3"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"first": "1", "second": "2", "last": "3"}
    (tmp_path / ".last.tmp").mkdir()  # the last one cannot be written
    with pytest.raises(MixtrainError, match=r"Cannot write .*/last: Is a directory"):
        folder.write_all({"first": "a", "second": "b", "last": "c"})
    (tmp_path / ".last.tmp").rmdir()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"first": "1", "second": "2", "last": "3"}
    folder.write_all({"first": "x", "second": "y", "last": None})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"first": "x", "second": "y"}


@pytest.mark.parametrize("moves", range(4))
def test_who_is_stopped_while_writing_a_set_leaves_no_mixture(moves, tmp_path, monkeypatch):
    folder, names = RunDir(tmp_path), ("first", "second", "last")
    folder.write_all(dict.fromkeys(names, "old"))
    left, replace = iter(range(moves)), Path.replace

    def stopped(path, target):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stopped)
    with contextlib.nullcontext() if moves == 3 else pytest.raises(KeyboardInterrupt):
        folder.write_all(dict.fromkeys(names, "new"))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(names[:moves], "new")


def test_the_doctor_finds_nothing_wrong_with_it(finished):
    workdir, _ = finished
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    findings = examine(workdir)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before
    assert {finding.verdict for finding in findings} == {"ok"}
    words = {finding.subject: finding.words for finding in findings}
    assert words["summary.json"] == "agrees with checkpoint 28 on the parameters (step 28, SHA-256)."
    assert words["certificates.npz"] == "of 500 images; agrees with summary.json."


def test_damaged_rows_are_left_out_and_a_damaged_summary_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\n[1]\n{"a": 1}\n{"step": "2"}\n{"step": 3}\n{"st')
    assert RunDir(tmp_path).metrics() == [{"step": 1}, {"step": 3}]
    assert RunDir(tmp_path).summary() is None
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(
        MixtrainError, match=r"summary\.json is damaged\. Delete it; the same command then certifies anew"
    ):
        RunDir(tmp_path).summary()


def test_another_config_in_the_same_folder_exits_with_2_naming_the_field(finished):
    workdir, _ = finished
    done = program.run(*options(TINY), "--workdir", workdir, "--model.width", "17")
    assert done.returncode == 2
    assert "holds a run of another config (model.width 16 there, 17 now). Choose another --workdir." in done.stderr
    assert program.summary(workdir)["seed"] == 0


def test_two_runs_at_once_in_one_folder_are_refused(tmp_path):
    with open(tmp_path / ".lock", "w") as lock:
        lock.write("process 123 on elsewhere\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = program.run(*options(TINY), "--workdir", tmp_path)
    assert done.returncode == 1
    assert f"Another run holds {tmp_path} (process 123 on elsewhere)." in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_workdir_that_is_a_file_exits_with_2(tmp_path):
    (tmp_path / "file").write_text("")
    done = program.run(*options(TINY), "--workdir", tmp_path / "file")
    assert done.returncode == 2
    assert "Choose another --workdir" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_workdir_with_a_nul_is_an_error(tmp_path):
    with (
        pytest.raises(ConfigError, match=r"as workdir: embedded null byte\. Choose"),
        RunDir(tmp_path / "a\0b").opened(Config()),
    ):
        pass


def test_a_folder_in_place_of_the_config_is_an_error(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError, match=r"config\.json cannot be read \(Is a dir"), RunDir(tmp_path).opened(Config()):
        pass


@pytest.mark.parametrize("content", ["{", "[]", "null"])
def test_a_damaged_config_in_the_folder_exits_with_2(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    done = program.run(*options(TINY), "--workdir", tmp_path)
    assert done.returncode == 2
    assert "config.json is damaged" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_convolutional_network_runs_from_a_config_file_anywhere(tmp_path):
    (tmp_path / "small.toml").write_text(
        'model = {name = "small", width = 4}\nobjective = {bound = "ibp", examples = 2, probability = 0.5}\n'
        'training = {epochs = 1, points = 1}\nmixing.name = "staircase"\n'
        'certify = {bounds = ["ibp"], attack_steps = 1, attack_restarts = 1}\n'
    )
    done = program.run("small.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (workdir,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"small-[0-9a-f]{8}", workdir.name)
    summary = program.summary(workdir)
    assert summary["verified_accuracy"] <= summary["attacked_accuracy"] <= summary["clean_accuracy"]
