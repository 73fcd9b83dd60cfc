"""The TFDS builder of ImageNet-200; importing it makes the data set known to TFDS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from mixtrain_jax.data.imagenet200 import official

_DESCRIPTION = (
    "200 classes of ImageNet in 64x64 pixels, 500 training and 50 validation images of each; published as "
    "Tiny-ImageNet-200. The JPEG files are kept as they are; some are grey."
)


def part(train_per_class: int) -> tfds.core.BuilderConfig | None:
    """The config `trainN` of N training images a class, whose name nobody takes for the whole; none for the whole."""
    if train_per_class == official.TRAIN_PER_CLASS:
        return None
    return tfds.core.BuilderConfig(
        name=f"train{train_per_class}",
        description=f"{train_per_class} instead of {official.TRAIN_PER_CLASS} training images of each class.",
    )


class Builder(tfds.core.GeneratorBasedBuilder):
    """ImageNet-200 from the files in TFDS's manual folder; all of them are checked before the first is written."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012  TFDS's way
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Download {official.URL}; it need not be unpacked."

    progress: Callable[[str, int, int], None] = staticmethod(lambda what, done, total: None)
    """Called with what is being done, and the number of images done and of all."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(64, 64, 3), encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=official.CLASSES),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=features,
            supervised_keys=("image", "label"),
            homepage="https://www.image-net.org",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, Any]]]:
        files = official.find(Path(dl_manager.manual_dir))
        config = self.builder_config
        per_class = int(config.name.removeprefix("train")) if config else official.TRAIN_PER_CLASS
        contents = official.contents(files, per_class)
        self.info.features["label"].names = list(contents.wnids)
        everything = [*contents.train, *contents.validation]
        for done, name in enumerate(everything):
            official.check_image(files, name, official.read(files, name))
            self.progress("checking", done + 1, len(everything))
        return {
            "train": self._generate_examples(files, contents.train, 0, len(everything)),
            "validation": self._generate_examples(files, contents.validation, len(contents.train), len(everything)),
        }

    def _generate_examples(
        self, files: official.Files, classes: Mapping[str, str], start: int, total: int
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for done, (name, wnid) in enumerate(classes.items()):
            yield name.rpartition("/")[2], {"image": official.read(files, name), "label": wnid}
            self.progress("writing", start + done + 1, total)
