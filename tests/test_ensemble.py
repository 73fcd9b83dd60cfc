"""The mean logits of several networks, bounded and attacked as one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixtrain_jax as mt
from mixtrain_jax import models

MEMBERS, LABELS = 3, jnp.arange(4)


@pytest.fixture(scope="module", params=["mlp", "small"])
def ensemble(request):
    alone = models.predictor(request.param, classes=5, width=6)
    together = models.predictor(request.param, classes=5, width=6, members=MEMBERS)
    images = np.random.default_rng(0).uniform(size=(4, 8, 8, 1)).astype(np.float32)
    return alone, together, together.init(jax.random.key(0), images), images


def test_the_prediction_is_the_mean_of_the_members(ensemble):
    alone, together, params, images = ensemble
    each = [alone.apply(jax.tree.map(lambda x, i=i: x[i], params), images) for i in range(MEMBERS)]
    np.testing.assert_allclose(together.apply(params, images), np.mean(each, 0), rtol=1e-5, atol=1e-6)
    assert np.abs(each[0] - each[1]).max() > 1e-3  # each from a key of its own


def test_interval_bounds_of_its_margins_are_the_means_of_the_members(ensemble):
    """The last layer is folded into the specification, which is linear in the members."""
    alone, together, params, images = ensemble
    ball = mt.linf_ball(images, 0.03, domain=(0, 1))
    bound = jax.jit(lambda params: mt.margins(mt.ibp, functools.partial(together.apply, params))(ball, LABELS))
    one = jax.jit(lambda params: mt.margins(mt.ibp, functools.partial(alone.apply, params))(ball, LABELS))
    each = [one(jax.tree.map(lambda x, i=i: x[i], params)) for i in range(MEMBERS)]
    np.testing.assert_allclose(bound(params), np.mean(each, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [mt.ibp, mt.crown_ibp, mt.crown])
def test_its_bounds_hold_at_points_of_the_ball(method, ensemble):
    _, together, params, images = ensemble
    ball = mt.linf_ball(images, 0.03, domain=(0, 1))
    logits_fn = functools.partial(together.apply, params)
    lower = np.asarray(jax.jit(lambda: mt.margins(method, logits_fn)(ball, LABELS))())
    points = np.random.default_rng(1).uniform(ball.lower, ball.upper, (200, *images.shape)).astype(np.float32)
    logits = np.asarray(jax.jit(jax.vmap(logits_fn))(points))
    margins = logits[:, np.arange(4), np.arange(4)][..., None] - logits
    others = np.stack([np.delete(margins[:, i], i, axis=-1) for i in range(4)], 1)
    assert (others.min(0) >= lower - 1e-5).all()
    assert (lower > -10).all()
