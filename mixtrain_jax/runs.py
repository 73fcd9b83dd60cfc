"""A network that was trained before, read from the folder of its run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax import checkpoints, data, models
from mixtrain_jax.config import Config, of_run
from mixtrain_jax.errors import CheckpointError, ConfigError
from mixtrain_jax.reparam import wrapped
from mixtrain_jax.schema import Foreign
from mixtrain_jax.threat import Threat


class Run(NamedTuple):
    """A trained network and what it was trained for.

    Attributes:
      apply: `(params, images [n, height, width, channels]) -> logits [n, classes]`, float32, a pure function.
      params: a pytree of arrays.
      config: the experiment.
      domain: lowest and highest value of a pixel.
      threat: what the run certifies against: radius in pixel units, domain, norm.
    """

    apply: Callable[[Any, jax.Array], jax.Array]
    params: Any
    config: Config
    domain: tuple[float, float]
    threat: Threat

    @property
    def eps(self) -> float:
        """Radius in pixel units that the run certifies."""
        return self.threat.eps


def load_run(path: str | Path, *, tell: Callable[[str], None] = lambda line: None) -> Run:
    """Read the network of a run: the one that its config chooses, from the newest whole checkpoint.

    Neither data nor optimizer are touched, nothing in the folder changes, and training may be in progress there.

    Args:
      path: folder of the run.
      tell: is called with one line for every damaged checkpoint that is passed over.

    Raises:
      ConfigError: where this is no folder of a run, or its reparam is a class of somebody's own.
      CheckpointError: where it holds no whole checkpoint of this network.
    """
    folder = Path(path).absolute()
    config = of_run(folder)
    known = data.signature(config.data.name)
    network = models.predictor(
        **dataclasses.asdict(config.model), classes=known.classes, normalization=known.normalization
    )
    if isinstance(config.reparam, Foreign):
        raise ConfigError(
            f"{folder}: its reparam is {config.reparam.name}, a class of somebody's own, which is not imported."
        )
    image = jax.ShapeDtypeStruct((1, *known.shape), jnp.float32)
    params = jax.eval_shape(wrapped(config.reparam, network).init, jax.random.key(0), image)
    step = np.int64(0)
    wanted = {"state": {"params": params}, "best": {"step": step, "params": params}}
    if config.training.choose != "best":
        del wanted["best"]
    found = checkpoints.load(folder / "checkpoints", wanted, tell)
    if found is None:
        raise CheckpointError(f"{folder} holds no checkpoint yet; train it first.")
    best = found.get("best", {"step": 0})
    chosen = best if best["step"] else found["state"]
    params = jax.jit(config.reparam.realise)(jax.tree.map(jnp.asarray, chosen["params"]))
    return Run(network.apply, params, config, known.domain, Threat(config.threat.eps, known.domain, config.threat.norm))
