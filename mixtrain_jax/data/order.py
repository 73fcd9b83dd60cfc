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


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count).astype(np.int32)
