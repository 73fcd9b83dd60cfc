"""From a config to everything of a run that no step changes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mixtrain_jax import bounds, data, mixing, models, parallel
from mixtrain_jax.attacks import LogitsFn
from mixtrain_jax.config import Config
from mixtrain_jax.errors import ConfigError
from mixtrain_jax.objectives import Objective
from mixtrain_jax.reparam import wrapped
from mixtrain_jax.threat import Threat
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
    if config.certify.complete and jax.process_count() > 1:
        raise ConfigError(
            "certify.complete needs a single process, for verdicts depend on clocks; leave it out, and run "
            "`mixtrain judge RUN --complete SECONDS` afterwards."
        )
    dataset, mesh = dataset or data.load(config.data.name), mesh or parallel.data_mesh()
    train_split, heldout = dataset.hold_out(config.data.holdout)
    n = config.training.batch_size
    if n > len(train_split):
        raise ConfigError(
            f"training.batch_size must be at most the {len(train_split)} training examples left, got {n}."
        )
    count = len(train_split)
    total_steps = max(1, round(config.training.epochs * count / n))
    network = models.predictor(
        **dataclasses.asdict(config.model), classes=dataset.classes, normalization=dataset.normalization
    )
    predictor = wrapped(config.reparam, network)
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    apply, example = predictor.apply, heldout[:1].floats().images
    try:
        params = jax.jit(predictor.init)(init_key, example)
    except (ValueError, TypeError, ZeroDivisionError) as error:  # a layer has no pixels left
        raise ConfigError(
            f"The network {config.model.name} cannot take images of shape {list(example.shape[1:])}, those of "
            f"{config.data.name}: {str(error).splitlines()[0]}."
        ) from error
    threat = Threat(config.threat.eps, dataset.domain, config.threat.norm)
    eps = config.radius.radii(config.threat.eps, total_steps)
    rates = config.schedule.rates(config.optimizer.learning_rate, total_steps)
    tx = config.optimizer.transformation(rates)
    objective = make_objective(config, functools.partial(apply, params), example.shape[1:])
    rule = make_rule(config, objective, total_steps)
    steps = make_steps(
        apply,
        objective,
        threat=threat,
        eps=eps,
        key=step_key,
        rule=rule,
        tx=tx,
        steps_per_epoch=count / n,
        bad_steps=config.training.bad_steps,
        microbatches=config.training.microbatches,
        mesh=mesh,
        layout=config.training.params,
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
    initial = parallel.put(initial, mesh, config.training.params)
    feed = make_feed(config, train_split, jax.random.fold_in(step_key, 1), mesh)
    program = make_program(config, objective, steps, feed, mesh)
    return Setup(
        config,
        dataset,
        train_split,
        heldout,
        apply,
        network.apply,
        objective,
        feed,
        steps,
        program,
        rule,
        threat,
        eps,
        rates,
        total_steps,
        mesh,
        initial,
    )


def measured_by(objective: Objective) -> bounds.Method:
    """The bound that held-out examples are measured with: that of the objective, interval bounds where it has none."""
    return next((term.loss.method for term in objective.values() if term.loss.method), bounds.method("ibp"))


def make_objective(config: Config, logits_fn: LogitsFn, shape: Sequence[int]) -> Objective:
    """The terms that a config names, in microbatches that are fast for this network and this shape of an image."""
    return {
        name: term._replace(microbatch=term.microbatch or bounds.group_size(term.loss.method, logits_fn, shape))
        for name, term in config.objective.objective(config.training.compute).items()
    }


def make_rule(config: Config, objective: Objective, total_steps: int) -> mixing.MixRule:
    """The mixing rule that a config names; a single loss has nothing to be weighed against."""
    if len(objective) == 1:
        return mixing.constant(1.0)
    return config.mixing.rule(mixing.Horizon(total_steps, config.training.epochs, config.radius.ramp))
