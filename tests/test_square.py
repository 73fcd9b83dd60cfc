import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks as networks

import mixtrain_jax as mt
from mixtrain_jax.attacks import square
from mixtrain_jax.attacks.square import _bumps, _schedule

DOMAIN = (0.0, 1.0)


def least(logits, labels):
    logits = np.array(logits, np.float64)
    own = logits[np.arange(len(labels)), labels]
    logits[np.arange(len(labels)), labels] = -np.inf
    return own - logits.max(-1)


def net(x):
    """Not differentiable, of images of three channels."""
    w = np.random.default_rng(1).normal(size=(6 * 5 * 3, 4)).astype(np.float32)
    return jnp.round(x.reshape(len(x), -1) * 50) / 50 @ w + 10 * jnp.eye(4)[jnp.arange(len(x)) % 4]


X = np.random.default_rng(0).uniform(size=(8, 6, 5, 3)).astype(np.float32)
LABELS = np.arange(8, dtype=np.int32) % 4


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_queries_lower_the_margin_without_gradients(key, norm):
    if norm == "linf":
        ball = mt.linf_ball(X, 0.1, DOMAIN)
    else:
        ball = jax.vmap(lambda image: mt.l2_ball(image, 0.8, DOMAIN))(jnp.asarray(X))
    met = [least(net(jnp.asarray(X)), LABELS)]
    for queries in (20, 400):
        found = square(key, net, X, LABELS, ball, queries=queries)
        away = np.asarray(found, np.float64) - X
        assert found.dtype == X.dtype
        assert (np.asarray(found) >= np.asarray(ball.lower)).all()
        assert (np.asarray(found) <= np.asarray(ball.upper)).all()
        if norm == "l2":
            assert (np.sqrt(np.square(away).sum((1, 2, 3))) <= 0.8).all()
        met.append(least(net(found), LABELS))
    assert (met[1] <= met[0]).all()
    assert met[1].mean() < met[0].mean() - 0.3
    assert met[2].mean() < met[1].mean() - 0.3
    other = square(jax.random.key(1), net, X, LABELS, ball, queries=400)
    assert (np.asarray(other) != np.asarray(found)).any()


def test_it_finds_the_worst_corner_of_a_linear_network_on_flat_inputs(key):
    w, b, logits_fn = networks.linear(0, 9, 2)
    x, labels = networks.images(1, 8).reshape(8, 9), np.arange(8, dtype=np.int32) % 2
    raised = lambda z: logits_fn(z) + 9 * jax.nn.one_hot(labels, 2)  # noqa: E731, so that no label loses
    found = square(key, raised, x, labels, mt.linf_ball(x, 0.07), queries=600)
    split = networks.Split(x, labels)
    margin, fall = networks.exact_margins(w, b, split)
    np.testing.assert_allclose(least(raised(found), labels), (margin - 0.07 * fall).min(-1) + 9, atol=1e-5)


def test_it_ends_when_all_labels_have_lost(key):
    calls = []

    def count(logits):
        calls.append(1)
        return logits

    def logits_fn(x):
        logits = net(x)
        return jax.pure_callback(count, jax.ShapeDtypeStruct(logits.shape, logits.dtype), logits)

    lost = (np.asarray(net(jnp.asarray(X))).argmin(-1)).astype(np.int32)
    jax.block_until_ready(square(key, logits_fn, X, lost, mt.linf_ball(X, 0.01, DOMAIN), queries=300))
    assert 1 <= len(calls) < 10
    right = np.asarray(net(jnp.asarray(X))).argmax(-1).astype(np.int32)
    jax.block_until_ready(square(key, logits_fn, X, right, mt.linf_ball(X, 0.001, DOMAIN), queries=300))
    assert len(calls) > 300


def test_inside_jit_it_is_the_same_attack(key):
    ball = mt.linf_ball(X, 0.1, DOMAIN)
    whole = jax.jit(lambda key, x, ball: square(key, net, x, LABELS, ball, queries=50))(key, X, ball)
    np.testing.assert_array_equal(whole, square(key, net, X, LABELS, ball, queries=50))


def test_squares_shrink_as_published():
    schedule = _schedule(32, 32, 9000, 0.8, False)
    areas = {0: 0.8, 10: 0.8, 11: 0.4, 51: 0.2, 201: 0.1, 501: 0.05, 1001: 0.025, 2001: 0.0125, 8001: 0.8 / 512}
    for query, area in areas.items():
        side = max(round((area * 1024) ** 0.5), 1)
        assert schedule.sides[query].tolist() == [side, side]
    odd = _schedule(32, 32, 9000, 0.8, True)
    assert odd.sides[:, 0].min() == 3
    assert (odd.sides % 2 == 1).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (3, 3), (5, 5), (4, 7)])
def test_bumps_are_two_of_opposite_sign_and_norm_one(shape):
    bumps = _bumps(*shape)
    assert bumps.shape == shape
    np.testing.assert_allclose(np.square(bumps).sum(), 1, rtol=1e-6)
    if max(shape) > 1:
        half = shape[0] // 2 if shape[0] > 1 else None
        first, second = (bumps[:half], bumps[half:]) if half else np.split(bumps, [shape[1] // 2], 1)
        assert (first > 0).all()
        assert (second < 0).all()
