import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import small_networks as networks

import mixtrain_jax as mt
from mixtrain_jax.attacks import Budget, apgd, dlr, fab, flags, in_turn, square, standard, standard_attacks, targeted
from mixtrain_jax.attacks.apgd import _windows
from mixtrain_jax.attacks.fab import nearest

DOMAIN = (0.0, 1.0)
MLP = networks.mlp(2, 9, 4)
SMALL = Budget(steps=12, targets=3, queries=40)
X, LABELS = networks.images(0, 8), np.arange(8, dtype=np.int32) % 4
RIGHT = networks.labelled(MLP, networks.images(3, 21))


def ball_of(norm, x, eps, domain=DOMAIN):
    if norm == "linf":
        return mt.linf_ball(x, eps, domain)
    return jax.vmap(lambda image: mt.l2_ball(image, eps, domain))(jnp.asarray(x))


def margins(logits_fn, x, labels):
    logits = np.array(logits_fn(jnp.asarray(x)), np.float64)
    own = logits[np.arange(len(labels)), labels]
    logits[np.arange(len(labels)), labels] = -np.inf
    return own - logits.max(-1)


def assert_inside(found, x, ball):
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    found = np.asarray(found, np.float64)
    assert (found >= np.asarray(ball.lower)).all()
    assert (found <= np.asarray(ball.upper)).all()
    if isinstance(ball, mt.Ball):
        away = found - np.asarray(ball.point, np.float64)
        assert (np.sqrt(np.square(away).sum((1, 2, 3))) <= np.asarray(ball.eps, np.float64)).all()


@functools.cache
def bounded(norm):
    """Balls of eight images, and lower bounds of their margins."""
    ball = ball_of(norm, RIGHT.images[:8], 0.06 if norm == "linf" else 0.18)
    bound = jax.vmap(mt.margins(mt.crown, lambda image: MLP(image[None])[0]))
    return ball, np.asarray(jax.jit(bound)(ball, RIGHT.labels[:8])).min(-1)


def ensemble(key, logits_fn, x, labels, ball, *, budget=SMALL, domain=None, **options):
    return in_turn(key, logits_fn, x, labels, ball, standard_attacks(budget, domain), batch_size=8, **options)


ATTACKS = {
    "apgd": functools.partial(apgd, steps=12, restarts=2),
    "apgd_targeted": targeted(functools.partial(apgd, steps=12, objective=dlr)),
    "fab": functools.partial(fab, steps=6, restarts=2),
    "square": functools.partial(square, queries=60),
    "standard": functools.partial(standard, budget=SMALL, batch_size=8),
}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", list(ATTACKS))
def test_stays_in_the_ball_never_beats_a_bound_and_repeats_itself(key, name, norm):
    attack, x, labels = ATTACKS[name], RIGHT.images[:8], RIGHT.labels[:8]
    ball, bound = bounded(norm)
    found = attack(key, MLP, x, labels, ball)
    assert_inside(found, x, ball)
    after, before = margins(MLP, found, labels), margins(MLP, x, labels)
    assert (after <= before + 1e-6).all()
    assert (after < before - 0.01).sum() >= 7
    assert (after >= bound - 1e-5).all()
    np.testing.assert_array_equal(found, attack(key, MLP, x, labels, ball))
    other = np.asarray(attack(jax.random.key(1), MLP, x, labels, ball))
    if name in ("apgd", "square"):
        assert (other != np.asarray(found)).any()


def test_compiled_as_a_whole_or_step_by_step_it_is_the_same_attack(key):
    attack, (ball, _) = ATTACKS["apgd"], bounded("linf")
    whole = jax.jit(lambda key, x, ball: attack(key, MLP, x, RIGHT.labels[:8], ball))(key, RIGHT.images[:8], ball)
    by_steps = attack(key, MLP, RIGHT.images[:8], RIGHT.labels[:8], ball)
    np.testing.assert_allclose(by_steps, whole, atol=1e-5)


# --- the ensemble ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_record_says_what_the_inputs_do(key, norm):
    labels = RIGHT.labels.copy()
    labels[:3] = (labels[:3] + 1) % 4
    ball, calls = ball_of(norm, RIGHT.images, 0.05 if norm == "linf" else 0.15), []
    record = ensemble(key, MLP, RIGHT.images, labels, ball, domain=DOMAIN, poll=lambda *call: calls.append(call))
    assert record.attacks == ("apgd-ce", "apgd-dlr-t", "fab-t", "square")
    assert_inside(record.adversarial, RIGHT.images, ball)
    right = np.asarray(MLP(jnp.asarray(record.adversarial))).argmax(-1) == labels
    np.testing.assert_array_equal(record.standing, right)
    np.testing.assert_array_equal(record.broken_by[:3], "clean")
    np.testing.assert_array_equal(record.adversarial[:3], RIGHT.images[:3])
    assert 3 < record.standing.sum() < 15
    assert set(record.broken_by) <= {"", "clean", *record.attacks}
    alone = standard(key, MLP, RIGHT.images, labels, ball, budget=SMALL, batch_size=8, domain=DOMAIN)
    np.testing.assert_array_equal(alone, record.adversarial)
    for name in record.attacks:
        done = [call[1] for call in calls if call[0] == name]
        assert done == sorted(done)
        assert done[-1] == next(call[2] for call in calls if call[0] == name)
    assert next(call[2] for call in calls if call[0] == "apgd-ce") == 18
    assert (
        next(call[2] for call in calls if call[0] == "square")
        == record.standing.sum() + (record.broken_by == "square").sum()
    )


@pytest.mark.parametrize("restarts", [0, 1])
def test_without_steps_apgd_returns_nothing_worse_than_the_input(key, restarts):
    x, labels, (ball, _) = RIGHT.images[:8], RIGHT.labels[:8], bounded("linf")
    found = apgd(key, MLP, x, labels, ball, steps=0, restarts=restarts)
    assert (margins(MLP, found, labels) <= margins(MLP, x, labels) + 1e-6).all()


def test_it_breaks_all_that_one_attack_breaks(key):
    x, labels, (ball, _) = RIGHT.images[:8], RIGHT.labels[:8], bounded("linf")
    record = ensemble(key, MLP, x, labels, ball)
    for name in ("apgd", "apgd_targeted", "fab"):
        alone = margins(MLP, ATTACKS[name](key, MLP, x, labels, ball), labels)
        assert not (record.standing & (alone < -1e-4)).any()


def test_budgets_of_zero_leave_attacks_out_and_no_examples_are_fine(key):
    ball = mt.linf_ball(RIGHT.images, 0.05, DOMAIN)
    for budget, names in [
        (Budget(0, 0, 0), ()),
        (Budget(12, 0, 0), ("apgd-ce",)),
        (Budget(0, 3, 40), ("square",)),
    ]:
        record = ensemble(key, MLP, RIGHT.images, RIGHT.labels, ball, budget=budget)
        assert record.attacks == names
        assert set(record.broken_by) - {""} == set(names)
    none = ensemble(key, MLP, RIGHT.images[:0], RIGHT.labels[:0], mt.linf_ball(RIGHT.images[:0], 0.1))
    assert none.adversarial.shape == (0, 3, 3, 1)
    assert none.broken_by.shape == (0,)


def test_inside_jit_it_says_where_it_runs(key):
    with pytest.raises(mt.BoundsError, match="outside"):
        jax.jit(lambda x: standard(key, MLP, x, LABELS, mt.linf_ball(x, 0.1)))(X)


def test_an_honest_network_raises_no_flag(key):
    ball = mt.linf_ball(RIGHT.images, 0.05, DOMAIN)
    record = ensemble(key, MLP, RIGHT.images, RIGHT.labels, ball)
    assert flags(MLP, RIGHT.images, RIGHT.labels, broken_by=record.broken_by) == []


# --- its parts, on networks that are linear -----------------------------------------------------------------------


def test_checkpoints_are_the_published_ones():
    ends = np.flatnonzero(_windows(100)) + 1
    assert ends.tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
    assert _windows(100)[ends - 1].tolist() == [22, 19, 16, 13, 10, 7, 6, 6]
    for steps in (0, 1, 2, 7, 20):
        assert _windows(steps).sum() <= steps


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_reaches_the_exact_worst_margin_of_two_classes(key, norm):
    w, b, logits_fn = networks.linear(0, 9, 2)
    labels = np.arange(8, dtype=np.int32) % 2
    eps = 0.07
    found = apgd(key, logits_fn, X, labels, ball_of(norm, X, eps, None), steps=40)
    slope = (w[:, 0] - w[:, 1]).astype(np.float64)
    fall = np.abs(slope).sum() if norm == "linf" else np.sqrt(np.square(slope).sum())
    logits = X.reshape(8, -1).astype(np.float64) @ w + b
    worst = logits[np.arange(8), labels] - logits[np.arange(8), 1 - labels] - eps * fall
    np.testing.assert_allclose(margins(logits_fn, found, labels), worst, atol=1e-5)


def test_targeted_apgd_breaks_exactly_what_a_linear_network_lets_it(key):
    w, b, logits_fn = networks.linear(0, 9, 5)
    split = networks.labelled(logits_fn, networks.images(1, 64))
    margin, fall = networks.exact_margins(w, b, split)
    worst = (margin - 0.05 * fall).min(-1)
    attack = targeted(functools.partial(apgd, steps=40, objective=dlr))
    found = attack(key, logits_fn, split.images, split.labels, mt.linf_ball(split.images, 0.05))
    assert 10 < (worst < 0).sum() < 54
    np.testing.assert_array_equal(margins(logits_fn, found, split.labels) < 0, worst < 0)


def linear_program(point, slope, rise, lower, upper):
    """The least l-infinity norm of a move in a box after which a linear function has risen by so much."""
    d = len(point)
    ones = np.ones((d, 1))
    sides = np.block([[np.eye(d), -ones], [-np.eye(d), -ones]])
    limits = [*zip(lower - point, upper - point, strict=True), (0, None)]
    equal = np.concatenate([slope, [0.0]])[None]
    return scipy.optimize.linprog([0.0] * d + [1.0], sides, np.zeros(2 * d), equal, [rise], limits)


def quadratic_program(point, slope, rise, lower, upper):
    """The same for the Euclidean norm."""
    linear = {"type": "eq", "fun": lambda move: slope @ move - rise, "jac": lambda move: slope}
    box = [*zip(lower - point, upper - point, strict=True)]
    square = lambda move: (move @ move, 2 * move)  # noqa: E731
    options = {"ftol": 1e-14, "maxiter": 500}
    start = np.clip(slope * rise / (slope @ slope), *np.transpose(box))
    return scipy.optimize.minimize(
        square, start, jac=True, method="SLSQP", bounds=box, constraints=linear, options=options
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_nearest_point_of_a_hyperplane_in_a_box_is_that_of_a_solver(x64, norm):
    rng = np.random.default_rng(0)
    n, d = 60, 7
    points, slope = rng.uniform(size=(n, d)), rng.normal(size=(n, d))
    points[:10, :3] = np.round(points[:10, :3])
    slope[10:20, :2] = 0
    most = np.where(slope > 0, slope * (1 - points), -slope * points).sum(-1)
    least = -np.where(slope < 0, slope * (1 - points), -slope * points).sum(-1)
    share = rng.uniform(0.02, 0.98, n)
    rise = np.where(np.arange(n) % 2 == 0, most, -np.abs(least)) * share
    low, high = np.zeros((n, d)), np.ones((n, d))
    moves = np.asarray(nearest(points, slope, rise, mt.Interval(low, high), euclidean=norm == "l2"))
    assert (points + moves >= -1e-12).all()
    assert (points + moves <= 1 + 1e-12).all()
    np.testing.assert_allclose((slope * moves).sum(-1), rise, atol=1e-10)
    at_the_end = (np.abs(points + moves - 0.5) > 0.5 - 1e-9).sum(-1)
    assert (at_the_end > 0).sum() > 20
    for i in range(n):
        if norm == "linf":
            want = linear_program(points[i], slope[i], rise[i], low[i], high[i]).fun
            np.testing.assert_allclose(np.abs(moves[i]).max(), want, rtol=1e-7, atol=1e-9)
        else:
            want = quadratic_program(points[i], slope[i], rise[i], low[i], high[i])
            np.testing.assert_allclose(moves[i], want.x, atol=1e-5)


@pytest.mark.parametrize("euclidean", [False, True])
def test_a_hyperplane_out_of_reach_is_approached_as_far_as_the_box_goes(euclidean):
    points, slope = jnp.full((3, 2), 0.5), jnp.asarray([[1.0, -2.0], [1.0, 0.0], [0.0, 0.0]])
    box = mt.Interval(jnp.zeros((3, 2)), jnp.ones((3, 2)))
    moves = nearest(points, slope, jnp.asarray([100.0, -100.0, 1.0]), box, euclidean=euclidean)
    np.testing.assert_array_equal(moves, [[0.5, -0.5], [-0.5, 0.0], [0.0, 0.0]])
    free = mt.Interval(jnp.full((3, 2), -jnp.inf), jnp.full((3, 2), jnp.inf))
    moves = nearest(points, slope, jnp.asarray([3.0, -2.0, 1.0]), free, euclidean=euclidean)
    first = [0.6, -1.2] if euclidean else [1.0, -1.0]
    np.testing.assert_allclose(moves, [first, [-2.0, 0.0], [0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fab_finds_the_least_distance_of_a_linear_network(key, norm):
    w, b, logits_fn = networks.linear(4, 9, 4)
    split = networks.labelled(logits_fn, np.round(networks.images(5, 16), 1))  # some pixels at the ends
    ball = ball_of(norm, split.images, 5.0)  # the whole domain
    found = np.asarray(fab(key, logits_fn, split.images, split.labels, ball, steps=30), np.float64)
    margin, _ = networks.exact_margins(w, b, split)
    solve, met, at_the_end = linear_program if norm == "linf" else quadratic_program, 0, 0
    for i, label in enumerate(split.labels):
        point, others = split.images[i].ravel().astype(np.float64), np.delete(np.arange(4), label)
        solved = [
            solve(point, (w[:, j] - w[:, label]).astype(np.float64), gap, np.zeros(9), np.ones(9))
            for j, gap in zip(others, margin[i], strict=True)
        ]
        least = min((s.fun if norm == "linf" else s.fun**0.5) for s in solved if s.success)
        move = found[i].ravel() - point
        distance = np.abs(move).max() if norm == "linf" else np.sqrt(move @ move)
        np.testing.assert_allclose(distance, least, rtol=3e-4)
        met += margins(logits_fn, found[i : i + 1].astype(np.float32), split.labels[i : i + 1])[0] < 0
        at_the_end += ((found[i] < 1e-6) | (found[i] > 1 - 1e-6)).any()
    assert met == 16
    assert at_the_end > 4  # the box is active


def test_fab_breaks_exactly_what_a_linear_network_lets_it(key):
    w, b, logits_fn = networks.linear(4, 9, 4)
    split = networks.labelled(logits_fn, networks.images(5, 16))
    margin, fall = networks.exact_margins(w, b, split)
    breakable = (margin - 0.15 * fall).min(-1) < 0
    ball = mt.linf_ball(split.images, 0.15)
    found = fab(key, logits_fn, split.images, split.labels, ball, steps=30)
    assert 2 < breakable.sum() < 14
    np.testing.assert_array_equal(margins(logits_fn, found, split.labels) < 0, breakable)
    assert_inside(found, split.images, ball)


def test_l1_balls_are_refused(key):
    ball = jax.vmap(lambda image: mt.l1_ball(image, 0.1))(jnp.asarray(X))
    for attack in ATTACKS.values():
        with pytest.raises(mt.BoundsError, match="l1"):
            attack(key, MLP, X, LABELS, ball)


# --- flags ----------------------------------------------------------------------------------------------------------


def own_gradient(x):
    @jax.custom_vjp
    def step(x):
        return x

    step.defvjp(lambda x: (x, None), lambda _, cotangent: (cotangent,))
    return step(x)


RNG = np.random.default_rng(0)
PLANTED = {
    "randomised: two calls": lambda x: MLP(x + RNG.normal(size=x.shape).astype(np.float32)),
    "randomised: random_bits x 1": lambda x: MLP(x + jax.random.uniform(jax.random.key(3), x.shape)),
    "softmax: outputs lie in": lambda x: jax.nn.softmax(MLP(x)),
    "zero gradient: that of the cross-entropy is 0 on 100.0%": lambda x: MLP(jax.lax.stop_gradient(x)),
    "zero gradient: that of the dlr is 0 on 100.0%": lambda x: MLP(jnp.round(x)),
    "zero gradient: that of the dlr does not exist": lambda x: MLP(
        jax.lax.while_loop(lambda v: v.sum() < 0, lambda v: v + 1, x)
    ),
    "loop: scan x 1": lambda x: MLP(jax.lax.fori_loop(0, 3, lambda _, v: v - 0.1 * jnp.sin(v), x)),
    "loop: while x 1": lambda x: MLP(jax.lax.while_loop(lambda v: v.sum() < 0, lambda v: v + 1, x)),
    "loop: pure_callback x 1": lambda x: MLP(jax.pure_callback(lambda v: v, jax.ShapeDtypeStruct(x.shape, x.dtype), x)),
    "steps: round x 1": lambda x: MLP(jnp.round(x)),
    "steps: custom_vjp_call x 1": lambda x: MLP(own_gradient(x)),
}


@pytest.mark.parametrize("message", list(PLANTED))
def test_what_was_planted_raises_its_flag(message):
    raised = flags(PLANTED[message], RIGHT.images, RIGHT.labels)
    assert any(found.startswith(message) for found in raised)
    if message.startswith(("randomised: random", "softmax", "loop: scan", "steps: custom")):
        assert len(raised) == 1


TRACES = []


def hidden(x):
    """A network that hides its gradients."""
    TRACES.append(x.shape)
    return MLP(jnp.round(x * 16) / 16)


def test_it_compiles_once_however_many_examples_stand(key):
    counts = []
    for images, eps in [(21, 0.05), (21, 0.02), (9, 0.05), (3, 0.3), (21, 1.0)]:
        x, labels = RIGHT.images[:images], RIGHT.labels[:images]
        ball = mt.linf_ball(x, eps, DOMAIN)
        ensemble(key, hidden, x, labels, ball)
        counts.append(len(TRACES))
    assert counts == [counts[0]] * 5
    assert set(TRACES) == {(8, 3, 3, 1)}


def test_what_gradients_cannot_break_and_square_can_raises_its_flag(key):
    split = networks.labelled(hidden, RIGHT.images)
    ball = mt.linf_ball(split.images, 0.08, DOMAIN)
    record = ensemble(key, hidden, split.images, split.labels, ball)
    share = (record.broken_by == "square").mean()
    assert share > 0.05
    raised = flags(hidden, split.images, split.labels, broken_by=record.broken_by)
    assert (
        f"square: without gradients it broke {share:.1%} of the examples after attacks with gradients had failed"
        in raised
    )
    assert any(found.startswith("zero gradient") for found in raised)
