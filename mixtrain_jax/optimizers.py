"""Optimizers, learning rates and radii by name: what changes the parameters, how fast, and within which ball."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Protocol

import jax
import jax.numpy as jnp
import optax

from mixtrain_jax.schema import Choice, Range


class Optimizer(Protocol):
    """The settings of an optimizer: a frozen dataclass whose fields are those of the config, each with a default."""

    @property
    def learning_rate(self) -> float:
        """The peak of the learning rate."""
        ...

    def transformation(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        """Gradients -> updates, at a learning rate that depends on the step."""
        ...


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101), gradients clipped.

    Attributes:
      learning_rate: Peak of the learning rate; 0 to 10.
      weight_decay: Decoupled weight decay; 0 to 10.
      clip: Largest global norm of a gradient; at least 0.
    """

    learning_rate: Annotated[float, Range(0, 10)] = 5e-3
    weight_decay: Annotated[float, Range(0, 10)] = 0.1
    clip: Annotated[float, Range(0)] = 10.0

    def transformation(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        """Gradients -> updates."""
        adamw = optax.adamw(learning_rate, weight_decay=self.weight_decay)
        return optax.chain(optax.clip_by_global_norm(self.clip), adamw)


@dataclasses.dataclass(frozen=True)
class RAdam:
    """Adam whose adaptive rate is rectified while its variance is unknown (Liu et al., arXiv 1908.03265).

    Attributes:
      learning_rate: Peak of the learning rate; 0 to 10.
      clip: Largest global norm of a gradient; at least 0.
    """

    learning_rate: Annotated[float, Range(0, 10)] = 1e-3
    clip: Annotated[float, Range(0)] = 10.0

    def transformation(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        """Gradients -> updates."""
        return optax.chain(optax.clip_by_global_norm(self.clip), optax.radam(learning_rate))


@dataclasses.dataclass(frozen=True)
class SGD:
    """Gradient descent with momentum.

    Attributes:
      learning_rate: Peak of the learning rate; 0 to 10.
      momentum: Nesterov's; 0 to 1.
      weight_decay: Weight decay, added to the gradient; 0 to 10.
      clip: Largest global norm of a gradient; at least 0.
    """

    learning_rate: Annotated[float, Range(0, 10)] = 0.1
    momentum: Annotated[float, Range(0, 1)] = 0.9
    weight_decay: Annotated[float, Range(0, 10)] = 5e-4
    clip: Annotated[float, Range(0)] = 10.0

    def transformation(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        """Gradients -> updates."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.add_decayed_weights(self.weight_decay),
            optax.sgd(learning_rate, self.momentum, nesterov=True),
        )


OPTIMIZERS = Choice({"adamw": AdamW(), "radam": RAdam(), "sgd": SGD()})
"""Optimizers by the name that a config has for them."""


class Schedule(Protocol):
    """The settings of a learning rate: a frozen dataclass whose fields are those of the config."""

    def rates(self, peak: float, steps: int) -> optax.Schedule:
        """The learning rate at every step of a run of so many."""
        ...


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Up in a line, down to 0 by a cosine.

    Attributes:
      warmup: Share of training over which the learning rate grows linearly from 0 to its peak; 0 to 1.
    """

    warmup: Annotated[float, Range(0, 1)] = 0.0

    def rates(self, peak: float, steps: int) -> optax.Schedule:
        """The learning rate at every step of a run of so many."""
        if not (warmup := round(self.warmup * steps)):
            return optax.cosine_decay_schedule(peak, steps)
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(warmup + 1, steps))


@dataclasses.dataclass(frozen=True)
class Milestones:
    """Constant, but for steps down at milestones.

    Attributes:
      at: Shares of training, each 0 to 1, at which the learning rate falls.
      factor: What it is multiplied by there; 0 to 1.
    """

    at: tuple[Annotated[float, Range(0, 1)], ...] = (0.75, 0.9)
    factor: Annotated[float, Range(0, 1)] = 0.2

    def rates(self, peak: float, steps: int) -> optax.Schedule:
        """The learning rate at every step of a run of so many."""
        return optax.piecewise_constant_schedule(peak, {round(share * steps): self.factor for share in self.at})


SCHEDULES = Choice({"cosine": Cosine(), "milestones": Milestones()})
"""Learning rates by the name that a config has for them."""


class Radius(Protocol):
    """The settings of the radius trained on: a frozen dataclass whose fields are those of the config."""

    @property
    def ramp(self) -> float:
        """Share of training over which it grows, 0 to 1."""
        ...

    def radii(self, eps: float, steps: int) -> optax.Schedule:
        """The radius at every step of a run of so many, in pixel units; `eps` is the one that is certified."""
        ...


@dataclasses.dataclass(frozen=True)
class Linear:
    """A radius that grows in a line.

    Attributes:
      ratio: Radius trained on, as a multiple of the one that is certified; 0 to 4.
      ramp: Share of training over which the radius grows from 0; 0 to 1.
    """

    ratio: Annotated[float, Range(0, 4)] = 1.0
    ramp: Annotated[float, Range(0, 1)] = 0.33

    def radii(self, eps: float, steps: int) -> optax.Schedule:
        """The radius at every step of a run of so many, in pixel units."""
        return optax.linear_schedule(0.0, eps * self.ratio, max(1, round(self.ramp * steps)))


@dataclasses.dataclass(frozen=True)
class Smooth:
    """A radius that grows by the fourth power over the first quarter, and linearly from there.

    That of Xu et al. (arXiv 2002.12920, `SmoothedScheduler` of their code): the parts meet with one slope. Interval
    bounds of a new deep network are off by orders of magnitude more than those of a trained one, which a line jumps
    over in a few steps.

    Attributes:
      ratio: Radius trained on, as a multiple of the one that is certified; 0 to 4.
      ramp: Share of training over which the radius grows from 0; 0 to 1.
    """

    ratio: Annotated[float, Range(0, 4)] = 1.0
    ramp: Annotated[float, Range(0, 1)] = 0.33

    def radii(self, eps: float, steps: int) -> optax.Schedule:
        """The radius at every step of a run of so many, in pixel units."""
        end, last, bend = eps * self.ratio, max(1, round(self.ramp * steps)), 0.25
        height = end / (1 + 4 * (1 - bend) / bend)  # at the bend

        def smooth(step: jax.typing.ArrayLike) -> jax.Array:
            done = jnp.minimum(jnp.asarray(step, jnp.float32) / last, 1.0)
            line = end - (end - height) * (1 - done) / (1 - bend)
            return jnp.where(done < bend, height * (done / bend) ** 4, line)

        return smooth


RADII = Choice({"linear": Linear(), "smooth": Smooth()})
"""Radii by the name that a config has for them."""
