import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

import mixtrain_jax as mt
from mixtrain_jax.bounds import session


def conv_net(params, x):
    """Convolution, residual sum, maximum with a threshold, leaky ReLU and tanh: one image [4, 4, 1] to 3 outputs."""
    kernel, w, v = params
    y = jax.lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = jnp.maximum(y, 0.125) + x[None]
    z = jax.nn.leaky_relu(y.reshape(1, -1) @ w)
    return (jnp.tanh(z) @ v)[0]


def build(seed):
    rng = np.random.default_rng(seed)
    shapes = (3, 3, 1, 1), (16, 8), (8, 3)
    return tuple(networks._normal(rng, n, 0.6) for n in shapes), rng.random((4, 4, 1), np.float32)


@functools.cache
def program():
    """Everything that the tests look at, of many subdomains in one call."""

    def of_root(params, ball):
        tape = session.trace(functools.partial(conv_net, params), ball)
        known = session.analyse(tape)
        points = session.split_points(tape, known.boxes)
        return known.boxes, {str(i): point for i, point in points.items()}

    def of_part(params, boxes, signs, slopes, multipliers, row, sound):
        tape = session.trace(functools.partial(conv_net, params), boxes[0])
        points = session.split_points(tape, boxes)
        splits, beta = ({i: x[str(i)] for i in points} for x in (signs, multipliers))
        known = session.subdomain(tape, boxes, points, splits)
        start = session.start_slopes(tape, known)
        known = session.sloped(
            tape, known, points, {i: jnp.broadcast_to(slopes, x.shape) for i, x in start.items()}, sound
        )
        if not sound:
            known = session.without_rounding(known)
        return session.lower_bound(tape, known, row, points, splits, beta, sound), known.boxes

    mapped = jax.vmap(of_part, (None, None, 0, 0, 0, None, None))
    return jax.jit(of_root), jax.jit(mapped, static_argnums=6)


def values_of(params, x, boxes):
    """Every value on the tape at a point, in float64: what the boxes bound."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), params)
        point = mt.Interval(jnp.asarray(x, jnp.float64), jnp.asarray(x, jnp.float64))
        tape = session.trace(functools.partial(conv_net, wide), point)
        known = session.engine.analyse(tape, session.Domain())
        assert len(known.boxes) == len(boxes)
        return [np.asarray(box.center) for box in known.boxes]


@pytest.mark.parametrize("sound", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_bounds_of_subdomains_hold_for_points_in_them(seed, sound):
    """Each point names the subdomain that it lies in; any slopes and multipliers bound it there."""
    params, x = build(seed)
    ball, rng = mt.linf_ball(x, 0.3), np.random.default_rng(seed)
    of_root, of_parts = program()
    boxes, points = of_root(params, ball)
    samples = rng.uniform(np.asarray(ball.lower), np.asarray(ball.upper), (16, *x.shape)).astype(np.float32)
    samples[:4] = np.where(rng.random(samples[:4].shape) < 0.5, ball.lower, ball.upper)
    values = [values_of(params, sample, boxes) for sample in samples]
    tape = session.trace(functools.partial(conv_net, params), ball)
    refs = {i: tape.ops[int(i)].refs[0].index for i in points}
    signs = {
        i: np.stack(
            [np.sign(v[refs[i]] - np.asarray(points[i])) * (rng.random(points[i].shape) < 0.5) for v in values]
        ).astype(np.int8)
        for i in points
    }
    beta = {i: rng.exponential(1.0, s.shape).astype(np.float32) for i, s in signs.items()}
    row = np.array([1.0, -0.5, 0.3], np.float32)
    lower, parts = of_parts(params, boxes, signs, rng.random(16, np.float32), beta, row, sound)
    exact = np.array([v[-1] @ row.astype(np.float64) for v in values])
    slack = 0 if sound else 1e-4
    assert np.all(np.asarray(lower) <= exact + slack)
    assert np.isfinite(lower).all()
    for part, index in zip(parts, range(len(parts)), strict=True):
        truth = np.stack([v[index] for v in values])
        assert np.all((np.asarray(part.lower) <= truth + slack) & (truth - slack <= np.asarray(part.upper)))


def test_without_splits_the_bound_is_that_of_crown():
    params, x = build(0)
    ball = mt.linf_ball(x, 0.1)
    row = np.array([1.0, -0.5, 0.3], np.float32)

    def both(params, ball):
        f = functools.partial(conv_net, params)
        tape = session.trace(f, ball)
        return session.bound(tape, session.analyse(tape), row[None]), mt.crown(f, sound=True).rows(
            row[None], ball
        ).lower

    ours, crown = jax.jit(both)(params, ball)
    assert ours == crown


def test_what_a_bound_loses_to_a_neuron_is_its_coefficient_times_its_gap():
    """Of `-relu(x0) - 2 relu(x1)` over [-1, 1] x [-1, 3], the chords lie 1/2 and 3/4 above at 0."""
    ball = mt.Interval(jnp.array([-1.0, -1.0]), jnp.array([1.0, 3.0]))
    tape = session.trace(lambda x: jnp.maximum(x, 0.0) * jnp.array([1.0, 2.0]), ball)
    known = session.without_rounding(session.analyse(tape))
    points = session.split_points(tape, known.boxes)
    row = jnp.array([-1.0, -1.0])
    found = session.pressure(
        tape, known, points, lambda known: session.lower_bound(tape, known, row, points, {}, {}, False)
    )
    (losses,) = found.losses.values()
    np.testing.assert_allclose(losses, [0.5, 1.5], rtol=1e-6)
    np.testing.assert_allclose(found.coefficients, [-0.5, -1.5], rtol=1e-6)
    np.testing.assert_allclose(found.value, -7.0, rtol=1e-6)
