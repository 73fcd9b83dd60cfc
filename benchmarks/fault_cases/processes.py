"""Runs that are killed, stopped and repeated: what they train must not depend on it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .trials import Trial, spawned

ROOT = Path(__file__).parents[2]
RUN = ["--epochs", "400", "--width", "8", "--bound", "ibp", "--robust-examples", "4", "--checkpoint-seconds", "0.3"]
RUN += ["--holdout", "97", "--points", "60", "--certify", "ibp", "--attack-steps", "1", "--attack-restarts", "1"]
RUN += ["--curve-examples", "0"]
QUICK = "--xla_backend_optimization_level=0"  # compiling takes longer than all that runs
CLOCK = {"seconds", "examples_per_second", "step_seconds"}


def start(workdir: Path) -> subprocess.Popen[str]:
    """A run in a process of its own."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *RUN, "--workdir", str(workdir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK},
    )


@contextlib.contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """End the process where it still runs, whatever was raised."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finished(workdir: Path) -> tuple[object, ...]:
    """What a run ends with that no clock has touched: hashes and the log."""
    with ending(start(workdir)) as process:
        _, err = process.communicate(timeout=600)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {err[-300:]}")
    summary = json.loads((workdir / "summary.json").read_text())
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    kept = [tuple((name, value) for name, value in row.items() if name not in CLOCK) for row in rows]
    return summary["params_sha256"], summary["state_sha256"], *kept


def stopped(workdir: Path, after: float, *numbers: int) -> tuple[int | None, str, float]:
    """Exit code, errors and seconds of a run that gets signals at some time after its first checkpoint.

    The exit code is None where the run had ended before.
    """
    before = len(list(workdir.glob("checkpoints/[0-9]*")))
    with ending(start(workdir)) as process:
        deadline = time.monotonic() + 300
        while process.poll() is None and len(list(workdir.glob("checkpoints/[0-9]*"))) <= before:
            if time.monotonic() > deadline:
                raise TimeoutError("no checkpoint in 300 seconds")
            time.sleep(0.01)
        time.sleep(after)
        sent = time.monotonic()
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.001)
        _, err = process.communicate(timeout=60)
    seconds = time.monotonic() - sent
    return (None if (workdir / "summary.json").exists() else process.returncode), err, seconds


def _resumed(workdir: Path, expected: tuple[object, ...]) -> str:
    return "" if finished(workdir) == expected else "the resumed run ended otherwise than the uninterrupted one"


def _signal(workdir: Path, plain: functools.partial[tuple[object, ...]], kind: str, after: float) -> str:
    numbers = {"SIGKILL": (signal.SIGKILL,), "SIGTERM": (signal.SIGTERM,), "Ctrl-C": (signal.SIGINT,)}
    code, err, seconds = stopped(workdir, after, *numbers.get(kind, (signal.SIGINT, signal.SIGINT)))
    expected = {"SIGKILL": (-9,), "SIGTERM": (75,), "Ctrl-C": (130,), "Ctrl-C twice": (130, -2)}[kind]
    if code is not None and code not in expected:
        return f"exit code {code}, expected {expected[0]}: {err[-300:]}"
    if "Traceback" in err:
        return f"a traceback: {err[-300:]}"
    if seconds > 10:
        return f"ended {seconds:.0f} seconds after the signal"
    return _resumed(workdir, plain())


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
    """F14: the same seed again."""
    plain = functools.cache(functools.partial(finished, tmp / "plain"))
    for number in range(count):

        def act(number: int = number) -> str:
            return "" if finished(tmp / str(number)) == plain() else "the same seed gave another run"

        yield Trial("the same seed again, one device", act)
