import dataclasses
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import program
import pytest

from mixtrain_jax import data
from mixtrain_jax.config import Data
from mixtrain_jax.data import stream as stream_lib
from mixtrain_jax.data import tfds as reader
from mixtrain_jax.data.imagenet200 import official
from mixtrain_jax.data.order import batch_indices
from mixtrain_jax.errors import CheckpointError, ConfigError, DataError

for module in ("grain", "importlib_resources"):
    pytest.importorskip(module)
tfds = pytest.importorskip("tensorflow_datasets")
Image = pytest.importorskip("PIL.Image")

REAL = Path(os.environ.get("TFDS_DATA_DIR", "nowhere")).expanduser()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("went online")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


def environment():
    """The environment of a process that imports what this one does."""
    return {**os.environ, "COLUMNS": "200", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def encoded(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, kind)
    return file.getvalue()


class Pack(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("3.0.1")
    pkg_dir_path = Path(__file__).parent

    def _info(self):
        features = tfds.features.FeaturesDict(
            {"image": tfds.features.Image(shape=self.shape), "label": tfds.features.ClassLabel(num_classes=10)}
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(*arrays) for split, arrays in self.arrays.items()}

    def _generate_examples(self, images, labels):
        for key, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield key, {"image": image, "label": label}


def write(folder, name, shape, arrays, shards=1):
    """Prepare the TFDS data set `name` from the encoded images and the labels of each split."""
    body = {"shape": shape, "arrays": arrays}
    kind = types.new_class(
        name.title().replace("_", ""), (Pack,), {"skip_registration": True}, lambda n: n.update(body)
    )
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(num_shards=shards)
    kind(data_dir=str(folder), file_format="array_record").download_and_prepare(download_config=config)
    return folder


def random_images(shape, count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def random_set(folder, name="mnist", shape=(28, 28, 1), count=30):
    arrays = {}
    for seed, split in enumerate(("train", "test")):
        images = random_images(shape, count, seed)
        arrays[split] = [encoded(image) for image in images], (np.arange(count) % 10).tolist()
    return write(folder, name, shape, arrays)


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    return random_set(tmp_path_factory.mktemp("grey"))


@pytest.fixture
def copy(mnist, tmp_path):
    shutil.copytree(mnist / "mnist", tmp_path / "mnist")
    return tmp_path


def shard(folder, split="train"):
    return folder / f"mnist/3.0.1/mnist-{split}.array_record-00000-of-00001"


@pytest.mark.parametrize(("name", "shape"), [("fashion_mnist", (28, 28, 1)), ("svhn_cropped", (32, 32, 3))])
def test_a_split_has_the_values_that_were_written_in_the_order_of_tfds(tmp_path, name, shape):
    random_set(tmp_path, name, shape)
    for seed, split in enumerate(("train", "test")):
        source = reader.open_split(name, split, tmp_path)
        assert (len(source), source.shape, source.classes) == (30, shape, 10)
        images, labels = reader.read(source)
        assert (images.dtype, images.shape, labels.dtype, labels.shape) == (np.uint8, (30, *shape), np.int32, (30,))
        theirs = tfds.builder(f"{name}:3.0.1", data_dir=str(tmp_path)).as_data_source(split)
        np.testing.assert_array_equal(images, [example["image"] for example in theirs])
        np.testing.assert_array_equal(labels, [example["label"] for example in theirs])
        written = {image.tobytes(): k % 10 for k, image in enumerate(random_images(shape, 30, seed))}
        assert {image.tobytes(): label for image, label in zip(images, labels, strict=True)} == written


def test_grey_jpegs_in_a_colour_set_become_rgb(tmp_path):
    grey, colour = np.full((32, 32), 77, np.uint8), np.full((32, 32, 3), 99, np.uint8)
    write(tmp_path, "cifar10", (32, 32, 3), {"train": ([encoded(grey, "JPEG"), encoded(colour, "JPEG")], [0, 1])})
    images, labels = reader.read(reader.open_split("cifar10", "train", tmp_path))
    np.testing.assert_array_equal(images[labels == 0], np.full((1, 32, 32, 3), 77))
    np.testing.assert_array_equal(images[labels == 1], np.full((1, 32, 32, 3), 99))


@pytest.mark.parametrize("indices", [[], [4], [29, 0, 3], [7, 7, 2, 7], list(range(29, -1, -1))])
def test_take_gives_the_examples_asked_for(mnist, indices):
    source = reader.open_split("mnist", "train", mnist)
    images, labels = reader.read(source)
    taken = source.take(np.array(indices, np.int32))
    np.testing.assert_array_equal(taken[0], images[indices])
    np.testing.assert_array_equal(taken[1], labels[indices])


@pytest.mark.parametrize("index", [-1, 30])
def test_examples_that_do_not_exist_are_refused(mnist, index):
    with pytest.raises(IndexError, match=f"mnist, train split: no example {index}, expected 0 to 29"):
        reader.open_split("mnist", "train", mnist).take(np.array([0, index]))


def test_parts_of_splits_and_versions_are_understood(mnist):
    whole, _ = reader.read(reader.open_split("mnist:3.0.1", "train", mnist))
    source = reader.open_split("mnist", "train[10:15]", mnist)
    np.testing.assert_array_equal(reader.read(source)[0], whole[10:15])
    assert len(source) == 5


def test_threads_may_take_at_once(mnist):
    source = reader.open_split("mnist", "train", mnist)
    images, _ = reader.read(reader.open_split("mnist", "train", mnist))
    plans = [np.random.default_rng(k).integers(0, 30, 16) for k in range(40)]
    with ThreadPoolExecutor(8) as pool:
        for plan, (taken, _) in zip(plans, pool.map(source.take, plans), strict=True):
            np.testing.assert_array_equal(taken, images[plan])


def test_progress_counts_to_the_end(mnist, monkeypatch):
    monkeypatch.setattr(reader, "_CHUNK", 12)
    calls = []
    images, _ = reader.read(reader.open_split("mnist", "train", mnist), lambda *call: calls.append(call))
    assert calls == [(12, 30), (24, 30), (30, 30)]
    assert len(np.unique(images.reshape(30, -1), axis=0)) == 30


def test_the_folder_is_that_of_the_environment_by_default(mnist, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(mnist))
    assert len(reader.open_split("mnist", "test")) == 30
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert reader.find_data_dir() == Path.home() / "tensorflow_datasets"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("fashion_mnist", "pip install tensorflow && tfds build fashion_mnist --file_format=array_record --data_dir="),
        ("svhn_cropped", "pip install tensorflow scipy && tfds build svhn_cropped "),
        ("mnist:2.0.0", "tfds build mnist:2.0.0"),
        ("imagenet200", "python -m mixtrain_jax.data.imagenet200 --data-dir "),
        ("imagenet200/train250", " --train-per-class 250."),
    ],
)
def test_a_set_that_is_missing_is_named_with_the_command_that_prepares_it(mnist, name, command, capfd):
    with pytest.raises(DataError, match=r"is not prepared: found no .*dataset_info.json") as caught:
        reader.open_split(name, "train", mnist)
    assert command in str(caught.value)
    assert str(mnist) in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_split_that_is_missing_is_named_with_those_there_are(mnist):
    with pytest.raises(DataError, match="has no split validation, only test, train"):
        reader.open_split("mnist", "validation", mnist)
    with pytest.raises(DataError, match=r"train\[x\] split .*Expected a split such as test, or a part of it"):
        reader.open_split("mnist", "train[x]", mnist)


@pytest.mark.parametrize("size", [0, 1000, 70000, -100])
def test_a_file_that_is_cut_short_is_named(copy, size):
    file = shard(copy)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(DataError, match=rf"{file.name} cannot be read: .* Remove .*3.0.1 and prepare it again: pip"):
        reader.open_split("mnist", "train", copy)


def test_a_file_that_is_gone_is_named(copy):
    shard(copy).unlink()
    with pytest.raises(DataError, match=rf"{shard(copy).name} cannot be read: .*No such file"):
        reader.open_split("mnist", "train", copy)


def test_a_record_that_is_damaged_is_named(copy):
    data = bytearray(shard(copy).read_bytes())
    start = next(k for k in range(2 * 65536) if data[k : k + 4] == b"\x89PNG"[:4])
    data[start + 200 : start + 220] = bytes(20)
    shard(copy).write_bytes(data)
    source = reader.open_split("mnist", "train", copy)
    with pytest.raises(DataError, match=r"mnist, train split: example \d+, in .*array_record-.*prepare it again"):
        reader.read(source)


def test_a_file_with_another_number_of_examples_is_named(copy):
    path = copy / "mnist/3.0.1/dataset_info.json"
    info = json.loads(path.read_text())
    for split in info["splits"]:
        split["shardLengths"] = ["31"]
    path.write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"has 30 examples, expected 31. Remove .* and prepare it again"):
        reader.open_split("mnist", "train", copy)


def test_a_description_that_is_damaged_is_named(copy):
    (copy / "mnist/3.0.1/dataset_info.json").write_text("{")
    with pytest.raises(DataError, match=r"mnist in .* cannot be opened: .* Remove .* and prepare it again"):
        reader.open_split("mnist", "train", copy)


def test_another_file_format_is_named(copy):
    path = copy / "mnist/3.0.1/dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match=r"array_record does not match .*tfrecord.* --file_format=array_record"):
        reader.open_split("mnist", "train", copy)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"not an image", "cannot identify image file"),
        (encoded(random_images((28, 28), 1)[0])[:300], "truncated"),
        (encoded(random_images((27, 28), 1)[0]), "expected an image 28x28 in mode L, got 27x28 in mode L"),
        (encoded(random_images((28, 28, 3), 1)[0]), "expected an image 28x28 in mode L, got 28x28 in mode RGB"),
    ],
)
def test_an_example_that_is_no_such_image_is_named(tmp_path, image, message):
    good = encoded(random_images((28, 28), 1)[0])
    write(tmp_path, "mnist", (28, 28, 1), {"train": ([good, good, image, good], [0, 1, 2, 3])})
    source = reader.open_split("mnist", "train", tmp_path)
    with pytest.raises(
        DataError, match=rf"mnist, train split: example \d, in .*: .*{message}.*prepare it again"
    ) as caught:
        reader.read(source)
    bad = int(str(caught.value).partition("example ")[2][0])
    others = np.delete(np.arange(4), bad)
    np.testing.assert_array_equal(np.sort(source.take(others)[1]), [0, 1, 3])


def test_the_file_that_is_named_is_the_one_with_the_example(tmp_path):
    good = [encoded(image) for image in random_images((28, 28, 1), 30)]
    write(tmp_path, "mnist", (28, 28, 1), {"train": ([*good[:20], b"not an image", *good[21:]], [0] * 30)}, shards=3)
    source = reader.open_split("mnist", "train", tmp_path)
    found = {}
    for k in range(30):
        try:
            source.take(np.array([k]))
        except DataError as error:
            found[k] = str(error)
    ((k, message),) = found.items()
    lengths = np.cumsum([int(n) for n in shard_lengths(tmp_path)])
    assert f"example {k}, in {tmp_path}/mnist/3.0.1/mnist-train.array_record-" in message
    assert f"-{np.searchsorted(lengths, k, side='right'):05d}-of-00003: " in message


def shard_lengths(folder):
    (split,) = json.loads((folder / "mnist/3.0.1/dataset_info.json").read_text())["splits"]
    return split["shardLengths"]


@pytest.mark.parametrize("shape", [(None, None, 3), (28, 28, 4)])
def test_sets_of_other_images_are_refused(tmp_path, shape):
    write(tmp_path, "mnist", shape, {"train": ([encoded(random_images((28, 28), 1)[0])], [0])})
    with pytest.raises(DataError, match="mnist is not a data set that can be read: expected the features image"):
        reader.open_split("mnist", "train", tmp_path)


@pytest.mark.parametrize("package", ["tensorflow_datasets", "PIL.PngImagePlugin"])
def test_missing_packages_are_named_with_the_extra_that_has_them(mnist, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf'missing \(.*{package}.*\): pip install "mixtrain_jax\[data\]"'):
        reader.open_split("mnist", "train", mnist)


def test_nothing_is_imported_before_it_is_needed():
    code = (
        "import sys, mixtrain_jax, mixtrain_jax.data, mixtrain_jax.data.tfds, mixtrain_jax.data.stream\n"
        "import mixtrain_jax.data.imagenet200.official, mixtrain_jax.data.imagenet200.prepare\n"
        "print(*(n for n in ('tensorflow_datasets', 'grain', 'PIL', 'array_record', 'tensorflow') if n in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout.strip() == ""


# ImageNet-200.

WNIDS = [f"n{k:08d}" for k in np.random.default_rng(0).permutation(200)]


def jpeg(seed, shape=(64, 64, 3)):
    return encoded(np.full(shape, seed % 251, np.uint8), "JPEG")


def official_files(train_per_class=2):
    """Names and bytes of a data set as it is published, but for its size; every fifth image is grey."""
    names = [f"train/{w}/images/{w}_{k}.JPEG" for w in WNIDS for k in range(train_per_class)]
    names += [f"val/images/val_{k}.JPEG" for k in range(200)]
    files = {name: jpeg(k, (64, 64) if k % 5 == 0 else (64, 64, 3)) for k, name in enumerate(names)}
    files["wnids.txt"] = ("\n".join(WNIDS) + "\n").encode()
    rows = [f"val_{k}.JPEG\t{WNIDS[(7 * k) % 200]}\t0\t0\t63\t63\n" for k in range(200)]
    files["val/val_annotations.txt"] = "".join(rows).encode()
    files["train/n00000000/n00000000_boxes.txt"] = b"n00000000_0.JPEG\t0\t0\t63\t63\n"
    files["test/images/test_0.JPEG"] = jpeg(0)
    return files


def lay_out(folder, files):
    for name, content in files.items():
        path = folder / official.NAME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def zip_up(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{official.NAME}.zip", "w") as archive:
        archive.mkdir(official.NAME)
        for name, content in files.items():
            archive.writestr(f"{official.NAME}/{name}", content)
    return folder


@pytest.fixture
def command(monkeypatch):
    """The command, for a data set with one validation image a class."""
    from mixtrain_jax.data.imagenet200 import __main__ as program

    monkeypatch.setattr(official, "VALIDATION_PER_CLASS", 1)
    return lambda *arguments: program.main([str(argument) for argument in arguments])


def everything(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_zip_and_folder_become_the_same_set_with_labels_in_the_order_of_wnids(tmp_path, command, capsys):
    files = official_files()
    read = {}
    for lay in (lay_out, zip_up):
        folder = tmp_path / lay.__name__
        lay(folder / "downloads/manual", files)
        assert command("--data-dir", folder, "--train-per-class", 2) == 0
        assert capsys.readouterr().out == f"ImageNet-200 is prepared in {folder}/imagenet200/train2/1.0.0.\n"
        assert everything(folder)[0] == "downloads"
        assert sorted(path.name for path in folder.iterdir()) == ["downloads", "imagenet200"]
        sources = [reader.open_split("imagenet200/train2", split, folder) for split in ("train", "validation")]
        assert [len(source) for source in sources] == [400, 200]
        assert all((source.shape, source.classes) == ((64, 64, 3), 200) for source in sources)
        read[lay] = [array for source in sources for array in reader.read(source)]
        names = tfds.builder("imagenet200/train2:1.0.0", data_dir=str(folder)).info.features["label"].names
        assert names == WNIDS
    for one, other in zip(*read.values(), strict=True):
        np.testing.assert_array_equal(one, other)
    images, labels, val_images, val_labels = read[zip_up]
    np.testing.assert_array_equal(np.bincount(labels), np.full(200, 2))
    # Image k of class c was written in the one colour 2 c + k, and validation image k in 400 + k.
    colours = [(2 * c + k) % 251 for c in range(200) for k in range(2)]
    got = sorted((int(label), int(image[0, 0, 0])) for image, label in zip(images, labels, strict=True))
    assert got == sorted((k // 2, colour) for k, colour in enumerate(colours))
    got = sorted((int(label), int(image[0, 0, 0])) for image, label in zip(val_images, val_labels, strict=True))
    assert got == sorted(((7 * k) % 200, (400 + k) % 251) for k in range(200))
    assert (images == images[:, :1, :1, :1]).all()


def test_preparing_again_changes_nothing(tmp_path, command, capsys):
    lay_out(tmp_path / "manual", official_files(1))
    arguments = ("--data-dir", tmp_path / "data", "--manual-dir", tmp_path / "manual", "--train-per-class", 1)
    assert command(*arguments) == 0
    shutil.rmtree(tmp_path / "manual")
    before = everything(tmp_path)
    assert command(*arguments) == 0
    assert "was prepared before, in" in capsys.readouterr().out
    assert everything(tmp_path) == before
    with pytest.raises(DataError, match="imagenet200 is not prepared"):
        reader.open_split("imagenet200", "train", tmp_path / "data")


def test_the_whole_set_has_no_config(tmp_path, command, monkeypatch):
    monkeypatch.setattr(official, "TRAIN_PER_CLASS", 1)
    zip_up(tmp_path / "downloads/manual", official_files(1))
    assert command("--data-dir", tmp_path) == 0
    assert [path.name for path in (tmp_path / "imagenet200").iterdir()] == ["1.0.0"]
    for split in ("train", "validation"):
        _, labels = reader.read(reader.open_split("imagenet200", split, tmp_path))
        np.testing.assert_array_equal(np.sort(labels), np.arange(200))


def without(name):
    return lambda files: files.pop(name)


def but(name, data):
    return lambda files: files.update({name: data})


def changed(name, old, new):
    return lambda files: files.update({name: files[name].replace(old, new)})


FIRST = f"train/{WNIDS[0]}/images/{WNIDS[0]}_0.JPEG"
BAD_FILES = [
    (without(FIRST), f"class {WNIDS[0]} has 0 training images, expected 1 \\(199 of 200 in all\\)"),
    (but(f"train/{WNIDS[3]}/images/x.JPEG", jpeg(0)), f"class {WNIDS[3]} has 2 training images, expected 1"),
    (but("train/n12345678/images/x.JPEG", jpeg(0)), "class n12345678 has 1 training images, expected 0"),
    (without("wnids.txt"), "wnids.txt is missing"),
    (changed("wnids.txt", WNIDS[5].encode(), b""), "wnids.txt has 199 different classes in 199 lines, expected 200"),
    (changed("wnids.txt", WNIDS[5].encode(), WNIDS[6].encode()), "wnids.txt has 199 different classes in 200 lines"),
    (without("val/val_annotations.txt"), "val_annotations.txt is missing"),
    (without("val/images/val_7.JPEG"), "val_7.JPEG is in val_annotations.txt, but missing"),
    (but("val/images/val_200.JPEG", jpeg(0)), "val_200.JPEG is not in val_annotations.txt"),
    (changed("val/val_annotations.txt", WNIDS[7].encode(), WNIDS[0].encode()), "has 2 validation images, expected 1"),
    (but(FIRST, b"not an image"), f"{FIRST} is no JPEG image"),
    (but("val/images/val_9.JPEG", encoded(random_images((64, 64), 1)[0])), "val_9.JPEG is no JPEG image"),
    (but("val/images/val_9.JPEG", jpeg(0, (64, 63, 3))), "val_9.JPEG is 63x64 in mode RGB, expected 64x64"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_FILES)
def test_files_that_are_not_what_was_published_are_refused_and_nothing_is_written(
    tmp_path, monkeypatch, spoil, message
):
    from mixtrain_jax.data.imagenet200.prepare import prepare

    monkeypatch.setattr(official, "VALIDATION_PER_CLASS", 1)
    files = official_files(1)
    spoil(files)
    zip_up(tmp_path / "downloads/manual", files)
    before = everything(tmp_path)
    with pytest.raises(DataError, match=rf"tiny-imagenet-200.zip: .*{message}.* Download .* again"):
        prepare(tmp_path, train_per_class=1)
    assert everything(tmp_path) == before


def test_by_default_the_whole_set_is_expected(tmp_path, command, capsys):
    lay_out(tmp_path / "downloads/manual", official_files(2))
    before = everything(tmp_path)
    assert command("--data-dir", tmp_path) == 1
    captured = capsys.readouterr()
    assert "has 2 training images, expected 500 (400 of 100000 in all)" in " ".join(captured.err.split())
    assert captured.out == ""
    assert everything(tmp_path) == before


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: spoilt(data)])
def test_a_damaged_zip_is_named(tmp_path, command, capsys, damage):
    path = zip_up(tmp_path, official_files(1)) / f"{official.NAME}.zip"
    path.write_bytes(damage(path.read_bytes()))
    assert command("--data-dir", tmp_path / "data", "--manual-dir", tmp_path, "--train-per-class", 1) == 1
    assert f"Download {official.URL} again" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.glob("data/*"))


def spoilt(data):
    """The zip with one byte changed in the middle of its first image."""
    at = data.index(b"JFIF") + 300
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_preparation_that_stops_half_way(tmp_path, monkeypatch, error):
    from mixtrain_jax.data.imagenet200.prepare import prepare

    def stop(what, done, total):
        if (what, done, total) == ("writing", 250, 400):
            raise error

    monkeypatch.setattr(official, "VALIDATION_PER_CLASS", 1)
    lay_out(tmp_path / "downloads/manual", official_files(1))
    before = everything(tmp_path)
    with pytest.raises(type(error)):
        prepare(tmp_path, train_per_class=1, progress=stop)
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--help"], 0, "--train-per-class N"),
        (
            ["--data-dir", "nowhere"],
            1,
            "Found neither tiny-imagenet-200.zip nor the folder tiny-imagenet-200 in nowhere",
        ),
        (["--train-per-class", "0"], 1, "Expected 1 to 500 training images a class, got 0."),
        (["--train-per-class", "many"], 2, "invalid int value"),
    ],
)
def test_the_command_explains_itself(tmp_path, arguments, code, message):
    line = [sys.executable, "-m", "mixtrain_jax.data.imagenet200", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment())
    assert done.returncode == code
    assert message in " ".join((done.stdout + done.stderr).split())
    assert list(tmp_path.iterdir()) == []


# Streams.


def plan(step):
    return batch_indices(3, step, 8, 30)


def test_a_stream_yields_the_batches_of_the_steps_in_order(mnist):
    source = reader.open_split("mnist", "train", mnist)
    images, labels = reader.read(source)
    for threads, buffer in ((0, 0), (1, 1), (3, 7)):
        with stream_lib.stream(source.take, plan, 5, 17, threads=threads, buffer=buffer) as batches:
            for step, (taken, classes) in zip(range(5, 17), batches, strict=True):
                np.testing.assert_array_equal(taken, images[plan(step)])
                np.testing.assert_array_equal(classes, labels[plan(step)])


def test_a_stream_that_is_resumed_equals_one_that_was_not_interrupted():
    def run(first, last):
        with stream_lib.stream(lambda indices: indices * 2, plan, first, last) as batches:
            return [batch.tolist() for batch in batches]

    assert run(0, 9) + run(9, 20) == run(0, 20)
    assert run(4, 4) == []


def test_a_stream_goes_on_at_the_state_it_is_given():
    with stream_lib.stream(lambda indices: indices * 2, plan, 3, 12) as batches:
        assert batches.get_state() == {"step": 3}
        seen = [next(batches).tolist() for _ in range(5)]
        state = json.loads(json.dumps(batches.get_state()))
        assert state == {"step": 8}
        rest = [batch.tolist() for batch in batches]
        assert batches.get_state() == {"step": 12}
        batches.set_state(state)
        assert [batch.tolist() for batch in batches] == rest
        batches.set_state({"step": 3})
        assert [next(batches).tolist() for _ in range(5)] == seen
        for step in (2, 13):
            with pytest.raises(CheckpointError, match=f"steps 3 to 12 cannot go on at step {step}"):
                batches.set_state({"step": step})


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_in_a_worker_comes_out_at_its_step_and_can_be_tried_again(threads):
    broken = threading.Event()
    broken.set()

    def take(indices):
        if broken.is_set() and indices.tolist() == plan(4).tolist():
            raise DataError("example 7 is damaged.")
        return indices

    with stream_lib.stream(take, plan, 0, 8, threads=threads) as batches:
        assert [next(batches).tolist() for _ in range(4)] == [plan(step).tolist() for step in range(4)]
        for _ in range(2):
            with pytest.raises(DataError, match="example 7 is damaged"):
                next(batches)
            assert batches.get_state() == {"step": 4}
        broken.clear()
        assert [batch.tolist() for batch in batches] == [plan(step).tolist() for step in range(4, 8)]


def test_a_damaged_image_comes_out_of_a_stream(tmp_path):
    good = encoded(random_images((28, 28), 1)[0])
    write(tmp_path, "mnist", (28, 28, 1), {"train": ([*[good] * 29, b"not an image"], [0] * 30)})
    source = reader.open_split("mnist", "train", tmp_path)
    with (
        stream_lib.stream(source.take, plan, 0, 4) as batches,
        pytest.raises(DataError, match=r"mnist, train split: example \d+, in .*cannot identify"),
    ):
        list(batches)


@pytest.mark.parametrize(
    ("first", "last", "threads", "buffer"), [(-1, 2, 1, 1), (3, 2, 1, 1), (0, 2, -1, 1), (0, 2, 3, 2)]
)
def test_numbers_out_of_range_are_refused(first, last, threads, buffer):
    with pytest.raises(ConfigError, match=f"got first {first}, last {last}, threads {threads}, buffer {buffer}"):
        stream_lib.stream(lambda indices: indices, plan, first, last, threads=threads, buffer=buffer)


def test_streaming_without_grain_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(DataError, match=r'Streaming needs .*: pip install "mixtrain_jax\[data\]"'):
        stream_lib.stream(lambda indices: indices, plan, 0, 1)


def test_closed_streams_leave_no_threads():
    def workers():
        return {thread for thread in threading.enumerate() if "grain" in thread.name}

    before = workers()
    for close in (True, False):
        batches = stream_lib.stream(lambda indices: indices, plan, 0, 50, threads=3)
        next(batches)
        if close:
            batches.close()
        del batches
    deadline = time.monotonic() + program.LIMIT
    while workers() - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert workers() <= before


def test_what_is_queued_does_not_keep_a_process_alive_that_fails():
    code = (
        "import time, numpy as np\n"
        "from mixtrain_jax.data.stream import stream\n"
        "take = lambda indices: print('taken', flush=True) or time.sleep(0.5) or indices\n"
        "with stream(take, lambda step: np.arange(step), 0, 200, threads=2, buffer=100) as batches:\n"
        "    next(batches)\n"
        "    raise SystemExit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert (done.returncode, done.stderr) == (3, "")
    assert 1 <= done.stdout.count("taken") < 50  # of the 100 that were to be read ahead


# The real data, where they are at hand.

DIGITS = {
    "train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    "test": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("name", "shape"), [("mnist", (28, 28, 1)), ("cifar10", (32, 32, 3))])
def test_the_real_sets_have_their_published_counts(name, shape, split):
    if not (REAL / name).is_dir():
        pytest.skip(f"{name} is not in TFDS_DATA_DIR")
    images, labels = reader.read(reader.open_split(name, split, REAL))
    each = {"train": 5000, "test": 1000}[split]
    np.testing.assert_array_equal(np.bincount(labels), DIGITS[split] if name == "mnist" else [each] * 10)
    assert images.shape == (len(labels), *shape)
    assert (images.min(), images.max()) == (0, 255)


def test_load_keeps_a_small_set_in_memory(mnist):
    told = []
    found = data.load("mnist", mnist, lambda *args: told.append(args))
    assert (found.name, found.classes, found.domain, found.normalization) == ("mnist", 10, (0.0, 1.0), None)
    for split, name in ((found.train, "train"), (found.test, "test")):
        images, labels = reader.read(reader.open_split("mnist", name, mnist))
        np.testing.assert_array_equal(split.images, images)
        np.testing.assert_array_equal(split.labels, labels)
        np.testing.assert_array_equal(split.floats().images * np.float32(255), images)
    assert told == [("read mnist, train", 30, 30), ("read mnist, test", 30, 30)]


def test_load_streams_imagenet_and_certifies_its_validation_split(tmp_path, command, monkeypatch):
    lay_out(tmp_path / "downloads/manual", official_files())
    assert command("--data-dir", tmp_path, "--train-per-class", 2) == 0
    monkeypatch.setitem(data.PREPARED, "imagenet200/train2", data.PREPARED["imagenet200/train250"])
    found = data.load("imagenet200/train2", tmp_path)
    assert (len(found.train), len(found.test), found.classes) == (400, 200, 200)
    images, labels = reader.read(reader.open_split("imagenet200/train2", "train", tmp_path))
    kept, held = found.hold_out(50)
    assert (len(kept), len(held)) == (350, 50)
    np.testing.assert_array_equal(held.images, images[350:])
    where = np.array([349, 0, 0, 7])
    for got, expected in zip(kept.take(where), (images[where], labels[where]), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_every_prepared_set_can_be_asked_for_and_the_other_way_round():
    assert set(get_args(get_type_hints(Data)["name"])) == {"digits", *data.PREPARED}


def test_a_label_that_is_no_class_is_named(tmp_path):
    source = reader.open_split("mnist", "train", random_set(tmp_path))
    _, labels = source.take(np.arange(30))
    source = dataclasses.replace(source, classes=int(labels.max()))
    first = int(np.argmax(labels))
    with pytest.raises(DataError, match=rf"example {first}, in .*: label {labels.max()}, expected 0 to"):
        source.take(np.arange(30))


def test_sources_say_what_they_are(mnist):
    source = reader.open_split("mnist", "train", mnist)
    assert repr(source) == "Source(name='mnist', split='train', shape=(28, 28, 1), classes=10)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        source.name = "other"
