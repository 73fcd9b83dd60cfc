"""Instances of the competition against their expected results.

`python benchmarks/vnncomp.py run FOLDER --family acasxu --expected FILE`, then `table`. FOLDER holds a benchmark as the
competition publishes it: `instances.csv`, `onnx/`, `vnnlib/`. Expected results are rows of family, network, query and
result, such as VNNLIB/Benchmarks/expected_results.csv; they are matched by file names. Every instance is a line of JSON
in the record, and instances that have one are left out, so the same command goes on where it stopped. A wrong answer
ends the run.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path

from mixtrain_jax.errors import MixtrainError
from mixtrain_jax.queries import Session
from mixtrain_jax.queries.competition import Instance, read_instances

RECORD = Path(__file__).with_name("vnncomp.jsonl")


def stem(path: str | Path) -> str:
    """A file's place below its folder onnx or vnnlib, whether it is packed or not."""
    parts = Path(path).parts
    start = max((i + 1 for i, part in enumerate(parts[:-1]) if part in ("onnx", "vnnlib")), default=len(parts) - 1)
    name = "/".join(parts[start:])
    for suffix in (".gz", ".onnx", ".vnnlib"):
        name = name.removesuffix(suffix)
    return name


def names(instance: Instance) -> tuple[str, str]:
    """Of the network and the query of an instance."""
    return stem(next(iter(instance.networks.values()))), stem(instance.query)


def expectations(path: Path) -> dict[tuple[str, str], str]:
    """Results by the names of network and query."""
    with open(path, newline="") as file:
        return {(stem(row["onnx"]), stem(row["vnnlib"])): row["result"] for row in csv.DictReader(file)}


def recorded(path: Path) -> list[dict]:
    """What is on record."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def chosen(arguments: argparse.Namespace, expected: dict[tuple[str, str], str]) -> list[Instance]:
    """The instances that the arguments ask for, of those with an expected result and whose networks are there."""
    instances = read_instances(arguments.folder / "instances.csv", arguments.timeout)
    instances = [instance for instance in instances if names(instance) in expected]
    instances = [instance for instance in instances if all(path.exists() for path in instance.networks.values())]
    if arguments.properties:
        wanted = {f"prop_{number}" for number in arguments.properties.split(",")}
        instances = [instance for instance in instances if names(instance)[1] in wanted]
    if arguments.sample:
        places = random.Random(0).sample(range(len(instances)), min(arguments.sample, len(instances)))
        instances = [instances[i] for i in sorted(places)]
    return instances


def answered(session: Session, instance: Instance) -> dict:
    """What is found of an instance."""
    started = time.monotonic()
    try:
        answer = session.ask(instance.query, instance.networks, instance.timeout)
        found = {"status": answer.status, "reason": answer.reason, "by": answer.by, "domains": answer.domains}
        found["compiling"] = round(answer.compiling, 2)
    except MixtrainError as error:
        found = {"status": "error", "reason": str(error).split(": ", 1)[-1]}
    # Seconds are those of a machine that was as busy as its load says.
    return found | {"seconds": round(time.monotonic() - started, 2), "load": round(os.getloadavg()[0], 1)}


def run(arguments: argparse.Namespace) -> int:
    """Answer what is not on record yet."""
    expected = expectations(arguments.expected)
    done = {(line["family"], line["network"], line["query"]) for line in recorded(arguments.record)}
    session = Session(compile_apart=True)
    for instance in chosen(arguments, expected):
        network, query = names(instance)
        if (arguments.family, network, query) in done:
            continue
        line = {"family": arguments.family, "network": network, "query": query, "timeout": instance.timeout}
        line |= {"expected": expected[network, query], **answered(session, instance)}
        with open(arguments.record, "a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)
        if wrong(line):
            print("A wrong answer.", file=sys.stderr)
            return 1
    return 0


def wrong(line: dict) -> bool:
    """Whether an answer is the opposite of what is expected."""
    return {line["status"], line["expected"]} == {"sat", "unsat"}


def table(lines: list[dict]) -> str:
    """A row for each family: instances, decided, wrong, seconds of those decided, reasons of the others."""
    rows = [
        "| family | instances | sat | unsat | open | wrong | median seconds | reasons |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for family in dict.fromkeys(line["family"] for line in lines):
        mine = [line for line in lines if line["family"] == family]
        sat, unsat = (sum(line["status"] == word for line in mine) for word in ("sat", "unsat"))
        decided = [line for line in mine if line["status"] in ("sat", "unsat")]
        seconds = [line["seconds"] - line.get("compiling", 0) for line in decided]
        reasons: dict[str, int] = {}
        for line in mine:
            if line["status"] not in ("sat", "unsat"):
                reason = line["reason"].split(": ")[-1][:60] or line["status"]
                reasons[reason] = reasons.get(reason, 0) + 1
        told = ", ".join(f"{reason} ({count})" for reason, count in reasons.items())
        median = f"{statistics.median(seconds):.1f}" if seconds else ""
        count = len(mine) - sat - unsat
        rows.append(
            f"| {family} | {len(mine)} | {sat} | {unsat} | {count} | {sum(map(wrong, mine))} | {median} | {told} |"
        )
    return "\n".join(rows)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--family", default="")
    parser.add_argument("--expected", type=Path)
    parser.add_argument("--timeout", type=float, default=None, help="seconds, in place of those of the file")
    parser.add_argument("--properties", default="", help="of acasxu, such as 1,2,3,4")
    parser.add_argument("--sample", type=int, default=0, help="how many instances, drawn with a fixed seed; 0 for all")
    parser.add_argument("--record", type=Path, default=RECORD)
    arguments = parser.parse_args()
    if arguments.what == "run":
        return run(arguments)
    print(table(recorded(arguments.record)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
