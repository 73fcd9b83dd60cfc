"""One run that is killed again and again, every other time in the middle of a save."""

from __future__ import annotations

import functools
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from .processes import ending, finished, start
from .trials import Trial, spawned

KILLS = 10  # of one run
LONG = ("--training.epochs", "800", "--training.checkpoint-seconds", "0.1")
LIMIT = 900  # seconds until a run has saved something


def whole(workdir: Path) -> int:
    """The newest step that is saved."""
    steps = (path.name for path in workdir.glob("checkpoints/[0-9]*"))
    return max((int(name) for name in steps if name.isdigit()), default=0)


def partial(workdir: Path) -> list[Path]:
    """What is being saved, or was when its process died."""
    return list(workdir.glob("checkpoints/*tmp*"))


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> bool:
    """Wait until it holds; False where the process has ended before."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing in {LIMIT} seconds")
        time.sleep(0.0005)
    return True


def killed(workdir: Path, rng: np.random.Generator, while_saving: bool) -> bool:
    """Start or resume the run and kill it once it has got further; whether it was killed before it ended."""
    before = whole(workdir)
    with ending(start(workdir, *LONG)) as (process,):
        if not wait_for(process, lambda: whole(workdir) > before):
            return False
        while while_saving:
            if not wait_for(process, lambda: bool(partial(workdir))):
                return False
            time.sleep(rng.uniform(0, 0.02))
            process.send_signal(signal.SIGSTOP)  # nothing ends between the look and the kill
            if partial(workdir):
                break
            process.send_signal(signal.SIGCONT)
        else:
            time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.communicate()
    return process.returncode == -signal.SIGKILL


def chain(workdir: Path, rng: np.random.Generator, plain: Callable[[], object]) -> str:
    """Kill a run `KILLS` times, and compare what it ends with with a run that nothing disturbs."""
    hits = 0
    for number in range(KILLS):
        if not killed(workdir, rng, while_saving=number % 2 == 1):
            return f"ended by itself after {number} kills"
        hits += bool(partial(workdir))
    if hits < KILLS // 2:
        return f"{hits} of {KILLS} kills came in the middle of a save"
    same = finished(workdir, *LONG) == plain()
    return "" if same else "the resumed run ended otherwise than the uninterrupted one"


def chains(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """F18: SIGKILL at a random time, and in the middle of a save, in turn."""
    plain = functools.cache(functools.partial(finished, tmp / "plain", *LONG))
    plain()  # is no part of a trial's time
    for number, draw in spawned(rng, count):
        yield Trial(f"{KILLS} kills of one run", functools.partial(chain, tmp / str(number), draw, plain))
