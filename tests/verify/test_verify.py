import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import planted as nets
import pytest
from planted import apply

import mixtrain_jax as mt
from mixtrain_jax.bounds import BoundsError
from mixtrain_jax.verify import Verifier, all_positive, falsify, unsafe_if_any, verify

INPUTS, WIDTH, CLASSES, EPS = 3, 6, 3, 0.4


@pytest.fixture(scope="module")
def verifier():
    """One program for all networks of one shape."""
    return Verifier(apply, nets.random_network(np.random.default_rng(0), INPUTS, WIDTH, CLASSES), (INPUTS,), batch=16)


def planted(seed, by):
    return nets.planted(seed, (INPUTS, WIDTH, CLASSES), EPS, by)


@pytest.mark.parametrize("branching", ["neurons", "inputs"])
@pytest.mark.parametrize("attack", [True, False])
def test_networks_that_are_just_robust_are_never_broken(verifier, branching, attack):
    proved = 0
    for seed in range(5):
        params, ball, label = planted(seed, 1e-3)
        answer = verifier.with_params(params).verify(ball, label, branching=branching, attack=attack)
        assert answer.status != "broken"
        assert answer.counterexample is None
        proved += answer.status == "proved" and answer.bound > 0
    assert proved >= 4 + (branching == "inputs")


@pytest.mark.parametrize("branching", ["neurons", "inputs"])
@pytest.mark.parametrize("attack", [True, False])
def test_planted_counterexamples_are_never_proved_away(verifier, branching, attack):
    broken = 0
    for seed in range(5):
        params, ball, label = planted(seed, -1e-3)
        answer = verifier.with_params(params).verify(ball, label, branching=branching, attack=attack)
        assert answer.status != "proved"
        if answer.status == "broken":
            x, logits = answer.counterexample.x, answer.counterexample.output
            assert np.all((x >= np.asarray(ball.lower)) & (x <= np.asarray(ball.upper)))
            assert np.array_equal(logits, np.asarray(jax.jit(apply)(params, x[None]))[0])
            assert np.delete(logits, label).max() > logits[label]
            broken += 1
    assert broken >= 3 + 2 * (branching == "inputs")


@pytest.mark.parametrize("branching", ["neurons", "inputs"])
def test_conjunctions_are_refuted_by_any_row_and_broken_by_all(verifier, branching):
    """Unsafe: both logits are above thresholds, that is their least is; the exact largest least one is bracketed."""
    params = nets.random_network(np.random.default_rng(3), INPUTS, WIDTH, CLASSES)
    ball, here = mt.linf_ball(np.full(INPUTS, 0.5, np.float32), EPS), verifier.with_params(params)
    grid = np.stack(np.meshgrid(*[np.linspace(0.1, 0.9, 21, dtype=np.float32)] * INPUTS), -1).reshape(-1, INPUTS)
    both = np.asarray(apply(params, jnp.asarray(grid)))[:, :2].min(-1).max()  # reached, so unsafe below
    rows = np.eye(CLASSES)[:2]
    reached = here.verify(ball, unsafe_if_any([(rows, [1e-3 - both] * 2), (-rows[:1], [-100])]), branching=branching)
    beyond = here.verify(ball, unsafe_if_any([(rows, [-both - 0.3] * 2), (-rows[:1], [-100])]), branching=branching)
    assert (reached.status, beyond.status) == ("broken", "proved")
    assert reached.counterexample.output[:2].min() > both - 1e-3


def test_rows_that_must_be_positive_agree_with_the_oracle(verifier):
    params, row = verifier.params, np.array([1.0, -2.0, 0.7])
    ball = mt.linf_ball(np.full(INPUTS, 0.3, np.float32), EPS)
    least = nets.least(params, row, np.asarray(ball.lower), np.asarray(ball.upper))
    for margin, status in ((1e-3, "proved"), (-1e-3, "broken")):
        assert verifier.verify(ball, (row[None], margin - least)).status == status
    assert verifier.verify(ball, all_positive([row], 1e-3 - least)).status == "proved"


def test_a_candidate_that_fails_its_replay_does_not_end_the_search(verifier, monkeypatch):
    params, ball, label = planted(1, -0.05)
    here = verifier.with_params(params)
    assert here.verify(ball, label, attack=False).status == "broken"
    monkeypatch.setattr(falsify, "replayed", lambda *_: None)
    for branching in ("neurons", "inputs"):
        answer = here.verify(ball, label, branching=branching, timeout=0.5)
        assert (answer.status, answer.counterexample) == ("open", None)
        assert answer.bound <= 0
        assert answer.domains > 1


def test_limits_end_a_search_with_what_is_known(verifier, monkeypatch):
    monkeypatch.setattr(falsify, "replayed", lambda *_: None)  # so that there is no other end
    params, ball, label = planted(1, -0.05)
    here = verifier.with_params(params)
    for memory, timeout, reason in ((None, 0.0, "timeout"), (1, 60.0, "memory")):
        here.memory = memory
        answer = here.verify(ball, label, timeout=timeout, attack=False)
        assert (answer.status, answer.reason) == ("open", reason)
        assert answer.bound <= 0


def test_compiling_before_takes_nothing_from_the_time_of_a_query(verifier):
    params, ball, label = planted(2, 1e-3)
    here = verifier.with_params(params)
    for branching in ("neurons", "inputs"):
        here.compile(ball, label, attack=False, branching=branching)
        programs = here._neurons.bound if branching == "neurons" else here._inputs.bound
        before = programs._cache_size()
        assert here.verify(ball, label, attack=False, branching=branching).status == "proved"
        assert programs._cache_size() == before


def test_weights_that_are_no_numbers_prove_nothing(verifier):
    w, b, v, c = verifier.params
    ball = mt.linf_ball(np.full(INPUTS, 0.3, np.float32), EPS)
    for branching in ("neurons", "inputs"):
        here = verifier.with_params((w, b, np.full_like(v, np.nan), c))
        assert here.verify(ball, 0, branching=branching, timeout=0.2).status == "open"


@pytest.mark.parametrize("branching", ["neurons", "inputs"])
def test_what_rounding_breaks_is_not_proved(monkeypatch, branching):
    """In real arithmetic `y` is `x`, at least 0.2; in float32 it is 0, for `x` is lost beside 2 ** 25."""

    def absorbing(params, x):
        return jnp.maximum(x + params[0], 0.0) - params[0] + 0.0 * jnp.maximum(-x, -0.3)

    here = Verifier(absorbing, jnp.array([2.0**25]), (1,), batch=4)
    ball, above = mt.linf_ball(np.array([0.3], np.float32), 0.1), ([[1.0]], -0.1)
    assert here.verify(ball, above, branching=branching).status == "broken"
    monkeypatch.setattr(falsify, "replayed", lambda *_: None)
    assert here.verify(ball, above, branching=branching, attack=False, timeout=0.3).status == "open"


def smooth(params, x):
    """A network with smooth activations, a kinked one other than ReLU and a residual sum."""
    w, b, v, c = params
    h = jnp.tanh(x @ w + b[None])
    return (jax.nn.leaky_relu(h - 0.1) + jnp.abs(h)) @ v + c[None]


def test_other_functions_and_balls_are_never_wrong():
    params = nets.random_network(np.random.default_rng(1), INPUTS, WIDTH, 2)
    x = np.full(INPUTS, 0.4, np.float32)
    label = int(np.argmax(np.asarray(smooth(params, x[None]))[0]))
    here = Verifier(smooth, params, (INPUTS,), batch=8)
    found = {}
    for eps in (0.05, 0.3, 2.0):
        answer = here.verify(mt.l2_ball(x, eps), label, branching="neurons", timeout=1, attack=False)
        found[eps] = answer.status
        points = np.random.default_rng(2).uniform(-eps, eps, (2000, INPUTS)).astype(np.float32)
        inside = x + points[np.linalg.norm(points, axis=-1) <= eps * 0.999]
        wrong = np.asarray(smooth(params, jnp.asarray(inside))).argmax(-1) != label
        assert not (wrong.any() and answer.status == "proved")
    assert found[0.05] == "proved"


def test_the_front_door_asks_for_what_fits():
    params = nets.random_network(np.random.default_rng(0), INPUTS, WIDTH, CLASSES)
    ball = mt.linf_ball(np.zeros(INPUTS, np.float32), 0.1)
    with pytest.raises(BoundsError, match="label 3 of 3"):
        verify(apply, params, ball, 3)
    here = Verifier(apply, params, (INPUTS + 1,))
    with pytest.raises(BoundsError, match=r"takes one input float32\[4\]"):
        here.verify(ball, 0)
    with pytest.raises(BoundsError, match="auto, neurons or inputs"):
        Verifier(apply, params, (INPUTS,)).verify(ball, 0, branching="layers")
    with pytest.raises(BoundsError, match="split in boxes"):
        Verifier(apply, params, (INPUTS,)).verify(mt.l2_ball(np.zeros(INPUTS), 0.1), 0, branching="inputs")
    crossed = dataclasses.replace(ball, lower=ball.upper, upper=ball.lower)
    with pytest.raises(BoundsError, match="lower <= upper"):
        verify(apply, params, crossed, 0)
