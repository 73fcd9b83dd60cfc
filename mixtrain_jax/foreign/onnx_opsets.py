"""Nodes of older opsets in the form that they have in the newest one.

From one opset to the next, attributes became inputs, and operators gained attributes whose defaults keep the old
meaning. Both can be read off the operators' schemas, so no operator needs a converter of its own. What changed its
meaning under the same name, Softmax for one, is up to the implementation, which finds the version of the schema as the
attribute "since".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

# Attributes that became inputs of another name.
_RENAMED = {("Pad", "value"): "constant_value"}


class Schema(NamedTuple):
    """What one version of an operator's schema says, as plain Python.

    Attributes:
      since: the opset that this version is of.
      deprecated: whether the operator was taken out in that opset.
      inputs: least and greatest number of inputs.
      outputs: least and greatest number of outputs.
      names: of the inputs; the last one may stand for any number of them.
      optional: of each input, whether it may be left out.
      types: of each input, the dtypes it may have, and the name of the type that it shares with others.
      kinds: of each attribute, the number of its type.
      required: names of the attributes that a node must have.
      defaults: of each attribute, None where it has none.
    """

    since: int
    deprecated: bool
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    names: tuple[str, ...]
    optional: tuple[bool, ...]
    types: tuple[tuple[frozenset[str], str], ...]
    kinds: dict[str, int]
    required: tuple[str, ...]
    defaults: dict[str, Any]


def described(schema: Any) -> Schema:
    """A schema of the package onnx as plain Python."""
    inputs, attributes = schema.inputs, schema.attributes
    return Schema(
        schema.since_version,
        schema.deprecated,
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        tuple(parameter.name for parameter in inputs),
        tuple(parameter.option == type(schema).FormalParameterOption.Optional for parameter in inputs),
        tuple((frozenset(parameter.types), parameter.type_str) for parameter in inputs),
        {name: attribute.type.value for name, attribute in attributes.items()},
        tuple(name for name, attribute in attributes.items() if attribute.required),
        {name: plain(attribute.default_value) for name, attribute in attributes.items()},
    )


def plain(attribute: Any) -> Any:
    """The value of an attribute's protobuf message; None for kinds other than numbers, text and lists of them."""
    match attribute.type:
        case 1:
            return attribute.f
        case 2:
            return attribute.i
        case 3:
            return attribute.s.decode()
        case 6:
            return list(attribute.floats)
        case 7:
            return list(attribute.ints)
        case 8:
            return [text.decode() for text in attribute.strings]
    return None


def renewed(op: str, given: dict[str, Any], old: Schema, new: Schema) -> tuple[dict[str, Any], dict[int, np.ndarray]]:
    """A node in the form of a newer schema.

    Args:
      op: its type.
      given: the attributes that the file gives.
      old: the schema that the node is written to.
      new: the schema to rewrite it to.

    Returns:
      All attributes that either schema knows, and inputs by position that were attributes.
    """
    places = {name: new.names.index(place) for name in old.kinds if (place := _place(op, name, new)) is not None}
    moved = {places[name]: _array(value, old.kinds[name]) for name, value in given.items() if name in places}
    kept = {name: value for name, value in {**new.defaults, **old.defaults, **given}.items() if name not in places}
    return {**kept, "since": old.since}, moved


def _place(op: str, name: str, new: Schema) -> str | None:
    """The input that an attribute became."""
    place = _RENAMED.get((op, name), name)
    return place if name not in new.kinds and place in new.names else None


def _array(value: Any, kind: int) -> np.ndarray:
    return np.asarray(value, np.float32 if kind in (1, 6) else np.int64)
