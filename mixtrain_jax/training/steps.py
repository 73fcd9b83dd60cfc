"""The three jitted functions of a training step: clean gradients, robust gradients, update.

They are apart so that the robust part has its own batch size, k of n, and can be left out of a step altogether.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mixtrain_jax import losses, parallel, subsample
from mixtrain_jax.attacks import LogitsFn, descend
from mixtrain_jax.bounds import Method, linf_ball, margins, specification
from mixtrain_jax.bounds.cpu import ordered
from mixtrain_jax.bounds.loops import total
from mixtrain_jax.mixing import MixRule, Signals
from mixtrain_jax.training.state import Bad, Totals, TrainState

Apply = Callable[[Any, jax.Array], jax.Array]  # (params, images) -> logits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Examples on the devices: images `[n, height, width, channels]` float32 and labels `[n]`.

    The first `count` count, None for all; the others are there for `n` to be a multiple of the number of devices.
    """

    images: jax.Array
    labels: jax.Array
    count: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __len__(self) -> int:
        return len(self.labels) if self.count is None else self.count


# (key, params, step, batch) -> losses [n] and what is right of their examples [n]
ExampleLoss = Callable[[jax.Array, Any, jax.Array, Batch], tuple[jax.Array, jax.Array]]
# (key, logits_fn, batch, eps) -> margins [n, classes - 1] in the worst case, as a sound bound or an attack has it.
WorstCase = Callable[[jax.Array, LogitsFn, Batch, jax.Array], jax.Array]


def bounded(method: Method, domain: tuple[float, float]) -> WorstCase:
    """The worst case by sound bounds: no input in the ball has smaller margins."""

    def worst(key: jax.Array, logits_fn: LogitsFn, batch: Batch, eps: jax.Array) -> jax.Array:
        return margins(method, logits_fn)(linf_ball(batch.images, eps, domain), batch.labels)

    return worst


def attacked(steps: int, domain: tuple[float, float]) -> WorstCase:
    """The worst case that an attack of so many steps finds, as adversarial training has it; there may be worse."""

    def worst(key: jax.Array, logits_fn: LogitsFn, batch: Batch, eps: jax.Array) -> jax.Array:
        ball = linf_ball(batch.images, eps, domain)
        found = jax.lax.stop_gradient(descend(key, logits_fn, batch.labels, ball, steps=steps))
        logits = logits_fn(found)
        rows = jax.vmap(lambda label: specification(label, logits.shape[-1], logits.dtype))(batch.labels)
        return jnp.einsum("nmc,nc->nm", rows, logits)

    return worst


def computed_in(apply: Apply, dtype: jax.typing.DTypeLike) -> Apply:
    """A network whose layers compute in another dtype; parameters, images, logits and gradients keep theirs."""

    def cast(leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    def apply_in(params: Any, images: jax.Array) -> jax.Array:
        return apply(jax.tree.map(cast, params), cast(images)).astype(images.dtype)

    return apply_in


Rows = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # images, labels, weights in the mean, numbers


def filled(batch: Batch, count: int) -> Rows:
    """The examples of a batch, the last one again until there are `count`, with weight 0."""
    index = np.arange(count)
    weights = np.where(index < len(batch), np.float32(1 / len(batch)), np.float32(0))
    images, labels = batch.images, batch.labels
    if count != len(labels):
        index = np.minimum(index, len(labels) - 1)
        images, labels = images[index], labels[index]
    return images, labels, jnp.asarray(weights), jnp.arange(count)


def even(count: int, group: int | None, devices: int = 1) -> tuple[int, int | None]:
    """The number of rows to which `count` are filled up for groups to come out even, and the size of a group.

    Args:
      count: of examples.
      group: how many at a time on each device, about; None for all.
      devices: that share a group.
    """
    if group is None or (groups := -(-count // (group * devices))) <= 1:
        return count, None
    size = -(-count // (groups * devices)) * devices
    return groups * size, size


def grouped(batch: Batch, group: int | None, mesh: Mesh | None) -> tuple[Rows, int | None]:
    """The rows of a batch, so many that groups come out even, and the size of a group.

    Args:
      batch: the examples.
      group: how many at a time on each device, about; None for all.
      mesh: the devices.
    """
    count, size = even(len(batch.labels), group, mesh.size if mesh else 1)
    return filled(batch, count), size


def microbatched(batch: Batch, group: int | None, mesh: Mesh, count: int) -> tuple[Rows, int | None]:
    """The rows of a batch as `[microbatches, size, ...]`, equally many microbatches a device, and the size of a group.

    Args:
      batch: the examples.
      group: how many at a time, about; None for all of a microbatch.
      mesh: the devices.
      count: of microbatches; what the devices fill it up with has no examples that count.
    """
    each, size = even(-(-len(batch) // count), group)
    count = parallel.padded(count, mesh)
    return jax.tree.map(lambda x: x.reshape(count, each, *x.shape[1:]), filled(batch, count * each)), size


class Part(NamedTuple):
    """One of the two losses on a batch: its mean, the accuracy in its own sense, and the gradient of the mean."""

    loss: jax.Array
    accuracy: jax.Array
    gradient: Any


class Steps(NamedTuple):
    """What the loop calls."""

    clean: Callable[[TrainState, Batch], Part]
    robust: Callable[[TrainState, Batch], Part]  # of k examples of what it is given
    update: Callable[[TrainState, Part, Part], TrainState]
    absent: Callable[[TrainState], Part]  # stands for a part that a step does without
    # (state, batch, pool, whether clean, whether robust) -> (state, loss); a step to be compiled with others
    whole: Callable[[TrainState, Batch, Batch, bool, bool | jax.Array], tuple[TrainState, jax.Array]]


def make_steps(
    apply: Apply,
    *,
    robust_apply: Apply | None = None,
    worst_case: WorstCase,
    eps: optax.Schedule,
    k: int,
    replace: bool,
    key: jax.Array,
    rule: MixRule,
    tx: optax.GradientTransformation,
    steps_per_epoch: float,
    bad_steps: int = 0,
    clean_group: int | None = None,
    robust_group: int | None = None,
    microbatches: int = 0,
    mesh: Mesh | None = None,
    layout: parallel.Layout = "replicated",
) -> Steps:
    """Build the steps of one run.

    Args:
      apply: `(params, images) -> logits`.
      robust_apply: the same for the robust loss; by default `apply`.
      worst_case: margins that the robust loss is made of.
      eps: radius at a step, in pixel units.
      k: examples of a batch that carry the robust loss.
      replace: draw them with replacement.
      key: of subsamples and attacks; a step's own key is folded from it, so a resumed run draws the same ones.
      rule: weighs the two losses.
      tx: optimizer.
      steps_per_epoch: steps in one pass over the training data.
      bad_steps: how many steps in a row may be skipped; after one more the state stands still.
      clean_group: of how many examples the clean loss is computed at a time, on each device; None for all.
      robust_group: the same for the robust loss.
      microbatches: parts of a batch whose gradients are summed in a fixed order, for the same bits on any number of
        devices; 0 for sums in the order that is fastest. Needs a mesh, and a replicated state.
      mesh: the devices; None for one.
      layout: of the state on them; `rows` is none for a state.
    """

    def part(loss: ExampleLoss, state: TrainState, batch: Batch, group: int | None) -> Part:
        params = parallel.pin(state.params, mesh, "replicated")  # split ones come together for as long as it takes

        def mean(params: Any, step: jax.Array, rows: Rows) -> tuple[jax.Array, jax.Array]:
            images, labels, weights, number = rows
            key_of_group = jax.random.fold_in(jax.random.fold_in(key, step), number[0])
            values, right = loss(key_of_group, params, step, Batch(images, labels))
            return (weights * values).sum(), jnp.where(right, weights, 0).sum()

        gradients = ordered(jax.value_and_grad(mean, has_aux=True))

        def summed(whole: tuple[Any, jax.Array], rows: Rows, size: int | None) -> Any:
            return total(lambda rows: gradients(*whole, rows), rows, size)

        whole = (params, state.step)
        if microbatches and mesh is not None:
            rows, size = microbatched(batch, group, mesh, microbatches)
            summed = functools.partial(summed, size=size)
            (value, accuracy), gradient = parallel.sum_microbatches(summed, whole, rows, mesh, microbatches)
        else:
            (value, accuracy), gradient = summed(whole, *grouped(batch, group, mesh))
        return parallel.pin(Part(value, accuracy, gradient), mesh, layout)

    def clean(state: TrainState, batch: Batch) -> Part:
        def loss(key: jax.Array, params: Any, step: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
            logits = apply(params, batch.images)
            return losses.clean_loss(logits, batch.labels), logits.argmax(-1) == batch.labels

        return part(loss, state, batch, clean_group)

    def robust(state: TrainState, pool: Batch) -> Part:
        batch = pool
        if replace or k < len(pool):
            chosen = subsample.draw(jax.random.fold_in(key, state.step), len(pool), k, replace=replace)
            if mesh is not None:
                chosen = chosen[np.minimum(np.arange(parallel.padded(k, mesh)), k - 1)]
            # An equal share for every device, wherever the examples were.
            picked = parallel.pin((pool.images[chosen], pool.labels[chosen]), mesh, "rows")
            batch = Batch(*picked, count=k)

        def loss(key: jax.Array, params: Any, step: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
            logits_fn = functools.partial(robust_apply or apply, params)
            lower = worst_case(key, logits_fn, batch, jnp.asarray(eps(step), batch.images.dtype))
            return losses.robust_loss(lower), (lower > 0).all(-1)

        return part(loss, state, batch, robust_group)

    def update(state: TrainState, clean: Part, robust: Part) -> TrainState:
        epoch = state.step.astype(jnp.float32) / steps_per_epoch
        signals = Signals(state.step, epoch, clean.loss, clean.accuracy - state.lead, robust.loss)
        weights, mix_state = rule.update(signals, state.mix_state)
        gradient = jax.tree.map(lambda c, r: weights.clean * c + weights.robust * r, clean.gradient, robust.gradient)
        loss = weights.clean * clean.loss + weights.robust * robust.loss
        norm = optax.tree.norm(gradient)
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        now = Totals(
            steps=jnp.float32(1),
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
            lead=state.lead,
            totals=jax.tree.map(jnp.add, state.totals, now),
            bad=state.bad._replace(streak=jnp.zeros((), jnp.int32)),
        )
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        # Too many in a row: the state stands still, until the host looks and stops.
        over = state.bad.streak > bad_steps

        def skipped() -> Bad:
            largest = jnp.stack([jnp.max(jnp.abs(g), initial=0) for g in jax.tree.leaves(gradient)])
            return Bad(
                skipped=state.bad.skipped + 1,
                streak=state.bad.streak + 1,
                step=state.step,
                largest=largest,
                clean_loss=clean.loss,
                robust_loss=robust.loss,
                clean_weight=weights.clean,
                robust_weight=weights.robust,
            )

        bad = jax.lax.cond(good | over, lambda: state.bad, skipped)
        same = state._replace(step=jnp.where(over, state.step, state.step + 1), bad=bad)
        # Whatever jax promotes to, with JAX_ENABLE_X64 for one: a state of other dtypes would be another program's.
        kept = jax.tree.map(lambda new, old: jnp.where(good & ~over, new.astype(old.dtype), old), new, same)
        return parallel.pin(kept, mesh, layout)

    def absent(state: TrainState) -> Part:
        zero = jnp.zeros((), jnp.float32)
        return parallel.pin(Part(zero, zero, jax.tree.map(jnp.zeros_like, state.params)), mesh, layout)

    def whole(
        state: TrainState, batch: Batch, pool: Batch, with_clean: bool, with_robust: bool | jax.Array
    ) -> tuple[TrainState, jax.Array]:
        one = clean(state, batch) if with_clean else absent(state)
        if isinstance(with_robust, bool):
            other = robust(state, pool) if with_robust else absent(state)
        else:
            other = jax.lax.cond(with_robust, lambda: robust(state, pool), lambda: absent(state))
        return update(state, one, other), one.loss + other.loss

    jitted = (jit_once(clean), jit_once(robust), jit_once(update, donate_argnums=0), jax.jit(absent))
    return Steps(*(parallel.settled(step, mesh) for step in jitted), whole=whole)


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
