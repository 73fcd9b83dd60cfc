"""The command `python -m mixtrain_jax.data.imagenet200`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from mixtrain_jax.data.imagenet200 import official
from mixtrain_jax.data.imagenet200.prepare import prepare
from mixtrain_jax.errors import DataError

_PROGRAM = "python -m mixtrain_jax.data.imagenet200"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare ImageNet-200 and return the exit code."""
    options = _parser().parse_args(arguments)
    # Standard output is for the result, and TFDS's own is thrown away.
    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(f"{what.capitalize()} images")
            bars.update(tasks[what], completed=done, total=total)

        try:
            folder, new = prepare(options.data_dir, options.manual_dir, options.train_per_class, progress)
        except (DataError, OSError) as error:
            bars.stop()
            print(f"{_PROGRAM}: {error}", file=sys.stderr)
            return 1
    print(f"ImageNet-200 is prepared in {folder}." if new else f"ImageNet-200 was prepared before, in {folder}.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description=(
            f"Prepare ImageNet-200 (Tiny-ImageNet-200) for training, from {official.NAME}.zip or the folder that it "
            f"unpacks to. Get it from {official.URL}; it is for non-commercial research and education."
        ),
        epilog="Exit codes: 0 prepared, now or before; 1 failed, and nothing was written; 2 usage.",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="folder of the prepared data sets (default: the environment variable TFDS_DATA_DIR, else "
        "~/tensorflow_datasets)",
    )
    parser.add_argument(
        "--manual-dir",
        type=Path,
        help="folder in which the zip or the folder lies (default: DATA_DIR/downloads/manual)",
    )
    parser.add_argument(
        "--train-per-class",
        type=int,
        default=official.TRAIN_PER_CLASS,
        metavar="N",
        help=f"training images a class in these files; where it is not {official.TRAIN_PER_CLASS}, the data set is "
        "called imagenet200/trainN (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
