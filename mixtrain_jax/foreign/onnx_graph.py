"""An ONNX file as plain Python: the only file that imports onnx.

The file is not trusted. It is read with limits on its size and on its number of fields, because a few bytes of a
protobuf can ask for much memory; weights beside it are read from its own folder alone; operators, attributes and
numbers of inputs are held to the schemas of the `onnx` package; and what is wrong is said in one ModelError.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixtrain_jax.errors import ModelError, first_line
from mixtrain_jax.foreign.onnx_opsets import Schema, described, plain, renewed

OPSETS = (8, 21)
MAX_FIELDS = 2_000_000  # of the protobuf, small ones included
MAX_NODES = 10_000
_MAX_PACKED = 2**24  # bytes of integers that take up to 8 times as much once read


class Node(NamedTuple):
    """One operation. An input that is left out has the empty name.

    Attributes:
      op: its type.
      where: how errors call it.
      inputs: names of values.
      outputs: names of values, "" of those that nothing needs.
      attributes: all that the schema knows, defaults included; None for those without a value.
      types: of each input, the dtypes it may have, and the name of the type that it shares with others.
    """

    op: str
    where: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    types: tuple[tuple[frozenset[str], str], ...]


class Branch(NamedTuple):
    """What an If may do: nodes that read values of the graph around them, and constants of their own."""

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    constants: dict[str, np.ndarray]

    def captured(self) -> tuple[str, ...]:
        """Names that it reads of the graph around it, each once."""
        made, read = set(self.constants), {}
        for node in self.nodes:
            read.update((name, None) for name in node.inputs if name and name not in made)
            made.update(node.outputs)
        read.update((name, None) for name in self.outputs if name not in made)
        return tuple(read)


class Graph(NamedTuple):
    """A feed-forward graph, its nodes in an order in which they can be computed.

    Attributes:
      nodes: those that the output needs.
      input: name of the images.
      shape: of the images, the batch first; None for a dimension that the file leaves open.
      output: name of the logits.
      initializers: named arrays.
      fixed: names of those that are inputs of the file.
      opset: of the file; nodes have the form of the newest one.
    """

    nodes: tuple[Node, ...]
    input: str
    shape: tuple[int | None, ...]
    output: str
    initializers: dict[str, np.ndarray]
    fixed: frozenset[str]
    opset: int


def read_graph(
    path: Path,
    supported: frozenset[str],
    max_bytes: int,
    output: str | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> Graph:
    """Read and check a file.

    Args:
      path: the file.
      supported: types of operations that can be computed.
      max_bytes: of the file, and of all weights beside it.
      output: name of the output that is wanted, where there are several.
      fixed: values of inputs other than the images, by name.

    Raises:
      ModelError: where something is missing, damaged, too large or not supported.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ModelError("ONNX files need the package onnx: pip install mixtrain_jax[onnx].") from error
    data = _read(path, 0, None, max_bytes, path)
    try:
        _check_fields(data, onnx.ModelProto.DESCRIPTOR, path)
        proto = onnx.ModelProto()
        proto.ParseFromString(data)
        return _graph(proto, path, supported, max_bytes, output, fixed, onnx)
    except ModelError:
        raise
    except (DecodeError, UnicodeDecodeError, ValueError, OverflowError, IndexError) as error:
        raise ModelError(f"{path} is damaged or no ONNX file: {first_line(error)}") from error


def _read(path: Path, offset: int, length: int | None, max_bytes: int, model: Path) -> bytes:
    """`length` bytes of a regular file from an offset, or all that follow."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for its other end
            raise ModelError(f"{path} is not a regular file.")
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            length = found.st_size - offset if length is None else length
            if offset < 0 or length < 0 or offset + length > found.st_size:
                raise ModelError(
                    f"{model} wants bytes {offset} to {offset + length} of {path}, which has {found.st_size}."
                )
            if length > max_bytes:
                raise ModelError(f"{path}: {length} bytes to read, max_bytes allows {max_bytes}.")
            file.seek(offset)
            return file.read(length)
    except (OSError, ValueError) as error:
        raise ModelError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error


def _check_fields(data: bytes, descriptor: Any, path: Path) -> None:
    """Count the fields of the protobuf before it is read: an empty message of two bytes takes a hundred in memory."""
    count, left = 0, [(0, len(data), descriptor)]
    while left:
        position, end, message = left.pop()
        fields = message.fields_by_number
        while position < end:
            count += 1
            if count > MAX_FIELDS:
                raise ModelError(f"{path} has more than {MAX_FIELDS} protobuf fields, far more than a network needs.")
            tag, position = _varint(data, position, end)
            field, kind = fields.get(tag >> 3), tag & 7
            if kind == 0:
                _, position = _varint(data, position, end)
            elif kind in (1, 5):
                position += 8 if kind == 1 else 4
            elif kind == 2:
                length, position = _varint(data, position, end)
                inside = field is not None and field.message_type
                numbers = field is not None and field.type not in (1, 2, 9, 11, 12)  # no floats, text, message or bytes
                if inside and position + length <= end:
                    left.append((position, position + length, inside))
                elif numbers and length > _MAX_PACKED:
                    raise ModelError(f"{path}: the field {field.full_name} has {length} bytes of integers, too many.")
                position += length
            else:
                raise ValueError(f"wire type {kind} at byte {position}")
            if position > end:
                raise ValueError(f"a field ends at byte {position}, after what holds it ({end})")


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise ValueError("it ends within a number")
        byte = data[position]
        value |= (byte & 127) << shift
        position += 1
        if byte < 128:
            return value, position
    raise ValueError(f"a number of more than 10 bytes at byte {position}")


def _graph(
    proto: Any,
    path: Path,
    supported: frozenset[str],
    max_bytes: int,
    output: str | None,
    fixed: Mapping[str, Any] | None,
    onnx: Any,
) -> Graph:
    opset = _opset(proto, path)
    graph = proto.graph
    if len(graph.node) > MAX_NODES:
        raise ModelError(f"{path} has {len(graph.node)} nodes; at most {MAX_NODES} are read.")
    if proto.functions or proto.training_info or graph.sparse_initializer:
        raise ModelError(f"{path} has model-local functions, training information or sparse weights: not supported.")
    folder = _Folder(path, max_bytes, onnx)
    initializers = {}
    for tensor in graph.initializer:
        if not tensor.name or tensor.name in initializers:
            raise ModelError(f"{path}: the initializer name {tensor.name!r} is empty or taken twice.")
        initializers[tensor.name] = folder.tensor(tensor, f"the initializer {tensor.name!r}")
    inputs = {value.name: value for value in graph.input if value.name not in initializers}
    if "" in inputs or "" in initializers:
        raise ModelError(f"{path}: an input has no name.")
    for name, value in (fixed or {}).items():
        initializers[name] = _fixed(inputs.pop(name, None), name, value, folder, path)
    reader = _Reader(path, opset, supported, folder, _schemas(onnx), initializers)
    nodes, known = [], {*inputs, *initializers}
    for i, proto_node in enumerate(graph.node):
        node = reader.node(proto_node, i)
        for name in node.inputs:
            if name and name not in known and name not in initializers:
                raise ModelError(
                    f"{node.where} wants {name!r}, which nothing before it makes: the graph has a cycle, "
                    "is not sorted, or an input dangles."
                )
        known.update(node.inputs)
        for name in filter(None, node.outputs):
            if name in known:
                raise ModelError(f"{node.where} makes {name!r}, which exists already.")
            known.add(name)
        if node.op == "Constant":
            initializers[node.outputs[0]] = _constant(node)
        else:
            nodes.append(node)
    logits = _chosen([value.name for value in graph.output], output, path)
    if logits not in known:
        raise ModelError(f"{path}: nothing makes the output {logits!r}.")
    needed = _needed(nodes, logits)
    used = {name for node in needed for name in node.inputs} | {logits}
    images = _images({name: value for name, value in inputs.items() if name in used}, path)
    shape = _input_shape(images, path, onnx)
    kept = {name: value for name, value in initializers.items() if name in used or name in (fixed or ())}
    return Graph(needed, images.name, shape, logits, kept, frozenset(fixed or ()), opset)


def _fixed(declared: Any, name: str, value: Any, folder: _Folder, path: Path) -> np.ndarray:
    """What an input is fixed to, in the type and shape that the file declares."""
    if declared is None:
        raise ModelError(f"{path} has no input {name!r} that could be fixed.")
    dtype = folder.dtype(declared.type.tensor_type.elem_type, f"{path}, the input {name!r}")
    found = np.asarray(value)
    sizes = [size.dim_value if size.HasField("dim_value") else None for size in declared.type.tensor_type.shape.dim]
    if not np.can_cast(found.dtype, dtype, "same_kind") or found.ndim != len(sizes):
        raise ModelError(f"{path}: the input {name!r} wants {dtype}{sizes}, got {found.dtype}{list(found.shape)}.")
    if any(wanted not in (None, size) for wanted, size in zip(sizes, found.shape, strict=True)):
        raise ModelError(f"{path}: the input {name!r} wants {dtype}{sizes}, got {found.dtype}{list(found.shape)}.")
    return found.astype(dtype)


def _chosen(outputs: list[str], output: str | None, path: Path) -> str:
    if output is not None and output not in outputs:
        raise ModelError(f"{path} has no output {output!r}, only {outputs}.")
    if output is None and len(outputs) != 1:
        raise ModelError(f"{path} has the outputs {outputs}: say which one is wanted with output=NAME.")
    return output or outputs[0]


def _images(inputs: dict[str, Any], path: Path) -> Any:
    """The one input that is left."""
    if not inputs:
        raise ModelError(f"{path}: the output does not depend on any input.")
    if len(inputs) > 1:
        raise ModelError(
            f"{path} has the inputs {list(inputs)}, where one is expected, the images: give the values of the others "
            "with fixed={NAME: array}."
        )
    return next(iter(inputs.values()))


def _opset(proto: Any, path: Path) -> int:
    versions = sorted({opset.version for opset in proto.opset_import if opset.domain in ("", "ai.onnx")})
    if len(versions) != 1 or not OPSETS[0] <= versions[0] <= OPSETS[1]:
        raise ModelError(
            f"{path}: expected one opset of ai.onnx from {OPSETS[0]} to {OPSETS[1]}, got {versions}. Export it anew, "
            "or convert it with onnx.version_converter."
        )
    return versions[0]


def _needed(nodes: list[Node], output: str) -> tuple[Node, ...]:
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if not wanted.isdisjoint(filter(None, node.outputs)):
            kept.append(node._replace(outputs=tuple(name if name in wanted else "" for name in node.outputs)))
            wanted.update(node.inputs)
    return tuple(reversed(kept))


def _input_shape(value: Any, path: Path, onnx: Any) -> tuple[int | None, ...]:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or tensor.elem_type != onnx.TensorProto.FLOAT:
        raise ModelError(f"{path}: the input {value.name!r} must be a tensor of 32-bit floats.")
    shape = tuple(size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
    if not shape or any(size is not None and not 0 < size < 2**31 for size in shape):
        raise ModelError(f"{path}: the input {value.name!r} must have a shape [n, ...] or [...], got {list(shape)}.")
    return shape


class _Reader(NamedTuple):
    """What nodes are read with.

    Attributes:
      path: the file.
      opset: that its nodes are written to.
      supported: types of operations that can be computed.
      folder: reads tensors.
      schema: the schema of an operator in an opset, None where there is none.
      initializers: named arrays; those that old nodes have as attributes are added.
    """

    path: Path
    opset: int
    supported: frozenset[str]
    folder: _Folder
    schema: Callable[[str, int], Schema | None]
    initializers: dict[str, np.ndarray]

    def node(self, proto: Any, i: int) -> Node:
        """A node in the form of the newest opset, checked against the schema of its own."""
        where = f"{self.path}: node {i} ({proto.op_type}{f' {proto.name!r}' if proto.name else ''})"
        if proto.domain not in ("", "ai.onnx"):
            raise ModelError(
                f"{where} is of the operator domain {proto.domain!r}; only ONNX's own operators are supported."
            )
        if proto.op_type not in self.supported:
            raise ModelError(f"{where}: this operator is not supported. docs/onnx-operators.md lists those that are.")
        old, new = self.schema(proto.op_type, self.opset), self.schema(proto.op_type, OPSETS[1])
        if old is None or new is None or old.deprecated:
            raise ModelError(f"{where}: opset {self.opset} has no such operator.")
        inputs, types = self._inputs(proto, old, where)
        given = self._given(proto, old, where)
        if proto.op_type == "Constant":  # exactly one attribute says what it is
            return Node(proto.op_type, where, tuple(inputs), tuple(proto.output), given, tuple(types))
        for branch in (value for value in given.values() if isinstance(value, Branch)):
            if len(branch.outputs) != len(proto.output):
                raise ModelError(f"{where} has {len(proto.output)} outputs, a branch of it {len(branch.outputs)}.")
            inputs += [name for name in branch.captured() if name not in inputs]
        attributes, moved = renewed(proto.op_type, given, old, new)
        endless = [name for name, v in given.items() if isinstance(v, float) and not math.isfinite(v)]
        if not moved and endless:
            raise ModelError(f"{where}: the attribute {endless[0]!r} must be finite, got {given[endless[0]]}.")
        if proto.op_type == "BatchNormalization" and old.since < 14:  # the number of outputs said it
            attributes["training_mode"] = int(len(proto.output) > 1)
        for k, value in sorted(moved.items()):
            name = f"{new.names[k]} of node {i}"
            if name in self.initializers:
                raise ModelError(f"{self.path}: the name {name!r} is taken.")
            self.initializers[name] = value
            inputs += [""] * (k - len(inputs)) + [name]
            types += new.types[len(types) : k + 1]
        return Node(proto.op_type, where, tuple(inputs), tuple(proto.output), attributes, tuple(types))

    def _inputs(self, proto: Any, schema: Schema, where: str) -> tuple[list[str], list[tuple[frozenset[str], str]]]:
        for what, count, (low, high) in (
            ("inputs", len(proto.input), schema.inputs),
            ("outputs", len(proto.output), schema.outputs),
        ):
            if not low <= count <= high:
                raise ModelError(f"{where} has {count} {what}, expected {low} to {high}.")
        formal = [min(k, len(schema.names) - 1) for k in range(len(proto.input))]
        if any(not name and not schema.optional[k] for name, k in zip(proto.input, formal, strict=True)):
            raise ModelError(f"{where} leaves out an input that it needs.")
        return list(proto.input), [schema.types[k] for k in formal]

    def _given(self, proto: Any, schema: Schema, where: str) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for attribute in proto.attribute:
            if attribute.name not in schema.kinds or attribute.name in given:
                raise ModelError(
                    f"{where} has the attribute {attribute.name!r}, which is unknown in opset {self.opset} or twice "
                    "there."
                )
            if attribute.type != schema.kinds[attribute.name] or attribute.ref_attr_name:
                raise ModelError(f"{where}: the attribute {attribute.name!r} is of a wrong type.")
            inner = attribute.type == 5 and proto.op_type == "If"
            given[attribute.name] = self._branch(attribute.g) if inner else _value(attribute, self.folder, where)
        missing = [name for name in schema.required if name not in given]
        if missing:
            raise ModelError(f"{where} lacks the attribute {missing[0]!r}.")
        return given

    def _branch(self, proto: Any) -> Branch:
        reader, nodes = self._replace(initializers={}), []
        for tensor in proto.initializer:
            reader.initializers[tensor.name] = self.folder.tensor(tensor, f"the initializer {tensor.name!r}")
        for i, proto_node in enumerate(proto.node):
            node = reader.node(proto_node, i)
            if node.op == "Constant":
                reader.initializers[node.outputs[0]] = _constant(node)
            else:
                nodes.append(node)
        return Branch(tuple(nodes), tuple(value.name for value in proto.output), reader.initializers)


def _schemas(onnx: Any) -> Callable[[str, int], Schema | None]:
    """Schemas by operator and opset, each read once."""

    @cache
    def schema(op: str, opset: int) -> Schema | None:
        try:
            return described(onnx.defs.get_schema(op, opset, ""))
        except onnx.defs.SchemaError:
            return None

    return schema


def _value(attribute: Any, folder: _Folder, where: str) -> Any:
    if attribute.type == 4:
        return folder.tensor(attribute.t, f"{where}, the attribute {attribute.name!r}")
    value = plain(attribute)
    if value is None:
        raise ModelError(f"{where}: the attribute {attribute.name!r} is of a kind that is not supported.")
    return value


def _constant(node: Node) -> np.ndarray:
    if len(node.attributes) != 1:
        raise ModelError(f"{node.where} must have exactly one attribute, got {sorted(node.attributes)}.")
    ((name, value),) = node.attributes.items()
    if name == "value":
        return value
    if name not in ("value_float", "value_floats", "value_int", "value_ints"):
        raise ModelError(f"{node.where}: constants by {name} are not supported.")
    return np.asarray(value, np.float32 if "float" in name else np.int64)


class _Folder:
    """Reads tensors, those beside the file included."""

    def __init__(self, path: Path, max_bytes: int, onnx: Any):
        self.path = path
        self.left = max_bytes  # that may be read beside the file
        proto = onnx.TensorProto
        self.external = proto.EXTERNAL
        self.kinds = {
            proto.FLOAT: ("<f4", "float_data"),
            proto.DOUBLE: ("<f8", "double_data"),
            proto.INT32: ("<i4", "int32_data"),
            proto.INT64: ("<i8", "int64_data"),
            proto.BOOL: ("?", "int32_data"),
        }

    def dtype(self, kind: int, what: str) -> np.dtype:
        """The dtype of a data type of the file."""
        if kind not in self.kinds:
            raise ModelError(f"{what} is of data type {kind}; only float, double, int32, int64, bool are read.")
        return np.dtype(self.kinds[kind][0])

    def tensor(self, proto: Any, what: str) -> np.ndarray:
        what = f"{self.path}, {what}" if not what.startswith(str(self.path)) else what
        dtype, shape = self.dtype(proto.data_type, what), tuple(proto.dims)
        if any(size < 0 for size in shape) or len(shape) > 16 or proto.HasField("segment"):
            raise ModelError(f"{what} has the shape {list(shape)} or comes in segments: not supported.")
        entries = math.prod(shape)
        size = entries * dtype.itemsize
        holders = [proto.HasField("raw_data"), proto.data_location == self.external]
        holders += [len(getattr(proto, name)) > 0 for name in sorted({name for _, name in self.kinds.values()})]
        if sum(holders) > 1:
            raise ModelError(f"{what} has its values in more than one place.")
        if proto.data_location == self.external:
            raw = self._beside(proto, size, what)
        elif proto.HasField("raw_data"):
            raw = proto.raw_data
        else:
            values = getattr(proto, self.kinds[proto.data_type][1])
            if len(values) != entries:
                raise ModelError(f"{what} has {len(values)} values for the shape {list(shape)}.")
            return np.array(values, dtype.newbyteorder("=")).reshape(shape)
        if len(raw) != size:
            raise ModelError(f"{what} has {len(raw)} bytes, its shape {list(shape)} needs {size}.")
        if dtype == np.bool_:
            return (np.frombuffer(raw, np.uint8) != 0).reshape(shape)
        return np.frombuffer(raw, dtype).astype(dtype.newbyteorder("=")).reshape(shape)

    def _beside(self, proto: Any, size: int, what: str) -> bytes:
        entries = {entry.key: entry.value for entry in proto.external_data}
        location = entries.get("location", "")
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
            folder = self.path.parent.resolve(strict=True)
            file = (folder / location).resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"{what}: cannot find its external data {location!r}: {first_line(error)}") from error
        if not location or not file.is_relative_to(folder):
            raise ModelError(f"{what}: its external data {location!r} lie outside the folder of the file; refused.")
        if length != size:
            raise ModelError(f"{what} has {length} bytes of external data, its shape needs {size}.")
        raw = _read(file, offset, length, self.left, self.path)
        self.left -= length
        return raw
