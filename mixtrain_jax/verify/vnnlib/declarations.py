"""The variables of a query, and the networks that they belong to."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import NamedTuple

from mixtrain_jax.errors import QueryError

MAX_VARIABLES = 2**24
MAX_NETWORKS = 16
_CLASSIC = re.compile(r"([XY])_(0|[1-9]\d{0,8})", re.ASCII)
_NAME = re.compile(r"[A-Za-z][\w@.-]*", re.ASCII)
_INDEXED = re.compile(r"([^\s\[]+)\s*\[([^\]]*)\]", re.ASCII)
_FLOATS = {"real": "real", "float32": "float32"}  # by their names in lower case


class Tensor(NamedTuple):
    """An input or an output of a network.

    Attributes:
      name: in the query.
      kind: its type, as written: Real, real or float32.
      shape: as declared.
      start: number of its first entry among all inputs of the query, or among all outputs.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


class Network(NamedTuple):
    """A network that a query declares.

    Attributes:
      name: in the query; empty in version 1.0, whose one network has none.
      inputs: one tensor.
      outputs: one tensor.
      same_as: name of the network that this one is, weights included; empty where it has a file of its own.
    """

    name: str
    inputs: Tensor
    outputs: Tensor
    same_as: str = ""


@dataclasses.dataclass
class Symbols:
    """What names stand for while a query is read."""

    classic: dict[str, list[int]] = dataclasses.field(default_factory=lambda: {"X": [], "Y": []})
    networks: list[Network] = dataclasses.field(default_factory=list)
    tensors: dict[str, tuple[Tensor, bool]] = dataclasses.field(default_factory=dict)  # and whether it is an input
    known: dict[str, int] = dataclasses.field(default_factory=dict)  # numbers of variables by their text

    def declare_classic(self, name: str) -> None:
        """Declare a variable of version 1.0: X_i or Y_j."""
        found = _CLASSIC.fullmatch(name)
        if found is None:
            raise QueryError(f"the variable {name!r} is no X_i and no Y_j")
        if name in self.known or self.networks:
            raise QueryError(f"{name} is declared twice, or beside networks")
        kind, index = found[1], int(found[2])
        if index >= MAX_VARIABLES:
            raise QueryError(f"{name}: at most {MAX_VARIABLES} variables are read")
        self.classic[kind].append(index)
        self.known[name] = index if kind == "X" else -1 - index

    def declare_network(self, name: str, parts: list[tuple]) -> None:
        """Declare a network of version 2.0 by what its parentheses hold."""
        inputs, outputs, same_as = [], [], ""
        if len(self.networks) >= MAX_NETWORKS:
            raise QueryError(f"more than {MAX_NETWORKS} networks are declared")
        self._check_new(name, "network")
        for what, *words in parts:
            if what == "declare-input":
                inputs.append(words)
            elif what == "declare-output":
                outputs.append(words)
            else:  # equal-to and isomorphic-to, which asks nothing of who verifies
                same_as = self._same_as(what, words[0], same_as)
        if len(inputs) != 1 or len(outputs) != 1:
            raise QueryError(
                f"network {name} has {len(inputs)} inputs and {len(outputs)} outputs; one of each is supported"
            )
        tensors = (self._declare(*inputs[0], is_input=True), self._declare(*outputs[0], is_input=False))
        if same_as:
            other = next(network for network in self.networks if network.name == same_as)
            if [other.inputs.shape, other.outputs.shape] != [tensor.shape for tensor in tensors]:
                raise QueryError(f"network {name} is equal to {same_as} and has other shapes")
        self.networks.append(Network(name, *tensors, same_as))

    def _same_as(self, what: str, other: str, earlier: str) -> str:
        if earlier or other not in [network.name for network in self.networks if not network.same_as]:
            raise QueryError(f"({what} {other}) must be the only one, and name an earlier network with its own file")
        return other if what == "equal-to" else ""

    def _declare(self, name: str, kind: str, shape: tuple[int, ...], *, is_input: bool) -> Tensor:
        self._check_new(name, "variable")
        if kind.lower() not in _FLOATS:
            raise QueryError(f"{name} is of type {kind}; real and float32 are supported")
        before = sum(tensor.size for tensor, other in self.tensors.values() if other == is_input)
        if before + math.prod(shape) > MAX_VARIABLES:
            raise QueryError(f"{name}: at most {MAX_VARIABLES} inputs and as many outputs are read")
        tensor = Tensor(name, kind, shape, before)
        if not tensor.size:
            raise QueryError(f"{name} of shape {list(shape)} has no entries")
        self.tensors[name] = (tensor, is_input)
        return tensor

    def _check_new(self, name: str, what: str) -> None:
        taken = {*self.tensors, *(network.name for network in self.networks)}
        if not _NAME.fullmatch(name) or name in taken or self.known:
            raise QueryError(f"the name {name!r} of a {what} is taken, no name, or comes after assertions")

    def variable(self, text: str) -> int:
        """The number of a variable; `text` is its name, with its indices in brackets where it has any."""
        found = self.known.get(text)
        return self._indexed(text) if found is None else found

    def _indexed(self, text: str) -> int:
        name, indices = split_indices(text)
        tensor, is_input = self.tensors.get(name, (None, False))
        if tensor is None:
            raise QueryError(f"the variable {name!r} is not declared, or its use is not supported")
        if len(indices or ()) != len(tensor.shape):
            raise QueryError(f"{text} wants {len(tensor.shape)} indices for its shape {list(tensor.shape)}")
        place = 0
        for index, size in zip(indices or (), tensor.shape, strict=True):
            if index >= size:
                raise QueryError(f"{text} is outside its shape {list(tensor.shape)}")
            place = place * size + index
        place += tensor.start
        self.known[text] = place if is_input else -1 - place
        return self.known[text]

    def finished(self) -> tuple[Network, ...]:
        """The networks, once all of the query has been read."""
        if self.networks:
            return tuple(self.networks)
        for name, indices in self.classic.items():
            if sorted(indices) != list(range(len(indices))) or not indices:
                raise QueryError(f"variables {name}_0, {name}_1, ... must be declared, each once and without a gap")
        inputs, outputs = (Tensor(name, "real", (len(self.classic[name]),), 0) for name in ("X", "Y"))
        return (Network("", inputs, outputs),)


def split_indices(text: str) -> tuple[str, tuple[int, ...] | None]:
    """A name and the numbers in brackets behind it; None where there are no brackets."""
    found = _INDEXED.fullmatch(text)
    if found is None:
        return text, None
    words = found[2].replace(",", " ").split()
    if not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        raise QueryError(f"{text[:60]!r}: indices and sizes are whole numbers")
    return found[1], tuple(map(int, words))
