"""Branch and bound on neurons: beta-CROWN with intermediate bounds of the root (Wang et al., arXiv 2103.06624)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixtrain_jax.bounds import Interval, session
from mixtrain_jax.bounds.backward import Analysis
from mixtrain_jax.bounds.cpu import ordered
from mixtrain_jax.bounds.rounding import magnitude
from mixtrain_jax.verify.falsify import batched, improved, lowest
from mixtrain_jax.verify.network import Network
from mixtrain_jax.verify.problem import Problem, refuted_by, weighted
from mixtrain_jax.verify.search import Grown, Node, padded

Array = Any  # of jax in a program, of NumPy outside
TRIED = 3  # neurons with the highest scores, of which the best split is taken (filtered smart branching)


class Chosen(NamedTuple):
    """What a bound of a subdomain may choose freely; every choice is sound."""

    weights: Array  # [rows] of the clause, no less than 0
    slopes: Array  # [slopes], lower ones in [0, 1]
    multipliers: Array  # [neurons], no less than 0


class Leaf(NamedTuple):
    """A subdomain."""

    clause: Array  # number of the clause that is refuted on it
    signs: Array  # int8 [neurons]: the side of each split
    chosen: Chosen
    doubt: Array  # what rounding takes off a bound, about


class Found(NamedTuple):
    """What is known of a subdomain."""

    lower: Array  # sound in floating point: the clause is refuted where it is positive
    chosen: Chosen
    point: Array  # input at which the relaxed network is worst
    violation: Array  # of the clause by the network there
    doubt: Array  # what rounding took off the bound
    splits: Array  # int32 [TRIED]: neurons to split at, best first; -1 for none


class Rates(NamedTuple):
    """How a bound is optimized: step sizes of slopes, of multipliers and weights, what a step leaves of them, steps."""

    slopes: float
    others: float
    decay: float
    steps: int


ROOT, LEAF, LAST = Rates(0.1, 0.1, 0.98, 20), Rates(0.02, 0.05, 0.98, 20), Rates(0.02, 0.2, 0.99, 800)


class State(NamedTuple):
    """What is kept of an open subdomain, without the neurons that are stable at the root."""

    clause: Array
    signs: Array
    weights: Array
    slopes: Array  # float16: any slopes are sound
    multipliers: Array
    doubt: Array
    splits: Array


class Flat(NamedTuple):
    """Arrays of several ops as one vector."""

    shapes: Mapping[int, tuple[int, ...]]

    @property
    def size(self) -> int:
        """Its number of entries."""
        return sum(map(math.prod, self.shapes.values()))

    def join(self, parts: Mapping[int, jax.Array], dtype: Any) -> jax.Array:
        """The vector of these arrays."""
        flat = [parts[i].reshape(-1).astype(dtype) for i in self.shapes]
        return jnp.concatenate(flat) if flat else jnp.zeros(0, dtype)

    def split(self, vector: jax.Array) -> dict[int, jax.Array]:
        """The arrays of a vector."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes.values()])[:-1]
        parts = jnp.split(vector, ends) if self.shapes else []
        return {i: part.reshape(shape) for (i, shape), part in zip(self.shapes.items(), parts, strict=True)}


class Root(NamedTuple):
    """The whole domain: boxes of every value, bounds of every row, and where neurons are unstable."""

    boxes: list[Interval]
    lower: jax.Array  # [clauses, rows], sound
    unstable: jax.Array  # bool [neurons]
    slopes: jax.Array  # [slopes], those of CROWN


class Programs:
    """The compiled functions of one network.

    Attributes:
      root: `(params, ball, problem) -> Root`.
      bound: `(params, boxes, problem, leaves [n], rates) -> Found [n]`.
    """

    def __init__(self, network: Network, budget: int | None = None):
        self.root: Callable[..., Root] = jax.jit(functools.partial(_root, network, budget))
        self.bound: Callable[..., Found] = jax.jit(functools.partial(_bound, network))


def _root(network: Network, budget: int | None, params: Any, ball: Interval, problem: Problem) -> Root:
    tape = session.trace(functools.partial(network.of_one, params), ball)
    known = session.analyse(tape, budget=budget)
    points, slopes = session.split_points(tape, known.boxes), session.start_slopes(tape, known)
    flat = Flat({i: point.shape for i, point in points.items()})
    sizes = magnitude(known.boxes[session.output(tape).index])

    lower = session.bound(tape, known, problem.rows.reshape(-1, problem.rows.shape[-1]))
    of_clauses = jax.vmap(jax.vmap(functools.partial(refuted_by, sizes=sizes)))
    refuted = of_clauses(lower.reshape(problem.offsets.shape), *problem)
    return Root(
        known.boxes,
        refuted,
        flat.join(session.unstable(tape, known.boxes, points), bool),
        Flat({i: x.shape for i, x in slopes.items()}).join(slopes, network.dtype),
    )


def _bound(network: Network, params: Any, boxes: list[Interval], problem: Problem, leaves: Leaf, rates: Rates) -> Found:
    of_leaf = functools.partial(_of_leaf, network, params)
    return ordered(jax.vmap(of_leaf, (None, None, 0, None)))(boxes, problem, leaves, rates)


class _Part:
    """A bound of one clause on one subdomain, as a function of what can be chosen."""

    def __init__(self, network: Network, params: Any, boxes: list[Interval], problem: Problem, clause: jax.Array):
        self.tape = session.trace(functools.partial(network.of_one, params), boxes[0])
        self.boxes, self.problem, self.clause = boxes, problem, clause
        self.points = session.split_points(self.tape, boxes)
        self.neurons = Flat({i: point.shape for i, point in self.points.items()})

    def analysis(self, signs: jax.Array, sound: bool) -> Analysis:
        return session.subdomain(self.tape, self.boxes, self.points, self.neurons.split(signs), sound=sound)

    def slopes(self, known: Analysis) -> Flat:
        return Flat({i: x.shape for i, x in session.start_slopes(self.tape, known).items()})

    def with_slopes(self, known: Analysis, chosen: Chosen, sound: bool) -> Analysis:
        return session.sloped(self.tape, known, self.points, self.slopes(known).split(chosen.slopes), sound)

    def lower(self, known: Analysis, signs: jax.Array, chosen: Chosen, sound: bool = False) -> jax.Array:
        """From an analysis with slopes."""
        row, offset, error = weighted(self.problem, self.clause, chosen.weights)
        splits, multipliers = self.neurons.split(signs), self.neurons.split(chosen.multipliers)
        lower = session.lower_bound(self.tape, known, row, self.points, splits, multipliers, sound)
        if not sound:
            return lower + offset
        return refuted_by(lower, row, offset, error, magnitude(known.boxes[session.output(self.tape).index]))


def _of_leaf(network: Network, params: Any, boxes: list[Interval], problem: Problem, leaf: Leaf, rates: Rates) -> Found:
    part = _Part(network, params, boxes, problem, leaf.clause)
    known = part.analysis(leaf.signs, True)
    plain = session.without_rounding(known)

    def bound(chosen: Chosen) -> jax.Array:
        return part.lower(part.with_slopes(plain, chosen, False), leaf.signs, chosen)

    def proved(chosen: Chosen) -> jax.Array:
        return part.lower(part.with_slopes(known, chosen, True), leaf.signs, chosen, True)

    chosen = _ascend(bound, leaf.chosen, leaf.doubt, rates)
    at = part.with_slopes(plain, chosen, False)
    pressure = session.pressure(part.tape, at, part.points, lambda known: part.lower(known, leaf.signs, chosen))
    lower = proved(chosen)
    rows, offsets, _ = (x[leaf.clause] for x in problem)

    def unsafe(x: jax.Array) -> jax.Array:
        values = jnp.matmul(rows, network.of_one(params, x), precision=jax.lax.Precision.HIGHEST)
        return -jnp.max(values + offsets)

    lowest_point = lowest(batched(known.boxes[0], 1), pressure.coefficients[None])[0]
    point, violation = improved(unsafe, known.boxes[0], lowest_point, jnp.maximum(5, rates.steps // 4))
    splits = _splits(part, at, leaf.signs, chosen, pressure.losses)
    return Found(lower, chosen, point, violation, pressure.value - lower, splits)


def _ascend(f: Callable[[Chosen], jax.Array], chosen: Chosen, doubt: jax.Array, rates: Rates) -> Chosen:
    """The choices of the largest bound that Adam meets, or of the first that rounding will not make negative.

    Args:
      f: the bound in real arithmetic.
      chosen: where to start.
      doubt: what rounding takes off it, about.
      rates: how to go on.
    """
    adam = optax.scale_by_adam()
    enough = jnp.where(jnp.isfinite(doubt), 2 * jnp.maximum(doubt, 0), 0)
    sizes = Chosen(jnp.asarray(rates.others), jnp.asarray(rates.slopes), jnp.asarray(rates.others))

    def going(carry: tuple) -> jax.Array:
        i, _, _, best, _ = carry
        return (i < rates.steps) & (best <= enough)

    def step(carry: tuple) -> tuple:
        i, here, state, best, kept = carry
        value, gradient = jax.value_and_grad(f)(here)
        better = value > best
        kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), here, kept)
        gradient = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0), gradient)
        with jax.numpy_dtype_promotion("standard"):  # which optax wants, whatever the caller does
            updates, state = adam.update(gradient, state)
            rate = rates.decay**i
            moved = jax.tree.map(lambda x, size, u: (x + rate * size * u).astype(x.dtype), here, sizes, updates)
        return i + 1, _projected(moved), state, jnp.where(better, value, best), kept

    start = (jnp.zeros((), jnp.int32), chosen, adam.init(chosen), jnp.full((), -jnp.inf, doubt.dtype), chosen)
    return jax.lax.while_loop(going, step, start)[-1]


def _projected(chosen: Chosen) -> Chosen:
    weights = jnp.maximum(chosen.weights, 0)
    total = jnp.sum(weights)
    weights = jnp.where(total > 0, weights / jnp.where(total > 0, total, 1), 1 / len(weights))
    return Chosen(weights, jnp.clip(chosen.slopes, 0, 1), jnp.maximum(chosen.multipliers, 0))


def _splits(
    part: _Part, known: Analysis, signs: jax.Array, chosen: Chosen, losses: Mapping[int, jax.Array]
) -> jax.Array:
    """Neurons to split at: of those that the bound loses most to, the ones whose worse half gains most."""
    if not part.neurons.size:
        return jnp.full(TRIED, -1, jnp.int32)
    lost = {i: losses.get(i, jnp.zeros_like(point)) for i, point in part.points.items()}
    splittable = part.neurons.join(session.unstable(part.tape, known.boxes, part.points), bool) & (signs == 0)
    # A neuron that the bound loses nothing to is better than none.
    scores = jnp.where(splittable, part.neurons.join(lost, chosen.multipliers.dtype) + 1e-30, -1)
    values, tried = jax.lax.top_k(scores, min(TRIED, scores.size))

    def child(neuron: jax.Array, side: jax.Array) -> jax.Array:
        there = signs.at[neuron].set(side)
        return part.lower(part.with_slopes(part.analysis(there, False), chosen, False), there, chosen)

    sides = jnp.array([-1, 1], jnp.int8)
    halves = jax.vmap(lambda neuron: jax.vmap(lambda side: child(neuron, side))(sides))(tried)
    gains = jnp.where(values >= 0, jnp.nan_to_num(halves.min(-1), nan=-jnp.inf), -jnp.inf)
    order = jnp.argsort(-gains)
    ranked = jnp.where(values[order] >= 0, tried[order], -1).astype(jnp.int32)
    return jnp.pad(ranked, (0, TRIED - len(ranked)), constant_values=-1)


class NeuronTree:
    """Two sides of a neuron's split point; open subdomains are kept without the neurons that are stable at the root."""

    def __init__(self, params: Any, programs: Programs, root: Root, problem: Problem, sizes: Sequence[int]):
        self.params, self.programs, self.root, self.problem = params, programs, root, problem
        self.sizes, self.width = sorted(sizes), max(1, max(sizes) // 2)
        self.kept = np.flatnonzero(np.asarray(root.unstable))
        self.start_slopes = np.asarray(root.slopes)
        self.bytes_of_node = 5 * len(self.kept) + 2 * len(self.start_slopes) + 500

    def start(self, clauses: Sequence[int] | np.ndarray, rates: Rates = ROOT) -> Grown:
        """The whole domain once for each clause that is open, by alpha-CROWN."""
        lower = np.asarray(self.root.lower)[np.asarray(clauses)]
        n, rows = lower.shape
        best = np.where(np.isnan(lower), -np.inf, lower).argmax(-1)
        dtype = self.start_slopes.dtype
        leaves = Leaf(
            np.asarray(clauses, np.int32),
            np.zeros((n, len(self.root.unstable)), np.int8),
            Chosen(
                np.eye(rows, dtype=dtype)[best],
                np.repeat(self.start_slopes[None], n, 0),
                np.zeros((n, len(self.root.unstable)), dtype),
            ),
            np.zeros(n, dtype),
        )
        return self._bounded(leaves, lower.max(-1), rates, final=False)

    def compile(self) -> None:
        """Compile what the search calls, for all sizes."""
        for size in self.sizes:
            self.start(np.zeros(size, np.int32), ROOT._replace(steps=0))

    def expand(self, nodes: Sequence[Node]) -> Grown:
        """Both sides of each node's best neuron; a node without one is bounded once more, for longer."""
        parents = [self._leaf(node) for node in nodes]
        split = np.array([node.state.splits[0] for node in nodes])
        bounds = np.array([node.bound for node in nodes])
        parts = []
        if (can := np.flatnonzero(split >= 0)).size:
            twice = np.repeat(can, 2)
            leaves = _stacked([parents[i] for i in twice])
            leaves.signs[np.arange(len(twice)), split[twice]] = np.tile([-1, 1], len(can))
            parts.append(self._bounded(leaves, bounds[twice], LEAF, final=False))
        if (cannot := np.flatnonzero(split < 0)).size:
            parts.append(self._bounded(_stacked([parents[i] for i in cannot]), bounds[cannot], LAST, final=True))
        nodes = [node for part in parts for node in part.nodes]
        return Grown(nodes, *(np.concatenate([part[i] for part in parts]) for i in (1, 2)))

    def _bounded(self, leaves: Leaf, before: np.ndarray, rates: Rates, *, final: bool) -> Grown:
        """Bounds no looser than those of before, at most the largest size of leaves at a time."""
        largest, n = self.sizes[-1], len(before)
        if n > largest:
            parts = [
                self._bounded(
                    jax.tree.map(lambda x, i=i: x[i : i + largest], leaves), before[i : i + largest], rates, final=final
                )
                for i in range(0, n, largest)
            ]
            return Grown(
                [node for part in parts for node in part.nodes],
                *(np.concatenate([p[i] for p in parts]) for i in (1, 2)),
            )
        size = next(size for size in self.sizes if size >= n)
        found = self.programs.bound(self.params, self.root.boxes, self.problem, padded(leaves, size), rates)
        found = jax.tree.map(lambda x: np.asarray(x)[:n], found)
        bounds = np.fmax(found.lower, before)
        nodes = [self._node(leaves, found, i, float(bounds[i]), final) for i in range(n)]
        return Grown(nodes, found.point, found.violation)

    def _node(self, leaves: Leaf, found: Found, i: int, bound: float, final: bool) -> Node:
        if bound > 0:  # closed: nothing of it is kept
            return Node(bound, final, None)
        weights, slopes, multipliers = (x[i] for x in found.chosen)
        return Node(
            bound,
            final,
            State(
                leaves.clause[i],
                leaves.signs[i, self.kept],
                weights,
                slopes.astype(np.float16),
                multipliers[self.kept],
                found.doubt[i],
                found.splits[i],
            ),
        )

    def _leaf(self, node: Node) -> Leaf:
        state, dtype = node.state, self.start_slopes.dtype
        signs, multipliers = (np.zeros(len(self.root.unstable), x.dtype) for x in (state.signs, state.multipliers))
        signs[self.kept], multipliers[self.kept] = state.signs, state.multipliers
        return Leaf(state.clause, signs, Chosen(state.weights, state.slopes.astype(dtype), multipliers), state.doubt)


def _stacked(leaves: Sequence[Leaf]) -> Leaf:
    return jax.tree.map(lambda *rows: np.stack(rows), *leaves)
