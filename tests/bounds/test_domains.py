"""Bounds at the ends of domains: slack of one end must not push the other out of where a function is defined."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit

import mixtrain_jax as mt

METHODS = {
    "ibp": mt.ibp,
    "crown": mt.crown,
    "symbolic": mt.symbolic,
    "crown_ibp": mt.crown_ibp,
    "alpha_crown": functools.partial(mt.alpha_crown, steps=1),
}
BY_ALL = ("1 / (1 + exp(-x))", "std of a gray image", "log(softmax)")


def _logsumexp(x: jax.Array) -> jax.Array:
    top = x.max()
    return top + jnp.log(jnp.exp(x - top).sum())


def _gray_std(x: jax.Array) -> jax.Array:
    """The deviation over the one channel of an image `[1, 1, 2, 2]`."""
    return jnp.sqrt(jnp.square(x - x.mean(1, keepdims=True)).mean(1)).sum()


# Functions, a box, and the range that interval arithmetic gives, which no other method is looser than.
CASES: dict[str, tuple[Callable[[jax.Array], jax.Array], tuple[Any, Any], tuple[float, float]]] = {
    "1 / (1 + exp(-x))": (lambda x: 1 / (1 + jnp.exp(-x)), ([-20.0], [20.0]), (2.0611536e-9, 1)),
    "log(1 + exp(x))": (lambda x: jnp.log(1 + jnp.exp(x)), ([-20.0], [20.0]), (0, 20)),
    "norm": (jnp.linalg.norm, ([0.0] * 4, [1.0] * 4), (0, 2)),
    "sqrt(x + x)": (lambda x: jnp.sqrt(x + x), ([0.0], [1.0]), (0, 2**0.5)),
    "sqrt(x - y)": (lambda x: jnp.sqrt(x[0] - x[1]), ([1.0, 0.0], [2.0, 1.0]), (0, 2**0.5)),
    "std": (jnp.std, ([0.0] * 4, [1.0] * 4), (0, 1)),
    "log(sum(exp))": (_logsumexp, ([-5.0] * 3, [5.0] * 3), (-5 + np.log(3) - 10, 5 + np.log(3) + 10)),
    "std of a gray image": (_gray_std, (np.zeros((1, 1, 2, 2)), np.ones((1, 1, 2, 2))), (0, 4)),
    "sqrt(dot(x, x))": (lambda x: jnp.sqrt(jnp.dot(x, x)), ([-1.0] * 4, [1.0] * 4), (0, 2)),
    "sqrt of inner products": (
        lambda x: jnp.sqrt(jnp.einsum("ij,ij->j", x, x)).sum(),
        (-np.ones((3, 2)), np.ones((3, 2))),
        (0, 2 * 3**0.5),
    ),
    "sqrt(x . y)": (lambda x: jnp.sqrt(x[:2] @ x[2:]), ([0.0] * 4, [1.0] * 4), (0, 2**0.5)),
    "log(weights . exp)": (
        lambda x: jnp.log(jnp.exp(x) @ jnp.array([[0.5], [0.25]])),
        ([-9.0] * 2, [9.0] * 2),
        (-9 + np.log(0.75), 9 + np.log(0.75)),
    ),
    "sqrt(x * y / 3)": (lambda x: jnp.sqrt(x[0] * x[1] / 3), ([0.0, 0.0], [1.0, 3.0]), (0, 1)),
    "sqrt(-x * y)": (lambda x: jnp.sqrt(-(x[0] * x[1])), ([-1.0, 0.0], [0.0, 1.0]), (0, 1)),
    "sqrt(clip)": (lambda x: jnp.sqrt(jax.lax.clamp(0.0, x, 1.0)), ([-1.0], [2.0]), (0, 1)),
    "sqrt(clipped)": (lambda x: jnp.sqrt(jnp.clip(x, 0.0, 1.0)), ([-1.0], [2.0]), (0, 1)),
    "sqrt(log1p(x))": (lambda x: jnp.sqrt(jnp.log1p(x)), ([0.0], [1.0]), (0, np.log(2) ** 0.5)),
    "log(cumsum)": (lambda x: jnp.log(jnp.cumsum(x)[-1]), ([1e-6, 0.0], [1.0, 1e6]), (np.log(1e-6), np.log(1e6 + 1))),
    "log(softmax)": (lambda x: jnp.log(jax.nn.softmax(x)[0]), ([0.0, -9.0], [9.0, 0.0]), (-np.log(2), 0)),
    "sqrt in bfloat16": (
        lambda x: jnp.sqrt((x * x).astype(jnp.bfloat16).sum().astype(jnp.float32)),
        ([-1.0] * 4, [1.0] * 4),
        (0, 2),
    ),
}


def _box(ends: tuple[Any, Any]) -> mt.Interval:
    return mt.Interval(*(jnp.asarray(end, jnp.float32) for end in ends))


@pytest.mark.parametrize("name", CASES)
def test_bounds_reach_the_ends_of_domains(name: str) -> None:
    f, ends, (low, high) = CASES[name]
    methods = list(METHODS)[: len(METHODS) if name in BY_ALL else 3]
    found = jit(lambda box: [METHODS[method](f, sound=True)(box) for method in methods])(_box(ends))
    for method, bound in zip(methods, found, strict=True):
        lower, upper = float(bound.lower.reshape(-1)[0]), float(bound.upper.reshape(-1)[0])
        slack = 2e-5 if "bfloat16" not in name else 0.1
        assert low - slack * abs(low) <= lower, (method, lower)
        assert upper <= high + slack * max(1, abs(high)), (method, upper)
        if method == "ibp":
            assert lower <= low
            assert high <= upper


def test_an_end_keeps_its_own_digits() -> None:
    """The error of the small end is not that of the large one."""
    box = mt.ibp(lambda x: x * 3 + 0, sound=True)(_box(([1e-20], [1e20])))
    assert 2.9999e-20 < box.lower[0] <= 3e-20


def test_the_interval_of_a_vector_times_itself_is_no_product_of_two() -> None:
    box = jit(mt.ibp(lambda x: jnp.einsum("ij,ij->i", x, x)))(_box((-np.ones((2, 3)), np.ones((2, 3)))))
    np.testing.assert_array_equal(box.lower, [0, 0])
    np.testing.assert_array_equal(box.upper, [3, 3])


def test_an_open_end_of_a_domain_leaves_the_other_bound() -> None:
    box = jit(mt.crown(jnp.log, sound=True))(_box(([0.0], [1.0])))
    assert box.lower[0] == -np.inf
    assert 0 <= box.upper[0] < 1e-5


def test_a_bound_that_overflowed_takes_nothing_from_another() -> None:
    nan, one = jnp.array([jnp.nan]), jnp.array([1.0])
    for pair in ((mt.Interval(nan, nan), mt.Interval(-one, one)), (mt.Interval(-one, one), mt.Interval(nan, nan))):
        box = mt.bounds.intersect(*pair)
        assert (box.lower[0], box.upper[0]) == (-1, 1)


@pytest.mark.parametrize("sound", [False, True])
def test_softmax_of_boxes_wider_than_its_exponents(sound: bool) -> None:
    """The highest entry may be the lowest of its box: nothing vanishes beside what is not sure to be there."""
    ends = np.array([0.0, 0.0, -2e5], np.float32), np.array([3e3, 1e3, -1e5], np.float32)
    corners = np.stack([np.where(pick, *ends) for pick in np.ndindex(2, 2, 2)])
    for f in (jax.nn.softmax, jax.nn.log_softmax, jax.nn.logsumexp):
        reached = np.asarray(jax.vmap(f)(corners))
        for bound in jit(lambda b, f=f: [mt.ibp(f, sound=sound)(b), mt.crown_ibp(f, sound=sound)(b)])(_box(ends)):
            low, high = np.asarray(bound.lower)[None], np.asarray(bound.upper)[None]
            assert np.all((low <= reached + 0.1) & (reached - 0.1 <= high)), f
