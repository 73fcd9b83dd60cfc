"""What attacks share: their type, the best point met so far, and loops that run in compiled steps or compiled whole."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mixtrain_jax.attacks.geometry import spread
from mixtrain_jax.attacks.objectives import lead
from mixtrain_jax.bounds import Interval
from mixtrain_jax.bounds.cpu import ordered

LogitsFn = Callable[[jax.Array], jax.Array]
"""`[n, ...] -> [n, classes]`, examples independent of each other; hashable."""

Attack = Callable[[jax.Array, LogitsFn, jax.Array, jax.Array, Interval], jax.Array]
"""`(key, logits_fn, x, labels, ball) -> x_adv`: inputs `[n, ...]` in the ball, of the lowest margin that was met.

`x` is `[n, ...]` and in the ball, `labels` `[n]`, the ball a box (`linf_ball`) or a batch of Euclidean balls
(`jax.vmap(l2_ball, (0, None, None))`), both with the domain included. A margin is the label's logit minus the largest
other one. Options are keywords, set by `functools.partial`.
"""

Poll = Callable[[str, int, int], None]
"""`(what is done, how many are done, all of them)`; may raise to stop."""

Loop = Callable[..., Any]
"""`(first, last, step, state, done=None)`: the state after `state = step(i, state)` for `i` from first to last.

`done` is a function of the state, whether the rest can be left out. A loop of Python asks it every ten steps, for the
answer waits for the device; a compiled one does not.
"""
_LOOK_EVERY = 10


class Best(NamedTuple):
    """The point of the lowest margin so far of each example: `[n, ...]` and `[n]`."""

    points: jax.Array
    margin: jax.Array


def unknown(x: jax.Array) -> Best:
    """No point was looked at yet."""
    return Best(x, jnp.full(x.shape[:1], jnp.inf, x.dtype))


def keep(best: Best, points: jax.Array, found: jax.Array) -> Best:
    """The better of the best points and of those of these margins, example by example."""
    better = found < best.margin
    return Best(jnp.where(spread(better, points), points, best.points), jnp.where(better, found, best.margin))


def looking(logits_fn: LogitsFn) -> tuple[Callable[[Best, jax.Array, jax.Array], Best]]:
    """`look(best, points, labels)`: the best of what was met before and of the points. For `stepwise`."""

    def look(best: Best, points: jax.Array, labels: jax.Array) -> Best:
        return keep(best, points, lead(logits_fn(points), labels))

    return (look,)


def stepwise(
    make: Callable[..., tuple[Callable[..., Any], ...]], logits_fn: LogitsFn, *options: Hashable, arrays: Any
) -> tuple[Loop, tuple[Callable[..., Any], ...]]:
    """A loop and the functions of its body, as fits where the attack is called.

    Outside `jax.jit` it is a Python loop over compiled functions. Inside it is `jax.lax.fori_loop`.

    What is compiled is kept until another network is attacked, so batches of one shape share one compilation. No
    network's weights are kept alive but the last one's.

    Args:
      make: a function of a module, `(logits_fn, *options) -> functions`.
      logits_fn: the network, hashable.
      *options: what else the functions depend on and no array is, hashable.
      arrays: what the attack was called with; tracers among them say that it is inside `jax.jit`.

    Returns:
      A `Loop`, and the functions.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arrays)):
        return _whole, tuple(map(ordered, make(logits_fn, *options)))
    kept = _compiled(logits_fn)
    if (make, options) not in kept:
        kept[make, options] = tuple(jax.jit(ordered(part)) for part in make(logits_fn, *options))
    return _loop, kept[make, options]


@functools.lru_cache(maxsize=1)
def _compiled(_: LogitsFn) -> dict[Any, tuple[Callable[..., Any], ...]]:
    return {}


def _loop(
    first: int,
    last: int,
    step: Callable[[int, Any], Any],
    state: Any,
    done: Callable[[Any], jax.Array] | None = None,
) -> Any:
    for i in range(first, last):
        if done is not None and i % _LOOK_EVERY == _LOOK_EVERY - 1 and bool(done(state)):
            break
        state = step(i, state)
    return state


def _whole(first: int, last: int, step: Callable[[Any, Any], Any], state: Any, done: Any = None) -> Any:
    return jax.lax.fori_loop(first, last, step, state)
