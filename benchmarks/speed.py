"""What bounds, attacks, certificates and training steps cost, beside targets and other libraries.

    python benchmarks/speed.py --nets mnist_small --measures 'ibp*' 'step-*' --rounds 15
    python benchmarks/speed.py --nets all --peers auto_LiRPA jax_verify foolbox --starts --json benchmarks/speed.jsonl
    python benchmarks/speed.py --nets none --curves all --json benchmarks/speed.jsonl
    python benchmarks/speed.py --page

The first times some measures, the second everything, the third how costs grow with sizes; the last writes docs/speed.md
from the records. The same commands serve an accelerator; take larger batches there (`--batch 128`).

All measures of a network take turns in one process, round by round, so that a noisy machine disturbs them alike;
compilation is timed apart. A ratio is the median of the ratios of the rounds: of wall seconds, but of CPU seconds where
there is one core and no accelerator (`taskset -c 1 python benchmarks/speed.py`), for others may use that core too.
Curves are of the same seconds.

A measure that fails, wants more memory than there is, or takes longer than `--seconds` is noted, and the others go on.
FLOPs are those that XLA counts, and the share of the peak is of the rate of one large matrix product. MiB are those of
results and of what lies between, as XLA plans it; `--memory` measures by how much the peak of a fresh process grows, as
can be done for peers too.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from timed import starts, tables
from timed.curves import CURVES, exponent
from timed.measures import MEASURES
from timed.nets import NETS
from timed.peers import PEERS
from timed.targets import ratios
from timed.turns import median, quartiles
from timed.worker import Found, Options, importable, watch

from mixtrain_jax.environment import TRAINING, versions

Record = dict[str, Any]


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def clock(found: Found) -> dict[str, dict[int, float]]:
    """The seconds that ratios are of, by measure and round: on one core of a CPU, those that this process had of it."""
    return found.cpu if cores() == 1 and "(cpu)" in "".join(found.device) else found.wall


def rows_of(net: str, found: Found) -> list[Record]:
    """A row for every measure of a network, also for those that failed."""
    seconds, rows = clock(found), []
    rate = found.facts["matmul"]["flops"] / median(seconds["matmul"]) if "matmul" in seconds else None
    for name in dict.fromkeys([*found.wall, *found.failed]):
        measure, _, peer = name.partition("@")
        row: Record = {"net": net, "measure": measure, "library": peer or "ours"}
        if name in found.failed:
            rows.append(row | {"failed": found.failed[name]})
            continue
        row |= {key: value for key, value in found.facts[name].items() if value is not None}
        row |= {"rounds": len(found.wall[name]), "seconds": quartiles(list(found.wall[name].values()))}
        row |= {"cpu_seconds": median(found.cpu[name])}
        if rate and row.get("flops"):
            row["share_of_peak"] = row["flops"] / median(seconds[name]) / rate
        rows.append(row)
    return rows


def time_net(net: str, names: Sequence[str], peers: Sequence[str], options: Options, memory: bool) -> tuple[Any, ...]:
    """Rows and ratios of one network, and the device in words."""
    theirs = [f"{name}@{peer}" for peer in peers for name in names if name in PEERS[peer][0]]
    found = watch(net, [*names, *theirs], options)
    for name, facts in found.facts.items():
        del facts["peak_mib"]  # of a process that has run other measures
        if memory:
            alone = watch(net, [name], options._replace(rounds=0)).facts.get(name, {})
            facts["peak_mib"] = alone.get("peak_mib")
    return rows_of(net, found), ratios(net, found, clock(found)), found.device


def time_curve(name: str, options: Options) -> tuple[Record, list[str]]:
    """What was found of one curve, and the device in words."""
    curve = CURVES[name]
    found = watch(name, [str(size) for size in curve.sizes], options)
    sizes = [size for size in curve.sizes if str(size) in found.wall]
    seconds = [quartiles(list(clock(found)[str(size)].values())) for size in sizes]
    memory = [found.facts[str(size)]["bytes"] for size in sizes]
    flops = [found.facts[str(size)]["flops"] for size in sizes]
    record = {"curve": name, "what": curve.what, "sizes": sizes, "seconds": seconds, "bytes": memory, "flops": flops}
    fitted = {
        "seconds": exponent(sizes, [q[1] for q in seconds]),
        "bytes": exponent(sizes, memory),
        "flops": exponent(sizes, flops),
    }
    expected = {"seconds": curve.seconds, "bytes": curve.memory}
    return {**record, "fitted": fitted, "expected": expected, "failed": found.failed}, found.device


def printed(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """A table on the terminal; a line may be shorter than the headings."""
    out = Table(title=title, title_justify="left")
    for heading in headings:
        out.add_column(heading)
    for line in lines:
        out.add_row(*line)
    return out


def measure_line(row: Record) -> list[str]:
    """One measure, or why it was not measured."""
    name = [row["measure"], str(row.get("batch", "")), row["library"]]
    return [*name, row["failed"]] if "failed" in row else [*name, *tables.cells(row)]


def about(note: str, options: Options, peers: Sequence[str]) -> Record:
    """When and where, with what."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    known = {"auto_LiRPA": ("torch",), "jax_verify": (), "foolbox": ("foolbox",)}
    others = {name: importlib.metadata.version(name) for peer in peers for name in known[peer]}
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        "commit": commit,
        "cores": cores(),
        "note": note,
        "versions": versions(TRAINING) | others,
        "options": {"rounds": options.rounds, "seconds": options.seconds},
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--nets", nargs="+", default=["mnist_small"], metavar="NET", help=f"all, none, {', '.join(NETS)}"
    )
    parser.add_argument("--measures", nargs="+", default=["*"], metavar="NAME", help=", ".join(MEASURES))
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="measures to leave out")
    parser.add_argument("--peers", nargs="+", default=[], choices=list(PEERS))
    parser.add_argument("--curves", nargs="+", default=[], metavar="NAME", help=f"all, {'; '.join(CURVES)}")
    parser.add_argument("--starts", action="store_true", help="time imports, and the way to a first step, too")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=60.0, help="for one measure, and as many to compile it")
    parser.add_argument("--gib", type=float, help="memory for one measure; by default what the machine can spare")
    parser.add_argument("--batch", type=int, help="examples; by default what suits the network on a CPU")
    parser.add_argument("--few", type=int, help="the same for symbolic bounds and CROWN")
    parser.add_argument("--memory", action="store_true", help="measure memory too, each in a fresh process")
    parser.add_argument("--note", default="", help="a few words on the machine, for the record")
    parser.add_argument("--json", type=Path, help="add records, a line a network, to this file")
    parser.add_argument("--page", action="store_true", help="only write the page, from the records")
    parser.add_argument("--out", type=Path, default=Path("docs/speed"), help="stem of the files of the page")
    found = parser.parse_args(arguments)
    for given, known in ((found.nets, NETS), (found.curves, CURVES)):
        if unknown := [name for name in given if name not in (*known, "all", "none")]:
            parser.error(f"there is no {unknown[0]!r}; known: all, {', '.join(known)}")
    for pattern in (*found.measures, *found.without):
        if not fnmatch.filter(MEASURES, pattern):
            parser.error(f"there is no measure {pattern!r}; known: {', '.join(MEASURES)}")
    found.nets, found.curves = (
        list(known) if "all" in given else [name for name in given if name != "none"]
        for given, known in ((found.nets, NETS), (found.curves, CURVES))
    )
    return found


def measure(arguments: argparse.Namespace, console: Console, cache: str) -> Iterator[Record]:
    """All that the arguments name: a record a network, and one of the curves, as each is done."""
    few = {"batch": arguments.batch, "few": arguments.few, "gib": arguments.gib}
    options = Options(arguments.rounds, arguments.seconds, cache, **few)
    wanted = {name for pattern in arguments.measures for name in fnmatch.filter(MEASURES, pattern)}
    wanted -= {name for pattern in arguments.without for name in fnmatch.filter(MEASURES, pattern)}
    names = [name for name in MEASURES if name in wanted or name == "matmul"]
    peers = importable(arguments.peers, console.print)
    base = {**about(arguments.note, options, peers), "rows": [], "ratios": [], "curves": [], "starts": {}}
    imports = _imports(arguments.rounds) if arguments.starts else {}
    for net in arguments.nets:
        rows, found, device = time_net(net, names, peers, options, arguments.memory)
        console.print(printed(net, tables.MEASURES, list(map(measure_line, rows))))
        begun = {**imports, "first_step": {net: starts.first_step(net)}} if arguments.starts else {}
        yield {**base, "device": device[0], "rows": rows, "ratios": found, "starts": begun}
    curves = []
    for name in arguments.curves:
        curve, device = time_curve(name, options)
        curves.append(curve)
        console.print(f"{name}: timed at {curve['sizes']}")
    if curves:
        console.print(printed("curves", tables.CURVES, list(map(tables.curve_line, curves))))
        yield {**base, "device": device[0], "curves": curves}


def _imports(rounds: int) -> dict[str, list[float]]:
    jax, ours = zip(*starts.imports(rounds), strict=True)
    return {"jax": quartiles(list(jax)), "mixtrain_jax": quartiles(list(ours))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the arguments name, print tables, keep the figures if asked to; the exit code."""
    found, console = parse(arguments), Console(width=None if sys.stdout.isatty() else 160)
    if not found.page:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # and end the process that measures
        with tempfile.TemporaryDirectory() as cache:
            for record in measure(found, console, cache):
                if lines := tables.target_lines(record):
                    console.print(printed("targets", tables.TARGETS, lines))
                if found.json:
                    with found.json.open("a") as file:
                        file.write(json.dumps(record, separators=(",", ":")) + "\n")
        return 0
    from timed import page  # wants matplotlib

    source = found.json or Path(__file__).with_suffix(".jsonl")
    records = [json.loads(line) for line in source.read_text().splitlines()]
    for name, content in page.render(records, found.out.name).items():
        found.out.with_name(name).write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
