import dataclasses
import importlib

import numpy as np
import pytest

from mixtrain_jax import data
from mixtrain_jax.data import Dataset, Split, check
from mixtrain_jax.data.order import batch_indices, subset_indices
from mixtrain_jax.errors import ConfigError, DataError, NonFiniteError

digits_module = importlib.import_module("mixtrain_jax.data.digits")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_floats_are_pixels_of_the_domain(digits):
    floats = digits.train.floats()
    np.testing.assert_array_equal(floats.images * 16, digits.train.images)
    assert floats.floats().images is floats.images
    np.testing.assert_array_equal(Split(np.uint8([[[[255]]]]), np.int32([0])).floats().images, 1)


def test_integers_above_their_levels_are_refused(small):
    images = np.full((3, 2, 2, 1), 16, np.uint8)
    labels = np.zeros(3, np.int32)
    assert check(dataclasses.replace(small, test=Split(images, labels, 16)))
    images[1, 0, 1, 0] = 17
    with pytest.raises(DataError, match=r"test split: example 1 has a pixel outside \(0, 16\) \(1 such"):
        check(dataclasses.replace(small, test=Split(images, labels, 16)))


def together(digits):
    return (
        np.concatenate([digits.train.images, digits.test.images]),
        np.concatenate([digits.train.labels, digits.test.labels]),
    )


def test_digits_have_their_shapes_and_types(digits):
    assert digits.train.images.shape == (1297, 8, 8, 1)
    assert digits.test.images.shape == (500, 8, 8, 1)
    assert len(digits.train) == 1297
    assert len(digits.test) == 500
    for split in (digits.train, digits.test):
        assert split.images.dtype == np.uint8
        assert split.floats().images.dtype == np.float32
        assert split.labels.dtype == np.int32
    assert (digits.name, digits.classes, digits.domain) == ("digits", 10, (0.0, 1.0))


def test_digits_have_seventeen_grey_levels(digits):
    images, _ = together(digits)
    np.testing.assert_array_equal(np.unique(images), np.arange(17))


def test_digits_have_the_published_class_counts(digits):
    _, labels = together(digits)
    np.testing.assert_array_equal(np.bincount(labels), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])


def test_digits_are_those_of_scikit_learn_in_its_order(digits):
    datasets = pytest.importorskip("sklearn.datasets")
    theirs = datasets.load_digits()
    images, labels = together(digits)
    np.testing.assert_array_equal(images[..., 0], theirs.images)
    np.testing.assert_array_equal(labels, theirs.target)


def test_damaged_digits_are_refused(monkeypatch):
    monkeypatch.setattr(digits_module, "_SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"damaged.*reinstall"):
        data.load("digits")


@pytest.fixture
def small():
    rng = np.random.default_rng(0)

    def split(n):
        return Split(rng.uniform(size=(n, 2, 2, 1)).astype(np.float32), np.arange(n, dtype=np.int32) % 3)

    return Dataset("small", split(6), split(4), 3, (0.0, 1.0))


def with_pixel(small, split, example, value):
    images = getattr(small, split).images.copy()
    images[example, 1, 0, 0] = value
    return dataclasses.replace(small, **{split: Split(images, getattr(small, split).labels)})


def test_good_data_pass_unchanged(small):
    assert check(small) is small


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_refused(small, split, value):
    with pytest.raises(
        NonFiniteError, match=f"small, {split} split: example 2 has a pixel that is NaN or inf"
    ) as caught:
        check(with_pixel(small, split, 2, value))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("value", [-0.01, 1.01])
def test_pixels_outside_the_domain_are_refused(small, split, value):
    with pytest.raises(DataError, match=rf"{split} split: example 3 has a pixel outside \(0.0, 1.0\) \(1 such"):
        check(with_pixel(small, split, 3, value))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_pixels_at_the_ends_of_the_domain_pass(small, value):
    check(with_pixel(small, "train", 0, value))


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_that_are_no_class_are_refused(small, label):
    labels = small.test.labels.copy()
    labels[1] = label
    with pytest.raises(DataError, match=f"test split: example 1 has label {label}, expected 0 to 2"):
        check(dataclasses.replace(small, test=Split(small.test.images, labels)))


@pytest.mark.parametrize(
    "shapes", [((6, 2, 2), (6,)), ((6, 2, 2, 1), (5,)), ((6, 2, 2, 1), (6, 1)), ((0, 2, 2, 1), (0,))]
)
def test_wrong_shapes_are_refused(small, shapes):
    split = Split(np.zeros(shapes[0], np.float32), np.zeros(shapes[1], np.int32))
    with pytest.raises(DataError, match=r"train split: expected images \[n, height, width, channels\]"):
        check(dataclasses.replace(small, train=split))


def test_hold_out_takes_the_last_examples(small):
    kept, held = small.hold_out(2)
    np.testing.assert_array_equal(kept.images, small.train.images[:4])
    np.testing.assert_array_equal(held.images, small.train.images[4:])
    np.testing.assert_array_equal(held.labels, small.train.labels[4:])


@pytest.mark.parametrize("count", [-1, 0, 6, 7])
def test_hold_out_that_leaves_one_side_empty_is_refused(small, count):
    with pytest.raises(ConfigError, match=f"1 to 5 of the 6 training examples of small, got {count}"):
        small.hold_out(count)


@pytest.mark.parametrize(("batch", "count"), [(7, 20), (5, 20), (20, 20), (1, 3), (13, 4)])
def test_every_example_comes_once_an_epoch_across_batch_borders(batch, count):
    steps = -(-count * 6 // batch)
    stream = np.concatenate([batch_indices(3, step, batch, count) for step in range(steps)])
    assert stream.dtype == np.int32
    for epoch in range(6):
        np.testing.assert_array_equal(np.sort(stream[epoch * count : (epoch + 1) * count]), np.arange(count))


@pytest.mark.parametrize(("batch", "count", "k"), [(8, 64, 2), (7, 20, 3), (5, 23, 1), (9, 9, 4)])
def test_the_subset_of_an_epoch_has_its_share_and_no_example_twice(batch, count, k):
    by_epoch = {}
    for step in range(5 * count // batch):
        indices = subset_indices(1, step, batch, count, k)
        assert indices.shape == (k,)
        by_epoch.setdefault(step * batch // count, []).extend(indices.tolist())
    assert len(by_epoch) == 5
    for chosen in by_epoch.values():
        assert len(chosen) == len(set(chosen))
        assert set(chosen) <= set(range(count))
        assert abs(len(chosen) - count * k / batch) <= k
    assert by_epoch[0] != by_epoch[1]


def test_subsets_are_uniform():
    counts = np.zeros(12, int)
    for seed in range(1500):
        counts[subset_indices(seed, 1, 4, 12, 2)] += 1
    assert np.abs(counts / 1500 - 2 / 12).max() < 4 * (2 / 12 * 10 / 12 / 1500) ** 0.5


def test_a_subset_with_replacement_repeats_examples_and_is_pure():
    drawn = subset_indices(0, 3, 50, 50, 50, replace=True)
    assert len(set(drawn.tolist())) < 50
    assert drawn.max() < 50
    np.testing.assert_array_equal(drawn, subset_indices(0, 3, 50, 50, 50, replace=True))


def test_batches_are_full_even_beyond_the_number_of_examples():
    assert [len(batch_indices(0, step, 13, 4)) for step in range(3)] == [13] * 3


def test_batch_indices_are_pure():
    first = batch_indices(1, 5, 8, 30).copy()
    batch_indices(1, 5, 8, 30)[:] = -1
    for step in range(40, 0, -1):
        batch_indices(2, step, 8, 30)
    np.testing.assert_array_equal(batch_indices(1, 5, 8, 30), first)


def test_order_differs_between_epochs_and_seeds():
    assert (batch_indices(0, 0, 50, 50) != batch_indices(0, 1, 50, 50)).any()
    assert (batch_indices(0, 0, 50, 50) != batch_indices(1, 0, 50, 50)).any()


def test_hold_out_takes_the_first_examples_where_the_data_set_says_so(small):
    kept, held = dataclasses.replace(small, hold_out_first=True).hold_out(2)
    np.testing.assert_array_equal(held.images, small.train.images[:2])
    np.testing.assert_array_equal(kept.images, small.train.images[2:])
    np.testing.assert_array_equal(kept.labels, small.train.labels[2:])


def test_what_is_known_of_the_digits_without_loading_them_is_so():
    digits = data.load("digits")
    known = (digits.test.images.shape[1:], digits.classes, digits.domain, digits.normalization)
    assert known == data.signature("digits")
