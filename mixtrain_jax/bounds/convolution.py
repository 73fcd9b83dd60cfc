"""Transposes of convolutions that run fast on CPU.

The transpose of a convolution of stride `s` spreads its input by `s`, which XLA's fast CPU kernels do not take, and the
gradient of that for the kernel even less. The same numbers come from one convolution of stride 1 with `s` times `s` as
many channels, one for each place within a stride, that are then put in their places (sub-pixel convolution, Shi et
al., arXiv 1609.05158): several times faster forwards, and ten to thirty times in the gradient.

To few channels, as of images, a convolution is slow too: its matrix products are narrow. One product for the channels
of all taps, whose parts are then shifted and added, takes a third of the time, and an eighth in the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives

from mixtrain_jax.bounds.cpu import by_place, from_depth, spread
from mixtrain_jax.bounds.tape import Op, Ref

Transpose = Callable[[tuple[jax.Array, ...]], tuple[jax.Array, ...]]


def transposed(op: Op) -> Transpose | None:
    """The transpose of an op that is a convolution of a ref by an exact kernel, on CPU; None where XLA's is as good."""
    if op.primitive is not primitives.conv_general_dilated_p or jax.default_backend() != "cpu":
        return None
    params, (x, kernel) = op.params, op.operands
    if not isinstance(x, Ref) or isinstance(kernel, Ref):
        return None
    sizes = [kernel.shape[d] for d in params["dimension_numbers"].rhs_spec[2:]]
    plain = (
        all(d == 1 for d in (*params["lhs_dilation"], *params["rhs_dilation"]))
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and all(low >= 0 and high >= 0 for low, high in params["padding"])
        and all(k >= s for k, s in zip(sizes, params["window_strides"], strict=True))
    )
    if not plain or (math.prod(params["window_strides"]) == 1 and not _is_narrow(kernel, params)):
        return None
    return _transposed(op, x, kernel)


def _is_narrow(kernel: jax.Array, params: dict[str, Any]) -> bool:
    """Whether the channels of all taps, before the op, are no more than those after it."""
    after = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
    return kernel.size <= after * after


def _transposed(op: Op, x: Ref, kernel: jax.Array) -> Transpose:
    params, strides = op.params, op.params["window_strides"]
    lhs, rhs, out = params["dimension_numbers"]
    rank = len(strides)
    weights, taps = by_place(jnp.transpose(kernel, (*rhs[2:], rhs[1], rhs[0])), strides)
    inputs = [x.shape[d] for d in lhs[2:]]
    padded = zip(inputs, params["padding"], strides, strict=True)
    blocks = [-(-(n + low + high) // s) for n, (low, high), s in padded]
    channels_last = (0, rank + 1, *range(1, rank + 1))
    layout = lax.ConvDimensionNumbers(channels_last, (rank + 1, rank, *range(rank)), channels_last)
    narrow = _is_narrow(kernel, params)

    def transpose(coefficients: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        a = coefficients[0].transpose(out[0], *out[2:], out[1])
        if narrow:
            y = spread(a, weights, blocks, params["precision"])
        else:
            # The padding is an operation of its own: as the convolution's it is slow again.
            edges = [(t - 1, b - n, 0) for t, b, n in zip(taps, blocks, a.shape[1:], strict=False)]
            padded = lax.pad(a, jnp.zeros((), a.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
            strides_of_one = (1,) * rank
            y = lax.conv_general_dilated(
                padded, weights, strides_of_one, "VALID", dimension_numbers=layout, precision=params["precision"]
            )
        y = from_depth(y, strides)
        y = y[(slice(None), *(slice(low, low + n) for n, (low, _) in zip(inputs, params["padding"], strict=True)))]
        return (y.transpose(np.argsort((lhs[0], *lhs[2:], lhs[1]))),)

    return transpose
