"""The jitted functions of a training step: the gradient of each term of the objective, and the update.

They are apart so that each term has its own batch size, k of n, and can be left out of a step altogether.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mixtrain_jax import parallel, subsample
from mixtrain_jax.bounds.cpu import ordered
from mixtrain_jax.bounds.loops import total
from mixtrain_jax.losses import Context
from mixtrain_jax.mixing import Metrics, MixRule, Signals, Weights
from mixtrain_jax.objectives import Objective, Term
from mixtrain_jax.threat import Threat
from mixtrain_jax.training.state import NonFinite, TermTotals, Totals, TrainState

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


class LossAndGrad(NamedTuple):
    """One term on its examples: the mean loss, the accuracy in the sense of the loss, and the gradient of the mean."""

    loss: jax.Array
    accuracy: jax.Array
    gradient: Any


Parts = Mapping[str, LossAndGrad]


class Steps(NamedTuple):
    """The jitted functions of one training step.

    Attributes:
      terms: by name, `(state, examples) -> LossAndGrad`; a term of k examples draws them from what it is given.
      update: `(state, parts) -> state`, of all terms.
      skipped: `state -> LossAndGrad`, stands for a term that a step goes without.
      fused: `(state, batch, pool, present) -> (state, loss)`, the whole step, to be compiled with others; `present`
        says by name which terms it has.
    """

    terms: dict[str, Callable[[TrainState, Batch], LossAndGrad]]
    update: Callable[[TrainState, Parts], TrainState]
    skipped: Callable[[TrainState], LossAndGrad]
    fused: Callable[[TrainState, Batch, Batch, Mapping[str, bool | jax.Array]], tuple[TrainState, jax.Array]]


def make_steps(
    apply: Apply,
    objective: Objective,
    *,
    threat: Threat,
    eps: optax.Schedule,
    key: jax.Array,
    rule: MixRule,
    tx: optax.GradientTransformation,
    steps_per_epoch: float,
    bad_steps: int = 0,
    microbatches: int = 0,
    mesh: Mesh | None = None,
    layout: parallel.Layout = "replicated",
) -> Steps:
    """Build the steps of one run.

    Args:
      apply: `(params, images) -> logits`.
      objective: the terms.
      threat: norm and domain of the perturbations.
      eps: radius at a step, in pixel units.
      key: of subsamples and attacks; a step's own key is folded from it, so a resumed run draws the same ones.
      rule: weighs the terms.
      tx: optimizer.
      steps_per_epoch: steps in one pass over the training data.
      bad_steps: how many steps in a row may be skipped; after one more the state stands still.
      microbatches: parts of a batch whose gradients are summed in a fixed order, for the same bits on any number of
        devices; 0 for sums in the order that is fastest. Needs a mesh, and a replicated state.
      mesh: the devices; None for one.
      layout: of the state on them; `rows` is none for a state.
    """
    names = tuple(objective)  # pytrees sort the keys of a dict

    def make_term(name: str, term: Term) -> Callable[[TrainState, Batch], LossAndGrad]:
        term_apply = apply if term.dtype == "float32" else computed_in(apply, term.dtype)

        def mean(params: Any, step: jax.Array, rows: Rows) -> tuple[jax.Array, jax.Array]:
            images, labels, weights, number = rows
            key_of_group = jax.random.fold_in(jax.random.fold_in(key, step), number[0])
            radius = jnp.asarray(eps(step), images.dtype)
            values = term.loss(Context(key_of_group, term_apply, params, images, labels, radius, threat))
            return (weights * values.loss).sum(), jnp.where(values.correct, weights, 0).sum()

        gradients = ordered(jax.value_and_grad(mean, has_aux=True))

        def summed(whole: tuple[Any, jax.Array], rows: Rows, size: int | None) -> Any:
            return total(lambda rows: gradients(*whole, rows), rows, size)

        def loss_and_grad(state: TrainState, batch: Batch) -> LossAndGrad:
            if term.examples is not None and (term.replace or term.examples < len(batch)):
                batch = drawn(jax.random.fold_in(key, state.step), batch, term.examples, term.replace, mesh)
            params = parallel.constrain(
                state.params, mesh, "replicated"
            )  # split ones come together for as long as it takes
            whole = (params, state.step)
            if microbatches and mesh is not None:
                rows, size = microbatched(batch, term.microbatch, mesh, microbatches)
                each = functools.partial(summed, size=size)
                (value, accuracy), gradient = parallel.sum_microbatches(each, whole, rows, mesh, microbatches)
            else:
                (value, accuracy), gradient = summed(whole, *grouped(batch, term.microbatch, mesh))
            return parallel.constrain(LossAndGrad(value, accuracy, gradient), mesh, layout)

        loss_and_grad.__name__ = name  # what profiles and errors call it
        return loss_and_grad

    def update(state: TrainState, parts: Parts) -> TrainState:
        gradients = [parts[name].gradient for name in names]
        weights, mix_state = rule.update(signals(state, parts, gradients), state.mix_state)
        gradient = jax.tree.map(lambda *leaves: weighted(weights, dict(zip(names, leaves, strict=True))), *gradients)
        loss = weighted(weights, {name: parts[name].loss for name in names})
        norm = optax.tree.norm(gradient)
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        now = {name: TermTotals(parts[name].loss, parts[name].accuracy, weights[name]) for name in names}
        new = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            mix_state=mix_state,
            gap=state.gap,
            totals=jax.tree.map(jnp.add, state.totals, Totals(jnp.float32(1), loss, norm, now)),
            bad=state.bad._replace(streak=jnp.zeros((), jnp.int32)),
        )
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        # Too many in a row: the state stands still, until the host looks and stops.
        over = state.bad.streak > bad_steps

        def skipped() -> NonFinite:
            return NonFinite(
                skipped=state.bad.skipped + 1,
                streak=state.bad.streak + 1,
                step=state.step,
                largest=jnp.stack([jnp.max(jnp.abs(g), initial=0) for g in jax.tree.leaves(gradient)]),
                loss={name: parts[name].loss for name in names},
                weight={name: weights[name] for name in names},
            )

        bad = jax.lax.cond(good | over, lambda: state.bad, skipped)
        same = state._replace(step=jnp.where(over, state.step, state.step + 1), bad=bad)
        # Whatever jax promotes to, with JAX_ENABLE_X64 for one: a state of other dtypes would be another program's.
        kept = jax.tree.map(lambda new, old: jnp.where(good & ~over, new.astype(old.dtype), old), new, same)
        return parallel.constrain(kept, mesh, layout)

    def signals(state: TrainState, parts: Parts, gradients: Sequence[Any]) -> Signals:
        metrics = {name: Metrics(parts[name].loss, parts[name].accuracy) for name in names}
        first = metrics[names[0]]
        metrics[names[0]] = first._replace(accuracy=first.accuracy - state.gap)
        products = None
        if rule.needs_products:
            products = jnp.stack([jnp.stack([optax.tree.vdot(a, b) for b in gradients]) for a in gradients])
        return Signals(state.step, state.step.astype(jnp.float32) / steps_per_epoch, metrics, products)

    def skipped(state: TrainState) -> LossAndGrad:
        zero = jnp.zeros((), jnp.float32)
        return parallel.constrain(LossAndGrad(zero, zero, jax.tree.map(jnp.zeros_like, state.params)), mesh, layout)

    terms = {name: make_term(name, term) for name, term in objective.items()}

    def fused(
        state: TrainState, batch: Batch, pool: Batch, present: Mapping[str, bool | jax.Array]
    ) -> tuple[TrainState, jax.Array]:
        parts = {}
        for name, term in objective.items():
            compute = functools.partial(terms[name], state, batch if term.examples is None else pool)
            none, which = functools.partial(skipped, state), present[name]
            if isinstance(which, bool):
                parts[name] = compute() if which else none()
            else:
                parts[name] = jax.lax.cond(which, compute, none)
        return update(state, parts), sum((part.loss for part in parts.values()), jnp.float32(0))

    return Steps(
        {name: parallel.blocking(jit_once(term), mesh) for name, term in terms.items()},
        parallel.blocking(jit_once(update, donate_argnums=0), mesh),
        parallel.blocking(jax.jit(skipped), mesh),
        fused,
    )


def drawn(key: jax.Array, pool: Batch, k: int, replace: bool, mesh: Mesh | None) -> Batch:
    """A uniform subsample of k examples, an equal share for every device, wherever the examples were."""
    chosen = subsample.draw(key, len(pool), k, replace=replace)
    if mesh is not None:
        chosen = chosen[np.minimum(np.arange(parallel.padded(k, mesh)), k - 1)]
    return Batch(*parallel.constrain((pool.images[chosen], pool.labels[chosen]), mesh, "rows"), count=k)


def weighted(weights: Weights, terms: Mapping[str, jax.Array]) -> jax.Array:
    """The weighted sum of the terms, in their order."""
    return functools.reduce(jnp.add, [weights[name] * value for name, value in terms.items()])


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
