"""What a model from elsewhere is once it has been read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.bounds import BoundsError
from mixtrain_jax.bounds.batch_axis import Verdict, batch_dependence
from mixtrain_jax.bounds.errors import check_classes
from mixtrain_jax.bounds.independence import compare_batches, refuse_mixing
from mixtrain_jax.errors import ModelError, first_line

_EVEN = 20  # times as many images, for a batch that divides by most numbers of classes


class Model(NamedTuple):
    """A classifier: `apply(params, images[n, *shape]) -> logits [n, classes]`, images and logits float32.

    Attributes:
      apply: a pure function of parameters and images.
      params: a pytree of arrays.
      name: where it came from, for reports.
      shape: shape of one image; None for a dimension, or for all of it, that is not known.
      classes: number of logits; None where it is not known because the shape is not.
      notes: sentences on how it was read, for reports.
      structure: digest of `apply`: functions of the same digest compute the same of the same parameters; empty where it
        is not known.
    """

    apply: Callable[[Any, jax.Array], jax.Array]
    params: Any
    name: str
    shape: tuple[int | None, ...] | None
    classes: int | None
    notes: tuple[str, ...] = ()
    structure: str = ""


def checked(model: Model, count: int = 3, *, run: bool = False, least: int = 2) -> Model:
    """The model with its number of classes, found from its jaxpr.

    Args:
      model: a model; where its shape is not known, it comes back as it is.
      count: how many images to ask about.
      run: whether to run it on a few random images where its jaxpr leaves open whether it mixes the images of a batch.
        Otherwise nothing is computed.
      least: number of outputs; 1 for networks that need not be classifiers.

    Raises:
      ModelError: where the logits of n images are not float32 `[n, classes]` of at least `least` classes, or asking
        for them fails; where they depend on other images of the batch.
    """
    if model.shape is None or None in model.shape:
        return model
    images = jax.ShapeDtypeStruct((count, *model.shape), jnp.float32)
    try:
        verdict, logits = batch_dependence(functools.partial(model.apply, model.params), images, alone=run)
    except ModelError:
        raise
    except Exception as error:  # whatever the model's own code raises
        raise ModelError(
            f"{model.name} cannot take images of shape {list(images.shape)}: {first_line(error)}"
        ) from error
    if not isinstance(logits, jax.ShapeDtypeStruct):
        raise ModelError(f"{model.name} must return one array of logits, got {type(logits).__name__}.")
    if len(logits.shape) != 2 or logits.shape[0] != count or logits.dtype != jnp.float32:
        raise ModelError(
            f"{model.name} must map images {list(images.shape)} to float32 logits [{count}, classes], "
            f"got {logits.dtype}{list(logits.shape)}."
        )
    try:
        if logits.shape[1] < least:
            check_classes(model.name, logits.shape)
        refuse_mixing(verdict)
        refuse_mixing(_at_another_size(model, images, verdict))
        if run and verdict.kind == "undecided":
            none = np.zeros((0, *images.shape[1:]), np.float32)
            compare_batches(lambda x: model.apply(model.params, jnp.asarray(x)), none, [2, count], verdict)
    except BoundsError as error:
        raise ModelError(f"{model.name} is refused. {error}") from error
    return model._replace(classes=logits.shape[1])


def _at_another_size(model: Model, images: jax.ShapeDtypeStruct, verdict: Verdict) -> Verdict:
    """The verdict where an open one may not be: images that a reshape cuts apart can be followed at some sizes."""
    if verdict.kind != "undecided":
        return verdict
    images = jax.ShapeDtypeStruct((_EVEN * images.shape[0], *images.shape[1:]), images.dtype)
    try:
        return batch_dependence(functools.partial(model.apply, model.params), images, alone=False)[0]
    except Exception:  # of a model of so many images alone
        return verdict
