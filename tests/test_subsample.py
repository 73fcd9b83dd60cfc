import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixtrain_jax import subsample

DRAWS = 4000


def draws(n, k, *, replace=False):
    keys = jax.random.split(jax.random.key(1), DRAWS)
    return np.asarray(jax.vmap(lambda key: subsample.draw(key, n, k, replace=replace))(keys))


@pytest.mark.parametrize("k", [1, 3, 8])
def test_indices_are_distinct_and_in_range(k):
    drawn = draws(8, k)
    assert drawn.dtype == np.int32
    assert drawn.shape == (DRAWS, k)
    assert drawn.min() >= 0
    assert drawn.max() <= 7
    assert all(len(set(row)) == k for row in drawn.tolist())


def test_all_of_a_batch_is_a_permutation():
    drawn = draws(5, 5)
    np.testing.assert_array_equal(np.sort(drawn, axis=1), np.broadcast_to(np.arange(5), drawn.shape))
    assert len({tuple(row) for row in drawn.tolist()}) == 120


@pytest.mark.parametrize("replace", [False, True])
def test_every_index_is_equally_frequent(replace):
    n, k = 8, 3
    counts = np.bincount(draws(n, k, replace=replace).ravel(), minlength=n)
    chi_square = ((counts - DRAWS * k / n) ** 2 / (DRAWS * k / n)).sum()
    assert chi_square < 24.3  # 0.999 quantile at 7 degrees of freedom


def test_every_pair_is_equally_frequent():
    counts = collections.Counter(frozenset(row) for row in draws(4, 2).tolist())
    assert len(counts) == 6
    sigma = (DRAWS * 1 / 6 * 5 / 6) ** 0.5
    assert all(abs(count - DRAWS / 6) < 4 * sigma for count in counts.values())


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_mean_of_the_subsample_is_unbiased(k, replace):
    values = np.random.default_rng(0).lognormal(size=8)
    means = values[draws(8, k, replace=replace)].mean(1)
    assert means.std() > 0
    assert abs(means.mean() - values.mean()) < 4 * means.std() / DRAWS**0.5


def test_with_replacement_indices_repeat():
    repeated = np.mean([len(set(row)) < 3 for row in draws(8, 3, replace=True).tolist()])
    assert abs(repeated - (1 - 7 / 8 * 6 / 8)) < 4 * 0.5 / DRAWS**0.5


def test_a_key_draws_the_same_again_and_another_key_another(key):
    first = subsample.draw(key, 100, 10)
    np.testing.assert_array_equal(first, subsample.draw(key, 100, 10))
    assert (first != subsample.draw(jax.random.key(1), 100, 10)).any()


def test_works_in_jit(key):
    np.testing.assert_array_equal(jax.jit(lambda k: subsample.draw(k, 9, 4))(key), subsample.draw(key, 9, 4))
    assert jnp.issubdtype(subsample.draw(key, 9, 4).dtype, jnp.integer)


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("k", [-1, 0, 9])
def test_k_out_of_range_is_refused(key, k, replace):
    with pytest.raises(ValueError, match=f"1 <= k <= n, got k = {k} of n = 8"):
        subsample.draw(key, 8, k, replace=replace)
