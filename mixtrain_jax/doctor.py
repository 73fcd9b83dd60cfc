"""What is wrong with the folder of a run or a judgement, and what to do about it. Nothing in the folder is changed."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mixtrain_jax import __version__, flat, image_table
from mixtrain_jax.checkpoints import read
from mixtrain_jax.config import of_run
from mixtrain_jax.errors import MixtrainError, first_line
from mixtrain_jax.fingerprints import fingerprint, sha256_of_files

_LARGEST = 2**28  # bytes of a file that is read whole, and of what it unpacks to
_AGAIN = "run the same command again"
_ARRAYS = ("certificates.npz", "curve.json", "adversarial.npz", "certificates.jsonl")


class Finding(NamedTuple):
    """One line of the table."""

    verdict: Literal["ok", "note", "fault"]
    subject: str  # what was looked at
    words: str  # what it is like, and what to do


@dataclasses.dataclass
class _Known:
    """What the checks before have found."""

    newest: int = 0  # step of the newest whole checkpoint; 0 for none
    leaves: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # what it holds
    largest: int = 0  # bytes of a checkpoint
    summary: dict[str, Any] | None = None  # where the run has ended; the record of a judgement
    advice: str = f"Delete it and summary.json and {_AGAIN}."  # on a file that is another one


def examine(folder: Path) -> list[Finding]:
    """Look at everything in the folder of a run or a judgement; never fails, whatever is there.

    Args:
      folder: of the run or the judgement.
    """
    if not os.path.isdir(folder):
        return [Finding("fault", "folder", f"{folder} is no folder. Name one that a run was given as --workdir.")]
    known, findings = _Known(), []
    judged = os.path.lexists(folder / "judgement.json") and not os.path.lexists(folder / "config.json")
    for subject, check in (_OF_JUDGEMENTS if judged else _CHECKS).items():
        try:
            for finding in check(folder, known):
                findings.append(finding)
        except MixtrainError as error:
            findings.append(Finding("fault", subject, str(error)))
        except Exception as error:  # what is damaged can fail anywhere in the libraries that read it
            words = f"is damaged ({type(error).__name__}: {first_line(error)})."
            findings.append(Finding("fault", subject, words))
    return findings


def show(console: Console, folder: Path, findings: Iterable[Finding]) -> None:
    """Print a table, one line a finding."""
    table = Table(title=_printable(str(folder)), title_justify="left")
    for heading in ("", "what", "what it is like, and what to do"):
        table.add_column(heading, overflow="fold")
    styles = {"ok": "green", "note": "yellow", "fault": "bold red"}
    for verdict, subject, words in findings:
        table.add_row(Text(verdict, styles[verdict]), Text(_printable(subject)), Text(_printable(words)))
    console.print(table)


def _config(folder: Path, known: _Known) -> Iterator[Finding]:
    content = _content(folder / "config.json")
    if content is None:
        raise MixtrainError("is missing, so this is no folder of a run; name another.")
    try:
        config = of_run(folder)
    except MixtrainError as error:
        raise MixtrainError(
            f"{error} Use the version of the package that wrote it, or train in another folder."
        ) from error
    values = json.loads(content)
    if flat.is_flat(values):
        yield Finding("note", "config.json", "of version 0.1; it is read as the tables of today.")
        return
    there = {f"{table}.{name}" for table, inner in values.items() if isinstance(inner, dict) for name in inner}
    if late := [flag for flag in config.flags() if flag not in there | values.keys()]:
        yield Finding("note", "config.json", f"of an earlier version; defaults are taken for {', '.join(late)}.")
    else:
        yield Finding(
            "ok", "config.json", f"{config.data.name}, {config.model.name}, trained by {config.name_of('objective')}"
        )


def _lock(folder: Path, known: _Known) -> Iterator[Finding]:
    path = folder / ".lock"
    if not os.path.lexists(path):
        yield Finding("ok", ".lock", "free; no run has held the folder.")
        return
    if not os.path.isfile(path):
        raise MixtrainError("is no file, so no run can hold the folder; move it away.")
    with open(path, "rb") as file:
        holder = file.read(200).decode(errors="replace").strip() or "an unknown process"
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            held = False
        except BlockingIOError:
            held = True
    named = re.fullmatch(r"process (\d{1,9}) on (.*)", holder)
    here = named is not None and named[2] == os.uname().nodename
    if held and here and named is not None and not _runs(int(named[1])):
        words = f"held, but {holder} is gone: a process that it started still holds it. End that one."
        yield Finding("note", ".lock", words)
    elif held:
        yield Finding("note", ".lock", f"held by {holder}: a run is in progress, and its files may change meanwhile.")
    elif named and not here:
        words = f"free as seen from here; {holder} held it last. Make sure that it runs no more on that host."
        yield Finding("note", ".lock", words)
    else:
        yield Finding("ok", ".lock", f"free; what it says of {holder} is stale and does no harm.")


def _checkpoints(folder: Path, known: _Known) -> Iterator[Finding]:
    folder = folder / "checkpoints"
    if not os.path.lexists(folder):
        yield Finding("note", "checkpoints", f"none yet; to train, {_AGAIN}.")
        return
    names = sorted(os.listdir(folder))
    steps = sorted((name for name in names if re.fullmatch(r"[0-9]+", name)), key=int, reverse=True)
    if not steps:
        yield Finding("note", "checkpoints", f"none yet; to train, {_AGAIN}.")
    damaged = []
    for name in steps:
        subject, path = f"checkpoint {name}", folder / name
        try:
            size, age = _size(path), max(0.0, time.time() - os.lstat(path).st_mtime)
        except FileNotFoundError:  # deleted by a run in progress, as it should be
            continue
        known.largest = max(known.largest, size)
        told = f"{_bytes(size)}, {_age(age)} old"
        try:
            _refuse_odd(path)
            leaves = read(folder, int(name))
        except Exception as error:  # of files that are odd, gone or unreadable too
            if os.path.lexists(path):  # else it was deleted meanwhile
                damaged.append(Finding("fault", subject, f"damaged ({first_line(error)}); {told}."))
            continue
        if not known.newest:
            known.newest, known.leaves = int(name), leaves
        yield Finding("ok", subject, f"whole; {told}.")
    if known.newest:
        advice = f"Runs pass over it; {known.newest} is whole."
    else:
        advice = "None is whole: delete the folder checkpoints to train anew."
    for finding in damaged:
        yield finding._replace(words=f"{finding.words} {advice}")
    for name in names:
        if ".orbax-checkpoint-tmp" in name:
            words = "is being saved, or a crash left it there; the next run deletes it."
            yield Finding("note", f"checkpoints/{name}", words)
        elif name not in steps:
            yield Finding("note", f"checkpoints/{name}", "is no checkpoint, and nothing of ours.")


def _damaged(folder: Path, known: _Known) -> Iterator[Finding]:
    folder = folder / "damaged"
    if os.path.lexists(folder):
        listed = ", ".join(sorted(os.listdir(folder))) or "nothing"
        words = f"holds {listed} ({_bytes(_size(folder))}): checkpoints that runs passed over. Delete it when you like."
        yield Finding("note", "damaged", words)


def _metrics(folder: Path, known: _Known) -> Iterator[Finding]:
    path = folder / "metrics.jsonl"
    content = _content(path)
    if content is None:
        yield Finding("note", path.name, "not there yet.")
        return
    unreadable, falling, last, count = [], [], -1, 0
    lines = content.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            step = json.loads(line)["step"]
            later = step > last
        except (ValueError, TypeError, KeyError, RecursionError):
            unreadable.append(number)
            continue
        count += 1
        if not later:
            falling.append(number)
        last = step
    if unreadable == [len(lines)] and not content.endswith(b"\n"):
        yield Finding("note", path.name, "its last line was cut short by a crash; the next run drops it.")
    elif unreadable:
        yield Finding("fault", path.name, f"cannot be read in {_places(unreadable)}; the report goes without them.")
    if falling:
        words = f"steps do not rise in {_places(falling)}: two runs have written to it, or it was edited."
        yield Finding("fault", path.name, words)
    if count and not falling:
        yield Finding("ok", path.name, f"{count} rows, to step {last}.")
    if not lines:
        yield Finding("note", path.name, "no row yet.")


def _summary(folder: Path, known: _Known) -> Iterator[Finding]:
    content = _content(folder / "summary.json")
    if content is None:
        yield Finding("note", "summary.json", f"not there: the run has not ended. To go on, {_AGAIN}.")
        return
    try:
        summary = json.loads(content)
    except (ValueError, RecursionError):
        summary = None
    if not isinstance(summary, dict):
        raise MixtrainError(f"is no JSON object. Delete it and {_AGAIN} to certify anew.")
    known.summary = summary
    missing = [name for name in ("clean_accuracy", "verified_accuracy", "step", "params_sha256") if name not in summary]
    if missing:
        raise MixtrainError(f"says nothing of {', '.join(missing)}. Delete it and {_AGAIN} to certify anew.")
    clean, verified = (f"{summary[name]:.1%}" for name in ("clean_accuracy", "verified_accuracy"))
    yield Finding("ok", "summary.json", f"clean {clean}, verified {verified}, of step {summary['step']}.")
    if (wrote := summary.get("versions", {}).get("mixtrain_jax")) != __version__:
        yield Finding("note", "summary.json", f"written by version {wrote}; this is {__version__}.")
    if skipped := summary.get("skipped"):
        yield Finding("note", "summary.json", f"{skipped} steps of training were skipped: not finite.")
    if not known.newest:
        words = "what it says of the parameters cannot be checked, as there is no whole checkpoint."
        yield Finding("note", "summary.json", words)
        return
    step, params = _chosen(known)
    if (step, fingerprint(params)) == (summary["step"], summary["params_sha256"]):
        words = f"agrees with checkpoint {known.newest} on the parameters (step {step}, SHA-256)."
        yield Finding("ok", "summary.json", words)
    else:
        words = (
            f"is of other parameters (step {summary['step']}) than checkpoint {known.newest} chooses (step {step}). "
            f"Delete it and {_AGAIN} to certify those."
        )
        yield Finding("fault", "summary.json", words)


def _chosen(known: _Known) -> tuple[int, dict[str, np.ndarray]]:
    """The step and the parameters that are certified, by name."""
    best = int(known.leaves.get("best.step", np.int64(0)))
    prefix = "best.params." if best else "state.params."
    params = {name.removeprefix(prefix): leaf for name, leaf in known.leaves.items() if name.startswith(prefix)}
    return best or known.newest, params


def _report(folder: Path, known: _Known) -> Iterator[Finding]:
    content = _content(folder / "report.html")
    if content is not None:
        if not content.rstrip().endswith(b"</html>"):
            raise MixtrainError(f"is cut short or damaged. {_draw(folder)}")
        yield Finding("ok", "report.html", f"whole; {_bytes(len(content))}.")
    elif known.summary is not None:
        raise MixtrainError(f"is missing, though the run has ended. {_draw(folder)}")


def _draw(folder: Path) -> str:
    return f"`mixtrain report {folder}` draws it anew once the run has ended."


def _curve(folder: Path, known: _Known) -> Iterator[Finding]:
    content = _content(folder / "curve.json")
    if content is None:  # not every run measures one
        return
    columns = {key: np.asarray(values, np.float64) for key, values in json.loads(content).items()}
    lengths = {len(columns[key]) for key in ("eps", "clean", "attacked", "verified")}
    if len(lengths) != 1 or columns["radius"].ndim != 1:
        raise MixtrainError("is damaged: its columns differ in length. Delete it; the report then goes without.")
    yield Finding("ok", "curve.json", f"accuracies at {lengths.pop()} radii.")


def _certificates(folder: Path, known: _Known) -> Iterator[Finding]:
    name, summary = "certificates.npz", known.summary
    content = _content(folder / name)
    if content is None:
        if summary is not None:
            raise MixtrainError(f"is missing, though the run has ended. Delete summary.json and {_AGAIN}.")
        return
    arrays = image_table.unpack(content, _LARGEST)
    if contradictions := image_table.contradictions(arrays):
        raise MixtrainError(
            f"contradicts itself: {'; '.join(contradictions)}. Delete it and summary.json and {_AGAIN}."
        )
    if absent := [column for column in image_table.COLUMNS if column not in arrays]:
        words = f"of an earlier version, without {', '.join(absent)}: what depends on that was not compared."
        yield Finding("note", name, words)
    count = len(arrays["labels"])
    if summary is None:
        yield Finding("ok", name, f"whole; of {count} images.")
        return
    by = {key: int((arrays["proved_by"] == key).sum()) for key in summary["verified_by"]}
    differ = [
        key
        for key in ("clean", "attacked", "verified")
        if int(arrays[key].sum()) != round(summary[f"{key}_accuracy"] * count)
    ]
    differ += ["test_examples"] * (count != summary["test_examples"]) + ["verified_by"] * (by != summary["verified_by"])
    if differ:
        raise MixtrainError(f"disagrees with summary.json on {', '.join(differ)}. Delete both and {_AGAIN}.")
    yield Finding("ok", name, f"of {count} images; agrees with summary.json.")


def _files(folder: Path, known: _Known) -> Iterator[Finding]:
    """The files of arrays beside a record, held against the SHA-256 that it has of them."""
    hashes = (known.summary or {}).get("files_sha256", {})
    for name in _ARRAYS if known.summary is not None else ():
        content, subject = _content(folder / name), f"{name}, SHA-256"
        if content is None and name in hashes:
            yield Finding("fault", subject, f"of a file that is missing. {known.advice}")
        elif content is not None and name not in hashes:
            words = "there is none, as in earlier versions: changes that leave the counts alone cannot be seen."
            yield Finding("note", subject, words)
        elif content is not None and sha256_of_files({name: content})[name] != hashes[name]:
            yield Finding("fault", subject, f"is not that of the file that was written. {known.advice}")
        elif content is not None:
            yield Finding("ok", subject, "the file is as it was written.")


def _judgement(folder: Path, known: _Known) -> Iterator[Finding]:
    content = _content(folder / "judgement.json")
    try:
        record = json.loads(content or b"")
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise MixtrainError("is no JSON object; judge again.")
    shares = ("clean_accuracy", "attacked_accuracy", "verified_accuracy")
    clean, attacked, verified = (record[name] for name in shares)
    if not 0 <= verified <= attacked <= clean <= 1:
        raise MixtrainError(
            f"contradicts itself: {', '.join(f'{name} {record[name]}' for name in shares)}; judge again."
        )
    known.summary, known.advice = record, "Judge again."
    yield Finding("ok", "judgement.json", f"clean {clean:.1%}, attacked {attacked:.1%}, verified {verified:.1%}.")


def _postmortem(folder: Path, known: _Known) -> Iterator[Finding]:
    content = _content(folder / "postmortem.json")
    if content is None:
        return
    report = json.loads(content)
    words = f"training ended at step {report['step']}, not finite {report['skipped_in_a_row']} times in a row. "
    if known.summary is not None or known.newest > report["step"]:
        yield Finding("note", "postmortem.json", f"{words}A later attempt has come further.")
    else:
        yield Finding("fault", "postmortem.json", f"{words}{report['try']}")


def _leftovers(folder: Path, known: _Known) -> Iterator[Finding]:
    for name in sorted(os.listdir(folder)):
        if re.fullmatch(r"\..+\.tmp", name):
            yield Finding(
                "note", name, "is being written, or a crash left it there; delete it when no run is in progress."
            )


def _disk(folder: Path, known: _Known) -> Iterator[Finding]:
    free, needed = shutil.disk_usage(folder).free, known.largest
    words = f"{_bytes(free)} free" + (f"; a checkpoint takes {_bytes(needed)}" if needed else "")
    if free > 2 * needed:
        yield Finding("ok", "disk", f"{words}.")
    elif known.summary is not None:
        yield Finding("note", "disk", f"{words}; the run has ended and wants no more.")
    else:
        yield Finding("fault", "disk", f"{words}. Free some space before you train on.")


_Checks = dict[str, Callable[[Path, _Known], Iterator[Finding]]]
_CHECKS: _Checks = {
    "config.json": _config,
    ".lock": _lock,
    "checkpoints": _checkpoints,
    "damaged": _damaged,
    "metrics.jsonl": _metrics,
    "summary.json": _summary,
    "report.html": _report,
    "certificates.npz": _certificates,
    "files": _files,
    "curve.json": _curve,
    "postmortem.json": _postmortem,
    "folder": _leftovers,
    "disk": _disk,
}
_OF_JUDGEMENTS: _Checks = {
    "judgement.json": _judgement,
    "files": _files,
    "folder": _leftovers,
}


def _content(path: Path) -> bytes | None:
    """The bytes of a file; None where there is nothing of that name."""
    if not os.path.lexists(path):
        return None
    if not os.path.isfile(path):  # a pipe would keep us waiting
        raise MixtrainError(f"is no file, where {path.name} should be; move it away.")
    if os.path.getsize(path) > _LARGEST:
        raise MixtrainError(f"is larger than {_bytes(_LARGEST)}, which no run writes; move it away.")
    return path.read_bytes()


def _refuse_odd(folder: Path) -> None:
    """Refuse what is neither file nor folder, such as pipes and devices: reading them may never end."""
    if not os.path.isdir(folder):
        raise MixtrainError("it is no folder")
    for at, folders, files in os.walk(folder):
        for name in folders + files:
            mode = os.lstat(path := os.path.join(at, name)).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise MixtrainError(f"{os.path.relpath(path, folder)} is neither file nor folder")


def _size(path: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(os.lstat(os.path.join(at, name)).st_size for at, _, names in os.walk(path) for name in names)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def _places(numbers: list[int]) -> str:
    listed = ", ".join(map(str, numbers[:5]))
    return f"line {listed}" if len(numbers) == 1 else f"lines {listed}{', ...' if len(numbers) > 5 else ''}"


def _bytes(count: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _age(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
