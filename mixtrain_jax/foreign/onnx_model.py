"""ONNX files as JAX functions.

Our own importer, of feed-forward networks only. The package that runs ONNX models on JAX, jaxonnxruntime 0.3 of
2023, still imports beside jax 0.10 to 0.12, but lacks Relu of opset 13, Flatten and Shape of 21, Gelu and
LayerNormalization, fails on Clip, and cannot compile shapes that are computed. No other was found.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.errors import ModelError, first_line
from mixtrain_jax.foreign.model import Model, checked
from mixtrain_jax.foreign.onnx_check import disagreement
from mixtrain_jax.foreign.onnx_graph import OPSETS, Graph, Node, read_graph
from mixtrain_jax.foreign.onnx_ops import ENDS, FOLDABLE, KNOWN_INPUTS, MAX_KNOWN, OPERATIONS, is_known
from mixtrain_jax.foreign.onnx_structure import structure

MAX_BYTES = 2**30
_MAX_ENTRIES = 2**26  # of a value, for each image
_MAX_KNOWN_TOTAL = 16 * MAX_KNOWN
_SUPPORTED = frozenset({*OPERATIONS, "Constant", "If"})
_TYPES = {"float32": "tensor(float)", "float64": "tensor(double)"}  # as schemas call them; others: tensor(dtype)

Values = dict[str, Any]


def load_onnx(
    path: Path | str,
    *,
    shape: tuple[int, ...] | None = None,
    layout: Literal["declared", "nhwc"] = "declared",
    output: str | None = None,
    fixed: Mapping[str, Any] | None = None,
    check: bool | None = False,
    max_bytes: int = MAX_BYTES,
) -> Model:
    """Read a feed-forward network of opset 8 to 21: float32 images in, logits or other floats out.

    The parameters are the float32 weights by their names in the file; scalars and integers are part of the function.
    Outputs of more than one dimension an image are flattened, the last dimension fastest.

    The batch is the first dimension of the input. Where the file fixes it to b images, any multiple of b can be given,
    and each b of them are computed by themselves. Where the file leaves it open but works for one image only, images
    are computed one by one. An input without a batch, such as `[64]`, or a column `[64, 1]` that becomes `[10, 1]`, is
    one image. `notes` says which.

    Files are not trusted: damaged ones, those that ask for much memory, and weights outside the file's folder are
    refused. Without `check` reading computes nothing but shapes; how long `apply` takes is up to the network.

    Args:
      path: the file. Weights beside it are read from its folder alone.
      shape: of one image in the file's own layout, for the dimensions that it leaves open.
      layout: "declared" for images in the layout of the file, for PyTorch's exports `[n, channels, height, width]`;
        "nhwc" for images `[n, height, width, channels]`, transposed at the entrance to what the file wants.
      output: name of the output that is wanted, where the file has several.
      fixed: values of the inputs other than the images, by name, where the file has several.
      check: compare with ONNX Runtime, which must be installed, on a few random images; None does so where it is
        installed and the shape of images is known.
      max_bytes: of the file, and of the weights beside it.

    Returns:
      A model whose `apply` is compiled and can be bounded, attacked and differentiated.

    Raises:
      ModelError: where the file is missing, damaged, too large or not supported, or ONNX Runtime computes something
        else; by `apply`, where images do not fit.
    """
    path = Path(path)
    graph = read_graph(path, _SUPPORTED, max_bytes, output, fixed)
    if layout not in ("declared", "nhwc"):
        raise ModelError(f'layout must be "declared" or "nhwc", got {layout!r}.')
    if layout == "nhwc" and len(graph.shape) != 4:
        raise ModelError(f'{path} takes images of shape {list(graph.shape)}; layout="nhwc" wants 4 dimensions.')
    model, reading = _read(path, graph, shape, layout == "nhwc")
    known = model.shape is not None and None not in model.shape
    if check or (check is None and known and importlib.util.find_spec("onnxruntime") is not None):
        found = disagreement(path, graph, model, reading.batch, layout == "nhwc")
        model = model._replace(notes=(*model.notes, f"It agrees with ONNX Runtime to {found:.0e} on random images."))
    return model


class _Reading(NamedTuple):
    """How the file's input holds images.

    Attributes:
      batch: images at a time, None for any number, 0 where the input is one image, without a batch.
      note: what a user should know of it.
    """

    batch: int | None
    note: str = ""


def _readings(declared: tuple[int | None, ...]) -> list[_Reading]:
    whole = _Reading(0, f"Its input {_shown(declared)} is one image, without a batch: images are computed one by one.")
    batch, *rest = declared
    if not rest:
        return [whole]
    if batch is None:
        return [_Reading(None), _Reading(1, "It works for a batch of one only: images are computed one by one.")]
    column = all(size == 1 for size in rest)  # rather than a batch of numbers
    readings = [_Reading(batch)] if batch == 1 else [_Reading(batch), whole]
    return readings[::-1] if column else readings


def _read(path: Path, graph: Graph, shape: tuple[int, ...] | None, nhwc: bool) -> tuple[Model, _Reading]:
    """The model by the first reading whose shapes fit; the first one's error where none does."""
    errors = []
    for reading in _readings(graph.shape):
        try:
            model = _model(path, graph, shape, reading, nhwc)
            count = 3 if reading.batch is None else 2 * max(reading.batch, 1)
            if model.shape is not None and None not in model.shape:
                jax.eval_shape(model.apply, model.params, jax.ShapeDtypeStruct((count, *model.shape), jnp.float32))
        except ModelError as error:
            errors.append(error)
        else:
            return checked(model, count, least=1), reading
    raise errors[0]


def _model(path: Path, graph: Graph, shape: tuple[int, ...] | None, reading: _Reading, nhwc: bool) -> Model:
    declared = graph.shape[1:] if reading.batch != 0 else graph.shape
    if shape is not None and not _fits(shape, declared):
        raise ModelError(f"{path} declares images of shape {_shown(declared)}, which {list(shape)} does not fit.")
    image = declared if shape is None else tuple(shape)
    notes = (f"It is of opset {graph.opset}, read as {OPSETS[1]}.",) if graph.opset < 13 else ()
    notes = (*notes, reading.note) if reading.note else notes
    if graph.nodes and graph.nodes[-1].op in ENDS and graph.output in graph.nodes[-1].outputs:
        notes = (*notes, f"It ends with {graph.nodes[-1].op}: its outputs are the logits that this chooses by.")
    params, constants = _parted(graph)
    apply = _apply(path, graph, constants, image, reading.batch, nhwc)
    shown = (*image[1:], image[0]) if nhwc else image
    digest = structure(graph, params, constants, image, reading.batch, nhwc)
    return Model(apply, params, str(path), shown, None, notes, digest)


def _apply(
    path: Path, graph: Graph, constants: Values, image: tuple[int | None, ...], batch: int | None, nhwc: bool
) -> Callable[[Values, jax.Array], jax.Array]:

    def compute(params: Values, images: jax.Array) -> jax.Array:
        outputs = _run(graph, {**constants, **params}, images, path)
        count = images.shape[0] if batch != 0 else 1
        if outputs.shape[:1] != (count,) and count != 1:
            raise ModelError(
                f"{path} maps images {list(images.shape)} to {list(outputs.shape)}, expected [n, outputs]."
            )
        return outputs.reshape((count, -1))

    @jax.jit  # so that shapes are checked before anything is computed
    def apply(params: Values, images: jax.Array) -> jax.Array:
        images = jnp.asarray(images)
        if nhwc and images.ndim == 4:
            images = images.transpose(0, 3, 1, 2)
        if images.dtype != jnp.float32 or not images.ndim or not _fits(images.shape[1:], image):
            raise ModelError(
                f"{path} takes float32 images [n, {_shown(image)[1:]}, got {images.dtype}{list(images.shape)}"
                f"{' after the transpose of layout nhwc' if nhwc else ''}."
            )
        n = images.shape[0]
        if batch is None or n == batch:
            return compute(params, images)
        if n % max(batch, 1):
            raise ModelError(f"{path} takes {batch} images at a time; {n} is no multiple of that.")
        groups = images.reshape((n // batch, batch, *images.shape[1:])) if batch else images
        outputs = jax.vmap(lambda group: compute(params, group))(groups)
        return outputs.reshape((n, outputs.shape[-1]))

    return apply


def _fits(shape: tuple[int, ...], declared: tuple[int | None, ...]) -> bool:
    return len(shape) == len(declared) and all(
        size == wanted or wanted is None for size, wanted in zip(shape, declared, strict=True)
    )


def _shown(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"


def _parted(graph: Graph) -> tuple[Values, Values]:
    """Parameters, and what must be known when the graph is traced."""
    known, params, constants = _wanted_known(graph), {}, {}
    for name, value in graph.initializers.items():
        if value.dtype == np.float32 and value.ndim and name not in known and name not in graph.fixed:
            params[name] = jnp.asarray(value)
        else:
            constants[name] = value
    return params, constants


def _wanted_known(graph: Graph) -> set[str]:
    """Names of all that inputs which should be known, and integers, are computed from."""
    dependent, known = {graph.input}, set()
    for node in graph.nodes:
        if node.op != "Shape" and not dependent.isdisjoint(node.inputs):
            dependent.update(node.outputs)
    for node in reversed(graph.nodes):
        if node.op == "Shape":
            continue
        whole = not known.isdisjoint(node.outputs) or (node.op == "Cast" and node.attributes["to"] != 1)
        wanted = (
            node.inputs if whole else [node.inputs[i] for i in KNOWN_INPUTS.get(node.op, ()) if i < len(node.inputs)]
        )
        known.update(name for name in wanted if name not in dependent)
    return known


def _run(graph: Graph, values: Values, images: jax.Array, path: Path) -> jax.Array:
    values[graph.input] = images
    with np.errstate(all="ignore"), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("strict"):
        _run_nodes(graph.nodes, values, graph.output, _MAX_ENTRIES * max(len(images), 1))
    logits = values[graph.output]
    if is_known(logits):
        raise ModelError(f"{path}: the output does not depend on the images.")
    return logits


def _run_nodes(nodes: Sequence[Node], values: Values, output: str, limit: int) -> None:
    """Add what nodes compute to the values."""
    known = 0
    for node in nodes:
        inputs = [values[name] if name else None for name in node.inputs]
        with jax.named_scope(node.where.rpartition(": ")[2]):
            outputs = _one_branch(node, inputs, limit) if node.op == "If" else _compute(node, inputs, output)
        for name, value in zip(node.outputs, outputs, strict=False):
            known += value.size if is_known(value) else 0
            if value.size > limit or known > _MAX_KNOWN_TOTAL:
                raise ModelError(f"{node.where} makes an array of shape {list(value.shape)}: too large, refused.")
            values[name] = value


def _one_branch(node: Node, inputs: list[Any], limit: int) -> tuple[Any, ...]:
    """The outputs of an If whose condition is known."""
    condition, *captured = inputs
    if not is_known(condition) or condition.dtype != bool or condition.size != 1:
        raise ModelError(f"{node.where}: its condition depends on the images; only a known one is supported.")
    branch = node.attributes["then_branch" if condition.item() else "else_branch"]
    values = {**dict(zip(node.inputs[1:], captured, strict=True)), **branch.constants}
    _run_nodes(branch.nodes, values, "", limit)
    return tuple(values[name] for name in branch.outputs)


def _compute(node: Node, inputs: list[Any], output: str) -> tuple[Any, ...]:
    """The outputs of a node. What jax or NumPy say of shapes that do not fit is told as of this node."""
    _check_types(node, inputs)
    operation = (ENDS if node.op in ENDS and output == node.outputs[0] else OPERATIONS)[node.op]
    more = {"outputs": len(node.outputs)} if node.op == "Split" else {}
    try:
        result = _evaluated(node, operation, inputs, more)
    except ModelError as error:
        raise ModelError(f"{node.where}: {error}.") from None
    except Exception as error:
        shapes = [None if x is None else list(x.shape) for x in inputs]
        raise ModelError(f"{node.where} cannot take inputs of shapes {shapes}: {first_line(error)}") from error
    if any(node.outputs[len(result) :]):
        raise ModelError(f"{node.where} has outputs {list(node.outputs)}; only the first {len(result)} are supported.")
    if any(not is_known(x) and x.dtype not in (jnp.float32, jnp.bool_) for x in result):
        raise ModelError(
            f"{node.where} makes {result[0].dtype} of what depends on the images; only float32 and bool are supported."
        )
    return result


def _evaluated(node: Node, operation: Callable[..., Any], inputs: list[Any], more: dict[str, int]) -> tuple[Any, ...]:
    """The outputs of a node, as NumPy arrays where all its inputs are, and it can be part of shape arithmetic."""
    if node.op not in FOLDABLE or not all(x is None or is_known(x) for x in inputs):
        result = operation(node.attributes, *inputs, **more)
        return result if isinstance(result, tuple) else (result,)
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        result = operation(node.attributes, *inputs, **more)
        return tuple(np.asarray(x) for x in (result if isinstance(result, tuple) else (result,)))


def _check_types(node: Node, inputs: list[Any]) -> None:
    shared: dict[str, str] = {}
    for x, (allowed, kind) in zip(inputs, node.types, strict=True):
        if x is None:
            continue
        found = _TYPES.get(str(x.dtype), f"tensor({x.dtype})")
        if found not in allowed or shared.setdefault(kind, found) != found:
            raise ModelError(f"{node.where} cannot take an input of type {found}.")
