"""Random programs, what they compute as deployed and in float64, and bounds of them that must hold both.

A program is a hundred operations or more on matrices of a few shapes: elementary functions, products, convolutions,
reductions, odd layouts, known indices, predicates, casts and passages of bfloat16, with operands used again and again.
`python benchmarks/programs.py --programs 1000` bounds each by a method that is drawn for it, over boxes of every kind,
and holds the bounds against points of the boxes, with no tolerance.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax, nn
from scipy import special

import mixtrain_jax as mt

SHAPES = ((2, 3), (3, 2), (1, 6))
SIZE = 6
LARGEST = 8.0  # of a value, from which the program scales it down

# --- two arithmetics: numbers of float64, and those of a network as deployed ----------------------------------------


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return special.expit(x)


def _np_conv(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 1)])
    n = x.shape[-1]
    return sum(kernel[i] * padded[..., i : i + n] for i in range(3))


def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    rows = x.reshape(-1, x.shape[-1], 1)
    layout = ("NWC", "WIO", "NWC")
    out = lax.conv_general_dilated(rows, kernel.reshape(3, 1, 1), (1,), [(1, 1)], dimension_numbers=layout)
    return out.reshape(x.shape)


def _crop(x: jax.Array, before: int, after: int) -> jax.Array:
    """Padding that is negative at one end of the last axis and positive at the other."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0)] * (x.ndim - 1) + [(before, after, 0)])


def _np_crop(x: np.ndarray, before: int, after: int) -> np.ndarray:
    low, high = max(0, -before), x.shape[-1] - max(0, -after)
    return np.pad(x[..., low:high], [(0, 0)] * (x.ndim - 1) + [(max(0, before), max(0, after))])


def _cast(x: jax.Array, dtype: Any) -> jax.Array:
    return x.astype(dtype)


EXACT = SimpleNamespace(
    np=np,
    constant=lambda x: np.asarray(x, np.float64),
    cast=lambda x, dtype: np.trunc(x) if np.issubdtype(dtype, np.integer) else x,
    conv=_np_conv,
    crop=_np_crop,
    sigmoid=_sigmoid,
    erf=special.erf,
    softplus=lambda x: np.logaddexp(x, 0),
    gelu=lambda x: x * special.ndtr(x),
    silu=lambda x: x * special.expit(x),
    relu=lambda x: np.maximum(x, 0),
    rsqrt=lambda x: 1 / np.sqrt(x),
    softmax=lambda x: special.softmax(x, -1),
    logsumexp=lambda x: special.logsumexp(x, -1, keepdims=True),
)
DEPLOYED = SimpleNamespace(
    np=jnp,
    constant=lambda x: jnp.asarray(x, jnp.float32),
    cast=_cast,
    conv=_conv,
    crop=_crop,
    sigmoid=nn.sigmoid,
    erf=lax.erf,
    softplus=nn.softplus,
    gelu=functools.partial(nn.gelu, approximate=False),
    silu=nn.silu,
    relu=nn.relu,
    rsqrt=lax.rsqrt,
    softmax=nn.softmax,
    logsumexp=functools.partial(nn.logsumexp, axis=-1, keepdims=True),
)

# --- operations -----------------------------------------------------------------------------------------------------

Apply = Callable[..., Any]  # (arithmetic, *operands) -> value
BF16 = ml_dtypes.bfloat16


def _c(rng: np.random.Generator, low: float = 0.1, high: float = 2.0) -> np.float32:
    return np.float32(rng.uniform(low, high))


def _weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Weights of both signs, of one, or with zeros."""
    w = rng.normal(size=shape) / shape[0] ** 0.5
    kind = rng.integers(4)
    return (np.abs(w) if kind == 0 else w * (rng.random(shape) < 0.6) if kind == 1 else w).astype(np.float32)


def _normalized(m: SimpleNamespace, x: Any) -> Any:
    centered = x - x.mean(-1, keepdims=True)
    return centered * m.rsqrt(m.np.square(centered).mean(-1, keepdims=True) + 1)


_ELEMENTARY: list[Callable[[np.random.Generator], Apply]] = [
    lambda rng: lambda m, x: m.np.tanh(x),
    lambda rng: lambda m, x: m.sigmoid(x),
    lambda rng: lambda m, x: m.np.sin(x),
    lambda rng: lambda m, x: m.np.cos(x),
    lambda rng: lambda m, x: m.np.arctan(x),
    lambda rng: lambda m, x: m.np.arcsinh(x),
    lambda rng: lambda m, x: m.np.cbrt(x),
    lambda rng: lambda m, x: m.erf(x),
    lambda rng: lambda m, x: m.softplus(x),
    lambda rng: lambda m, x: m.gelu(x),
    lambda rng: lambda m, x: m.silu(x),
    lambda rng: lambda m, x: m.relu(x),
    lambda rng: lambda m, x: m.np.abs(x),
    lambda rng: lambda m, x: m.np.square(x),
    lambda rng: lambda m, x: x * x * x,
    lambda rng: lambda m, x: m.np.exp(m.np.clip(x, -9, 3)),
    lambda rng: lambda m, x: m.np.exp(-x * x),
    lambda rng: lambda m, x: 1 / (1 + m.np.exp(-x)),
    lambda rng: lambda m, x: m.np.log(1 + m.np.exp(m.np.minimum(x, 20))),
    lambda rng: lambda m, x: m.np.expm1(m.np.minimum(x, 2)),
    lambda rng: lambda m, x: m.np.log1p(m.np.abs(x)),
    lambda rng: lambda m, x: m.np.sqrt(m.np.abs(x)),
    lambda rng: lambda m, x: m.np.sqrt(x * x + x * x),
    lambda rng: (lambda e: lambda m, x: m.np.log(m.np.square(x) + e))(_c(rng, 1e-4)),
    lambda rng: (lambda e: lambda m, x: m.rsqrt(m.np.abs(x) + e))(_c(rng)),
    lambda rng: (lambda e: lambda m, x: e / (e + x * x))(_c(rng)),
    lambda rng: (lambda e: lambda m, x: m.np.exp(m.np.clip(x, -4, 1)) * m.np.exp(m.np.clip(e * x, -3, 1)))(_c(rng)),
    lambda rng: (lambda e: lambda m, x: m.np.maximum(x, -e) - m.np.minimum(x, e))(_c(rng)),
    lambda rng: (lambda e: lambda m, x: m.np.clip(x, -e, e))(_c(rng)),
    lambda rng: (lambda e: lambda m, x: ((x + 1000 * e) - 1000 * e) * e)(_c(rng)),
    lambda rng: lambda m, x: m.np.floor(x) / 2,
    lambda rng: lambda m, x: m.np.round(x) + x,
    lambda rng: lambda m, x: m.np.sign(x) * m.np.minimum(m.np.abs(x), 1),
]
_LAYOUT: list[Callable[[np.random.Generator], Apply]] = [
    lambda rng: lambda m, x: m.np.swapaxes(x, -1, -2),
    lambda rng: (lambda s: lambda m, x: x.reshape(*x.shape[:-2], *s))(SHAPES[rng.integers(3)]),
    lambda rng: lambda m, x: x[..., ::-1],
    lambda rng: lambda m, x: x[..., ::-1, :][..., ::-1],
    lambda rng: lambda m, x: m.np.concatenate([x[..., 1:], x[..., :1]], -1),
    lambda rng: (lambda i: lambda m, x: m.np.take(x.reshape(*x.shape[:-2], SIZE), i, -1).reshape(x.shape))(
        rng.integers(0, SIZE, SIZE)
    ),
    lambda rng: lambda m, x: m.crop(x, -1, 1),
    lambda rng: lambda m, x: m.crop(x, 1, -1),
    lambda rng: lambda m, x: x - x.mean(-1, keepdims=True),
    lambda rng: lambda m, x: x + x.sum(-2, keepdims=True) / 4,
    lambda rng: lambda m, x: x + m.np.cumsum(x, -1) / 4,
    lambda rng: lambda m, x: m.np.sort(x, -1),
    lambda rng: lambda m, x: x.max(-1, keepdims=True) - x,
    lambda rng: lambda m, x: x - x.min(-2, keepdims=True),
    lambda rng: lambda m, x: m.softmax(x),
    lambda rng: lambda m, x: x - m.logsumexp(x),
    lambda rng: _normalized,
    lambda rng: lambda m, x: m.np.sqrt(m.np.square(x).sum(-1, keepdims=True)) + x,
    lambda rng: (lambda w: lambda m, x: m.np.matmul(x.reshape(*x.shape[:-2], 1, SIZE), m.constant(w)).reshape(x.shape))(
        _weights(rng, SIZE, SIZE)
    ),
    lambda rng: (lambda k: lambda m, x: m.conv(x, m.constant(k)))(_weights(rng, 3)),
]
_CASTS: list[Callable[[np.random.Generator], Apply]] = [
    lambda rng: lambda m, x: m.cast(m.cast(x, BF16), np.float32),
    lambda rng: lambda m, x: m.cast(m.cast(x, np.float16), np.float32),
    lambda rng: lambda m, x: m.cast(m.cast(m.np.clip(x * 4, -1e6, 1e6), np.int32), np.float32) / 4,
    lambda rng: lambda m, x: m.cast(m.np.tanh(m.cast(x, BF16) + m.cast(x, BF16) * m.cast(x, BF16)), np.float32),
    lambda rng: lambda m, x: m.cast(m.np.abs(m.cast(x, BF16)).sum(-1, keepdims=True), np.float32) - x,
]
_BINARY: list[Callable[[np.random.Generator], Apply]] = [
    lambda rng: lambda m, x, y: x + y,
    lambda rng: lambda m, x, y: x - y,
    lambda rng: lambda m, x, y: x * y,
    lambda rng: lambda m, x, y: x / (1 + m.np.abs(y)),
    lambda rng: lambda m, x, y: m.np.maximum(x, y),
    lambda rng: lambda m, x, y: m.np.minimum(x, y) + x,
    lambda rng: lambda m, x, y: m.np.where(x > y, x * y, y),
    lambda rng: (lambda c: lambda m, x, y: m.np.where((x > c) & ~(y < -c), y - x, x))(_c(rng)),
    lambda rng: lambda m, x, y: m.np.matmul(m.np.matmul(x, m.np.swapaxes(y, -1, -2)), y) / 4,
    lambda rng: lambda m, x, y: m.np.matmul(m.np.matmul(m.np.abs(x), m.np.abs(m.np.swapaxes(y, -1, -2))), y) / 4,
    lambda rng: lambda m, x, y: m.cast(m.cast(x, BF16) * m.cast(y, BF16), np.float32),
    lambda rng: lambda m, x, y: m.np.concatenate([x[..., :1], y[..., 1:]], -1),
]
_FAMILIES = (_ELEMENTARY, _LAYOUT, _BINARY, _CASTS)
_SHARES = (0.35, 0.3, 0.27, 0.08)


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation: its places among the values, and a power of two that keeps it from growing."""

    apply: Apply
    operands: tuple[int, ...]
    scale: float


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of matrices `[..., 2, 3]` that returns the last of its values, `[..., outputs]`."""

    steps: tuple[Step, ...]
    primitives: int = 0

    def __call__(self, m: SimpleNamespace, x: Any) -> Any:
        """Its value in an arithmetic."""
        values = [x]
        for step in self.steps:
            value = step.apply(m, *(values[i] for i in step.operands))
            values.append(value if step.scale == 1 else value * m.constant(step.scale))
        ends = [values[-1], values[-2], values[len(values) // 2]]
        return m.np.concatenate([v.reshape(*v.shape[:-2], SIZE) for v in ends], -1)


def draw(seed: int, operations: int = 100) -> Program:
    """The random program of a seed, of at least so many primitive operations of jax."""
    rng = np.random.default_rng(seed)
    probe = np.random.default_rng(seed + 1).normal(size=(64, 2, 3))
    values, steps, count = [probe], [], 0
    with np.errstate(all="ignore"):
        while count < operations:
            family = _FAMILIES[rng.choice(4, p=_SHARES)]
            apply = family[rng.integers(len(family))](rng)
            # The latest values most of all, any of them sometimes.
            first = len(values) - 1 - min(int(rng.exponential(2)), len(values) - 1)
            operands = (first,)
            if family is _BINARY:
                alike = [i for i, v in enumerate(values) if v.shape == values[first].shape]
                operands = (first, int(rng.choice(alike)))
            value = apply(EXACT, *(values[i] for i in operands))
            size = float(np.abs(value).max())
            scale = 1.0 if size <= LARGEST else 2.0 ** -np.ceil(np.log2(size / LARGEST))
            values.append(value * scale)
            steps.append(Step(apply, operands, scale))
            count += _primitives(apply, *(values[i] for i in operands)) + (scale != 1)
    return Program(tuple(steps), int(count))


def _primitives(apply: Apply, *operands: np.ndarray) -> int:
    shapes = [jax.ShapeDtypeStruct(x.shape[1:], jnp.float32) for x in operands]
    return _count(jax.make_jaxpr(functools.partial(apply, DEPLOYED))(*shapes))


def _count(closed: Any) -> int:
    jaxpr = getattr(closed, "jaxpr", closed)
    inner = [[v for v in eqn.params.values() if hasattr(v, "eqns") or hasattr(v, "jaxpr")] for eqn in jaxpr.eqns]
    return sum(max(1, sum(map(_count, bodies))) for bodies in inner)


# --- boxes and points -----------------------------------------------------------------------------------------------

KINDS = ("a point", "an ulp", "1e-6", "1e-3", "0.1", "1", "symmetric", "one-sided", "huge", "next to nothing")


def boxes(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `[count, 2, 3]` of every kind in turn: lower and upper ends."""
    lower, upper = [], []
    for i in range(count):
        x, kind = rng.normal(size=(2, 3)).astype(np.float32), KINDS[i % len(KINDS)]
        radius = {"1e-6": 1e-6, "1e-3": 1e-3, "0.1": 0.1, "1": 1.0}.get(kind, 0.0)
        low, high = x - np.float32(radius), x + np.float32(radius)
        if kind == "an ulp":
            high = np.nextafter(x, np.float32(np.inf))
        elif kind == "symmetric":
            low, high = -np.abs(x), np.abs(x)
        elif kind == "one-sided":
            low, high = np.zeros_like(x), np.abs(x)
        elif kind == "huge":
            low, high = x * 1e3 - np.float32(1e3), x * 1e3 + np.float32(1e3)
        elif kind == "next to nothing":
            low, high = -np.abs(x) * np.float32(1e-36), np.abs(x) * np.float32(1e-37) * (x > 0)
        lower.append(low)
        upper.append(high)
    flush = lambda v: np.where(np.abs(v) < np.finfo(np.float32).tiny, 0, v).astype(np.float32)  # noqa: E731
    return flush(np.stack(lower)), flush(np.stack(upper))


def points(rng: np.random.Generator, lower: np.ndarray, upper: np.ndarray, count: int) -> np.ndarray:
    """Points of boxes, `[boxes, count, 2, 3]`: both ends, corners, and points inside."""
    n = len(lower)
    share = rng.random((n, count, 2, 3)).astype(np.float32)
    corner = rng.random((n, count, 1, 1)) < 0.5
    share = np.where(corner, np.round(share), share)
    share[:, 0], share[:, 1] = 0, 1
    low, high = lower[:, None], upper[:, None]
    found = np.clip(low + share * (high - low), low, high)
    return np.where(np.abs(found) < np.finfo(np.float32).tiny, 0, found).astype(np.float32)


# --- methods --------------------------------------------------------------------------------------------------------

METHODS: dict[str, mt.bounds.Method] = {
    "ibp": mt.ibp,
    "crown_ibp": mt.crown_ibp,
    "crown_ibp, chunk 5": functools.partial(mt.crown_ibp, chunk=5),
    "crown_ibp, intersect ibp": functools.partial(mt.crown_ibp, intersect=(mt.ibp,)),
    "symbolic": mt.symbolic,
    "crown": mt.crown,
    "crown, chunk 4": functools.partial(mt.crown, chunk=4),
    "crown, intersect symbolic": functools.partial(mt.crown, intersect=(mt.symbolic,)),
    "alpha_crown": functools.partial(mt.alpha_crown, steps=1),
}
_OFTEN = (0.6, 0.14, 0.05, 0.05, 0.05, 0.05, 0.02, 0.02, 0.02)


@dataclasses.dataclass
class Found:
    """What became of one program."""

    seed: int
    operations: int
    method: str
    compiled: bool
    points: int  # held against a bound
    violations: int
    boxes: int
    nan: int  # boxes of which a bound is NaN
    undefined: int  # of these, where a deployed or exact value is not finite either
    seconds: float
    worst: str = ""


def check(seed: int, method: str, *, compiled: bool, count: int = 20, each: int = 64, operations: int = 100) -> Found:
    """Bound the program of a seed over `count` boxes, and look for points outside, of `each` a box."""
    started, rng, program = time.monotonic(), np.random.default_rng(seed + 2**20), draw(seed, operations)
    lower, upper = boxes(rng, count)
    inside = points(rng, lower, upper, each)
    deployed = functools.partial(program, DEPLOYED)
    bound = jax.vmap(METHODS[method](deployed, sound=True))
    bound = jax.jit(bound) if compiled else bound
    box = bound(mt.Interval(jnp.asarray(lower), jnp.asarray(upper)))
    low, high = (np.asarray(end).astype(np.float64)[:, None] for end in (box.lower, box.upper))
    with np.errstate(all="ignore"):
        values = [np.asarray(jax.jit(deployed)(inside)), np.asarray(program(EXACT, inside.astype(np.float64)))]
    if not compiled:
        values.append(np.asarray(deployed(jnp.asarray(inside))))
    unknown = np.isnan(low) | np.isnan(high)
    held = violations = 0
    strange, worst = np.zeros(unknown.shape, bool), ""
    for name, value in zip(("jit", "float64", "eager"), values, strict=False):
        finite = np.isfinite(value)
        strange |= ~finite.all(1, keepdims=True)
        outside = finite & ~unknown & ((value < low) | (high < value))
        held += int((finite & ~unknown).any(-1).sum())
        violations += int(outside.any(-1).sum())
        if outside.any() and not worst:
            b, p, o = np.argwhere(outside)[0]
            ends = f"[{low[b, 0, o]!r}, {high[b, 0, o]!r}]"
            worst = f"{name}: output {o} of box {b} ({KINDS[b % len(KINDS)]}) is {value[b, p, o]!r}, not in {ends}"
    lost = unknown.any((1, 2))
    return Found(
        seed,
        program.primitives,
        method,
        compiled,
        held,
        violations,
        count,
        int(lost.sum()),
        int((lost & (unknown & strange).any((1, 2))).sum()),
        time.monotonic() - started,
        worst,
    )


def cases(programs: int, start: int = 0) -> Iterator[tuple[int, str, bool]]:
    """Seeds, and the method and the way of running drawn for each."""
    for seed in range(start, start + programs):
        rng = np.random.default_rng(seed + 2**30)
        method = list(METHODS)[rng.choice(len(METHODS), p=_OFTEN)]
        # Op by op, most code is there already from programs before; compiled whole, backward passes take 20 s or more.
        yield seed, method, bool(rng.random() < (0.3 if method == "ibp" else 0.05))


def main() -> None:
    """Bound programs, print what is outside, and keep a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0, help="first seed")
    parser.add_argument(
        "--record", type=Path, help="a file of JSON lines, one a program; programs in it are not run again"
    )
    parser.add_argument("--part", default="1/1", help="K/N: of every N programs the K-th alone, for several processes")
    args = parser.parse_args()
    part, parts = map(int, args.part.split("/"))
    rows = {row["seed"]: row for row in read(args.record)}
    for seed, method, compiled in cases(args.programs, args.start):
        if seed in rows or seed % parts != part - 1:
            continue
        rows[seed] = dataclasses.asdict(check(seed, method, compiled=compiled))
        if args.record:
            with args.record.open("a") as file:
                file.write(json.dumps(rows[seed]) + "\n")
        if rows[seed]["violations"]:
            print(f"{seed} {method}: {rows[seed]['violations']} points outside; {rows[seed]['worst']}", flush=True)
    asked = [rows[seed] for seed in range(args.start, args.start + args.programs) if seed in rows]
    total = {name: sum(row[name] for row in asked) for name in ("points", "violations", "boxes", "nan", "undefined")}
    print(json.dumps({"programs": len(asked), **total, "jax": jax.__version__}))


def read(record: Path | None) -> list[dict[str, Any]]:
    """The programs in a record, which need not be there yet."""
    if record is None or not record.exists():
        return []
    return [json.loads(line) for line in record.read_text().splitlines()]


if __name__ == "__main__":
    main()
