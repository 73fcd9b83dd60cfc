"""Data sets by name."""

from mixtrain_jax.data.dataset import Dataset, Split, Streamed, as_floats, check
from mixtrain_jax.data.digits import digits

SOURCES = {"digits": digits}


def load(name: str) -> Dataset:
    """Load a data set by its name in `SOURCES` and check it.

    Raises:
      DataError: where the data are missing or damaged.
    """
    return check(SOURCES[name]())


__all__ = ["SOURCES", "Dataset", "Split", "Streamed", "as_floats", "check", "load"]
