"""What is compared with what, and what is aimed at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from typing import Any, NamedTuple

from timed.measures import MEASURES
from timed.turns import ratio
from timed.worker import Found

AUTHORS = 1.07  # CPU seconds that the code of the paper's authors takes for 10 images of mnist_small, symbolic bounds


class Target(NamedTuple):
    """A limit of a ratio: at most so much, or of a peer's time over ours at least so much."""

    what: str
    over: str  # a pattern: PEER stands for the fastest one
    under: str
    limit: float
    at_least: bool = False
    on_gpu: float | None = None  # the limit there, where it is another


TARGETS = (
    Target("step of `mixtrain`, IBP of 1 in 8, over a standard step", "step-ibp-8", "step-standard", 1.30),
    Target("step of `mixtrain`, CROWN-IBP of 1 in 8, over a standard step", "step-crown_ibp-8", "step-standard", 2.6),
    Target("step of `robust`, IBP of all, over a standard step", "step-ibp-robust", "step-standard", 3.0),
    Target("IBP over a forward pass", "ibp", "forward", 2.1),
    Target("IBP and gradient: the fastest peer over ours", "ibp-gradient@PEER", "ibp-gradient", 1.5, True, 3.0),
    Target("CROWN-IBP: the fastest peer over ours", "crown_ibp-margins@PEER", "crown_ibp-margins", 1.5, True, 3.0),
    Target(
        "CROWN-IBP and gradient: the fastest peer over ours",
        *("crown_ibp-gradient@PEER", "crown_ibp-gradient", 1.5, True, 3.0),
    ),
    Target("CROWN: the fastest peer over ours", "crown-margins@PEER", "crown-margins", 1.5, True, 3.0),
    Target("symbolic: the authors' CPU seconds over ours", "authors", "symbolic-margins", 10.0, True),
    Target("IBP margins of 1,000 classes over those of the net's own", "ibp-margins-1000", "ibp-margins", 1.2),
    Target("the same with gradient", "ibp-gradient-1000", "ibp-gradient", 1.2),
    Target("PGD-20 over 20 gradients", "pgd-20", "gradients-20", 1.2),
)
FIRST_STEP, IMPORT = 10.0, 0.5  # seconds at most: to a first step with a warm cache; of the import beyond that of jax


def pairs() -> list[tuple[str, str]]:
    """All that is divided by something else of the same network, ours."""
    steps = [(name, "step-standard") for name in MEASURES if name.startswith("step-") and name != "step-standard"]
    sound = [(name, f"{name.removeprefix('certify-')}-margins") for name in MEASURES if name.startswith("certify-")]
    aimed = [(target.over, target.under) for target in TARGETS if target.over in MEASURES]
    return list(dict.fromkeys([*steps, *sound, *aimed]))


def ratios(net: str, found: Found, seconds: Mapping[str, Mapping[int, float]]) -> list[dict[str, Any]]:
    """Quartiles of the ratios of one network, over the rounds, and what XLA's counts of FLOPs say.

    Args:
      net: its name.
      found: what is known of it.
      seconds: by measure and round, what the ratios are of: wall seconds or CPU seconds.
    """
    peers = [(name, name.partition("@")[0]) for name in seconds if "@" in name]
    rows = []
    for over, under in [*pairs(), *peers]:
        if quartiles := ratio(seconds.get(over, {}), seconds.get(under, {})):
            counts = [found.facts[name]["flops"] for name in (over, under)]
            row = {"net": net, "over": over, "under": under, "ratio": quartiles}
            rows.append(row | ({"flops": counts[0] / counts[1]} if all(counts) else {}))
    symbolic = found.cpu.get("symbolic-margins", {})
    if net == "mnist_small" and symbolic and found.facts["symbolic-margins"]["batch"] == 10:
        authors = ratio(dict.fromkeys(symbolic, AUTHORS), symbolic)
        rows.append({"net": net, "over": "authors", "under": "symbolic-margins", "ratio": authors})
    return rows


def aimed(rows: Sequence[Mapping[str, Any]], gpu: bool) -> list[tuple[Target, float, Mapping[str, Any], bool]]:
    """Of every ratio with a target: the target, its limit, the ratio and whether it is met; of peers the fastest."""
    found = []
    for target in TARGETS:
        pattern = target.over.replace("PEER", "*")
        limit = target.on_gpu if gpu and target.on_gpu else target.limit
        mine = [row for row in rows if row["under"] == target.under and fnmatch(row["over"], pattern)]
        for net in dict.fromkeys(row["net"] for row in mine):
            row = min((row for row in mine if row["net"] == net), key=lambda row: row["ratio"][1])
            value = row["ratio"][1]
            found.append((target, limit, row, value >= limit if target.at_least else value <= limit))
    return found
