"""Faults and bad inputs: what is damaged, missing or misused must end in the right result or in a typed error.

    python benchmarks/faults.py [CASE ...] [--share 0.1] [--seed 0] [--only NUMBER] [--out benchmarks/faults.json]

Without CASE all cases run, and those that start processes with `--processes` alone. F1-orbax and F2-orbax, which run
where they are named, do the same damage to what Orbax alone writes and reads, for comparison. A trial passes where the
result is right, or where the error is one of the package's own, with a message that names the file, the field or the
step. It fails with a result that is wrong without a word, any other exception, a traceback at the command line, more
than 60 seconds, or more than 1 GB of memory. Exit code 1 where a trial of ours failed, or a case had none.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fault_cases import datasets, folders, inputs, killing, memory, numbers, peers, processes, saved
from fault_cases.trials import Case, Trial

from mixtrain_jax import environment

SECONDS, BYTES = 60, 2**30
PROCESSES = 10  # times as long for what starts several processes


class Entry(NamedTuple):
    """A case, and how many trials all of it has."""

    what: str
    case: Case
    count: int
    processes: bool = False  # whether it starts processes


CASES = {
    "F1": Entry("a flipped bit in a checkpoint", saved.flips, 1000),
    "F2": Entry("files of a checkpoint cut short, deleted, zeroed, swapped", saved.broken_files, 54),
    "F3": Entry("SIGKILL while training, then resumed", processes.kills, 50, True),
    "F4": Entry("SIGTERM while training, then resumed", processes.terminations, 20, True),
    "F5": Entry("SIGTERM to one of two processes, then resumed", processes.terminated_hosts, 10, True),
    "F6": Entry("SIGKILL to one of two processes, then resumed", processes.killed_hosts, 6, True),
    "F7": Entry("Ctrl-C, once and twice, then resumed", processes.interrupts, 6, True),
    "F8": Entry("no space left", folders.full_disks, 6),
    "F9": Entry("folders that cannot be used", folders.odd_folders, 10),
    "F10": Entry("what a crash left among the checkpoints", saved.leftovers, 10),
    "F11": Entry("two runs in one folder, stale locks", folders.locks, 4),
    "F12": Entry("saved on some devices, resumed on others", processes.other_devices, 12, True),
    "F13": Entry("NaN, labels out of range, numbers at the edge", numbers.edges, 30),
    "F14": Entry("the same seed again", processes.repeats, 6, True),
    "F15": Entry("checkpoints of another network or optimizer", saved.foreign, 40),
    "F16": Entry("odd clocks, hosts and consoles", folders.surroundings, 8),
    "F17": Entry("little memory", memory.little_memory, 5, True),
    "F18": Entry("10 SIGKILLs of one run, half of them while it saves, then resumed", killing.chains, 10, True),
    "X1": Entry("config files and overrides made at random", inputs.configs, 10_000),
    "X2": Entry("damaged ONNX files", inputs.onnx_files, 10_000),
    "X4": Entry("damaged parameters and certificates, bombs", inputs.foreign_files, 10_000),
    "X5": Entry("damaged files of data sets", datasets.data_files, 2000),
    "X6": Entry("arguments that make no sense", numbers.misuse, 500),
    "X7": Entry("names that lead elsewhere or nowhere", inputs.names, 200),
}
PEERS = {
    "F1-orbax": Entry("a flipped bit in a checkpoint of Orbax alone", peers.orbax_flips, 1000),
    "F2-orbax": Entry("files of one cut short, deleted, zeroed", peers.orbax_files, 54),
}
ABSENT = {"X3": "VNN-LIB"}


class Row(NamedTuple):
    """What became of a case."""

    case: str
    what: str
    tried: int
    failed: int
    failures: list[str]  # the first few, with their numbers
    seconds: float


def run(
    name: str, *, share: float = 1.0, seed: int = 0, only: int | None = None, seconds: int = SECONDS, most: int = 20
) -> Row:
    """Run a case.

    Args:
      name: of the case.
      share: of its trials; at least one is run.
      seed: of all that is random.
      only: the one trial to run.
      seconds: that a trial may take.
      most: failures that are told.
    """
    entry, started = (CASES | PEERS)[name], time.monotonic()
    count = max(1, round(share * entry.count)) if only is None else only + 1
    rng = np.random.default_rng([seed, *name.encode()])
    tried, failed, failures = 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        for number, trial in enumerate(entry.case(rng, count, Path(folder).resolve())):
            if only not in (None, number):
                continue
            tried += 1
            if wrong := outcome(trial, seconds * (PROCESSES if entry.processes else 1)):
                failed += 1
                failures += [f"{number}, {trial.what}: {wrong}"] * (failed <= most)
    return Row(name, entry.what, tried, failed, failures, time.monotonic() - started)


def outcome(trial: Trial, seconds: int = SECONDS) -> str:
    """What is wrong after a trial that may take so many seconds, "" where nothing is."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with at_most(seconds):
            wrong = trial.act()
    except (Exception, SystemExit) as error:
        wrong = f"raised {type(error).__name__}: {error}"[:400]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return wrong or (f"took {grown / 2**30:.1f} GB of memory" if grown > BYTES else "")


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in what takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run cases, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES | PEERS))
    parser.add_argument("--share", type=float, default=1.0, help="of the trials of each case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of the one trial to run, as a failure tells it")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="that a trial may take; more on a busy machine")
    parser.add_argument("--processes", action="store_true", help="also run the cases that start processes")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    given = parser.parse_args(arguments)
    # Where a file is missing, tensorstore answers some reads after Orbax has closed the loop that they came from.
    sys.unraisablehook = lambda _: None
    if unknown := [name for name in given.cases if name not in CASES | PEERS]:
        absent = [f"{name} needs {ABSENT[name]}, which is not there" for name in unknown if name in ABSENT]
        parser.error(f"no case {', '.join(unknown)}; known: {', '.join(CASES | PEERS)}. {'; '.join(absent)}")
    names = given.cases or [name for name, entry in CASES.items() if given.processes or not entry.processes]
    print("| case | what | tried | passed | failed | seconds |\n|---|---|---|---|---|---|")
    rows = []
    for name in names:
        row = run(name, share=given.share, seed=given.seed, only=given.only, seconds=given.seconds)
        rows.append(row)
        passed = row.tried - row.failed
        print(f"| {name} | {row.what} | {row.tried} | {passed} | {row.failed} | {row.seconds:.1f} |", flush=True)
    for row in rows:
        if row.failures:
            again = f"python benchmarks/faults.py {row.case} --seed {given.seed} --only NUMBER"
            listed = "\n".join(f"  {failure}" for failure in row.failures)
            print(f"\n{row.case}: {row.failed} of {row.tried} failed; each again by {again}\n{listed}")
    if given.out:
        found = {
            **{"seed": given.seed, "share": given.share, "device": environment.device()},
            **{"versions": environment.versions(environment.TRAINING), "cases": [row._asdict() for row in rows]},
        }
        given.out.write_text(json.dumps(found, indent=2) + "\n")
    return int(any(row.case in CASES and (row.failed or not row.tried) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
