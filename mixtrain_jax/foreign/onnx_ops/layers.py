"""Matrix products, normalisations and softmax."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.errors import ModelError
from mixtrain_jax.foreign.onnx_ops.values import (
    Array,
    Attributes,
    Operators,
    axis_of,
    channelwise,
    flag,
    known,
    together,
)

TRAINING = "it is in training mode; export the network in inference mode, after model.eval() in PyTorch"


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


def _layer_normalization(attributes: Attributes, x: Array, scale: Array, bias: Array | None = None) -> Array:
    if attributes["stash_type"] != 1:
        raise ModelError("stash_type must be 1, float")
    axes = tuple(range(axis_of(attributes["axis"], x.ndim), x.ndim))
    for v in (scale, bias):
        if v is not None and np.broadcast_shapes(x.shape, v.shape) != x.shape:
            raise ModelError(f"scale or bias {list(v.shape)} does not broadcast to {list(x.shape)}")
    centered = x - jnp.mean(x, axes, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axes, keepdims=True)
    out = centered / jnp.sqrt(variance + attributes["epsilon"])
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
    "Gemm": _gemm,
    "LayerNormalization": _layer_normalization,
    "LogSoftmax": _softmax(jax.nn.log_softmax),
    "MatMul": _matmul,
    "Softmax": _softmax(jax.nn.softmax),
}
