"""What ONNX operators compute, as the operations that bounds are known for.

Every function takes the attributes of a node and its inputs. Values that are known when the graph is traced, such as
shapes, are NumPy arrays and stay so (their 64-bit integers would not survive in jax); all others are jax arrays.
Operators are those of https://onnx.ai/onnx/operators, opset 13 to 21.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mixtrain_jax.errors import ModelError

Array = jax.Array | np.ndarray
Attributes = dict[str, Any]

MAX_KNOWN = 2**20  # entries of an array that shape arithmetic makes
# Inputs that should be known, where a weight could stand as well.
KNOWN_INPUTS = {"Clip": (1, 2), "Dropout": (1,), "Pad": (2,), "Pow": (1,)}


def is_known(x: Array) -> bool:
    """Whether a value does not depend on the images or the parameters."""
    return isinstance(x, np.ndarray)


def _numpy(*arrays: Array) -> Any:
    return np if all(is_known(x) for x in arrays) else jnp


def _known(x: Array, what: str) -> np.ndarray:
    if not isinstance(x, np.ndarray):
        raise ModelError(f"{what} must be a constant of the graph")
    return x


def _integers(x: Array, what: str) -> list[int]:
    x = _known(x, what)
    if x.ndim > 1:
        raise ModelError(f"{what} must be a list, got shape {list(x.shape)}")
    return [int(v) for v in x.ravel()]


def _shape(shape: tuple[int, ...], numpy: Any) -> tuple[int, ...]:
    """A shape, if an array of it may be made now."""
    if any(size < 0 for size in shape):
        raise ModelError(f"it would make an array of shape {list(shape)}")
    if numpy is np and math.prod(shape) > MAX_KNOWN:
        raise ModelError(f"it would make a constant of shape {list(shape)}, larger than {MAX_KNOWN} entries")
    return shape


def _axis(axis: int, rank: int, what: str = "axis") -> int:
    if not -rank <= axis < rank:
        raise ModelError(f"{what} {axis} is none of {rank} dimensions")
    return axis % rank


def _axes(axes: list[int], rank: int) -> tuple[int, ...]:
    found = tuple(_axis(axis, rank) for axis in axes)
    if len(set(found)) != len(found):
        raise ModelError(f"axes {axes} repeat")
    return found


def _flag(value: int, name: str) -> bool:
    if value not in (0, 1):
        raise ModelError(f"{name} must be 0 or 1, got {value}")
    return bool(value)


# Entry by entry.


def _unary(function: Callable[[jax.Array], jax.Array]) -> Callable[..., Array]:
    return lambda attributes, x: function(jnp.asarray(x))


def _abs_neg(name: str) -> Callable[..., Array]:
    return lambda attributes, x: getattr(_numpy(x), name)(x)


def _together(*arrays: Array) -> tuple[Array, ...]:
    """All of one rank, checked to broadcast to something of a sane size."""
    numpy = _numpy(*arrays)
    shape = _shape(np.broadcast_shapes(*(x.shape for x in arrays)), numpy)
    return tuple(x.reshape((1,) * (len(shape) - x.ndim) + x.shape) for x in arrays)


def _variadic(name: str) -> Callable[..., Array]:
    def compute(attributes: Attributes, *arrays: Array) -> Array:
        total = arrays[0]
        for x in arrays[1:]:
            total, x = _together(total, x)
            total = getattr(_numpy(total, x), name)(total, x)
        return total

    return compute


def _divide(attributes: Attributes, x: Array, y: Array) -> Array:
    x, y = _together(x, y)
    if not is_known(x) or not is_known(y) or np.issubdtype(x.dtype, np.floating):
        return _numpy(x, y).divide(x, y)
    if not np.all(y):
        raise ModelError("it divides an integer by 0")
    return (np.sign(x) * np.sign(y) * (np.abs(x) // np.abs(y))).astype(x.dtype)  # towards 0, as C does


def _power(attributes: Attributes, x: Array, y: Array) -> Array:
    if is_known(x) and is_known(y):
        x, y = _together(x, y)
        return np.power(x, y).astype(x.dtype)
    if is_known(y) and y.size == 1 and y.ndim <= x.ndim:
        exponent = float(y.ravel()[0])
        return jnp.power(x, int(exponent) if exponent == int(exponent) and abs(exponent) <= 64 else exponent)
    x, y = _together(x, y)
    return jnp.power(x, jnp.asarray(y, x.dtype))


def _clip(attributes: Attributes, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    if any(v is not None and v.ndim for v in (low, high)):
        raise ModelError("min and max must be scalars")
    if is_known(x):
        x = x if low is None else np.maximum(x, _known(low, "min"))
        return x if high is None else np.minimum(x, _known(high, "max"))
    if low is not None and high is not None:
        return jnp.clip(x, low, high)
    x = x if low is None else jnp.maximum(x, low)
    return x if high is None else jnp.minimum(x, high)


def _relu(attributes: Attributes, x: Array) -> Array:
    return jax.nn.relu(jnp.asarray(x))


def _prelu(attributes: Attributes, x: Array, slope: Array) -> Array:
    rank = x.ndim
    if np.broadcast_shapes(x.shape, slope.shape) != x.shape:
        raise ModelError(f"the slope {list(slope.shape)} does not broadcast to {list(x.shape)}")
    slope = slope.reshape((1,) * (rank - slope.ndim) + slope.shape)
    return slope * x + (1 - slope) * jax.nn.relu(jnp.asarray(x))  # the image in one ReLU only, which is tighter


def _hard_sigmoid(attributes: Attributes, x: Array) -> Array:
    return jnp.clip(attributes["alpha"] * x + attributes["beta"], 0.0, 1.0)


def _gelu(attributes: Attributes, x: Array) -> Array:
    if attributes["approximate"] not in ("none", "tanh"):
        raise ModelError(f"approximate must be none or tanh, got {attributes['approximate']!r}")
    return jax.nn.gelu(jnp.asarray(x), approximate=attributes["approximate"] == "tanh")


def _where(attributes: Attributes, condition: Array, x: Array, y: Array) -> Array:
    condition, x, y = _together(_known(condition, "the condition"), x, y)
    return _numpy(x, y).where(condition, x, y)


def _equal(attributes: Attributes, x: Array, y: Array) -> Array:
    x, y = _together(_known(x, "what is compared"), _known(y, "what is compared"))
    return np.equal(x, y)


_DTYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64}  # by number in TensorProto


def _cast(attributes: Attributes, x: Array) -> Array:
    dtype = _DTYPES.get(attributes["to"])
    if dtype is None or (not is_known(x) and dtype != np.float32):
        raise ModelError(f"casting to data type {attributes['to']} is not supported there")
    return x.astype(dtype) if is_known(x) else x


# Products.


def _gemm(attributes: Attributes, a: Array, b: Array, c: Array | None = None) -> Array:
    if a.ndim != 2 or b.ndim != 2:
        raise ModelError(f"it wants matrices, got {list(a.shape)} and {list(b.shape)}")
    a = a.T if _flag(attributes["transA"], "transA") else a
    b = b.T if _flag(attributes["transB"], "transB") else b
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


class _Window:
    """Where windows lie along the spatial dimensions of `[n, channels, ...]`."""

    def __init__(self, attributes: Attributes, x: Array, kernel: tuple[int, ...], pooling: bool = False):
        spatial = x.shape[2:]
        rank = len(spatial)
        if rank not in (1, 2) or len(kernel) != rank or min(kernel) < 1:
            raise ModelError(f"images {list(x.shape)} and windows {list(kernel)}: it wants 1 or 2 spatial dimensions")
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


def _spatial_bias(bias: Array, spatial: int) -> Array:
    return bias.reshape((1, -1) + (1,) * spatial)


def _layout(spatial: int) -> tuple[str, str, str]:
    return ("NCH", "OIH", "NCH") if spatial == 1 else ("NCHW", "OIHW", "NCHW")


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
    return out if bias is None else out + _spatial_bias(bias, x.ndim - 2)


def _check_kernel(attributes: Attributes, x: Array, w: Array) -> None:
    if x.ndim != w.ndim or x.ndim not in (3, 4):
        raise ModelError(f"images {list(x.shape)} and weights {list(w.shape)}: it wants 1 or 2 spatial dimensions")
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
    return out if bias is None else out + _spatial_bias(bias, rank)


# Pooling and normalisation.


def _pool(attributes: Attributes, x: Array) -> _Window:
    window = _Window(attributes, x, tuple(attributes["kernel_shape"]), pooling=True)
    spatial = x.shape[2:]
    if any(max(pad) >= k for pad, k in zip(window.pads, window.kernel, strict=True)):
        raise ModelError("pads must be smaller than the windows")
    if min(window.outputs(spatial)) < 1:
        raise ModelError(f"windows {list(window.reach)} are larger than the padded images {list(x.shape)}")
    if _flag(attributes["ceil_mode"], "ceil_mode"):
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
    with_pads = _flag(attributes["count_include_pad"], "count_include_pad")
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


def _global(function: Callable[..., jax.Array]) -> Callable[..., Array]:
    def compute(attributes: Attributes, x: Array) -> Array:
        if x.ndim < 3:
            raise ModelError(f"it wants [n, channels, ...], got {list(x.shape)}")
        return function(x, axis=tuple(range(2, x.ndim)), keepdims=True)

    return compute


def _batch_normalization(attributes: Attributes, x: Array, scale: Array, bias: Array, mean: Array, var: Array) -> Array:
    if attributes.get("training_mode", 0) != 0:
        raise ModelError("it is in training mode: export the model in inference mode")
    if x.ndim < 2 or any(v.shape != (x.shape[1],) for v in (scale, bias, mean, var)):
        raise ModelError(f"its statistics do not fit the channels of {list(x.shape)}")
    factor = scale / jnp.sqrt(var + attributes["epsilon"])
    mean, factor, bias = (_spatial_bias(v, x.ndim - 2) for v in (mean, factor, bias))
    return (x - mean) * factor + bias


def _layer_normalization(attributes: Attributes, x: Array, scale: Array, bias: Array | None = None) -> Array:
    if attributes["stash_type"] != 1:
        raise ModelError("stash_type must be 1, float")
    axes = tuple(range(_axis(attributes["axis"], x.ndim), x.ndim))
    for v in (scale, bias):
        if v is not None and np.broadcast_shapes(x.shape, v.shape) != x.shape:
            raise ModelError(f"scale or bias {list(v.shape)} does not broadcast to {list(x.shape)}")
    centered = x - jnp.mean(x, axes, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axes, keepdims=True)
    out = centered / jnp.sqrt(variance + attributes["epsilon"])
    out, scale = _together(out, scale)
    out = out * scale
    if bias is None:
        return out
    out, bias = _together(out, bias)
    return out + bias


def _softmax(function: Callable[..., jax.Array]) -> Callable[..., Array]:
    return lambda attributes, x: function(jnp.asarray(x), axis=_axis(attributes["axis"], x.ndim))


def _reduce(name: str) -> Callable[..., Array]:
    def compute(attributes: Attributes, x: Array, axes: Array | None = None) -> Array:
        chosen = attributes["axes"] if "axes" in attributes else None if axes is None else _integers(axes, "axes")
        keep = _flag(attributes["keepdims"], "keepdims")
        if not chosen and _flag(attributes.get("noop_with_empty_axes", 0), "noop_with_empty_axes"):
            return x
        where = _axes(chosen, x.ndim) if chosen else tuple(range(x.ndim))
        if any(x.shape[i] == 0 for i in where):
            raise ModelError(f"it reduces nothing: {list(x.shape)}")
        if is_known(x) and not np.issubdtype(x.dtype, np.floating) and name == "mean":
            raise ModelError("the mean of integers is not supported")
        reduced = getattr(_numpy(x), name)(x, axis=where, keepdims=keep)
        return np.asarray(reduced, x.dtype) if is_known(x) else reduced

    return compute


# Shapes.


def _flatten(attributes: Attributes, x: Array) -> Array:
    axis = attributes["axis"]
    if not -x.ndim <= axis <= x.ndim:
        raise ModelError(f"axis {axis} is none of {x.ndim} dimensions")
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape((math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def _reshape(attributes: Attributes, x: Array, shape: Array) -> Array:
    sizes = _integers(shape, "the shape")
    if not _flag(attributes.get("allowzero", 0), "allowzero"):
        if any(size == 0 and i >= x.ndim for i, size in enumerate(sizes)):
            raise ModelError(f"the shape {sizes} copies a dimension that {list(x.shape)} does not have")
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    if any(size < -1 for size in sizes) or sizes.count(-1) > 1 or (-1 in sizes and 0 in sizes):
        raise ModelError(f"the shape {sizes} is none")
    return x.reshape(sizes)


def _transpose(attributes: Attributes, x: Array) -> Array:
    order = attributes["perm"]
    order = tuple(reversed(range(x.ndim))) if order is None else tuple(order)
    if sorted(order) != list(range(x.ndim)):
        raise ModelError(f"perm {list(order)} is no order of {x.ndim} dimensions")
    return x.transpose(order)


def _squeeze(attributes: Attributes, x: Array, axes: Array | None = None) -> Array:
    chosen = [i for i, size in enumerate(x.shape) if size == 1] if axes is None else _integers(axes, "axes")
    return _numpy(x).squeeze(x, _axes(chosen, x.ndim))


def _unsqueeze(attributes: Attributes, x: Array, axes: Array) -> Array:
    chosen = _integers(axes, "axes")
    return _numpy(x).expand_dims(x, _axes(chosen, x.ndim + len(chosen)))


def _concat(attributes: Attributes, *arrays: Array) -> Array:
    axis = _axis(attributes["axis"], arrays[0].ndim)
    numpy = _numpy(*arrays)
    sizes = [x.size for x in arrays]
    _shape((sum(sizes),), numpy)
    return numpy.concatenate(arrays, axis)


def _split(attributes: Attributes, x: Array, sizes: Array | None = None, *, outputs: int) -> tuple[Array, ...]:
    axis = _axis(attributes["axis"], x.ndim)
    given, length = None if sizes is None else _integers(sizes, "split"), x.shape[axis]
    count = attributes.get("num_outputs")
    if given is not None and count is not None:
        raise ModelError("split and num_outputs exclude each other")
    if count is not None and count != outputs:
        raise ModelError(f"num_outputs is {count}, but it has {outputs} outputs")
    if given is None:
        if count is None and length % outputs:
            raise ModelError(f"{length} cannot be split into {outputs} equal parts")
        size = -(-length // outputs)
        given = [size] * (outputs - 1) + [length - size * (outputs - 1)]
    if len(given) != outputs or min(given) < 0 or sum(given) != length:
        raise ModelError(f"{length} cannot be split into {given}, {outputs} outputs")
    ends = [0, *itertools.accumulate(given)]
    where = (slice(None),) * axis
    return tuple(x[(*where, slice(a, b))] for a, b in itertools.pairwise(ends))


def _slice(
    attributes: Attributes, x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> Array:
    first, last = _integers(starts, "starts"), _integers(ends, "ends")
    chosen = _axes(_integers(axes, "axes") if axes is not None else list(range(len(first))), x.ndim)
    stride = _integers(steps, "steps") if steps is not None else [1] * len(first)
    if not len(first) == len(last) == len(chosen) == len(stride) or 0 in stride:
        raise ModelError("starts, ends, axes and steps do not fit each other")
    where = [slice(None)] * x.ndim
    for axis, a, b, step in zip(chosen, first, last, stride, strict=True):
        where[axis] = slice(a, b, step)
    return x[tuple(where)]


def _gather(attributes: Attributes, x: Array, indices: Array) -> Array:
    axis = _axis(attributes["axis"], x.ndim)
    where, size = _known(indices, "the indices"), x.shape[axis]
    if np.any((where < -size) | (where >= size)):
        raise ModelError(f"an index lies outside 0 to {size - 1}")
    where = np.where(where < 0, where + size, where)
    if is_known(x):
        _shape((*x.shape[:axis], *where.shape, *x.shape[axis + 1 :]), np)
        return np.asarray(np.take(x, where, axis))
    if where.ndim == 0:
        return lax.index_in_dim(x, int(where), axis, keepdims=False)
    return jnp.take(x, where.astype(np.int32), axis, mode="clip")


def _pad(attributes: Attributes, x: Array, pads: Array, value: Array | None = None, axes: Array | None = None) -> Array:
    mode, sizes = attributes["mode"], _integers(pads, "pads")
    chosen = _axes(_integers(axes, "axes") if axes is not None else list(range(x.ndim)), x.ndim)
    if len(sizes) != 2 * len(chosen):
        raise ModelError(f"pads {sizes} do not fit {len(chosen)} axes")
    widths = [(0, 0)] * x.ndim
    for axis, low, high in zip(chosen, sizes[: len(chosen)], sizes[len(chosen) :], strict=True):
        widths[axis] = (low, high)
    shape = tuple(n + low + high for n, (low, high) in zip(x.shape, widths, strict=True))
    _shape(shape, _numpy(x))
    if mode == "constant":
        value = np.zeros((), x.dtype) if value is None else value
        if value.size != 1:
            raise ModelError("the value must be a scalar")
        padded = lax.pad(jnp.asarray(x), jnp.asarray(value).reshape(()), [(low, high, 0) for low, high in widths])
        if is_known(x):
            raise ModelError("padding of constants is not supported")
        return padded
    if mode not in ("reflect", "edge") or min(min(w) for w in widths) < 0:
        raise ModelError(f"mode {mode!r} with pads {sizes} is not supported")
    if mode == "reflect" and any(max(w) >= n for w, n in zip(widths, x.shape, strict=True) if max(w)):
        raise ModelError(f"pads {sizes} reflect more than there is in {list(x.shape)}")
    if 0 in x.shape:
        raise ModelError("there is nothing to repeat")
    return _numpy(x).pad(x, widths, mode=mode)


def _expand(attributes: Attributes, x: Array, shape: Array) -> Array:
    sizes = tuple(_integers(shape, "the shape"))
    numpy = _numpy(x)
    _shape(sizes, numpy)
    return numpy.broadcast_to(x, _shape(np.broadcast_shapes(x.shape, sizes), numpy))


def _constant_of_shape(attributes: Attributes, shape: Array) -> Array:
    sizes = _shape(tuple(_integers(shape, "the shape")), np)
    value = attributes["value"] if attributes["value"] is not None else np.zeros(1, np.float32)
    if value.size != 1:
        raise ModelError("value must have one entry")
    return np.full(sizes, value.ravel()[0], value.dtype)


def _shape_of(attributes: Attributes, x: Array) -> Array:
    return np.array(x.shape[slice(attributes.get("start", 0), attributes.get("end"))], np.int64)


def _dropout(attributes: Attributes, x: Array, ratio: Array | None = None, training: Array | None = None) -> Array:
    if training is not None and _known(training, "training_mode").any():
        raise ModelError("it is in training mode: export the model in inference mode")
    return x


OPERATIONS: dict[str, Callable[..., Any]] = {
    "Abs": _abs_neg("abs"),
    "Add": _variadic("add"),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Celu": lambda attributes, x: jax.nn.celu(jnp.asarray(x), attributes["alpha"]),
    "Clip": _clip,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _divide,
    "Dropout": _dropout,
    "Elu": lambda attributes, x: jax.nn.elu(jnp.asarray(x), attributes["alpha"]),
    "Equal": _equal,
    "Erf": _unary(lax.erf),
    "Exp": _unary(jnp.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global(jnp.mean),
    "GlobalMaxPool": _global(jnp.max),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(jax.nn.hard_swish),
    "Identity": lambda attributes, x: x,
    "LayerNormalization": _layer_normalization,
    "LeakyRelu": lambda attributes, x: jax.nn.leaky_relu(jnp.asarray(x), attributes["alpha"]),
    "Log": _unary(jnp.log),
    "LogSoftmax": _softmax(jax.nn.log_softmax),
    "MatMul": _matmul,
    "Max": _variadic("maximum"),
    "MaxPool": _max_pool,
    "Min": _variadic("minimum"),
    "Mish": _unary(jax.nn.mish),
    "Mul": _variadic("multiply"),
    "Neg": _abs_neg("negative"),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _power,
    "Reciprocal": _unary(lambda x: 1 / x),
    "ReduceMax": _reduce("max"),
    "ReduceMean": _reduce("mean"),
    "ReduceMin": _reduce("min"),
    "ReduceSum": _reduce("sum"),
    "Relu": _relu,
    "Reshape": _reshape,
    "Selu": lambda attributes, x: attributes["gamma"] * jax.nn.elu(jnp.asarray(x), attributes["alpha"]),
    "Shape": _shape_of,
    "Sigmoid": _unary(jax.nn.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax(jax.nn.softmax),
    "Softplus": _unary(jax.nn.softplus),
    "Softsign": _unary(jax.nn.soft_sign),
    "Split": _split,
    "Sqrt": _unary(jnp.sqrt),
    "Squeeze": _squeeze,
    "Sub": _variadic("subtract"),
    "Sum": _variadic("add"),
    "Tanh": _unary(jnp.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
