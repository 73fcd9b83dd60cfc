"""From finished runs to docs/results.md: records beside it, tables and plots made from the records alone.

    python benchmarks/results.py runs/subsampling-digits/* runs/mnist_small_0.1-*
    python benchmarks/results.py

The first adds runs to docs/results.jsonl, or replaces what is known of them, and writes the page anew; the second only
writes the page. Runs of `train.py` belong to the group "configs", runs of `benchmarks/study.py` to the group that their
folder lies in, and --group says otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from results_page import records as store
from results_page.numbers import by
from results_page.paper import paper
from results_page.pictures import draw_subsampling, draw_weights
from results_page.records import Record
from results_page.studies import measured, subsampling, timing, weights

from mixtrain_jax.errors import MixtrainError
from mixtrain_jax.report.plots import STYLE, svg

PAGE = """# Results

Every number is of the whole test set; certificates hold in floating point (`sound=True`). A run is measured as it
ended, or where its config says `choose = "best"` at its best on held-out training examples, which also choose settings:
nothing is chosen on test images.
Accuracies are in %, mean over seeds ± standard deviation of one seed, from two seeds on. A difference comes with its
standard error, paired by seed where it can be, and counts as noise up to two of them; with two or three seeds
that error is itself rough. "-" stands for what is not known or not run.

## The paper's table beside ours

{paper}

## How few sound examples a step are enough

A batch of n examples carries the clean loss on all and the sound robust loss on k of them, drawn anew each step. "Equal
epochs" trains every share for as long; "equal time" gives each share as many epochs as fit into the time of all
examples, by what a step costs, all shares timed in turn within one process. "Training time" is by the clock of the
runs, which is noisy. Both are multiples of what all examples take.

{subsampling}

## Time

"To 50 %, s" is the time until that share of the held-out training examples is verified at the full radius: the step
where that is first measured, times what a step costs, mean over seeds. Compilation and measuring are not counted.

{time}

## Dynamic against fixed weights

Fixed weights are `convex`, with the robust loss as that share of the whole. Their front holds the points that no other
fixed weight beats in both accuracies. It is drawn from means over seeds and taken as exact, so standard errors against
it are of the dynamic runs alone.

{weights}

## How it was measured

{measured}

Runs are made by `python train.py` and `python benchmarks/study.py`. `python benchmarks/results.py RUN ...` puts them on
this page; `python benchmarks/results.py` writes it anew from [{record}]({record}), which holds a line a run: config,
accuracies, versions, and the SHA-256 of its parameters.
"""
MISSING = {
    "paper": ("python train.py mnist_small_0.1 --seed 0", "runs/mnist_small_0.1-*"),
    "subsampling": (
        "python benchmarks/study.py subsampling --data digits --bounds ibp crown_ibp symbolic",
        "runs/subsampling-digits/*",
    ),
    "time": ("python benchmarks/study.py time --data digits", "runs/time-digits/*"),
    "weights": ("python benchmarks/study.py weights --data digits", "runs/weights-digits/*"),
    "measured": ("python train.py", "RUN ..."),
}


def render(found: Sequence[Record], stem: str = "results") -> dict[str, str]:
    """The page and its pictures, texts by name of file, a pure function of the records."""
    runs = [record for record in found if "name" in record]
    steps = {record["group"]: record["steps"] for record in found if "steps" in record}
    sections: dict[str, list[str]] = {name: [] for name in MISSING}
    pictures = {}
    for group, mine in by(runs, lambda run: run["group"]).items():
        kind, picture = group.partition("-")[0], f"{stem}-{group}.svg"
        if kind == "configs":
            sections["paper"].append(paper(mine))
        elif kind == "subsampling":
            sections[kind].append(subsampling(group, mine, steps.get(group, {}), picture))
            pictures[picture] = (draw_subsampling, mine)
        elif kind == "weights":
            sections[kind].append(weights(group, mine, picture))
            pictures[picture] = (draw_weights, mine)
        else:
            sections["time"].append(timing(group, mine, steps.get(group, {})))
    if runs:
        sections["measured"].append(measured(runs))
    filled = {name: "\n\n".join(parts) or _missing(*MISSING[name]) for name, parts in sections.items()}
    with matplotlib.rc_context(STYLE):
        drawn = {name: svg(draw(mine)) for name, (draw, mine) in pictures.items()}
    return {**drawn, f"{stem}.md": PAGE.format(**filled, record=f"{stem}.jsonl")}


def _missing(command: str, folders: str) -> str:
    return f"Not run yet: `{command}`, then `python benchmarks/results.py {folders}`."


def main(arguments: Sequence[str]) -> int:
    """Read, record, render; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--group", help="group of these runs, as if their folder were called so")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="stem of the files that are written")
    args = parser.parse_args(arguments)
    record = args.out.with_name(f"{args.out.name}.jsonl")
    try:
        merged, stale = store.merge(store.load(record), store.gather(args.runs, args.group))
        files = {record.name: store.dump(merged), **render(merged, args.out.name)}
        store.write({record.with_name(name): content for name, content in files.items()})
    except MixtrainError as error:
        print(f"results.py: {error}", file=sys.stderr)
        return error.exit_code
    for old in stale:
        print(f"Dropped {old['name']} of {old['group']}, seed {old['config']['seed']}: it was run with another config.")
    print(f"{sum('name' in known for known in merged)} runs on {args.out}.md")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
