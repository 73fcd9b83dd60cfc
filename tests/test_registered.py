"""What holds for every loss, mixing rule, optimizer, learning rate and radius that a config can name."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixtrain_jax import losses, mixing, optimizers
from mixtrain_jax.bounds import linf_ball
from mixtrain_jax.losses import Attacked, Bounded, Context, Costly, InputGradient, Sabr, Trades
from mixtrain_jax.objectives import RECIPES
from mixtrain_jax.threat import Threat
from mixtrain_jax.training.steps import computed_in

LOSSES = {name: recipe.loss for name, recipe in RECIPES.members.items() if name != "mixtrain"}
PLAIN = {name: loss for name, loss in LOSSES.items() if loss.method is None}
EXPRESSIVE = {name: LOSSES[name] for name in ("mtl_ibp", "cc_ibp", "exp_ibp")}
N, CLASSES, EPS = 6, 4, 0.1


@pytest.fixture(autouse=True)
def promoting():
    with jax.numpy_dtype_promotion("standard"):  # which optax wants
        yield


def network(params, images):
    return jax.nn.relu(images.reshape(len(images), -1) @ params["a"] + params["c"][None]) @ params["b"]


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"a": (9, 8), "b": (8, CLASSES), "c": (8,)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def examples(seed=1):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.uniform(size=(N, 3, 3, 1)), jnp.float32), jnp.asarray(rng.integers(0, CLASSES, N))


def context(key, params, images, labels, eps=EPS, apply=network):
    return Context(key, apply, params, images, labels, jnp.float32(eps), Threat(EPS))


@functools.cache
def compiled(loss, apply=network):
    """Values and the gradient of their mean, traced once for all that is asked of a loss."""
    traces = []

    @jax.jit
    def both(key, params, images, labels, eps):
        traces.append(1)
        assert len(traces) == 1

        def mean(params):
            values = loss(context(key, params, images, labels, eps, apply))
            return values.loss.mean(), values

        (_, values), gradient = jax.value_and_grad(mean, has_aux=True)(params)
        return values, gradient

    return both


def values(loss, key=0, params=None, data=None, eps=EPS, apply=network):
    given = parameters() if params is None else params
    return compiled(loss, apply)(jax.random.key(key), given, *(data or examples()), jnp.float32(eps))


def clean(data=None):
    images, labels = data or examples()
    return np.asarray(losses.clean_loss(network(parameters(), images), labels))


each = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@each
def test_a_loss_is_one_finite_number_an_example_with_a_finite_gradient(loss):
    found, gradient = values(loss)
    assert (found.loss.shape, found.loss.dtype) == ((N,), jnp.float32)
    assert (found.correct.shape, found.correct.dtype) == ((N,), bool)
    assert np.isfinite(found.loss).all()
    assert (np.asarray(found.loss) >= 0).all()
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0


@each
def test_a_gradient_is_finite_where_the_loss_rounds_to_zero(loss):
    params = parameters()
    params = {**params, "b": 1e3 * params["b"]}
    images, _ = examples()
    labels = network(params, images).argmax(-1)
    found, gradient = values(loss, params=params, data=(images, labels), eps=0.0)
    assert (np.asarray(found.loss) < 1e-5).any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@each
def test_examples_are_independent_of_each_other(loss):
    images, labels = examples()
    others, other_labels = examples(7)
    mixed = jnp.concatenate([images[:3], others[3:]]), jnp.concatenate([labels[:3], other_labels[3:]])
    alone, beside = values(loss)[0].loss[:3], values(loss, data=mixed)[0].loss[:3]
    np.testing.assert_allclose(alone, beside, rtol=1e-5, atol=1e-6)


@each
def test_a_loss_can_be_mapped_over_keys(loss):
    keys = jax.random.split(jax.random.key(3), 2)
    mapped = jax.vmap(lambda key: loss(context(key, parameters(), *examples())).loss)(keys)
    single = [compiled(loss)(key, parameters(), *examples(), jnp.float32(EPS))[0].loss for key in keys]
    np.testing.assert_allclose(mapped, single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", PLAIN.values(), ids=PLAIN)
def test_losses_without_bounds_compute_in_bfloat16(loss):
    narrow = computed_in(network, "bfloat16")
    found, gradient = values(loss, apply=narrow)
    assert found.loss.dtype == jnp.float32
    np.testing.assert_allclose(found.loss, values(loss)[0].loss, rtol=0.2, atol=0.1)
    assert all(leaf.dtype == jnp.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("costly", "input_gradient")])
def test_at_radius_zero_a_loss_is_the_clean_one(name):
    np.testing.assert_allclose(values(LOSSES[name], eps=0.0)[0].loss, clean(), rtol=1e-4, atol=1e-5)


def test_losses_that_bound_the_whole_ball_are_not_below_any_point_of_it():
    images, labels = examples()
    ball = linf_ball(images, EPS, (0.0, 1.0))
    points = np.random.default_rng(0).uniform(ball.lower, ball.upper, (500, *images.shape)).astype(np.float32)
    corners = np.where(np.random.default_rng(1).random(points.shape) < 0.5, ball.lower, ball.upper)
    met = jax.vmap(lambda p: losses.clean_loss(network(parameters(), p), labels))(jnp.concatenate([points, corners]))
    attacked = values(Attacked())[0].loss
    whole = {name: dataclasses.replace(loss, alpha=1.0) for name, loss in EXPRESSIVE.items()}
    for loss in (Bounded(), Costly(cost=1.0, other_cost=1.0), Sabr(ratio=1.0), *whole.values()):
        found = np.asarray(values(loss)[0].loss) + 1e-5
        assert (found >= np.asarray(met).max(0)).all()
        assert (found >= np.asarray(attacked)).all()


@pytest.mark.parametrize("loss", EXPRESSIVE.values(), ids=EXPRESSIVE)
def test_expressive_losses_grow_from_the_attacked_to_the_bounded_one(loss):
    shares = [values(dataclasses.replace(loss, alpha=alpha))[0].loss for alpha in (0.0, 0.25, 0.75, 1.0)]
    assert (np.diff(shares, axis=0) >= -1e-5).all()
    np.testing.assert_allclose(shares[0], values(Attacked(loss.steps))[0].loss, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shares[-1], values(Bounded())[0].loss, rtol=1e-4, atol=1e-5)


def test_a_box_of_sabr_lies_in_the_ball_and_holds_the_attacked_image_where_there_is_room():
    for ratio in (0.0, 0.3, 1.0):
        given = context(jax.random.key(0), parameters(), *examples())
        box, ball = Sabr(ratio=ratio).box(given), given.ball
        assert (np.asarray(box.lower) >= np.asarray(ball.lower) - 1e-6).all()
        assert (np.asarray(box.upper) <= np.asarray(ball.upper) + 1e-6).all()
        found = np.asarray(given.attack(8))
        assert ((np.asarray(box.lower) - 1e-6 <= found) & (found <= np.asarray(box.upper) + 1e-6)).all()


# --- against the formulas, in float64 -------------------------------------------------------------------------------


def exact(given):
    """The network, interval bounds of margins and the cross-entropy of margins, in float64 and NumPy."""
    a, b, c = (np.asarray(given.params[name], np.float64) for name in "abc")
    labels = np.asarray(given.labels)

    def logits(x):
        return np.maximum(np.asarray(x, np.float64).reshape(len(x), -1) @ a + c, 0) @ b

    def margins(z):
        return np.stack([np.delete(z[i, y] - z[i], y) for i, y in enumerate(labels)])

    def lower(box):
        low, high = (np.asarray(end, np.float64).reshape(len(labels), -1) for end in box)
        center, radius = (low + high) / 2, (high - low) / 2
        middle, spread = center @ a + c, radius @ np.abs(a)
        low, high = np.maximum(middle - spread, 0), np.maximum(middle + spread, 0)
        found = []
        for i, y in enumerate(labels):
            rows = np.delete(b[:, [y]] - b, y, axis=1)
            found.append(low[i] @ np.maximum(rows, 0) + high[i] @ np.minimum(rows, 0))
        return np.stack(found)

    def entropy(m, costs=1.0):
        return np.log1p((costs * np.exp(-m)).sum(-1))

    return logits, margins, lower, entropy


def expected(loss, given):
    logits, margins, lower, entropy = exact(given)
    clean = entropy(margins(logits(given.images)))
    if isinstance(loss, losses.Clean):
        return clean
    if isinstance(loss, Bounded):
        return entropy(lower((given.ball.lower, given.ball.upper)))
    if isinstance(loss, Costly):
        costs = np.where(np.isin(given.labels, loss.protected), loss.cost, loss.other_cost)
        return entropy(lower((given.ball.lower, given.ball.upper)), costs[:, None])
    if isinstance(loss, Sabr):
        x, found = np.asarray(given.images, np.float64), np.asarray(given.attack(loss.steps), np.float64)
        room, small = (1 - loss.ratio) * EPS, loss.ratio * EPS
        center = np.clip(found, x - room, x + room)
        return entropy(lower((np.clip(center - small, 0, 1), np.clip(center + small, 0, 1))))
    if isinstance(loss, InputGradient):

        def at(x):
            return entropy(margins(logits(x)))

        x, slopes = np.asarray(given.images, np.float64), []
        for i in np.ndindex(x.shape[1:]):
            step = np.zeros(x.shape[1:])
            step[i] = 1e-6
            slopes.append((at(x + step[None]) - at(x - step[None])) / 2e-6)
        return clean + loss.weight * np.square(slopes).sum(0)
    if isinstance(loss, Trades):
        before, fixed = logits(given.images), network(given.params, given.images)

        def far(moved, labels, targets):
            return losses.trades.divergence(moved, fixed)

        after = logits(given.attack(loss.steps, objective=far))
        p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (before, after))
        return clean + loss.beta * (p * np.log(p / q)).sum(-1)
    attacked = margins(logits(given.attack(loss.steps, getattr(loss, "attack_ratio", 1.0))))
    if isinstance(loss, Attacked):
        return entropy(attacked)
    bound, alpha = lower((given.ball.lower, given.ball.upper)), loss.alpha
    return {
        losses.MtlIbp: lambda: alpha * entropy(bound) + (1 - alpha) * entropy(attacked),
        losses.CcIbp: lambda: entropy(alpha * bound + (1 - alpha) * attacked),
        losses.ExpIbp: lambda: entropy(bound) ** alpha * entropy(attacked) ** (1 - alpha),
    }[type(loss)]()


@pytest.mark.parametrize(
    "loss",
    [*LOSSES.values(), losses.MtlIbp(0.1, attack_ratio=2.0), Costly(protected=(1, 3), cost=7.0), Sabr(0.1)],
    ids=str,
)
def test_a_loss_is_what_its_paper_says(loss):
    given = context(jax.random.key(0), parameters(), *examples())
    np.testing.assert_allclose(values(loss)[0].loss, expected(loss, given), rtol=2e-4, atol=2e-5)


# --- rules, optimizers, learning rates, radii -----------------------------------------------------------------------


@pytest.mark.parametrize("settings", mixing.RULES.members.values(), ids=mixing.RULES.members)
def test_a_rule_gives_every_term_a_finite_weight_and_keeps_the_shape_of_its_state(settings):
    rule = settings.rule(mixing.Horizon(steps=100, epochs=10, ramp=0.4))
    update, state = jax.jit(rule.update), rule.init()
    for step in range(3):
        terms = {name: mixing.Metrics(jnp.float32(1.5), jnp.float32(0.5)) for name in ("clean", "other")}
        products = jnp.array([[1.0, 0.3], [0.3, 2.0]]) if rule.needs_products else None
        weights, new = update(mixing.Signals(jnp.int32(step), jnp.float32(step / 10), terms, products), state)
        assert list(weights) == ["clean", "other"]
        assert all(np.isfinite(weight) and weight >= 0 for weight in weights.values())
        assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
        state = new
    assert update._cache_size() == 1


@pytest.mark.parametrize("settings", optimizers.OPTIMIZERS.members.values(), ids=optimizers.OPTIMIZERS.members)
def test_an_optimizer_minimizes_a_square_within_its_clip(settings):
    tx = dataclasses.replace(settings, learning_rate=0.1).transformation(lambda step: 0.1)
    params, loss = jnp.array([1.0, -2.0]), lambda x: jnp.square(x).sum()
    state, first = tx.init(params), loss(params)
    for _ in range(60):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    assert float(loss(params)) < 0.05 * float(first)


@pytest.mark.parametrize("settings", optimizers.SCHEDULES.members.values(), ids=optimizers.SCHEDULES.members)
def test_a_learning_rate_starts_at_its_peak_and_falls(settings):
    rates = np.asarray(jax.vmap(settings.rates(0.3, 200))(jnp.arange(201)))
    np.testing.assert_allclose(rates[0], 0.3, rtol=1e-6)
    assert (np.diff(rates) <= 1e-8).all()
    assert rates[-1] < 0.1 * rates[0]
    assert (rates >= 0).all()


def test_milestones_are_shares_of_training():
    rates = np.asarray(jax.vmap(optimizers.Milestones((0.5, 0.75), 0.1).rates(1.0, 100))(jnp.arange(100)))
    np.testing.assert_allclose(rates[[0, 50, 51, 75, 76, 99]], [1, 0.1, 0.1, 0.01, 0.01, 0.01], rtol=1e-5)


@pytest.mark.parametrize("settings", optimizers.RADII.members.values(), ids=optimizers.RADII.members)
def test_a_radius_grows_from_zero_to_its_multiple_and_stays(settings):
    settings = dataclasses.replace(settings, ratio=1.5, ramp=0.4)
    radii = np.asarray(jax.vmap(settings.radii(0.2, 100))(jnp.arange(100)))
    assert radii[0] == 0
    assert (np.diff(radii) >= 0).all()
    np.testing.assert_allclose(radii[40:], 0.3, rtol=1e-6)
