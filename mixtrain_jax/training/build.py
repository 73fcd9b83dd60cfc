"""From a config to everything of a run that no step changes."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mixtrain_jax import bounds, data, mixing, models, objectives, parallel
from mixtrain_jax.attacks import LogitsFn
from mixtrain_jax.config import Config
from mixtrain_jax.errors import ConfigError
from mixtrain_jax.objectives import Objective
from mixtrain_jax.training.feed import make_feed
from mixtrain_jax.training.program import make_program
from mixtrain_jax.training.setup import Setup
from mixtrain_jax.training.state import NonFinite, Totals, TrainState
from mixtrain_jax.training.steps import make_steps


def prepare(config: Config, dataset: data.Dataset | None = None, mesh: Mesh | None = None) -> Setup:
    """Build network, rule, optimizer and steps, and the state that training starts from.

    Args:
      config: the experiment.
      dataset: what to train on; by default what the config names is loaded.
      mesh: the devices; by default all.

    Raises:
      ConfigError: where the config does not fit the data.
      DataError: where the data are missing or damaged.
    """
    dataset, mesh = dataset or data.load(config.data), mesh or parallel.data_mesh()
    train_split, heldout = dataset.hold_out(config.holdout)
    if config.batch_size > len(train_split):
        raise ConfigError(
            f"batch_size must be at most the {len(train_split)} training examples left, got {config.batch_size}."
        )
    count = len(train_split)
    total_steps = max(1, round(config.epochs * count / config.batch_size))
    network = models.build(
        config.model, classes=dataset.classes, width=config.width, normalization=dataset.normalization
    )
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    apply, example = models.pure_apply(network), heldout[:1].floats().images
    try:
        params = jax.jit(network.init)(init_key, example)
    except (ValueError, TypeError, ZeroDivisionError) as error:  # a layer has no pixels left
        raise ConfigError(
            f"The network {config.model} cannot take images of shape {list(example.shape[1:])}, those of "
            f"{config.data}: {str(error).splitlines()[0]}."
        ) from error
    eps = radius(config, total_steps)
    tx = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(learning_rate(config, total_steps), weight_decay=config.weight_decay),
    )
    objective = make_objective(config, functools.partial(apply, params), example.shape[1:])
    rule = make_rule(config, total_steps)
    steps = make_steps(
        apply,
        objective,
        domain=dataset.domain,
        eps=eps,
        key=step_key,
        rule=rule,
        tx=tx,
        steps_per_epoch=count / config.batch_size,
        bad_steps=config.bad_steps,
        microbatches=config.microbatches,
        mesh=mesh,
        layout=config.params,
    )
    initial = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        mix_state=rule.init(),
        gap=jnp.zeros((), jnp.float32),
        totals=Totals.zeros(objective),
        bad=NonFinite.none(params, objective),
    )
    initial = parallel.put(initial, mesh, config.params)
    feed = make_feed(config, train_split, jax.random.fold_in(step_key, 1), mesh)
    program = make_program(config, objective, steps, feed, mesh)
    return Setup(
        config,
        dataset,
        train_split,
        heldout,
        apply,
        objective,
        feed,
        steps,
        program,
        rule,
        eps,
        total_steps,
        mesh,
        initial,
    )


def learning_rate(config: Config, total_steps: int) -> optax.Schedule:
    """The step of the optimizer at every step of training: up in a line, down by a cosine."""
    if not (warmup := round(config.warmup * total_steps)):
        return optax.cosine_decay_schedule(config.learning_rate, total_steps)
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(warmup + 1, total_steps))


def radius(config: Config, total_steps: int) -> optax.Schedule:
    """The radius that is trained on at every step, in pixel units.

    The smooth one is that of Xu et al. (arXiv 2002.12920, `SmoothedScheduler` of their code): the parts meet with one
    slope. Interval bounds of a new deep network are off by orders of magnitude more than those of a trained one, which
    a line jumps over in a few steps.
    """
    end, last = config.eps * config.train_eps_ratio, max(1, round(config.ramp * total_steps))
    if config.ramp_shape == "linear":
        return optax.linear_schedule(0.0, end, last)
    bend = 0.25
    height = end / (1 + 4 * (1 - bend) / bend)  # at the bend

    def smooth(step: jax.typing.ArrayLike) -> jax.Array:
        done = jnp.minimum(jnp.asarray(step, jnp.float32) / last, 1.0)
        line = end - (end - height) * (1 - done) / (1 - bend)
        return jnp.where(done < bend, height * (done / bend) ** 4, line)

    return smooth


def method(config: Config) -> bounds.Method:
    """The bound that held-out examples are measured with."""
    return bounds.method(config.bound)


def make_objective(config: Config, logits_fn: LogitsFn, shape: Sequence[int]) -> Objective:
    """The terms that a config names, in microbatches that are fast for this network and this shape of an image."""
    match config.trainer:
        case "standard":
            terms = objectives.standard(config.compute)
        case "pgd":
            terms = objectives.pgd(config.train_attack_steps, config.compute)
        case "robust":
            terms = objectives.robust(config.bound, config.compute)
        case "mixtrain":
            terms = objectives.mixtrain(
                config.bound,
                config.robust_examples,
                replace=config.replace and config.subsample == "batch",
                probability=config.robust_probability,
                dtype=config.compute,
            )
    if config.mixing == "convex" and config.share == 1:  # a loss that weighs nothing is not computed
        terms = {name: term for name, term in terms.items() if name != "clean"} or terms
    sizes = {name: config.robust_group if name != "clean" else 0 for name in terms}
    return {
        name: term._replace(microbatch=sizes[name] or bounds.group_size(term.loss.method, logits_fn, shape))
        for name, term in terms.items()
    }


def make_rule(config: Config, total_steps: int) -> mixing.MixRule:
    """The mixing rule that a config names; a single loss has nothing to be weighed against."""
    if config.trainer in ("standard", "pgd"):
        return mixing.constant(1.0)
    match config.mixing:
        case "authors":
            return mixing.staircase(config.ramp * config.epochs)
        case "constant":
            return mixing.constant(config.weight)
        case "schedule":
            return mixing.schedule(optax.linear_schedule(0.0, config.weight, max(1, round(config.ramp * total_steps))))
        case "convex":
            return mixing.convex(config.share)
        case "constrained":
            tx = optax.sgd(config.mixing_learning_rate)
            return mixing.constrained(config.target, tx, start=config.share)
        case "mgda":
            return mixing.mgda()
        case "balanced":
            return mixing.balanced()
