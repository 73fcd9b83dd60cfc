"""What methods can be told to do: other sets than boxes, the best of several methods, memory, properties."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit
from test_probes import METHODS, promotion_as_users_have_it

import mixtrain_jax as mt
from mixtrain_jax import bounds
from mixtrain_jax.bounds import coverage, engine, windows

__all__ = ["promotion_as_users_have_it"]  # a fixture that every test of this file uses
SETS = {1: mt.l1_ball, 2: mt.l2_ball, np.inf: mt.linf_ball}


def _weights(seed: int, *widths: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(n, m)) * (1.5 / n) ** 0.5, 0.3 * rng.normal(size=m)) for n, m in itertools.pairwise(widths)
    ]


def _mlp(weights: list[Any], x: jax.Array) -> jax.Array:
    for matrix, bias in weights[:-1]:
        x = jax.nn.relu(x @ matrix + bias)
    matrix, bias = weights[-1]
    return x @ matrix + bias


@functools.cache
def _bounds(method: bounds.Method) -> Any:
    """Bounds of the networks of these weights in a ball."""
    return jax.jit(lambda weights, ball: method(functools.partial(_mlp, weights))(ball))


@functools.cache
def _sound_bounds(method: bounds.Method) -> Any:
    return jit(lambda weights, ball: method(functools.partial(_mlp, weights), sound=True)(ball))


def _exact_mlp(weights: list[Any], x: np.ndarray) -> np.ndarray:
    """In float64, `[points, inputs] -> [points, outputs]`."""
    *hidden, last = jax.tree.map(np.float64, weights)
    for matrix, bias in hidden:
        x = np.maximum(x @ matrix + bias, 0)
    return x @ last[0] + last[1]


def _in_ball(rng: np.random.Generator, norm: float, count: int, size: int) -> np.ndarray:
    """Points of the unit ball of a norm: its vertices, its surface, its inside."""
    directions = rng.normal(size=(count, size))
    directions[: 2 * size] = np.concatenate([np.eye(size), -np.eye(size)])
    directions /= np.linalg.norm(directions, norm, axis=1, keepdims=True)
    directions[count // 2 :] *= rng.random((count - count // 2, 1))
    return directions


# --- sets -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("norm", SETS)
@pytest.mark.parametrize("method", METHODS)
def test_on_a_linear_model_bounds_are_the_dual_norm(method: str, norm: float) -> None:
    rng = np.random.default_rng(0)
    w, x, y, eps = rng.normal(size=(3, 6)), rng.normal(size=6), 1, 0.3
    dual = {1: np.inf, 2: 2, np.inf: 1}[norm]
    found = mt.margins(METHODS[method], lambda v: w @ v)(SETS[norm](x, eps), jnp.array(y))
    differences = np.stack([w[y] - w[j] for j in range(3) if j != y])
    np.testing.assert_allclose(found, differences @ x - eps * np.linalg.norm(differences, dual, axis=1), rtol=1e-12)


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("domain", [None, (0.0, 1.0)])
@pytest.mark.parametrize("method", METHODS)
def test_balls_of_other_norms_hold_their_points(method: str, domain: Any, norm: int) -> None:
    rng, weights = np.random.default_rng(1), _weights(0, 6, 16, 16, 3)
    weights = jax.tree.map(lambda a: a.astype(np.float32), weights)
    for x in rng.random((3, 6)).astype(np.float32):
        for eps in (0.0, 1e-4, 0.2, 1.5):
            ball = SETS[norm](x, eps, *(() if domain is None else (domain,)))
            box = _sound_bounds(METHODS[method])(weights, ball)
            points = x + eps * _in_ball(rng, norm, 200, 6)
            points = points[np.all((points >= 0) & (points <= 1), axis=1)] if domain else points
            exact = _exact_mlp(weights, np.stack([*points, x.astype(np.float64)]))
            # Points of float64 are of the ball to its rounding, which the ball was widened by.
            assert np.all(np.asarray(box.lower, np.float64) <= exact + 1e-14)
            assert np.all(exact - 1e-14 <= np.asarray(box.upper, np.float64))
            reached = jax.vmap(functools.partial(_mlp, weights))(np.clip(points, ball.lower, ball.upper).astype("f4"))
            inside = np.linalg.norm(points - x, norm, axis=1) <= 0.999 * eps
            assert np.all(box.lower <= np.asarray(reached)[inside])
            assert np.all(np.asarray(reached)[inside] <= box.upper)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_balls_are_tighter_than_their_boxes(method: str, norm: int) -> None:
    weights, x = _weights(0, 6, 16, 16, 3), np.random.default_rng(0).random(6)
    ball, box = (_bounds(METHODS[method])(weights, make(x, 0.2)) for make in (SETS[norm], mt.linf_ball))
    assert np.all(ball.lower > box.lower)
    assert np.all(ball.upper < box.upper)


@pytest.mark.parametrize("method", METHODS)
def test_pixels_may_have_radii_of_their_own_and_weights_be_intervals(method: str) -> None:
    rng = np.random.default_rng(0)
    (w1, b1), (w2, b2) = jax.tree.map(lambda a: a.astype(np.float32), _weights(3, 4, 8, 2))
    radius = rng.random(w1.shape).astype(np.float32) * 0.05

    def f(matrix: jax.Array, x: jax.Array) -> jax.Array:
        return jax.nn.relu(x @ matrix + b1) @ w2 + b2

    x, eps = rng.random(4).astype(np.float32), np.array([0.0, 0.1, 0.2, 0.0], np.float32)
    ball, matrix = mt.linf_ball(x, eps), mt.linf_ball(w1, radius)
    assert float(ball.radius[0]) < 1e-6
    bound = jit(METHODS[method](f, sound=True))(matrix, ball)
    for _ in range(200):
        p, m = (np.where(rng.random(b.shape) < 0.5, b.lower, b.upper) for b in (ball, matrix))
        value = f(m, p)
        assert np.all(bound.lower <= value)
        assert np.all(value <= bound.upper)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
def test_margins_of_a_batch_of_balls_are_those_of_each(method: str) -> None:
    weights, rng = _weights(1, 6, 8, 4), np.random.default_rng(1)
    x, labels, eps = rng.random((3, 6)), np.array([2, 0, 3]), np.array([0.1, 0.3, 0.2])
    balls = jax.vmap(lambda point, radius: mt.l2_ball(point, radius, (0.0, 1.0)))(x, eps)
    margins = mt.margins(METHODS[method], functools.partial(_mlp, weights))
    found = jax.jit(margins)(balls, labels)
    for i in range(3):
        one = margins(mt.l2_ball(x[i], eps[i], (0.0, 1.0)), labels[i])
        np.testing.assert_allclose(found[i], one, rtol=1e-12)
        points = np.clip(x[i] + eps[i] * _in_ball(rng, 2, 100, 6), 0, 1)
        reached = _exact_mlp(weights, points)
        others = np.delete(reached, labels[i], 1)
        assert np.all(found[i] <= (reached[:, labels[i], None] - others).min(0) + 1e-12)


# --- looking inside -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", [mt.symbolic, mt.crown, mt.crown_ibp])
@pytest.mark.parametrize("norm", [2, np.inf])
def test_lines_of_these_coefficients_hold_the_function(method: Any, norm: float) -> None:
    rng = np.random.default_rng(2)
    weights, rows, x, eps = _weights(2, 6, 16, 16, 3), rng.normal(size=(5, 3)), rng.random(6), 0.3
    bound, sides = method(functools.partial(_mlp, weights)).coefficients(rows, SETS[norm](x, eps))
    points = x + eps * _in_ball(rng, norm, 2000, 6)
    values = _exact_mlp(weights, points) @ rows.T
    dual = {2: 2, np.inf: 1}[norm]
    for coefficients, ends, sign in ((sides.lower, bound.lower, 1), (sides.upper, bound.upper, -1)):
        # A line takes its least value on the ball, sign aside, where the bound is.
        offset = sign * ends - (sign * coefficients @ x - eps * np.linalg.norm(coefficients, dual, axis=1))
        assert np.all(points @ (sign * coefficients).T + offset <= sign * values + 1e-9)
    assert (np.asarray(sides.lower) != np.asarray(sides.upper)).any() == (method is not mt.symbolic)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
def test_boxes_inside_hold_what_the_network_computes_there(method: str) -> None:
    rng, weights, x = np.random.default_rng(3), _weights(3, 6, 8, 8, 3), np.full(6, 0.5)
    found = METHODS[method](functools.partial(_mlp, weights)).hidden(mt.linf_ball(x, 0.2))
    assert [layer.operation for layer in found] == ["max", "max"]
    assert all("test_options.py" in layer.source for layer in found)
    points = x + 0.2 * _in_ball(rng, np.inf, 2000, 6)
    for layer, (matrix, bias) in zip(found, weights, strict=False):
        points = points @ matrix + bias
        assert np.all(layer.box.lower - 1e-12 <= points)
        assert np.all(points <= layer.box.upper + 1e-12)
        np.testing.assert_array_equal(layer.unstable, (layer.box.lower < 0) & (layer.box.upper > 0))
        points = np.maximum(points, 0)
    assert any(layer.unstable.any() for layer in found)


# --- the best of several --------------------------------------------------------------------------------------------

JOINED = functools.partial(mt.crown, intersect=(mt.symbolic, mt.crown_ibp))
OPTIMISED = {steps: functools.partial(mt.alpha_crown, steps=steps) for steps in (1, 20)}


def _wider(a: mt.Interval, b: mt.Interval) -> float:
    """By how much `a` sticks out of `b` anywhere."""
    return float(jnp.maximum(b.lower - a.lower, a.upper - b.upper).max())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", range(2))
def test_intersections_are_never_looser_than_any_of_them(seed: int) -> None:
    weights, x = _weights(seed, 6, 20, 20, 20, 3), np.random.default_rng(seed).random(6)
    f = functools.partial(_mlp, weights)
    for eps in (0.05, 0.3):
        ball = mt.linf_ball(x, eps)
        alone = {name: _bounds(method)(weights, ball) for name, method in METHODS.items()}
        joined = _bounds(JOINED)(weights, ball)
        for box in alone.values():
            assert _wider(joined, box) < 1e-12
        best = functools.reduce(bounds.intersect, alone.values())
        gain = float((best.upper - best.lower - (joined.upper - joined.lower)).max())
        assert gain > (1e-3 if eps == 0.3 else -1e-12)  # joined layer by layer they are better than any
        values = jax.vmap(f)(ball.lower + np.random.default_rng(0).random((500, 6)) * 2 * ball.radius)
        assert np.all((joined.lower <= values) & (values <= joined.upper))


@pytest.mark.parametrize("outer", [mt.crown, mt.crown_ibp, mt.symbolic, functools.partial(mt.alpha_crown, steps=1)])
def test_what_is_sound_has_sound_parts(outer: bounds.Method) -> None:
    """Real arithmetic gives 0, floating point does not."""

    def f(x: jax.Array) -> jax.Array:
        return ((x + 1e4) - 1e4) - x

    inner = (mt.symbolic, functools.partial(mt.crown, intersect=(mt.ibp, functools.partial(mt.alpha_crown, steps=1))))
    ball = mt.Interval(jnp.full(1, 0.1), jnp.full(1, 0.1003))
    deployed = np.asarray(f(jnp.linspace(0.1, 0.1003, 1000)))
    assert deployed.max() - deployed.min() > 8e-4
    way = functools.partial(outer, sound=True, intersect=inner)(f)
    assert len(way.others) == 4
    assert all(other.domain.sound for other in way.others)
    for bound in (jit(way)(ball), jit(lambda b: way.rows(jnp.ones((1, 1)), b))(ball)):
        assert bound.lower[0] <= deployed.min()
        assert deployed.max() <= bound.upper[0]


def test_parts_take_no_more_memory_than_the_whole() -> None:
    own = functools.partial(mt.symbolic, budget=7)
    way = mt.crown(jnp.sin, chunk=3, intersect=(mt.symbolic, own, functools.partial(mt.crown_ibp, intersect=(own,))))
    assert [(other.domain.chunk, other.domain.budget) for other in way.others] == [
        (3, None),
        (None, 7),
        (3, None),
        (None, 7),
    ]


def test_only_methods_are_joined() -> None:
    for wrong in (mt.ibp, ("crown",), (lambda f: f,)):
        with pytest.raises(mt.BoundsError, match="intersect wants"):
            mt.crown(jnp.sin, intersect=wrong)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", range(2))
def test_optimised_slopes_are_never_looser_than_crown_and_get_better(seed: int) -> None:
    weights, ball = _weights(seed, 6, 20, 20, 3), mt.linf_ball(np.random.default_rng(seed).random(6), 0.3)
    crown = _bounds(mt.crown)(weights, ball)
    one, many = (_bounds(method)(weights, ball) for method in OPTIMISED.values())
    assert _wider(one, crown) < 1e-12
    assert _wider(many, one) < 1e-12
    assert float((many.upper - many.lower).sum()) < 0.98 * float((crown.upper - crown.lower).sum())


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_a_budget_sets_the_rows_at_a_time_and_changes_nothing() -> None:
    weights, ball = _weights(0, 6, 40, 40, 3), mt.linf_ball(np.linspace(0, 1, 6), 0.1)
    tape = mt.crown(functools.partial(_mlp, weights))._record((ball,))
    rows = [engine.Domain("adaptive", budget=budget).rows_at_a_time(tape) for budget in (None, 1, 40_000, 10**9)]
    assert rows[0] is None
    assert rows[1] == 1  # the least there is
    assert rows[1] < rows[2] < 40 < rows[3]
    whole = _bounds(mt.crown)(weights, ball)
    for budget in (1, 40_000, 10**9):
        part = _bounds(functools.partial(mt.crown, budget=budget))(weights, ball)
        np.testing.assert_allclose(part.lower, whole.lower, rtol=1e-12)


def test_chunks_bound_the_memory() -> None:
    f, x = functools.partial(_mlp, _weights(0, 64, 512, 512, 3)), np.zeros(64, np.float32)

    def scratch(**options: Any) -> int:
        compiled = jax.jit(lambda x: mt.crown(f, **options)(mt.linf_ball(x, 0.01))).lower(x).compile()
        analysis = compiled.memory_analysis()
        return analysis.temp_size_in_bytes if analysis else 0

    assert scratch(chunk=16) < scratch() / 3
    assert scratch(budget=2**20) < 3 * 2**20 + scratch(chunk=1)


@pytest.mark.parametrize("chunk", [3, 8])
def test_no_backward_pass_is_spent_on_stable_neurons(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that hold none but stable neurons run nothing: the rows that are pulled are counted as they run."""
    pulled: list[int] = []
    pull = engine.pull

    def counting(tape: Any, known: Any, seeds: Any, sound: bool = False) -> mt.Interval:
        jax.debug.callback(lambda seed: pulled.append(len(np.atleast_2d(seed))), next(iter(seeds.seeds.values())))
        return pull(tape, known, seeds, sound)

    monkeypatch.setattr(engine, "pull", counting)
    weights = jax.tree.map(lambda a: a.astype(np.float32), _weights(0, 4, 24, 24, 2))
    weights[1][1][:20] += 100.0  # twenty of the second layer's neurons are on
    ball = mt.linf_ball(np.full(4, 0.5, np.float32), 0.1)
    skipped = mt.crown(functools.partial(_mlp, weights), chunk=chunk)(ball)
    jax.effects_barrier()
    hidden = len(pulled)
    monkeypatch.undo()
    whole = mt.crown(functools.partial(_mlp, weights))(ball)
    np.testing.assert_allclose(skipped.upper, whole.upper, rtol=1e-5)
    assert 0 < hidden <= 4 + chunk + 2 * 2


# --- properties -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_properties_of_inequalities(method: str) -> None:
    rng, weights = np.random.default_rng(0), jax.tree.map(lambda a: a.astype(np.float32), _weights(5, 4, 12, 3))
    f, ball = functools.partial(_mlp, weights), mt.linf_ball(rng.random(4).astype(np.float32), 0.1)
    outputs = np.asarray(jax.vmap(f)(ball.lower + rng.random((400, 4)).astype("f4") * 2 * ball.radius))
    rows = rng.normal(size=(3, 3)).astype(np.float32)
    a, b, c = (bounds.inequality(row, offset) for row, offset in zip(rows, (0.5, -0.2, 1.0), strict=True))
    values = outputs @ rows.T + np.float32([0.5, -0.2, 1.0])
    cases = {
        "one": (a, values[:, 0]),
        "both": (bounds.all_of(a, b), values[:, :2].min(1)),
        "either": (bounds.any_of(b, c), values[:, 1:].max(1)),
        "nested": (
            bounds.any_of(bounds.all_of(a, b), c, bounds.all_of(c, bounds.any_of(a, b))),
            np.maximum(values[:, :2].min(1), values[:, 2]),
        ),
    }
    sound = functools.partial(METHODS[method], sound=True)
    found = jit(
        lambda ball: {name: bounds.property_margin(sound, f, wanted)(ball) for name, (wanted, _) in cases.items()}
    )
    margins = {name: float(margin) for name, margin in found(ball).items()}
    for name, (_, reached) in cases.items():
        assert margins[name] <= reached.min()
        assert margins[name] > reached.min() - 3.0
    assert margins["both"] <= margins["one"]
    logits = f(ball.center)
    label = int(jnp.argmax(logits))
    robust = bounds.all_of(*(bounds.inequality(np.eye(3)[label] - np.eye(3)[j]) for j in range(3) if j != label))
    expected = float(mt.margins(METHODS[method], f)(ball, jnp.array(label)).min())
    np.testing.assert_allclose(bounds.property_margin(METHODS[method], f, robust)(ball), expected, rtol=1e-5)


def test_properties_say_what_is_wrong() -> None:
    ball = mt.linf_ball(np.zeros(2, np.float32), 0.1)
    with pytest.raises(mt.BoundsError, match="finite coefficients and a finite scalar offset"):
        bounds.inequality([1.0, np.nan])
    with pytest.raises(mt.BoundsError, match="all_of wants one or more properties"):
        bounds.all_of()
    with pytest.raises(mt.BoundsError, match="any_of wants one or more properties"):
        bounds.any_of(lambda y: y > 0)
    mixed = bounds.all_of(bounds.inequality([1.0, 0.0]), bounds.inequality([1.0]))
    with pytest.raises(mt.BoundsError, match=r"rows of one shape, got \[\(1,\), \(2,\)\]"):
        bounds.property_margin(mt.ibp, lambda x: x, mixed)(ball)
    with pytest.raises(mt.BoundsError, match=r"rows wants coefficients of shape \[rows, 2\], got \[1, 3\]"):
        bounds.property_margin(mt.ibp, lambda x: x, bounds.inequality([1.0, 0.0, 0.0]))(ball)


# --- the docs -------------------------------------------------------------------------------------------------------


def test_the_coverage_page_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "coverage.md"
    assert page.read_text() == coverage.page(), "python -m mixtrain_jax.bounds.coverage > docs/coverage.md"


def test_windows_are_what_crown_uses() -> None:
    """So that the tests of windows test what runs."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 2)).astype(np.float32)
    taken: list[Any] = []
    original = windows.tightened

    def conv(x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def watched(*arguments: Any) -> Any:
        taken.append(original(*arguments))
        return taken[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "tightened", watched)
        bound = mt.crown(lambda x: jax.nn.relu(conv(jax.nn.relu(conv(x))[0])).sum())
        jax.eval_shape(bound, mt.linf_ball(np.zeros((9, 9, 2), "f4"), 0.1))
    assert any(found is not None for found in taken)
