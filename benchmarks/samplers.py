"""Does it pay to choose the few examples of the robust loss, and not to draw them uniformly?

    python benchmarks/samplers.py [--few 4 16] [--seeds 0 1 2]

Digits, trained without one block of writers and measured on it, for four blocks. A sampler gives each example of the
batch a score, and examples are drawn with replacement in proportion to it, a fifth of them uniformly. `weighed` divides
losses by their probabilities, so that the estimate stays unbiased; `plain` does not, and so trains on other examples
than the average one. Scores:

    margin   examples of small clean margin, at the cost of a forward pass
    oracle   the share that the worst case leaves to other classes, which takes bounds of the whole batch: what a
             perfect guess would be worth, its own cost left out
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

import digits_folds
import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax import bounds, data, losses
from mixtrain_jax.config import of_flags
from mixtrain_jax.training.build import measured_by, prepare
from mixtrain_jax.training.setup import Setup
from mixtrain_jax.training.state import TrainState
from mixtrain_jax.training.steps import Batch, LossAndGrad

UNIFORM = 0.2  # share that is drawn uniformly
KINDS = ("uniform", "margin weighed", "margin plain", "oracle weighed", "oracle plain")


def with_sampler(setup: Setup, kind: str) -> Setup:
    """The setup with another way to draw the examples of the robust loss."""
    if kind == "uniform":
        return setup
    score_name, weighing = kind.split()
    config, key = setup.config, jax.random.key(setup.config.seed + 1000)

    def worst(params: Any, batch: Batch, eps: jax.Array) -> jax.Array:
        ball = bounds.linf_ball(batch.images, eps, setup.dataset.domain)
        return bounds.margins(measured_by(setup.objective), functools.partial(setup.apply, params))(ball, batch.labels)

    def score(state: TrainState, pool: Batch, eps: jax.Array) -> jax.Array:
        if score_name == "oracle":
            return 1 - jnp.exp(-losses.robust_loss(worst(state.params, pool, eps)))
        margin = worst(state.params, pool, jnp.zeros(())).min(-1)  # at radius 0: the clean one
        return jax.nn.sigmoid(jnp.median(margin) - margin)

    @jax.jit
    def robust(state: TrainState, pool: Batch) -> LossAndGrad:
        step_key, n = jax.random.fold_in(key, state.step), len(pool.labels)
        eps = jnp.asarray(setup.eps(state.step))
        scores = score(state, pool, eps)
        share = (1 - UNIFORM) * scores / scores.sum() + UNIFORM / n
        chosen = jax.random.categorical(step_key, jnp.log(share), shape=(config.objective.examples,))
        weight = 1 / (n * share[chosen]) if weighing == "weighed" else jnp.ones(chosen.shape)
        batch = Batch(pool.images[chosen], pool.labels[chosen])

        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            lower = worst(params, batch, eps)
            return (weight * losses.robust_loss(lower)).mean(), (lower > 0).all(-1).mean()

        (value, accuracy), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        return LossAndGrad(value, accuracy, gradient)

    return setup._replace(steps=setup.steps._replace(terms={**setup.steps.terms, "robust": robust}))


def main() -> None:
    """Print a line a sampler."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", nargs="+", type=int, default=[4, 16], help="examples of 128 with a robust loss")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    dataset = data.load("digits")
    for few in arguments.few:
        for kind in KINDS:
            found = []
            for seed in arguments.seeds:
                config = of_flags(
                    {
                        **{"model.width": 512, "training.epochs": 120, "data.holdout": 1, "objective.examples": few},
                        **{"mixing.name": "convex", "mixing.share": 0.5, "seed": seed},
                    }
                )
                blocks = [digits_folds.fold(dataset, i) for i in range(digits_folds.BLOCKS)]
                setups = [with_sampler(prepare(config, block), kind) for block in blocks]
                found.append(np.mean([digits_folds.trained_accuracies(setup) for setup in setups], axis=0))
            (clean, verified), (_, deviation) = np.mean(found, axis=0), np.std(found, axis=0, ddof=1)
            print(f"{few:3} of 128, {kind:15} clean {clean:.1%}  verified {verified:.1%} ± {deviation:.1%}", flush=True)


if __name__ == "__main__":
    main()
