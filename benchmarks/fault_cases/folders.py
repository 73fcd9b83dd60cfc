"""Folders that are full, locked, read-only or gone, and consoles and clocks that are odd."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import io
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from rich.console import Console

from mixtrain_jax import doctor
from mixtrain_jax.certify import certificates
from mixtrain_jax.checkpoints import Checkpoints
from mixtrain_jax.config import Config, of_flags
from mixtrain_jax.report.display import Display
from mixtrain_jax.training import run as run_module
from mixtrain_jax.training.rundir import RunDir

from .inputs import ended_run, some_certificates
from .saved import restores, saved, state
from .trials import Trial, judged, spawned

TINY = {
    **{"data.holdout": 97, "model.width": 8, "objective.examples": 4, "training.batch_size": 400, "training.epochs": 2},
    **{"training.points": 2, "training.checkpoint_seconds": 0.0, "certify.bounds": ("ibp",), "certify.attack_steps": 1},
    **{"certify.attack_restarts": 1, "certify.curve_examples": 0},
}


@contextlib.contextmanager
def full_disk(left: int) -> Iterator[None]:
    """Let files grow to so many bytes only, which stands for a disk that has no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full_disks(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """F8: no space for a checkpoint, the log, the report, the certificates."""
    ways = {"checkpoint": _full_checkpoint, "log": _full_log, "report": _full_report, "certificates": _full_proofs}
    for number, draw in spawned(rng, count):
        name = list(ways)[number % len(ways)]
        left = int(draw.integers(0, 300))
        yield Trial(f"{left} bytes left for the {name}", functools.partial(ways[name], tmp / str(number), left))


def _full_checkpoint(tmp: Path, left: int) -> str:
    folder = saved(tmp / "checkpoints")

    def act() -> Any:
        with full_disk(left), Checkpoints(folder) as found:
            found.save(4, state(4))
            found.wait()

    return judged(act, None, [str(folder), "step 3 is whole"]) or restores(folder)


def _run_dir(tmp: Path) -> RunDir:
    folder = RunDir(tmp)
    folder.make()
    return folder


def _full_log(tmp: Path, left: int) -> str:
    folder, row = _run_dir(tmp), {"step": 1, "loss": 0.5}
    folder.append_metrics(row)

    def act() -> None:
        with full_disk(left + (tmp / "metrics.jsonl").stat().st_size):
            for _ in range(100):
                folder.append_metrics(row)

    wrong = judged(act, None, ["metrics.jsonl", "File too large"])
    return wrong or ("" if folder.metrics()[0] == row else "lost an earlier row")


def _full_report(tmp: Path, left: int) -> str:
    folder = _run_dir(tmp)
    folder.write("report.html", "an earlier one")

    def act() -> None:
        with full_disk(left):
            folder.write("report.html", "x" * 1000)

    wrong = judged(act, None, ["report.html"])
    whole = {path.name: path.read_text() for path in tmp.iterdir()} == {"report.html": "an earlier one"}
    return wrong or ("" if whole else "an earlier report is not as it was")


def _full_proofs(tmp: Path, left: int) -> str:
    path = _run_dir(tmp).path / "certificates.jsonl"
    certificates.write(path, some_certificates())
    before = path.read_bytes()

    def act() -> None:
        with full_disk(left):
            certificates.write(path, some_certificates())

    wrong = judged(act, None, [path.name])
    return wrong or ("" if path.read_bytes() == before else "earlier certificates are not as they were")


def odd_folders(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """F9: a file, a loop of links, a folder that cannot be written, one that is removed while it is used."""
    ways: dict[str, Callable[[Path], str]] = {
        "a file in place of the workdir": lambda path: _unusable(path, path.write_text("")),
        "a file above the workdir": lambda path: _unusable(path / "run", path.write_text("")),
        "a loop of links": lambda path: _unusable(path, path.symlink_to(path.name)),
        "a link to nothing": lambda path: _unusable(path, path.symlink_to("/nowhere/at/all")),
        "a folder of the system": lambda path: _unusable(Path("/proc/run"), None),
        "a folder in place of the lock": lambda path: _unusable(path, (path / ".lock").mkdir(parents=True)),
        "a folder in place of the config": lambda path: _unusable(path, (path / "config.json").mkdir(parents=True)),
        "a file in place of the checkpoints": _no_checkpoints,
        "a workdir that is removed in mid-run": functools.partial(_removed, "."),
        "checkpoints that are removed in mid-run": functools.partial(_removed, "checkpoints"),
    }
    for number, name in enumerate(list(ways)[:count]):
        yield Trial(name, functools.partial(ways[name], tmp / str(number)))


def _unusable(path: Path, _: object) -> str:
    def act() -> None:
        with RunDir(path).opened(Config()):
            pass

    return judged(act, None, [str(path)])


def _no_checkpoints(path: Path) -> str:
    path.write_text("")
    return judged(lambda: Checkpoints(path), None, [str(path)])


def _display() -> Display:
    return Display(Console(file=io.StringIO(), width=80))


def _removed(name: str, path: Path) -> str:
    """The run ends with an error that names the folder, or makes it anew and ends well."""
    display, tell = _display(), Display.progress

    def progress(self: Display, what: str, done: int, total: int) -> None:
        if what == "train" and done == 3:
            (path / name).rename(path.with_name(f"{path.name}-gone"))  # at once, whatever is written there
        tell(self, what, done, total)

    def right(summary: Any) -> bool:
        return (path / "summary.json").is_file() and json.loads((path / "summary.json").read_text()) == summary

    with mock.patch.object(Display, "progress", progress), jax.numpy_dtype_promotion("standard"):
        return judged(lambda: run_module.run(of_flags(TINY), path, display), right, [str(path)])


def locks(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """F11: a second run in a folder, and locks that runs have left."""
    for number, draw in spawned(rng, count):
        what = ("held", "left by a process that is gone", "left on another host", "left with bytes of no text")[
            number % 4
        ]
        yield Trial(f"a lock {what}", functools.partial(_lock, tmp / str(number), what, draw.bytes(40)))


def _lock(folder: Path, what: str, noise: bytes) -> str:
    def opened() -> bool:
        with RunDir(folder).opened(Config()):
            return True

    folder.mkdir()
    lock = folder / ".lock"
    if what != "held":
        host = "elsewhere" if "host" in what else os.uname().nodename
        lock.write_bytes(noise if "text" in what else f"process 999999999 on {host}\n".encode())
        wrong = judged(opened, lambda found: found)
        return wrong or ("" if f"process {os.getpid()} on" in lock.read_text() else "did not write its own name")
    with open(lock, "w") as file:
        file.write("process 17 on elsewhere\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        if wrong := judged(opened, None, [str(folder), "process 17 on elsewhere"]):
            return wrong
    return judged(opened, lambda found: found)


def surroundings(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """F16: a clock that moves back, another host, a console of ASCII, of 20 columns, or none."""
    ended = ended_run(tmp / "ended")
    plain = functools.cache(lambda: _trained(tmp / "plain"))
    ways: dict[str, Callable[[], str]] = {
        "a clock that moves back": functools.partial(_clock, ended),
        "another host name": functools.partial(_host, ended),
        "the doctor in 20 columns": functools.partial(_shown, ended, 20, "utf-8"),
        "the doctor in ASCII": functools.partial(_shown, ended, 80, "ascii"),
        "a run in 20 columns": lambda: _same(plain(), _trained(tmp / "narrow", width=20)),
        "a run in a terminal of 20 columns": lambda: _same(plain(), _trained(tmp / "live", width=20, terminal=True)),
        "a run in ASCII": lambda: _same(plain(), _trained(tmp / "ascii", encoding="ascii")),
        "a run while the clock moves back": lambda: _same(plain(), _trained_backwards(tmp / "back")),
    }
    for name in list(ways)[:count]:
        yield Trial(name, ways[name])


def _same(one: str, other: str) -> str:
    return "" if one == other else f"trained other parameters: {one} and {other}"


def _console(width: int, encoding: str, terminal: bool = False) -> Console:
    return Console(file=io.TextIOWrapper(io.BytesIO(), encoding), width=width, highlight=False, force_terminal=terminal)


def _trained(path: Path, width: int = 80, encoding: str = "utf-8", terminal: bool = False) -> str:
    """SHA-256 of all that a run has trained."""
    display = Display(_console(width, encoding, terminal))
    with jax.numpy_dtype_promotion("standard"), display:
        return run_module.run(of_flags(TINY), path, display)["state_sha256"]


def _trained_backwards(path: Path) -> str:
    start, calls = time.time(), iter(range(10**9))
    with mock.patch.object(time, "time", side_effect=lambda: start - 3600 * next(calls)):
        return _trained(path)


def _clock(ended: Path) -> str:
    with mock.patch.object(time, "time", return_value=0.0):
        faults = [found for found in doctor.examine(ended) if found.verdict == "fault"]
    return f"found fault with {faults[0]}" if faults else ""


def _host(ended: Path) -> str:
    (ended / ".lock").write_text("process 1 on elsewhere\n")
    found = {finding.subject: finding for finding in doctor.examine(ended)}[".lock"]
    return "" if found.verdict == "note" and "elsewhere" in found.words else f"says {found}"


def _shown(ended: Path, width: int, encoding: str) -> str:
    console = _console(width, encoding)
    doctor.show(console, ended, doctor.examine(ended))
    console.file.flush()
    return ""
