"""The record of `speed.py` as a page with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from mixtrain_jax.report.plots import ATTACKED, CLEAN, NEUTRAL, STYLE, VERIFIED, svg
from timed.nets import NETS
from timed.tables import CURVES as CURVE_HEADINGS
from timed.tables import MEASURES, Record, cells, curve_line, number, span, table, target_lines
from timed.tables import TARGETS as TARGET_HEADINGS
from timed.targets import TARGETS

PAGE = """# Speed

Made by `python benchmarks/speed.py --page` from [{source}](../benchmarks/{source}), a line a run of
`benchmarks/speed.py`. All measures of a network take turns in one process, round by round, compilation apart. Times are
medians with quartiles, and a ratio is the median of the ratios of the rounds: on a noisy machine trust ratios, not
times. On one core of a CPU ratios are of CPU seconds, since others may use that core too; else of wall seconds.

A later run replaces what is known of the measures that it repeats. "Counted by XLA" is the same ratio of the floating
point operations in the compiled programs, of all examples at once where they are taken a few at a time; those in other
loops are not known and left out. A share of the peak is of the rate of one large float32 matrix product in the same
run. MiB are those of results and of what lies between, as XLA plans it, "MiB grown" is by how much the peak of a fresh
process grows.

{devices}
"""
DEVICE = """## {device}

{about}

### Targets

{targets}

### Training steps

Multiples of an ordinary training step (clean gradient and update) of the same network on the same batch. `ibp-8` is a
step of `mixtrain` with IBP of one example in eight, `ibp-robust` of `robust` with IBP of all, `pgd-7` adversarial
training.

{steps}

### Everything

{everything}
{curves}"""
CURVES = """
### How costs grow

Exponents of a power of the size, fitted by least squares of logarithms. At these small sizes a part of the cost does
not grow, so they lie below what is expected of large ones.

{table}

![Time against size]({picture})
"""


def merged(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """What is known of every device, later records replacing earlier ones measure by measure."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        used = f"{record['cores']} core{'s' if record['cores'] > 1 else ''} used"
        known = found.setdefault(f"{record['device']}, {used}", {"rows": {}, "ratios": {}, "curves": {}, "starts": {}})
        known["rows"] |= {(row["net"], row["measure"], row["library"]): row for row in record["rows"]}
        known["ratios"] |= {(row["net"], row["over"], row["under"]): row for row in record["ratios"]}
        known["curves"] |= {curve["curve"]: curve for curve in record["curves"]}
        if new := record["starts"]:
            steps = {**known["starts"].get("first_step", {}), **new["first_step"]}
            known["starts"] = {**new, "first_step": steps}
        known.setdefault("records", []).append(record)
    for device, known in found.items():
        order = {net: i for i, net in enumerate(NETS)}
        for key in ("rows", "ratios"):
            known[key] = sorted(known[key].values(), key=lambda row: order.get(row["net"], len(order)))
        known |= {"device": device, "curves": list(known["curves"].values())}
    return found


def render(records: Sequence[Record], stem: str = "speed", source: str = "speed.jsonl") -> dict[str, str]:
    """The page and its pictures, texts by name of file, a pure function of the records."""
    sections, pictures = [], {}
    for i, (device, known) in enumerate(merged(records).items()):
        names = {what: f"{stem}-{what}{i or ''}.svg" for what in ("steps", "curves")}
        steps = _steps(known)
        with matplotlib.rc_context(STYLE):
            if steps:
                pictures[names["steps"]] = svg(draw_steps(known))
            if known["curves"]:
                pictures[names["curves"]] = svg(draw_curves(known["curves"]))
        curves = ""
        if known["curves"]:
            lines = [curve_line(curve) for curve in known["curves"]]
            curves = CURVES.format(table=table(CURVE_HEADINGS, lines), picture=names["curves"])
        sections.append(
            DEVICE.format(
                device=device,
                about=_about(known["records"]),
                targets=table(TARGET_HEADINGS, target_lines(known)),
                steps=f"{steps}\n\n![Cost of training steps]({names['steps']})" if steps else "None timed.",
                everything=_everything(known["rows"]),
                curves=curves,
            )
        )
    return {**pictures, f"{stem}.md": PAGE.format(devices="\n".join(sections), source=source)}


def _about(records: Sequence[Record]) -> str:
    lines = []
    for record in records:
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        nets = ", ".join(dict.fromkeys(row["net"] for row in record["rows"]))
        curves = f"{len(record['curves'])} curves" if record["curves"] else ""
        what = "; ".join(part for part in (nets, curves, record["note"]) if part)
        lines.append(f"- {record['date']} UTC, {record['commit']}: {what}. {versions}.")
    return "\n".join(lines)


def _steps(known: Record) -> str:
    rows = [row for row in known["ratios"] if row["under"] == "step-standard"]
    lines = [
        [
            *(row["net"], row["over"].removeprefix("step-"), number(row["ratio"][1])),
            *(span(row["ratio"]), number(row.get("flops"))),
        ]
        for row in rows
    ]
    return table(("network", "step", "times a standard step", "quartiles", "counted by XLA"), lines) if lines else ""


def _everything(rows: Sequence[Record]) -> str:
    parts = []
    for net in dict.fromkeys(row["net"] for row in rows):
        mine = [row for row in rows if row["net"] == net]
        done = [row for row in mine if "failed" not in row]
        lines = [[row["measure"], str(row.get("batch", "")), row["library"], *cells(row)] for row in done]
        failed = [f"- `{row['measure']}` of {row['library']}: {row['failed']}" for row in mine if "failed" in row]
        said = "\n".join(["", "Not measured:", "", *failed]) if failed else ""
        parts.append(f"**{net}**\n\n{table(MEASURES, lines)}\n{said}")
    return "\n\n".join(parts)


def draw_steps(known: Record) -> Figure:
    """What steps cost as multiples of a standard one, a panel a bound, with the targets."""
    rows = [row for row in known["ratios"] if row["under"] == "step-standard"]
    nets = list(dict.fromkeys(row["net"] for row in rows))
    limits = {target.over: target.limit for target in TARGETS if target.under == "step-standard"}
    panels = [("ibp", CLEAN), ("crown_ibp", VERIFIED)]
    panels = [panel for panel in panels if any(row["over"].startswith(f"step-{panel[0]}-") for row in rows)]
    size = (1 + 4.5 * max(len(panels), 1), 0.55 * len(nets) + 2.2)
    figure, axes = plt.subplots(1, max(len(panels), 1), figsize=size, sharey=True, squeeze=False, layout="constrained")
    axes = axes[0]
    markers = {"16": "o", "8": "D", "4": "s", "robust": "^"}
    for axis, (bound, color) in zip(axes, panels, strict=False):
        for row in rows:
            what = row["over"].removeprefix("step-")
            kind, _, share = what.rpartition("-")
            if kind != bound:
                continue
            low, middle, high = row["ratio"]
            place = nets.index(row["net"]) + 0.15 * (list(markers).index(share) - 1.5)
            error = [[middle - low], [high - middle]]
            style = {"color": color, "marker": markers[share], "ms": 5, "capsize": 2, "lw": 0, "elinewidth": 1}
            axis.errorbar(middle, place, xerr=error, **style)
            if row.get("flops"):
                axis.plot(row["flops"], place, marker="|", ms=9, mew=1.6, color=NEUTRAL)
            if row["over"] in limits:
                axis.plot([limits[row["over"]]] * 2, [place - 0.09, place + 0.09], color=ATTACKED, lw=2)
        axis.set(xscale="log", xlabel="multiples of a standard step", title=f"{bound}")
        _plain_ticks(axis.xaxis)
    axes[0].set_yticks(range(len(nets)), nets)
    axes[0].invert_yaxis()
    marks = [
        plt.Line2D(
            [], [], color="black", lw=0, marker=mark, ms=5, label="all" if share == "robust" else f"1 in {share}"
        )
        for share, mark in markers.items()
    ]
    marks.append(plt.Line2D([], [], color=NEUTRAL, lw=0, marker="|", ms=9, mew=1.6, label="counted by XLA"))
    marks.append(plt.Line2D([], [], color=ATTACKED, lw=2, label="target"))
    figure.legend(handles=marks, loc="outside lower center", ncols=3 * max(len(panels), 1))
    return figure


def draw_curves(curves: Sequence[Record]) -> Figure:
    """A panel a curve: time and memory over the size, both on logarithmic axes."""
    across = 4
    down = -(-len(curves) // across)
    figure, axes = plt.subplots(down, across, figsize=(11, 2.5 * down + 0.4), squeeze=False, layout="constrained")
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
    for axis, curve in zip(axes.flat, curves, strict=False):
        sizes, seconds = curve["sizes"], np.asarray(curve["seconds"]).reshape(-1, 3)
        if not len(sizes):
            continue
        axis.fill_between(sizes, 1e3 * seconds[:, 0], 1e3 * seconds[:, 2], color=CLEAN, alpha=0.2, lw=0)
        axis.plot(sizes, 1e3 * seconds[:, 1], color=CLEAN, marker="o", ms=4, label="ms")
        axis.plot(
            sizes, [x / 2**20 if x else np.nan for x in curve["bytes"]], color=ATTACKED, marker="s", ms=3, label="MiB"
        )
        axis.set(xscale="log", yscale="log", title=curve["curve"])
        axis.set_xticks(sizes, [str(size) for size in sizes], fontsize=8)
        axis.set_xticks([], minor=True)
        _plain_ticks(axis.yaxis)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _plain_ticks(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis, 2, 3 and 5 between the powers of ten."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else "")
    axis.set_tick_params(which="minor", labelsize=8)
