import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_networks as networks

from mixtrain_jax.attacks import descend, pgd
from mixtrain_jax.bounds import linf_ball
from mixtrain_jax.data import Split

DOMAIN = (0.0, 1.0)
MLP = networks.mlp(2, 9, 4)


@functools.partial(jax.jit, static_argnames=("logits_fn", "domain", "steps", "restarts"))
def attacked(key, x, labels, eps, *, logits_fn, domain=DOMAIN, steps=40, restarts=2):
    ball = linf_ball(x, eps, domain)
    return pgd(key, logits_fn, x, labels, ball, steps=steps, restarts=restarts), ball


def smallest_margin(logits, labels):
    logits = np.array(logits, np.float64)
    own = logits[np.arange(len(labels)), labels]
    logits[np.arange(len(labels)), labels] = -np.inf
    return own - logits.max(-1)


@pytest.mark.parametrize("eps", [0.0, 0.03, 0.3, 2.0])
@pytest.mark.parametrize("steps", [0, 1, 40])
def test_stays_in_the_ball_and_the_domain(key, eps, steps):
    x, labels = networks.images(0, 8), np.arange(8) % 4
    x[0], x[1] = 0.0, 1.0
    found, ball = attacked(key, x, labels, eps, logits_fn=MLP, steps=steps, restarts=3)
    found = np.asarray(found)
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    assert (found >= ball.lower).all()
    assert (found <= ball.upper).all()
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_compiled_as_a_whole_or_step_by_step_it_is_the_same_attack(key, steps):
    x, labels = networks.images(0, 8), np.arange(8) % 4
    whole, ball = attacked(key, x, labels, 0.1, logits_fn=MLP, steps=steps, restarts=3)
    by_steps = pgd(key, MLP, x, labels, ball, steps=steps, restarts=3)
    np.testing.assert_allclose(by_steps, whole, atol=1e-6)


def test_step_by_step_it_compiles_once_for_all_batches(key):
    traces = []

    def logits_fn(x):
        traces.append(x.shape)
        return MLP(x)

    for seed in range(3):
        x, labels = networks.images(seed, 8), np.arange(8) % 4
        pgd(key, logits_fn, x, labels, linf_ball(x, 0.1 + seed, DOMAIN), steps=3, restarts=2)
    assert len(traces) == 2  # a look and a step


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_the_attack_of_training_stays_in_the_ball_and_raises_the_loss(key, steps):
    x, labels = jnp.asarray(networks.images(0, 64)), jnp.arange(64) % 4
    ball = linf_ball(x, 0.1, DOMAIN)
    found = jax.jit(lambda k: descend(k, MLP, labels, ball, steps=steps))(key)
    assert (np.asarray(found) >= np.asarray(ball.lower)).all()
    assert (np.asarray(found) <= np.asarray(ball.upper)).all()
    losses = [optax.softmax_cross_entropy_with_integer_labels(MLP(z), labels) for z in (x, found)]
    assert float((losses[1] > losses[0]).mean()) > 0.9
    other = descend(jax.random.fold_in(key, 1), MLP, labels, ball, steps=steps)
    assert (np.asarray(other) != np.asarray(found)).any()


def test_reaches_the_exact_worst_margin_of_two_classes(key):
    w, b, logits_fn = networks.linear(0, 9, 2)
    split = Split(networks.images(1, 20), np.arange(20, dtype=np.int32) % 2)
    eps = 0.07
    found, _ = attacked(key, split.images, split.labels, eps, logits_fn=logits_fn, domain=None)
    margin, fall = networks.exact_margins(w, b, split)
    worst = (margin - eps * fall).min(-1)
    met, _ = networks.exact_margins(w, b, Split(np.asarray(found), split.labels))
    np.testing.assert_allclose(met.min(-1), worst, atol=1e-5)


def test_reaches_a_vertex_and_never_passes_the_worst_margin_of_many_classes(key):
    w, b, logits_fn = networks.linear(0, 9, 6)
    split = networks.labelled(logits_fn, networks.images(1, 20))
    eps = 0.07
    found, _ = attacked(key, split.images, split.labels, eps, logits_fn=logits_fn, domain=None, restarts=8)
    margin, fall = networks.exact_margins(w, b, split)
    met, _ = networks.exact_margins(w, b, Split(np.asarray(found), split.labels))
    worst = (margin - eps * fall).min(-1)
    assert (met.min(-1) >= worst - 1e-5).all()
    reached = np.abs(met.min(-1)[:, None] - (margin - eps * fall)).min(-1)
    np.testing.assert_allclose(reached, 0, atol=1e-5)


@pytest.mark.parametrize(("steps", "restarts"), [(0, 1), (1, 1), (30, 3)])
def test_never_worse_than_the_start(key, steps, restarts):
    split = networks.labelled(MLP, networks.images(3, 16))
    found, _ = attacked(key, split.images, split.labels, 0.05, logits_fn=MLP, steps=steps, restarts=restarts)
    before = smallest_margin(MLP(jnp.asarray(split.images)), split.labels)
    after = smallest_margin(MLP(found), split.labels)
    assert (after <= before + 1e-6).all()
    if steps:
        assert (after < before).any()


def test_finds_what_random_points_find(key):
    split = networks.labelled(MLP, networks.images(3, 16))
    found, ball = attacked(key, split.images, split.labels, 0.2, logits_fn=MLP, steps=40, restarts=3)
    points = np.random.default_rng(0).uniform(ball.lower, ball.upper, (200, *split.images.shape)).astype(np.float32)
    by_chance = np.min([smallest_margin(logits, split.labels) for logits in jax.jit(jax.vmap(MLP))(points)], 0)
    assert (smallest_margin(MLP(found), split.labels) <= by_chance).all()


def test_the_key_alone_decides(key):
    x, labels = networks.images(5, 8), np.arange(8) % 4
    run = functools.partial(attacked, x=x, labels=labels, eps=0.2, logits_fn=MLP, steps=1, restarts=2)
    first = run(key)[0]
    np.testing.assert_array_equal(first, run(key)[0])
    assert (np.asarray(first) != run(jax.random.key(1))[0]).any()


def test_examples_do_not_influence_each_other(key):
    x, labels = networks.images(5, 8), np.arange(8) % 4
    together, _ = attacked(key, x, labels, 0.1, logits_fn=MLP, restarts=1)
    alone, _ = attacked(key, x[3:4], labels[3:4], 0.1, logits_fn=MLP, restarts=1)
    np.testing.assert_allclose(together[3:4], alone, atol=1e-6)
