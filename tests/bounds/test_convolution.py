"""Fast transposes of convolutions are those of JAX."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mixtrain_jax as mt
from mixtrain_jax.bounds import convolution
from mixtrain_jax.bounds.tape import record

KERNELS = [(3, 3), (4, 3), (1, 1)]
STRIDES = [(1, 1), (2, 1), (3, 3)]
PADDINGS: list[Any] = ["SAME", ((1, 0), (2, 1)), ((3, 3), (3, 3))]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="Elsewhere the transposes of JAX are fast.")
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize(("before", "after"), [(2, 2), (1, 40)])
def test_fast_transposes_are_those_of_jax(layout: str, before: int, after: int, x64: None) -> None:
    rng, taken = np.random.default_rng(0), 0
    for kernel, strides, padding in itertools.product(KERNELS, STRIDES, PADDINGS):
        shape = (2, 7, 8, before) if layout == "NHWC" else (2, before, 7, 8)
        weights = rng.normal(size=(*kernel, before, after))

        def conv(x: jax.Array, weights=weights, strides=strides, padding=padding) -> jax.Array:
            return lax.conv_general_dilated(x, weights, strides, padding, dimension_numbers=(layout, "HWIO", layout))

        tape = record(conv, (mt.Interval(jnp.zeros(shape), jnp.ones(shape)),), lambda ops, _: ops)
        (op,) = tape.ops
        if (transpose := convolution.transposed(op)) is None:
            assert strides == (1, 1) or any(k < s for k, s in zip(kernel, strides, strict=True))
            continue
        taken += 1
        coefficients = jnp.asarray(rng.normal(size=op.outputs[0].shape))
        (expected,) = jax.jit(jax.linear_transpose(conv, jnp.zeros(shape)))(coefficients)
        np.testing.assert_allclose(jax.jit(transpose)((coefficients,))[0], expected, rtol=1e-12, atol=1e-12)
    assert taken >= 12
