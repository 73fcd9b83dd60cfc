"""The cells of the tables, on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timed.targets import FIRST_STEP, IMPORT, aimed

Record = Mapping[str, Any]

MEASURES = (
    *("measure", "batch", "library", "ms", "quartiles", "CPU ms", "images/s", "compile s", "GFLOP", "share of peak"),
    *("MiB", "MiB grown"),
)
TARGETS = ("what", "network", "target", "measured", "quartiles", "counted by XLA", "met")
CURVES = ("grows", "what", "sizes", "time", "expected", "memory", "expected", "FLOPs")


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits, nothing where there is none."""
    if value is None:
        return ""
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) < 0.1 else f"{value:#.{digits}g}".rstrip(".")


def span(quartiles: Sequence[float], scale: float = 1.0) -> str:
    """First to third quartile."""
    return f"{number(scale * quartiles[0])} to {number(scale * quartiles[2])}"


def cells(row: Record) -> list[str]:
    """What was measured, as the headings of a table have it."""
    seconds, memory = row["seconds"], row.get("bytes")
    rate = number(row["batch"] / seconds[1]) if row["measure"].startswith("certify-") else ""
    share = row.get("share_of_peak")
    return [
        *(number(1e3 * seconds[1]), span(seconds, 1e3), number(1e3 * row["cpu_seconds"]), rate),
        *(number(row["compile_seconds"]), number(row["flops"] / 1e9 if row.get("flops") else None)),
        *("" if share is None else f"{100 * share:.0f} %", number(memory / 2**20 if memory else None)),
        number(row.get("peak_mib")),
    ]


def target_lines(record: Record) -> list[list[str]]:
    """What is aimed at, network, target, measured, quartiles, counted by XLA, met."""
    lines = []
    for target, limit, row, met in aimed(record["ratios"], "(gpu)" in record["device"]):
        sign, peer = "≥" if target.at_least else "≤", row["over"].partition("@")[2]
        measured = f"{number(row['ratio'][1])}{f' ({peer})' if peer else ''}"
        counted = number(row.get("flops")) if not target.at_least else ""
        met_text = "yes" if met else "no"
        lines.append([target.what, row["net"], f"{sign} {limit:g}", measured, span(row["ratio"]), counted, met_text])
    if starts := record["starts"]:
        after = starts["mixtrain_jax"]
        met_text = "yes" if after[1] < IMPORT else "no"
        beyond = f"`import mixtrain_jax` after `import jax` ({number(starts['jax'][1])} s), seconds"
        lines.append([beyond, "", f"< {IMPORT:g}", number(after[1]), span(after), "", met_text])
        for net, (cold, warm) in starts["first_step"].items():
            what = "seconds from the start of a process to its first step, warm compilation cache"
            met_text = "yes" if warm < FIRST_STEP else "no"
            lines.append([what, net, f"< {FIRST_STEP:g}", f"{number(warm)} (cold {number(cold)})", "", "", met_text])
    return lines


def curve_line(curve: Record) -> list[str]:
    """What grows, what is timed, sizes, fitted and expected exponents of time and of memory, and that of FLOPs."""
    fitted, expected = curve["fitted"], curve["expected"]
    sizes = ", ".join(map(str, curve["sizes"]))
    found = {key: "" if value is None else f"{value:.2f}" for key, value in fitted.items()}
    times, memory = (found["seconds"], expected["seconds"]), (found["bytes"], expected["bytes"])
    return [curve["curve"], curve["what"], sizes, *times, *memory, found["flops"]]


def table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
