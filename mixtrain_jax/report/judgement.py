"""What the judge found, as numbers, tables and one HTML page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mixtrain_jax.certify import Judgement, Report
from mixtrain_jax.data import Split
from mixtrain_jax.report import page
from mixtrain_jax.report.completion import of_completion

_WORDS = {
    "clean": "of the images as they are",
    "pgd-20": "withstand the customary attack, which proves nothing",
    "attacked": "withstand every attack: robust accuracy is at most this",
    "verified": "are proved: robust accuracy is at least this",
}


def to_json(judgement: Judgement, split: Split) -> dict[str, Any]:
    """Everything but the arrays, for `judgement.json`."""
    at, columns = judgement.evaluation, judgement.columns()
    classes = np.unique(split.labels)
    return {
        "eps": at.threat.eps,
        "norm": at.threat.norm,
        "domain": list(at.threat.domain),
        "examples": len(split),
        **{f"{name.lower().replace('-', '_')}_accuracy": float(of.mean()) for name, of in columns.items()},
        "broken_by": {name: int((at.broken_by == name).sum()) for name in at.seconds if name in set(at.broken_by)},
        "verified_by": {name: int((at.proved_by == name).sum()) for name in at.seconds if name in set(at.proved_by)},
        "seconds": {name: round(seconds, 3) for name, seconds in at.seconds.items()},
        "classes": {
            int(label): {
                "examples": int((split.labels == label).sum()),
                **{name: float(of[split.labels == label].mean()) for name, of in columns.items()},
            }
            for label in classes
        },
        "layers": [vars(layer) for layer in judgement.layers],
        "warnings": judgement.warnings,
        **({"complete": judgement.completion.summary()} if judgement.completion else {}),
    }


def robustbench(numbers: Mapping[str, Any], name: str, data: str) -> dict[str, Any]:
    """A record in the form of RobustBench's, accuracies in percent, with what was proved beside what was broken."""
    return {
        "name": name,
        "dataset": data,
        "Linf" if numbers["norm"] == "linf" else "L2": True,
        "eps": numbers["eps"],
        "clean_acc": _percent(numbers["clean_accuracy"]),
        "autoattack_acc": _percent(numbers["attacked_accuracy"]),
        "verified_acc": _percent(numbers["verified_accuracy"]),
        "verifier": ", ".join(numbers["verified_by"]) or "none",
        "attacks": ", ".join(name for name in numbers["seconds"] if name not in numbers["verified_by"]),
        "examples": numbers["examples"],
    }


def show(console: Console, numbers: Mapping[str, Any]) -> None:
    """Print the table: all images, each class, where the time went, what is doubtful."""
    columns = list(next(iter(numbers["classes"].values())))[1:]
    table = Table(title=f"{numbers['examples']} images, {numbers['norm']} eps {numbers['eps']:g}")
    table.add_column("class")
    table.add_column("images", justify="right")
    for name in columns:
        table.add_column(name, justify="right")
    everywhere = [numbers[f"{name.lower().replace('-', '_')}_accuracy"] for name in columns]
    for label, of in numbers["classes"].items():
        table.add_row(str(label), str(of["examples"]), *(f"{of[name]:.1%}" for name in columns))
    table.add_section()
    table.add_row("all", str(numbers["examples"]), *(f"[b]{share:.1%}[/b]" for share in everywhere))
    console.print(table)
    spent = Table(title="Step by step")
    for heading in ("attack or method", "broke", "proved", "seconds"):
        spent.add_column(heading, justify="left" if heading.startswith("attack") else "right")
    for name, seconds in numbers["seconds"].items():
        broke, proved = numbers["broken_by"].get(name, ""), numbers["verified_by"].get(name, "")
        spent.add_row(name, str(broke), str(proved), f"{seconds:.1f}")
    console.print(spent)
    for line in of_completion(numbers):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for warning in numbers["warnings"]:
        console.print(f"[yellow]Mind:[/yellow] {escape(warning)}", soft_wrap=True, highlight=False)


def show_check(console: Console, checked: Report, images: str) -> None:
    """Print what became of certificates, and what they prove; `images` are those that they were held against."""
    good, (low, high) = int(checked.accepted.sum()), checked.threat.domain
    console.print(f"{good} of {len(checked.indices)} certificates hold, recomputed in float64.", highlight=False)
    for reason, count in checked.counts().items():
        console.print(f"  {count} rejected: {reason}", markup=False, highlight=False, soft_wrap=True)
    proved = (
        f"Proved: {checked.threat}, domain {low:g} to {high:g}: {checked.verified} of {checked.images} distinct images "
        f"among {images}, verified accuracy {checked.verified_accuracy:.2%}."
    )
    console.print(proved, markup=False, highlight=False, soft_wrap=True)
    for name, (then, now) in checked.versions.items():
        console.print(f"  proved with {name} {then}, checked with {now}", markup=False, highlight=False)


def render(judgement: Judgement, numbers: Mapping[str, Any], split: Split, about: Mapping[str, Any]) -> str:
    """The page as text; `about` is what it says of the model at its end."""
    at = judgement.evaluation
    columns = judgement.columns()
    body = [
        f"<h1>{html.escape(str(about.get('model', 'model')))}, {html.escape(str(at.threat))}</h1>",
        f"<p class=caption>{len(split)} images. Robust accuracy lies between the last two numbers.</p>",
        "<div class=numbers>"
        + "".join(page.number(name, float(of.mean()), _WORDS[name]) for name, of in columns.items())
        + "</div>",
        *(f"<p><b>Mind:</b> {html.escape(warning)}</p>" for warning in judgement.warnings),
        *_figures(judgement, split),
        "<h2>Step by step</h2>",
        _grid(
            ["attack or method", "broke", "proved", "seconds"],
            [
                [name, numbers["broken_by"].get(name, ""), numbers["verified_by"].get(name, ""), f"{seconds:.1f}"]
                for name, seconds in numbers["seconds"].items()
            ],
        ),
        *(f"<p>{html.escape(line)}</p>" for line in of_completion(numbers)),
        "<h2>Class by class</h2>",
        _grid(
            ["class", "images", *columns],
            [
                [label, of["examples"], *(f"{of[name]:.1%}" for name in columns)]
                for label, of in numbers["classes"].items()
            ],
        ),
        *_layers(judgement),
        "<h2>Provenance</h2>",
        page.pairs(about),
    ]
    return page.document(f"{about.get('model', 'model')}: {at.verified.mean():.1%} verified", body)


def _layers(judgement: Judgement) -> list[str]:
    if not judgement.layers:
        return []
    rows = [
        [
            layer.method,
            layer.operation,
            f"{layer.entries:,}",
            f"{layer.width:.3g}",
            "" if layer.unstable is None else f"{layer.unstable:.1%}",
            layer.source.rsplit("/", 1)[-1],
        ]
        for layer in judgement.layers
    ]
    heads = ["bound", "op", "entries", "mean width", "unstable", "line"]
    return ["<h2>Width of the bounds, layer by layer</h2>", _grid(heads, rows)]


def _figures(judgement: Judgement, split: Split) -> list[str]:
    try:
        from mixtrain_jax.report import plots
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("matplotlib"):
            raise
        return ["<p><em>For the plots: pip install matplotlib, then judge again.</em></p>"]
    curve, at = judgement.curve, judgement.evaluation
    found = []
    if curve is not None:
        found += ["<h2>Accuracy against the radius</h2>", plots.accuracy_curve(curve, at.threat)]
    if at.broken_by.any():
        found += [
            "<h2>Images that were broken</h2>",
            "<p class=caption>As it is; the change, grey where there is none; as it was broken, with the class it is "
            "taken for.</p>",
            plots.broken_images(split, at),
        ]
    return found


def _grid(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; columns of numbers are set to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    right = [all(_is_number(row[i]) for row in cells) for i in range(len(heads))]

    def line(tag: str, texts: Sequence[str]) -> str:
        of = [f"<{tag} class=of-numbers>" if number else f"<{tag}>" for number in right]
        parts = (f"{begin}{html.escape(text)}</{tag}>" for begin, text in zip(of, texts, strict=True))
        return f"<tr>{''.join(parts)}</tr>"

    return f"<table class=grid>{line('th', heads)}{''.join(line('td', row) for row in cells)}</table>"


def _is_number(text: str) -> bool:
    return not text or text.rstrip("%").replace(".", "").replace(",", "").isdigit()


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
