"""What an ONNX file computes, its weights left out, as a digest: files that differ in weights alone share programs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mixtrain_jax.foreign.onnx_graph import Branch, Graph, Node


def structure(graph: Graph, params: Mapping[str, Any], constants: Mapping[str, Any], *how: Any) -> str:
    """The digest of a graph.

    Args:
      graph: what was read.
      params: weights by name, of which only shapes count.
      constants: the other arrays.
      how: what else the function depends on.
    """
    digest = hashlib.sha256()
    shapes = {name: (str(value.dtype), value.shape) for name, value in params.items()}
    for part in _words((graph.nodes, graph.input, graph.output, shapes, constants, how)):
        digest.update(len(part).to_bytes(8, "little"))  # so that no two lists of words join to the same bytes
        digest.update(part)
    return digest.hexdigest()


def _words(value: Any) -> Iterable[bytes]:
    match value:
        case Node():
            value = (value.op, value.inputs, value.outputs, value.attributes)
        case Branch():
            value = (value.nodes, value.outputs, value.constants)
    if isinstance(value, np.ndarray):
        yield from (b"array", str(value.dtype).encode(), repr(value.shape).encode(), value.tobytes())
    elif isinstance(value, Mapping):
        yield from (b"mapping", str(len(value)).encode())
        for name in sorted(value):
            yield name.encode()
            yield from _words(value[name])
    elif isinstance(value, tuple | list):
        yield from (b"list", str(len(value)).encode())
        for part in value:
            yield from _words(part)
    else:
        yield from (type(value).__name__.encode(), repr(value).encode())
