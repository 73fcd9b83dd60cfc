"""Signs that attacks overrate a network (the flags of AutoAttack; Croce and Hein, arXiv 2003.01690)."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.attacks.objectives import Objective, cross_entropy, dlr
from mixtrain_jax.attacks.search import LogitsFn

# Primitives of a jaxpr. A random key that is baked into a network makes it repeat itself, so calls alone don't show it.
_RANDOM = ("random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform")
_LOOPS = ("while", "scan", "pure_callback", "io_callback", "ffi_call")
_FLAT = ("round", "floor", "ceil", "sign", "custom_vjp_call")


def flags(logits_fn: LogitsFn, x: jax.Array, labels: jax.Array, *, broken_by: np.ndarray | None = None) -> list[str]:
    """Reasons to doubt what the standard ensemble says of a network, each a short message with what was measured.

    Five kinds, as the reference implementation has them, and one of our own. A message begins with its kind:

    * `randomised`: two calls differ by more than 1e-4 of the size of the logits, or the network draws random numbers
      from a key of its own. Attacks on one draw say nothing of the next; average over draws.
    * `softmax`: outputs are probabilities. Their gradients vanish where the network is sure; give the logits.
    * `zero gradient`: the share of inputs at which the gradient of the cross-entropy or of the DLR is exactly zero,
      among those that are classified rightly, or that there is none at all.
    * `non-finite gradient`: the share of entries of the gradient of the cross-entropy or of the DLR that are NaN or
      infinite, and of the inputs that have any. Attacks go on without them (`gradients.finite`), and blind there.
    * `square`: the gradient-free attack broke more than 0.2 % of the examples after the others had failed on them, a
      sign of masked gradients.
    * `loop` or `steps`: what could be an optimisation at inference. JAX shows loops and calls out of the program
      (`while`, `scan`, callbacks), rounding and gradients by hand (`custom_vjp`). It doesn't show an optimisation that
      is unrolled: gradients in a network look like any other of its layers.

    A network without any of them can be overrated too. Everything but the share of `square` is measured on the given
    inputs in one batch, outside `jax.jit`.

    Args:
      logits_fn: `[n, ...] -> [n, classes]`.
      x: inputs `[n, ...]`, some hundred.
      labels: integer labels `[n]`.
      broken_by: which attack of the ensemble broke each example of a data set, as in its `Record`, `[any]`.
    """
    x, labels = jnp.asarray(x), jnp.asarray(labels)
    first, second = (np.asarray(logits_fn(x), np.float64) for _ in range(2))
    finite = np.isfinite(first).all(-1) & np.isfinite(second).all(-1)  # others are wrong, not doubtful
    if not finite.any():
        return []
    x, labels, first, second = x[finite], labels[finite], first[finite], second[finite]
    found = collections.Counter(_primitives(jax.make_jaxpr(logits_fn)(x).jaxpr))
    right = first.argmax(-1) == np.asarray(labels)  # at others the DLR can be flat by its definition
    messages = [
        _randomised(first, second, found),
        _softmax(first),
        *_of_gradient("cross-entropy", cross_entropy, logits_fn, x, labels, right),
        *_of_gradient("dlr", dlr, logits_fn, x, labels, right),
        _square(broken_by),
        _named("loop", found, _LOOPS),
        _named("steps", found, _FLAT),
    ]
    return [message for message in messages if message]


def _randomised(first: np.ndarray, second: np.ndarray, found: collections.Counter[str]) -> str:
    sizes = np.maximum(np.linalg.norm(first, axis=-1), 1e-10)
    change = float(np.max(np.linalg.norm(first - second, axis=-1) / sizes, initial=0.0))
    if change > 1e-4:
        return f"randomised: two calls on the same inputs differ by up to {change:.2g} of the size of the logits"
    return _named("randomised", found, _RANDOM)


def _softmax(logits: np.ndarray) -> str:
    off = float(np.max(np.abs(logits.sum(-1) - 1), initial=0.0))
    if off < 1e-5 and logits.min(initial=0.0) > -1e-5:
        return f"softmax: outputs lie in [{logits.min():.2g}, {logits.max():.2g}] and sum to 1, by {off:.1g}"
    return ""


def _of_gradient(
    name: str, objective: Objective, logits_fn: LogitsFn, x: jax.Array, labels: jax.Array, right: np.ndarray
) -> tuple[str, ...]:
    try:
        gradient = _gradient(objective, logits_fn, x, labels)
    except (ValueError, TypeError, NotImplementedError) as error:
        return (f"zero gradient: that of the {name} does not exist: {str(error).splitlines()[0][:120]}",)
    zero = (gradient == 0).all(-1)[right]
    flat = f"zero gradient: that of the {name} is 0 on {zero.mean():.1%} of the inputs" if zero.any() else ""
    return flat, _non_finite(name, gradient)


def non_finite_gradient(logits_fn: LogitsFn, x: jax.Array, labels: jax.Array) -> str:
    """The flag `non-finite gradient` of the cross-entropy alone, "" where it isn't raised."""
    return _non_finite("cross-entropy", _gradient(cross_entropy, logits_fn, x, labels))


def _gradient(objective: Objective, logits_fn: LogitsFn, x: jax.Array, labels: jax.Array) -> np.ndarray:
    """Of the objective at inputs, `[n, entries]`."""
    gradient = jax.grad(lambda points: objective(logits_fn(points), labels, None).sum())(x)
    return np.asarray(gradient).reshape(len(x), -1)


def _non_finite(name: str, gradient: np.ndarray) -> str:
    bad = ~np.isfinite(gradient)
    if not bad.any():
        return ""
    return (
        f"non-finite gradient: that of the {name} is NaN or infinite at {100 * bad.mean():.3g}% of the entries, "
        f"on {100 * bad.any(-1).mean():.3g}% of the inputs"
    )


def _square(broken_by: np.ndarray | None) -> str:
    share = 0.0 if broken_by is None or not len(broken_by) else float((broken_by == "square").mean())
    if share <= 2e-3:
        return ""
    return f"square: without gradients it broke {share:.1%} of the examples after attacks with gradients had failed"


def _named(kind: str, found: collections.Counter[str], names: tuple[str, ...]) -> str:
    met = [f"{name} x {found[name]}" for name in names if found[name]]
    return f"{kind}: {', '.join(met)}" if met else ""


def _primitives(jaxpr: Any) -> Iterator[str]:
    """Names of all primitives, those of functions inside included."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _primitives(inner)
