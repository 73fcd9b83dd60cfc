"""Damaged files of data sets: those that TFDS prepared, and the zip of ImageNet-200."""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mixtrain_jax import data
from mixtrain_jax.data import tfds as reader
from mixtrain_jax.data.imagenet200 import official

from .trials import Trial, damaged, judged, pick, spawned

HTML = b"<!doctype html><html><body>404 Not Found</body></html>\n" * 20
CLASSES = 200


def data_files(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """X5: files cut short, damaged, of zeros, of HTML, missing; and zips of ImageNet-200."""
    source = prepared(tmp / "prepared")
    sound = reader.read(reader.open_split("mnist", "train", source))
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    archive = published()
    for number, draw in spawned(rng, count):
        if number % 2:
            path = pick(draw, files)
            act = functools.partial(_prepared, source, tmp / "copy", path, sound, draw)
            yield Trial(f"a damaged {path}", act)
        else:
            yield Trial("a damaged zip", functools.partial(_zip, tmp / "zip", archive, draw))


def broken(content: bytes, rng: np.random.Generator) -> bytes:
    """Anything but the content."""
    match int(rng.integers(6)):
        case 0:
            return HTML
        case 1:
            return b""
        case 2:
            return bytes(len(content))
        case 3:
            return b"\x1f\x8b\x08" + rng.bytes(len(content))  # as gzip begins
    return damaged(content, rng)


def prepared(folder: Path) -> Path:
    """The folder of a TFDS data set named mnist with few images."""
    import tensorflow_datasets as tfds
    from PIL import Image

    class Pack(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.1")
        pkg_dir_path = folder

        def _info(self) -> Any:
            image, label = tfds.features.Image(shape=(28, 28, 1)), tfds.features.ClassLabel(num_classes=10)
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples(0), "test": self._generate_examples(1)}

        def _generate_examples(self, seed: int) -> Iterator[tuple[int, dict[str, Any]]]:
            rng = np.random.default_rng(seed)
            for key in range(6):
                file = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(file, "PNG")
                yield key, {"image": file.getvalue(), "label": key}

    tfds.disable_progress_bar()
    kind = types.new_class("Mnist", (Pack,), {"skip_registration": True})
    download = tfds.download.DownloadConfig(num_shards=1)
    with contextlib.redirect_stdout(io.StringIO()):
        kind(data_dir=str(folder), file_format="array_record").download_and_prepare(download_config=download)
    return folder


def _prepared(source: Path, copy: Path, path: Path, sound: Any, rng: np.random.Generator) -> str:
    shutil.copytree(source, copy)
    try:
        if rng.random() < 0.1:
            (copy / path).unlink()
        else:
            (copy / path).write_bytes(broken((copy / path).read_bytes(), rng))

        def read() -> Any:
            images, labels = reader.read(reader.open_split("mnist", "train", copy))
            split = data.Split(images, labels)
            data.check(data.Dataset("mnist", split, split, 10, (0.0, 1.0)))
            return images, labels

        return judged(read, lambda found: all(map(np.array_equal, found, sound)), ["mnist"])
    finally:
        shutil.rmtree(copy)


def published() -> bytes:
    """A zip of ImageNet-200 with one training and no validation image a class."""
    from PIL import Image

    file, archive = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), 99, np.uint8)).save(file, "JPEG")
    wnids = [f"n{k:08d}" for k in range(CLASSES)]
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr(f"{official.NAME}/wnids.txt", "\n".join(wnids))
        made.writestr(f"{official.NAME}/val/val_annotations.txt", "")
        for wnid in wnids:
            made.writestr(f"{official.NAME}/train/{wnid}/images/{wnid}_0.JPEG", file.getvalue())
    return archive.getvalue()


def _zip(folder: Path, content: bytes, rng: np.random.Generator) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / f"{official.NAME}.zip"
    path.write_bytes(broken(content, rng))

    def read(path_of: Path) -> Any:
        files = official.find(path_of)
        wnids = official._text(files, "wnids.txt").split()
        names = sorted(name for name in files.names if name.startswith("train/"))
        images = {}
        for name in names:
            images[name] = official.read(files, name)
            official.check_image(files, name, images[name])
        # As `contents`, which also wants validation images.
        official._check_counts(files, "training", {n: n.split("/")[1] for n in names}, tuple(wnids), 1)
        return wnids, images

    with zipfile.ZipFile(io.BytesIO(content)) as whole:
        sound = {name.removeprefix(f"{official.NAME}/"): whole.read(name) for name in whole.namelist()}
    sound = {name: image for name, image in sound.items() if name.startswith("train/")}
    return judged(lambda: read(folder), lambda found: found[1] == sound, [str(path)])
