"""Rules of maxima and minima over many numbers: reductions and pooling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives

from mixtrain_jax.bounds import rounding
from mixtrain_jax.bounds.interval import Interval
from mixtrain_jax.bounds.relaxations import Slopes
from mixtrain_jax.bounds.rules import Affine, Arrays, Relaxation, Rule, Value, endpoints, register
from mixtrain_jax.bounds.tape import Op

Candidates = Callable[[jax.Array, float], jax.Array]


def _reduced(op: Op) -> Candidates:
    """The numbers that a reduction chooses from, `[candidates, *output]`."""
    axes = op.params["axes"]

    def candidates(x: jax.Array, fill: float) -> jax.Array:
        x = jnp.moveaxis(x, axes, range(len(axes)))
        return x.reshape(-1, *x.shape[len(axes) :])

    return candidates


def _pooled(op: Op) -> Candidates:
    """The numbers that a window chooses from, `[window, *output]`."""
    params, (out,) = op.params, op.outputs

    def candidates(x: jax.Array, fill: float) -> jax.Array:
        inner = [
            (low, high, dilation - 1)
            for (low, high), dilation in zip(params["padding"], params["base_dilation"], strict=True)
        ]
        x = lax.pad(x, jnp.asarray(fill, x.dtype), inner)
        rows = []
        for place in itertools.product(*map(range, params["window_dimensions"])):
            start = [i * dilation for i, dilation in zip(place, params["window_dilation"], strict=True)]
            span = [(n - 1) * stride + 1 for n, stride in zip(out.shape, params["window_strides"], strict=True)]
            stop = [a + b for a, b in zip(start, span, strict=True)]
            rows.append(lax.slice(x, start, stop, params["window_strides"]))
        return jnp.stack(rows)

    return candidates


def _relax(candidates: Callable[[Op], Candidates], sign: int) -> Callable[..., Relaxation]:
    """Of the maximum of many: below it is the one with the best center; above it, the one that can be largest.

    With `x` the one with the highest upper end and `t` the highest upper end of the others, the maximum is at most
    `max(x, t)`, and that is below its chord in `x`. A minimum is the negative of the maximum of negatives.
    """

    def relax(op: Op, operands: Sequence[Value], slopes: Slopes) -> Relaxation:
        (box,) = operands
        assert isinstance(box, Interval)
        pick = candidates(op)
        ends = (box.lower, box.upper) if sign > 0 else (-box.upper, -box.lower)
        lower, upper = (pick(end, -jnp.inf) for end in ends)
        here = lax.broadcasted_iota(jnp.int32, lower.shape, 0)
        first = here == lax.argmax(upper, 0, jnp.int32)[None]
        x = Interval(jnp.where(first, lower, -jnp.inf).max(0), upper.max(0))
        rest = jnp.where(first, -jnp.inf, upper).max(0)
        free = rest > x.lower  # whether another may be larger
        width = jnp.where(free, x.upper - x.lower, 1)
        slope = jnp.where(free, (x.upper - jnp.where(free, rest, 0)) / width, 1)
        offset = jnp.where(free, jnp.where(free, rest, 0) - slope * jnp.where(free, x.lower, 0), 0)
        best = here == lax.argmax(jnp.where(free[None], lower + upper, upper), 0, jnp.int32)[None]

        def chosen(weights: jax.Array) -> Callable[[Arrays], Arrays]:
            _, vjp = jax.vjp(lambda v: (pick(v, 0.0) * weights).sum(0), jnp.zeros_like(box.lower))
            return lambda coefficients: vjp(coefficients[0])

        below = Affine(chosen(best.astype(lower.dtype)), None)
        above = Affine(chosen(jnp.where(first, slope[None], 0)), (sign * offset,))
        scale = 2 * (rounding.magnitude(x) + jnp.abs(offset))
        return Relaxation(below, above, (scale,)) if sign > 0 else Relaxation(above, below, (scale,))

    return relax


def _copies(op: Op) -> tuple[int, int]:
    window = op.params.get("window_dimensions")
    return 1, (1 if window is None else math.prod(window))


for _largest, _smallest, _candidates in (
    (primitives.reduce_max_p, primitives.reduce_min_p, _reduced),
    (primitives.reduce_window_max_p, primitives.reduce_window_min_p, _pooled),
):
    for _primitive, _sign in ((_largest, 1), (_smallest, -1)):
        register(
            Rule(
                "maximum",
                endpoints,
                relax=_relax(_candidates, _sign),
                rounded=None,
                terms=_copies,
                way="the likeliest entry below, a chord in the highest above",
            ),
            _primitive,
        )
