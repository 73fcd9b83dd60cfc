import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixtrain_jax import mixing
from mixtrain_jax.mixing import Metrics, Signals


def lenient(f):
    """Optax itself relies on implicit promotion here and there; ours stays strict around it."""

    @functools.wraps(f)
    def promoting(*args):
        with jax.numpy_dtype_promotion("standard"):
            return f(*args)

    return promoting


def adam(learning_rate):
    tx = optax.adam(learning_rate)
    return optax.GradientTransformation(tx.init, lenient(tx.update))


OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.5),
    "momentum": lambda: optax.sgd(0.05, momentum=0.9),
    "adam": lambda: adam(0.01),
}
RULES = {
    "constant": lambda: mixing.constant(3.0),
    "schedule": lambda: mixing.schedule(optax.linear_schedule(0.0, 5.0, 10)),
    "convex": lambda: mixing.convex(0.3),
    "convex schedule": lambda: mixing.convex(lenient(optax.cosine_decay_schedule(0.8, 20))),
    "staircase": lambda: mixing.staircase(3.0),
    "mgda": mixing.mgda,
    "balanced": mixing.balanced,
    "constrained sgd": lambda: mixing.constrained(0.9, OPTIMIZERS["sgd"]()),
    "constrained momentum": lambda: mixing.constrained(0.9, OPTIMIZERS["momentum"]()),
    "constrained adam": lambda: mixing.constrained(0.9, OPTIMIZERS["adam"]()),
}


@pytest.fixture(params=RULES)
def rule(request):
    return RULES[request.param]()


def signals(step=0, epoch=0.0, accuracy=0.95):
    f32 = jnp.float32
    terms = {"clean": Metrics(f32(0.5), f32(accuracy)), "robust": Metrics(f32(2.0), f32(0.5))}
    return Signals(jnp.int32(step), f32(epoch), terms, jnp.array([[4.0, 1.0], [1.0, 9.0]], f32))


def weights_over(rule, many, state=None):
    """Weights of a rule over stacked signals, and its last state, by `lax.scan`."""

    def step(state, one):
        weights, state = rule.update(one, state)
        return state, weights

    state, weights = jax.lax.scan(step, rule.init() if state is None else state, many)
    return jax.tree.map(np.asarray, weights), state


def stacked(n, epochs=None, accuracy=0.95):
    steps = jnp.arange(n, dtype=jnp.int32)
    epochs = steps.astype(jnp.float32) / 2 if epochs is None else jnp.asarray(epochs, jnp.float32)
    full = jnp.ones(n, jnp.float32)
    clean = Metrics(0.5 * full, jnp.broadcast_to(jnp.float32(accuracy), (n,)))
    products = jnp.broadcast_to(jnp.array([[4.0, 1.0], [1.0, 9.0]], jnp.float32), (n, 2, 2))
    return Signals(steps, epochs, {"clean": clean, "robust": Metrics(2.0 * full, 0.5 * full)}, products)


def layout(tree):
    return jax.tree.structure(tree), [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]


def test_update_traces_once(rule):
    traces = []

    @jax.jit
    def update(signals, state):
        traces.append(None)
        return rule.update(signals, state)

    state = jax.jit(rule.init)()
    for step in range(5):
        _, state = update(signals(step, step / 2, 0.5 + step / 10), state)
    assert len(traces) == 1


def test_update_keeps_the_layout_of_the_state(rule):
    state = rule.init()
    assert layout(jax.jit(rule.init)()) == layout(state)
    assert layout(rule.update(signals(), state)[1]) == layout(state)


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 1.0])
def test_weights_are_finite_nonnegative_float32_scalars(rule, accuracy):
    weights, _ = weights_over(rule, stacked(300, accuracy=accuracy))
    assert list(weights) == ["clean", "robust"]
    for weight in weights.values():
        assert weight.shape == (300,)
        assert weight.dtype == np.float32
        assert np.isfinite(weight).all()
        assert (weight >= 0).all()


def test_scan_agrees_with_one_call_at_a_time(rule):
    many = stacked(8)
    scanned, scanned_state = weights_over(rule, many)
    state = rule.init()
    for i in range(8):
        weights, state = rule.update(jax.tree.map(lambda x, i=i: x[i], many), state)
        np.testing.assert_allclose(weights["robust"], scanned["robust"][i], rtol=1e-6)
        np.testing.assert_allclose(weights["clean"], scanned["clean"][i], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state, scanned_state)


def test_update_is_pure(rule):
    state = rule.init()
    first, second = rule.update(signals(3, 9.0, 0.2), state), rule.update(signals(3, 9.0, 0.2), state)
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("ramp", [0, 10, 25, 60])
def test_staircase_follows_the_code_of_mixtrain(ramp):
    epochs = range(81)
    expected = [min(0.1 * 2.5 ** (max(e - ramp, 0) // 5), 50) for e in epochs]
    weights, _ = weights_over(mixing.staircase(ramp), stacked(81, epochs))
    np.testing.assert_allclose(weights["robust"], expected, rtol=1e-6)
    np.testing.assert_array_equal(weights["clean"], 1)


@pytest.mark.parametrize(
    ("start", "factor", "every", "cap"), [(1, 2, 3, 8), (0.5, 1, 1, 4), (0, 3, 2, 5), (2, 10, 4, 2)]
)
def test_staircase_with_other_numbers(start, factor, every, cap):
    epochs = range(40)
    expected = [min(start * factor ** (max(e - 4, 0) // every), cap) for e in epochs]
    rule = mixing.staircase(4, start=start, factor=factor, every=every, cap=cap)
    np.testing.assert_allclose(weights_over(rule, stacked(40, epochs))[0]["robust"], expected, rtol=1e-6)


def test_staircase_moves_between_epochs_only():
    weights, _ = weights_over(mixing.staircase(0), stacked(4, [4.0, 4.99, 5.0, 5.5]))
    np.testing.assert_allclose(weights["robust"], [0.1, 0.1, 0.25, 0.25], rtol=1e-6)


def test_staircase_stays_at_their_cap():
    weights, _ = weights_over(mixing.staircase(0), stacked(3, [1e3, 1e6, 1e9]))
    np.testing.assert_array_equal(weights["robust"], 50)


@pytest.mark.parametrize(
    "wrong",
    [{"ramp": -1.0}, {"start": -0.5}, {"factor": 0.5}, {"every": 0}, {"cap": 0.05}, {"ramp": float("nan")}],
    ids=str,
)
def test_staircase_refuses_numbers_out_of_range(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=f"ramp >= 0, start >= 0, factor >= 1.*{name} = {value}"):
        mixing.staircase(**{"ramp": 1.0, **wrong})


def test_schedule_is_the_optax_schedule():
    robust = optax.linear_schedule(0.0, 5.0, 10)
    weights, _ = weights_over(mixing.schedule(robust), stacked(15))
    np.testing.assert_allclose(weights["robust"], [min(i / 2, 5) for i in range(15)], rtol=1e-6)
    np.testing.assert_array_equal(weights["clean"], 1)


def test_constant_is_constant():
    weights, _ = weights_over(mixing.constant(2.5), stacked(4))
    np.testing.assert_array_equal(weights["robust"], 2.5)
    np.testing.assert_array_equal(weights["clean"], 1)


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_constant_refuses_negative_weights(weight):
    with pytest.raises(ValueError, match=f"weight >= 0, got {weight}"):
        mixing.constant(weight)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_convex_weights_are_the_share_and_the_rest(share):
    weights, _ = weights_over(mixing.convex(share), stacked(3))
    np.testing.assert_array_equal(weights["robust"], np.float32(share))
    np.testing.assert_allclose(weights["clean"], 1 - share, rtol=1e-6)


def test_convex_follows_a_schedule_and_sums_to_one():
    weights, _ = weights_over(mixing.convex(optax.linear_schedule(0.8, 0.2, 10)), stacked(15))
    np.testing.assert_allclose(weights["robust"], [max(0.8 - 0.06 * i, 0.2) for i in range(15)], rtol=1e-5)
    np.testing.assert_allclose(weights["robust"] + weights["clean"], 1, rtol=1e-6)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_convex_refuses_shares_out_of_range(share):
    with pytest.raises(ValueError, match=f"between 0 and 1, got {share}"):
        mixing.convex(share)


@pytest.mark.parametrize("tx", OPTIMIZERS)
def test_constrained_gives_way_below_its_target_and_grows_above(tx):
    rule = mixing.constrained(0.9, OPTIMIZERS[tx](), start=0.4)
    below, _ = weights_over(rule, stacked(20, accuracy=0.6))
    above, _ = weights_over(rule, stacked(20, accuracy=1.0))
    assert (np.diff(below["robust"], prepend=0.4) < 0).all()
    assert (np.diff(above["robust"], prepend=0.4) > 0).all()
    np.testing.assert_allclose(below["robust"] + below["clean"], 1, rtol=1e-6)


def test_constrained_stands_still_at_its_target():
    weights, _ = weights_over(mixing.constrained(0.75, optax.sgd(1.0), start=0.4), stacked(50, accuracy=0.75))
    np.testing.assert_allclose(weights["robust"], 0.4, rtol=1e-5)


def test_constrained_first_step_by_hand():
    rule = mixing.constrained(0.9, optax.sgd(0.5), start=0.4, decay=0.8)
    weights, state = rule.update(signals(accuracy=0.4), rule.init())
    accuracy = 0.8 * 0.9 + 0.2 * 0.4
    multiplier = np.log(0.4 / 0.6) - 0.5 * (0.9 - accuracy)
    np.testing.assert_allclose(state.accuracy, accuracy, rtol=1e-6)
    np.testing.assert_allclose(weights["robust"], 1 / (1 + np.exp(-multiplier)), rtol=1e-6)


@pytest.mark.parametrize("tx", OPTIMIZERS)
def test_constrained_holds_the_state_of_its_optimizer(tx):
    optimizer = OPTIMIZERS[tx]()
    rule = mixing.constrained(0.9, optimizer)
    before = rule.init()
    after = rule.update(signals(accuracy=0.2), before)[1]
    assert jax.tree.structure(before.opt_state) == jax.tree.structure(optimizer.init(before.multiplier))
    changed = [bool((a != b).any()) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)]
    assert all(changed)


@pytest.mark.parametrize("tx", OPTIMIZERS)
@pytest.mark.parametrize("start", [0.1, 0.9])
def test_constrained_finds_the_share_that_meets_the_target(tx, start):
    rule = mixing.constrained(0.88, OPTIMIZERS[tx](), start=start, decay=0.9)

    def step(carry, i):
        share, state = carry
        weights, state = rule.update(signals(i, accuracy=1 - 0.2 * share), state)
        return (weights["robust"], state), weights["robust"]

    _, shares = jax.lax.scan(step, (jnp.float32(start), rule.init()), jnp.arange(4000))
    np.testing.assert_allclose(shares[-500:], 0.6, atol=1e-3)


def test_constrained_comes_back_from_either_end():
    rule = mixing.constrained(0.9, optax.sgd(1.0), decay=0.0)
    for there, back in ((0.0, 1.0), (1.0, 0.0)):
        extreme, state = weights_over(rule, stacked(2000, accuracy=there))
        returned, _ = weights_over(rule, stacked(200, accuracy=back), state)
        assert (extreme["robust"][-1] > 0.5) != (returned["robust"][-1] > 0.5)


@pytest.mark.parametrize(
    "wrong",
    [{"target": 1.2}, {"target": -0.1}, {"start": 0.0}, {"start": 1.0}, {"decay": 1.0}, {"decay": -0.5}],
    ids=str,
)
def test_constrained_refuses_numbers_out_of_range(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=f"0 <= target <= 1, 0 < start < 1 and 0 <= decay < 1.*{name} = {value}"):
        mixing.constrained(**{"target": 0.9, "tx": optax.sgd(0.1), **wrong})


def products_of(first, second):
    gradients = np.stack([first, second]).astype(np.float32)
    return jnp.asarray(gradients @ gradients.T)


@pytest.mark.parametrize("seed", range(8))
def test_mgda_takes_the_shortest_convex_combination(seed):
    """On a grid of shares no mixed gradient is shorter, and both losses fall along it unless it is 0."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, 3)) * [[1], [rng.uniform(0.1, 10)]]
    weights, _ = mixing.mgda().update(signals()._replace(products=products_of(first, second)), ())
    share = float(weights["clean"])
    mixed = share * first + (1 - share) * second
    grid = np.linspace(0, 1, 1001)[:, None]
    shortest = np.linalg.norm(grid * first + (1 - grid) * second, axis=1).min()
    np.testing.assert_allclose(np.linalg.norm(mixed), shortest, rtol=1e-4)
    np.testing.assert_allclose(share + weights["robust"], 1, rtol=1e-6)
    assert min(mixed @ first, mixed @ second) > -1e-5


@pytest.mark.parametrize(("first", "second", "share"), [(1, 1, 0.5), (0, 2, 0), (2, 0, 1), (0, 0, 1), (1, 100, 1)])
def test_mgda_at_the_edges(first, second, share):
    direction = np.array([0.6, 0.8])
    weights, _ = mixing.mgda().update(
        signals()._replace(products=products_of(first * direction, second * direction)), ()
    )
    assert float(weights["clean"]) == share


def test_mgda_mixes_two_terms():
    three = {name: Metrics(*jnp.ones(2)) for name in ("a", "b", "c")}
    with pytest.raises(ValueError, match=r"mgda mixes two terms, got 3 \(a, b, c\)"):
        mixing.mgda().update(signals()._replace(terms=three, products=jnp.eye(3)), ())


@pytest.mark.parametrize("lengths", [(1.0, 1.0), (3.0, 0.5), (1e-3, 1e4)])
def test_balanced_gives_every_term_one_length(lengths):
    products = products_of(lengths[0] * np.array([1.0, 0.0]), lengths[1] * np.array([0.6, 0.8]))
    weights, _ = mixing.balanced().update(signals()._replace(products=products), ())
    long = [float(weight) * length for weight, length in zip(weights.values(), lengths, strict=True)]
    np.testing.assert_allclose(long[0], long[1], rtol=1e-5)
    np.testing.assert_allclose(sum(map(float, weights.values())), 1, rtol=1e-6)


def test_balanced_leaves_out_what_a_step_goes_without():
    for products, expected in (
        (np.diag([4.0, 0.0]), [1, 0]),
        (np.diag([0.0, 4.0]), [0, 1]),
        (np.zeros((2, 2)), [0, 0]),
    ):
        weights, _ = mixing.balanced().update(signals()._replace(products=jnp.asarray(products, jnp.float32)), ())
        assert [float(weight) for weight in weights.values()] == expected


@pytest.mark.parametrize("make", [mixing.mgda, mixing.balanced])
def test_rules_that_look_at_gradients_say_so(make):
    assert make().needs_products
    assert not mixing.convex(0.5).needs_products
