"""The page of ONNX operators: `python benchmarks/onnx_operators.py > docs/onnx-operators.md`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
from onnx_cases import CASES, LAST, Case

import mixtrain_jax as mt
from mixtrain_jax.bounds import engine, functions, rules, tape  # noqa: F401  (importing the first registers all)
from mixtrain_jax.foreign import load_onnx, onnx_graph
from mixtrain_jax.foreign.onnx_ops import ENDS

WAYS = ("exact", "relaxed", "its box")  # from the best


def bounded_as(case: Case, folder: Path) -> str:
    """How a backward pass goes through the network of a case: exactly, by relaxations, or not beyond some box."""
    path = folder / "model.onnx"
    path.write_bytes(case.model(case.last).SerializeToString())
    model = load_onnx(path)
    ball = mt.linf_ball(case.images(), 0.01)
    recorded = tape.record(lambda x: model.apply(model.params, x), (ball,), functions.recognize)
    ways = {"exact"}
    for op in recorded.ops:
        if not rules.is_affine(op):
            relaxed = rules.find(op).relax is not None and all(map(rules.is_float, op.outputs))
            ways.add("relaxed" if relaxed else "its box")
    return max(ways, key=WAYS.index)


def first_opsets() -> dict[str, int]:
    """Every operator of ONNX up to the last opset that is read, and the opset that it came with."""
    found: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            found[schema.name] = min(schema.since_version, found.get(schema.name, schema.since_version))
    return {op: version for op, version in sorted(found.items()) if version <= LAST}


CONSTANTS = {"Constant", "ConstantOfShape", "EyeLike", "NonZero", "OneHot", "Range", "Shape", "Size"}


def table() -> str:
    """A Markdown table of all operators."""
    lines = ["| operator | since opset | loads | `ibp` | `crown` and its kin |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for op, since in first_opsets().items():
            cases = [case for case in CASES.values() if case.op == op]
            if not cases:
                lines.append(f"| {op} | {since} | no | | |")
            elif op in CONSTANTS or op in ENDS:
                loads = "of constants, and as the output" if op in ENDS else "of constants"
                lines.append(f"| {op} | {since} | {loads} | | |")
            else:
                ways = {bounded_as(case, Path(folder)) for case in cases}
                lines.append(f"| {op} | {since} | yes | yes | {' or '.join(sorted(ways, key=WAYS.index))} |")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    return f"""# ONNX operators

This page is made by `python benchmarks/onnx_operators.py > docs/onnx-operators.md` from the networks that the tests
compare with ONNX Runtime, in every opset from {onnx_graph.OPSETS[0]} to {LAST} in which the operator changed.

"Of constants": the operator makes something known when the file is loaded, such as indices and shapes, and images do
not go through it. "As the output": a network that ends with the class that it chooses is read as the logits that it
chooses by.

The last column says what a backward pass makes of the operator: "exact" is an affine map; "relaxed" has linear
functions above and below; at "its box" the pass stops, and uses the interval. It depends on how the operator is used:
a product with weights is exact, one of two images relaxed.

{table()}
"""


if __name__ == "__main__":
    print(page(), end="")
