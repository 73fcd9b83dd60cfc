"""Functions with a bound rule of their own: whole under every transformation, and nobody else's business."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixtrain_jax as mt
from mixtrain_jax.bounds import Curve, CustomRule, custom_rule
from mixtrain_jax.bounds.rules import lower_end, upper_end

METHODS = (mt.ibp, mt.crown, mt.symbolic)
EPS = float(jnp.finfo(jnp.float32).eps)


def _bump(x: jax.Array) -> jax.Array:
    return x * jnp.exp(-x * x)


_BUMP = Curve(_bump, False, critical=(-(0.5**0.5), 0.5**0.5), inflections=(-(1.5**0.5), 0.0, 1.5**0.5))
bump = custom_rule(_bump, _BUMP, rounding=lambda x: 16 * EPS * jnp.maximum(jnp.abs(x.lower), jnp.abs(x.upper)))


def _max_min(x: jax.Array) -> jax.Array:
    a, b = x[::2], x[1::2]
    return jnp.stack([jnp.maximum(a, b), jnp.minimum(a, b)], 1).reshape(-1)


def _relax_max_min(x: mt.Interval) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`max(a, b)` is `b + relu(a - b)`, and `min(a, b)` is `a + b` less that."""
    low, high = x.lower[::2] - x.upper[1::2], x.upper[::2] - x.lower[1::2]
    slope = jnp.clip(high / jnp.where(high > low, high - low, 1), 0, 1)
    above = jnp.maximum(-slope * low, 0)

    def side(sign: int) -> Callable[[jax.Array], jax.Array]:
        def affine(x: jax.Array) -> jax.Array:
            a, b = x[::2], x[1::2]
            most = slope * a + (1 - slope) * b + (above if sign > 0 else 0)
            least = (1 - slope) * a + slope * b - (above if sign < 0 else 0)
            return jnp.stack([most, least], 1).reshape(-1)

        return affine

    return side(-1), side(1)


max_min = custom_rule(
    _max_min,
    CustomRule(lambda x: mt.Interval(_max_min(x.lower), _max_min(x.upper)), _relax_max_min),
    rounding=lambda x: 8 * EPS * jnp.max(jnp.maximum(jnp.abs(x.lower), jnp.abs(x.upper))),
)


def _distance(w: jax.Array, x: jax.Array) -> jax.Array:
    """Neurons that measure distances: the largest `|x_j - w_ij|`."""
    return jnp.max(jnp.abs(x - w), -1)


def _range_of_distance(w: Any, x: Any) -> mt.Interval:
    low, high = lower_end(x) - upper_end(w), upper_end(x) - lower_end(w)
    nearest = jnp.where((low < 0) & (high > 0), 0, jnp.minimum(jnp.abs(low), jnp.abs(high)))
    return mt.Interval(nearest.max(-1), jnp.maximum(jnp.abs(low), jnp.abs(high)).max(-1))


distance = custom_rule(
    lambda params, x: _distance(params["w"], x[None]),
    CustomRule(lambda params, x: _range_of_distance(params["w"], jax.tree.map(lambda v: v[None], x))),
    rounding=lambda params, x: 4 * EPS * _range_of_distance(params["w"], jax.tree.map(lambda v: v[None], x)).upper,
    name="distance",
)
KEYS = jax.random.split(jax.random.key(0), 4)
W1, W2 = jax.random.normal(KEYS[0], (4, 6)), jax.random.normal(KEYS[1], (4, 3))
PARAMS = {"w1": W1, "w": jax.random.normal(KEYS[2], (3, 4))}
X = jax.random.normal(KEYS[3], (5, 4))


def network(params: Any, x: jax.Array) -> jax.Array:
    """All three of one example `[4]`."""
    return distance({"w": params["w"]}, max_min(bump(x @ params["w1"])[:4]))


def _assert_holds(
    f: Callable[..., Any], bound: Callable[..., Any], params: Any, ball: mt.Interval, slack: float, many: int = 300
) -> None:
    out = bound(params, ball)
    lower, upper = np.asarray(out.lower) - slack, np.asarray(out.upper) + slack
    u = np.random.default_rng(0).uniform(size=(many, *ball.shape)).astype(np.float32)
    u[: many // 4] = np.round(u[: many // 4])  # corners
    low, high = np.asarray(ball.lower), np.asarray(ball.upper)
    points = np.clip(low + u * (high - low), low, high)
    values = np.asarray(jax.jit(jax.vmap(lambda x: f(params, x)))(points))
    assert np.all((lower <= values) & (values <= upper))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda v: jnp.asarray(np.asarray(v), jnp.float64), (params, points))
        exact = np.asarray(jax.vmap(lambda x: f(wide[0], x))(wide[1]))
    assert np.all((lower <= exact) & (exact <= upper))


def _ball(eps: float = 0.3) -> mt.Interval:
    return mt.linf_ball(X[0], eps)


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_bounds_hold_samples_in_float32_and_float64(method: Any, sound: bool) -> None:
    for eps in (0.01, 3.0):
        _assert_holds(network, method(network, sound=sound), PARAMS, _ball(eps), slack=0.0 if sound else 1e-5)


def test_the_rule_is_what_bounds_the_function() -> None:
    ball = mt.Interval(jnp.zeros(3), jnp.ones(3))
    assert jnp.all(mt.ibp(_bump)(ball).upper == 1)  # piece by piece
    for method in METHODS:
        np.testing.assert_allclose(method(lambda x: 2 * bump(x))(ball).upper, 2 * (2 * np.e) ** -0.5, rtol=1e-6)
    pair = mt.Interval(jnp.array([-1.0, -1.0]), jnp.array([1.0, 1.0]))
    for sound in (False, True):  # the sum of a pair is that of its maximum and its minimum
        out = mt.crown(lambda x: max_min(x).sum() - x.sum(), sound=sound)(pair)
        np.testing.assert_allclose(out.lower, -1, atol=1e-4)
        np.testing.assert_allclose(out.upper, 1, atol=1e-4)
    assert mt.ibp(lambda x: max_min(x).sum() - x.sum())(pair).upper == 4


def plain(params: Any, x: jax.Array) -> jax.Array:
    """The network without rules."""
    return _distance(params["w"], _max_min(_bump(x @ params["w1"])[:4])[None])


TWICE = {"w1": {"w1": None, "w": 0}, "params": {"w1": W1, "w": jnp.stack([PARAMS["w"], 2 * PARAMS["w"]])}}
TRANSFORMS: dict[str, tuple[Callable[..., Any], Any, Any]] = {
    "jit": (jax.jit, PARAMS, X[0]),
    "vmap": (lambda f: jax.vmap(f, (None, 0)), PARAMS, X),
    "vmap of vmap": (lambda f: jax.vmap(jax.vmap(f, (None, 0)), (TWICE["w1"], None)), TWICE["params"], X),
    "vmap along columns": (lambda f: jax.vmap(f, (None, 1), 1), PARAMS, X.T),
    "grad": (lambda f: jax.grad(lambda p, x: jnp.sin(jax.vmap(f, (None, 0))(p, x)).sum()), PARAMS, X),
    "remat": (lambda f: jax.jit(jax.grad(lambda p, x: jnp.sin(jax.checkpoint(f)(p, x)).sum())), PARAMS, X[0]),
    "jacobians": (lambda f: jax.vmap(jax.jacrev(f, 1), (None, 0)), PARAMS, X),
    "hessian": (lambda f: jax.jacfwd(jax.grad(lambda p, x: f(p, x).sum(), 1), 1), PARAMS, X[0]),
    "scan": (lambda f: lambda p, x: jax.lax.scan(lambda c, row: (c + f(p, row).sum(), f(p, row)), 0.0, x), PARAMS, X),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_values_and_derivatives_are_those_of_the_function(name: str) -> None:
    transform, params, x = TRANSFORMS[name]
    jax.tree.map(
        lambda found, wanted: np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6),
        transform(network)(params, x),
        transform(plain)(params, x),
    )


def test_integers_among_the_arguments_have_no_gradient() -> None:
    rule = CustomRule(lambda i, x: mt.Interval(x.lower[i], x.upper[i]))
    entry = custom_rule(lambda i, x: x[i], rule, rounding=lambda i, x: 0.0)
    gradients = jax.vmap(jax.grad(lambda x, i: 3 * entry(i, x)), (None, 0))(X[0], jnp.array([2, 0]))
    np.testing.assert_array_equal(gradients, [[0, 0, 3, 0], [3, 0, 0, 0]])
    np.testing.assert_array_equal(mt.crown(entry, sound=True)(2, _ball(0.25)).upper >= X[0, 2] + 0.25, True)


def _scanned(params: Any, x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda carry, row: (carry + bump(carry * row), None), x, params)[0]


SURROUNDINGS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "jit": (jax.jit(network), network),
    "remat": (jax.checkpoint(network), network),
    "vmap": (lambda p, x: jax.vmap(lambda row: network(p, row))(x[None])[0], network),
    "vmap of vmap": (
        lambda p, x: jax.vmap(lambda w: jax.vmap(lambda row: network({**p, "w": w}, row))(x[None])[0])(p["w"][None])[0],
        network,
    ),
    "scan": (_scanned, lambda p, x: (x := x + bump(x * p[0])) + bump(x * p[1])),
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_a_call_stays_whole_wherever_it_stands(name: str) -> None:
    around, alone = SURROUNDINGS[name]
    params = W2[:2, :1] if name == "scan" else PARAMS
    for method in (mt.ibp, mt.crown):
        found, wanted = (method(f, sound=method is mt.crown)(params, _ball()) for f in (around, alone))
        np.testing.assert_allclose(found.lower, wanted.lower, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.upper, wanted.upper, rtol=1e-5, atol=1e-6)


def test_a_call_stays_whole_within_a_shard_map() -> None:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def sharded(x: jax.Array) -> jax.Array:
        f = jax.shard_map(
            lambda p, x: jax.vmap(lambda row: network(p, row))(x),
            mesh=mesh,
            in_specs=(spec(), spec("data")),
            out_specs=spec("data"),
        )
        return f(PARAMS, x)

    def whole(x: jax.Array) -> jax.Array:
        return jax.vmap(lambda row: network(PARAMS, row))(x)

    np.testing.assert_allclose(sharded(X), whole(X), rtol=1e-6)
    gradients = (jax.grad(lambda x, f=f: jnp.sin(f(x)).sum())(X) for f in (sharded, whole))
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-6)
    ball = mt.linf_ball(X, 0.1)
    found, wanted = mt.ibp(sharded)(ball), mt.ibp(whole)(ball)
    np.testing.assert_allclose(found.upper, wanted.upper, rtol=1e-6)


def test_bounds_under_jit_vmap_and_grad_go_through_the_rule() -> None:
    def loss(params: Any, eps: jax.Array) -> jax.Array:
        def upper(x: jax.Array) -> jax.Array:
            return mt.crown(network)(params, mt.Interval(x - eps, x + eps)).upper

        return jax.vmap(upper)(X).sum()

    gradients, by_eps = jax.jit(jax.grad(loss, (0, 1)))(PARAMS, jnp.float32(0.1))
    assert all(jnp.isfinite(g).all() and jnp.abs(g).sum() > 0 for g in (*gradients.values(), by_eps))
    step = 1e-2
    ends = [loss(PARAMS, jnp.float32(0.1 + sign * step)) for sign in (1, -1)]
    np.testing.assert_allclose(by_eps, (ends[0] - ends[1]) / (2 * step), rtol=0.05)


def test_weights_may_be_intervals_where_the_rule_takes_them() -> None:
    w = mt.Interval(PARAMS["w"] - 0.1, PARAMS["w"] + 0.1)
    out = mt.ibp(lambda w, x: distance({"w": w}, x), sound=True)(w, _ball())
    narrow = mt.ibp(lambda x: distance({"w": PARAMS["w"]}, x))(_ball())
    np.testing.assert_allclose(out.upper, narrow.upper + 0.1, rtol=1e-5)


def test_a_function_that_mixes_entries_has_its_rule_under_vmap() -> None:
    for f in (lambda x: jax.vmap(max_min)(x), lambda x: jax.vmap(max_min, 1, 1)(x.T).T):
        for method in (mt.ibp, mt.crown):
            box = mt.Interval(jnp.array([[-1.0, -1.0], [0.0, 2.0]]), jnp.array([[1.0, 1.0], [1.0, 3.0]]))
            out = method(f)(box)
            np.testing.assert_allclose(out.upper, [[1, 1], [3, 1]], atol=1e-6)
            assert [hidden.operation for hidden in method(f).hidden(box)] == ["custom_rule"]


# --- what is wrong is said, and stays with the function --------------------------------------------------------------


def _raises(*args: Any) -> Any:
    raise KeyError("nothing here")


def test_a_rule_that_raises_breaks_its_own_function_alone_and_is_named() -> None:
    def twice(x: jax.Array) -> jax.Array:
        return x * jnp.exp(-x * x)

    broken = custom_rule(twice, CustomRule(_raises), name="twice")
    half = custom_rule(twice, CustomRule(lambda x: mt.Interval(0 * x.lower - 7, 0 * x.upper + 7)))
    ball = mt.Interval(jnp.zeros(3), jnp.ones(3))
    with pytest.raises(
        mt.BoundsError, match=r"(?s)interval of the rule of 'twice' raised KeyError.*test_custom_rule.py"
    ):
        mt.ibp(lambda x: 2 * broken(x))(ball)
    assert broken(jnp.ones(3)).shape == (3,)
    assert jnp.all(mt.ibp(half)(ball).upper == 7)
    assert jnp.all(mt.ibp(twice)(ball).upper == 1)
    np.testing.assert_allclose(mt.ibp(bump)(ball).upper, (2 * np.e) ** -0.5, rtol=1e-6)


def _unit(x: mt.Interval) -> mt.Interval:
    return mt.Interval(jnp.zeros_like(x.lower), jnp.ones_like(x.upper))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (CustomRule(lambda x: x.upper), "returned .*expected an Interval of float32.3."),
        (CustomRule(lambda x: mt.Interval(x.lower[:2], x.upper[:2])), "float32.2., expected float32.3."),
        (CustomRule(lambda x: (x, x)), "returned PyTreeDef"),
        (CustomRule(lambda x: mt.Interval(x.upper + 1, x.lower)), "lower end is above the upper one"),
        (CustomRule(_unit, lambda x: x), "no pair of functions"),
        (CustomRule(_unit, lambda x: (jnp.abs, jnp.abs)), "not affine .* takes 'abs' of one"),
        (CustomRule(_unit, lambda x: (jnp.square, jnp.square)), "not affine .* takes '(square|integer_pow)' of one"),
        (CustomRule(_unit, lambda x: (lambda v: v[:2],) * 2), "function of float32.2., expected float32.3."),
        (CustomRule(_unit, _raises), "relax of the rule of 'clamped' raised KeyError"),
    ],
)
def test_what_a_rule_returns_is_checked(rule: CustomRule, message: str) -> None:
    with pytest.raises(mt.BoundsError, match=f"(?s)'clamped'.*{message}|{message}"):
        mt.crown(custom_rule(lambda x: jnp.clip(x, 0, 1), rule, name="clamped"))(mt.Interval(jnp.zeros(3), jnp.ones(3)))


def test_soundness_asks_for_what_rounding_adds() -> None:
    silent = custom_rule(_bump, _BUMP, name="silent")
    ball = mt.Interval(jnp.zeros(3), jnp.ones(3))
    assert jnp.all(mt.crown(silent)(ball).upper < 0.43)
    with pytest.raises(mt.BoundsError, match="'silent' does not say what rounding adds"):
        mt.ibp(silent, sound=True)(ball)
    loud = custom_rule(_bump, _BUMP, rounding=lambda x: 0.25)
    assert jnp.all(mt.ibp(loud, sound=True)(ball).upper > 0.42 + 0.5)
    assert jnp.all(mt.crown(loud, sound=True)(ball).upper > 0.42 + 0.5)


def test_what_a_rule_could_not_see_is_refused() -> None:
    def of(w: jax.Array) -> jax.Array:
        return custom_rule(lambda x: x * w, CustomRule(_unit), name="closed")(jnp.ones(3)).sum()

    assert of(jnp.ones(3)) == 3
    for transform in (jax.jit, jax.grad, jax.vmap):
        with pytest.raises(mt.BoundsError, match="'closed' closes over a traced value"):
            transform(of)(jnp.ones(3))
    with pytest.raises(mt.BoundsError, match="maps one floating array to one of its shape; '_max_min' maps"):
        custom_rule(lambda x: _max_min(x)[:1], _BUMP, name="_max_min")(jnp.ones(4))
