"""What is supported: of VNN-LIB and ONNX in general, of one network, of one query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mixtrain_jax import bounds, foreign
from mixtrain_jax.foreign.onnx_graph import OPSETS
from mixtrain_jax.foreign.onnx_ops import OPERATIONS
from mixtrain_jax.verify.vnnlib import read_query
from mixtrain_jax.verify.vnnlib.parser import VERSIONS

CAPABILITIES = {
    "onnx-opset-versions": lambda: [str(version) for version in OPSETS],
    "onnx-element-types": lambda: ["float32", "real"],
    "onnx-operators": lambda: sorted({*OPERATIONS, "Constant", "If"}),
    "vnnlib-versions": lambda: [f"{major}.{minor}" for major, minor in VERSIONS],
    "hidden-node-theories": lambda: ["NH"],
    "multiple-input-output-theories": lambda: ["SIO"],
    "multiple-network-theories": lambda: ["SNET", "MENET", "MINET", "MNET"],
    "multiple-node-comparison-theories": lambda: ["SNC", "MNC"],
    "arithmetic-complexity-theories": lambda: ["BND", "COUT", "LIN", "POLY"],
    "optimised-disjunctive-reasoning": lambda: ["false"],
    "serialise-assignments": lambda: ["false"],
}
"""What the standard's `supports` command lists, a line each."""


def query_support(path: Path) -> list[str]:
    """What a query asks, a line each.

    Raises:
      QueryError: where it is not supported.
    """
    query = read_query(path)
    for case in query.cases[:1000]:
        query.specification(case)
    clauses = sum(len(case.clauses) for case in query.cases)
    named = [
        f"network {network.name or '(unnamed)'}: {list(network.inputs.shape)} {network.inputs.kind} to "
        f"{list(network.outputs.shape)}" + (f", equal to {network.same_as}" if network.same_as else "")
        for network in query.networks
    ]
    return [
        f"VNN-LIB {query.version}",
        *named,
        f"{len(query.cases)} boxes of inputs, {clauses} conjunctions of outputs",
        f"{len(query.features)} terms of inputs or of several variables",
    ]


def network_support(path: Path) -> list[str]:
    """What a network is, a line each; its bounds are traced, and nothing is computed.

    Raises:
      ModelError: where it cannot be read.
      BoundsError: where bounds have no rule for an operation of it.
    """
    model = foreign.load_onnx(path)
    lines = [f"inputs {list(model.shape or [])}, outputs {model.classes}", *model.notes]
    if model.shape is None or None in model.shape:
        return [*lines, "Whether it can be bounded depends on the shape of its input, which it leaves open."]
    image = jax.ShapeDtypeStruct((1, *(size or 0 for size in model.shape)), jnp.float32)

    def bounded(params: Any, lower: jax.Array, upper: jax.Array) -> bounds.Interval:
        return bounds.crown(model.apply)(params, bounds.Interval(lower, upper))

    jax.eval_shape(bounded, model.params, image, image)
    return [*lines, "every operation has a rule"]
