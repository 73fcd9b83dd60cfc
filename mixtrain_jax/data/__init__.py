"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mixtrain_jax.data import tfds
from mixtrain_jax.data.dataset import Dataset, Split, Streamed, as_floats, check
from mixtrain_jax.data.digits import digits


class Signature(NamedTuple):
    """What a network has to know of a data set, known without its files."""

    shape: tuple[int, int, int]  # height, width and channels of an image
    classes: int
    domain: tuple[float, float]  # of pixels
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None  # as in `Dataset`


class Prepared(NamedTuple):
    """How a data set that TFDS prepared is used."""

    shape: tuple[int, int, int]
    classes: int = 10
    test: str = "test"  # the split that is certified
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # mean and deviation of each channel
    streamed: bool = False  # training examples are read as they are needed, not kept in memory


_DOMAIN = (0.0, 1.0)
_IMAGENET = Prepared(
    (64, 64, 3), 200, "validation", ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)), streamed=True
)
PREPARED = {
    "mnist": Prepared((28, 28, 1)),
    "fashion_mnist": Prepared((28, 28, 1)),
    "cifar10": Prepared((32, 32, 3), normalization=((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))),
    "svhn_cropped": Prepared((32, 32, 3), normalization=((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))),
    "imagenet200": _IMAGENET,
    "imagenet200/train250": _IMAGENET,
}


def signature(name: str) -> Signature:
    """What a network has to know of a data set of this name, `digits` or one of `PREPARED`."""
    if name == "digits":
        return Signature((8, 8, 1), 10, _DOMAIN, None)
    how = PREPARED[name]
    return Signature(how.shape, how.classes, _DOMAIN, how.normalization)


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
            domain=_DOMAIN,
            normalization=how.normalization,
        )
    )


__all__ = [
    "PREPARED",
    "Dataset",
    "Prepared",
    "Signature",
    "Split",
    "Streamed",
    "as_floats",
    "check",
    "load",
    "signature",
]
