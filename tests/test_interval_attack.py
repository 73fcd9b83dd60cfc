import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks as networks

from mixtrain_jax.attacks import interval_attack, margin, pgd
from mixtrain_jax.bounds import BoundsError, crown, crown_ibp, ibp, l2_ball, linf_ball, margins, symbolic

DOMAIN = (0.0, 1.0)
MLP = networks.mlp(2, 9, 4)
SHORT = functools.partial(pgd, steps=5, restarts=1)
QUICK = functools.partial(interval_attack, attack=SHORT, rounds=(2, 1))


def margins_of(logits_fn, points, labels):
    return -np.asarray(margin(logits_fn(jnp.asarray(points)), jnp.asarray(labels)))


@pytest.mark.parametrize("method", [symbolic, crown, crown_ibp])
def test_coefficients_are_those_of_the_lines_around_each_relu(method):
    rng = np.random.default_rng(0)
    hidden, bias, out = rng.normal(size=(6, 20)), 0.3 * rng.normal(size=20), rng.normal(size=(20, 3))
    x, eps, rows = rng.uniform(size=6), 0.2, rng.normal(size=(4, 3))
    center, reach = x @ hidden + bias, eps * np.abs(hidden).sum(0)
    lower, upper = center - reach, center + reach
    above = np.where(lower >= 0, 1, np.where(upper <= 0, 0, upper / (upper - lower)))
    adaptive = np.where((lower < 0) & (upper > 0), upper > -lower, above)
    assert ((lower < 0) & (upper > 0)).any()
    below = above if method is symbolic else adaptive
    pulled = rows @ out.T
    f32 = functools.partial(jnp.asarray, dtype=jnp.float32)

    def bound(rows, box):
        bounded = method(lambda v: jax.nn.relu(v @ f32(hidden) + f32(bias)) @ f32(out))
        return bounded.coefficients(rows, box), bounded.rows(rows, box)

    (bounds, sides), wanted = jax.jit(bound)(f32(rows), linf_ball(f32(x), eps))
    np.testing.assert_allclose(sides.upper, np.where(pulled > 0, above, below) * pulled @ hidden.T, atol=1e-5)
    np.testing.assert_allclose(sides.lower, np.where(pulled > 0, below, above) * pulled @ hidden.T, atol=1e-5)
    np.testing.assert_array_equal(bounds.upper, wanted.upper)
    np.testing.assert_array_equal(bounds.lower, wanted.lower)


def test_it_is_no_worse_than_the_gradient_attack_it_starts_from(key):
    x, labels = networks.images(0, 16), np.arange(16, dtype=np.int32) % 4
    ball = linf_ball(x, 0.2, DOMAIN)
    alone = margins_of(MLP, SHORT(key, MLP, x, labels, ball), labels)
    for corner in (True, False):
        found = interval_attack(key, MLP, x, labels, ball, attack=SHORT, rounds=(2, 1), corner=corner)
        assert (np.asarray(found) >= np.asarray(ball.lower)).all()
        assert (np.asarray(found) <= np.asarray(ball.upper)).all()
        assert (margins_of(MLP, found, labels) <= alone).all()


def plateau(x):
    """Class 1 wins in one corner of the ball of 0.1 around a half, and only near it has it a gradient."""
    x = jnp.reshape(x, (len(x), -1))
    towards = (x - 0.5) @ jnp.asarray([1.0, -1.0, 1.0, -1.0])
    return jnp.stack([jnp.full(len(x), 0.05), jax.nn.relu(towards - 0.25)], -1)


@pytest.mark.parametrize("corner", [True, False])
@pytest.mark.parametrize("method", [symbolic, crown_ibp])
def test_it_finds_what_lies_beyond_a_plateau(key, corner, method):
    x, labels = jnp.full((3, 4), 0.5), np.array([0, 0, 1], np.int32)
    ball = linf_ball(x, 0.1, DOMAIN)
    blind = SHORT(key, plateau, x, labels, ball)
    np.testing.assert_array_equal(blind, x)
    options = {"attack": SHORT, "rounds": (6,), "radii": (0.1, 0.3, 0.9), "method": method, "corner": corner}
    found = interval_attack(key, plateau, x, labels, ball, **options)
    np.testing.assert_allclose(margins_of(plateau, found, labels)[:2], 0.05 - 0.15, atol=1e-5)
    np.testing.assert_array_equal(found[2], x[2])  # lost from the start


def test_on_a_linear_network_it_reaches_the_exact_worst_margin(key):
    w, b, logits_fn = networks.linear(0, 9, 2)
    x, labels = networks.images(1, 20), np.arange(20, dtype=np.int32) % 2
    ball = linf_ball(x, 0.07, DOMAIN)
    nothing = functools.partial(pgd, steps=0, restarts=1)  # the interval gradient alone
    found = interval_attack(key, logits_fn, x, labels, ball, attack=nothing, rounds=(1,))
    rows = np.where(labels[:, None] == 0, w[:, 0] - w[:, 1], w[:, 1] - w[:, 0]).astype(np.float64)
    low, high = (np.asarray(end, np.float64).reshape(20, -1) for end in (ball.lower, ball.upper))
    worst = np.where(rows > 0, rows * low, rows * high).sum(-1) + np.where(labels == 0, 1, -1) * (b[0] - b[1])
    standing = margins_of(logits_fn, x, labels) > 0  # the others are broken already and stay where they are
    met = margins_of(logits_fn, found, labels)
    np.testing.assert_allclose(met[standing], worst[standing], atol=1e-5)
    np.testing.assert_array_equal(np.asarray(found)[~standing], x[~standing])


def test_it_never_finds_what_a_bound_excludes_nor_leaves_a_ball_of_radius_zero(key):
    split = networks.labelled(MLP, networks.images(4, 16))
    for eps in (0.0, 0.03):
        ball = linf_ball(split.images, eps, DOMAIN)
        found = QUICK(key, MLP, split.images, split.labels, ball)
        proved = np.asarray(jax.jit(margins(crown, MLP))(ball, split.labels)).min(-1)
        assert (margins_of(MLP, found, split.labels) >= proved - 1e-6).all()
        if eps == 0:
            np.testing.assert_array_equal(found, split.images)


def test_it_is_the_same_compiled_as_a_whole_and_compiled_once(key):
    traces = []

    def logits_fn(x):
        traces.append(x.shape)
        return MLP(x)

    found = []
    for seed in range(3):
        x, labels = networks.images(seed, 16), np.arange(16, dtype=np.int32) % 4
        ball = linf_ball(x, 0.2, DOMAIN)
        found.append(QUICK(key, logits_fn, x, labels, ball))
        if seed == 0:
            once = len(traces)
    assert len(traces) == once
    whole = jax.jit(lambda key, x, ball: QUICK(key, MLP, x, jnp.asarray(labels), ball))(key, x, ball)
    np.testing.assert_allclose(found[-1], whole, atol=1e-5)


def test_what_it_cannot_do_is_refused(key):
    x, labels = networks.images(0, 4), np.arange(4, dtype=np.int32)
    ball = linf_ball(x, 0.1)
    with pytest.raises(BoundsError, match="got a Euclidean ball"):
        interval_attack(key, MLP, x, labels, jax.vmap(lambda v: l2_ball(v, 0.1))(x))
    with pytest.raises(BoundsError, match="ibp has none"):
        interval_attack(key, MLP, x, labels, ball, attack=SHORT, method=ibp)
    for wrong in ({"rounds": (0,)}, {"radii": ()}, {"radii": (0.5, 0.1)}):
        with pytest.raises(BoundsError, match="at least one round and growing radii"):
            interval_attack(key, MLP, x, labels, ball, **wrong)
