from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks as networks
from hypothesis import given, settings
from hypothesis import strategies as st

import mixtrain_jax as mt
from mixtrain_jax.attacks import geometry
from mixtrain_jax.bounds import Ball, BoundsError
from mixtrain_jax.bounds.outward import covering_radius, domain_ends, round_down, round_up
from mixtrain_jax.certify import Threat


def radii(eps, n):
    return np.full(n, eps)


@pytest.mark.parametrize("eps", [0.0, 1e-8, 0.1, 2 / 255, 1 / 3, 2.0])
@pytest.mark.parametrize("domain", [(0.0, 1.0), (-1.0, 1.0), (-100.0, 100.0)])
def test_inner_boxes_lie_in_the_ball_and_bounds_cover_it(eps, domain):
    x = networks.images(0, 50)
    x[0], x[1] = 0.0, 1.0
    threat = Threat(eps, domain)
    inner = jax.tree.map(np.asarray, threat.inner(x, radii(eps, len(x))))
    exact = x.astype(np.float64)
    for end in (inner.lower, inner.upper):
        assert end.dtype == np.float32
        assert (np.abs(end.astype(np.float64) - exact) <= eps).all()
        assert not threat.outside(x, end).any()
    # And no float32 closer to the border does.
    assert (np.nextafter(inner.upper, np.float32(200)) > np.minimum(exact + eps, domain[1])).all()
    assert (np.nextafter(inner.lower, np.float32(-200)) < np.maximum(exact - eps, domain[0])).all()
    outer = threat.ball(x, np.full(len(x), eps, np.float32))
    assert (np.asarray(outer.lower) <= inner.lower).all()
    assert (np.asarray(outer.upper) >= inner.upper).all()


def test_points_on_the_other_side_of_the_border_are_outside():
    x = networks.images(0, 3)
    threat = Threat(0.1)
    inner = jax.tree.map(np.asarray, threat.inner(x, radii(0.1, 3)))
    beyond = np.nextafter(np.nextafter(inner.upper, np.float32(2)), np.float32(2))
    assert threat.outside(x, beyond).all()
    one = x.copy()
    one[1, 0, 0, 0] = 1.1  # leaves the domain, and the ball
    assert threat.outside(x, one).tolist() == [False, True, False]
    assert threat.outside(x, np.full_like(x, np.nan)).all()
    assert Threat(5.0).outside(x, one).tolist() == [False, True, False]


@pytest.mark.parametrize("eps", [0.0, 0.5, 3.0])
def test_euclidean_balls(eps):
    x, threat = networks.images(0, 20), Threat(eps, (0.0, 1.0), "l2")
    ball = threat.inner(x, radii(eps, len(x)))
    assert isinstance(ball, Ball)
    points = np.asarray(geometry.project(ball, x + 5 * jax.random.normal(jax.random.key(0), x.shape)))
    assert not threat.outside(x, points).any()
    if 0 < eps < 1:
        far = x.copy()
        far[:, 0, 0, 0] = np.where(x[:, 0, 0, 0] < 0.5, 1, 0)
        far[:, 1, 1, 0] = np.where(x[:, 1, 1, 0] < 0.5, 1, 0)  # the length of both is above one half
        assert threat.outside(x, far).all()
    covering = threat.ball(x, np.full(len(x), eps, np.float32))
    assert covering.eps.shape == (20,)
    np.testing.assert_array_equal(covering.point, x)


# What has to cover is rounded outwards


def held(ball, point):
    """Whether a point is in a ball of one image, in rational numbers."""
    lower, upper, point = (np.asarray(x, np.float64).ravel() for x in (ball.lower, ball.upper, point))
    if not ((lower <= point) & (point <= upper)).all():
        return False
    center = np.asarray(ball.point, np.float64).ravel() if isinstance(ball, Ball) else None
    if center is None:
        return True
    away = [abs(Fraction(float(p)) - Fraction(float(c))) for p, c in zip(point, center, strict=True)]
    return sum(x**ball.norm for x in away) <= Fraction(float(ball.eps)) ** ball.norm


def test_a_radius_that_float32_rounds_down_loses_no_point():
    image, point = np.float32([[0.75]]), np.float32([[0.05]])
    assert abs(Fraction(float(point[0, 0])) - Fraction(0.75)) < Fraction(0.7)  # by 7e-10
    assert not Threat(0.7).outside(image, point).any()
    assert mt.linf_ball(image, 0.7, (0.0, 1.0)).lower <= point
    assert Threat(0.7).ball(image, Threat(0.7).radii(1)).lower <= point


DECIMALS = st.integers(1, 999).map(lambda n: n / 1000) | st.floats(1e-6, 4.0) | st.sampled_from([0.0, 0.25, 1 / 3, 1.0])
DOMAINS = st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (-0.3, 0.7), (-2.1, 2.6), (0.1, 0.9)])


@settings(max_examples=100)
@given(st.integers(0, 10**6), DECIMALS, DOMAINS, st.sampled_from(["linf", "l2"]))
def test_what_is_not_outside_is_in_the_ball_and_what_attacks_may_do_is_not_outside(seed, eps, domain, norm):
    """The points are the last float32 ones that are inside, and the next ones, in every pixel and in few."""
    rng, threat = np.random.default_rng(seed), Threat(eps, domain, norm)
    low, high = (np.float32(end) for end in domain)
    images = np.clip(rng.uniform(low, high, (8, 3)).astype(np.float32), low, high)
    images[0], images[1] = low, high
    images[2] = np.clip(images[2].round(2), low, high)
    many = np.repeat(images, 12, 0)
    steps = rng.normal(size=many.shape)
    steps[::2] = np.sign(steps[::2]) * (rng.random(steps[::2].shape) < 0.5)
    steps /= np.maximum(np.abs(steps).max(1) if norm == "linf" else np.linalg.norm(steps, axis=1), 1e-9)[:, None]
    ideal = np.clip(many.astype(np.float64) + eps * steps, *map(float, domain_ends(domain, np.float32)))
    points = ideal.astype(np.float32)
    points = np.concatenate([points, *(np.nextafter(points, np.float32(end)) for end in (-9, 9))])
    many = np.tile(many, (3, 1))
    inside = ~threat.outside(many, points)
    assert eps > 1 or inside.any()
    balls = jax.device_get(threat.ball(many, threat.radii(len(many))))
    inner = jax.device_get(threat.inner(many, radii(eps, len(many))))
    for i in np.flatnonzero(inside):
        assert held(jax.tree.map(lambda x: x[i], balls), points[i])  # noqa: B023
    if norm == "linf":
        assert not threat.outside(many, inner.lower).any()
        assert not threat.outside(many, inner.upper).any()
        assert inside[((points >= inner.lower) & (points <= inner.upper)).all(1)].all()
        exact = np.array(
            [
                max(abs(Fraction(float(p)) - Fraction(float(x))) for p, x in zip(*r, strict=True))
                for r in zip(points, many, strict=True)
            ]
        )
        assert (exact[inside] <= Fraction(eps)).all()


def test_what_is_outside_is_judged_in_exact_arithmetic():
    one = np.float32([[1.0]])
    for far, outside in ((0.0, False), (-1e-20, True), (1e-20, False)):
        assert Threat(1.0, (-1.0, 2.0)).outside(one, np.float32([[far]])) == outside  # 1 + 1e-20 is 1 in float64
        assert Threat(1.0, (-1.0, 2.0), "l2").outside(one, np.float32([[far]])) == outside
    corner = np.float32([[0.5, 0.5]])
    assert not Threat(0.5**0.5, norm="l2").outside(corner, np.float32([[0.0, 0.0]]))  # the next float64 above the root
    assert Threat(np.nextafter(0.5**0.5, 0), norm="l2").outside(corner, np.float32([[0.0, 0.0]]))


def test_pixels_at_the_ends_of_a_domain_are_in_it():
    """As float32 has the ends, on whatever side of the decimal numbers."""
    for domain in ((0.1, 0.3), (0.7, 0.9), (-0.3, -0.1)):
        ends = np.float32([[domain[0]], [domain[1]]])
        threat = Threat(0.01, domain)
        assert not threat.outside(ends, ends).any()
        ball = threat.ball(ends, threat.radii(2))
        assert (np.asarray(ball.lower) <= ends).all()
        assert (np.asarray(ball.upper) >= ends).all()
        low, high = domain_ends(domain, np.float32)
        assert Fraction(float(low)) <= Fraction(domain[0])
        assert Fraction(float(high)) >= Fraction(domain[1])
        beyond = np.nextafter(np.float32([[low], [high]]), np.float32([[-9], [9]]))
        assert Threat(1.0, domain).outside(ends, beyond).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_radii_are_rounded_up_in_every_dtype_and_kind(dtype):
    x = jnp.asarray([0.5, 0.25], dtype)
    for eps in (0.7, 0.1, 2 / 255, 1e-30, 0.0):
        for radius in (eps, np.float64(eps), np.full(2, eps)):
            covering = covering_radius(radius, dtype)
            assert covering.dtype == dtype
            assert (np.asarray(covering, np.float64) >= eps).all()
            near = max(eps, float(jnp.finfo(dtype).tiny)) if eps else 0
            assert (np.asarray(covering, np.float64) <= near * (1 + float(jnp.finfo(dtype).eps))).all()
        pixels = mt.linf_ball(x, np.array([eps, 0.0]))
        wide, each = np.asarray(x, np.float64), np.array([eps, 0.0])
        assert (np.asarray(pixels.lower, np.float64) <= wide - each).all()
        assert (np.asarray(pixels.upper, np.float64) >= wide + each).all()
        for ball in (mt.l2_ball(x, eps), mt.l1_ball(x, eps)):
            assert float(ball.eps) >= eps
    narrowed = jax.jit(lambda eps: covering_radius(eps, dtype))(np.float32(0.7))
    assert np.float32(0.7) <= float(narrowed) <= 0.71
    gradient = jax.grad(lambda eps: mt.linf_ball(x, eps).upper.astype(jnp.float32).sum())(0.7)
    assert gradient == 2


def test_a_center_that_is_narrowed_is_still_covered():
    """float64 inputs become float32 ones, and the ball around them as they were given is in the one that is made."""
    x, eps = np.array([0.1, 0.7, 1 / 3]), 0.01
    box = mt.linf_ball(x, eps)
    assert box.dtype == np.float32
    for low, high, pixel in zip(box.lower, box.upper, x, strict=True):
        assert Fraction(float(low)) <= Fraction(pixel) - Fraction(eps)
        assert Fraction(float(high)) >= Fraction(pixel) + Fraction(eps)
    moved = [Fraction(pixel) - Fraction(float(np.float32(pixel))) for pixel in x]
    assert Fraction(float(mt.l1_ball(x, eps).eps)) >= Fraction(eps) + sum(map(abs, moved))
    l2 = Fraction(float(mt.l2_ball(x, eps).eps))
    assert (l2 - Fraction(eps)) ** 2 >= sum(m * m for m in moved)


def test_offsets_of_properties_are_rounded_down():
    for offset in (0.1, -0.1, 0.7, -0.7, 1 / 3):
        assert Fraction(float(mt.bounds.inequality([1.0], offset).offset)) <= Fraction(offset)


def test_rounding_is_to_the_next_number():
    for dtype in (np.float32, jnp.bfloat16):
        values = np.concatenate(
            [np.random.default_rng(0).normal(size=500) * 10.0 ** np.arange(-20, 30, 0.1), [0, 0.5, 1]]
        )
        up, down = round_up(values, dtype).astype(np.float64), round_down(values, dtype).astype(np.float64)
        assert (down <= values).all()
        assert (values <= up).all()
        next_up = np.nextafter(round_down(values, dtype), np.asarray(np.inf, dtype)).astype(np.float64)
        np.testing.assert_array_equal(np.where(down == values, values, next_up), up)
    assert round_up(1e39, np.float32) == np.inf
    assert round_down(1e39, np.float32) == np.finfo(np.float32).max


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-0.1,), "eps >= 0, got -0.1"),
        ((np.nan,), "eps >= 0, got nan"),
        ((np.inf,), "finite eps"),
        ((0.1, (1.0, 0.0)), "low < high"),
        ((0.1, (0.0, 1.0), "l1"), "linf or l2, got 'l1'"),
    ],
)
def test_threats_that_make_no_sense(arguments, message):
    with pytest.raises(BoundsError, match=message):
        Threat(*arguments)


def test_threats_in_words():
    assert str(Threat(0.1)) == "l-infinity eps 0.1"
    assert str(Threat(0.5, norm="l2")) == "l2 eps 0.5"
