"""Dynamic mixed training: how much the clean and the robust loss weigh, step by step.

A rule is an `(init, update)` pair in the manner of optax. `update(signals, state) -> (weights, state)` is pure, so it
runs inside the jitted step, and its state lives in the train state and in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike


class Signals(NamedTuple):
    """What a rule sees of a step; scalars."""

    step: jax.Array  # steps done before this one
    epoch: jax.Array  # full passes over the training data done before this step
    clean_loss: jax.Array  # mean over the batch
    clean_accuracy: jax.Array  # share of the batch, 0 to 1; less its lead over held-out examples, where that is known
    robust_loss: jax.Array  # mean over the subsample; 0 where the step has none


class Weights(NamedTuple):
    """The loss of a step is `clean * clean_loss + robust * robust_loss`; scalars."""

    clean: jax.Array
    robust: jax.Array


class MixRule(NamedTuple):
    """A dynamic weight: `init() -> state` and `update(signals, state) -> (weights, state)`."""

    init: Callable[[], Any]
    update: Callable[[Signals, Any], tuple[Weights, Any]]


def constant(weight: float) -> MixRule:
    """The robust loss weighs `weight >= 0`, the clean loss 1.

    Raises:
      ValueError: where the weight is negative.
    """
    if not weight >= 0:
        raise ValueError(f"constant wants a weight >= 0, got {weight}.")
    return schedule(lambda step: weight)


def schedule(robust: optax.Schedule) -> MixRule:
    """The robust loss weighs `robust(step)`, any optax schedule; the clean loss 1."""
    return _stateless(lambda signals: Weights(_scalar(1), _scalar(robust(signals.step))))


def convex(alpha: float | optax.Schedule) -> MixRule:
    """The paper's form, `alpha * robust + (1 - alpha) * clean`, with a fixed share or a schedule of it.

    Args:
      alpha: share of the robust loss, 0 to 1; the paper starts near 0.8.

    Raises:
      ValueError: where a fixed share is outside [0, 1].
    """
    if not callable(alpha) and not 0 <= alpha <= 1:
        raise ValueError(f"convex wants alpha between 0 and 1, got {alpha}.")

    def weights(signals: Signals) -> Weights:
        share = _scalar(alpha(signals.step) if callable(alpha) else alpha)
        return Weights(1 - share, share)

    return _stateless(weights)


def authors(ramp: float, *, start: float = 0.1, factor: float = 2.5, every: float = 5, cap: float = 50) -> MixRule:
    """The schedule of the MixTrain authors' code: `min(start * factor ** (max(epoch - ramp, 0) // every), cap)`.

    Args:
      ramp: epochs during which eps grows and the weight stays at `start`.
      start: first weight of the robust loss; the clean loss always weighs 1.
      factor: what the weight is multiplied by
      every: so many epochs after the ramp,
      cap: up to this weight.

    Raises:
      ValueError: where a number is out of range.
    """
    if not (ramp >= 0 and start >= 0 and factor >= 1 and every > 0 and cap >= start):
        raise ValueError(
            "authors wants ramp >= 0, start >= 0, factor >= 1, every > 0 and cap >= start, "
            f"got ramp = {ramp}, start = {start}, factor = {factor}, every = {every}, cap = {cap}."
        )

    def weights(signals: Signals) -> Weights:
        # Whole epochs, as in the code: the weight moves between epochs only.
        rises = jnp.maximum(jnp.floor(signals.epoch) - ramp, 0) // every
        # Past the cap the power would overflow, so stop counting there.
        enough = 0.0 if start == 0 or factor == 1 else jnp.ceil(jnp.log(cap / start) / jnp.log(factor))
        return Weights(_scalar(1), _scalar(jnp.minimum(start * factor ** jnp.minimum(rises, enough), cap)))

    return _stateless(weights)


class ConstrainedState(NamedTuple):
    """State of `constrained`."""

    multiplier: jax.Array  # the robust share is its sigmoid
    accuracy: jax.Array  # moving average of clean accuracy
    opt_state: optax.OptState


def constrained(target: float, tx: optax.GradientTransformation, *, start: float = 0.5, decay: float = 0.99) -> MixRule:
    """The adaptive rule: as verifiable as possible subject to `clean_accuracy >= target`.

    The Lagrangian form of that problem, our own choice: the robust loss weighs `alpha = sigmoid(multiplier)` and the
    clean loss `1 - alpha`; `tx` descends on the violation `target - accuracy`, accuracy being smoothed by a moving
    average that starts at the target. Below the target the clean loss gains weight, above it the robust loss does. The
    share stays between 2 and 98 %. Any optax transformation drives it; its state is part of the rule's.

    Args:
      target: clean accuracy on training batches to hold, 0 to 1.
      tx: optimizer of the multiplier, for instance `optax.sgd(0.05)`.
      start: first share of the robust loss, strictly between 0 and 1.
      decay: of the moving average, per step, 0 to below 1.

    Raises:
      ValueError: where a number is out of range.
    """
    if not (0 <= target <= 1 and 0 < start < 1 and 0 <= decay < 1):
        raise ValueError(
            "constrained wants 0 <= target <= 1, 0 < start < 1 and 0 <= decay < 1, "
            f"got target = {target}, start = {start}, decay = {decay}."
        )

    def init() -> ConstrainedState:
        multiplier = _scalar(jax.scipy.special.logit(_scalar(start)))
        return ConstrainedState(multiplier, _scalar(target), tx.init(multiplier))

    def update(signals: Signals, state: ConstrainedState) -> tuple[Weights, ConstrainedState]:
        accuracy = decay * state.accuracy + (1 - decay) * signals.clean_accuracy
        moves, opt_state = tx.update(target - accuracy, state.opt_state, state.multiplier)
        # Shares of 2 % to 98 %: beyond, the sigmoid is flat and the way back would be long.
        multiplier = jnp.clip(state.multiplier + jnp.asarray(moves), -4.0, 4.0)
        share = jax.nn.sigmoid(multiplier)
        return Weights(1 - share, share), ConstrainedState(multiplier, accuracy, opt_state)

    return MixRule(init, update)


def _stateless(weights: Callable[[Signals], Weights]) -> MixRule:
    return MixRule(lambda: (), lambda signals, state: (weights(signals), state))


def _scalar(x: ArrayLike) -> jax.Array:
    return jnp.asarray(x, jnp.float32)
