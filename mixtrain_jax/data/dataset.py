"""What a data set is, and what is checked of it before anything is computed."""

from __future__ import annotations

import dataclasses

import numpy as np

from mixtrain_jax.errors import ConfigError, DataError, NonFiniteError


@dataclasses.dataclass(frozen=True)
class Split:
    """Images `[n, height, width, channels]` float32, and their labels `[n]` int32."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, where: slice) -> Split:
        return Split(self.images[where], self.labels[where])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A training and a test split; pixels lie in `domain`, the units in which eps is given.

    Examples are held out from the end of the training split, or from its start where `hold_out_first` says so.
    """

    name: str
    train: Split
    test: Split
    classes: int
    domain: tuple[float, float]
    hold_out_first: bool = False

    def hold_out(self, count: int) -> tuple[Split, Split]:
        """The training split without the `count` examples that are held out, and those.

        Raises:
          ConfigError: where that would leave nothing to train on.
        """
        if not 0 < count < len(self.train):
            raise ConfigError(
                f"holdout must leave examples on both sides: 1 to {len(self.train) - 1} of the "
                f"{len(self.train)} training examples of {self.name}, got {count}."
            )
        if self.hold_out_first:
            return self.train[count:], self.train[:count]
        return self.train[:-count], self.train[-count:]


def check(data: Dataset) -> Dataset:
    """Return the data set if it is what it says it is.

    Raises:
      DataError: naming the split and the first example that has the wrong shape, a pixel outside the domain or a label
        that is no class.
      NonFiniteError: naming the split and the first example that has a NaN or infinite pixel.
    """
    for name, split in (("train", data.train), ("test", data.test)):
        where = f"{data.name}, {name} split"
        if split.images.ndim != 4 or split.images.shape[:1] != split.labels.shape or not len(split):
            raise DataError(
                f"{where}: expected images [n, height, width, channels] with labels [n], n > 0, "
                f"got {list(split.images.shape)} and {list(split.labels.shape)}."
            )
        low, high = data.domain
        for good, error, what in (
            (np.isfinite(split.images), NonFiniteError, "that is NaN or infinite"),
            ((split.images >= low) & (split.images <= high), DataError, f"outside {data.domain}"),
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
