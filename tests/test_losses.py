import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks as networks

from mixtrain_jax import bounds, losses
from mixtrain_jax.bounds import linf_ball, margins

METHODS = {"ibp": bounds.ibp, "crown_ibp": bounds.crown_ibp, "symbolic": bounds.symbolic, "crown": bounds.crown}


def cross_entropy(logits, labels):
    logits = np.asarray(logits, np.float64)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return -np.log(exponentials[np.arange(len(labels)), labels] / exponentials.sum(-1))


@pytest.fixture
def batch():
    logits_fn = networks.mlp(0, 9, 5)
    return logits_fn, networks.images(1, 12), np.random.default_rng(2).integers(0, 5, 12).astype(np.int32)


def test_clean_loss_is_cross_entropy():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(scale=5, size=(20, 7)).astype(np.float32), rng.integers(0, 7, 20)
    np.testing.assert_allclose(losses.clean_loss(logits, labels), cross_entropy(logits, labels), rtol=1e-5, atol=1e-6)


def test_robust_loss_is_cross_entropy_of_the_worst_logits():
    rng = np.random.default_rng(0)
    lower, labels = rng.normal(scale=5, size=(20, 6)).astype(np.float32), rng.integers(0, 7, 20)
    worst = np.zeros((20, 7))
    for i, label in enumerate(labels):
        worst[i, np.arange(7) != label] = -lower[i]
    np.testing.assert_allclose(losses.robust_loss(lower), cross_entropy(worst, labels), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("margin", [-1e4, 1e4])
def test_robust_loss_and_its_gradient_stay_finite_at_extreme_margins(margin):
    lower = jnp.full((1, 3), margin)
    value, gradient = jax.value_and_grad(lambda m: losses.robust_loss(m).sum())(lower)
    np.testing.assert_allclose(value, max(-margin, 0.0), atol=2)
    assert np.isfinite(gradient).all()


def test_robust_loss_falls_as_a_margin_grows():
    gradient = jax.grad(lambda m: losses.robust_loss(m).sum())(jnp.array([[-1.0, 0.0, 2.0]]))
    assert (np.asarray(gradient) < 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_robust_loss_bounds_the_clean_loss_of_every_point_of_the_ball(method, batch):
    logits_fn, x, labels = batch
    ball = linf_ball(x, 0.1, (0.0, 1.0))
    bound = losses.robust_loss(margins(METHODS[method], logits_fn)(ball, labels))
    anywhere = np.random.default_rng(3).uniform(ball.lower, ball.upper, (300, *x.shape))
    corners = np.where(np.random.default_rng(4).random((300, *x.shape)) < 0.5, ball.lower, ball.upper)
    points = np.concatenate([anywhere, corners]).astype(np.float32)
    met = jax.vmap(lambda p: losses.clean_loss(logits_fn(p), labels))(points).max(0)
    assert (np.asarray(met) <= np.asarray(bound) + 1e-5).all()
    assert (np.asarray(met) > np.asarray(losses.clean_loss(logits_fn(x), labels))).all()


@pytest.mark.parametrize("method", METHODS)
def test_robust_loss_at_radius_zero_is_the_clean_loss(method, batch):
    logits_fn, x, labels = batch
    robust = losses.robust_loss(margins(METHODS[method], logits_fn)(linf_ball(x, 0.0), labels))
    np.testing.assert_allclose(robust, losses.clean_loss(logits_fn(x), labels), rtol=1e-5, atol=1e-6)
