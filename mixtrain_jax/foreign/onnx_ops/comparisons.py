"""Comparisons, logic, and choices by them."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from mixtrain_jax.foreign.onnx_ops.values import Array, Attributes, Operators, flag, numpy_of, together


def _by_name(name: str) -> Callable[..., Array]:
    """A function of one or two arrays that NumPy and jax.numpy have by the same name."""

    def compute(attributes: Attributes, *arrays: Array) -> Array:
        return getattr(numpy_of(*arrays), name)(*together(*arrays))

    return compute


def _is_infinite(attributes: Attributes, x: Array) -> Array:
    numpy = numpy_of(x)
    negative, positive = (flag(attributes[f"detect_{sign}"], f"detect_{sign}") for sign in ("negative", "positive"))
    if negative and positive:
        return numpy.abs(x) == np.inf
    return x == (np.inf if positive else -np.inf) if negative or positive else numpy.zeros(x.shape, bool)


def _where(attributes: Attributes, condition: Array, x: Array, y: Array) -> Array:
    condition, x, y = together(condition, x, y)
    return numpy_of(condition, x, y).where(condition, x, y)


def _thresholded_relu(attributes: Attributes, x: Array) -> Array:
    x = jnp.asarray(x)
    return jnp.where(x > attributes["alpha"], x, 0)


def _shrink(attributes: Attributes, x: Array) -> Array:
    x, bias, limit = jnp.asarray(x), attributes["bias"], attributes["lambd"]
    if bias == limit >= 0:  # the soft one: two ReLUs, which are tighter than choices
        return jnp.maximum(x - bias, 0) + jnp.minimum(x + bias, 0)
    return jnp.where(x < -limit, x + bias, jnp.where(x > limit, x - bias, 0))


OPERATIONS: Operators = {
    "And": _by_name("logical_and"),
    "Equal": _by_name("equal"),
    "Greater": _by_name("greater"),
    "GreaterOrEqual": _by_name("greater_equal"),
    "IsInf": _is_infinite,
    "IsNaN": _by_name("isnan"),
    "Less": _by_name("less"),
    "LessOrEqual": _by_name("less_equal"),
    "Not": _by_name("logical_not"),
    "Or": _by_name("logical_or"),
    "Shrink": _shrink,
    "ThresholdedRelu": _thresholded_relu,
    "Where": _where,
    "Xor": _by_name("logical_xor"),
}
