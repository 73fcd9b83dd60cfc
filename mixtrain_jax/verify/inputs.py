"""Branch and bound on inputs: boxes are halved, each bounded by CROWN of its own; for networks of few inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.bounds import Interval, session
from mixtrain_jax.bounds.backward import Linear
from mixtrain_jax.bounds.rounding import magnitude
from mixtrain_jax.verify.falsify import batched, improved, lowest
from mixtrain_jax.verify.network import Network
from mixtrain_jax.verify.problem import Problem, refuted_by
from mixtrain_jax.verify.search import Grown, Node, padded


class Box(NamedTuple):
    """A box of inputs, or many: `[n, ...]` each."""

    lower: Any
    upper: Any


class Found(NamedTuple):
    """What is known of a box."""

    lower: jax.Array  # of the clause that is least refuted; sound in floating point
    point: jax.Array  # where the linear bound of that clause is least
    violation: jax.Array  # of the property by the network there
    gains: jax.Array  # what halving each dimension may gain


class Programs:
    """The compiled functions of one network: `bound(params, problem, boxes [n]) -> Found [n]`."""

    def __init__(self, network: Network):
        self.bound: Callable[..., Found] = jax.jit(jax.vmap(functools.partial(_of_box, network), (None, None, 0)))


def _of_box(network: Network, params: Any, problem: Problem, box: Box) -> Found:
    of_one = functools.partial(network.of_one, params)
    inputs = Interval(jnp.asarray(box.lower), jnp.asarray(box.upper))
    tape = session.trace(of_one, inputs)
    known = session.analyse(tape)
    sizes = magnitude(known.boxes[session.output(tape).index])

    lower = session.bound(tape, known, problem.rows.reshape(-1, problem.rows.shape[-1]))
    of_clauses = jax.vmap(jax.vmap(functools.partial(refuted_by, sizes=sizes)))
    refuted = of_clauses(lower.reshape(problem.offsets.shape), *problem)
    clause = jnp.argmin(jnp.nan_to_num(refuted, nan=-jnp.inf).max(-1))
    row = problem.rows[clause, jnp.argmax(refuted[clause])]
    coefficients = session.coefficients(tape, known, Linear({session.output(tape).index: row}))

    def unsafe(x: jax.Array) -> jax.Array:
        values = jnp.einsum("cko,o->ck", problem.rows, of_one(x), precision=jax.lax.Precision.HIGHEST)
        return -jnp.min(jnp.max(values + problem.offsets, -1))

    point, violation = improved(unsafe, inputs, lowest(batched(inputs, 1), coefficients[None])[0])
    # Slopes differ over the box by no less than coefficients know: the width counts of its own.
    gains = inputs.radius * (jnp.abs(coefficients) + 1e-3 * jnp.max(jnp.abs(coefficients)) + 1e-30)
    return Found(refuted[clause].max(), point, violation, gains)


class InputTree:
    """Halves of boxes, along the dimension in which the bound of the worst clause falls most."""

    def __init__(self, params: Any, programs: Programs, problem: Problem, ball: Interval, batch: int):
        self.params, self.programs, self.problem, self.batch = params, programs, problem, batch
        self.width = max(1, batch // 2)
        self.whole = Box(np.asarray(ball.lower)[None], np.asarray(ball.upper)[None])
        self.bytes_of_node = 3 * self.whole.lower.nbytes + 200

    def start(self) -> Grown:
        """The whole box."""
        return self._bounded(self.whole, np.array([-np.inf]))

    def expand(self, nodes: Sequence[Node]) -> Grown:
        """Two halves of each box; both hold the plane between them."""
        lower, upper, gains = (np.stack(part) for part in zip(*(node.state for node in nodes), strict=True))
        n = len(nodes)
        flat = [x.reshape(n, -1) for x in (lower, upper, gains)]
        rows, axis = np.arange(n), flat[2].argmax(-1)
        low, high = flat[0][rows, axis], flat[1][rows, axis]
        middle = (low + (high - low) / 2).astype(low.dtype)
        left, right = flat[1].copy(), flat[0].copy()
        left[rows, axis] = right[rows, axis] = middle
        lowers, uppers = np.concatenate([flat[0], right]), np.concatenate([left, flat[1]])
        shape = (2 * n, *lower.shape[1:])
        bounds = np.tile([node.bound for node in nodes], 2)
        return self._bounded(Box(lowers.reshape(shape), uppers.reshape(shape)), bounds)

    def _bounded(self, boxes: Box, before: np.ndarray) -> Grown:
        n = len(before)
        found = self.programs.bound(self.params, self.problem, padded(boxes, max(self.batch, n)))
        lower, points, violations, gains = (np.asarray(x)[:n] for x in found)
        bounds = np.fmax(lower, before)
        middle = boxes.lower + (boxes.upper - boxes.lower) / 2
        splits = (boxes.lower < middle) & (middle < boxes.upper)
        gains = np.where(splits, gains, -1).astype(gains.dtype)
        final = ~splits.reshape(n, -1).any(-1)
        nodes = [Node(float(bounds[i]), bool(final[i]), (boxes.lower[i], boxes.upper[i], gains[i])) for i in range(n)]
        return Grown(nodes, points, violations)
