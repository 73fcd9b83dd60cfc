"""Attacks as loops over compiled steps, or compiled as a whole where they are called inside `jax.jit`.

On CPU, XLA finds the fast form of the gradients of convolutions outside of loops only, so outside `jax.jit` the loop is
one of Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax

LogitsFn = Callable[[jax.Array], jax.Array]
State = TypeVar("State")

_LOOK_EVERY = 10  # steps; a look waits for the device


def is_traced(*trees: Any) -> bool:
    """Whether any array in the trees has no values yet, that is whether we are inside `jax.jit` or the like."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def repeat(
    count: int,
    step: Callable[[Any, State], State],
    state: State,
    *,
    traced: bool,
    done: Callable[[State], jax.Array] | None = None,
) -> State:
    """The state after `state = step(i, state)` for `i` below `count`.

    Args:
      count: steps.
      step: of the number of the step and the state; compiled already where the loop is one of Python.
      state: the first.
      traced: whether to make a loop of the compiled program of it.
      done: of the state, whether the rest can be left out; asked now and then in a loop of Python alone.
    """
    if traced:
        return jax.lax.fori_loop(0, count, step, state)
    for i in range(count):
        if done is not None and i % _LOOK_EVERY == _LOOK_EVERY - 1 and bool(done(state)):
            break
        state = step(i, state)
    return state
