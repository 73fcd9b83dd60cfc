"""Convolutions and pooling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mixtrain_jax.errors import ModelError
from mixtrain_jax.foreign.onnx_ops.values import Array, Attributes, Operators, channelwise, flag


class _Window:
    """Where windows lie along the spatial dimensions of `[n, channels, ...]`."""

    def __init__(self, attributes: Attributes, x: Array, kernel: tuple[int, ...], pooling: bool = False):
        spatial = x.shape[2:]
        rank = len(spatial)
        if rank not in (1, 2, 3) or len(kernel) != rank or min(kernel) < 1:
            raise ModelError(f"images {list(x.shape)} and windows {list(kernel)}: it wants 1 to 3 spatial dimensions")
        self.kernel = kernel
        self.strides = tuple(attributes.get("strides") or (1,) * rank)
        self.dilations = tuple(attributes.get("dilations") or (1,) * rank)
        pads = tuple(attributes.get("pads") or (0,) * (2 * rank))
        if len(self.strides) != rank or len(self.dilations) != rank or len(pads) != 2 * rank:
            raise ModelError("strides, dilations or pads do not fit the spatial dimensions")
        if min(self.strides) < 1 or min(self.dilations) < 1 or min(pads) < 0:
            raise ModelError("strides and dilations must be at least 1 and pads at least 0")
        self.reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, self.dilations, strict=True))
        auto = attributes["auto_pad"]
        if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER") or (auto != "NOTSET" and any(pads)):
            raise ModelError(f"auto_pad {auto!r} with pads {list(pads)} is not understood")
        if auto.startswith("SAME"):
            if max(self.dilations) > 1 and (pooling or auto == "SAME_LOWER"):
                raise ModelError(f"auto_pad {auto!r} with dilations is not supported")
            pads = self._same(spatial, auto == "SAME_UPPER")
        self.pads = tuple(zip(pads[:rank], pads[rank:], strict=True))
        if math.prod(n + sum(pad) for n, pad in zip(spatial, self.pads, strict=True)) > 2**26:
            raise ModelError(f"pads {list(pads)} are far too large")

    def _same(self, spatial: tuple[int, ...], upper: bool) -> tuple[int, ...]:
        totals = [
            max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(spatial, self.strides, self.reach, strict=True)
        ]
        less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
        return tuple(less + more if upper else more + less)

    def outputs(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Number of windows along each dimension."""
        return tuple(
            (n + sum(pad) - r) // s + 1
            for n, pad, r, s in zip(spatial, self.pads, self.reach, self.strides, strict=True)
        )

    def with_partial(self, spatial: tuple[int, ...]) -> None:
        """Pad the end so that a last window that is not full counts too (`ceil_mode`)."""
        pads = []
        for n, (low, high), r, s in zip(spatial, self.pads, self.reach, self.strides, strict=True):
            extra = -(n + low + high - r) % s
            beyond = n + low + high + extra - r >= n + low  # it would begin in the padding at the end, and is left out
            pads.append((low, high if beyond else high + extra))
        self.pads = tuple(pads)


def _layout(spatial: int) -> tuple[str, str, str]:
    axes = "DHW"[-spatial:]
    return f"NC{axes}", f"OI{axes}", f"NC{axes}"


def _conv(attributes: Attributes, x: Array, w: Array, bias: Array | None = None) -> Array:
    _check_kernel(attributes, x, w)
    group = attributes["group"]
    if group < 1 or x.shape[1] != w.shape[1] * group or w.shape[0] % group:
        raise ModelError(f"images {list(x.shape)} and weights {list(w.shape)} in {group} groups do not fit")
    window = _Window(attributes, x, w.shape[2:])
    if min(window.outputs(x.shape[2:])) < 1:
        raise ModelError(f"windows {list(window.reach)} are larger than the padded images {list(x.shape)}")
    out = lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(w),
        window.strides,
        window.pads,
        rhs_dilation=window.dilations,
        dimension_numbers=_layout(x.ndim - 2),
        feature_group_count=group,
    )
    return out if bias is None else out + channelwise(bias, x.ndim - 2)


def _check_kernel(attributes: Attributes, x: Array, w: Array) -> None:
    if x.ndim != w.ndim or x.ndim not in (3, 4, 5):
        raise ModelError(f"images {list(x.shape)} and weights {list(w.shape)}: it wants 1 to 3 spatial dimensions")
    if attributes["kernel_shape"] is not None and tuple(attributes["kernel_shape"]) != w.shape[2:]:
        raise ModelError(f"kernel_shape {attributes['kernel_shape']} is not that of the weights {list(w.shape)}")


def _conv_transpose(attributes: Attributes, x: Array, w: Array, bias: Array | None = None) -> Array:
    _check_kernel(attributes, x, w)
    rank, group = x.ndim - 2, attributes["group"]
    if attributes["auto_pad"] != "NOTSET" or attributes["output_shape"] is not None:
        raise ModelError("only explicit pads are supported")
    if group < 1 or x.shape[1] != w.shape[0] or w.shape[0] % group:
        raise ModelError(f"images {list(x.shape)} and weights {list(w.shape)} in {group} groups do not fit")
    window = _Window(attributes, x, w.shape[2:])
    more = tuple(attributes["output_padding"] or (0,) * rank)
    if len(more) != rank or any(not 0 <= m < s for m, s in zip(more, window.strides, strict=True)):
        raise ModelError(f"output_padding {list(more)} does not fit")
    pads = [(r - 1 - low, r - 1 - high + m) for r, (low, high), m in zip(window.reach, window.pads, more, strict=True)]
    # As a convolution of images with zeros between their pixels, by flipped weights with channels in and out swapped.
    w = w.reshape(group, w.shape[0] // group, *w.shape[1:]).swapaxes(1, 2)
    w = jnp.flip(w.reshape(-1, *w.shape[2:]), range(2, 2 + rank))
    out = lax.conv_general_dilated(
        jnp.asarray(x),
        w,
        (1,) * rank,
        pads,
        lhs_dilation=window.strides,
        rhs_dilation=window.dilations,
        dimension_numbers=_layout(rank),
        feature_group_count=group,
    )
    return out if bias is None else out + channelwise(bias, rank)


def _pool(attributes: Attributes, x: Array) -> _Window:
    window = _Window(attributes, x, tuple(attributes["kernel_shape"]), pooling=True)
    spatial = x.shape[2:]
    if any(max(pad) >= k for pad, k in zip(window.pads, window.kernel, strict=True)):
        raise ModelError("pads must be smaller than the windows")
    if min(window.outputs(spatial)) < 1:
        raise ModelError(f"windows {list(window.reach)} are larger than the padded images {list(x.shape)}")
    if flag(attributes["ceil_mode"], "ceil_mode"):
        if attributes["auto_pad"] != "NOTSET":
            raise ModelError("ceil_mode with auto_pad is not supported")
        window.with_partial(spatial)
    return window


def _reduce_window(x: Array, window: _Window, initial: float, operation: Callable[..., Any]) -> jax.Array:
    return lax.reduce_window(
        jnp.asarray(x),
        initial,
        operation,
        (1, 1, *window.kernel),
        (1, 1, *window.strides),
        ((0, 0), (0, 0), *window.pads),
        window_dilation=(1, 1, *window.dilations),
    )


def _max_pool(attributes: Attributes, x: Array) -> Array:
    if attributes["storage_order"] != 0:
        raise ModelError("storage_order must be 0")
    return _reduce_window(x, _pool(attributes, x), -math.inf, lax.max)


def _average_pool(attributes: Attributes, x: Array) -> Array:
    with_pads = flag(attributes["count_include_pad"], "count_include_pad")
    window = _pool(attributes, x)
    summed = _reduce_window(x, window, 0.0, lax.add)
    counts = np.ones((), np.float32)
    declared = _Window(attributes, x, window.kernel).pads
    for n, (low, _), pad, k, d, s, count in zip(
        x.shape[2:],
        window.pads,
        declared,
        window.kernel,
        window.dilations,
        window.strides,
        summed.shape[2:],
        strict=True,
    ):
        places = (np.arange(count) * s)[:, None] + (np.arange(k) * d)[None] - low
        first, last = (-pad[0], n + pad[1]) if with_pads else (0, n)
        counts = counts[..., None] * ((places >= first) & (places < last)).sum(-1).astype(np.float32)
    if not counts.all():
        raise ModelError("a window holds nothing but padding")
    return summed / counts[None, None]


def _lp_pool(attributes: Attributes, x: Array) -> Array:
    power = attributes["p"]
    if not 1 <= power <= 64:
        raise ModelError(f"p must be from 1 to 64, got {power}")
    x = jnp.asarray(x)
    window = _pool({"ceil_mode": 0, **attributes}, x)
    raised = jnp.abs(x) if power == 1 else lax.integer_pow(x if power % 2 == 0 else jnp.abs(x), power)
    return _root(_reduce_window(raised, window, 0.0, lax.add), power)


def _global_lp_pool(attributes: Attributes, x: Array) -> Array:
    return _lp_pool({"auto_pad": "NOTSET", **attributes, "kernel_shape": x.shape[2:]}, x)


def _root(x: jax.Array, power: int) -> jax.Array:
    return x if power == 1 else jnp.sqrt(x) if power == 2 else jnp.power(x, 1 / power)


def _global(function: Callable[..., jax.Array]) -> Callable[..., Array]:
    def compute(attributes: Attributes, x: Array) -> Array:
        if x.ndim < 3:
            raise ModelError(f"it wants [n, channels, ...], got {list(x.shape)}")
        return function(x, axis=tuple(range(2, x.ndim)), keepdims=True)

    return compute


OPERATIONS: Operators = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _global(jnp.mean),
    "GlobalMaxPool": _global(jnp.max),
    "GlobalLpPool": _global_lp_pool,
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
}
