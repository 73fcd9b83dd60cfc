"""Networks that mix the images of a batch are refused: what is proved of one image would not hold in a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.bounds.batch_axis import Verdict, batch_dependence
from mixtrain_jax.bounds.errors import BoundsError
from mixtrain_jax.bounds.interval import concrete

_IMAGES = 6  # that are compared
_MOST = 32  # images of a batch, where nobody says how many are used
_ULPS = 4.0  # by which pixels are moved to see what rounding alone can change
_ADVICE = (
    "Logits of an image must depend on that image alone. Let batch norm use its running averages, reduce over axes "
    ">= 1 only, or write the network for one image and apply jax.vmap."
)


def read_batch(f: Callable[[jax.Array], Any], images: jax.Array | jax.ShapeDtypeStruct) -> tuple[Verdict, Any]:
    """The verdict on a network for the batch of these images, or for two where there is one; and its logits' shape."""
    shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
    if shape.shape[0] > 1:
        return batch_dependence(f, shape)
    try:
        return batch_dependence(f, jax.ShapeDtypeStruct((2, *images.shape[1:]), images.dtype))
    except Exception:  # of a function that takes one image alone, or none
        return batch_dependence(f, shape)


def refuse_mixing(verdict: Verdict) -> None:
    """Refuse a network whose jaxpr mixes the images of a batch for certain.

    Raises:
      BoundsError: naming the operation and the user's line.
    """
    if verdict.kind == "mixing":
        raise BoundsError(f"The network mixes the images of a batch: {verdict.cause}.\n  {_ADVICE}")


def check_independent(f: Callable[[jax.Array], Any], images: jax.Array, verdict: Verdict) -> None:
    """Refuse a network that mixes the images of a batch, as its jaxpr says; where that leaves it open, as numbers say.

    Numbers are compared where images and parameters have values, that is outside `jax.jit`.

    Raises:
      BoundsError: as `refuse_mixing` and `compare_batches` do.
    """
    refuse_mixing(verdict)
    if verdict.kind == "independent" or (values := concrete(images)) is None:
        return
    sizes = sorted({2, 3, min(max(len(values), 1), _MOST)})
    try:
        with jax.default_matmul_precision("highest"):
            compare_batches(lambda x: f(jnp.asarray(x)), values, sizes, verdict)
    except jax.errors.TracerArrayConversionError:
        return  # parameters are traced


def compare_batches(
    logits_of: Callable[[np.ndarray], Any], images: np.ndarray, sizes: Sequence[int], verdict: Verdict
) -> None:
    """Refuse a network whose logits of an image change with the batch that the image is in.

    Logits of single images are held against those in batches of several sizes and orders. They have to agree to half of
    the digits of the coarsest dtype, relative to the largest logit, or as far as they change where pixels move by a few
    roundings: sums in another order do no more.

    Args:
      logits_of: `[n, ...] -> [n, classes]`, on concrete arrays, for `n` of 1 and of the sizes.
      images: some of the data, `[any, ...]`; random ones of the same range are put beside them.
      sizes: of the batches.
      verdict: what the jaxpr said.

    Raises:
      BoundsError: naming the change, and the operation that the jaxpr leaves undecided.
    """
    images = _different(images)
    alone = _alone(logits_of, images)
    tolerance = verdict.eps**0.5 * np.max(np.abs(alone), initial=0, where=np.isfinite(alone))
    for size in sizes:
        for order in (np.arange(size), np.arange(size)[::-1] * 5 + 2):
            rows = order % len(images)
            logits = np.asarray(logits_of(images[rows]), np.float64)
            away = _distance(logits, alone[rows])
            if away.max(initial=0) > tolerance:
                allowed = tolerance + 4 * _sensitivity(logits_of, images, alone)
                if away.max() > allowed:
                    row = int(np.argmax(away))
                    raise BoundsError(_message(away[row], np.abs(alone[rows[row]]).max(), size, verdict))


def random_images(shape: Sequence[int], like: np.ndarray | None = None) -> np.ndarray:
    """Float32 images, uniform over the range of others, by default 0 to 1; the same ones every time."""
    low, high = (0.0, 1.0) if like is None or not like.size else (float(like.min()), float(like.max()))
    return np.random.default_rng(0).uniform(low, max(high, low + 1e-3), shape).astype(np.float32)


def _different(images: np.ndarray) -> np.ndarray:
    """Images that differ: a batch of copies would hide what is mixed."""
    images = np.asarray(images)[: _IMAGES // 2]
    more = random_images((_IMAGES - len(images), *images.shape[1:]), images)
    return np.concatenate([images, more.astype(images.dtype)])


def _alone(logits_of: Callable[[np.ndarray], Any], images: np.ndarray) -> np.ndarray:
    return np.concatenate([np.asarray(logits_of(image[None]), np.float64) for image in images])


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Largest difference of each row, `[n]`; infinite where one is a number and the other isn't."""
    with np.errstate(invalid="ignore"):
        away = np.where(a == b, 0, np.abs(a - b))
    both = ~np.isfinite(a) & ~np.isfinite(b)
    return np.where(both, 0, np.where(np.isfinite(away), away, np.inf)).max(-1, initial=0)


def _sensitivity(logits_of: Callable[[np.ndarray], Any], images: np.ndarray, alone: np.ndarray) -> float:
    signs = np.random.default_rng(1).choice([-1.0, 1.0], images.shape)
    step = _ULPS * np.finfo(images.dtype).eps
    moved = (images * (1 + step * signs)).astype(images.dtype)
    return float(_distance(_alone(logits_of, moved), alone).max(initial=0))


def _message(away: float, largest: float, size: int, verdict: Verdict) -> str:
    cause = f" Its jaxpr has {verdict.cause}." if verdict.cause else ""
    return (
        f"The network mixes the images of a batch: logits of up to {largest:.3g} in size change by {away:.3g} between "
        f"an image alone and the same image in a batch of {size}.{cause}\n  {_ADVICE}"
    )
