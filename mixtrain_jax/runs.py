"""A network that was trained before, read from the folder of its run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax import checkpoints, data, models
from mixtrain_jax.config import Config, of_run
from mixtrain_jax.errors import CheckpointError


class Run(NamedTuple):
    """A trained network and what it was trained for.

    Attributes:
      apply: `(params, images [n, height, width, channels]) -> logits [n, classes]`, float32, a pure function.
      params: a pytree of arrays.
      config: the experiment.
      domain: lowest and highest value of a pixel.
      eps: radius in pixel units that the run certifies, in the l-infinity norm.
    """

    apply: Callable[[Any, jax.Array], jax.Array]
    params: Any
    config: Config
    domain: tuple[float, float]
    eps: float


def load_run(path: str | Path, *, tell: Callable[[str], None] = lambda line: None) -> Run:
    """Read the network of a run: the one that its config chooses, from the newest whole checkpoint.

    Neither data nor optimizer are touched, nothing in the folder changes, and training may be in progress there.

    Args:
      path: folder of the run.
      tell: is called with one line for every damaged checkpoint that is passed over.

    Raises:
      ConfigError: where this is no folder of a run.
      CheckpointError: where it holds no whole checkpoint of this network.
    """
    folder = Path(path).absolute()
    config = of_run(folder)
    known = data.signature(config.data.name)
    network = models.build(
        config.model.name, classes=known.classes, width=config.model.width, normalization=known.normalization
    )
    image = jax.ShapeDtypeStruct((1, *known.shape), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), image)
    step = np.int64(0)
    wanted = {"state": {"params": params}, "best": {"step": step, "params": params}}
    if config.training.choose != "best":
        del wanted["best"]
    found = checkpoints.load(folder / "checkpoints", wanted, tell)
    if found is None:
        raise CheckpointError(f"{folder} holds no checkpoint yet; train it first.")
    best = found.get("best", {"step": 0})
    chosen = best if best["step"] else found["state"]
    params = jax.tree.map(jnp.asarray, chosen["params"])
    return Run(models.pure_apply(network), params, config, known.domain, config.threat.eps)
