"""The interface of a loss: the examples of one microbatch in, one value an example out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from mixtrain_jax.attacks import Objective, cross_entropy, descend
from mixtrain_jax.bounds import Interval, Method, specification
from mixtrain_jax.threat import Threat


class Context(NamedTuple):
    """What a loss may depend on.

    Attributes:
      key: random key of the step and the microbatch; all terms of a step have the same one.
      apply: `(params, images) -> logits`, the network in the dtype of the term.
      params: its parameters; a loss is differentiated with respect to them.
      images: `[n, height, width, channels]`, float32.
      labels: `[n]`, integers.
      eps: radius of the perturbations at this step, in pixel units; a scalar.
      threat: norm and domain of the perturbations; its own radius is the one that is certified.
    """

    key: jax.Array
    apply: Callable[[Any, jax.Array], jax.Array]
    params: Any
    images: jax.Array
    labels: jax.Array
    eps: jax.Array
    threat: Threat

    @property
    def logits_fn(self) -> Callable[[jax.Array], jax.Array]:
        """The network at its parameters, `[n, ...] -> [n, classes]`."""
        return functools.partial(self.apply, self.params)

    @property
    def ball(self) -> Interval:
        """The perturbed images: all within `eps` of each image in the norm, and inside the domain."""
        return self.wider(1.0)

    def wider(self, ratio: float) -> Interval:
        """As `ball`, at a multiple of the radius."""
        return self.threat.ball(self.images, jnp.broadcast_to(ratio * self.eps, len(self.images)))

    def attack(self, steps: int, ratio: float = 1.0, objective: Objective = cross_entropy) -> jax.Array:
        """Images `[n, ...]` that an attack finds within a multiple of the radius; gradients stop there."""
        found = descend(self.key, self.logits_fn, self.labels, self.wider(ratio), steps=steps, objective=objective)
        return jax.lax.stop_gradient(found)

    def margins(self, images: jax.Array) -> jax.Array:
        """The logit of the label less each of the others, at images `[n, ...]`: `[n, classes - 1]`."""
        logits = self.logits_fn(images)
        rows = jax.vmap(lambda label: specification(label, logits.shape[-1], logits.dtype))(self.labels)
        return jnp.einsum("nmc,nc->nm", rows, logits)


class Values(NamedTuple):
    """What a loss says of each example, `[n]` both.

    Attributes:
      loss: the value that is averaged and differentiated.
      correct: bool, right in the sense of the loss: classified rightly, attacked in vain, verified.
    """

    loss: jax.Array
    correct: jax.Array


class Loss(Protocol):
    """A frozen dataclass whose fields are its hyperparameters, each with a default.

    Its calls are pure and treat examples independently of each other, so that the loss of a batch does not depend on
    how it is split into microbatches.
    """

    @property
    def name(self) -> str:
        """What its term is called in rows and plots; a class attribute as a rule."""
        ...

    @property
    def method(self) -> Method | None:
        """The bound that takes most of the memory, from which the size of microbatches follows; None for none."""
        ...

    def __call__(self, context: Context) -> Values:
        """The loss of each example."""
        ...
