"""The examples of every step, on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.config import Config
from mixtrain_jax.data import Split, Streamed, as_floats
from mixtrain_jax.data.order import batch_indices, subset_indices
from mixtrain_jax.training.steps import Batch, jit_once


class Examples(NamedTuple):
    """What a step works on."""

    batch: Batch  # n examples for the clean loss
    pool: Batch  # where the robust loss takes its k from


Feed = Callable[[int, int], Iterator[Examples]]  # (first step, last step) -> the examples of each in between


def indices(config: Config, step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of the `count` training examples are the batch of a step, and which its pool, where that is another."""
    n, k = config.batch_size, config.robust_count()
    batch = batch_indices(config.seed, step, n, count)
    if config.subsample != "epoch" or k == n:
        return batch, batch[:0]
    return batch, subset_indices(config.seed, step, n, count, k, replace=config.replace)


def make_feed(config: Config, split: Split | Streamed, key: jax.Array) -> Feed:
    """The examples of any range of steps: a pure function of the config and the step, so a resumed run sees the same.

    A split in memory is moved to the device once, as the integers it is stored as. Scaling to floats and augmentation
    happen there, step by step.

    Args:
      config: says batch size, subsampling, augmentation and seed.
      split: the training examples.
      key: of the augmentation.
    """
    n, count = config.batch_size, len(split)
    own_pool = len(indices(config, 0, count)[1]) > 0

    def plan(step: int) -> np.ndarray:
        return np.concatenate(indices(config, step, count))

    def examples(images: jax.Array, labels: jax.Array, step: jax.Array) -> Examples:
        images = augment(jax.random.fold_in(key, step), images, crop=config.crop, flip=config.flip)
        seen = Batch(as_floats(images, split.levels), labels)
        batch, pool = (jax.tree.map(lambda x, part=part: x[part], seen) for part in (slice(n), slice(n, None)))
        return Examples(batch, pool if own_pool else batch)

    if isinstance(split, Split):
        resident = jax.device_put((split.images, split.labels))

        @jit_once
        def gather(data: tuple[jax.Array, jax.Array], rows: jax.Array, step: jax.Array) -> Examples:
            return examples(data[0][rows], data[1][rows], step)

        return lambda first, last: (gather(resident, plan(step), np.int32(step)) for step in range(first, last))

    from mixtrain_jax.data.stream import stream

    convert = jit_once(examples)

    def streamed(first: int, last: int) -> Iterator[Examples]:
        with stream(split.take, plan, first, last) as batches:
            for step, (images, labels) in enumerate(batches, first):
                yield convert(images, labels, np.int32(step))

    return streamed


def augment(key: jax.Array, images: jax.Array, *, crop: int, flip: bool) -> jax.Array:
    """Shift and mirror images at random, each on its own.

    Args:
      key: a random key.
      images: `[n, height, width, channels]`.
      crop: largest shift in pixels, up, down, left and right; what comes in from outside is black.
      flip: whether to mirror half of them, left to right.

    Returns:
      Images of the same shape and dtype.
    """
    crop_key, flip_key = jax.random.split(key)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    if crop:
        padded = jnp.pad(images, ((0, 0), (crop, crop), (crop, crop), (0, 0)))
        corners = jax.random.randint(crop_key, (len(images), 2), 0, 2 * crop + 1)

        def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

        images = jax.vmap(cut)(padded, corners)
    return images
