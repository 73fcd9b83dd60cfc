"""The folder of one run: its lock, its config, its log, its files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mixtrain_jax.config import Config, of_run
from mixtrain_jax.errors import ConfigError, MixtrainError


class RunDir:
    """Paths and files of a run. Files other than the log appear whole or not at all."""

    def __init__(self, path: Path):
        """Name the folder; `opened` makes it."""
        self.path = path.absolute()

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @contextlib.contextmanager
    def opened(self, config: Config) -> Iterator[None]:
        """Create the folder if needed and hold it for this process.

        Raises:
          ConfigError: where it holds a run of another config, is no folder, or cannot be written.
          MixtrainError: where another process trains in it.
        """
        self.make()
        try:
            lock = open(self.path / ".lock", "a+")  # noqa: SIM115  held until the run ends
        except OSError as error:
            raise ConfigError(
                f"Cannot use {self.path} as workdir: {error.strerror}. Choose another --workdir."
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.seek(0)
                raise MixtrainError(
                    f"Another run holds {self.path} ({lock.read().strip() or 'unknown process'}). "
                    "Wait for it, stop it, or choose another --workdir."
                ) from error
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {os.uname().nodename}\n")
            lock.flush()
            self._claim(config)
            yield

    def make(self) -> None:
        """Create the folder if needed.

        Raises:
          ConfigError: where it is no folder, or cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            why = getattr(error, "strerror", error)
            raise ConfigError(
                f"Cannot use {self.path} as workdir: {why}. Choose another --workdir or --out."
            ) from error

    def _claim(self, config: Config) -> None:
        path = self.path / "config.json"
        if not path.exists():
            self.write("config.json", json.dumps(config.to_json(), indent=2) + "\n")
            return
        try:
            mine, theirs = config.flags(), of_run(self.path).flags()
        except ConfigError as error:
            raise ConfigError(f"{error} Choose another --workdir.") from error
        differ = [name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)]
        if differ:
            listed = ", ".join(f"{name} {theirs.get(name)!r} there, {mine.get(name)!r} now" for name in sorted(differ))
            raise ConfigError(f"{self.path} holds a run of another config ({listed}). Choose another --workdir.")

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file whole, replacing an older one.

        Raises:
          MixtrainError: where it cannot be written; an older one is untouched then.
        """
        self.write_all({name: content})

    def write_all(self, files: Mapping[str, str | bytes | None]) -> None:
        """Write files that belong together, replacing older ones: where the last one is, all of them are.

        Older ones go once all is on the disk, so a stop never leaves files of two sets.

        Args:
          files: contents by name, in order; None for one that must not be there.

        Raises:
          MixtrainError: where one cannot be written; older ones are untouched then.
        """
        contents = {name: content for name, content in files.items() if content is not None}
        temporary = {name: self.path / f".{name}.tmp" for name in contents}
        name = ""
        try:
            for name, content in contents.items():
                temporary[name].write_bytes(content.encode() if isinstance(content, str) else content)
            for name in reversed(list(files) if len(files) > 1 else []):
                (self.path / name).unlink(missing_ok=True)
            for name in contents:
                temporary[name].replace(self.path / name)
        except OSError as error:
            raise MixtrainError(f"Cannot write {self.path / name}: {error.strerror}.") from error
        finally:
            for path in temporary.values():
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def summary(self) -> dict[str, Any] | None:
        """What `summary.json` says, if the run has ended.

        Raises:
          MixtrainError: where it is damaged.
        """
        path = self.path / "summary.json"
        try:
            return json.loads(path.read_text()) if path.exists() else None
        except (OSError, ValueError) as error:
            raise MixtrainError(f"{path} is damaged. Delete it; the same command then certifies anew.") from error

    def rewind_metrics(self, step: int) -> None:
        """Drop the rows of `metrics.jsonl` after a step, and one that a crash cut short."""
        rows = [row for row in self.metrics() if row["step"] <= step]
        self.write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add a row to `metrics.jsonl`.

        Raises:
          MixtrainError: where it cannot be written.
        """
        try:
            with open(self.path / "metrics.jsonl", "a") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise MixtrainError(f"Cannot write {self.path / 'metrics.jsonl'}: {error.strerror}.") from error

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`, without one that a crash cut short or that is damaged."""
        path = self.path / "metrics.jsonl"
        rows = []
        for line in path.read_bytes().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                rows += [row] if isinstance(row, dict) and isinstance(row.get("step"), int) else []
        return rows
