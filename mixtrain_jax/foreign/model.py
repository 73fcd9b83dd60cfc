"""What a model from elsewhere is once it has been read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mixtrain_jax.bounds import BoundsError
from mixtrain_jax.bounds.batch_axis import batch_dependence
from mixtrain_jax.bounds.errors import check_classes
from mixtrain_jax.bounds.independence import refuse_mixing
from mixtrain_jax.errors import ModelError, first_line


class Model(NamedTuple):
    """A classifier: `apply(params, images[n, *shape]) -> logits [n, classes]`, images and logits float32.

    Attributes:
      apply: a pure function of parameters and images.
      params: a pytree of arrays.
      name: where it came from, for reports.
      shape: shape of one image; None for a dimension, or for all of it, that is not known.
      classes: number of logits; None where it is not known because the shape is not.
    """

    apply: Callable[[Any, jax.Array], jax.Array]
    params: Any
    name: str
    shape: tuple[int | None, ...] | None
    classes: int | None


def checked(model: Model, count: int = 3, *, alone: bool = True) -> Model:
    """The model with its number of classes, found from its jaxpr alone: nothing is computed.

    Args:
      model: a model; where its shape is not known, it comes back as it is.
      count: how many images to ask about.
      alone: whether the model takes a single image.

    Raises:
      ModelError: where the logits of n images are not float32 `[n, classes]` of at least two classes, or asking for
        them fails; where they certainly depend on other images of the batch.
    """
    if model.shape is None or None in model.shape:
        return model
    images = jax.ShapeDtypeStruct((count, *model.shape), jnp.float32)
    try:
        verdict, logits = batch_dependence(functools.partial(model.apply, model.params), images, alone=alone)
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
        check_classes(model.name, logits.shape)
        refuse_mixing(verdict)
    except BoundsError as error:
        raise ModelError(f"{model.name} is refused. {error}") from error
    return model._replace(classes=logits.shape[1])
