"""The pictures of the page."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixtrain_jax.report.plots import ATTACKED, CLEAN, NEUTRAL, VERIFIED
from results_page.numbers import (
    average,
    by_bound,
    by_rule,
    deviation,
    is_fixed,
    one_in,
    percent,
    point,
    regimes,
    share_text,
)
from results_page.records import Record

_REGIMES = {"epochs": (NEUTRAL, "s", 1 / 1.04), "time": (VERIFIED, "o", 1.04)}  # the shift keeps error bars apart
_RULES = {
    "convex": (NEUTRAL, "o", "fixed, by share"),
    "constrained": (VERIFIED, "D", "constrained, by target"),
    "staircase": (ATTACKED, "^", "authors' rule"),
}
_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.3, "alpha": 0.8}


def draw_subsampling(runs: Sequence[Record]) -> Figure:
    """A panel a bound: verified accuracy over the share, and clean accuracy above it."""
    bounds = by_bound(runs)
    figure, axes = plt.subplots(
        *(2, len(bounds)),
        figsize=(max(5.0, 3.8 * len(bounds)), 4.6),
        sharex="col",
        sharey="row",
        squeeze=False,
        height_ratios=(1, 2),
        layout="constrained",
    )
    for (top, bottom), (bound, mine) in zip(axes.T, bounds.items(), strict=True):
        _lines(top, mine, "clean", ls="--", lw=1, ms=3)
        _lines(bottom, mine, "verified", ls="-", lw=1.8, ms=5)
        shares = sorted({one_in(run["config"]) for run in mine})
        bottom.set_xscale("log", base=2)
        bottom.set_xlim(1.25, 1 / 1.25 / max(shares))
        bottom.set_xticks([1 / share for share in shares], [share_text(share) for share in shares])
        bottom.set_xlabel("share of examples with sound bounds")
        top.set_title(bound)
    axes[0, 0].set_ylabel("clean, %")
    axes[1, 0].set_ylabel("verified, %")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _lines(axis: Axes, runs: Sequence[Record], what: str, **style: Any) -> None:
    for (regime, found), (color, marker, shift) in zip(regimes(runs).items(), _REGIMES.values(), strict=True):
        axis.errorbar(
            [shift / share for share in found],
            [average(some, what) for some in found.values()],
            [deviation(percent(some, what).values()) for some in found.values()],
            color=color,
            marker=marker,
            capsize=2,
            label=f"equal {regime}",
            **style,
        )


def draw_weights(runs: Sequence[Record]) -> Figure:
    """A panel a bound: verified over clean accuracy, fixed weights on a line."""
    bounds = by_bound(runs)
    figure, axes = plt.subplots(
        1, len(bounds), figsize=(max(6.5, 5 * len(bounds)), 4.6), squeeze=False, layout="constrained"
    )
    for axis, (bound, mine) in zip(axes[0], bounds.items(), strict=True):
        rules, stacked = by_rule(mine), itertools.count()
        if line := [point(some) for some in rules.values() if is_fixed(some)]:
            axis.plot(*np.transpose(line), color=NEUTRAL, lw=1, zorder=1)
        for name, some in rules.items():
            kind, _, setting = name.partition(" ")
            color, marker, label = _RULES.get(kind, (CLEAN, "s", kind))
            error = [deviation(percent(some, what).values()) for what in ("verified", "clean")]
            axis.errorbar(*point(some), *error, color=color, marker=marker, ms=6, lw=0, elinewidth=0.7, label=label)
            # Fixed weights right of their line; the others left and stacked, for their points may coincide.
            left = {"xytext": (-8, 8 - 9 * next(stacked)), "ha": "right"} if not is_fixed(some) else {}
            place = {"xytext": (7, 5), "ha": "left", "fontsize": 8, "color": color, **left}
            axis.annotate(setting, point(some), textcoords="offset points", bbox=_PAPER, **place)
        axis.set(xlabel="clean, %", title=bound)
        axis.margins(0.12)
    axes[0, 0].set_ylabel("verified, %")
    handles = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3)
    return figure
