"""The three jitted functions of a training step: clean gradients, robust gradients, update.

They are apart so that the robust part has its own batch size, k of n, and can be left out of a step altogether.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mixtrain_jax import losses, subsample
from mixtrain_jax.bounds import Method, linf_ball, margins
from mixtrain_jax.mixing import MixRule, Signals
from mixtrain_jax.training.state import Totals, TrainState

Apply = Callable[[Any, jax.Array], jax.Array]  # (params, images) -> logits
Data = tuple[jax.Array, jax.Array]  # images [count, ...], labels [count]


class Part(NamedTuple):
    """One of the two losses on a batch: its mean, the accuracy in its own sense, and the gradient of the mean."""

    loss: jax.Array
    accuracy: jax.Array
    gradient: Any


class Steps(NamedTuple):
    """What the loop calls. `indices` are the batch's, `[n]`; `data` is the training split on the device."""

    clean: Callable[[TrainState, Data, jax.Array], Part]
    robust: Callable[[TrainState, Data, jax.Array], Part]
    update: Callable[[TrainState, Part, Part], TrainState]
    absent: Callable[[TrainState], Part]  # stands for the robust part in a step that has none


def make_steps(
    apply: Apply,
    *,
    method: Method,
    eps: optax.Schedule,
    k: int,
    replace: bool,
    key: jax.Array,
    domain: tuple[float, float],
    rule: MixRule,
    tx: optax.GradientTransformation,
    steps_per_epoch: float,
) -> Steps:
    """Build the steps of one run.

    Args:
      apply: `(params, images) -> logits`.
      method: sound bounds of the robust loss.
      eps: radius at a step, in pixel units.
      k: examples of a batch that carry the robust loss.
      replace: draw them with replacement.
      key: of the subsamples; a step's own key is folded from it, so a resumed run draws the same ones.
      domain: lowest and highest pixel.
      rule: weighs the two losses.
      tx: optimizer.
      steps_per_epoch: steps in one pass over the training data.
    """

    def clean(state: TrainState, data: Data, indices: jax.Array) -> Part:
        images, labels = (x[indices] for x in data)

        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            logits = apply(params, images)
            return losses.clean_loss(logits, labels).mean(), (logits.argmax(-1) == labels).mean()

        (value, accuracy), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        return Part(value, accuracy, gradient)

    def robust(state: TrainState, data: Data, indices: jax.Array) -> Part:
        chosen = indices[subsample.draw(jax.random.fold_in(key, state.step), len(indices), k, replace=replace)]
        images, labels = (x[chosen] for x in data)
        ball = linf_ball(images, eps(state.step), domain)

        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            lower = margins(method, functools.partial(apply, params))(ball, labels)
            return losses.robust_loss(lower).mean(), (lower > 0).all(-1).mean()

        (value, accuracy), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        return Part(value, accuracy, gradient)

    def update(state: TrainState, clean: Part, robust: Part) -> TrainState:
        signals = Signals(
            state.step, state.step.astype(jnp.float32) / steps_per_epoch, clean.loss, clean.accuracy, robust.loss
        )
        weights, mix_state = rule.update(signals, state.mix_state)
        gradient = jax.tree.map(lambda c, r: weights.clean * c + weights.robust * r, clean.gradient, robust.gradient)
        loss = weights.clean * clean.loss + weights.robust * robust.loss
        norm = optax.tree.norm(gradient)
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        now = Totals(
            steps=jnp.ones(()),
            loss=loss,
            clean_loss=clean.loss,
            robust_loss=robust.loss,
            clean_accuracy=clean.accuracy,
            clean_weight=weights.clean,
            robust_weight=weights.robust,
            gradient_norm=norm,
        )
        new = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            mix_state=mix_state,
            totals=jax.tree.map(jnp.add, state.totals, now),
            bad_step=state.bad_step,
        )
        # From the first bad step on the state stands still, until the host looks and stops.
        bad = jnp.where(state.bad_step < 0, state.step, state.bad_step)
        good = jnp.isfinite(loss) & jnp.isfinite(norm) & (state.bad_step < 0)
        return jax.tree.map(functools.partial(jnp.where, good), new, state._replace(bad_step=bad))

    def absent(state: TrainState) -> Part:
        zero = jnp.zeros((), jnp.float32)
        return Part(zero, zero, jax.tree.map(jnp.zeros_like, state.params))

    return Steps(jit_once(clean), jit_once(robust), jit_once(update, donate_argnums=0), jax.jit(absent))


def jit_once(f: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` that refuses to trace a second time: a step that retraces wastes minutes without a word.

    Raises:
      RuntimeError: (the returned function) on a call with other shapes, dtypes or tree structure than the first.
    """
    traces = 0

    @functools.wraps(f)
    def traced(*args: Any) -> Any:
        nonlocal traces
        traces += 1
        if traces > 1:
            raise RuntimeError(f"The step '{f.__name__}' was traced twice: its arguments changed shape, dtype or type.")
        return f(*args)

    return jax.jit(traced, **options)
