"""Branch and bound over any kind of subdomain: worst bound first, until all are closed or a limit is reached."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from mixtrain_jax.verify.falsify import Counterexample


class Node(NamedTuple):
    """A subdomain that has been bounded.

    Attributes:
      bound: sound lower bound of what must be positive on it; NaN proves nothing.
      final: whether it can't be split any further.
      state: what the tree needs to split it.
    """

    bound: float
    final: bool
    state: Any


class Grown(NamedTuple):
    """Subdomains from one call, and an input of each that may be a counterexample: `[n, ...]` and `[n]`."""

    nodes: list[Node]
    points: np.ndarray
    violations: np.ndarray


class Tree(Protocol):
    """A way of splitting subdomains.

    Attributes:
      width: how many it splits at a time.
      bytes_of_node: what one takes in memory while it is open.
    """

    width: int
    bytes_of_node: int

    def expand(self, nodes: Sequence[Node]) -> Grown:
        """The children of at most `width` nodes, which cover them, bounded."""
        ...


class Outcome(NamedTuple):
    """How a search ended.

    Attributes:
      counterexample: one that was replayed, or None.
      bound: the least bound of a subdomain that is open; where all are closed, of any of them.
      domains: subdomains that were bounded.
      reason: why some are open; empty where none is or a counterexample was found.
    """

    counterexample: Counterexample | None
    bound: float
    domains: int
    reason: str


Falsify = Callable[[np.ndarray, np.ndarray], Counterexample | None]
"""`(points, violations)` to a counterexample among them, replayed."""


def search(
    tree: Tree, start: Grown, falsify: Falsify, *, deadline: float, memory: int | None, poll: Callable[[int, int], None]
) -> Outcome:
    """Split open subdomains, those of the worst bound first.

    A subdomain is closed by a bound above 0 and by nothing else.

    Args:
      tree: how.
      start: subdomains that cover the whole domain, but for what is closed.
      falsify: tries inputs as counterexamples.
      deadline: `time.monotonic()` at which to stop.
      memory: bytes that open subdomains may take; None for no limit.
      poll: called with the numbers of subdomains bounded and open; whatever it raises ends the search.
    """
    most = math.inf if memory is None else max(1, memory // max(1, tree.bytes_of_node))
    heap: list[tuple[float, int, Node]] = []
    stuck: list[float] = []
    order, domains, grown, closed = itertools.count(), 0, start, math.inf
    while True:
        domains += len(grown.nodes)
        for node in grown.nodes:
            if node.bound > 0:
                closed = min(closed, node.bound)
            else:
                worst = -math.inf if math.isnan(node.bound) else node.bound
                stuck.append(worst) if node.final else heapq.heappush(heap, (worst, next(order), node))
        poll(domains, len(heap))
        if found := falsify(grown.points, grown.violations):
            return Outcome(found, found.violation, domains, "")
        bound = min([*stuck, *(entry[0] for entry in heap[:1])], default=closed)
        if not heap:
            return Outcome(None, bound, domains, "exhausted" if stuck else "")
        if time.monotonic() >= deadline or len(heap) > most:
            return Outcome(None, bound, domains, "timeout" if time.monotonic() >= deadline else "memory")
        taken = [heapq.heappop(heap)[2] for _ in range(min(tree.width, len(heap)))]
        grown = tree.expand(taken)


def padded(arrays: Any, rows: int) -> Any:
    """A tuple of arrays `[n, ...]` with their last row again up to so many rows."""
    return type(arrays)(
        *(
            padded(x, rows) if isinstance(x, tuple) else np.concatenate([x, np.repeat(x[-1:], rows - len(x), 0)])
            for x in arrays
        )
    )
