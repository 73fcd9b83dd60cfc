"""Complete verification: whether it is ever wrong, and how many images it decides in how many seconds.

    python benchmarks/verify.py planted [--count 200] [--out benchmarks/verify-planted.json]
    python benchmarks/verify.py images RUN ... [--seconds 30] [--examples 0] [--out benchmarks/verify-images.json]

`planted`: random networks of one hidden layer of which the least margin over the ball is known, half of them robust by
a little and half of them with a counterexample as near; each by either way of branching, with and without gradient
attacks. `images`: the test images of trained runs, all or the first so many, that the network classifies rightly. Both
print their tables and keep the figures as JSON; compilation is told apart.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from planted import apply, planted, random_network

from mixtrain_jax import data
from mixtrain_jax.certify import Threat
from mixtrain_jax.environment import device
from mixtrain_jax.runs import load_run
from mixtrain_jax.verify import Answer, Verifier

SIZES, EPS, NEAR = (4, 8, 3), 0.4, 1e-3


def of_planted(count: int, seconds: float) -> list[dict[str, Any]]:
    """Verdicts on `count` networks that are robust by `NEAR` and as many that are not."""
    verifier = Verifier(apply, random_network(np.random.default_rng(0), *SIZES), SIZES[:1], batch=32)
    ways = list(itertools.product(("neurons", "inputs"), (True, False)))
    for branching in ("neurons", "inputs"):
        verifier.compile(*planted(0, SIZES, EPS, NEAR)[1:], branching=branching)
    found: dict[Any, list[Answer]] = collections.defaultdict(list)
    for seed, by in itertools.product(range(count), (NEAR, -NEAR)):
        params, ball, label = planted(seed, SIZES, EPS, by)
        for branching, attack in ways:
            answer = verifier.with_params(params).verify(
                ball, label, branching=branching, attack=attack, timeout=seconds
            )
            found[by > 0, branching, attack].append(answer)
    rows = []
    for (robust, branching, attack), answers in found.items():
        counts = collections.Counter(answer.status for answer in answers)
        rows.append(
            {
                "truth": "robust" if robust else "broken",
                "branching": branching,
                "attack": attack,
                **{status: counts[status] for status in ("proved", "broken", "open")},
                "wrong": counts["broken" if robust else "proved"],
                "seconds": float(np.median([answer.seconds for answer in answers])),
            }
        )
    return rows


def of_run(folder: Path, seconds: float, examples: int) -> dict[str, Any]:
    """Verdicts on the test images of a run."""
    run = load_run(folder)
    test = data.load(run.config.data.name).test.load().floats()
    images, labels = test.images[: examples or None], test.labels[: examples or None]
    threat = Threat(run.eps, run.domain)
    outer, inner = (
        threat.ball(jnp.asarray(images), threat.radii(len(images))),
        threat.inner(images, threat.radii(len(images))),
    )
    clean = np.asarray(jax.jit(run.apply)(run.params, jnp.asarray(images))).argmax(-1) == labels
    verifier = Verifier(run.apply, run.params, images.shape[1:])
    answers: list[Answer] = []

    def balls(i: int) -> Any:
        return jax.tree.map(lambda x: x[i], (outer, inner))

    started = time.monotonic()
    verifier.compile(balls(0)[0], int(labels[0]))
    compilation = time.monotonic() - started
    for i in np.flatnonzero(clean):
        ball, inside = balls(i)
        answers.append(verifier.verify(ball, int(labels[i]), attacked=inside, timeout=seconds))
        if answers[-1].by not in ("attack", "crown"):
            print(f"image {i}: {describe(answers[-1])}", flush=True)
    statuses = collections.Counter((answer.status, answer.by) for answer in answers)
    branched = [answer for answer in answers if answer.by not in ("attack", "crown")]
    of = {"proved": statuses_of(answers, "proved"), "broken": statuses_of(answers, "broken")}
    return {
        "run": folder.name,
        "eps": run.eps,
        "images": len(images),
        "clean": int(clean.sum()),
        **of,
        "open": collections.Counter(answer.reason for answer in answers if answer.status == "open"),
        "by": {f"{status} by {by}": n for (status, by), n in sorted(statuses.items())},
        "branched": len(branched),
        "domains": [answer.domains for answer in branched],
        "seconds": [round(answer.seconds, 3) for answer in branched],
        "compilation": compilation,
        "total_seconds": sum(answer.seconds for answer in answers),
    }


def statuses_of(answers: list[Answer], status: str) -> int:
    """How many answers have this status."""
    return sum(answer.status == status for answer in answers)


def describe(answer: Answer) -> str:
    """An answer in a line."""
    why = f" ({answer.reason})" if answer.reason else ""
    return f"{answer.status}{why}, {answer.domains} domains, {answer.seconds:.2f} s, bound {answer.bound:.4g}"


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a table of Markdown."""
    names = list(rows[0])
    shown = [[f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (names, ["---"] * len(names), *shown))


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of a run."""
    seconds, domains = row["seconds"] or [0.0], row["domains"] or [0]
    return {
        **{name: row[name] for name in ("run", "eps", "images", "clean", "proved", "broken")},
        "open": sum(row["open"].values()),
        "branched": row["branched"],
        "domains, median and most": f"{int(np.median(domains))}, {max(domains)}",
        "seconds, median and most": f"{np.median(seconds):.2f}, {max(seconds):.2f}",
        "seconds of all": row["total_seconds"],
        "compilation": row["compilation"],
    }


def main() -> None:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["planted", "images"])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--examples", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options, started = parser.parse_args(), time.time()
    if options.what == "planted":
        rows = of_planted(options.count, options.seconds)
        print(table(rows))
    else:
        rows = [of_run(folder, options.seconds, options.examples) for folder in options.runs]
        print(table([summary(row) for row in rows]))
    if options.out:
        record = {
            "device": device(),
            "jax": jax.__version__,
            "wall_seconds": round(time.time() - started),
            "rows": rows,
        }
        options.out.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
