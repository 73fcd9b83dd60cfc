"""What `mixtrain verify` and `mixtrain supports` do once their arguments are parsed."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mixtrain_jax.bounds import BoundsError
from mixtrain_jax.errors import ConfigError, MixtrainError, QueryError
from mixtrain_jax.queries.competition import Instance, named_networks, read_instances, write_result
from mixtrain_jax.queries.session import Answer, Session
from mixtrain_jax.queries.supports import CAPABILITIES, network_support, query_support

_TIMEOUT = 60.0
_SUPPORTS = f"""usage: mixtrain supports FILE | --CAPABILITY

Whether FILE, a network (.onnx) or a query (.vnnlib), is supported, with what it holds; exit code 1 where it is not.
Or what is supported, a line each, by the names of the VNN-LIB standard:

  {chr(10).join(f"  --{name}" for name in CAPABILITIES).strip()}"""


class Options(NamedTuple):
    """Options of `mixtrain verify`, as its help describes them."""

    timeout: float | None
    results: Path | None
    memory: int | None
    seed: int


def single(files: Sequence[Path], named: Sequence[str], options: Options) -> int:
    """Answer one query and print the answer.

    Raises:
      MixtrainError: where files are missing, damaged or not supported; a file of results says so, too.
    """
    started = time.monotonic()
    try:
        networks, query = _named(files, named)
        timeout = _seconds(options.timeout, _TIMEOUT) - (time.monotonic() - started)
        answer = Session(memory=options.memory, seed=options.seed).ask(query, networks, timeout)
    except MixtrainError:
        if options.results is not None:
            write_result(options.results, None)
        raise
    if options.results is not None:
        write_result(options.results, answer)
    print(answer.status)
    if answer.witness is not None:
        print(answer.assignment())
    if answer.reason:
        print(f"{query}: {answer.reason}", file=sys.stderr)
    return 0


def batch(path: Path, files: Sequence[Path], options: Options) -> int:
    """Answer the instances of a file, one after another, a line each; exit code 1 where one ended in an error.

    Raises:
      QueryError: where the file of instances cannot be read, or results cannot be written.
    """
    if files:
        raise ConfigError(f"verify --batch wants no other files, got {' '.join(map(str, files))}.")
    limit = None if options.timeout is None else _seconds(options.timeout, _TIMEOUT)
    instances, failed = read_instances(path, limit), False
    session = Session(memory=options.memory, seed=options.seed, compile_apart=True)
    done = _done(options.results)
    for instance in instances:
        if _key(instance) in done:
            continue
        started = time.monotonic()
        try:
            answer = session.ask(instance.query, instance.networks, instance.timeout)
            status, reason = answer.status, answer.reason
        except MixtrainError as error:
            answer, status, reason, failed = None, "error", str(error), True
        row = [*_key(instance), status, f"{time.monotonic() - started:.2f}"]
        print(*row, sep=",", flush=True)
        if reason:
            print(f"{instance.name}: {reason}", file=sys.stderr)
        if options.results is not None:
            _record(options.results, instance, answer, [*row, reason])
    return int(failed)


def supports(arguments: Sequence[str]) -> int:
    """Tell what is supported, of a file or in general.

    Raises:
      ConfigError: where the arguments are something else.
    """
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print(_SUPPORTS)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    (asked,) = arguments
    if asked.startswith("--"):
        if asked[2:] not in CAPABILITIES:
            raise ConfigError(f"supports knows --{', --'.join(CAPABILITIES)}, and no {asked}.")
        print("\n".join(CAPABILITIES[asked[2:]]()))
        return 0
    try:
        is_network = asked.removesuffix(".gz").endswith(".onnx")
        print("\n".join(["supported", *(network_support if is_network else query_support)(Path(asked))]))
    except (MixtrainError, BoundsError) as error:
        print(f"not supported\n{error}")
        return 1
    return 0


def _named(files: Sequence[Path], named: Sequence[str]) -> tuple[dict[str, Path], Path]:
    """Networks by their names, and the query, from what was written."""
    *before, query = files or [None]
    if query is None or len(before) + bool(named) != 1:
        raise ConfigError(
            "verify wants QUERY.vnnlib --network NAME=FILE.onnx, or FILE.onnx QUERY.vnnlib, or --batch INSTANCES.csv."
        )
    if before:
        try:
            return {name: Path(path) for name, path in named_networks(str(before[0])).items()}, query
        except ValueError:
            raise ConfigError(
                f"Expected a network's file or a list of pairs of name and file, got {before[0]}."
            ) from None
    networks = {}
    for word in named:
        name, equals, path = word.rpartition("=") if not Path(word).exists() else ("", "", word)
        if name in networks or (not equals and len(named) > 1):
            raise ConfigError(f"--network wants NAME=FILE.onnx, each name once, got {' '.join(named)}.")
        networks[name] = Path(path)
    return networks, query


def _seconds(timeout: float | None, default: float) -> float:
    seconds = default if timeout is None else timeout
    if not seconds > 0:
        raise ConfigError(f"verify wants a timeout above 0 seconds, got {seconds:g}.")
    return seconds


def _key(instance: Instance) -> tuple[str, str]:
    networks = "+".join(str(path) for path in instance.networks.values())
    return networks, str(instance.query)


def _done(folder: Path | None) -> set[tuple[str, ...]]:
    """Instances that are in the table of results."""
    table = folder and folder / "results.csv"
    if table is None or not table.exists():
        return set()
    try:
        with open(table, newline="", encoding="utf-8") as file:
            return {tuple(row[:2]) for row in csv.reader(file)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise QueryError(f"Cannot read {table}: {error}.") from error


def _record(folder: Path, instance: Instance, answer: Answer | None, row: Sequence[str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_result(folder / f"{instance.name}.txt", answer)
        with open(folder / "results.csv", "a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(row)
    except OSError as error:
        raise QueryError(f"Cannot write results to {folder}: {error.strerror}.") from error
