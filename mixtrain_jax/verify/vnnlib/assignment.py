"""Assignments as text: the form of VNN-LIB 2.0, and that of the competition for version 1.0."""

from __future__ import annotations

import numpy as np

from mixtrain_jax.verify.vnnlib.query import Query


def as_assignment(query: Query, inputs: np.ndarray, outputs: np.ndarray) -> str:
    """Every variable's name, type and shape on one line, then its entries, one a line.

    Args:
      query: the query.
      inputs: float64 `[inputs]`.
      outputs: `[outputs]`.
    """
    lines = []
    for network in query.networks:
        for tensor, values in ((network.inputs, inputs), (network.outputs, outputs)):
            lines.append(f"{tensor.name} {tensor.kind} [{','.join(map(str, tensor.shape))}]")
            lines.extend(repr(float(value)) for value in values[tensor.start : tensor.start + tensor.size])
    return "\n".join(lines)


def as_pairs(inputs: np.ndarray, outputs: np.ndarray) -> str:
    """Every X_i and Y_j with its value in parentheses."""
    pairs = [
        f"({name}_{i} {float(value)!r})"
        for name, values in (("X", inputs), ("Y", outputs))
        for i, value in enumerate(values)
    ]
    return "(" + "\n".join(pairs) + ")"
