"""A network as a list of steps in float64, read from its jaxpr: what the independent check computes with.

Shares no code with `mixtrain_jax.bounds`. Calls are inlined and what depends on no input is folded into constants, so
that the steps, and with them the program's SHA-256, do not depend on the version of jax as long as it records the same
operations. Every step but the ReLU is affine and knows its linear part, that with absolute weights, and the transpose.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mixtrain_jax.errors import CertificateError

Linear = Callable[[Sequence[np.ndarray], bool], np.ndarray]
Transpose = Callable[[np.ndarray], Sequence[np.ndarray]]


class Step(NamedTuple):
    """One operation; arrays have a further axis in front, of values that are treated alike.

    `linear` is None for `max(x, 0)`. Otherwise `output = linear(inputs, False) + offset`, `linear(inputs, True)` is the
    same with absolute weights, and `transpose` is the transpose of `linear(_, False)`.
    """

    name: str
    inputs: tuple[int, ...]  # values by number: 0 is the image, and step k makes value k + 1
    shape: tuple[int, ...]  # of the output
    linear: Linear | None = None
    transpose: Transpose | None = None
    offset: np.ndarray | None = None  # float64, of the output's shape; None for 0
    terms: int = 1  # most products that are summed to one entry, forwards or backwards
    summed: int = 0  # roundings of an entry where the network is deployed: the products in its sum; 0 for exact steps


@dataclasses.dataclass(frozen=True)
class Program:
    """A network of one image.

    Attributes:
      shapes: of every value, with the axis of the one image in front.
      steps: in order; step `k` makes value `k + 1`.
      output: number of the value that holds the logits.
      unit: unit roundoff of the float dtype that the network is deployed in.
      tiny: smallest normal number of that dtype.
      largest: largest number of that dtype.
      sha256: of the steps and of all constants, to the bit.
    """

    shapes: tuple[tuple[int, ...], ...]
    steps: tuple[Step, ...]
    output: int
    unit: float
    tiny: float
    largest: float
    sha256: str


def read_program(apply: Callable[[Any, Any], Any], params: Any, shape: tuple[int, ...], dtype: Any) -> Program:
    """Trace a network and read its jaxpr.

    Args:
      apply: `(params, images) -> logits`, for images `[n, ...]` that are independent of each other.
      params: its parameters.
      shape: of one image.
      dtype: of images, float32 or float64.

    Raises:
      CertificateError: where the network does something that the independent check does not know.
    """
    closed = jax.make_jaxpr(lambda x: apply(params, x))(jax.ShapeDtypeStruct((1, *shape), dtype))
    reader = _Reader((1, *shape), dtype)
    outputs = reader.run(closed, [0])
    output = outputs[0] if len(outputs) == 1 else None
    made = reader.shapes[output] if isinstance(output, int) else ()
    if not isinstance(output, int) or len(made) != 2 or made[0] != 1 or made[1] < 2:
        raise CertificateError(
            "The independent check wants a network that makes logits [n, classes] of images, of two classes or more."
        )
    if any(0 in each for each in reader.shapes):
        raise CertificateError("The independent check of certificates does not know arrays without entries.")
    reader.hash.update(f"output {output}".encode())
    kind = np.finfo(dtype)
    return Program(
        shapes=tuple(reader.shapes),
        steps=tuple(reader.steps),
        output=output,
        unit=float(kind.eps) / 2,
        tiny=float(kind.tiny),
        largest=float(kind.max),
        sha256=reader.hash.hexdigest(),
    )


_CALLS = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "checkpoint",
    "remat",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
}

# Operations that move entries, as functions of their parameters and of arrays of any dtype.
_MOVES: dict[str, Callable[..., np.ndarray]] = {
    "reshape": lambda p, x: x.reshape(p["new_sizes"]),
    "broadcast_in_dim": lambda p, x: np.broadcast_to(_spread(x, p["shape"], p["broadcast_dimensions"]), p["shape"]),
    "transpose": lambda p, x: x.transpose(p["permutation"]),
    "squeeze": lambda p, x: x.squeeze(tuple(p["dimensions"])),
    "rev": lambda p, x: np.flip(x, p["dimensions"]),
    "slice": lambda p, x: x[tuple(map(slice, p["start_indices"], p["limit_indices"], p["strides"] or (1,) * x.ndim))],
    "concatenate": lambda p, *xs: np.concatenate(xs, p["dimension"]),
    "pad": lambda p, x, fill: _pad(x, fill, p["padding_config"]),
    "copy": lambda p, x: x,
    "copy_p": lambda p, x: x,
    "stop_gradient": lambda p, x: x,
}
# What constants alone may go through besides, in their own dtype.
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "max": np.maximum,
    "sqrt": np.sqrt,
}
_SIGNS = {"add": (1, 1), "add_any": (1, 1), "sub": (1, -1), "neg": (-1,)}

Value = int | np.ndarray  # a number of a value that depends on the image, or a constant


class _Reader:
    def __init__(self, shape: tuple[int, ...], dtype: Any):
        self.shapes = [shape]
        self.steps: list[Step] = []
        self.hash = hashlib.sha256(f"image {list(shape)} {np.dtype(dtype)}\n".encode())

    def run(self, closed: Any, args: Sequence[Value]) -> list[Value]:
        jaxpr = getattr(closed, "jaxpr", closed)  # some calls hold an open one
        env: dict[Any, Value] = {
            var: np.asarray(value) for var, value in zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=True)
        }
        env.update(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> Value:
            return np.asarray(atom.val, atom.aval.dtype) if hasattr(atom, "val") else env[atom]

        for eqn in jaxpr.eqns:
            env.update(zip(eqn.outvars, self.equation(eqn, [read(atom) for atom in eqn.invars]), strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn: Any, operands: list[Value]) -> list[Value]:
        name, p = eqn.primitive.name, eqn.params
        if name in _CALLS:
            return self.run(p["call_jaxpr"] if "call_jaxpr" in p else p["jaxpr"], operands)
        shape, dtype = eqn.outvars[0].aval.shape, eqn.outvars[0].aval.dtype
        if not any(isinstance(x, int) for x in operands):
            return [_constant(name, p, operands, shape, dtype)]
        if dtype not in (np.float32, np.float64):
            raise _unknown(name, f"of {dtype}")
        if name == "convert_element_type":
            narrower = np.finfo(dtype).bits < np.finfo(eqn.invars[0].aval.dtype).bits
            return [self.rounded(operands[0], dtype)] if narrower else operands
        if name in _MOVES:
            return [self.move(name, p, operands)]
        if name in ("add", "add_any", "sub", "mul", "div", "neg", "max"):
            operands = [self.spread(x, shape) for x in operands]
        if name in _SIGNS:
            return [self.sum(name, operands, _SIGNS[name], shape)]
        first, second = (*operands, None)[:2]
        if name == "max":
            return [self.relu(first, second, shape)]
        if name in ("mul", "div"):
            return [self.scale(name, first, second, shape)]
        if name == "reduce_sum" and isinstance(first, int):
            return [self.reduce(first, tuple(p["axes"]), shape)]
        if name == "dot_general":
            return [self.dot(first, second, p["dimension_numbers"], shape)]
        if name == "conv_general_dilated":
            return [self.convolution(first, second, p, shape)]
        raise _unknown(name)

    def add(self, step: Step, *details: Any) -> int:
        """Append a step; what it computes is told to the hash by name, values, shapes, details and constants."""
        self.hash.update(f"{step.name} {list(step.inputs)} {list(step.shape)}".encode())
        for detail in details:
            if isinstance(detail, np.ndarray):
                little = np.ascontiguousarray(detail).astype(detail.dtype.newbyteorder("<"))
                self.hash.update(f" {detail.dtype} {list(detail.shape)} ".encode() + little.tobytes())
            else:
                self.hash.update(f" {detail}".encode())
        self.hash.update(b"\n")
        self.steps.append(step)
        self.shapes.append(step.shape)
        return len(self.steps)

    def spread(self, x: Value, shape: tuple[int, ...]) -> Value:
        """The value in a shape that it broadcasts to."""
        if isinstance(x, np.ndarray) or self.shapes[x] == shape:
            return x
        everywhere = {"shape": shape, "broadcast_dimensions": tuple(range(len(shape)))}
        return self.move("broadcast_in_dim", everywhere, [x])

    def move(self, name: str, p: dict[str, Any], operands: list[Value]) -> int:
        """Entries go where the numbers of the entries go when they are moved; constants have negative ones."""
        inputs = tuple(x for x in operands if isinstance(x, int))
        sizes = [math.prod(self.shapes[x]) for x in inputs]
        constants = [x.astype(np.float64).ravel() for x in operands if isinstance(x, np.ndarray)]
        known = np.concatenate([np.zeros(1), *constants])
        numbered, of_value, of_constant = [], 0, 1
        for x in operands:
            if isinstance(x, int):
                size = math.prod(self.shapes[x])
                numbered.append(np.arange(of_value, of_value + size).reshape(self.shapes[x]))
                of_value += size
            else:
                numbered.append(-np.arange(of_constant, of_constant + x.size).reshape(x.shape))
                of_constant += x.size
        places = np.asarray(_MOVES[name](p, *numbered))
        shape, total = places.shape, sum(sizes)
        places = places.ravel()
        moved = places >= 0
        source = places[moved]
        offset = None if moved.all() else np.where(moved, 0, known[np.where(moved, 0, -places)]).reshape(shape)
        if source.size == total == places.size and np.array_equal(source, np.arange(total)):  # nothing moves

            def linear(xs: Sequence[np.ndarray], absolute: bool) -> np.ndarray:
                return _joined(xs).reshape(-1, *shape)

            def transpose(g: np.ndarray) -> list[np.ndarray]:
                return self._parted(g.reshape(len(g), -1), inputs, sizes)
        else:

            def linear(xs: Sequence[np.ndarray], absolute: bool) -> np.ndarray:
                out = np.zeros((len(xs[0]), places.size))
                out[:, moved] = _joined(xs)[:, source]
                return out.reshape(-1, *shape)

            def transpose(g: np.ndarray) -> list[np.ndarray]:
                flat = np.zeros((len(g), total))
                np.add.at(flat.T, source, g.reshape(len(g), -1)[:, moved].T)
                return self._parted(flat, inputs, sizes)

        copies = int(np.bincount(source, minlength=1).max())
        step = Step(name, inputs, shape, linear, transpose, offset, copies)
        return self.add(step, places.astype(np.int64), *(x for x in operands if isinstance(x, np.ndarray)))

    def _parted(self, flat: np.ndarray, inputs: Sequence[int], sizes: Sequence[int]) -> list[np.ndarray]:
        parts = np.split(flat, np.cumsum(sizes)[:-1], axis=1)
        return [part.reshape(-1, *self.shapes[x]) for part, x in zip(parts, inputs, strict=True)]

    def rounded(self, x: Value, dtype: Any) -> int:
        """A value in a narrower float dtype, which in real arithmetic is itself."""
        assert isinstance(x, int)
        return self.add(
            Step("round", (x,), self.shapes[x], lambda xs, _: xs[0], lambda g: [g], summed=1), np.dtype(dtype)
        )

    def sum(self, name: str, operands: list[Value], signs: Sequence[int], shape: tuple[int, ...]) -> int:
        pairs = list(zip(operands, signs, strict=True))
        inputs = tuple(x for x, _ in pairs if isinstance(x, int))
        of_inputs = [sign for x, sign in pairs if isinstance(x, int)]
        constants = [sign * x.astype(np.float64) for x, sign in pairs if isinstance(x, np.ndarray)]
        offset = np.broadcast_to(constants[0], shape) if constants else None

        def linear(xs: Sequence[np.ndarray], absolute: bool) -> np.ndarray:
            signed = (x if sign > 0 or absolute else -x for x, sign in zip(xs, of_inputs, strict=True))
            return functools.reduce(np.add, signed)

        def transpose(g: np.ndarray) -> list[np.ndarray]:
            return [g if sign > 0 else -g for sign in of_inputs]

        details = [x if isinstance(x, np.ndarray) else "value" for x in operands]
        return self.add(Step(name, inputs, shape, linear, transpose, offset, 2, 1), *details)

    def relu(self, x: Value, y: Value | None, shape: tuple[int, ...]) -> int:
        value, floor = (x, y) if isinstance(x, int) else (y, x)
        if not isinstance(value, int) or not isinstance(floor, np.ndarray) or floor.any():
            raise _unknown("max", "of anything but one value and 0")
        return self.add(Step("relu", (value,), shape))

    def scale(self, name: str, x: Value, y: Value | None, shape: tuple[int, ...]) -> int:
        value, factor = (y, x) if name == "mul" and isinstance(y, int) else (x, y)
        if not isinstance(value, int) or not isinstance(factor, np.ndarray):
            raise _unknown(name, "of two values that depend on the image, or by one")
        by = np.broadcast_to(factor.astype(np.float64), shape)
        operation = np.multiply if name == "mul" else np.divide

        def linear(xs: Sequence[np.ndarray], absolute: bool) -> np.ndarray:
            return operation(xs[0], np.abs(by) if absolute else by)

        def transpose(g: np.ndarray) -> list[np.ndarray]:
            return [operation(g, by)]

        # Compilers multiply by the inverse of a constant, which is rounded as well.
        return self.add(Step(name, (value,), shape, linear, transpose, summed=1 if name == "mul" else 2), factor)

    def reduce(self, x: int, axes: tuple[int, ...], shape: tuple[int, ...]) -> int:
        before = self.shapes[x]
        kept = tuple(1 if axis in axes else size for axis, size in enumerate(before))

        def linear(xs: Sequence[np.ndarray], absolute: bool) -> np.ndarray:
            return xs[0].sum(tuple(axis + 1 for axis in axes))

        def transpose(g: np.ndarray) -> list[np.ndarray]:
            return [np.broadcast_to(g.reshape(-1, *kept), (len(g), *before))]

        terms = math.prod(before[axis] for axis in axes)
        return self.add(Step("reduce_sum", (x,), shape, linear, transpose, None, terms, terms), axes)

    def dot(self, x: Value, y: Value | None, numbers: Any, shape: tuple[int, ...]) -> int:
        (of_x, of_y), batched = numbers
        if any(map(len, batched)):
            raise _unknown("dot_general", "with batch dimensions")
        left = isinstance(x, int)
        value, factor, (mine, theirs) = (x, y, (of_x, of_y)) if left else (y, x, (of_y, of_x))
        if not isinstance(value, int) or not isinstance(factor, np.ndarray):
            raise _unknown("dot_general", "of two values that depend on the image")
        before = self.shapes[value]
        rows = [axis for axis in range(len(before)) if axis not in mine]
        columns = [axis for axis in range(factor.ndim) if axis not in theirs]
        contracted = math.prod(before[axis] for axis in mine)
        # As a matrix product: rows of the value, the contracted axes, columns of the factor.
        matrix = factor.astype(np.float64).transpose(*theirs, *columns).reshape(contracted, -1)
        order = (*rows, *mine)
        back = tuple(1 + axis for axis in np.argsort(order))
        ordered = tuple(before[axis] for axis in order)
        swap = (0, 1, 2) if left else (0, 2, 1)  # the left operand's axes come first in the output

        def linear(xs: Sequence[np.ndarray], absolute: bool) -> np.ndarray:
            flat = xs[0].transpose(0, *(1 + axis for axis in order)).reshape(-1, contracted)
            out = flat @ (np.abs(matrix) if absolute else matrix)
            return out.reshape(len(xs[0]), -1, matrix.shape[1]).transpose(swap).reshape(-1, *shape)

        def transpose(g: np.ndarray) -> list[np.ndarray]:
            sizes = (-1, matrix.shape[1]) if left else (matrix.shape[1], -1)
            flat = g.reshape(len(g), *sizes).transpose(swap).reshape(-1, matrix.shape[1])
            return [(flat @ matrix.T).reshape(len(g), *ordered).transpose(0, *back)]

        step = Step("dot_general", (value,), shape, linear, transpose, None, max(matrix.shape), contracted)
        return self.add(step, "left" if left else "right", tuple(of_x), tuple(of_y), factor)

    def convolution(self, x: Value, y: Value | None, p: dict[str, Any], shape: tuple[int, ...]) -> int:
        if not isinstance(x, int) or not isinstance(y, np.ndarray):
            raise _unknown("conv_general_dilated", "of anything but a value and a constant kernel")
        if p["feature_group_count"] != 1 or p["batch_group_count"] != 1 or any(d != 1 for d in p["lhs_dilation"]):
            raise _unknown("conv_general_dilated", "with groups or a dilated input")
        strides, dilation = tuple(p["window_strides"]), tuple(p["rhs_dilation"])
        padding = tuple(map(tuple, p["padding"]))
        if any(side < 0 for pair in padding for side in pair):
            raise _unknown("conv_general_dilated", "with negative padding")
        of_x, of_kernel, of_out = (tuple(spec) for spec in p["dimension_numbers"])
        # Channels last inside: [n, *sizes, channels], kernels [*taps, channels in, channels out].
        into = (0, 1 + of_x[0], *(1 + axis for axis in of_x[2:]), 1 + of_x[1])
        out_of = (0, 1 + of_out[0], *(1 + axis for axis in of_out[2:]), 1 + of_out[1])
        kernel = y.astype(np.float64).transpose(*of_kernel[2:], of_kernel[1], of_kernel[0])
        taps, channels, features = kernel.shape[:-2], *kernel.shape[-2:]
        count, before = self.shapes[x][of_x[0]], tuple(self.shapes[x][axis] for axis in of_x[2:])
        after = tuple(shape[axis] for axis in of_out[2:])
        padded = tuple(size + sum(pair) for size, pair in zip(before, padding, strict=True))
        inner = tuple(slice(pair[0], pair[0] + size) for size, pair in zip(before, padding, strict=True))

        def windows(tap: tuple[int, ...]) -> tuple[slice, ...]:
            """Where the entries lie that a tap meets."""
            starts = [i * d for i, d in zip(tap, dilation, strict=True)]
            return tuple(slice(s, s + (n - 1) * k + 1, k) for s, n, k in zip(starts, after, strides, strict=True))

        def linear(xs: Sequence[np.ndarray], absolute: bool) -> np.ndarray:
            flat = xs[0].transpose(into).reshape(-1, *before, channels)
            wide = np.zeros((len(flat), *padded, channels))
            wide[(slice(None), *inner)] = flat
            columns = [wide[(slice(None), *windows(tap))].reshape(-1, channels) for tap in np.ndindex(*taps)]
            weights = np.abs(kernel) if absolute else kernel
            out = np.concatenate(columns, 1) @ weights.reshape(-1, features)
            return out.reshape(len(xs[0]), count, *after, features).transpose(np.argsort(out_of))

        def transpose(g: np.ndarray) -> list[np.ndarray]:
            flat = np.ascontiguousarray(g.transpose(out_of)).reshape(-1, features)
            wide = np.zeros((len(g) * count, *padded, channels))
            for tap in np.ndindex(*taps):
                wide[(slice(None), *windows(tap))] += (flat @ kernel[tap].T).reshape(-1, *after, channels)
            return [wide[(slice(None), *inner)].reshape(len(g), count, *before, channels).transpose(np.argsort(into))]

        forwards, backwards = (math.prod(taps) * many for many in (channels, features))
        step = Step("convolution", (x,), shape, linear, transpose, None, max(forwards, backwards), forwards)
        return self.add(step, strides, dilation, padding, of_x, of_kernel, of_out, y)


def _constant(name: str, p: dict[str, Any], operands: Sequence[Any], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    if name in _MOVES:
        value = _MOVES[name](p, *operands)
    elif name == "convert_element_type":
        value = operands[0]
    elif name == "reduce_sum":
        value = operands[0].sum(tuple(p["axes"]))
    elif name in _ARITHMETIC:
        value = _ARITHMETIC[name](*operands)
    else:
        raise _unknown(name, "of constants")
    return np.broadcast_to(np.asarray(value, dtype), shape)


def _spread(x: np.ndarray, shape: Sequence[int], dimensions: Sequence[int]) -> np.ndarray:
    sizes = [1] * len(shape)
    for axis, size in zip(dimensions, x.shape, strict=True):
        sizes[axis] = size
    return x.reshape(sizes)


def _pad(x: np.ndarray, fill: np.ndarray, config: Sequence[tuple[int, int, int]]) -> np.ndarray:
    if any(low < 0 or high < 0 for low, high, _ in config):
        raise _unknown("pad", "by negative numbers")
    sizes = [low + high + n + max(0, n - 1) * inner for n, (low, high, inner) in zip(x.shape, config, strict=True)]
    out = np.full(sizes, fill)
    out[tuple(slice(low, size - high, inner + 1) for size, (low, high, inner) in zip(sizes, config, strict=True))] = x
    return out


def _joined(xs: Sequence[np.ndarray]) -> np.ndarray:
    flat = [x.reshape(len(x), -1) for x in xs]
    return flat[0] if len(flat) == 1 else np.concatenate(flat, 1)


def _unknown(name: str, how: str = "") -> CertificateError:
    what = f"{name} {how}".strip()
    return CertificateError(
        f"The independent check of certificates does not know the primitive {what}. It knows affine operations with "
        "constant weights and max(x, 0)."
    )
