"""Runs that are killed, stopped and repeated: what they train must not depend on it."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixtrain_jax import checkpoints

from .trials import Trial, spawned

ROOT = Path(__file__).parents[2]
RUN = [
    "--training.epochs",
    "400",
    "--model.width",
    "8",
    "--objective.bound",
    "ibp",
    "--objective.examples",
    "4",
    "--training.checkpoint-seconds",
    "0.3",
]
RUN += [
    "--data.holdout",
    "97",
    "--training.points",
    "60",
    "--certify.bounds",
    "ibp",
    "--certify.attack-steps",
    "1",
    "--certify.attack-restarts",
    "1",
]
RUN += ["--certify.curve-examples", "0"]
QUICK = "--xla_backend_optimization_level=0"  # compiling takes longer than all that runs
SHORT = ("--training.epochs", "40")  # of what runs on several devices or processes
ROUNDING = 1e-4  # of parameters, after so many steps
TWO = {"processes": 2, "devices": 2}
CLOCK = {"seconds", "examples_per_second", "step_seconds"}


def begin(
    arguments: Sequence[str], processes: int = 1, devices: int = 1, flags: str = ""
) -> list[subprocess.Popen[str]]:
    """`train.py` in so many processes with so many devices each, compiled with XLA's flags."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
    }
    hosts = ["--coordinator", f"localhost:{port}", "--processes", str(processes), "--process"]
    return [
        subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *arguments, *[*hosts, str(number)] * (processes > 1)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in range(processes)
    ]


def start(workdir: Path, *options: str, processes: int = 1, devices: int = 1) -> list[subprocess.Popen[str]]:
    """A short run in a folder."""
    return begin([*RUN, *options, "--workdir", str(workdir)], processes, devices, QUICK)


@contextlib.contextmanager
def ending(processes: list[subprocess.Popen[str]]) -> Iterator[list[subprocess.Popen[str]]]:
    """End those processes that still run, whatever was raised."""
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def errors(processes: list[subprocess.Popen[str]], seconds: int) -> list[str]:
    """What each of them writes to its standard error until it ends, but for the library that carries what they send."""
    with futures.ThreadPoolExecutor() as pool:
        texts = list(pool.map(lambda process: process.communicate(timeout=seconds)[1], processes))
    return ["".join(line for line in text.splitlines(True) if "[Gloo]" not in line) for text in texts]


def finished(workdir: Path, *options: str, **many: int) -> tuple[object, ...]:
    """What a run ends with that no clock has touched: hashes and the log."""
    with ending(start(workdir, *options, **many)) as processes:
        told = errors(processes, 600)
    if any(process.returncode for process in processes):
        raise RuntimeError(f"exit codes {[process.returncode for process in processes]}: {told[0][-300:]}")
    summary = json.loads((workdir / "summary.json").read_text())
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    kept = [tuple((name, value) for name, value in row.items() if name not in CLOCK) for row in rows]
    return summary["params_sha256"], summary["state_sha256"], *kept


class Stopped(NamedTuple):
    """What became of a run that got signals: of every process its exit code and errors, and the seconds it took."""

    codes: list[int]
    told: list[str]
    seconds: float
    ended: bool  # the run had done all its work before


def stopped(
    workdir: Path, after: float, *numbers: int, victim: int = 0, options: Sequence[str] = (), **many: int
) -> Stopped:
    """Send signals to one process of a run, at some time after its first checkpoint."""
    before = len(list(workdir.glob("checkpoints/[0-9]*")))
    with ending(start(workdir, *options, **many)) as processes:
        deadline = time.monotonic() + 300
        while processes[0].poll() is None and len(list(workdir.glob("checkpoints/[0-9]*"))) <= before:
            if time.monotonic() > deadline:
                raise TimeoutError("no checkpoint in 300 seconds")
            time.sleep(0.01)
        time.sleep(after)
        sent = time.monotonic()
        for number in numbers:
            processes[victim].send_signal(number)
            time.sleep(0.001)
        told = errors(processes, 60)
    codes = [process.returncode for process in processes]
    return Stopped(codes, told, time.monotonic() - sent, (workdir / "summary.json").exists())


Plain = Callable[[], tuple[object, ...]]  # what the run ends with that nothing disturbs


def _resumed(workdir: Path, plain: Plain, **many: int) -> str:
    same = finished(workdir, **many) == plain()
    return "" if same else "the resumed run ended otherwise than the uninterrupted one"


def _signal(workdir: Path, plain: Plain, kind: str, after: float) -> str:
    numbers = {"SIGKILL": (signal.SIGKILL,), "SIGTERM": (signal.SIGTERM,), "Ctrl-C": (signal.SIGINT,)}
    found = stopped(workdir, after, *numbers.get(kind, (signal.SIGINT, signal.SIGINT)))
    (code,), (told,) = found.codes, found.told
    expected = {"SIGKILL": (-9,), "SIGTERM": (75,), "Ctrl-C": (130,), "Ctrl-C twice": (130, -2)}[kind]
    if not found.ended and code not in expected:
        return f"exit code {code}, expected {expected[0]}: {told[-300:]}"
    if "Traceback" in told:
        return f"a traceback: {told[-300:]}"
    if found.seconds > 10:
        return f"ended {found.seconds:.0f} seconds after the signal"
    return _resumed(workdir, plain)


def _trials(kinds: tuple[str, ...], rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    plain = functools.cache(functools.partial(finished, tmp / "plain"))
    plain()  # is no part of a trial's time
    for number, draw in spawned(rng, count):
        kind, after = kinds[number % len(kinds)], float(draw.uniform(0, 1))
        act = functools.partial(_signal, tmp / str(number), plain, kind, after)
        yield Trial(f"{kind} {after:.2f} seconds after a checkpoint", act)


def kills(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """F3: SIGKILL at a random time."""
    return _trials(("SIGKILL",), rng, count, tmp)


def terminations(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """F4: SIGTERM at a random time saves and exits with 75."""
    return _trials(("SIGTERM",), rng, count, tmp)


def interrupts(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """F7: Ctrl-C saves and exits with 130, twice ends at once."""
    return _trials(("Ctrl-C", "Ctrl-C twice"), rng, count, tmp)


def repeats(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """F14: the same seed again, on one device and on eight."""
    plain = {n: functools.cache(functools.partial(finished, tmp / f"plain{n}", *SHORT, devices=n)) for n in (1, 8)}
    for number in range(count):
        devices = 8 if number % 2 else 1

        def act(number: int = number, devices: int = devices) -> str:
            same = finished(tmp / str(number), *SHORT, devices=devices) == plain[devices]()
            return "" if same else "the same seed gave another run"

        yield Trial(f"the same seed again, {devices} device{'s' * (devices > 1)}", act)


def terminated_hosts(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """F5: SIGTERM to either of two processes: both save the same step and exit with 75."""
    return _two(rng, count, tmp, signal.SIGTERM)


def killed_hosts(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """F6: SIGKILL to either of two processes: the other one ends, too."""
    return _two(rng, count, tmp, signal.SIGKILL)


def _two(rng: np.random.Generator, count: int, tmp: Path, number: signal.Signals) -> Iterator[Trial]:
    plain = functools.cache(functools.partial(finished, tmp / "plain", *SHORT, **TWO))
    plain()
    for trial, draw in spawned(rng, count):
        victim, after = trial % 2, float(draw.uniform(0, 0.5))

        def act(workdir: Path = tmp / str(trial), victim: int = victim, after: float = after) -> str:
            found = stopped(workdir, after, number, victim=victim, options=SHORT, **TWO)
            if found.ended:
                return ""
            if found.seconds > 30:
                return f"the last process ended {found.seconds:.0f} seconds after the signal"
            if number == signal.SIGTERM and (found.codes != [75, 75] or len(set(found.told)) != 1):
                return f"exit codes {found.codes}, and the words {found.told}"
            if number == signal.SIGKILL and 0 in found.codes:
                return f"exit codes {found.codes}"
            same = finished(workdir, *SHORT, **TWO) == plain()
            return "" if same else "the resumed run ended otherwise than the uninterrupted one"

        yield Trial(f"{number.name} to process {victim}, {after:.2f} seconds after a checkpoint", act)


def other_devices(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """F12: a run that goes on with another number of devices ends where it would have ended, but for rounding."""
    plain = functools.cache(functools.partial(_trained, tmp / "plain", 1))
    pairs = list(itertools.permutations((1, 2, 4, 8), 2))
    for number in range(count):
        first, second = pairs[number % len(pairs)]

        def act(workdir: Path = tmp / str(number), first: int = first, second: int = second) -> str:
            found = stopped(workdir, 0.0, signal.SIGTERM, options=SHORT, devices=first)
            if found.ended or found.codes != [75]:
                return f"exit code {found.codes[0]}, expected 75: {found.told[0][-300:]}"
            leaves, expected = _trained(workdir, second), plain()
            away = max(float(np.abs(leaves[name] - expected[name]).max()) for name in expected)
            return "" if away <= ROUNDING else f"parameters are {away:.1e} away from those of one device"

        yield Trial(f"saved on {first}, resumed on {second}", act)


def _trained(workdir: Path, devices: int) -> dict[str, np.ndarray]:
    finished(workdir, *SHORT, devices=devices)
    return params(workdir)


def params(workdir: Path) -> dict[str, np.ndarray]:
    """The parameters that a run ended with, by name."""
    folder = workdir / "checkpoints"
    last = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    return {name: leaf for name, leaf in checkpoints.read(folder, last).items() if name.startswith("state.params")}
