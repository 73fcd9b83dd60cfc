import jax
import numpy as np
import pytest
import small_networks as networks

from mixtrain_jax.attacks import geometry
from mixtrain_jax.bounds import Ball, BoundsError
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
