"""The examples of every step, on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mixtrain_jax import parallel
from mixtrain_jax.config import Config
from mixtrain_jax.data import Split, Streamed, as_floats
from mixtrain_jax.data.order import batch_indices, subset_indices
from mixtrain_jax.training.steps import Batch, jit_once


class Examples(NamedTuple):
    """What a step works on."""

    batch: Batch  # n examples for the clean loss
    pool: Batch  # where the robust loss takes its k from


class Feed(NamedTuple):
    """The examples of any range of steps, called with the first step and the one behind the last.

    What the host does is apart from what devices do, so that many steps can be compiled as one program.
    """

    read: Callable[[int, int], Iterator[Any]]  # (first step, last step) -> what the host hands over for each
    make: Callable[[Any, Any], Examples]  # (data, what was handed over) -> examples; pure, to be compiled
    data: Any  # on the devices all the time
    compiled: Callable[[Any, Any], Examples]  # `make` alone

    def __call__(self, first: int, last: int) -> Iterator[Examples]:
        """The examples of each step from `first` to `last - 1`."""
        return (self.compiled(self.data, handed) for handed in self.read(first, last))


def counts(config: Config) -> tuple[int, int]:
    """Examples of a step: those of the batch, and how many carry the loss that stands beside the clean one."""
    return config.training.batch_size, config.objective.examples or config.training.batch_size


def indices(config: Config, step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of the `count` training examples are the batch of a step, and which its pool, where that is another."""
    n, k = counts(config)
    batch = batch_indices(config.seed, step, n, count)
    if config.objective.pool != "epoch" or k == n:
        return batch, batch[:0]
    return batch, subset_indices(config.seed, step, n, count, k, replace=config.objective.replace)


def make_feed(config: Config, split: Split | Streamed, key: jax.Array, mesh: Mesh | None = None) -> Feed:
    """The examples of any range of steps: a pure function of the config and the step, so a resumed run sees the same.

    A split in memory is moved to every device once, as the integers it is stored as. Scaling to floats and augmentation
    happen there, step by step. Each device makes an equal share of the examples of a step; where they do not divide
    evenly, the last one comes again.

    Args:
      config: says batch size, subsampling, augmentation and seed.
      split: the training examples.
      key: of the augmentation.
      mesh: the devices; by default all.
    """
    mesh = mesh or parallel.data_mesh()
    (n, k), count = counts(config), len(split)
    own_pool = len(indices(config, 0, count)[1]) > 0
    # Which of the examples of a step are where: those of the batch, and those of a pool of its own.
    parts = [_filled(0, n, mesh), _filled(n, k, mesh)] if own_pool else [_filled(0, n, mesh)]

    def plan(step: int) -> np.ndarray:
        return np.concatenate(indices(config, step, count))

    def examples(found: list[tuple[jax.Array, jax.Array]], step: jax.Array) -> Examples:
        step_key, batches = jax.random.fold_in(key, step), []
        for (images, labels), rows, size in zip(found, parts, (n, k), strict=False):
            images = augment(
                step_key, images, crop=config.data.crop, flip=config.data.flip, draws=(n + k * own_pool, rows)
            )
            batches.append(
                Batch(*parallel.constrain((as_floats(images, split.levels), labels), mesh, "rows"), count=size)
            )
        return Examples(batches[0], batches[-1])

    if isinstance(split, Split):
        resident = parallel.put((split.images, split.labels), mesh, "replicated")

        def gather(data: tuple[jax.Array, jax.Array], handed: tuple[jax.Array, jax.Array]) -> Examples:
            order, step = handed
            where = [parallel.constrain(order[rows], mesh, "rows") for rows in parts]
            return examples([(data[0][i], data[1][i]) for i in where], step)

        def orders(first: int, last: int) -> Iterator[tuple[np.ndarray, np.int32]]:
            return ((plan(step), np.int32(step)) for step in range(first, last))

        return Feed(orders, gather, resident, parallel.blocking(jit_once(gather), mesh))

    from mixtrain_jax.data.stream import stream

    own = [rows[parallel.own_rows(len(rows), mesh)] for rows in parts]  # a process reads what its own devices hold

    def convert(_: None, handed: tuple[list[tuple[jax.Array, jax.Array]], jax.Array]) -> Examples:
        return examples(*handed)

    def streamed(first: int, last: int) -> Iterator[tuple[list[tuple[jax.Array, jax.Array]], np.int32]]:
        with stream(split.take, lambda step: plan(step)[np.concatenate(own)], first, last) as batches:
            for step, read in enumerate(batches, first):
                pieces = zip(*(np.split(array, [len(own[0])]) for array in read), strict=True)
                yield [parallel.put_own(piece, mesh) for piece in pieces][: len(parts)], np.int32(step)

    return Feed(streamed, convert, None, parallel.blocking(jit_once(convert), mesh))


def _filled(start: int, size: int, mesh: Mesh) -> np.ndarray:
    """The numbers from `start` on, `size` of them, the last one again until they divide evenly over the devices."""
    return start + np.minimum(np.arange(parallel.padded(size, mesh)), size - 1)


def augment(
    key: jax.Array,
    images: jax.Array,
    *,
    crop: int,
    flip: bool,
    draws: tuple[int, np.ndarray] | None = None,
) -> jax.Array:
    """Shift and mirror images at random, each on its own.

    Args:
      key: a random key.
      images: `[n, height, width, channels]`.
      crop: largest shift in pixels, up, down, left and right; what comes in from outside is black.
      flip: whether to mirror half of them, left to right.
      draws: how many random draws are made, and which one each image gets; by default each its own.

    Returns:
      Images of the same shape and dtype.
    """
    crop_key, flip_key = jax.random.split(key)
    count, which = draws or (len(images), np.arange(len(images)))
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(count, 1, 1, 1))[which]
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    if crop:
        padded = jnp.pad(images, ((0, 0), (crop, crop), (crop, crop), (0, 0)))
        corners = jax.random.randint(crop_key, (count, 2), 0, 2 * crop + 1)[which]

        def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

        images = jax.vmap(cut)(padded, corners)
    return images
