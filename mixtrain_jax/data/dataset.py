"""What a data set is, and what is checked of it before anything is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from mixtrain_jax.errors import ConfigError, DataError, NonFiniteError


@dataclasses.dataclass(frozen=True)
class Split:
    """Images `[n, height, width, channels]` and their labels `[n]` int32, in memory.

    Pixels are float32, or integers from 0 to `levels` that stand for 0 to 1.
    """

    images: np.ndarray
    labels: np.ndarray
    levels: int = 255

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, where: slice | np.ndarray) -> Split:
        return dataclasses.replace(self, images=self.images[where], labels=self.labels[where])

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of these examples, in this order."""
        return self.images[indices], self.labels[indices]

    def load(self) -> Split:
        """The split itself, which is in memory already."""
        return self

    def floats(self) -> Split:
        """The same examples with float32 pixels, the ones that certificates are about."""
        return dataclasses.replace(self, images=as_floats(self.images, self.levels))


@dataclasses.dataclass(frozen=True)
class Streamed:
    """Examples `start` to `stop` of a split that is read as it is needed.

    `read` gives uint8 images `[n, height, width, channels]` and int32 labels `[n]` of any indices `[n]`; threads may
    call it at the same time.
    """

    read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    start: int
    stop: int
    levels: int = 255

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, where: slice) -> Streamed:
        start, stop, _ = where.indices(len(self))
        return dataclasses.replace(self, start=self.start + start, stop=self.start + stop)

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of these examples, in this order."""
        return self.read(self.start + indices)

    def load(self) -> Split:
        """All of them, in memory."""
        return Split(*self.take(np.arange(len(self))), self.levels)


def as_floats(images: Any, levels: int) -> Any:
    """Pixels as float32, integers from 0 to `levels` scaled to 0 to 1; NumPy and JAX arrays alike."""
    return images if np.issubdtype(images.dtype, np.floating) else images.astype(np.float32) / np.float32(levels)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A training and a test split; pixels lie in `domain`, the units in which eps is given.

    Examples are held out from the end of the training split, or from its start where `hold_out_first` says so.
    `normalization` is the mean and standard deviation of each channel, for networks that want them.
    """

    name: str
    train: Split | Streamed
    test: Split
    classes: int
    domain: tuple[float, float]
    hold_out_first: bool = False
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def hold_out(self, count: int) -> tuple[Split | Streamed, Split]:
        """The training split without the `count` examples that are held out, and those, in memory.

        Raises:
          ConfigError: where that would leave nothing to train on.
        """
        if not 0 < count < len(self.train):
            raise ConfigError(
                f"holdout must leave examples on both sides: 1 to {len(self.train) - 1} of the "
                f"{len(self.train)} training examples of {self.name}, got {count}."
            )
        if self.hold_out_first:
            return self.train[count:], self.train[:count].load()
        return self.train[:-count], self.train[-count:].load()


def check(data: Dataset) -> Dataset:
    """Return the data set if it is what it says it is.

    Raises:
      DataError: naming the split and the first example that has the wrong shape, a pixel outside the domain or a label
        that is no class.
      NonFiniteError: naming the split and the first example that has a NaN or infinite pixel.
    """
    for name, split in (("train", data.train), ("test", data.test)):
        if isinstance(split, Streamed):
            continue  # checked as it is read
        where = f"{data.name}, {name} split"
        if split.images.ndim != 4 or split.images.shape[:1] != split.labels.shape or not len(split):
            raise DataError(
                f"{where}: expected images [n, height, width, channels] with labels [n], n > 0, "
                f"got {list(split.images.shape)} and {list(split.labels.shape)}."
            )
        whole = np.issubdtype(split.images.dtype, np.integer)
        low, high = (0, split.levels) if whole else data.domain
        for good, error, what in (
            (np.isfinite(split.images), NonFiniteError, "that is NaN or infinite"),
            ((split.images >= low) & (split.images <= high), DataError, f"outside {low, high}"),
        ):
            bad = np.flatnonzero(~good.all(axis=(1, 2, 3)))
            if bad.size:
                raise error(
                    f"{where}: example {bad[0]} has a pixel {what} ({bad.size} such examples); prepare the data again."
                )
        bad = np.flatnonzero((split.labels < 0) | (split.labels >= data.classes))
        if bad.size:
            raise DataError(
                f"{where}: example {bad[0]} has label {split.labels[bad[0]]}, expected 0 to {data.classes - 1}."
            )
    return data
