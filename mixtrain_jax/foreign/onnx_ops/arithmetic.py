"""Operators that work entry by entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mixtrain_jax.errors import ModelError
from mixtrain_jax.foreign.onnx_ops.values import (
    Array,
    Attributes,
    Operators,
    flag,
    is_known,
    known,
    numpy_of,
    together,
    unary,
)


def _same_name(name: str) -> Callable[..., Array]:
    return lambda attributes, x: getattr(numpy_of(x), name)(x)


def _variadic(name: str) -> Callable[..., Array]:
    def compute(attributes: Attributes, *arrays: Array) -> Array:
        total = arrays[0]
        for x in arrays[1:]:
            total, x = together(total, x)
            total = getattr(numpy_of(total, x), name)(total, x)
        return total

    return compute


def _divide(attributes: Attributes, x: Array, y: Array) -> Array:
    x, y = together(x, y)
    if not is_known(x) or not is_known(y) or np.issubdtype(x.dtype, np.floating):
        return numpy_of(x, y).divide(x, y)
    if not np.all(y):
        raise ModelError("it divides an integer by 0")
    return (np.sign(x) * np.sign(y) * (np.abs(x) // np.abs(y))).astype(x.dtype)  # towards 0, as C does


def _power(attributes: Attributes, x: Array, y: Array) -> Array:
    if is_known(x) and is_known(y):
        x, y = together(x, y)
        return np.power(x, y).astype(x.dtype)
    if is_known(y) and y.size == 1 and y.ndim <= x.ndim:
        exponent = float(y.ravel()[0])
        return jnp.power(x, int(exponent) if exponent == int(exponent) and abs(exponent) <= 64 else exponent)
    x, y = together(x, y)
    return jnp.power(x, jnp.asarray(y, x.dtype))


def _clip(attributes: Attributes, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    if any(v is not None and v.ndim for v in (low, high)):
        raise ModelError("min and max must be scalars")
    if is_known(x):
        x = x if low is None else np.maximum(x, known(low, "min"))
        return x if high is None else np.minimum(x, known(high, "max"))
    if low is not None and high is not None:
        return jnp.clip(x, low, high)
    x = x if low is None else jnp.maximum(x, low)
    return x if high is None else jnp.minimum(x, high)


def _prelu(attributes: Attributes, x: Array, slope: Array) -> Array:
    rank = x.ndim
    if np.broadcast_shapes(x.shape, slope.shape) != x.shape:
        raise ModelError(f"the slope {list(slope.shape)} does not broadcast to {list(x.shape)}")
    slope = slope.reshape((1,) * (rank - slope.ndim) + slope.shape)
    return slope * x + (1 - slope) * jax.nn.relu(jnp.asarray(x))  # the image in one ReLU only, which is tighter


def _hard_sigmoid(attributes: Attributes, x: Array) -> Array:
    return jnp.clip(attributes["alpha"] * x + attributes["beta"], 0.0, 1.0)


def _celu(attributes: Attributes, x: Array) -> Array:
    if attributes["alpha"] == 0:
        raise ModelError("alpha must not be 0, by which it divides")
    return jax.nn.celu(jnp.asarray(x), attributes["alpha"])


def _gelu(attributes: Attributes, x: Array) -> Array:
    if attributes["approximate"] not in ("none", "tanh"):
        raise ModelError(f"approximate must be none or tanh, got {attributes['approximate']!r}")
    return jax.nn.gelu(jnp.asarray(x), approximate=attributes["approximate"] == "tanh")


_DTYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64}  # by number in TensorProto


def _cast(attributes: Attributes, x: Array) -> Array:
    return _as_type(x, _DTYPES.get(attributes["to"]), f"data type {attributes['to']}")


def _cast_like(attributes: Attributes, x: Array, like: Array) -> Array:
    return _as_type(x, np.dtype(like.dtype), f"{like.dtype}")


def _as_type(x: Array, dtype: Any, name: str) -> Array:
    """Of images, only to floats and booleans: integers of theirs have no bounds."""
    if dtype is None or (not is_known(x) and dtype not in (np.float32, np.bool_)):
        raise ModelError(f"casting to {name} is not supported there")
    return x.astype(dtype)


def _modulo(attributes: Attributes, x: Array, y: Array) -> Array:
    x, y = together(x, y)
    of_c = flag(attributes["fmod"], "fmod")
    if not of_c and np.issubdtype(x.dtype, np.floating):
        raise ModelError("of floats only fmod=1 is defined")
    if is_known(x) and is_known(y):
        if not np.issubdtype(x.dtype, np.floating) and not np.all(y):
            raise ModelError("it divides an integer by 0")
        return np.fmod(x, y) if of_c else np.mod(x, y)
    return jnp.fmod(x, y)


def _mean(attributes: Attributes, *arrays: Array) -> Array:
    return _variadic("add")(attributes, *arrays) / np.float32(len(arrays))


OPERATIONS: Operators = {
    "Abs": _same_name("abs"),
    "Add": _variadic("add"),
    "Asinh": unary(jnp.arcsinh),
    "Atan": unary(jnp.arctan),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": unary(jnp.ceil),
    "Celu": _celu,
    "Clip": _clip,
    "Cos": unary(jnp.cos),
    "Cosh": unary(jnp.cosh),
    "Div": _divide,
    "Elu": lambda attributes, x: jax.nn.elu(jnp.asarray(x), attributes["alpha"]),
    "Erf": unary(lax.erf),
    "Exp": unary(jnp.exp),
    "Floor": unary(jnp.floor),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": unary(jax.nn.hard_swish),
    "Identity": lambda attributes, x: x,
    "LeakyRelu": lambda attributes, x: jax.nn.leaky_relu(jnp.asarray(x), attributes["alpha"]),
    "Log": unary(jnp.log),
    "Max": _variadic("maximum"),
    "Mean": _mean,
    "Min": _variadic("minimum"),
    "Mish": unary(jax.nn.mish),
    "Mod": _modulo,
    "Mul": _variadic("multiply"),
    "Neg": _same_name("negative"),
    "PRelu": _prelu,
    "Pow": _power,
    "Reciprocal": unary(lambda x: 1 / x),
    "Relu": unary(jax.nn.relu),
    "Round": unary(jnp.round),
    "Selu": lambda attributes, x: attributes["gamma"] * jax.nn.elu(jnp.asarray(x), attributes["alpha"]),
    "Sigmoid": unary(jax.nn.sigmoid),
    "Sign": _same_name("sign"),
    "Sin": unary(jnp.sin),
    "Sinh": unary(jnp.sinh),
    "Softplus": unary(jax.nn.softplus),
    "Softsign": unary(jax.nn.soft_sign),
    "Sqrt": unary(jnp.sqrt),
    "Sub": _variadic("subtract"),
    "Sum": _variadic("add"),
    "Tan": unary(jnp.tan),
    "Tanh": unary(jnp.tanh),
}
