"""CROWN on many boxes at once, each with a specification of its own: most cases of a query of many need no more."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.bounds import Interval, session
from mixtrain_jax.bounds.rounding import magnitude
from mixtrain_jax.verify.network import Network
from mixtrain_jax.verify.problem import Problem, problem_of, refuted_by
from mixtrain_jax.verify.specification import Specification

_ENTRIES = 2**22  # of inputs and rows in a batch, about


class Screen:
    """The compiled bounds of one network."""

    def __init__(self, network: Network):
        self.network = network
        self._proved: Callable[..., jax.Array] = jax.jit(jax.vmap(functools.partial(_proved, network), (None, 0, 0, 0)))

    def proved(
        self,
        params: Any,
        boxes: Sequence[tuple[np.ndarray, np.ndarray]],
        specs: Callable[[int], Specification],
        stop: Callable[[], bool] = lambda: False,
    ) -> np.ndarray:
        """Which boxes are proved, bool `[n]`.

        Args:
          params: of the network.
          boxes: lower and upper ends, of the network's input.
          specs: by the number of a box, what must not happen in it; asked once.
          stop: asked between batches whether to leave the rest open.
        """
        problems = [problem_of(specs(i), self.network.dtype) for i in range(len(boxes))]
        shapes: dict[tuple[int, ...], list[int]] = {}
        for i, problem in enumerate(problems):
            shapes.setdefault(problem.rows.shape, []).append(i)
        found = np.zeros(len(boxes), bool)
        for shape, members in shapes.items():
            entries = math.prod(shape) + math.prod(self.network.shape)
            size = 2 ** max(0, min(10, int(math.log2(_ENTRIES / max(entries, 1)))))
            for start in range(0, len(members), size):
                if stop():
                    return found
                chosen = members[start : start + size]
                filled = [*chosen, *[chosen[-1]] * (size - len(chosen))]
                lower, upper = (np.stack([boxes[i][side] for i in filled]) for side in (0, 1))
                problem = jax.tree.map(lambda *x: jnp.stack(x), *(problems[i] for i in filled))
                found[chosen] = np.asarray(self._proved(params, lower, upper, problem))[: len(chosen)]
        return found


def _proved(network: Network, params: Any, lower: jax.Array, upper: jax.Array, problem: Problem) -> jax.Array:
    tape = session.trace(functools.partial(network.of_one, params), Interval(lower, upper))
    known = session.analyse(tape)
    sizes = magnitude(known.boxes[session.output(tape).index])

    def of_row(row: jax.Array, offset: jax.Array, error: jax.Array) -> jax.Array:
        return refuted_by(session.lower_bound(tape, known, row, {}, {}, {}, True), row, offset, error, sizes)

    return jnp.all(jnp.any(jax.vmap(jax.vmap(of_row))(*problem) > 0, -1))
