"""Operations in the forms that XLA's CPU backend runs fast; elsewhere, they are what they are.

What was measured of each stands in benchmarks/README.md. All of these compute the same sums in another order, which
bounds in floating point allow for.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.extend.core import primitives

_WITH_BODIES = (primitives.jit_p, primitives.scan_p, primitives.while_p, primitives.cond_p, primitives.remat_p)
_FEW = 4  # channels, or pixels
_LARGE = 2**20  # entries of a matrix whose absolute values are not all made at once
_STRIP = 2**18  # entries of it that are


def ordered(f: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of arrays, on CPU with convolutions that are fast in loops too.

    XLA's CPU backend puts the dimensions of a convolution in the order that its kernels want in a program's entry
    computation alone. In loops the gradients of a convolution take ten times as long, unless they are written in that
    order, as they are here. To be called around derivatives and `vmap`, for what those make of a convolution has an
    order of its own.
    """
    if jax.default_backend() != "cpu":
        return f

    def same(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
        return jax.tree.unflatten(jax.tree.structure(shapes), _run(closed, jax.tree.leaves(args)))

    return same


def opened(closed: Any) -> Any:
    """The jaxpr inside a closed one; newer jax has one class for both."""
    return getattr(closed, "jaxpr", closed)


def _run(closed: Any, args: Sequence[Any]) -> list[Any]:
    """What a jaxpr computes, its convolutions and those of the loops and calls in it in order."""
    jaxpr = opened(closed)
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        operands, params = list(map(value, eqn.invars)), eqn.primitive.get_bind_params(eqn.params)
        if eqn.primitive is primitives.conv_general_dilated_p:
            outputs = _in_order(*operands, **params)
        else:
            if eqn.primitive in _WITH_BODIES and _convolves(eqn):
                params = jax.tree.map(_rewritten, params, is_leaf=_is_body)
            outputs = eqn.primitive.bind(*operands, **params)
        env.update(zip(eqn.outvars, outputs if eqn.primitive.multiple_results else [outputs], strict=True))
    return list(map(value, jaxpr.outvars))


def _convolves(eqn: Any) -> bool:
    inner = [inner for body in core.jaxprs_in_params(eqn.params) for inner in body.eqns]
    return eqn.primitive is primitives.conv_general_dilated_p or any(map(_convolves, inner))


def _is_body(x: Any) -> bool:
    return isinstance(x, core.ClosedJaxpr | core.Jaxpr)


def _rewritten(x: Any) -> Any:
    if not _is_body(x):
        return x
    avals = [v.aval for v in opened(x).invars]
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type) for aval in avals]
    closed = jax.make_jaxpr(lambda *args: _run(x, args))(*shapes)
    return closed if isinstance(x, core.ClosedJaxpr) else opened(closed)  # `remat` holds an open one


def _in_order(x: jax.Array, kernel: jax.Array, *, dimension_numbers: Any, **params: Any) -> jax.Array:
    """A convolution of channels-last arrays, and transposes around it; or products, where those are faster."""
    lhs, rhs, out = dimension_numbers
    if _has_few_outputs(x, kernel, dimension_numbers=dimension_numbers, **params):
        return _by_output(x, kernel, dimension_numbers, params)
    x, kernel = x.transpose(lhs[0], *lhs[2:], lhs[1]), kernel.transpose(*rhs[2:], rhs[1], rhs[0])
    if _is_spread(kernel, **params):
        y = _sub_pixel(x, kernel, **params)
    else:
        y = convolution(x, kernel, dimension_numbers=_channels_last(x.ndim), **params)
    return y.transpose(np.argsort((out[0], *out[2:], out[1])))


def _is_plain(params: dict[str, Any]) -> bool:
    """Nothing is spread, grouped or cut off."""
    return (
        all(d == 1 for d in (*params["lhs_dilation"], *params["rhs_dilation"]))
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and all(low >= 0 and high >= 0 for low, high in params["padding"])
    )


def _has_few_outputs(x: jax.Array, kernel: jax.Array, *, dimension_numbers: Any, **params: Any) -> bool:
    """Whether an image of few pixels comes out of large windows: the gradient of a convolution for a small kernel."""
    if not _is_plain(params) or any(s > 1 for s in params["window_strides"]):
        return False
    windows = [kernel.shape[d] for d in dimension_numbers.rhs_spec[2:]]
    sizes = [x.shape[d] for d in dimension_numbers.lhs_spec[2:]]
    outputs = [n + low + high - k + 1 for n, k, (low, high) in zip(sizes, windows, params["padding"], strict=True)]
    return 1 <= math.prod(outputs) <= _FEW and all(k > n for k, n in zip(windows, outputs, strict=True))


def _by_output(x: jax.Array, kernel: jax.Array, numbers: Any, params: dict[str, Any]) -> jax.Array:
    """A convolution as one product of matrices for each pixel that comes out."""
    lhs, rhs, out = numbers
    edges = [(0, 0, 0)] * x.ndim
    for d, (low, high) in zip(lhs[2:], params["padding"], strict=True):
        edges[d] = (low, high, 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), edges)
    sizes = [x.shape[d] - kernel.shape[k] + 1 for d, k in zip(lhs[2:], rhs[2:], strict=True)]
    pixels = []
    for place in itertools.product(*map(range, sizes)):
        window = x
        for d, k, first in zip(lhs[2:], rhs[2:], place, strict=True):
            window = lax.slice_in_dim(window, first, first + kernel.shape[k], axis=d)
        over = ((lhs[1], *lhs[2:]), (rhs[1], *rhs[2:])), ((), ())
        product = lax.dot_general(window, kernel, over, params["precision"], params["preferred_element_type"])
        pixels.append(product)
    y = jnp.stack(pixels, 1).reshape(len(pixels[0]), *sizes, -1)
    return y.transpose(np.argsort((out[0], *out[2:], out[1])))


def _channels_last(rank: int) -> lax.ConvDimensionNumbers:
    """The order that is fast: `[n, *sizes, channels]`, and kernels `[*sizes, in, out]`."""
    last = rank - 1
    images = (0, last, *range(1, last))
    return lax.ConvDimensionNumbers(images, (last, last - 1, *range(last - 1)), images)


def convolution(x: jax.Array, kernel: jax.Array, **params: Any) -> jax.Array:
    """A convolution by its primitive's parameters, with the derivatives of the primitive.

    One of few channels has narrow matrix products. Where it has strides, the pixels within a stride become channels of
    an image that is as much smaller, whose convolution has strides of one: in two thirds to half of the time.
    """
    plain = functools.partial(primitives.conv_general_dilated_p.bind, **params)
    if not _is_thin(x, kernel, **params):
        return plain(x, kernel)
    deep = jax.custom_jvp(functools.partial(_deep, **params))
    deep.defjvp(lambda primals, tangents: (deep(*primals), jax.jvp(plain, primals, tangents)[1]))
    return deep(x, kernel)


def _is_thin(x: jax.Array, kernel: jax.Array, *, dimension_numbers: Any, **params: Any) -> bool:
    _, channels, *sizes = (kernel.shape[d] for d in dimension_numbers.rhs_spec)
    return (
        jax.default_backend() == "cpu"
        and channels <= _FEW
        and all(1 < s <= k for s, k in zip(params["window_strides"], sizes, strict=True))
        and _is_plain(params)
    )


def _deep(x: jax.Array, kernel: jax.Array, *, dimension_numbers: Any, **params: Any) -> jax.Array:
    lhs, rhs, out = dimension_numbers
    x, kernel = x.transpose(lhs[0], *lhs[2:], lhs[1]), kernel.transpose(rhs[0], *rhs[2:], rhs[1])
    strides, none = params["window_strides"], (0, 0, 0)
    before, after = [none], [none]
    for n, k, s, (low, high) in zip(x.shape[1:-1], kernel.shape[1:-1], strides, params["padding"], strict=True):
        taps, outputs = -(-k // s), max(0, (n + low + high - k) // s + 1)
        before.append((low, (outputs + taps - 1) * s - n - low, 0))
        after.append((0, taps * s - k, 0))
    zero = jnp.zeros((), x.dtype)
    x, kernel = (_to_depth(lax.pad(a, zero, [*edges, none]), strides) for a, edges in ((x, before), (kernel, after)))
    params |= {"window_strides": (1,) * len(strides), "padding": ((0, 0),) * len(strides)}
    y = primitives.conv_general_dilated_p.bind(
        x, jnp.moveaxis(kernel, 0, -1), dimension_numbers=_channels_last(x.ndim), **params
    )
    return y.transpose(np.argsort((out[0], *out[2:], out[1])))


def _to_depth(x: jax.Array, strides: Sequence[int]) -> jax.Array:
    """The pixels of each block of `[n, *sizes, channels]` as channels of one."""
    pairs = [size for n, s in zip(x.shape[1:-1], strides, strict=True) for size in (n // s, s)]
    odd, even = range(1, len(pairs) + 1, 2), range(2, len(pairs) + 1, 2)
    blocks = x.reshape(len(x), *pairs, x.shape[-1]).transpose(0, *odd, *even, len(pairs) + 1)
    return blocks.reshape(len(x), *pairs[::2], -1)


def _is_spread(kernel: jax.Array, **params: Any) -> bool:
    """Whether it is the transpose of a convolution with strides."""
    return (
        jax.default_backend() == "cpu"
        and all(1 < d <= k for d, k in zip(params["lhs_dilation"], kernel.shape, strict=False))
        and all(n == 1 for n in (*params["rhs_dilation"], *params["window_strides"]))
        and params["feature_group_count"] == params["batch_group_count"] == 1
    )


def _sub_pixel(x: jax.Array, kernel: jax.Array, **params: Any) -> jax.Array:
    """The transpose of a convolution with strides, of channels-last arrays: see `bounds.convolution`."""
    strides, sizes, spatial = params["lhs_dilation"], kernel.shape[:-2], range(kernel.ndim - 2)
    weights, taps = by_place(jnp.flip(kernel, spatial).swapaxes(-1, -2), strides)
    blocks = [n + t - 1 for n, t in zip(x.shape[1:-1], taps, strict=True)]
    zero, none = jnp.zeros((), x.dtype), (0, 0, 0)
    if kernel.shape[-1] <= _FEW:
        y = spread(x, weights, blocks, params["precision"])
    else:
        padded = lax.pad(x, zero, [none, *((t - 1, t - 1, 0) for t in taps), none])
        ones, numbers = (1,) * len(taps), _channels_last(x.ndim)
        y = lax.conv_general_dilated(
            padded, weights, ones, "VALID", dimension_numbers=numbers, precision=params["precision"]
        )
    y = from_depth(y, strides)
    edges = []
    for n, k, s, size, (low, high) in zip(x.shape[1:-1], sizes, strides, y.shape[1:-1], params["padding"], strict=True):
        edges.append((low - k + 1, (n - 1) * s + high + 1 - size, 0))
    return lax.pad(y, zero, [none, *edges, none])


def spread(a: jax.Array, weights: jax.Array, blocks: Sequence[int], precision: Any) -> jax.Array:
    """The convolution of `a`, padded to `blocks`, as one product whose parts are shifted and added."""
    *taps, channels, _ = weights.shape
    count = math.prod(taps)
    weights = jnp.moveaxis(weights, -2, 0).reshape(channels, -1)
    parts = jnp.tensordot(a, weights, 1, precision=precision)
    shifted = []
    # Split and not sliced: the gradient of slices is a sum of as many padded arrays, that of a split is put together.
    pieces = lax.split(parts, (parts.shape[-1] // count,) * count, parts.ndim - 1)
    for tap, piece in zip(itertools.product(*map(range, taps)), pieces, strict=True):
        edges = [
            (t - 1 - i, b - n - (t - 1 - i), 0) for i, t, b, n in zip(tap, taps, blocks, a.shape[1:], strict=False)
        ]
        shifted.append(lax.pad(piece, jnp.zeros((), a.dtype), [(0, 0, 0), *edges, (0, 0, 0)]))
    return sum(shifted[1:], shifted[0])


def by_place(kernel: jax.Array, strides: Sequence[int]) -> tuple[jax.Array, list[int]]:
    """A kernel `[*sizes, in, out]` as one of stride 1, `[*taps, out, places * in]`, and its taps."""
    rank = len(strides)
    taps = [-(-k // s) for k, s in zip(kernel.shape, strides, strict=False)]
    missing = [(0, t * s - k) for t, s, k in zip(taps, strides, kernel.shape, strict=False)]
    kernel = jnp.pad(kernel, [*missing, (0, 0), (0, 0)])
    kernel = kernel.reshape(*(n for pair in zip(taps, strides, strict=True) for n in pair), *kernel.shape[-2:])
    kernel = jnp.flip(kernel, tuple(range(0, 2 * rank, 2)))
    kernel = kernel.transpose(*range(0, 2 * rank, 2), 2 * rank + 1, *range(1, 2 * rank, 2), 2 * rank)
    return kernel.reshape(*taps, kernel.shape[rank], -1), taps


def from_depth(x: jax.Array, strides: Sequence[int]) -> jax.Array:
    """Channels of `[n, *blocks, places * channels]` as pixels of each block."""
    rank, blocks = len(strides), x.shape[1:-1]
    x = x.reshape(len(x), *blocks, *strides, -1)
    x = x.transpose(0, *(axis for i in range(rank) for axis in (1 + i, 1 + rank + i)), 2 * rank + 1)
    return x.reshape(len(x), *(b * s for b, s in zip(blocks, strides, strict=True)), x.shape[-1])


def times_absolute(x: jax.Array, matrix: jax.Array, **params: Any) -> jax.Array:
    """The product of an array and the absolute values of a matrix, by the parameters of `dot_general`.

    Absolute values of a large matrix, all made at once, are written to memory and read back, which takes several times
    as long as a product with few rows. So they are made and multiplied strip by strip.
    """
    whole = functools.partial(_times_all, params=params)
    strips = _strips(matrix, **params)
    if strips < 2:
        return whole(x, matrix)
    by_strips = jax.custom_jvp(functools.partial(_times_strips, params=params, strips=strips))
    by_strips.defjvp(lambda primals, tangents: (by_strips(*primals), jax.jvp(whole, primals, tangents)[1]))
    return by_strips(x, matrix)


def _strips(matrix: jax.Array, *, dimension_numbers: Any, **params: Any) -> int:
    """In how many even strips of the dimension that is summed over; 1 for the whole."""
    if jax.default_backend() != "cpu" or matrix.ndim != 2 or matrix.size < _LARGE or dimension_numbers[0][1] != (0,):
        return 1
    return next((n for n in range(-(-matrix.size // _STRIP), len(matrix) // 64) if len(matrix) % n == 0), 1)


def _times_all(x: jax.Array, matrix: jax.Array, *, params: dict[str, Any]) -> jax.Array:
    return primitives.dot_general_p.bind(x, jnp.abs(matrix), **params)


def _times_strips(x: jax.Array, matrix: jax.Array, *, params: dict[str, Any], strips: int) -> jax.Array:
    (axis,) = params["dimension_numbers"][0][0]
    size = len(matrix) // strips

    def add(so_far: jax.Array, strip: jax.Array) -> tuple[jax.Array, None]:
        part, rows = (lax.dynamic_slice_in_dim(a, strip * size, size, d) for a, d in ((x, axis), (matrix, 0)))
        return so_far + _times_all(part, rows, params=params), None

    shape = jax.eval_shape(functools.partial(_times_all, params=params), x, matrix)
    return lax.scan(add, jnp.zeros(shape.shape, shape.dtype), jnp.arange(strips))[0]
