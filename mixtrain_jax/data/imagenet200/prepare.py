"""Prepares ImageNet-200 as a TFDS data set that `mixtrain_jax.data.tfds` reads, without TensorFlow."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mixtrain_jax.data import tfds
from mixtrain_jax.data.imagenet200 import official
from mixtrain_jax.errors import DataError


def prepare(
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
    train_per_class: int = official.TRAIN_PER_CLASS,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> tuple[Path, bool]:
    """Prepare the data set in `data_dir/imagenet200/VERSION`, all of it or, after an error, nothing.

    Args:
      data_dir: folder of the prepared data sets; the default is that of `mixtrain_jax.data.tfds.open_split`.
      manual_dir: folder of `tiny-imagenet-200.zip` or of the folder it unpacks to; by default
        `data_dir/downloads/manual`.
      train_per_class: training images a class, 1 to 500. Where it is not 500, the data set is prepared as the
        config `imagenet200/trainN`.
      progress: called with what is being done, and the number of images done and of all.

    Returns:
      The folder, and whether it was prepared now, and not there before.

    Raises:
      DataError: where packages or files are missing, or the files are not what was published.
      OSError: where the files cannot be written.
    """
    if not 1 <= train_per_class <= official.TRAIN_PER_CLASS:
        raise DataError(f"Expected 1 to {official.TRAIN_PER_CLASS} training images a class, got {train_per_class}.")
    directory = tfds.find_data_dir(data_dir)
    tfds_lib = tfds.import_tfds()
    from mixtrain_jax.data.imagenet200 import imagenet200_dataset_builder as builders

    config = builders.part(train_per_class)
    folder = directory.joinpath("imagenet200", *([config.name] if config else []), str(builders.Builder.VERSION))
    if folder.exists():
        return folder, False
    manual = Path(manual_dir).expanduser() if manual_dir else directory / "downloads" / "manual"
    official.find(manual)
    directory.mkdir(parents=True, exist_ok=True)
    # Prepared beside its place and moved there whole, for TFDS leaves folders behind after an error.
    with tempfile.TemporaryDirectory(prefix="imagenet200.incomplete.", dir=directory) as staging, _silent(tfds_lib):
        builder = builders.Builder(data_dir=staging, config=config, file_format="array_record")
        builder.progress = progress
        download = tfds_lib.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
        builder.download_and_prepare(download_config=download)
        folder.parent.mkdir(parents=True, exist_ok=True)
        Path(builder.data_path).rename(folder)
    return folder, True


@contextlib.contextmanager
def _silent(tfds_lib: Any) -> Iterator[None]:
    """Keep TFDS from printing and logging; its bars go by splits and files, not by images."""
    tfds_lib.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()), tfds.quiet():
            yield
    finally:
        tfds_lib.enable_progress_bar()
