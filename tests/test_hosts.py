"""Runs of two processes with two devices each, which meet over the loopback interface."""

import fcntl
import functools
import shutil
import signal
import time
from concurrent import futures

import jax
import numpy as np
import program
import pytest
from experiments import options

from mixtrain_jax import checkpoints, parallel
from mixtrain_jax.errors import ConfigError
from mixtrain_jax.training.signals import Stop

TINY = {"training.epochs": 8, "model.width": 8, "objective.bound": "ibp", "training.batch_size": 50}
TINY |= {"objective.examples": 5, "training.checkpoint_seconds": 0.2, "data.holdout": 97, "training.points": 8}
TINY |= {"certify.bounds": "ibp", "certify.attack_steps": 1, "certify.attack_restarts": 1}
TINY |= {"certify.curve_examples": 0}
TOTAL = 192
CLOCK = {"seconds", "examples_per_second", "step_seconds"}


def outcomes(processes):
    """Exit code, output and errors of each, without the lines of the library that carries what they send."""
    with futures.ThreadPoolExecutor() as pool:
        texts = list(pool.map(lambda process: process.communicate(timeout=program.LIMIT), processes))
    return [
        (process.returncode, *("".join(x for x in text.splitlines(True) if "[Gloo]" not in x) for text in both))
        for process, both in zip(processes, texts, strict=True)
    ]


def steps_saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def two_that_train(workdir):
    """Two processes that have saved a checkpoint of their own."""
    before = max(steps_saved(workdir), default=0)
    processes = program.start_two(*options(TINY), "--workdir", workdir)
    deadline = time.monotonic() + program.LIMIT
    while max(steps_saved(workdir), default=0) <= before:
        assert all(process.poll() is None for process in processes), outcomes(processes)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return processes


def hashes(workdir):
    return {name: program.summary(workdir)[name] for name in ("params_sha256", "state_sha256", "verified_by")}


def rows(workdir):
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in program.metrics(workdir)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    return workdir, outcomes(program.start_two(*options(TINY), "--workdir", workdir))


def test_the_first_process_speaks_and_writes_for_both(uninterrupted):
    workdir, ((code, out, err), other) = uninterrupted
    assert (code, err) == (0, "")
    assert f"Report: {workdir / 'report.html'}" in out
    assert other == (0, "", "")
    assert [row["step"] for row in program.metrics(workdir)] == list(range(24, TOTAL + 1, 24))
    assert "4 x cpu" in program.summary(workdir)["device"]


def test_a_signal_to_one_and_the_death_of_one_change_nothing(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    first, second = two_that_train(workdir)
    second.send_signal(signal.SIGTERM)
    found = outcomes([first, second])
    saved = steps_saved(workdir)[-1]
    assert 0 < saved < TOTAL
    stopped = f"train.py: Stopped by SIGTERM; step {saved} of {TOTAL} is saved. The same command goes on from there.\n"
    assert [(code, err) for code, _, err in found] == [(75, stopped)] * 2

    victim, other = two_that_train(workdir)
    victim.kill()
    found = outcomes([other])  # it ends, and by itself
    assert found[0][0] != 0
    victim.communicate()
    saved = steps_saved(workdir)[-1]
    assert saved < TOTAL
    shutil.copytree(workdir, tmp_path / "copy")

    (code, out, err), _ = outcomes(program.start_two(*options(TINY), "--workdir", workdir))
    assert (code, err) == (0, "")
    assert f"Going on from step {saved} of {TOTAL}." in out
    assert hashes(workdir) == hashes(uninterrupted[0])
    assert rows(workdir) == rows(uninterrupted[0])

    # One process with one device goes on from there, too, and from the start it would have come as far.
    done = program.run(*options(TINY), "--workdir", tmp_path / "copy")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Going on from step {saved} of {TOTAL}." in done.stdout
    one, two = (checkpoints.read(x / "checkpoints", TOTAL) for x in (tmp_path / "copy", uninterrupted[0]))
    for name, leaf in one.items():
        if name.startswith("state.params"):
            np.testing.assert_allclose(leaf, two[name], rtol=0, atol=1e-4)


def test_what_stops_the_first_process_stops_both_with_its_word(tmp_path):
    (tmp_path / ".lock").write_text("process 1 on another\n")
    with open(tmp_path / ".lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = outcomes(program.start_two(*options(TINY), "--workdir", tmp_path))
    message = f"train.py: Another run holds {tmp_path} (process 1 on another). "
    assert [(code, err.startswith(message)) for code, _, err in found] == [(1, True)] * 2


STREAM = """
import sys
import jax
import numpy as np
from mixtrain_jax import parallel
from mixtrain_jax import config as config_lib
from mixtrain_jax.data import Split, Streamed
from mixtrain_jax.training.feed import make_feed

_, coordinator, _, processes, _, process = sys.argv[1:]
parallel.initialize(coordinator, int(processes), int(process))
print("connected", flush=True)
images = np.random.default_rng(0).integers(0, 17, (40, 6, 5, 2), np.uint8)
split, read = Split(images, np.arange(40, dtype=np.int32), 16), []

def take(rows):
    read.append(len(rows))
    return split.take(rows)

flags = {"training.batch_size": 10, "objective.examples": 3, "objective.pool": "epoch", "data.crop": 1}
config = config_lib.of_flags({**flags, "data.flip": True})
feeds = [make_feed(config, source, jax.random.key(3)) for source in (split, Streamed(take, 0, 40, 16))]
resident, streamed = (parallel.fetch(list(feed(0, 4))) for feed in feeds)
jax.tree.map(np.testing.assert_array_equal, resident, streamed)
print(read)
"""


def test_each_process_reads_its_own_rows_of_a_stream(tmp_path):
    pytest.importorskip("grain")
    (tmp_path / "stream.py").write_text(STREAM)
    for process in program.start_two(program=tmp_path / "stream.py"):
        out, err = process.communicate(timeout=program.LIMIT)
        assert process.returncode == 0, err
        # Whoever came half a minute after another to a connection not yet made would end both.
        before, after = (text.splitlines() for text in out.split("connected\n"))
        assert before
        assert all("[Gloo]" in line for line in before)
        # 10 examples fill four devices to 12 rows and 3 to 4 rows; each process has half of both.
        assert after == ["[8, 8, 8, 8]"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("host:1", None, 0), "belong together, got host:1, none, 0"),
        ((None, 2, None), "belong together"),
        (("host", 2, 0), "must be HOST:PORT, got host"),
        (("host:1", 2, 2), "must be 0 to --processes - 1, got 2 of 2"),
        (("host:1", 0, 0), "got 0 of 0"),
    ],
)
def test_flags_that_make_no_sense_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        parallel.initialize(*given)


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n1,n2", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
SLURM |= {"SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        (SLURM, True),
        (SLURM | {"SLURM_NTASKS": "1"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, False),  # in the shell that starts the tasks
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, dict) else "",
)
def test_other_processes_are_looked_for_where_there_are_some(environment, expected):
    assert parallel._in_cluster({"JAX_PLATFORMS": "cpu", **environment}) == expected


def test_open_mpi_5_asks_for_flags():
    with pytest.raises(ConfigError, match="--process \\$OMPI_COMM_WORLD_RANK"):
        parallel._in_cluster({"OMPI_COMM_WORLD_SIZE": "2"})


def test_in_a_thread_signals_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    with futures.ThreadPoolExecutor() as pool:
        stop = pool.submit(Stop().__enter__).result()
    assert stop.signal is None
    assert signal.getsignal(signal.SIGTERM) == before


def test_one_process_needs_nobody():
    mesh = parallel.data_mesh(jax.devices()[:1])
    assert parallel.initialize()
    assert (
        parallel.broadcast_from_zero(functools.partial(int, 3))
        == parallel.on_process_zero(functools.partial(int, 3))
        == 3
    )
    assert [parallel.vote(mesh)(vote) for vote in (0, 1, 15)] == [0, 1, 15]
