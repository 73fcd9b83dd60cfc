"""Which examples a step sees: a pure function of the seed and the step, so a resumed run sees the same ones."""

from __future__ import annotations

import functools

import numpy as np


def batch_indices(seed: int, step: int, batch_size: int, count: int) -> np.ndarray:
    """Indices of the examples of one step, `[batch_size]` int32.

    The order is a stream of permutations of all `count` examples, one an epoch, cut into batches across their borders:
    every example is seen once an epoch, and every batch is full.
    """
    start = step * batch_size
    indices = np.empty(batch_size, np.int32)
    filled = 0
    while filled < batch_size:
        epoch, offset = divmod(start + filled, count)
        part = _permutation(seed, epoch, count)[offset : offset + batch_size - filled]
        indices[filled : filled + len(part)] = part
        filled += len(part)
    return indices


def subset_indices(seed: int, step: int, batch_size: int, count: int, k: int, *, replace: bool = False) -> np.ndarray:
    """Indices of the `k` robust examples of a step, out of a subset drawn anew each epoch: `[k]` int32.

    The subset has `k` examples for every step of the epoch, so it is the share `k / batch_size` of all; each of its
    examples comes once in the epoch. With `replace` an example may be drawn more than once.

    Args:
      seed: of the draw.
      step: number of the step.
      batch_size: examples of a clean batch, which tell the epoch.
      count: examples in all.
      k: how many the step has, at most `batch_size`.
      replace: draw with replacement.
    """
    epoch = step * batch_size // count
    if replace:
        return np.random.default_rng([seed, step, 3]).integers(count, size=k, dtype=np.int32)
    first = -(-epoch * count // batch_size)  # the first step that begins in this epoch
    where = (step - first) * k + np.arange(k)
    return _permutation(seed, epoch, count, 2)[where % count]


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, count: int, *stream: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, *stream]).permutation(count).astype(np.int32)
