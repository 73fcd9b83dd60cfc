"""What runs say together: means over seeds, differences and their errors, runs by what they have in common."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args

from mixtrain_jax.bounds.methods import MethodName
from results_page.records import Record

BySeed = dict[int, float]
Regimes = dict[str, dict[int, list[Record]]]
NONE = "-"
RULES = ("convex", "constrained", "staircase", "constant", "ramped")  # in the order they are shown
_SETTING = {"convex": "share", "constrained": "target", "constant": "weight", "ramped": "weight"}
_SETTING = {name: f"mixing.{field}" for name, field in _SETTING.items()}


def percent(runs: Iterable[Record], what: str) -> BySeed:
    """An accuracy of runs of one config, in %, by seed."""
    return {run["config"]["seed"]: 100 * run["summary"][f"{what}_accuracy"] for run in runs}


def average(runs: Iterable[Record], what: str) -> float:
    """An accuracy of runs of one config, in %, mean over seeds."""
    return statistics.fmean(percent(runs, what).values())


def seconds(runs: Iterable[Record]) -> float:
    """Mean seconds of training by the clock."""
    return statistics.fmean(run["summary"]["seconds"] for run in runs)


def deviation(values: Iterable[float]) -> float:
    """Standard deviation, 0 of a single value."""
    return statistics.stdev(values) if len(values := list(values)) > 1 else 0.0


def with_spread(values: BySeed) -> str:
    """Mean, and from two seeds on the standard deviation of one."""
    if not values:
        return NONE
    spread = f" ± {deviation(values.values()):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values.values()):.2f}{spread}"


def accuracies(runs: Sequence[Record], *names: str) -> tuple[str, ...]:
    """Cells of a table."""
    return tuple(with_spread(percent(runs, name)) for name in names)


def brief(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    if value is None:
        return NONE
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{digits}f}"


def difference(these: BySeed, those: BySeed) -> tuple[float, float | None]:
    """Difference of means and its standard error: by seed where two seeds are common, None with too few seeds."""
    if len(common := sorted(these.keys() & those.keys())) > 1:
        return _mean_error([these[seed] - those[seed] for seed in common])
    (mean, error), (other, other_error) = (_mean_error(list(values.values())) for values in (these, those))
    return mean - other, None if error is None or other_error is None else math.hypot(error, other_error)


def _mean_error(values: Sequence[float]) -> tuple[float, float | None]:
    error = deviation(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def signed(value: float, error: float | None) -> str:
    """A difference and its standard error."""
    return f"{value:+.2f}" + ("" if error is None else f" ± {error:.2f}")


def in_words(value: float, error: float | None) -> str:
    """What a difference of accuracies says."""
    if error is None:
        return f"{signed(value, error)} points, of noise unknown with one seed"
    if abs(value) <= max(2 * error, 1e-9):
        return f"no difference beyond noise ({signed(value, error)})"
    return f"{abs(value):.2f} ± {error:.2f} points {'more' if value > 0 else 'less'}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def by(runs: Iterable[Record], key: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    """Runs by a key, in the order of the keys."""
    return {name: list(found) for name, found in itertools.groupby(sorted(runs, key=key), key)}


def by_name(runs: Iterable[Record]) -> dict[str, list[Record]]:
    """Runs of one config each, but for the seed."""
    return by(runs, lambda run: run["name"])


def by_bound(runs: Iterable[Record]) -> dict[str, list[Record]]:
    """Runs by the bounds they were trained with, the cheapest first."""
    found = by(runs, lambda run: run["config"].get("objective.bound", run["name"].partition("-")[0]))
    return {bound: found[bound] for bound in get_args(MethodName) if bound in found}


def by_rule(runs: Iterable[Record]) -> dict[str, list[Record]]:
    """Runs by mixing rule and its setting, fixed weights first."""

    def order(item: tuple[str, list[Record]]) -> tuple[int, float]:
        config = item[1][0]["config"]
        return RULES.index(config["mixing.name"]), config.get(_SETTING.get(config["mixing.name"], ""), 0.0)

    return dict(sorted(by(runs, _rule).items(), key=order))


def _rule(run: Record) -> str:
    config = run["config"]
    name = config["mixing.name"]
    return f"{name} {config[_SETTING[name]]:g}" if name in _SETTING else name


def is_fixed(runs: Sequence[Record]) -> bool:
    """Whether the weight of these runs stands still."""
    return runs[0]["config"]["mixing.name"] == "convex"


def point(runs: Sequence[Record]) -> tuple[float, float]:
    """Mean clean and mean verified accuracy, in %."""
    return average(runs, "clean"), average(runs, "verified")


def one_in(config: Mapping[str, Any]) -> int:
    """Of how many examples one carries the robust loss."""
    n = config["training.batch_size"]
    return round(n / (config["objective.examples"] or n))


def share_text(share: int) -> str:
    """1, 1/2, 1/4."""
    return "1" if share == 1 else f"1/{share}"


def regimes(runs: Iterable[Record]) -> Regimes:
    """Runs of one bound by regime, "epochs" or "time", and share; those with all examples belong to both."""
    runs = sorted(runs, key=lambda run: one_in(run["config"]))
    epochs = {run["config"]["training.epochs"] for run in runs if one_in(run["config"]) == 1}
    found: Regimes = {"epochs": {}, "time": {}}
    for run in runs:
        share = one_in(run["config"])
        # Where a step costs the same with fewer examples, equal time is equal epochs, and only the name tells.
        timed = run["name"].endswith("-time") or (epochs and run["config"]["training.epochs"] not in epochs)
        for regime in found if share == 1 else ("time",) if timed else ("epochs",):
            found[regime].setdefault(share, []).append(run)
    return found
