"""Images of another size: interpolation, and pixels that become channels."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from mixtrain_jax.errors import ModelError
from mixtrain_jax.foreign.onnx_ops.values import (
    Array,
    Attributes,
    Operators,
    allowed,
    axes_of,
    flag,
    integers,
    known,
    numpy_of,
)

_MAX_WEIGHTS = 2**24  # entries of the matrix that interpolates along one axis


def _resize(
    attributes: Attributes, x: Array, roi: Array | None = None, scales: Array | None = None, sizes: Array | None = None
) -> Array:
    """Interpolation is linear, and along each axis by itself: one product with known weights an axis."""
    if attributes["since"] < 11:  # as Upsample was
        return _upsample(attributes, x, roi)
    if flag(attributes["antialias"], "antialias"):
        raise ModelError("antialias is not supported")
    if attributes["keep_aspect_ratio_policy"] != "stretch":
        raise ModelError("keep_aspect_ratio_policy must be stretch")
    chosen = attributes["axes"]
    axes = axes_of(chosen, x.ndim) if chosen else tuple(range(x.ndim))
    for axis, (size, scale) in zip(axes, _new_sizes(x, axes, scales, sizes), strict=True):
        if (size, scale) != (x.shape[axis], 1):
            x = _along(attributes, x, axis, size, scale)
    return x


def _upsample(attributes: Attributes, x: Array, scales: Array | None) -> Array:
    same = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor", "exclude_outside": 0, "axes": None}
    newer = {**attributes, **same, "antialias": 0, "keep_aspect_ratio_policy": "stretch", "since": 11}
    return _resize(newer, x, None, scales)


def _new_sizes(x: Array, axes: tuple[int, ...], scales: Array | None, sizes: Array | None) -> list[tuple[int, float]]:
    given = [v is not None and v.size > 0 for v in (scales, sizes)]
    if sum(given) != 1:
        raise ModelError("it wants either scales or sizes")
    old = [x.shape[axis] for axis in axes]
    if sizes is not None and given[1]:
        new = integers(sizes, "sizes")
        factors = [size / max(n, 1) for size, n in zip(new, old, strict=False)]
    else:
        assert scales is not None
        factors = [float(v) for v in known(scales, "scales").ravel()]
        if not all(math.isfinite(v) and 0 < v < 2**20 for v in factors):
            raise ModelError(f"scales {factors} are not understood")
        new = [math.floor(np.float32(n) * np.float32(v)) for n, v in zip(old, factors, strict=False)]
    if len(new) != len(axes) or min(new, default=1) < 1 or 0 in old:
        raise ModelError(f"{list(x.shape)} cannot become {new} along the axes {list(axes)}")
    return list(zip(new, factors, strict=True))


def _along(attributes: Attributes, x: Array, axis: int, size: int, scale: float) -> Array:
    length, numpy = x.shape[axis], numpy_of(x)
    if size * length > _MAX_WEIGHTS:
        raise ModelError(f"{length} to {size} entries along one axis are too many")
    allowed((*x.shape[:axis], size, *x.shape[axis + 1 :]), numpy)
    places = _places(attributes["coordinate_transformation_mode"], length, size, scale)
    if attributes["mode"] == "nearest":
        nearest = np.clip(_nearest(attributes["nearest_mode"], places), 0, length - 1).astype(np.int32)
        return np.take(x, nearest, axis) if numpy is np else jnp.take(x, nearest, axis, mode="clip")
    if attributes["mode"] not in ("linear", "cubic"):
        raise ModelError(f"mode {attributes['mode']!r} is not understood")
    weights = _weights(attributes, places, length).astype(x.dtype)
    return numpy.moveaxis(numpy.tensordot(x, weights, ((axis,), (1,))), -1, axis)


def _places(mode: str, length: int, size: int, scale: float) -> np.ndarray:
    """Where in the old axis each entry of the new one lies, in float32 as ONNX Runtime computes it."""
    here, factor, half = np.arange(size, dtype=np.float32), np.float32(scale), np.float32(0.5)
    if mode == "asymmetric":
        return here / factor
    if mode == "align_corners":
        return here * np.float32(length - 1) / np.float32(max(size - 1, 1))
    if mode == "pytorch_half_pixel" and size == 1:
        return here
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (here + half) / factor - half
    if mode == "half_pixel_symmetric":
        center, adjusted = np.float32(length / 2), np.float32(size) / (factor * np.float32(length))
        return center * (1 - adjusted) + (here + half) / factor - half
    raise ModelError(f"coordinate_transformation_mode {mode!r} is not supported")


_NEAREST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - np.float32(0.5)),
    "round_prefer_ceil": lambda x: np.floor(x + np.float32(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _nearest(mode: str, places: np.ndarray) -> np.ndarray:
    if mode not in _NEAREST:
        raise ModelError(f"nearest_mode {mode!r} is not understood")
    return _NEAREST[mode](places)


def _weights(attributes: Attributes, places: np.ndarray, length: int) -> np.ndarray:
    """What each entry of the new axis, `[size, length]`, takes of each of the old one."""
    first, cubic = np.floor(places), attributes["mode"] == "cubic"
    outside = flag(attributes["exclude_outside"], "exclude_outside")
    weights = np.zeros((len(places), length))
    for offset in (-1, 0, 1, 2) if cubic else (0, 1):
        taken = first + offset
        distance = np.abs(places.astype(np.float64) - taken)
        share = _cubic(distance, attributes["cubic_coeff_a"]) if cubic else np.maximum(1 - distance, 0)
        if outside:
            share = np.where((taken >= 0) & (taken < length), share, 0)
        np.add.at(weights, (np.arange(len(places)), np.clip(taken, 0, length - 1).astype(int)), share)
    return weights / weights.sum(1, keepdims=True) if outside else weights


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """The cubic kernel of Keys (IEEE Trans. ASSP 29, 1981)."""
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def _depth_to_space(attributes: Attributes, x: Array) -> Array:
    block, mode = attributes["blocksize"], attributes["mode"]
    if x.ndim != 4 or block < 1 or x.shape[1] % block**2 or mode not in ("DCR", "CRD"):
        raise ModelError(f"{list(x.shape)} in blocks of {block}, mode {mode!r}, is not understood")
    n, channels, height, width = x.shape
    left = channels // block**2
    if mode == "DCR":
        x = x.reshape((n, block, block, left, height, width)).transpose((0, 3, 4, 1, 5, 2))
    else:
        x = x.reshape((n, left, block, block, height, width)).transpose((0, 1, 4, 2, 5, 3))
    return x.reshape((n, left, height * block, width * block))


def _space_to_depth(attributes: Attributes, x: Array) -> Array:
    block = attributes["blocksize"]
    if x.ndim != 4 or block < 1 or x.shape[2] % block or x.shape[3] % block:
        raise ModelError(f"{list(x.shape)} does not fall into blocks of {block}")
    n, channels, height, width = x.shape
    x = x.reshape((n, channels, height // block, block, width // block, block)).transpose((0, 3, 5, 1, 2, 4))
    return x.reshape((n, channels * block**2, height // block, width // block))


OPERATIONS: Operators = {
    "DepthToSpace": _depth_to_space,
    "Resize": _resize,
    "SpaceToDepth": _space_to_depth,
    "Upsample": _upsample,
}
