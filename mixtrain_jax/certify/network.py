"""What a network must be before anything is claimed of it: logits of at least two classes, each image by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.attacks import LogitsFn
from mixtrain_jax.bounds import BoundsError, independence
from mixtrain_jax.bounds.errors import check_classes, check_labels
from mixtrain_jax.data import Split


def check_network(
    logits_fn: LogitsFn,
    split: Split,
    batch_size: int,
    *,
    logits_of: Callable[[np.ndarray], Any] | None = None,
    claims: bool = True,
) -> None:
    """Refuse networks and labels about which nothing can be said.

    Args:
      logits_fn: `[n, ...] -> [n, classes]`.
      split: float images and labels.
      batch_size: that the network is used with.
      logits_of: computes `logits_fn` on concrete arrays; by default compiled for each size.
      claims: whether robustness is claimed of it, not only measured by attacks. Then the logits of some images are
        compared between batches also where the jaxpr shows that images don't mix: logits may still depend on the place
        in the batch, as those of a network with random noise do.

    Raises:
      BoundsError: where there are fewer than two logits an image, labels are no classes, or images mix.
    """
    shape = jax.ShapeDtypeStruct((batch_size, *split.images.shape[1:]), split.images.dtype)
    verdict, logits = independence.read_batch(logits_fn, shape)
    found = getattr(logits, "shape", (type(logits).__name__,))
    if len(found) != 2 or found[0] != verdict.size:
        wanted = [verdict.size, *split.images.shape[1:]]
        raise BoundsError(f"An evaluation wants logits [n, classes] of images {wanted}, got {list(found)}.")
    check_classes("An evaluation", logits.shape)
    check_labels("An evaluation", split.labels, logits.shape[1])
    independence.refuse_mixing(verdict)
    if len(split) and (claims or verdict.kind == "undecided"):
        sizes = [batch_size] if verdict.kind == "independent" else sorted({2, 3, batch_size})
        compiled = jax.jit(logits_fn)
        of = logits_of or (lambda images: compiled(jnp.asarray(images)))
        independence.compare_batches(of, split.images, sizes, verdict)
