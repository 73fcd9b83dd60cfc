import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks as networks

from mixtrain_jax.attacks import bpda, chunked, eot, fgsm, margin, pgd, restarts, targeted, worst_of
from mixtrain_jax.bounds import BoundsError, l2_ball, linf_ball

DOMAIN = (0.0, 1.0)
MLP = networks.mlp(2, 9, 4)
SHORT = functools.partial(pgd, steps=2, restarts=1, random_start=True)


def margins_of(logits_fn, points, labels):
    return -np.asarray(margin(logits_fn(jnp.asarray(points)), jnp.asarray(labels)))


def problem(n=8, eps=0.2):
    x, labels = networks.images(0, n), np.arange(n, dtype=np.int32) % 4
    x[0] = x[0].round()
    return x, labels, linf_ball(x, eps, DOMAIN)


@pytest.mark.parametrize(
    "attack",
    [restarts(SHORT, 3), worst_of(fgsm, SHORT), targeted(SHORT), targeted(restarts(SHORT, 2), classes=2)],
    ids=["restarts", "worst_of", "targeted", "targeted restarts"],
)
def test_combinators_stay_in_the_ball_and_are_the_same_compiled_as_a_whole(key, attack):
    x, labels, ball = problem()
    found = attack(key, MLP, x, labels, ball)
    assert (np.asarray(found) >= np.asarray(ball.lower)).all()
    assert (np.asarray(found) <= np.asarray(ball.upper)).all()
    whole = jax.jit(lambda key, x, ball: attack(key, MLP, x, jnp.asarray(labels), ball))(key, x, ball)
    np.testing.assert_allclose(found, whole, atol=1e-6)
    none = linf_ball(x, 0.0, DOMAIN)
    np.testing.assert_array_equal(attack(key, MLP, x, labels, none), x)


def test_the_best_is_kept_example_by_example(key):
    x, labels, ball = problem(32)
    run = functools.partial(SHORT, logits_fn=MLP, x=x, labels=labels, ball=ball)
    alone = np.array([margins_of(MLP, run(jax.random.fold_in(key, i)), labels) for i in range(3)])
    best = restarts(SHORT, 3)(key, MLP, x, labels, ball)
    np.testing.assert_array_equal(margins_of(MLP, best, labels), alone.min(0))
    assert len(set(alone.argmin(0))) == 3
    mixed = worst_of(SHORT, fgsm)(key, MLP, x, labels, ball)
    one_step = margins_of(MLP, fgsm(key, MLP, x, labels, ball), labels)
    np.testing.assert_array_equal(margins_of(MLP, mixed, labels), np.minimum(alone[0], one_step))


def test_at_every_class_in_turn_the_worst_margin_of_a_linear_network_is_exact(key):
    w, b, logits_fn = networks.linear(0, 9, 6)
    split = networks.labelled(logits_fn, networks.images(1, 20))
    eps = 0.2
    ball = linf_ball(split.images, eps)
    all_margins, fall = networks.exact_margins(w, b, split)
    worst = all_margins - eps * fall
    attack = functools.partial(fgsm, objective=margin)
    found = targeted(attack)(key, logits_fn, split.images, split.labels, ball)
    np.testing.assert_allclose(margins_of(logits_fn, found, split.labels), worst.min(-1), atol=1e-5)
    # One class is the likeliest at the image.
    found = targeted(attack, classes=1)(key, logits_fn, split.images, split.labels, ball)
    met = margins_of(logits_fn, found, split.labels)
    assert (met <= np.take_along_axis(worst, all_margins.argmin(-1)[:, None], -1)[:, 0] + 1e-5).all()
    assert (met > worst.min(-1) + 1e-3).any()


def test_chunks_are_padded_reported_and_compiled_once(key):
    traces, polled = [], []

    def logits_fn(x):
        traces.append(x.shape)
        return MLP(x)

    x, labels, ball = problem(11)
    plain = functools.partial(pgd, steps=5, restarts=1)
    attack = chunked(plain, 4, lambda what, done, total: polled.append((done, total)))
    found = attack(key, logits_fn, x, labels, ball)
    assert polled == [(4, 11), (8, 11), (11, 11)]
    assert traces == [(4, 3, 3, 1)] * 3  # for its shape, a look and a step
    np.testing.assert_allclose(found, plain(key, MLP, x, labels, ball), atol=1e-6)
    assert attack(key, logits_fn, x[:0], labels[:0], linf_ball(x[:0], 0.1)).shape == (0, 3, 3, 1)


def test_chunks_hand_on_euclidean_balls_and_targets(key):
    met = []

    def record(key, logits_fn, x, labels, ball, *, targets):
        met.append((jax.random.key_data(key).tolist(), ball.eps.shape, targets.tolist()))
        return ball.point

    x, labels, _ = problem(5)
    ball = jax.vmap(lambda v: l2_ball(v, 0.1))(jnp.asarray(x))
    found = chunked(record, 3)(key, MLP, x, labels, ball, targets=np.arange(5))
    np.testing.assert_array_equal(found, x)
    assert [part[1:] for part in met] == [((3,), [0, 1, 2]), ((3,), [3, 4, 4])]
    assert met[0][0] != met[1][0]


def test_chunks_can_be_stopped(key):
    def stop(what, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chunked(fgsm, 4, stop)(key, MLP, *problem())


def seen_by_attacks(logits_fn, samples):
    """The function of points that an attack is given in the place of a randomized model."""
    return eot(lambda key, mean, *_: mean, samples)(None, logits_fn, None, None, None)


def test_noise_is_averaged_fresh_at_other_points_and_the_same_at_the_same():
    mean = jax.jit(seen_by_attacks(lambda key, x: jax.random.normal(key, (len(x), 3)), 16))
    x = jnp.asarray(networks.images(0, 50))
    draws = np.stack([mean(x.at[i % 50, i % 3, 0, 0].add(1e-6 * (1 + i))) for i in range(200)])
    np.testing.assert_array_equal(mean(x), mean(x))
    assert len(np.unique(draws[:, 0, 0])) == 200
    np.testing.assert_allclose(draws.std(), 1 / 4, rtol=0.02)
    np.testing.assert_allclose(draws.mean(), 0, atol=0.01)


def test_the_mean_over_samples_leads_through_noise(key):
    w, b, quiet = networks.linear(0, 9, 2)

    def noisy(key, x):
        return jnp.reshape(x, (len(x), -1)) @ (w + 3 * jax.random.normal(key, w.shape)) + b[None]

    x, labels = networks.images(1, 20), np.arange(20, dtype=np.int32) % 2
    ball = linf_ball(x, 0.1)
    plain = functools.partial(fgsm, objective=margin)
    start = margins_of(quiet, x, labels)
    gain = []
    for samples in (1, 2000):
        found = eot(plain, samples)(key, noisy, x, labels, ball)
        gain.append((start - margins_of(quiet, found, labels)).mean())
    best = 0.1 * np.abs(w[:, 0] - w[:, 1]).sum()
    assert gain[0] < 0.5 * best
    assert gain[1] > 0.9 * best


def test_a_randomized_model_is_compiled_once_for_all_batches_and_keys(key):
    traces = []

    def noisy(key, x):
        traces.append(x.shape)
        return MLP(x) + 0.1 * jax.random.normal(key, (len(x), 4))

    attack = eot(functools.partial(pgd, steps=3, restarts=2), 4)
    for seed in range(3):
        x, labels, ball = problem(eps=0.1 + seed)
        found = attack(jax.random.key(seed), noisy, x, labels, ball)
        assert (np.asarray(found) >= np.asarray(ball.lower)).all()
    assert len(traces) == 3  # for its shape, a look and a step


def quantize(x):
    return jnp.round(x * 8) / 8


def test_straight_through_gradients_break_what_has_none(key):
    w, b, linear = networks.linear(0, 9, 2)
    x, labels = networks.images(1, 20), np.arange(20, dtype=np.int32) % 2
    ball, attack = linf_ball(x, 0.2, DOMAIN), functools.partial(pgd, steps=20, restarts=1)
    blind = attack(key, lambda z: linear(quantize(z)), x, labels, ball)
    np.testing.assert_array_equal(blind, x)
    seeing = bpda(quantize)
    found = attack(key, lambda z: linear(seeing(z)), x, labels, ball)
    rows = np.where(labels[:, None] == 0, w[:, 0] - w[:, 1], w[:, 1] - w[:, 0]).astype(np.float64)
    offset = np.where(labels == 0, 1, -1) * (b[0] - b[1])
    low, high = (np.round(np.asarray(end, np.float64).reshape(20, -1) * 8) / 8 for end in (ball.lower, ball.upper))
    worst = np.where(rows > 0, rows * low, rows * high).sum(-1) + offset
    np.testing.assert_allclose(margins_of(lambda z: linear(quantize(z)), found, labels), worst, atol=1e-5)


def test_bpda_computes_one_function_and_differentiates_the_other():
    x, weights = jnp.linspace(-1, 2, 7), jnp.arange(7.0)
    for backward, slope in ((None, jnp.ones(7)), (jnp.tanh, 1 - jnp.tanh(x) ** 2)):
        through = bpda(quantize) if backward is None else bpda(quantize, backward)
        np.testing.assert_array_equal(through(x), quantize(x))
        value, gradient = jax.jit(jax.value_and_grad(lambda x, f=through: (weights * f(x)).sum()))(x)
        np.testing.assert_allclose(value, (weights * quantize(x)).sum(), rtol=1e-6)
        np.testing.assert_allclose(gradient, weights * slope, rtol=1e-5)
    with pytest.raises(BoundsError, match=r"float32\[7\] and backward float32\[3\]"):
        jax.grad(lambda x: bpda(quantize, lambda z: z[:3])(x).sum())(x)


@pytest.mark.parametrize("make", [lambda: restarts(fgsm, 0), worst_of, lambda: targeted(fgsm, classes=0)])
def test_counts_are_positive(make):
    with pytest.raises(BoundsError, match="to be a positive integer, got 0"):
        make()
    with pytest.raises(BoundsError, match=r"chunked wants size .* got 0"):
        chunked(fgsm, 0)
    with pytest.raises(BoundsError, match=r"eot wants samples .* got 1\.5"):
        eot(fgsm, 1.5)
