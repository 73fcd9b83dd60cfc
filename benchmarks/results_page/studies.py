"""What each study says, as Markdown made from its records."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from results_page.numbers import (
    NONE,
    Regimes,
    accuracies,
    average,
    brief,
    by,
    by_bound,
    by_name,
    by_rule,
    difference,
    in_words,
    is_fixed,
    percent,
    point,
    regimes,
    seconds,
    share_text,
    signed,
    table,
)
from results_page.paper import title
from results_page.records import Record

Seconds = Mapping[str, float]  # of a step, by name
_TRAINERS = ("standard", "pgd", "robust", "mixtrain")
_RATIOS = """The paper, over the whole of training: 15 times for verifiably robust training, by the method of Wong and
Kolter, and 3 times for adversarial training."""


def subsampling(group: str, runs: Sequence[Record], steps: Mapping[str, Seconds], picture: str) -> str:
    """A study of shares: the picture, and what it says bound by bound."""
    head = ("share", "a step costs", "equal epochs: clean", "verified", "training time")
    timed = ("equal time: epochs", "clean", "verified", "verified, less that of all")
    parts = [_heading(group, runs), f"![Verified accuracy against the share of sound examples]({picture})"]
    for bound, mine in by_bound(runs).items():
        found = regimes(mine)
        shares = sorted(found["epochs"].keys() | found["time"].keys())
        rows = [_share_row(share, found, steps.get(bound, {})) for share in shares]
        parts += [_subheading(bound, mine), table((*head, *timed), rows), *_share_words(found)]
    return "\n\n".join(parts)


def _share_row(share: int, found: Regimes, cost: Seconds) -> tuple[str, ...]:
    alike, timed, every = found["epochs"].get(share, []), found["time"].get(share, []), found["epochs"].get(1, [])
    comparable = timed and every and share > 1
    return (
        share_text(share),
        brief(cost[str(share)] / cost["1"] if str(share) in cost and "1" in cost else None),
        *accuracies(alike, "clean", "verified"),
        brief(seconds(alike) / seconds(every) if alike and every else None),
        ", ".join(str(epochs) for epochs in sorted({run["config"]["training.epochs"] for run in timed})) or NONE,
        *accuracies(timed, "clean", "verified"),
        signed(*difference(percent(timed, "verified"), percent(every, "verified"))) if comparable else NONE,
    )


def _share_words(found: Regimes) -> list[str]:
    """A sentence for each regime, computed from the runs."""
    sentences = []
    for regime in ("time", "epochs"):
        shares = dict(found[regime])
        if (every := percent(shares.pop(1, []), "verified")) and shares:
            said = {share: in_words(*difference(percent(some, "verified"), every)) for share, some in shares.items()}
            listed = "; ".join(f"1 in {share}: {words}" for share, words in said.items())
            sentences.append(f"At equal {regime}, verified accuracy against all examples: {listed}.")
    return sentences


def timing(group: str, runs: Sequence[Record], steps: Mapping[str, Seconds]) -> str:
    """A study of trainers: what they cost, and when they reach what."""
    parts = [_heading(group, runs)]
    for bound, mine in by_bound(runs).items():
        trainers = dict(sorted(by_name(mine).items(), key=lambda item: _trainer_order(item[1][0]["config"])))
        known = steps.get(bound, {})
        # Costs that were not measured together say nothing against each other, so it is all of them or none.
        together = trainers.keys() <= known.keys()
        cost = {name: known[name] if together else _clock(some) for name, some in trainers.items()}
        goals = _goals([run for run in mine if run["config"]["objective.name"] in ("robust", "mixtrain")])
        reached = {name: [_reach(some, goal, cost[name]) for goal in goals] for name, some in trainers.items()}
        base = cost.get(f"{bound}-standard")
        rows = [
            (
                name.removeprefix(f"{bound}-"),
                brief(1e3 * cost[name]),
                brief(cost[name] / base if base else None),
                brief(cost[name] * _steps(some[0]) / some[0]["config"]["training.epochs"]),
                *accuracies(some, "clean", "attacked", "verified"),
                *map(brief, reached[name]),
            )
            for name, some in trainers.items()
        ]
        head = ("trainer", "a step, ms", "against standard", "an epoch, s", "clean", "attacked", "verified")
        how = "all trainers in turn within one process" if together else "by the clock of each run, which is noisy"
        parts += [
            f"{_subheading(bound, mine)} Steps were timed {how}.",
            table((*head, *(f"to {100 * goal:.0f} %, s" for goal in goals)), rows),
            *_ratios(bound, cost, reached),
        ]
    return "\n\n".join(parts)


def _trainer_order(config: Mapping[str, Any]) -> tuple[int, int]:
    return _TRAINERS.index(config["objective.name"]), config.get("objective.steps", 0)


def _steps(run: Record) -> int:
    """Steps of a whole run: the last row of a log is of the last step."""
    return run["curve"][-1][0]


def _clock(runs: Sequence[Record]) -> float:
    return statistics.fmean(run["summary"]["seconds"] / _steps(run) for run in runs)


def _goals(runs: Sequence[Record]) -> list[float]:
    """Half, three quarters and nine tenths of the least that any of the runs ended with, in whole percent."""
    least = min((run["curve"][-1][3] for run in runs), default=0.0)
    return sorted({math.floor(100 * part * least) / 100 for part in (0.5, 0.75, 0.9)} - {0.0})


def _reach(runs: Sequence[Record], goal: float, cost: float) -> float | None:
    """Mean seconds until the held-out verified accuracy is first there, None where a run never gets there."""
    steps = [next((row[0] for row in run["curve"] if row[3] >= goal), None) for run in runs]
    found = [step for step in steps if step is not None]
    return cost * statistics.fmean(found) if len(found) == len(steps) else None


def _ratios(bound: str, cost: Seconds, reached: Mapping[str, Sequence[float | None]]) -> list[str]:
    """Costs against mixtrain beside the paper's figures."""
    few, every = f"{bound}-mixtrain", f"{bound}-robust"
    dearer = [name for name in cost if name not in (few, f"{bound}-standard")]
    if few not in cost or not dearer:
        return []
    said = [f"of `{name.removeprefix(f'{bound}-')}` {brief(cost[name] / cost[few])} times" for name in dearer]
    words = [f"A step {', '.join(said)} that of `mixtrain`."]
    if (last := reached[few][-1:]) and last[0] and (slow := reached.get(every, [None])[-1]):
        words.append(f"To the highest of these accuracies `robust` takes {brief(slow / last[0])} times as long.")
    return [" ".join([*words, _RATIOS])]


def weights(group: str, runs: Sequence[Record], picture: str) -> str:
    """A study of weights: the picture, and each rule against the front of fixed weights."""
    head = ("rule", "clean", "verified", "verified, less that of fixed weights at the same clean accuracy")
    parts = [_heading(group, runs), f"![Clean against verified accuracy of fixed and dynamic weights]({picture})"]
    for bound, mine in by_bound(runs).items():
        rules = by_rule(mine)
        fixed = front(point(some) for some in rules.values() if is_fixed(some))
        rows = [
            (name, *accuracies(some, "clean", "verified"), NONE if is_fixed(some) or not fixed else _above(some, fixed))
            for name, some in rules.items()
        ]
        parts += [_subheading(bound, mine), table(head, rows)]
    return "\n\n".join(parts)


def front(fixed: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points (clean, verified) that no other one beats in both, by clean accuracy."""
    kept: list[tuple[float, float]] = []
    for clean, verified in sorted(set(fixed), reverse=True):
        if not kept or verified > kept[-1][1]:
            kept.append((clean, verified))
    return kept[::-1]


def _above(runs: Sequence[Record], fixed: Sequence[tuple[float, float]]) -> str:
    """How far runs lie above the front at their clean accuracy, in words."""
    clean, verified = percent(runs, "clean"), percent(runs, "verified")
    if average(runs, "clean") > fixed[-1][0]:
        return "cleaner than every fixed weight"
    # Below its least clean accuracy the front goes on flat: its end has more of both.
    line = dict(zip(clean, np.interp(list(clean.values()), *np.transpose(fixed)).tolist(), strict=True))
    at_mean = float(np.interp(average(runs, "clean"), *np.transpose(fixed)))
    return in_words(average(runs, "verified") - at_mean, difference(verified, line)[1])


def measured(runs: Sequence[Record]) -> str:
    """Software, devices and seeds of all records."""

    def how(run: Record) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in sorted(run["summary"]["versions"].items()))
        return f"{run['summary']['device']}; {versions}"

    return "\n".join(
        f"- {_count(len(some), 'run')} of {', '.join(f'`{group}`' for group in by(some, lambda run: run['group']))}, "
        f"seeds {', '.join(map(str, sorted({run['config']['seed'] for run in some})))}: {found}."
        for found, some in by(runs, how).items()
    )


def _heading(group: str, runs: Sequence[Record]) -> str:
    return f"### {'; '.join(sorted({title(run['config']) for run in runs}))} (`{group}`)"


def _subheading(bound: str, runs: Sequence[Record]) -> str:
    counts = sorted({len(some) for some in by_name(runs).values()})
    seeds = _count(counts[0], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    epochs = sorted({run["config"]["training.epochs"] for run in runs})
    trained = f", {_count(epochs[0], 'epoch')}" if len(epochs) == 1 else ""
    return f"**`{bound}`**, {seeds} each{trained}."


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
