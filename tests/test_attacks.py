import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_networks as networks

from mixtrain_jax import attacks
from mixtrain_jax.attacks import (
    apgd,
    descend,
    fab,
    feature,
    fgsm,
    geometry,
    in_turn,
    interval_attack,
    margin,
    pgd,
    square,
    targeted,
)
from mixtrain_jax.bounds import BoundsError, crown, l1_ball, l2_ball, linf_ball, margins
from mixtrain_jax.data import Split

DOMAIN = (0.0, 1.0)
MLP = networks.mlp(2, 9, 4)
ATTACKS = {
    "fgsm": fgsm,
    "pgd": functools.partial(pgd, steps=20, restarts=2),
    "pgd with momentum": functools.partial(pgd, steps=20, restarts=2, momentum=0.9),
    "pgd on the cross-entropy": functools.partial(
        pgd, steps=20, restarts=2, objective=attacks.cross_entropy, step_size=1.0, random_start=True
    ),
    "feature": functools.partial(feature, features_fn=lambda x: jnp.square(x), steps=8, restarts=2),
}
each_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


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
    assert len(traces) == 3  # for its shape, a look and a step


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


def euclidean(x, eps, domain):
    return jax.vmap(lambda v: l2_ball(v, eps, domain))(jnp.asarray(x))


def exact_worst(w, b, split, ball, eps=None):
    """Smallest margins of a linear network in a box; or within `eps` in the Euclidean norm. `[n]`, float64."""
    w, b = w.astype(np.float64), b.astype(np.float64)
    rows = w[:, split.labels].T[:, None] - w.T[None]  # [n, classes, inputs]
    offsets = b[split.labels][:, None] - b
    lower, upper, x = (
        np.asarray(a, np.float64).reshape(len(split), 1, -1) for a in (ball.lower, ball.upper, split.images)
    )
    if eps is None:
        worst = np.where(rows > 0, rows * lower, rows * upper).sum(-1) + offsets
    else:
        worst = (rows * x).sum(-1) - eps * np.linalg.norm(rows, axis=-1) + offsets
    worst[np.arange(len(split)), split.labels] = np.inf
    return worst.min(-1)


def met_margins(w, b, found, labels):
    logits = np.asarray(found, np.float64).reshape(len(labels), -1) @ w.astype(np.float64) + b
    return smallest_margin(logits, labels)


@pytest.mark.parametrize("attack", list(ATTACKS.values())[:-1], ids=list(ATTACKS)[:-1])
def test_reaches_the_exact_worst_margin_in_either_ball(key, attack):
    w, b, logits_fn = networks.linear(0, 9, 2)
    x = networks.images(1, 20)
    x[:5] = x[:5].round()  # where the domain cuts the box
    split, eps = Split(x, np.arange(20, dtype=np.int32) % 2), 0.07
    box = linf_ball(x, eps, DOMAIN)
    found = attack(key, logits_fn, x, split.labels, box)
    np.testing.assert_allclose(met_margins(w, b, found, split.labels), exact_worst(w, b, split, box), atol=1e-5)
    ball = euclidean(x, eps, None)
    found = attack(key, logits_fn, x, split.labels, ball)
    np.testing.assert_allclose(met_margins(w, b, found, split.labels), exact_worst(w, b, split, ball, eps), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30], ids=str)
def test_euclidean_steps_have_their_length_whatever_the_size_of_the_gradient(scale):
    gradient = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    gradient[1] = 0
    ball = jax.vmap(lambda v: l2_ball(v, 7.0))(jnp.zeros((5, 3, 4)))
    step = np.asarray(geometry.steepest(ball, jnp.asarray(gradient * np.float32(scale)), 0.5), np.float64)
    length = np.linalg.norm(step.reshape(5, -1), axis=1)
    np.testing.assert_allclose(length, np.where(np.arange(5) == 1, 0, 3.5), rtol=1e-6)
    np.testing.assert_allclose(
        (step * gradient).sum((1, 2)), length * np.linalg.norm(gradient.reshape(5, -1), axis=1), rtol=1e-6
    )


@each_attack
def test_every_attack_stays_in_either_ball_and_at_radius_zero_at_home(key, attack):
    x, labels = networks.images(0, 8), np.arange(8) % 4
    x[0], x[1] = 0.0, 1.0
    for eps in (0.0, 1e-4, 0.3, 3.0):
        for ball in (linf_ball(x, eps, DOMAIN), euclidean(x, eps, DOMAIN), euclidean(x, eps, None)):
            found = np.asarray(attack(key, MLP, x, labels, ball))
            assert (found >= np.asarray(ball.lower)).all()
            assert (found <= np.asarray(ball.upper)).all()
            if hasattr(ball, "eps"):
                away = found.astype(np.float64) - x
                assert (np.linalg.norm(away.reshape(8, -1), axis=1) <= np.float32(eps)).all()
            if eps == 0:
                np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize("offset", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("entries", [10, 3000])
def test_euclidean_projection_ends_inside_in_exact_arithmetic(offset, entries):
    rng = np.random.default_rng(0)
    x = (offset + rng.uniform(size=(50, entries))).astype(np.float32)
    points = (x + rng.normal(size=x.shape)).astype(np.float32)
    for eps in (0.01, 0.5, 20.0):
        found = geometry.project(euclidean(x, eps, None), jnp.asarray(points))
        length = np.linalg.norm(np.asarray(found, np.float64) - x, axis=1)
        assert (length <= np.float32(eps)).all()
        wanted = np.minimum(eps, np.linalg.norm(points.astype(np.float64) - x, axis=1))
        np.testing.assert_allclose(length, wanted, atol=2e-6 * eps + 3e-7 * np.linalg.norm(x, axis=1).max())


@each_attack
def test_every_attack_is_the_same_compiled_as_a_whole(key, attack):
    x, labels = networks.images(0, 8), np.arange(8) % 4
    # One kind of ball each: compiling nested loops takes long.
    ball = euclidean(x, 0.2, DOMAIN) if attack is ATTACKS["pgd with momentum"] else linf_ball(x, 0.1, DOMAIN)
    whole = jax.jit(lambda k, x, ball: attack(k, MLP, x, jnp.asarray(labels), ball))(key, x, ball)
    np.testing.assert_allclose(attack(key, MLP, x, labels, ball), whole, atol=1e-6)


@functools.cache
def proved_margins(norm):
    """Eight images with the network's own labels, their balls, and what is proved of them."""
    split = networks.labelled(MLP, networks.images(4, 8))
    if norm == 2:
        ball = euclidean(split.images, 0.05, DOMAIN)
        bound = jax.vmap(margins(crown, lambda v: MLP(v[None])[0]))
    else:
        ball, bound = linf_ball(split.images, 0.03, DOMAIN), margins(crown, MLP)
    return split, ball, np.asarray(jax.jit(bound)(ball, split.labels)).min(-1)


@each_attack
@pytest.mark.parametrize("norm", [2, np.inf], ids=str)
def test_no_attack_finds_what_a_bound_excludes(key, attack, norm):
    split, ball, proved = proved_margins(norm)
    found = attack(key, MLP, split.images, split.labels, ball)
    met = smallest_margin(MLP(found), split.labels)
    before = smallest_margin(MLP(jnp.asarray(split.images)), split.labels)
    assert (met >= proved - 1e-6).all()
    assert (met <= before).all()
    assert (met < before).any()


def test_different_attacks_of_one_network_share_what_is_compiled(key):
    traces = []

    def logits_fn(x):
        traces.append(x.shape)
        return MLP(x)

    first, second = ATTACKS["pgd"], ATTACKS["pgd with momentum"]
    for seed in range(3):
        x, labels = networks.images(seed, 8), np.arange(8) % 4
        ball = linf_ball(x, 0.1 + seed, DOMAIN)
        for attack in (first, second):
            attack(key, logits_fn, x, labels, ball)
    assert len(traces) == 5  # for its shape, and a look and a step each


def test_momentum_adds_up_gradients_of_length_one(key):
    x, labels = jnp.asarray(networks.images(0, 8)), np.arange(8) % 4
    ball, steps, decay = linf_ball(x, 0.3), 6, 0.7
    points, velocity = x, jnp.zeros_like(x)
    lowest = smallest_margin(MLP(x), labels)
    gradient = jax.jit(jax.grad(lambda z: margin(MLP(z), jnp.asarray(labels)).sum()))
    for _ in range(steps):
        uphill = gradient(points)
        velocity = decay * velocity + uphill / jnp.abs(uphill).sum((1, 2, 3), keepdims=True)
        points = jnp.clip(points + 0.1 * 0.3 * jnp.sign(velocity), ball.lower, ball.upper)
        lowest = np.minimum(lowest, smallest_margin(MLP(points), labels))
    options = {"steps": steps, "restarts": 1, "step_size": 0.1}
    found = pgd(key, MLP, x, labels, ball, momentum=decay, **options)
    np.testing.assert_allclose(smallest_margin(MLP(found), labels), lowest, atol=1e-5)
    plain = pgd(key, MLP, x, labels, ball, **options)
    assert (np.asarray(plain) != np.asarray(found)).any()


def test_targets_are_where_the_attack_goes(key):
    w, b, logits_fn = networks.linear(3, 9, 6)
    split = networks.labelled(logits_fn, networks.images(1, 20))
    eps, targets = 0.3, (split.labels + 2) % 6
    ball = linf_ball(split.images, eps)
    found = pgd(key, logits_fn, split.images, split.labels, ball, targets=targets, restarts=1, steps=40)
    all_margins, fall = networks.exact_margins(w, b, split)
    place = np.where(targets > split.labels, targets - 1, targets)  # the label is left out
    vertex = (all_margins - eps * fall)[np.arange(20), place]
    met = met_margins(w, b, found, split.labels)
    assert (met <= vertex + 1e-5).all()
    assert (met >= (all_margins - eps * fall).min(-1) - 1e-5).all()
    untargeted = pgd(key, logits_fn, split.images, split.labels, ball, restarts=1, steps=40)
    assert (met_margins(w, b, untargeted, split.labels) < met - 1e-2).any()


def test_a_step_size_is_a_share_of_the_radius_or_a_function_of_the_share_done(key):
    x, labels = networks.images(0, 8), np.arange(8) % 4
    ball = linf_ball(x, 0.2)
    run = functools.partial(pgd, key, MLP, x, labels, ball, steps=4, restarts=1)
    one = pgd(key, MLP, x, labels, ball, steps=1, restarts=1, step_size=0.5)
    moved = np.abs(np.asarray(one) - x).max((1, 2, 3))
    np.testing.assert_allclose(moved[moved > 0], 0.1, rtol=1e-5)
    assert (moved > 0).any()
    np.testing.assert_array_equal(run(step_size=0.3), run(step_size=lambda done: 0.3 + 0 * done))
    # Nothing but the first step is of any length.
    np.testing.assert_array_equal(one, run(step_size=lambda done: jnp.where(done == 0, 0.5, 0.0)))


def test_a_random_start_leaves_the_image(key):
    x, labels = networks.images(0, 64), np.arange(64) % 4
    ball = linf_ball(x, 0.2)
    run = functools.partial(pgd, key, MLP, x, labels, ball, steps=0, restarts=1)
    np.testing.assert_array_equal(run(), x)
    better = (np.asarray(run(random_start=True)) != x).any((1, 2, 3))
    assert 0.2 < better.mean() < 0.8  # by chance


def test_features_lead_where_logits_have_no_gradient(key):
    split = networks.labelled(MLP, networks.images(3, 32))

    def flat(x):
        return jnp.round(MLP(x) * 20) / 20

    ball = linf_ball(split.images, 0.3, DOMAIN)
    before = smallest_margin(flat(jnp.asarray(split.images)), split.labels)
    by_logits = pgd(key, flat, split.images, split.labels, ball, steps=20, restarts=1)
    np.testing.assert_array_equal(by_logits, split.images)
    run = functools.partial(feature, key, flat, split.images, split.labels, ball, features_fn=MLP)
    found, by_chance = (smallest_margin(flat(run(steps=steps)), split.labels) for steps in (20, 0))
    assert (found <= by_chance).all()
    assert found.mean() < by_chance.mean() - 0.1
    assert by_chance.mean() < before.mean()


def test_features_of_another_image_are_approached(key):
    x, others = networks.images(3, 16), jnp.asarray(networks.images(4, 16))

    def features(x):
        return 3 * x.reshape(len(x), -1) - 1

    def apart(x):  # its margin is the distance, so what is returned is the closest point met
        away = jnp.sum(jnp.square(features(x) - features(others)), -1)
        return jnp.stack([away, 0 * away], -1)

    ball = linf_ball(x, 2.0)
    options = {"features_fn": features, "images": others, "random_start": False}
    found = feature(key, apart, x, np.zeros(16, np.int32), ball, **options)
    # No two images have these features, and the last steps are a hundredth of a quarter of the radius.
    np.testing.assert_allclose(found, others, atol=2 * 2.0 / 400)


def test_balls_that_attacks_do_not_know_are_refused(key):
    x, labels = networks.images(0, 8), np.arange(8) % 4
    with pytest.raises(BoundsError, match="got a ball of l1"):
        pgd(key, MLP, x, labels, jax.vmap(lambda v: l1_ball(v, 0.1))(x))
    with pytest.raises(BoundsError, match="Euclidean ball for each example"):
        pgd(key, MLP, x, labels, l2_ball(x, 0.1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros(3, np.int32)}, r"integer labels \[n\] of inputs \[n, ...\], got int32\[3\]"),
        ({"labels": np.zeros(4, np.float32)}, r"got float32\[4\]"),
        ({"x": networks.images(0, 2), "labels": np.zeros(2, np.int32)}, r"inputs \[2, 3, 3, 1\] and a ball \[4, 3"),
        ({"labels": np.array([0, 3, -1, 2])}, "between 0 and 3, got -1"),
        ({"labels": np.array([0, 3, 4, 2])}, "between 0 and 3, got 4"),
        ({"restarts": 0}, "restarts >= 1 and steps >= 0, got 0 and 1"),
        ({"steps": -1}, "got 1 and -1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(key, changes, message):
    x = networks.images(0, 4)
    given = {"x": x, "labels": np.zeros(4, np.int32), "steps": 1, "restarts": 1, **changes}
    with pytest.raises(BoundsError, match=message):
        pgd(key, MLP, ball=linf_ball(x, 0.1), **given)


@pytest.mark.parametrize("attack", [fgsm, apgd, fab, square, targeted(apgd), interval_attack])
def test_no_attack_takes_labels_that_are_no_classes(key, attack):
    x = networks.images(0, 4)
    with pytest.raises(BoundsError, match="between 0 and 3, got 4"):
        attack(key, MLP, x, np.full(4, 4), linf_ball(x, 0.1))
    with pytest.raises(BoundsError, match="between 0 and 3, got 4"):
        in_turn(key, MLP, x, np.full(4, 4), linf_ball(x, 0.1), {"attack": attack})
