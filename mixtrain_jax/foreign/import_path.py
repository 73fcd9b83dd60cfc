"""Models that are Python objects: functions, Flax and Equinox modules, by import path or at hand."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.errors import ModelError, first_line
from mixtrain_jax.foreign.model import Model, checked

Apply = Callable[[Any, jax.Array], jax.Array]
MAX_BYTES = 2**30
_MANY = 2**16 - 1  # what a ZIP file says for as many entries or more, and the longest comment at its end


def load_import_path(
    spec: str,
    *,
    shape: tuple[int, ...] | None = None,
    params: Any = None,
    per_example: bool = False,
) -> Model:
    """Import `package.module:attribute` and make a model of it, as `from_object` does.

    This runs the code of the module: only name one that you would run. It is looked for where Python looks for imports.

    Args:
      spec: a module, a colon, and an attribute, which may have dots.
      shape: of one image. Where it is given, the output for such images is checked.
      params: of a Flax linen module or a function of `(params, images)`: a pytree, or a file for `read_params`.
      per_example: the model takes one image and returns `[classes]`, as Equinox modules do.

    Raises:
      ModelError: where it is not found, fails to import, or is no model.
    """
    module_name, colon, attribute = spec.partition(":")
    if not colon or not module_name or not attribute:
        raise ModelError(f"Expected package.module:attribute, got {spec!r}.")
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise ModelError(f"There is no module {error.name!r} among sys.path; wanted for {spec!r}.") from error
        raise ModelError(f"Importing {module_name!r} failed: {first_line(error)}") from error
    except Exception as error:  # whatever the module's own code raises
        raise ModelError(f"Importing {module_name!r} failed: {type(error).__name__}: {first_line(error)}") from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise ModelError(f"{module_name!r} has no attribute {attribute!r}; wanted for {spec!r}.")
        found = getattr(found, name)
    return from_object(found, name=spec, shape=shape, params=params, per_example=per_example)


def from_object(
    model: Any,
    *,
    name: str = "model",
    shape: tuple[int, ...] | None = None,
    params: Any = None,
    per_example: bool = False,
) -> Model:
    """Make a model of what is at hand.

    It may be a Flax linen module (with `params`), a Flax nnx or an Equinox module (which have their own, and are copied
    in inference mode), a pair `(apply, params)` or `(linen module, params)`, a function of `(params, images)` with
    `params`, a function of images alone, whose weights are no parameters then, or a function of nothing that returns
    one of these.

    Args:
      model: the object.
      name: what errors and reports call it.
      shape: of one image. Where it is given, the output for such images is checked. That runs the model on some random
        images only where its jaxpr leaves open whether it mixes the images of a batch.
      params: a pytree, or a file of it as `read_params` reads.
      per_example: the model takes one image and returns `[classes]`.

    Raises:
      ModelError: where it is none of these, or does not map images to logits.
    """
    params = read_params(Path(params)) if isinstance(params, str | Path) else params
    apply, params = _pair(model, params, name, made=False)
    if per_example:
        of_one = apply

        def apply(params: Any, images: jax.Array) -> jax.Array:
            return jax.vmap(lambda image: of_one(params, image))(images)

    try:
        return checked(Model(apply, params, name, tuple(shape) if shape is not None else None, None), run=True)
    except ModelError as error:
        hint = "" if per_example else " If it takes one image and not a batch of them, say per_example."
        raise ModelError(f"{error}{hint}") from error


def _pair(model: Any, params: Any, name: str, made: bool) -> tuple[Apply, Any]:
    linen, nnx, equinox = (sys.modules.get(module) for module in ("flax.linen", "flax.nnx", "equinox"))
    if isinstance(model, tuple) and len(model) == 2:
        if params is not None:
            raise ModelError(f"{name} is a pair with parameters of its own; leave out params.")
        return _pair(model[0], model[1], name, made=True)
    if linen and isinstance(model, linen.Module):
        if params is None:
            raise ModelError(f"{name} is a Flax linen module, which has no parameters of its own: give params.")
        collections = isinstance(params, dict) and "params" in params
        return model.apply, params if collections else {"params": params}
    if nnx and isinstance(model, nnx.Module):
        _no_params(params, name, "a Flax nnx module")
        return _of_nnx(model, nnx)
    if equinox and isinstance(model, equinox.Module):
        _no_params(params, name, "an Equinox module")
        return _of_equinox(model, equinox, name)
    if not callable(model):
        raise ModelError(
            f"{name} is of type {type(model).__name__}, which is no function, module or pair (apply, params)."
        )
    if params is not None:
        return model, params
    if _takes_nothing(model):
        if made:
            raise ModelError(f"{name} makes a function of nothing once more; it must make a model.")
        try:
            model = model()
        except Exception as error:  # whatever the user's code raises
            raise ModelError(f"Making {name} failed: {type(error).__name__}: {first_line(error)}") from error
        return _pair(model, params, name, made=True)
    if inspect.isclass(model):
        raise ModelError(f"{name} is a class that needs arguments; name an instance, or a function that makes one.")
    return lambda params, images: model(images), {}


def _no_params(params: Any, name: str, what: str) -> None:
    if params is not None:
        raise ModelError(f"{name} is {what}, which has parameters of its own; leave out params.")


def _takes_nothing(function: Any) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    variable = [p for p in parameters if p.kind is p.VAR_POSITIONAL]
    return not required and not variable


def _of_nnx(model: Any, nnx: Any) -> tuple[Apply, Any]:
    model = nnx.clone(model)
    model.eval()
    definition, keys, params = nnx.split(model, nnx.RngState, ...)
    return lambda params, images: nnx.merge(definition, keys, params)(images), params


def _of_equinox(model: Any, equinox: Any, name: str) -> tuple[Apply, Any]:
    if not callable(model):
        raise ModelError(f"{name} is an Equinox module that cannot be called.")
    params, static = equinox.partition(equinox.nn.inference_mode(model), equinox.is_inexact_array)
    return lambda params, images: equinox.combine(params, static)(images), params


def read_params(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """Parameters from a file, of a kind that cannot hold code.

    It is a `.msgpack` file of `flax.serialization.to_bytes`, or a `.npz` file with names like `params/Dense_0/bias`.

    Args:
      path: the file.
      max_bytes: of the file, and of what it unpacks to.

    Raises:
      ModelError: where it is missing, damaged, too large, of another kind, or holds anything but arrays of numbers.
    """
    if path.suffix not in (".msgpack", ".npz"):
        raise ModelError(f"Parameters are read from .msgpack or .npz, got {path}.")
    try:
        if path.exists() and not path.is_file():  # a device may have no end, and a pipe may keep us waiting
            raise ModelError(f"{path} is not a regular file.")
        _check_size(path, os.path.getsize(path), max_bytes)
        tree = _npz(path, max_bytes) if path.suffix == ".npz" else _msgpack(path)
        leaves = jax.tree.leaves(tree)
    except OSError as error:
        raise ModelError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ModelError:
        raise
    except Exception as error:  # msgpack, zip and NumPy each raise what they like
        raise ModelError(f"{path} is damaged or holds no parameters: {first_line(error)}") from error
    if not isinstance(tree, dict) or not leaves or not all(map(_is_numbers, leaves)):
        raise ModelError(f"{path} holds no tree of arrays of numbers.")
    return jax.tree.map(jnp.asarray, tree)


def _check_size(path: Path, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ModelError(f"{path}: {size} bytes to read, max_bytes allows {max_bytes}.")


def _npz(path: Path, max_bytes: int) -> dict[str, Any]:
    with zipfile.ZipFile(path) as file:
        _check_size(path, sum(entry.file_size for entry in file.infolist()), max_bytes)
        if _entries(path) not in (len(file.infolist()), _MANY):  # a damaged entry of the directory may hide the next
            raise ModelError(f"{path} is damaged: its directory does not list as many arrays as it says.")
        if (damaged := file.testzip()) is not None:  # NumPy reads as much as a header says, which may be damaged
            raise ModelError(f"{path} is damaged: {damaged} does not match its checksum.")
    with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
        return _nested({name: file[name] for name in file.files}, path)


def _entries(path: Path) -> int:
    """How many entries a ZIP file says it has, in its end record, which a comment of up to 64 KiB may follow."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - _MANY - 22))
        end = file.read()
    start = end.rfind(b"PK\x05\x06")
    return int.from_bytes(end[start + 10 : start + 12], "little")


def _msgpack(path: Path) -> Any:
    import flax.serialization

    return flax.serialization.msgpack_restore(path.read_bytes())


def _is_numbers(leaf: Any) -> bool:
    real = (np.bool_, np.integer, np.floating)
    return isinstance(leaf, np.ndarray) and any(jnp.issubdtype(leaf.dtype, kind) for kind in real)


def _nested(flat: dict[str, np.ndarray], path: Path) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ModelError(f"{path}: {parent!r} of {name!r} is an array already.")
        place[last] = leaf
    return tree
