"""The coverage table of the documentation, made from the registry: `python -m mixtrain_jax.bounds.coverage`."""

from __future__ import annotations

from mixtrain_jax.bounds import engine, functions, lowering, rules  # noqa: F401  (importing the first registers all)

_INTERVALS = {
    "structural": "exact",
    "sum": "exact, entry by entry",
    "product": "exact, entry by entry; of two matrices by center and radius",
    "maximum": "exact",
    "monotone": "exact",
    "step": "exact; of a remainder, to the divisor",
    "curve": "exact",
    "log-sum-exp": "exact",
    "comparison": "certain where boxes are apart",
    "logic": "exact, entry by entry",
}


def table() -> str:
    """A Markdown table of every primitive and every function known as a whole, with how each domain bounds it."""
    lines = [
        "| operation | family | boxes: `ibp`, and inside all | `crown_ibp`, `crown`, `alpha_crown` | `symbolic` |",
        "|---|---|---|---|---|",
    ]
    for primitive, rule in sorted(rules.registered().items(), key=lambda item: (item[1].family, item[0].name)):
        way, parallel = _ways(rule)
        name = f"`{primitive.name}`"
        lines.append(f"| {name} | {rule.family} | {_INTERVALS.get(rule.family, 'by its rule')} | {way} | {parallel} |")
    return "\n".join(lines)


def _ways(rule: rules.Rule) -> tuple[str, str]:
    if rule.affine is not rules.never:
        way = "exact in its derived transpose" + (f"; else {rule.way}" if rule.way else "")
        return way, way
    if rule.relax is None:
        return "its box", "its box"
    if rule.tunable:
        return "chord above; slope 0 or 1 below, or optimized", "chord above, and the line parallel to it below"
    if rule.family == "curve":
        return "best chords and tangents", "parallel lines of the chord's slope"
    return rule.way or "exact", rule.way or "exact"


def page() -> str:
    """The whole page."""
    lowered = ", ".join(f"`{primitive.name}`" for primitive in sorted(lowering.lowered(), key=lambda p: p.name))
    return f"""# What can be bounded

This page is made from the registry by `python -m mixtrain_jax.bounds.coverage > docs/coverage.md`.

Calls (`jit`, `custom_jvp`, `custom_vjp`, `remat`) are inlined, `scan` and loops with a known number of steps unrolled,
and of `cond` with an uncertain predicate every branch is bounded. These are said with other operations where that is
tighter or saves a rule: {lowered}. Functions in the table that are no primitives of jax are found by the operations jax
records for them, wherever they come from.

"Its box" means that a backward pass stops there and uses the interval, which is sound and loses what correlates.

{table()}
"""


if __name__ == "__main__":
    print(page(), end="")
