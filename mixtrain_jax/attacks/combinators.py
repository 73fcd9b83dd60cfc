"""Attacks made of attacks, and what turns a model that gradients don't fit into one that they do.

Each combinator takes an attack and returns one. Further keywords of the attack that is returned, such as `targets`, are
handed on, so that `targeted(restarts(attack, 3))` works as `restarts(targeted(attack), 3)` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.attacks.objectives import likeliest
from mixtrain_jax.attacks.search import Best, LogitsFn, Poll, looking, stepwise, unknown
from mixtrain_jax.bounds import BoundsError, Interval

RandomLogitsFn = Callable[[jax.Array, jax.Array], jax.Array]
"""`(key, [n, ...]) -> [n, classes]`, a model that draws random numbers."""


def restarts(attack: Callable[..., jax.Array], n: int) -> Callable[..., jax.Array]:
    """The attack `n` times with different keys; the best for each example."""
    _positive("restarts", "n", n)

    def run(
        key: jax.Array, logits_fn: LogitsFn, x: jax.Array, labels: jax.Array, ball: Interval, **options: Any
    ) -> jax.Array:
        x, labels = jnp.asarray(x), jnp.asarray(labels)
        loop, (look,) = stepwise(looking, logits_fn, arrays=(key, x, labels, ball))

        def attempt(i: int | jax.Array, best: Best) -> Best:
            return look(best, attack(jax.random.fold_in(key, i), logits_fn, x, labels, ball, **options), labels)

        return loop(0, n, attempt, unknown(x)).points

    return run


def worst_of(*attacks: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """All of the attacks, each with a key of its own; the best for each example."""
    _positive("worst_of", "the number of attacks", len(attacks))

    def run(
        key: jax.Array, logits_fn: LogitsFn, x: jax.Array, labels: jax.Array, ball: Interval, **options: Any
    ) -> jax.Array:
        x, labels = jnp.asarray(x), jnp.asarray(labels)
        _, (look,) = stepwise(looking, logits_fn, arrays=(key, x, labels, ball))
        best = unknown(x)
        for i, attack in enumerate(attacks):
            best = look(best, attack(jax.random.fold_in(key, i), logits_fn, x, labels, ball, **options), labels)
        return best.points

    return run


def targeted(attack: Callable[..., jax.Array], classes: int = 9) -> Targeted:
    """The attack at each of the likeliest wrong classes at `x` in turn; the best for each example.

    `in_turn` takes it apart, so that an example that fell at one class is left alone at the others.

    Args:
      attack: one that takes `targets`, classes `[n]`, such as `pgd`.
      classes: how many wrong classes to try; all of them where the network has fewer.
    """
    _positive("targeted", "classes", classes)
    return Targeted(attack, classes)


@dataclasses.dataclass(frozen=True)
class Targeted:
    """What `targeted` makes: an attack that says what it is made of."""

    attack: Callable[..., jax.Array]
    classes: int

    def __call__(
        self, key: jax.Array, logits_fn: LogitsFn, x: jax.Array, labels: jax.Array, ball: Interval, **options: Any
    ) -> jax.Array:
        """The worst over the targets, as an `Attack`."""
        x, labels = jnp.asarray(x), jnp.asarray(labels)
        arrays = (key, x, labels, ball)
        (loop, (look,)), (_, (rank,)) = (stepwise(make, logits_fn, arrays=arrays) for make in (looking, _ranking))
        targets = rank(x, labels)

        def attempt(i: int | jax.Array, best: Best) -> Best:
            aim = {"targets": targets[:, i], **options}
            return look(best, self.attack(jax.random.fold_in(key, i), logits_fn, x, labels, ball, **aim), labels)

        return loop(0, min(self.classes, targets.shape[1]), attempt, unknown(x)).points


def _ranking(logits_fn: LogitsFn) -> tuple[Callable[[jax.Array, jax.Array], jax.Array]]:
    def rank(x: jax.Array, labels: jax.Array) -> jax.Array:
        """The wrong classes, likeliest first, `[n, classes - 1]`."""
        logits = logits_fn(x)
        return likeliest(logits, labels, logits.shape[-1])

    return (rank,)


def chunked(
    attack: Callable[..., jax.Array], size: int, poll: Poll = lambda what, done, total: None
) -> Callable[..., jax.Array]:
    """The attack on `size` examples at a time, which bounds the memory that it takes.

    The last examples are padded, so all chunks share one compilation. Best called outside `jax.jit`: inside, every
    chunk becomes a copy of the program.

    Args:
      attack: any.
      size: examples at a time.
      poll: called after every chunk with "attack", the examples done and all of them; whatever it raises ends the
        attack.
    """
    _positive("chunked", "size", size)

    def run(
        key: jax.Array, logits_fn: LogitsFn, x: jax.Array, labels: jax.Array, ball: Interval, **options: Any
    ) -> jax.Array:
        n, parts = len(x), []
        for first in range(0, n, size):
            rows = np.minimum(np.arange(first, first + size), n - 1)
            part, some = jax.tree.map(lambda a, rows=rows: a[rows], ((x, labels, ball), options))
            found = attack(jax.random.fold_in(key, first), logits_fn, *part, **some)
            parts.append(jax.block_until_ready(found)[: n - first])
            poll("attack", min(first + size, n), n)
        return jnp.concatenate(parts) if parts else jnp.asarray(x)

    return run


def eot(attack: Callable[..., jax.Array], samples: int) -> Callable[..., jax.Array]:
    """The attack on a randomized model: expectation over transformation (Athalye et al., arXiv 1707.07397).

    The attack that is returned takes a model `(key, x) -> logits` and sees the mean of the logits over `samples` keys.
    The keys come from the bits of `x` itself: a step sees fresh noise because it is at other points, and still the mean
    is a function, with one value at one point. So any attack may be used, compiled once, and the key it is called with
    has no say in the noise. Examples of one batch share the keys.

    The best point is that of the lowest mean margin met, which the noise of few samples flatters: measure what is
    returned with fresh keys. Combine attacks inside, `eot(worst_of(...), samples)`: what is compiled is kept for one
    number of samples.
    """
    _positive("eot", "samples", samples)

    def run(
        key: jax.Array, logits_fn: RandomLogitsFn, x: jax.Array, labels: jax.Array, ball: Interval, **options: Any
    ) -> jax.Array:
        return attack(key, _Mean(logits_fn, samples), x, labels, ball, **options)

    return run


@dataclasses.dataclass(frozen=True)
class _Mean:
    """Mean logits of a randomized model; one equals another where the models do, so it is compiled once."""

    logits_fn: RandomLogitsFn
    samples: int

    def __call__(self, x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(x).astype(jnp.float32), jnp.uint32).reshape(-1)
        odd = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1  # so that no single entry changes and the sum does not
        keys = jax.random.split(
            jax.random.fold_in(jax.random.key(0), jnp.sum(bits * odd, dtype=jnp.uint32)), self.samples
        )
        return jax.vmap(lambda key: self.logits_fn(key, x))(keys).mean(0)


def bpda(
    f: Callable[[jax.Array], jax.Array], backward: Callable[[jax.Array], jax.Array] = lambda x: x
) -> Callable[[jax.Array], jax.Array]:
    """The function `f` with the gradient of another one (Athalye et al., arXiv 1802.00420).

    For preprocessing whose gradient is zero or of no use: attack `lambda x: net(bpda(quantize)(x))`.

    Args:
      f: what is computed.
      backward: what is differentiated in its place, an approximation of `f`; by default the identity, that is the
        gradient passes straight through.

    Returns:
      A function of one array.

    Raises:
      BoundsError: (the returned function) where the two differ in the shape or dtype of their results.
    """

    @jax.custom_vjp
    def through(x: jax.Array) -> jax.Array:
        return f(x)

    def forwards(x: jax.Array) -> tuple[jax.Array, Callable[..., Any]]:
        value = f(x)
        smooth, pull = jax.vjp(backward, x)
        if (value.shape, value.dtype) != (smooth.shape, smooth.dtype):
            raise BoundsError(
                f"bpda wants two functions of one shape and dtype, but f returns {value.dtype}{list(value.shape)} "
                f"and backward {smooth.dtype}{list(smooth.shape)}."
            )
        return value, pull

    through.defvjp(forwards, lambda pull, cotangent: pull(cotangent))
    return through


def _positive(what: str, name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise BoundsError(f"{what} wants {name} to be a positive integer, got {value!r}.")
