"""An attack on what a network sees inside, rather than on its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mixtrain_jax.attacks.geometry import check
from mixtrain_jax.attacks.objectives import lead
from mixtrain_jax.attacks.pgd import StepSize, ascend, falling
from mixtrain_jax.attacks.search import LogitsFn, stepwise
from mixtrain_jax.bounds import Interval

FeaturesFn = Callable[[jax.Array], jax.Array]


class _Features(NamedTuple):
    of: FeaturesFn
    towards: bool  # the reference, or away from it


def feature(
    key: jax.Array,
    logits_fn: LogitsFn,
    x: jax.Array,
    labels: jax.Array,
    ball: Interval,
    *,
    features_fn: FeaturesFn,
    images: jax.Array | None = None,
    steps: int = 100,
    restarts: int = 1,
    step_size: StepSize = falling,
    momentum: float = 0.0,
    random_start: bool = True,
) -> jax.Array:
    """Gradient steps on the squared distance of intermediate features.

    Away from the features of `x`, or towards those of other images (Sabour et al., arXiv 1511.05122). It finds a way
    where the logits alone have no gradient to follow.

    Args:
      key: as for `pgd`.
      logits_fn: as for `pgd`; it decides which of the points met is the best.
      x: as for `pgd`.
      labels: as for `pgd`.
      ball: as for `pgd`.
      features_fn: `[n, ...] -> [n, ...]`, hashable: for instance a layer of the network.
      images: images `[n, ...]` whose features to come close to; None to leave those of `x`.
      steps: as for `pgd`.
      restarts: as for `pgd`.
      step_size: as for `pgd`.
      momentum: as for `pgd`.
      random_start: as for `pgd`. At `x` itself the distance to its own features has no gradient.

    Returns:
      As `pgd` does.

    Raises:
      BoundsError: as `pgd` does.
    """
    check(logits_fn, x, labels, ball)
    x, labels = jnp.asarray(x), jnp.asarray(labels)
    images = x if images is None else jnp.asarray(images)
    option = _Features(features_fn, images is not x)
    _, (features,) = stepwise(_only_features, logits_fn, features_fn, arrays=(key, x, labels, ball, images))
    return ascend(
        *(key, logits_fn, _of_features, option, x, ball, (labels, features(images))),
        **{"steps": steps, "restarts": restarts, "random_start": random_start},
        **{"step_size": step_size, "momentum": momentum},
    )


def _only_features(_: LogitsFn, features_fn: FeaturesFn) -> tuple[FeaturesFn]:
    return (features_fn,)


def _of_features(
    logits_fn: LogitsFn, features: _Features, points: jax.Array, goal: tuple[jax.Array, Any]
) -> tuple[jax.Array, jax.Array]:
    labels, reference = goal
    away = jnp.sum(jnp.square(features.of(points) - reference), axis=tuple(range(1, reference.ndim)))
    return -away if features.towards else away, lead(logits_fn(points), labels)
