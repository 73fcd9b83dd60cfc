"""Accuracies of a run on the first test images in their published order, where papers measured on those alone.

    python benchmarks/first_thousand.py RUN t10k-images-idx3-ubyte.gz [--count 1000] [--data-dir DIR]

TensorFlow Datasets keeps MNIST in an order of its own, so images are found by their bytes.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np

from mixtrain_jax import data
from mixtrain_jax.config import of_run


def main() -> None:
    """Print clean, attacked and verified accuracy of the first images and of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("published", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args()
    name = of_run(arguments.run).data.name
    ours = data.load(name, arguments.data_dir).test.images
    theirs = np.frombuffer(gzip.decompress(arguments.published.read_bytes()), np.uint8, offset=16).reshape(ours.shape)
    place = {image.tobytes(): i for i, image in enumerate(ours)}
    first = [place[image.tobytes()] for image in theirs[: arguments.count]]
    with np.load(arguments.run / "certificates.npz", allow_pickle=False) as known:
        for title, rows in ((f"first {arguments.count}", first), (f"all {len(ours)}", slice(None))):
            shares = "  ".join(f"{key} {known[key][rows].mean():.2%}" for key in ("clean", "attacked", "verified"))
            print(f"{title:12} {shares}")


if __name__ == "__main__":
    main()
