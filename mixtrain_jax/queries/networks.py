"""The networks of a query, from their files, as one function of one vector."""

from __future__ import annotations

import functools
import importlib.util
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax import foreign
from mixtrain_jax.errors import ModelError, QueryError
from mixtrain_jax.verify.vnnlib import Network, Query
from mixtrain_jax.verify.vnnlib.text import read_bytes

_MAX_BYTES = 2**30


class Subject(NamedTuple):
    """What a query is of.

    Attributes:
      apply: `(params, inputs [n, *shape]) -> [n, outputs + features]`, the columns of the query's specifications.
      params: weights.
      shape: of one input; all inputs of the query in their order.
      structure: what is compiled for one subject serves every other one of the same structure.
      replay: what ONNX Runtime computes, float32 `[inputs] -> [outputs]`; None where it isn't installed.
    """

    apply: Callable[[Any, jax.Array], jax.Array]
    params: Any
    shape: tuple[int, ...]
    structure: Hashable
    replay: Callable[[np.ndarray], np.ndarray] | None


def subject_of(
    query: Query, paths: Mapping[str, Path], loaded: Callable[[Path, Network], Loaded] | None = None
) -> Subject:
    """Read the networks of a query.

    Args:
      query: the query.
      paths: file of each network that has one of its own, by its name in the query; of the only one also by "".
      loaded: reads a file, by default anew each time.

    Raises:
      QueryError: where files and networks do not belong together, or sizes do not fit.
      ModelError: where a file cannot be read.
    """
    files = _files(query, paths)
    parts = [(loaded or load)(path, network) for network, path in zip(query.networks, files, strict=True)]
    for network, part in zip(query.networks, parts, strict=True):
        _check_sizes(network, part)
    replays = [part.replay for part in parts if part.replay is not None]
    replay = functools.partial(_replayed, query, replays) if len(replays) == len(parts) else None
    if len(parts) == 1 and not query.features:
        return Subject(*parts[0][:3], parts[0].structure, replay)
    structure = (tuple(part.structure for part in parts), query.networks, query.features)
    apply = _joined(query, [(part.apply, part.shape) for part in parts])
    return Subject(apply, tuple(part.params for part in parts), (query.inputs,), structure, replay)


class Loaded(NamedTuple):
    """A network from its file; fields as for `Subject`."""

    apply: Callable[[Any, jax.Array], jax.Array]
    params: Any
    shape: tuple[int, ...]
    structure: Hashable
    outputs: int
    replay: Callable[[np.ndarray], np.ndarray] | None
    path: Path


def load(path: Path, network: Network) -> Loaded:
    """Read a file, packed by gzip or not.

    Args:
      path: the file.
      network: as the query declares it; its shape is used for dimensions that the file leaves open.

    Raises:
      ModelError: where it cannot be read.
      QueryError: where its shape stays open.
    """
    if path.suffix == ".gz":
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / path.stem
            plain.write_bytes(read_bytes(path, _MAX_BYTES))
            return load(plain, network)._replace(path=path)
    model = foreign.load_onnx(path)
    if model.shape is None or None in model.shape:
        model = foreign.load_onnx(path, shape=_closed(path, model.shape, network))
    shape = tuple(size for size in model.shape or () if size is not None)
    if model.classes is None or len(shape) != len(model.shape or ()):
        raise QueryError(f"{path} leaves the shape of its input open.")
    has_runtime = importlib.util.find_spec("onnxruntime") is not None
    replay = foreign.onnxruntime_of(path) if has_runtime else None
    structure = model.structure or object()
    return Loaded(model.apply, model.params, shape, structure, model.classes, replay, path)


def _closed(path: Path, shape: tuple[int | None, ...] | None, network: Network) -> tuple[int, ...]:
    """The shape that a file leaves open, from that of the query."""
    declared = network.inputs.shape
    for found in (declared[1:], declared):
        if shape is not None and len(found) == len(shape):
            return found
    known = [size for size in shape or () if size is not None]
    if shape is not None and len(known) == len(shape) - 1 and network.inputs.size % math.prod(known) == 0:
        return tuple(network.inputs.size // math.prod(known) if size is None else size for size in shape)
    raise QueryError(
        f"{path} leaves the shape of its input open, and {list(declared)} inputs of the query do not tell."
    )


def _files(query: Query, paths: Mapping[str, Path]) -> list[Path]:
    """A file for each network."""
    own = [network.name for network in query.networks if not network.same_as]
    given = {own[0]: paths[""]} if set(paths) == {""} and len(own) == 1 else dict(paths)
    if set(given) != set(own):
        raise QueryError(f"The query wants a file of each of its networks {own}, and got files of {sorted(paths)}.")
    return [Path(given[network.same_as or network.name]) for network in query.networks]


def _check_sizes(network: Network, part: Loaded) -> None:
    wanted = (network.inputs.size, network.outputs.size)
    if (math.prod(part.shape), part.outputs) != wanted:
        raise QueryError(
            f"{part.path} maps {math.prod(part.shape)} inputs to {part.outputs} outputs, and the query wants "
            f"{wanted[0]} and {wanted[1]}."
        )


def _joined(
    query: Query, parts: Sequence[tuple[Callable[..., jax.Array], tuple[int, ...]]]
) -> Callable[..., jax.Array]:
    """Outputs of all networks, then the query's features."""
    places = [(network.inputs.start, network.inputs.size) for network in query.networks]
    features = query.features

    def apply(params: tuple[Any, ...], inputs: jax.Array) -> jax.Array:
        n = inputs.shape[0]
        outputs = [
            part(weights, inputs[:, start : start + size].reshape(n, *shape)).reshape(n, -1)
            for (part, shape), weights, (start, size) in zip(parts, params, places, strict=True)
        ]
        joined = jnp.concatenate(outputs, -1)

        def product(monomial: tuple[int, ...]) -> jax.Array:
            factors = [
                (inputs[:, i] if i >= 0 else joined[:, -1 - i]) ** power for i, power in Counter(monomial).items()
            ]
            return functools.reduce(jnp.multiply, factors)

        return jnp.concatenate([joined, *(product(monomial)[:, None] for monomial in features)], -1)

    return apply


def _replayed(query: Query, replays: Sequence[Callable[[np.ndarray], np.ndarray]], inputs: np.ndarray) -> np.ndarray:
    places = [(network.inputs.start, network.inputs.size, network.outputs.size) for network in query.networks]
    outputs = [replay(inputs[start : start + size]) for replay, (start, size, _) in zip(replays, places, strict=True)]
    if [len(found) for found in outputs] != [size for _, _, size in places]:
        raise ModelError("ONNX Runtime computes another number of outputs than the query declares.")
    return np.concatenate(outputs)
