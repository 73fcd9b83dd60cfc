import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments import experiment

from mixtrain_jax.data import Split, Streamed
from mixtrain_jax.data.order import batch_indices, subset_indices
from mixtrain_jax.training.feed import augment, make_feed
from mixtrain_jax.training.steps import Batch

KEY = jax.random.key(3)
COUNT = 40


@pytest.fixture(scope="module")
def split():
    images = np.random.default_rng(0).integers(0, 17, (COUNT, 6, 5, 2), np.uint8)
    return Split(images, np.arange(COUNT, dtype=np.int32), levels=16)


def config(**fields):
    return experiment(**{"batch_size": 8, "robust_examples": 2, **fields})


def collected(feed, first, last):
    """The examples of each step, without those that are there to fill up the devices."""
    found = jax.device_get(list(feed(first, last)))
    return jax.tree.map(lambda b: Batch(b.images[: len(b)], b.labels[: len(b)]), found, is_leaf=_is_batch)


def _is_batch(x):
    return isinstance(x, Batch)


def same(a, b):
    assert len(a) == len(b) > 0
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(params=["in memory", "streamed"])
def source(request, split):
    if request.param == "in memory":
        return split
    pytest.importorskip("grain")
    longer = dataclasses.replace(split, images=np.concatenate([split.images[:3], split.images]))
    labels = np.concatenate([split.labels[:3], split.labels])
    return Streamed(lambda i: (longer.images[i], labels[i]), 0, COUNT + 3, 16)[3:]


def test_a_batch_is_what_the_order_says_as_floats(source, split):
    for step, (batch, pool) in enumerate(collected(make_feed(config(seed=4), source, KEY), 0, 7)):
        indices = batch_indices(4, step, 8, COUNT)
        np.testing.assert_array_equal(batch.images * 16, split.images[indices])
        np.testing.assert_array_equal(batch.labels, indices)
        assert batch.images.dtype == np.float32
        same([batch], [pool])


@pytest.mark.parametrize("replace", [False, True])
def test_the_pool_of_an_epoch_is_its_subset(source, split, replace):
    feed = make_feed(config(subsample="epoch", replace=replace, seed=4), source, KEY)
    for step, (batch, pool) in enumerate(collected(feed, 0, 7)):
        np.testing.assert_array_equal(batch.labels, batch_indices(4, step, 8, COUNT))
        indices = subset_indices(4, step, 8, COUNT, 2, replace=replace)
        np.testing.assert_array_equal(pool.labels, indices)
        np.testing.assert_array_equal(pool.images * 16, split.images[indices])


@pytest.mark.parametrize("trainer", ["robust", "pgd"])
def test_where_all_examples_are_robust_the_pool_is_the_batch(split, trainer):
    for batch, pool in collected(make_feed(config(subsample="epoch", trainer=trainer), split, KEY), 0, 2):
        same([batch], [pool])


def test_a_feed_goes_on_from_any_step_as_if_it_had_not_stopped(source):
    fields = {"subsample": "epoch", "crop": 2, "flip": True}
    whole = collected(make_feed(config(**fields), source, KEY), 0, 9)
    rest = collected(make_feed(config(**fields), source, KEY), 5, 9)
    same(whole[5:], rest)
    assert (whole[0].batch.images != whole[5].batch.images).any()


def test_streamed_and_resident_examples_are_the_same(split):
    pytest.importorskip("grain")
    streamed = Streamed(split.take, 0, COUNT, 16)
    fields = {"subsample": "epoch", "crop": 1, "flip": True}
    same(
        collected(make_feed(config(**fields), split, KEY), 0, 6),
        collected(make_feed(config(**fields), streamed, KEY), 0, 6),
    )


def test_a_streamed_split_is_sliced_and_loaded_like_one_in_memory(split):
    streamed = Streamed(split.take, 0, COUNT, 16)
    for where in (slice(5, None), slice(None, -5), slice(-5, None), slice(4, 9)):
        assert len(streamed[where]) == len(split[where])
        same([dataclasses.astuple(streamed[where].load())], [dataclasses.astuple(split[where])])
    same([streamed[3:][2:].take(np.array([4, 0]))], [split.take(np.array([9, 5]))])


def test_without_augmentation_images_stay(split):
    np.testing.assert_array_equal(augment(KEY, split.images, crop=0, flip=False), split.images)


def test_flips_mirror_about_half_of_the_images(split):
    images = np.tile(split.images, (10, 1, 1, 1))
    found = np.asarray(augment(KEY, images, crop=0, flip=True))
    assert found.dtype == np.uint8
    mirrored = (found == images[:, :, ::-1]).all((1, 2, 3))
    kept = (found == images).all((1, 2, 3))
    assert (mirrored ^ kept).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / 400**0.5


def test_crops_shift_each_image_by_its_own_offset(split):
    crop = 2
    found = np.asarray(augment(KEY, split.images, crop=crop, flip=False))
    padded = np.pad(split.images, ((0, 0), (crop, crop), (crop, crop), (0, 0)))
    offsets = []
    for i, image in enumerate(found):
        fits = [
            (y, x)
            for y in range(2 * crop + 1)
            for x in range(2 * crop + 1)
            if (padded[i, y : y + 6, x : x + 5] == image).all()
        ]
        assert len(fits) == 1
        offsets += fits
    assert len(set(offsets)) > 12
    assert {y for y, _ in offsets} == {x for _, x in offsets} == set(range(2 * crop + 1))


def test_augmentation_is_a_function_of_the_key(split):
    one, again, other = (
        np.asarray(augment(key, jnp.asarray(split.images), crop=2, flip=True))
        for key in (KEY, KEY, jax.random.fold_in(KEY, 1))
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
