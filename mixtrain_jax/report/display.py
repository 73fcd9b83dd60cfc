"""The live view of a run: rows above a progress bar in a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

# Column of the live view: heading, key of a metrics row, format.
_COLUMNS = (
    ("epoch", "epoch", "8.1f"),
    ("loss", "loss", "9.4f"),
    ("clean", "heldout_clean_accuracy", "8.1%"),
    ("verified", "heldout_verified_accuracy", "9.1%"),
    ("weight", "relative_weight", "8.3f"),
    ("eps", "eps", "8.4f"),
    ("examples/s", "examples_per_second", "12,.0f"),
    ("left", "seconds_left", ">8"),
)
_QUIET_SECONDS = 5.0
_SILENT_SECONDS = 30.0


class Display:
    """Prints rows, notes and progress of one run. Use it as a context manager."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False):
        """Write to this console, by default the standard output, or nothing at all."""
        self.console = console or Console(highlight=False, quiet=quiet)
        self.live = self.console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
            transient=True,
        )
        self._task = self._progress.add_task("start", total=None, visible=False)
        self._doing = ""
        self._printed = 0.0
        self._headed = False
        self._skipped = 0

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def progress(self, what: str, done: int, total: int) -> None:
        """Move the bar; a new `what` starts it anew. Outside a terminal it is a line now and then, but for training."""
        if what != self._doing:
            self._doing = what
            self._progress.reset(self._task, description=what, completed=done, total=total, visible=True)
        self._progress.update(self._task, completed=done, total=total)
        if not self.live and what != "train" and time.monotonic() - self._printed > _SILENT_SECONDS:
            self._say(f"{what}: {done} of {total}")

    def row(self, row: Mapping[str, Any], *, last: bool = False) -> None:
        """Print a row of metrics; outside a terminal only when the last line is a few seconds old."""
        if (skipped := row.get("skipped", 0)) > self._skipped:
            self._skipped = skipped
            self.note(f"Not finite, so skipped: {skipped} of the first {row['step']} steps.")
        if not (self.live or last or not self._headed or time.monotonic() - self._printed > _QUIET_SECONDS):
            return
        if not self._headed:
            self._headed = True
            self._say(" ".join(f"{heading:>{_width(form)}}" for heading, _, form in _COLUMNS))
        self._say(" ".join(_cell(row, key, form) for _, key, form in _COLUMNS))

    def _say(self, text: str) -> None:
        self._printed = time.monotonic()
        self.note(text)

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Print the final table."""
        table = Table(title=f"{summary['test_examples']} test images, l-infinity eps {summary['eps']:g}")
        table.add_column("accuracy")
        table.add_column("value", justify="right")
        table.add_column("what it says")
        for name, key, words in (
            ("clean", "clean_accuracy", "of the images as they are"),
            ("attacked", "attacked_accuracy", f"left after {summary['attack']}: robust accuracy is at most this"),
            ("verified", "verified_accuracy", f"proved by {summary['method']}: robust accuracy is at least this"),
        ):
            table.add_row(name, f"{summary[key]:.1%}", words)
        self.console.print(table)


def seconds_left(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _width(form: str) -> int:
    return int(form.lstrip(">").rstrip("f%").split(".")[0].rstrip(","))


def _cell(row: Mapping[str, Any], key: str, form: str) -> str:
    value = seconds_left(row[key]) if key == "seconds_left" else row[key]
    return format("-", f">{_width(form)}") if value is None else format(value, form)
