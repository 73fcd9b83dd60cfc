import signal
import time

import numpy as np
import program
import pytest
from experiments import options

SLOW = {"training.epochs": 400, "model.width": 8, "objective.bound": "ibp", "objective.examples": 4}
SLOW |= {"training.checkpoint_seconds": 0.3, "data.holdout": 97, "training.points": 60, "certify.bounds": "ibp"}
SLOW |= {"certify.attack_steps": 1, "certify.attack_restarts": 1}
CLOCK = {"seconds", "examples_per_second", "step_seconds"}
TOTAL = 3750


def command(workdir):
    return [*options(SLOW), "--workdir", workdir]


def deterministic(rows):
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in rows]


def outcome(workdir):
    summary = program.summary(workdir)
    hashes = {name: summary[name] for name in ("params_sha256", "state_sha256")}
    return hashes, deterministic(program.metrics(workdir))


def steps_saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def started(workdir):
    """A process that has saved at least one checkpoint of its own and logged a row after it."""
    before = max(steps_saved(workdir), default=0)
    process = program.start(*command(workdir))
    deadline = time.monotonic() + program.LIMIT
    while max(steps_saved(workdir), default=0) <= before:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def stopped(workdir, number, after=0.0):
    """Exit code and output of a process that was sent a signal in the midst of training."""
    process = started(workdir)
    time.sleep(after)
    process.send_signal(number)
    out, err = process.communicate(timeout=program.LIMIT)
    assert not (workdir / "summary.json").exists()
    assert steps_saved(workdir)[-1] < TOTAL
    return process.returncode, out, err


def finished(workdir):
    done = program.run(*command(workdir))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert "Going on" not in finished(workdir)
    hashes, rows = outcome(workdir)
    assert rows[-1]["step"] == TOTAL
    return hashes, rows


def test_signals_save_and_the_same_command_ends_as_if_nothing_had_been(uninterrupted, tmp_path):
    for number, code, word in ((signal.SIGTERM, 75, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")):
        returncode, _, err = stopped(tmp_path, number)
        saved = steps_saved(tmp_path)[-1]
        message = f"Stopped by {word}; step {saved} of {TOTAL} is saved. The same command goes on from there."
        assert err == f"train.py: {message}\n"
        assert returncode == code
    assert f"Going on from step {saved} of {TOTAL}." in finished(tmp_path)
    assert outcome(tmp_path) == uninterrupted


def test_two_kills_in_a_row_and_a_damaged_checkpoint_change_nothing(uninterrupted, tmp_path):
    for seed in range(2):
        returncode, out, _ = stopped(tmp_path, signal.SIGKILL, after=np.random.default_rng(seed).uniform(0, 0.3))
        assert returncode == -signal.SIGKILL
        assert ("Going on from step" in out) == (seed == 1)
    *_, before, newest = steps_saved(tmp_path)
    files = [path for path in (tmp_path / "checkpoints" / str(newest)).rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    for i in range(0, len(content), 64):  # some bytes of a checkpoint belong to nothing
        content[i] ^= 1
    largest.write_bytes(content)
    out = finished(tmp_path)
    assert f"checkpoint {newest} is damaged (" in out
    assert f"going on from step {before}" in out
    assert f"Going on from step {before} of {TOTAL}." in out
    assert outcome(tmp_path) == uninterrupted
