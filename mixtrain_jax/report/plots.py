"""The pictures of a run, as SVG text that a page can hold."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixtrain_jax.certify import Curve, Evaluation, Threat
from mixtrain_jax.data import Split

CLEAN, ATTACKED, VERIFIED, NEUTRAL = "#3b6fb6", "#d9822b", "#2f8f5b", "#777777"
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "mixtrain",  # same run, same file
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 10,
    "legend.frameon": False,
}


def training_curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """Losses, and accuracies on the held-out examples, over the epochs."""
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
        epochs = [row["epoch"] for row in rows]
        colors = itertools.cycle((VERIFIED, ATTACKED, NEUTRAL))
        for name in [name for name in rows[0] if name.endswith("_loss")]:  # one a term of the objective
            if any(row[name] for row in rows):  # a term may be in no step
                color = CLEAN if name == "clean_loss" else next(colors)
                left.plot(epochs, [row[name] or np.nan for row in rows], color=color, label=name.replace("_", " "))
        left.set(xlabel="epoch", ylabel="mean loss", title="Training losses", yscale="log")
        left.legend()
        for name, color in (("clean", CLEAN), ("verified", VERIFIED)):
            right.plot(epochs, [row[f"heldout_{name}_accuracy"] for row in rows], color=color, label=name)
        right.set(xlabel="epoch", ylabel="accuracy", title="Held-out examples", ylim=(0, 1.02))
        right.legend(loc="lower right")
        return svg(figure)


def schedules(rows: Sequence[Mapping[str, Any]]) -> str:
    """Weight of the other losses relative to the first, and radius, over the epochs."""
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 2.8), layout="constrained")
        epochs = [row["epoch"] for row in rows]
        left.plot(epochs, [row["relative_weight"] for row in rows], color=ATTACKED)
        left.set(xlabel="epoch", ylabel="weight relative to the first loss", title="Dynamic weight")
        right.plot(epochs, [row["eps"] for row in rows], color=NEUTRAL)
        right.set(xlabel="epoch", ylabel="eps trained on", title="Radius")
        return svg(figure)


def accuracy_curve(curve: Curve, threat: Threat) -> str:
    """Clean, attacked and verified accuracy against the radius, what lies between the two shaded."""
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(10, 3.8), layout="constrained")
        grid = np.linspace(0, curve.eps[-1], 201)
        verified = (curve.radius[None, :] >= grid[:, None]).mean(1)
        # Broken at a radius is broken at all larger ones, so between two attacked radii the left one's share bounds.
        attacked = curve.attacked[np.searchsorted(curve.eps, grid, side="right") - 1]
        axes.fill_between(grid, verified, np.maximum(attacked, verified), color=NEUTRAL, alpha=0.15, lw=0)
        axes.plot(curve.eps, curve.clean, color=CLEAN, label="clean")
        axes.plot(grid, attacked, color=ATTACKED, label="attacked (upper bound)")
        axes.plot(grid, verified, color=VERIFIED, label="verified (lower bound): certified radius")
        axes.axvline(threat.eps, color=NEUTRAL, lw=0.8, ls=":")
        axes.set(xlabel=f"eps, {threat.name}, pixel units", ylabel="accuracy", ylim=(0, 1.02))
        axes.margins(x=0)
        axes.set_title(f"First {len(curve.radius):,} test images: robust accuracy lies in the grey band")
        axes.legend(loc="lower left")
        return svg(figure)


def image_grid(split: Split, evaluation: Evaluation, count: int = 40) -> str:
    """The first test images, framed by what is known of each."""
    split, count = split.floats(), min(count, len(split))
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        rows = -(-count // 10)
        figure, axes = plt.subplots(rows, 10, figsize=(10, 1.35 * rows), layout="constrained", squeeze=False)
        for i, axis in enumerate(axes.flat):
            if i < count:
                _image(axis, split, evaluation, i)
            else:
                axis.axis("off")
        return svg(figure)


def broken_images(split: Split, evaluation: Evaluation, count: int = 20, across: int = 10) -> str:
    """The first images that were broken, some across: as they are, the change, and as they were broken."""
    split = split.floats()
    rows = np.flatnonzero(evaluation.broken_by != "")[:count]
    low, high = evaluation.threat.domain
    bands = -(-len(rows) // across)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(3 * bands, across, figsize=(0.95 * across, 3.3 * bands), squeeze=False)
        figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.96, wspace=0.08, hspace=0.25)
        for axis in axes.flat:
            axis.axis("off")
        for place, i in enumerate(rows):
            column = axes[3 * (place // across) :, place % across]
            change = evaluation.adversarial[i] - split.images[i]
            shown = (split.images[i], 0.5 + 0.5 * change / max(np.abs(change).max(), 1e-9), evaluation.adversarial[i])
            words = (f"is {split.labels[i]}", "", f"as {evaluation.seen_as[i]}")
            limits = [(low, high), (0, 1), (low, high)]
            for axis, image, text, (least, most) in zip(column, shown, words, limits, strict=False):
                image = (image - least) / (most - least)
                axis.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray_r", vmin=0, vmax=1)
                axis.set(xticks=[], yticks=[])
                axis.axis("on")
                axis.set_title(text, fontsize=9, pad=2)
        return svg(figure)


def _image(axis: Axes, split: Split, evaluation: Evaluation, i: int) -> None:
    image = split.images[i]
    axis.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray_r", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    predicted, label = evaluation.predictions[i], split.labels[i]
    if evaluation.verified[i]:
        text, color = f"proved {predicted}", VERIFIED
    elif evaluation.attacked[i]:
        text, color = f"{predicted}, open", NEUTRAL
    elif evaluation.clean[i]:
        text, color = f"{predicted}, broken", ATTACKED
    else:
        text, color = f"{predicted}, is {label}", "#b3261e"
    axis.set_title(text, fontsize=8, color=color, pad=3)
    for spine in axis.spines.values():
        spine.set(visible=True, color=color, linewidth=2)


def svg(figure: Figure) -> str:
    """The text of a figure, which is closed."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
