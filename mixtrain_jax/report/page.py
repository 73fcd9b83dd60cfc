"""The report of a run: one HTML file that needs nothing beside it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from mixtrain_jax.certify import Curve, Evaluation
from mixtrain_jax.config import Config
from mixtrain_jax.data import Split
from mixtrain_jax.report.completion import of_completion

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
.numbers { display: flex; gap: 1rem; flex-wrap: wrap; }
.number { border: 1px solid #ddd; border-radius: 8px; padding: .7rem 1.1rem; flex: 1; min-width: 12rem; }
.number b { display: block; font-size: 1.9rem; line-height: 1.2; }
.number small, .caption { color: #666; }
svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: .85rem; }
td, th { padding: .1rem 1.2rem .1rem 0; vertical-align: top; text-align: left; }
.pairs td:last-child { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
.grid { font-variant-numeric: tabular-nums; } .grid .of-numbers { text-align: right; }
"""


def render(
    config: Config,
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    evaluation: Evaluation,
    curve: Curve | None,
    test: Split,
) -> str:
    """The page as text. Without matplotlib it has the numbers and says how to get the plots."""
    words = {
        "clean": ("clean_accuracy", "of the test images as they are"),
        "attacked": ("attacked_accuracy", f"withstand {summary['attack']}: robust accuracy is at most this"),
        "verified": ("verified_accuracy", "are proved: robust accuracy is at least this"),
    }
    numbers = "".join(number(name, summary[key], text) for name, (key, text) in words.items())
    proved = ", ".join(f"{count} by {name}" for name, count in summary["verified_by"].items())
    body = [
        f"<h1>{html.escape(config.data.name)}, {html.escape(config.model.name)}, {evaluation.threat}</h1>",
        f"<p class=caption>{summary['test_examples']} test images, seed {summary['seed']}, "
        f"{summary['seconds']:.0f} s of training on {html.escape(summary['device'])}</p>",
        *_skipped(summary.get("skipped", 0)),
        *(f"<p><b>Mind:</b> {html.escape(warning)}</p>" for warning in summary.get("warnings", [])),
        f"<div class=numbers>{numbers}</div>",
        f"<p class=caption>Proved: {html.escape(proved)}.</p>",
        *(f"<p class=caption>{html.escape(line)}</p>" for line in of_completion(summary)),
        *_figures(rows, evaluation, curve, test),
        "<h2>Config</h2>",
        pairs(config.flags()),
        "<h2>Provenance</h2>",
        pairs({**summary["versions"], "weights, SHA-256": summary["params_sha256"]}),
    ]
    return document(f"{config.data.name}: {summary['verified_accuracy']:.1%} verified", body)


def document(title: str, body: Sequence[str]) -> str:
    """A whole page around its parts, which are HTML already."""
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def number(name: str, share: float, words: str) -> str:
    """One accuracy in a frame, and what it says."""
    return f"<div class=number>{html.escape(name)}<b>{share:.1%}</b><small>{html.escape(words)}</small></div>"


def _skipped(count: int) -> list[str]:
    if not count:
        return []
    return [
        f"<p>Training skipped {count} step{'s' * (count > 1)}: the loss or a gradient was NaN or infinite there.</p>"
    ]


def _figures(rows: Sequence[Mapping[str, Any]], evaluation: Evaluation, curve: Curve | None, test: Split) -> list[str]:
    try:
        from mixtrain_jax.report import plots
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("matplotlib"):
            raise
        return ["<p><em>For the plots: pip install matplotlib, then mixtrain report RUN.</em></p>"]
    return [
        *(["<h2>Accuracy against the radius</h2>", plots.accuracy_curve(curve, evaluation.threat)] if curve else []),
        "<h2>Training</h2>",
        plots.training_curves(rows),
        plots.schedules(rows),
        "<h2>Test images and their proved class</h2>",
        "<p class=caption>Green: the class is proved for the whole ball. Grey: no attack succeeded, nor did a proof. "
        "Orange: an attack changed the class. Red: wrong without any attack.</p>",
        plots.image_grid(test, evaluation),
    ]


def pairs(values: Mapping[str, Any]) -> str:
    """A table of names and values."""
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(str(v))}</td></tr>" for k, v in values.items())
    return f"<table class=pairs>{rows}</table>"
