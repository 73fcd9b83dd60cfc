"""The files of Tiny-ImageNet-200 as they were published: `tiny-imagenet-200.zip`, or the folder that it unpacks to."""

from __future__ import annotations

import collections
import io
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from mixtrain_jax.errors import DataError

NAME = "tiny-imagenet-200"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
CLASSES = 200
TRAIN_PER_CLASS = 500
VALIDATION_PER_CLASS = 50

_SIDE = 64


class Files(NamedTuple):
    """The published files, by their names in `tiny-imagenet-200/`."""

    where: Path
    names: frozenset[str]
    read: Callable[[str], bytes]


class Contents(NamedTuple):
    """The classes in the order of their labels, and the class of every image file of each split."""

    wnids: tuple[str, ...]
    train: Mapping[str, str]
    validation: Mapping[str, str]


def find(manual_dir: Path) -> Files:
    """The files in `manual_dir`: those of the folder where it is there, else of the zip.

    Raises:
      DataError: where neither is there, or the zip is damaged.
    """
    folder, archive = manual_dir / NAME, manual_dir / f"{NAME}.zip"
    if folder.is_dir():
        names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return Files(folder, frozenset(names), lambda name: (folder / name).read_bytes())
    if not archive.is_file():
        raise DataError(
            f"Found neither {archive.name} nor the folder {NAME} in {manual_dir}. Download {URL} into it (about "
            "240 MB, it need not be unpacked), or name the folder it is in with --manual-dir."
        )
    try:
        file = zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise DataError(f"{archive} is damaged ({error}). Download {URL} again.") from error
    names = (name.removeprefix(f"{NAME}/") for name in file.namelist() if not name.endswith("/"))
    return Files(archive, frozenset(names), lambda name: file.read(f"{NAME}/{name}"))


def contents(files: Files, train_per_class: int) -> Contents:
    """What the files hold, by their names alone.

    Raises:
      DataError: where there are not 200 classes, `train_per_class` training and 50 validation images of each.
    """
    wnids = tuple(_text(files, "wnids.txt").split())
    if len(set(wnids)) != CLASSES or len(wnids) != CLASSES:
        raise DataError(
            f"{files.where}: wnids.txt has {len(set(wnids))} different classes in {len(wnids)} lines, "
            f"expected {CLASSES}. {_again(files)}"
        )
    train = {
        name: found[1]
        for name in sorted(files.names)
        if (found := re.fullmatch(r"train/([^/]+)/images/[^/]+\.JPEG", name))
    }
    lines = (line.split("\t") for line in _text(files, "val/val_annotations.txt").splitlines() if line.strip())
    validation = {f"val/images/{line[0]}": line[1] if len(line) > 1 else "" for line in lines}
    images = {name for name in files.names if re.fullmatch(r"val/images/[^/]+\.JPEG", name)}
    for name in sorted(images ^ validation.keys()):
        what = "is not in val_annotations.txt" if name in images else "is in val_annotations.txt, but missing"
        raise DataError(f"{files.where}: {name} {what}. {_again(files)}")
    _check_counts(files, "training", train, wnids, train_per_class)
    _check_counts(files, "validation", validation, wnids, VALIDATION_PER_CLASS)
    return Contents(wnids, train, validation)


def check_image(files: Files, name: str, data: bytes) -> None:
    """Check an image by its header.

    Raises:
      DataError: where it is no JPEG of 64x64 pixels, grey or RGB.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            size, mode = image.size, image.mode
    except Exception as error:  # Pillow raises many kinds for bytes that are no image.
        raise DataError(f"{files.where}: {name} is no JPEG image. {_again(files)}") from error
    if size != (_SIDE, _SIDE) or mode not in ("L", "RGB"):
        raise DataError(
            f"{files.where}: {name} is {size[0]}x{size[1]} in mode {mode}, expected {_SIDE}x{_SIDE}, grey or RGB. "
            f"{_again(files)}"
        )


def read(files: Files, name: str) -> bytes:
    """The bytes of a file.

    Raises:
      DataError: where it cannot be read.
    """
    try:
        return files.read(name)
    except Exception as error:  # The operating system's, the zip file's or its decompressor's.
        raise DataError(f"{files.where}: {name} cannot be read ({error}). {_again(files)}") from error


def _text(files: Files, name: str) -> str:
    if name not in files.names:
        raise DataError(f"{files.where}: {name} is missing. {_again(files)}")
    return read(files, name).decode("utf-8", errors="replace")


def _check_counts(files: Files, what: str, classes: Mapping[str, str], wnids: tuple[str, ...], per_class: int) -> None:
    counts = collections.Counter(classes.values())
    for wnid in [*wnids, *sorted(counts.keys() - set(wnids))]:
        expected = per_class if wnid in wnids else 0
        if counts[wnid] != expected:
            raise DataError(
                f"{files.where}: class {wnid} has {counts[wnid]} {what} images, expected {expected} "
                f"({len(classes)} of {per_class * CLASSES} in all). {_again(files)}"
            )


def _again(files: Files) -> str:
    return f"Download {URL} again" + (f", and remove {files.where}." if files.where.is_dir() else ".")
