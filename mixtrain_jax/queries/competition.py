"""The competition's files: instances, one row each, and results."""

from __future__ import annotations

import ast
import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mixtrain_jax.errors import QueryError
from mixtrain_jax.queries.session import Answer

_WORDS = {"sat": "sat", "unsat": "unsat", "timed-out": "timeout", "unknown": "unknown"}


class Instance(NamedTuple):
    """One row of a file of instances.

    Attributes:
      networks: files by their names in the query; "" for the only one.
      query: its file.
      timeout: seconds.
    """

    networks: Mapping[str, Path]
    query: Path
    timeout: float

    @property
    def name(self) -> str:
        """What files about it are called."""
        stems = [path.name.removesuffix(".gz").removesuffix(".onnx") for path in self.networks.values()]
        return "_".join([*stems, self.query.name.removesuffix(".gz").removesuffix(".vnnlib")])


def read_instances(path: Path, timeout: float | None = None) -> list[Instance]:
    """Read rows of a network, a query and seconds; paths are looked up from the folder of the file.

    Args:
      path: the file.
      timeout: seconds of every instance, in place of those of the file.

    Raises:
      QueryError: where it cannot be read, or a row is something else.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise QueryError(f"Cannot read {path}: {error}.") from error
    return [_instance(path, i, row, timeout) for i, row in enumerate(rows, 1)]


def _instance(path: Path, i: int, row: list[str], timeout: float | None) -> Instance:
    try:
        networks, query, *rest = (word.strip() for word in row)
        seconds = float(rest[0]) if timeout is None else timeout
        names = named_networks(networks)
    except (ValueError, IndexError):
        raise QueryError(f"{path}: row {i} is no network, query and seconds, but {','.join(row)[:200]!r}.") from None
    found = {name: _existing(path.parent / file) for name, file in names.items()}
    return Instance(found, _existing(path.parent / query), seconds)


def named_networks(text: str) -> dict[str, str]:
    """Files by the names of networks: one path, or a list of pairs as the competition writes several.

    Raises:
      ValueError: where it begins as a list and is none of pairs.
    """
    if not text.startswith("["):
        return {"": text}
    try:
        pairs = ast.literal_eval(text)
        return {str(name): str(path) for name, path in pairs}
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _existing(path: Path) -> Path:
    """The path, or that of the file packed by gzip beside it."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if not path.exists() and packed.exists() else path


def write_result(path: Path, answer: Answer | None) -> None:
    """Write the competition's file of one result, whole or not at all.

    Args:
      path: the file.
      answer: what was found; None for an error.

    Raises:
      QueryError: where it cannot be written.
    """
    text = "error" if answer is None else _WORDS[answer.status]
    if answer is not None and answer.witness is not None:
        text += f"\n{answer.assignment()}"
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text + "\n")
        os.replace(partial, path)
    except OSError as error:
        raise QueryError(f"Cannot write {path}: {error.strerror}.") from error
