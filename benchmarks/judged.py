"""From reports of the judge to docs/judged.md: a table for every data set and threat, a column for every model.

    mixtrain judge runs/time-digits/ibp-robust-0 --examples 0 --out judgements/digits-robust
    python benchmarks/judged.py judgements/digits-*
    python benchmarks/judged.py

The first adds reports to docs/judged.jsonl, or replaces what is known of their models, and writes the page anew; the
second only writes the page. The name of a folder is the name of its column, without the part that is that of the data.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results_page.numbers import by, table
from results_page.records import dump, load, write

from mixtrain_jax.errors import ConfigError, MixtrainError

Record = dict[str, Any]

PAGE = """# What the judge found

Accuracies in %, of the images that each heading names. `verified` and `attacked` are the two sides of robust accuracy:
it is at least the one and at most the other. Every adversarial input was held to the ball in float64 and classified
anew, and no image was both proved and broken: the judge ends with an error where one is.
Attacks and bounds come in the order of the rows, each on what the ones before it left.

{tables}

`python benchmarks/judged.py JUDGEMENT ...` puts reports of `mixtrain judge` on this page; it is written from
[judged.jsonl](judged.jsonl) alone.
"""
KEPT = (
    *("model", "data", "eps", "norm", "examples", "clean_accuracy", "pgd_20_accuracy", "attacked_accuracy"),
    *("verified_accuracy", "broken_by", "verified_by", "seconds", "warnings", "seed", "params_sha256", "device"),
    *("jax", "attacks"),
)


def read(folder: Path) -> Record:
    """The record of a report.

    Raises:
      ConfigError: where there is none, or it is damaged.
    """
    try:
        found = json.loads((folder / "judgement.json").read_text())
        record = {name: found[name] for name in KEPT}
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{folder} holds no whole report of the judge ({error!r}). Judge the model again.") from error
    record["skip_proved"] = found.get("skip_proved", False)
    return {**record, "name": folder.resolve().name.removeprefix(f"{record['data']}-")}


def identity(record: Record) -> tuple[Any, ...]:
    """What a record is of."""
    return record["data"], record["norm"], record["eps"], record["examples"], record["name"]


def render(records: Sequence[Record]) -> str:
    """The page, a pure function of the records."""
    parts = []
    for (data, norm, eps, examples), mine in by(records, lambda record: identity(record)[:4]).items():
        columns = sorted(mine, key=lambda record: record["verified_accuracy"])
        names = list(dict.fromkeys(name for record in columns for name in record["seconds"]))
        rows = [
            (words, *(f"{100 * record[key]:.1f}" for record in columns))
            for words, key in [
                ("clean", "clean_accuracy"),
                ("withstand PGD-20", "pgd_20_accuracy"),
                ("**attacked**: withstand all", "attacked_accuracy"),
                ("**verified**", "verified_accuracy"),
            ]
        ]
        gaps = [100 * (record["attacked_accuracy"] - record["verified_accuracy"]) for record in columns]
        rows.append(("neither proved nor broken", *(f"{gap:.1f}" for gap in gaps)))
        rows += [(f"`{name}`", *(_did(record, name) for record in columns)) for name in names]
        rows.append(("seconds in all", *(f"{sum(record['seconds'].values()):.0f}" for record in columns)))
        first = columns[0]
        parts += [
            f"## {data}, {norm} eps {eps:g}, {examples:,} test images",
            table(("", *(record["name"] for record in columns)), rows),
            f"Below the shares: images that an attack broke, or that a bound proved. Suite `{first['attacks']}`, seed "
            f"{first['seed']}; {first['device']}, jax {first['jax']}.",
            *(
                f"Of {record['name']}: what the first bound proved was left out of all attacks but the first."
                for record in columns
                if record.get("skip_proved")
            ),
            *(f"Of {record['name']}: {_sentence(text)}" for record in columns for text in record["warnings"]),
        ]
    return PAGE.format(tables="\n\n".join(parts) or "Nothing judged yet.")


def _did(record: Record, name: str) -> str:
    if name not in record["seconds"]:
        return "-"
    return str(record["broken_by"].get(name, 0) + record["verified_by"].get(name, 0))


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def main(arguments: Sequence[str]) -> int:
    """Read, record, render; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judgements", nargs="*", type=Path, metavar="JUDGEMENT", help="folder of a report")
    parser.add_argument("--out", type=Path, default=Path("docs/judged"), help="stem of the files that are written")
    args = parser.parse_args(arguments)
    stored = args.out.with_name(f"{args.out.name}.jsonl")
    try:
        known = {identity(record): record for record in load(stored)}
        known |= {identity(record): record for record in map(read, args.judgements)}
        records = [known[key] for key in sorted(known)]
        write({stored: dump(records), args.out.with_name(f"{args.out.name}.md"): render(records)})
    except MixtrainError as error:
        print(f"judged.py: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{len(records)} models on {args.out}.md")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
