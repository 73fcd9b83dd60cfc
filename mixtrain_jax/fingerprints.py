"""SHA-256 of arrays and of pytrees of them, to the bit, names, shapes and dtypes included; and of files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def manifest(leaves: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Shape, dtype and SHA-256 of the bytes of each named array."""
    return {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "sha256": sha256(leaf)}
        for name, leaf in leaves.items()
    }


def fingerprint(tree: Any) -> str:
    """SHA-256 of all the leaves of a pytree of arrays, names, shapes and dtypes included."""
    return hashlib.sha256(repr(sorted(manifest(by_name(jax.device_get(tree))).items())).encode()).hexdigest()


def by_name(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a pytree by their paths."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {leaf_name(path): np.asarray(leaf) for path, leaf in leaves}


def leaf_name(path: Any) -> str:
    """A path in a pytree in words, such as `params.Dense_0.bias`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def sha256_of_files(contents: Mapping[str, str | bytes | None]) -> dict[str, str]:
    """SHA-256 of the bytes of files, by name; text is UTF-8, and None no file."""
    return {
        name: hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
        for name, content in contents.items()
        if content is not None
    }


def sha256(array: np.ndarray) -> str:
    """SHA-256 of the bytes of an array, in the order of its entries."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
