"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mixtrain_jax.data import tfds
from mixtrain_jax.data.dataset import Dataset, Split, Streamed, as_floats, check
from mixtrain_jax.data.digits import digits


class Prepared(NamedTuple):
    """How a data set that TFDS prepared is used."""

    test: str = "test"  # the split that is certified
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # mean and deviation of each channel
    streamed: bool = False  # training examples are read as they are needed, not kept in memory


_IMAGENET = Prepared("validation", ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)), streamed=True)
PREPARED = {
    "mnist": Prepared(),
    "fashion_mnist": Prepared(),
    "cifar10": Prepared(normalization=((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))),
    "svhn_cropped": Prepared(normalization=((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))),
    "imagenet200": _IMAGENET,
    "imagenet200/train250": _IMAGENET,
}


def load(
    name: str,
    data_dir: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Dataset:
    """Load a data set by its name, `digits` or one of `PREPARED`, and check it.

    Args:
      name: which one.
      data_dir: folder of the data sets that TFDS prepared; by default that in the environment variable TFDS_DATA_DIR,
        else `~/tensorflow_datasets`.
      progress: called with what is read, and the number of examples read and of all.

    Raises:
      DataError: where the data are missing or damaged; it says which command helps.
    """
    if name == "digits":
        return check(digits())
    how = PREPARED[name]
    train, test = (tfds.open_split(name, split, data_dir) for split in ("train", how.test))

    def read(source: tfds.Source) -> Split:
        return Split(*tfds.read(source, lambda done, total: progress(f"read {name}, {source.split}", done, total)))

    return check(
        Dataset(
            name=name,
            train=Streamed(train.take, 0, len(train)) if how.streamed else read(train),
            test=read(test),
            classes=train.classes,
            domain=(0.0, 1.0),
            normalization=how.normalization,
        )
    )


__all__ = ["PREPARED", "Dataset", "Prepared", "Split", "Streamed", "as_floats", "check", "load"]
