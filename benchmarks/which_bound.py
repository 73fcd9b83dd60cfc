"""Tightness against time of every method, on three networks trained on the digits: the picture of docs/which-bound.md.

    python benchmarks/which_bound.py [--images 32] [--rounds 9] [--out docs/which-bound]

It writes the picture and its figures, and prints the tables of the page.

Two of the networks are trained with the worst case in the loss, the third as usual. For each method: the mean over
images of how far the bound on the smallest margin lies below the smallest margin that PGD found (0 would be a bound
that is reached), the share of images proved, and the median seconds for one batch under `jit`, compilation apart. All
methods take turns in every round, so that a noisy machine disturbs them alike.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
import optax

import mixtrain_jax as mt
from mixtrain_jax import data, models
from mixtrain_jax.attacks import pgd
from mixtrain_jax.environment import device
from mixtrain_jax.losses import robust_loss

METHODS: dict[str, Callable[..., Any]] = {
    "ibp": mt.ibp,
    "crown_ibp": mt.crown_ibp,
    "symbolic": mt.symbolic,
    "crown": mt.crown,
    "crown, intersect symbolic": functools.partial(mt.crown, intersect=(mt.symbolic,)),
    "alpha_crown, 20 steps": mt.alpha_crown,
}
SOUND = {f"{name}, sound": functools.partial(METHODS[name], sound=True) for name in ("ibp", "crown_ibp", "crown")}


class Transformer(nn.Module):
    """One block over the eight rows of a digit: attention, layer norms and a gelu layer."""

    classes: int = 10
    width: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[n, classes]` of images `[n, 8, 8, 1]`."""
        x = nn.Dense(self.width)(x[..., 0])
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, deterministic=True)(nn.LayerNorm()(x))
        x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(self.classes)(x.mean(1))


# Name: network, radius, share of the robust loss in training.
NETS = {
    "MLP 64-100-10": (models.MLP(10, 100), 0.05, 0.5),
    "conv net 16-32-100-10": (models.Small(10), 0.05, 0.5),
    "transformer block": (Transformer(), 0.002, 0.0),
}


def train(net: nn.Module, eps: float, share: float, epochs: int = 12) -> Callable[[jax.Array], jax.Array]:
    """The logits function of a network trained on the digits."""
    split = data.load("digits").train.floats()
    params = jax.jit(net.init)(jax.random.key(0), split.images[:1])
    tx = optax.adam(2e-3)
    state = tx.init(params)

    def loss(params: Any, x: jax.Array, y: jax.Array, radius: jax.Array) -> jax.Array:
        clean = optax.softmax_cross_entropy_with_integer_labels(net.apply(params, x), y).mean()
        if not share:
            return clean
        worst = mt.margins(mt.ibp, functools.partial(net.apply, params))(mt.linf_ball(x, radius, (0.0, 1.0)), y)
        return (1 - share) * clean + share * robust_loss(worst).mean()

    @jax.jit
    def step(params: Any, state: Any, x: jax.Array, y: jax.Array, radius: jax.Array) -> tuple[Any, Any]:
        updates, state = tx.update(jax.grad(loss)(params, x, y, radius), state)
        return optax.apply_updates(params, updates), state

    rng, batch = np.random.default_rng(0), 64
    for epoch in range(epochs):
        order = rng.permutation(len(split.labels))
        for i in range(0, len(order) - batch + 1, batch):
            rows = order[i : i + batch]
            params, state = step(params, state, split.images[rows], split.labels[rows], eps * min(1, epoch / 6))
    return functools.partial(net.apply, params)


def measure(name: str, images: int, rounds: int) -> dict[str, Any]:
    """All methods on one network."""
    net, eps, share = NETS[name]
    f = train(net, eps, share)
    test = data.load("digits").test.floats()
    right = np.flatnonzero(np.argmax(f(test.images), -1) == test.labels)[:images]
    x, y = jnp.asarray(test.images[right]), jnp.asarray(test.labels[right])
    ball = mt.linf_ball(x, eps, (0.0, 1.0))
    attacked = _margins(f(pgd(jax.random.key(0), f, x, y, ball, steps=100, restarts=5)), y)
    compiled, rows = {}, {}
    for method, bound in {**METHODS, **SOUND}.items():
        started = time.perf_counter()
        compiled[method] = jax.jit(mt.margins(bound, f)).lower(ball, y).compile()
        first = time.perf_counter() - started
        found = np.asarray(compiled[method](ball, y))
        rows[method] = {
            "gap": float((np.asarray(attacked).min(-1) - found.min(-1)).mean()),
            "proved": float((found.min(-1) > 0).mean()),
            "compile_s": round(first, 2),
        }
    seconds: dict[str, list[float]] = {method: [] for method in compiled}
    for _ in range(rounds):
        for method, run in compiled.items():
            seconds[method].append(_timed(lambda run=run: run(ball, y)))
    for method, times in seconds.items():
        rows[method]["seconds"] = statistics.median(times)
        print(f"  {method:28s} {json.dumps(rows[method])}", flush=True)
    return {"eps": eps, "images": len(right), "methods": rows}


def _timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - started


def _margins(logits: jax.Array, labels: jax.Array) -> jax.Array:
    rows = jax.vmap(lambda label: mt.bounds.specification(label, logits.shape[-1]))(labels)
    return jnp.einsum("nkc,nc->nk", rows, logits)


MARKS = list(zip("os^Dv*", ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#000000"), strict=True))


def draw(results: dict[str, Any], path: Path) -> None:
    """One panel a network: gap over seconds."""
    style = {"svg.fonttype": "none", "svg.hashsalt": "mixtrain", "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context({**style, "axes.grid": True, "grid.alpha": 0.25, "font.size": 9}):
        figure, axes = plt.subplots(1, len(results), figsize=(4 * len(results), 3.6), layout="constrained")
        for axis, (name, found) in zip(np.atleast_1d(axes), results.items(), strict=True):
            for method, (marker, color) in zip(METHODS, MARKS, strict=True):
                row = found["methods"][method]
                milliseconds = 1e3 * row["seconds"] / found["images"]
                axis.scatter(milliseconds, row["gap"], s=45, marker=marker, color=color, label=method, zorder=3)
            axis.set(xscale="log", yscale="log", title=f"{name}, eps {found['eps']}", xlabel="ms an image")
            axis.margins(x=0.1, y=0.1)
            for side in (axis.xaxis, axis.yaxis):
                side.set_minor_formatter(matplotlib.ticker.NullFormatter())
        np.atleast_1d(axes)[0].set_ylabel("below what PGD reached (0: tight)")
        handles, labels = np.atleast_1d(axes)[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(METHODS), frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})


def tables(results: dict[str, Any]) -> str:
    """The same in numbers, a Markdown table a network."""
    parts = []
    for name, found in results.items():
        head = f"**{name}**, eps {found['eps']}, {found['images']} images.\n"
        rows = ["| method | gap | proved | ms an image | compile, s |", "|---|---|---|---|---|"]
        for method, row in found["methods"].items():
            gap = "no bound" if row["gap"] != row["gap"] else f"{row['gap']:.3g}"
            milliseconds = 1e3 * row["seconds"] / found["images"]
            cells = (
                f"`{method}`",
                gap,
                f"{100 * row['proved']:.0f} %",
                f"{milliseconds:.2g}",
                f"{row['compile_s']:.1f}",
            )
            rows.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join([head, *rows]))
    return "\n\n".join(parts)


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=32, help="images in the batch")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds, of which the median counts")
    parser.add_argument("--nets", nargs="*", default=list(NETS), choices=list(NETS))
    parser.add_argument("--out", type=Path, default=Path("docs/which-bound"), help="stem of the .json and .svg files")
    args = parser.parse_args()
    results = {}
    for name in args.nets:
        print(name, flush=True)
        results[name] = measure(name, args.images, args.rounds)
    args.out.with_suffix(".json").write_text(json.dumps({"device": device(), "nets": results}, indent=1) + "\n")
    draw(results, args.out.with_suffix(".svg"))
    print(tables(results))


if __name__ == "__main__":
    main()
