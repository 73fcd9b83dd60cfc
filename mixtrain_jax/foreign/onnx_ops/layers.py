"""Matrix products, normalisations and softmax."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mixtrain_jax.errors import ModelError
from mixtrain_jax.foreign.onnx_ops.values import (
    Array,
    Attributes,
    Operators,
    allowed,
    axes_of,
    axis_of,
    channelwise,
    flag,
    known,
    numpy_of,
    together,
)

TRAINING = "it is in training mode; export the network in inference mode, after model.eval() in PyTorch"
_MAX_PRODUCT = 2**24  # terms of an Einsum of more than two arrays


def _gemm(attributes: Attributes, a: Array, b: Array, c: Array | None = None) -> Array:
    if a.ndim != 2 or b.ndim != 2:
        raise ModelError(f"it wants matrices, got {list(a.shape)} and {list(b.shape)}")
    a = a.T if flag(attributes["transA"], "transA") else a
    b = b.T if flag(attributes["transB"], "transB") else b
    out = jnp.matmul(a, b)
    out = out if attributes["alpha"] == 1 else attributes["alpha"] * out
    if c is None or attributes["beta"] == 0:
        return out
    if np.broadcast_shapes(out.shape, c.shape) != out.shape:
        raise ModelError(f"C {list(c.shape)} does not broadcast to {list(out.shape)}")
    c = c.reshape((1,) * (2 - c.ndim) + c.shape)
    return out + (c if attributes["beta"] == 1 else attributes["beta"] * c)


def _matmul(attributes: Attributes, a: Array, b: Array) -> Array:
    return jnp.matmul(a, b)


def _batch_normalization(attributes: Attributes, x: Array, scale: Array, bias: Array, mean: Array, var: Array) -> Array:
    if attributes["training_mode"] != 0:
        raise ModelError(f"{TRAINING}: it normalises each image by the others of its batch")
    if attributes.get("spatial", 1) != 1:
        raise ModelError("spatial must be 1, statistics of channels")
    if x.ndim < 2 or any(v.shape != (x.shape[1],) for v in (scale, bias, mean, var)):
        raise ModelError(f"its statistics do not fit the channels of {list(x.shape)}")
    factor = scale / jnp.sqrt(var + attributes["epsilon"])
    mean, factor, bias = (channelwise(v, x.ndim - 2) for v in (mean, factor, bias))
    return (x - mean) * factor + bias


def _standardised(x: Array, axes: tuple[int, ...], epsilon: float) -> jax.Array:
    """Mean 0 and variance 1 over some axes."""
    centered = jnp.asarray(x) - jnp.mean(x, axes, keepdims=True)
    return centered / jnp.sqrt(jnp.mean(jnp.square(centered), axes, keepdims=True) + epsilon)


def _instance_normalization(attributes: Attributes, x: Array, scale: Array, bias: Array) -> Array:
    if x.ndim < 3 or scale.shape != (x.shape[1],) or bias.shape != scale.shape:
        raise ModelError(f"scale {list(scale.shape)} and bias {list(bias.shape)} do not fit {list(x.shape)}")
    out = _standardised(x, tuple(range(2, x.ndim)), attributes["epsilon"])
    return out * channelwise(scale, x.ndim - 2) + channelwise(bias, x.ndim - 2)


def _group_normalization(attributes: Attributes, x: Array, scale: Array, bias: Array) -> Array:
    groups = attributes["num_groups"]
    if x.ndim < 3 or groups < 1 or x.shape[1] % groups:
        raise ModelError(f"{list(x.shape)} does not fall into {groups} groups of channels")
    if attributes["stash_type"] != 1:
        raise ModelError("stash_type must be 1, float")
    if scale.shape != (x.shape[1],) or bias.shape != scale.shape:
        raise ModelError(f"scale {list(scale.shape)} and bias {list(bias.shape)} do not fit {list(x.shape)}")
    out = _standardised(x.reshape((x.shape[0], groups, -1)), (2,), attributes["epsilon"]).reshape(x.shape)
    return out * channelwise(scale, x.ndim - 2) + channelwise(bias, x.ndim - 2)


def _mean_variance_normalization(attributes: Attributes, x: Array) -> Array:
    axes = axes_of(attributes["axes"], x.ndim)
    centered = x - jnp.mean(x, axes, keepdims=True)
    return centered / (jnp.sqrt(jnp.mean(jnp.square(centered), axes, keepdims=True)) + 1e-9)


def _lp_normalization(attributes: Attributes, x: Array) -> Array:
    axis, x = axis_of(attributes["axis"], x.ndim), jnp.asarray(x)
    if attributes["p"] == 1:
        return x / jnp.sum(jnp.abs(x), axis, keepdims=True)
    if attributes["p"] == 2:
        return x / jnp.sqrt(jnp.sum(jnp.square(x), axis, keepdims=True))
    raise ModelError(f"p must be 1 or 2, got {attributes['p']}")


def _local_response_normalization(attributes: Attributes, x: Array) -> Array:
    size = attributes["size"]
    if x.ndim < 3 or not 1 <= size < 2 * x.shape[1] or size % 2 == 0:
        raise ModelError(f"windows of {size} channels, which must be odd, do not fit {list(x.shape)}")
    window = (1, size, *(1,) * (x.ndim - 2))
    pads = ((0, 0), (size // 2, size // 2), *((0, 0),) * (x.ndim - 2))
    total = lax.reduce_window(jnp.square(x), 0.0, lax.add, window, (1,) * x.ndim, pads)
    return x / jnp.power(attributes["bias"] + attributes["alpha"] / size * total, attributes["beta"])


def _einsum(attributes: Attributes, *arrays: Array) -> Array:
    """Products of one or two arrays need no more memory than their result; those of more are kept small."""
    equation = attributes["equation"].replace(" ", "")
    if not re.fullmatch(r"[A-Za-z.,]*(->[A-Za-z.]*)?", equation) or equation.count(",") != len(arrays) - 1:
        raise ModelError(f"the equation {equation!r} is not understood")
    terms = equation.split("->")[0].split(",")
    sizes = {
        letter: size
        for term, x in zip(terms, arrays, strict=True)
        if "..." not in term
        for letter, size in zip(term, x.shape, strict=True)
    }
    if len(arrays) > 2 and (any("..." in term for term in terms) or math.prod(sizes.values()) > _MAX_PRODUCT):
        raise ModelError(f"the product {equation!r} of {len(arrays)} arrays is too large")
    shape = jax.eval_shape(lambda *x: jnp.einsum(equation, *x), *arrays).shape
    allowed(shape, numpy_of(*arrays))
    return jnp.einsum(equation, *arrays)


def _layer_normalization(attributes: Attributes, x: Array, scale: Array, bias: Array | None = None) -> Array:
    if attributes["stash_type"] != 1:
        raise ModelError("stash_type must be 1, float")
    axes = tuple(range(axis_of(attributes["axis"], x.ndim), x.ndim))
    for v in (scale, bias):
        if v is not None and np.broadcast_shapes(x.shape, v.shape) != x.shape:
            raise ModelError(f"scale or bias {list(v.shape)} does not broadcast to {list(x.shape)}")
    out = _standardised(x, axes, attributes["epsilon"])
    out, scale = together(out, scale)
    out = out * scale
    if bias is None:
        return out
    out, bias = together(out, bias)
    return out + bias


def _softmax(function: Callable[..., jax.Array]) -> Callable[..., Array]:
    def compute(attributes: Attributes, x: Array) -> Array:
        x, axis = jnp.asarray(x), axis_of(attributes["axis"], x.ndim)
        if attributes["since"] >= 13 or axis == x.ndim - 1:
            return function(x, axis=axis)
        rows = x.reshape((math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))  # over all axes that follow
        return function(rows, axis=1).reshape(x.shape)

    return compute


def _dropout(attributes: Attributes, x: Array, ratio: Array | None = None, training: Array | None = None) -> Array:
    if training is not None and known(training, "training_mode").any():
        raise ModelError(TRAINING)
    return x


OPERATIONS: Operators = {
    "BatchNormalization": _batch_normalization,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LRN": _local_response_normalization,
    "LayerNormalization": _layer_normalization,
    "LpNormalization": _lp_normalization,
    "LogSoftmax": _softmax(jax.nn.log_softmax),
    "MatMul": _matmul,
    "MeanVarianceNormalization": _mean_variance_normalization,
    "Softmax": _softmax(jax.nn.softmax),
}
