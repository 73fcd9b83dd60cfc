"""Prepared TFDS data sets, read without TensorFlow.

TensorFlow Datasets stores a data set as files, one folder a version. Those in its format `array_record` can be read in
any order, and reading them needs neither TensorFlow nor the code that prepared them. Preparing them is another matter:
the stock sets need TensorFlow and the internet, once. Nothing here does that, or goes online: an error names the
command.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import importlib
import io
import itertools
import logging
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mixtrain_jax.errors import DataError, first_line

INSTALL = 'pip install "mixtrain_jax[data]"'

_CHUNK = 1000
_MODES = {1: "L", 3: "RGB"}
# What TFDS imports to prepare a data set, where that is more than TensorFlow.
_NEEDS = {"svhn_cropped": "tensorflow scipy"}


@dataclasses.dataclass(frozen=True)
class Source:
    """A split on disk whose examples are read when they are asked for, by any number of threads."""

    name: str
    split: str
    shape: tuple[int, int, int]
    """Height, width and channels (1 or 3) of every image."""
    classes: int
    _records: Any = dataclasses.field(repr=False)
    _files: tuple[tuple[str, int], ...] = dataclasses.field(repr=False)
    _advice: str = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self._records)

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images `[n, height, width, channels]` uint8 and labels `[n]` int32 of the examples `indices`, `[n]`.

        Raises:
          DataError: naming the file and the first example that cannot be read, is no image or has the wrong shape.
          IndexError: where an index is not 0 to `len(self) - 1`.
        """
        indices = np.asarray(indices)
        bad = indices[(indices < 0) | (indices >= len(self))]
        if bad.size:
            raise IndexError(f"{self._where}: no example {bad[0]}, expected 0 to {len(self) - 1}.")
        images = np.empty((len(indices), *self.shape), np.uint8)
        labels = np.empty(len(indices), np.int32)
        for k, example in enumerate(self._examples(indices.tolist())):
            try:
                _decode(example["image"], images[k])
            except Exception as error:  # Pillow raises many kinds for bytes that are no image.
                raise self._damaged(int(indices[k]), error) from error
            labels[k] = example["label"]
        bad = np.flatnonzero((labels < 0) | (labels >= self.classes))
        if bad.size:
            error = ValueError(f"label {labels[bad[0]]}, expected 0 to {self.classes - 1}")
            raise self._damaged(int(indices[bad[0]]), error)
        return images, labels

    def _examples(self, indices: list[int]) -> list[dict[str, Any]]:
        if not indices:
            return []
        try:
            return self._records.__getitems__(indices)
        except Exception as error:  # The readers of records and of protocol buffers have errors of their own.
            for index in indices:
                try:
                    self._records[index]
                except Exception as cause:
                    raise self._damaged(index, cause) from cause
            raise self._damaged(indices[0], error) from error

    def _damaged(self, index: int, error: Exception) -> DataError:
        ends = list(itertools.accumulate(count for _, count in self._files))
        file, _ = self._files[bisect.bisect_right(ends, index)]
        return DataError(f"{self._where}: example {index}, in {file}: {first_line(error)}. {self._advice}")

    @property
    def _where(self) -> str:
        return f"{self.name}, {self.split} split"


def open_split(name: str, split: str, data_dir: Path | None = None) -> Source:
    """Open a split of a prepared data set of images with one label each.

    Args:
      name: as TFDS has it: `name`, `name/config` or `name:version`; without a version, the newest that is there.
      split: as TFDS has it, also a part such as `train[:1000]`.
      data_dir: folder of the prepared data sets; by default that in the environment variable TFDS_DATA_DIR, else
        `~/tensorflow_datasets`.

    Raises:
      DataError: where packages are missing, or the data set is missing, in another format, damaged or not one of images
        with labels; it says which command helps.
    """
    directory = find_data_dir(data_dir)
    tfds = import_tfds()
    builder = _open(tfds, name, directory)
    folder, info, where = Path(builder.data_path), builder.info, f"{name}, {split} split"
    splits = sorted(info.splits)
    if split.partition("[")[0] not in splits:
        raise DataError(f"{name} in {folder} has no split {split}, only {', '.join(splits) or 'none'}.")
    shape, classes = _image_and_label(name, info.features)
    try:
        parts = info.splits[split].file_instructions
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except Exception as error:
        raise DataError(
            f"{where} in {folder} cannot be opened: {first_line(error)}. Expected a split such as {splits[0]}, or a "
            f"part of it such as {splits[0]}[:1000]."
        ) from error
    advice = _again(folder, name, directory)
    for part in parts:
        _check_count(where, part.filename, part.examples_in_shard, advice)
    files = tuple((os.fspath(part.filename), part.take) for part in parts)
    return Source(name, split, shape, classes, records, files, advice)


def read(
    source: Source, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[np.ndarray, np.ndarray]:
    """Read a whole split: images `[n, height, width, channels]` uint8 and labels `[n]` int32.

    Args:
      source: the split.
      progress: called now and then with the number of examples read and of all.

    Raises:
      DataError: as `Source.take`.
    """
    images = np.empty((len(source), *source.shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    # One thread: decoding small images holds the lock of the interpreter, and two threads were no faster.
    for start in range(0, len(source), _CHUNK):
        stop = min(start + _CHUNK, len(source))
        images[start:stop], labels[start:stop] = source.take(np.arange(start, stop))
        progress(stop, len(source))
    return images, labels


def find_data_dir(data_dir: Path | None = None) -> Path:
    """The folder of prepared data sets: `data_dir`, else that in TFDS_DATA_DIR, else `~/tensorflow_datasets`."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def import_tfds() -> Any:
    """The module `tensorflow_datasets`, with which images can be decoded.

    Raises:
      DataError: where it or Pillow is not installed.
    """
    try:
        # The decoders are registered here, before threads race for it.
        for module in ("PIL.JpegImagePlugin", "PIL.PngImagePlugin", "array_record.python.array_record_module"):
            importlib.import_module(module)
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise _missing(error) from error


def _open(tfds: Any, name: str, directory: Path) -> Any:
    """The TFDS builder of a data set that is prepared."""
    base, _, version = name.partition(":")
    folder = directory / base
    if not any(folder.glob(f"{version or '*'}/dataset_info.json")):
        raise DataError(
            f"{name} is not prepared: found no {folder / (version or 'VERSION') / 'dataset_info.json'}. "
            f"Prepare it: {_command(name, directory)}. Data sets that lie elsewhere are found by TFDS_DATA_DIR."
        )
    # A version makes TFDS go by the files, and not by its code, which may know of another version only.
    full_name = f"{base}:{version or '*.*.*'}"
    try:
        with quiet():
            builder = tfds.builder(full_name, data_dir=os.fspath(directory), file_format="array_record")
            _ = builder.info.splits  # Read when it is first asked for.
            return builder
    except ImportError as error:
        raise _missing(error) from error
    except Exception as error:  # TFDS's, protobuf's and the operating system's.
        advice = _again(folder, name, directory)
        raise DataError(f"{name} in {folder} cannot be opened: {first_line(error)}. {advice}") from error


def _missing(error: ImportError) -> DataError:
    return DataError(f"Reading data sets needs packages that are missing ({error}): {INSTALL}.")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep TFDS from logging what is said better, or raised, elsewhere."""
    logger = logging.getLogger("absl")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


def _image_and_label(name: str, features: Any) -> tuple[tuple[int, int, int], int]:
    tfds = import_tfds()
    known = dict(features.items())
    image, label = known.get("image"), known.get("label")
    if isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel):
        height, width, channels = image.shape
        if height and width and channels in _MODES and image.np_dtype == np.uint8:
            return (height, width, channels), label.num_classes
    raise DataError(
        f"{name} is not a data set that can be read: expected the features image, uint8 of one size with 1 or 3 "
        f"channels, and label, a class; got {_one_line(features)}."
    )


def _check_count(where: str, file: str, expected: int, advice: str) -> None:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        with contextlib.closing(ArrayRecordReader(os.fspath(file))) as reader:
            # Closing a reader that is not ok raises what is wrong.
            found = reader.num_records()
    except Exception as error:
        raise DataError(f"{where}: {file} cannot be read: {first_line(error)}. {advice}") from error
    if found != expected:
        raise DataError(f"{where}: {file} has {found} examples, expected {expected}. {advice}")


def _decode(data: bytes, out: np.ndarray) -> None:
    """Decode PNG or JPEG into `out`, `[height, width, channels]` uint8; grey becomes RGB where that has 3 channels."""
    from PIL import Image

    height, width, channels = out.shape
    mode = _MODES[channels]
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
        if image.size != (width, height) or image.mode not in ("L", mode):
            raise ValueError(
                f"expected an image {height}x{width} in mode {mode}, "
                f"got {image.size[1]}x{image.size[0]} in mode {image.mode}"
            )
        # Copying bytes is a third faster than Pillow's own conversion to an array.
        pixels = (image if image.mode == mode else image.convert(mode)).tobytes()
    out[...] = np.frombuffer(pixels, np.uint8).reshape(out.shape)


def _command(name: str, directory: Path) -> str:
    base, _, config = name.partition(":")[0].partition("/")
    where = shlex.quote(os.fspath(directory))
    if base == "imagenet200":
        count = config.removeprefix("train")
        part = f" --train-per-class {count}" if count.isdecimal() else ""
        return f"python -m mixtrain_jax.data.imagenet200 --data-dir {where}{part}"
    needs = _NEEDS.get(base, "tensorflow")
    build = f"pip install {needs} && tfds build {name} --file_format=array_record --data_dir={where}"
    return f"{build}   (on any machine with internet; only this needs TensorFlow)"


def _again(folder: Path, name: str, directory: Path) -> str:
    return f"Remove {folder} and prepare it again: {_command(name, directory)}."


def _one_line(value: object) -> str:
    return " ".join(str(value).split())
