"""Differences of logits against the same linear functions given as rows, for every way in which a function ends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixtrain_jax as mt
from mixtrain_jax.bounds import BoundsError, specification

METHODS = {"ibp": mt.ibp, "crown_ibp": mt.crown_ibp, "symbolic": mt.symbolic, "crown": mt.crown}
CLASSES = (2, 5, 40)  # label left out before, and after, the pass


def normal(*shape):
    return np.random.default_rng(shape).normal(size=shape) / np.sqrt(shape[0])


def hidden(x):
    return jnp.tanh(x @ normal(6, 8)) * 2


ENDS = {
    "a product": lambda x, n: hidden(x) @ normal(8, n),
    "a product and a sum": lambda x, n: 1.5 + (hidden(x) @ normal(8, n) + normal(n)),
    "weights on the left": lambda x, n: normal(n, 8) @ hidden(x),
    "a batch of one": lambda x, n: ((hidden(x)[None] @ normal(8, n))[0][:, None] + normal(n, 1)).reshape(n),
    "two axes": lambda x, n: jnp.einsum("ij,jik->k", hidden(x).reshape(4, 2), normal(2, 4, n)),
    "two axes, swapped weights": lambda x, n: jnp.einsum("ij,kij->k", hidden(x).reshape(4, 2), normal(n, 4, 2)),
    "two products": lambda x, n: (hidden(x) @ normal(8, 7) + 1) @ normal(7, n),
    "a convolution": lambda x, n: jnp.convolve(hidden(x), normal(3), "same") @ normal(8, n),
    "means": lambda x, n: (hidden(x).reshape(4, 2) @ normal(2, n)).mean(0) - normal(n),
    "a scaled product": lambda x, n: 0.1 * (hidden(x) @ normal(8, n)),
    "a sum of two paths": lambda x, n: hidden(x) @ normal(8, n) + x @ normal(6, n),
    "a value used twice": lambda x, n: (lambda y: y + y[::-1])(hidden(x) @ normal(8, n)),
    "nothing affine": lambda x, n: jax.nn.relu(hidden(x) @ normal(8, n)),
    "affine from the start": lambda x, n: x @ normal(6, n) - 2,
    "zeros": lambda x, n: 0 * (x @ normal(6, n)),
}


def examples(count):
    rng = np.random.default_rng(7)
    return mt.linf_ball(jnp.asarray(rng.normal(size=(count, 6))), 0.1), jnp.asarray(rng.integers(0, 2, count))


@pytest.mark.parametrize("end", ENDS)
def test_of_many_classes_boxes_alone_give_the_same_with_the_same_gradient(end, x64):
    f, classes = functools.partial(ENDS[end], n=40), 40
    ball, labels = examples(3)
    labels = labels.at[0].set(classes - 1)
    weights = jnp.asarray(normal(classes - 1))

    def of_differences(ball, label):
        found = mt.ibp(f).differences(label, ball)
        return found, weights @ found.lower - weights @ found.upper**2

    def of_rows(ball, label):
        found = mt.ibp(f).rows(specification(label, classes, jnp.float64), ball)
        return found, weights @ found.lower - weights @ found.upper**2

    def with_gradient(one):
        def whole(ball, labels):
            found, losses = jax.vmap(one)(ball, labels)
            return losses.sum(), found

        return jax.jit(jax.grad(whole, has_aux=True))(ball, labels)

    (gradient, found), (expected_gradient, expected) = with_gradient(of_differences), with_gradient(of_rows)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), found, expected)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), gradient, expected_gradient)


@pytest.mark.parametrize(("end", "classes"), [*((end, 5) for end in ENDS), ("a product and a sum", 2), ("means", 40)])
def test_differences_are_the_rows_of_the_specification(end, classes, x64):
    f = functools.partial(ENDS[end], n=classes)
    ball, labels = examples(3)
    labels = labels.at[0].set(classes - 1)

    @jax.jit
    def both(ball, labels):
        def one(ball, label):
            rows = specification(label, classes, jnp.float64)
            return [(m(f).differences(label, ball), m(f).rows(rows, ball)) for m in (mt.ibp, mt.crown_ibp)]

        return jax.vmap(one)(ball, labels)

    for found, expected in both(ball, labels):
        assert found.lower.shape == (3, classes - 1)
        np.testing.assert_allclose(found.lower, expected.lower, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(found.upper, expected.upper, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("classes", CLASSES)
def test_they_are_differentiated_alike(classes, x64):
    ball, labels = examples(3)

    def f(params, x):
        return jnp.tanh(x @ params[0]) @ params[1] + params[2]

    def loss(params, ways):
        def one(ball, label):
            bounded = mt.crown_ibp(functools.partial(f, params))
            if ways == "differences":
                return bounded.differences(label, ball).lower
            return bounded.rows(specification(label, classes, jnp.float64), ball).lower

        return jax.nn.softplus(-jax.vmap(one)(ball, labels)).sum()

    params = [jnp.asarray(a) for a in (normal(6, 8), normal(8, classes), normal(classes))]
    found, expected = (jax.jit(jax.grad(loss), static_argnums=1)(params, way) for way in ("differences", "rows"))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("sound", [False, True])
def test_they_hold_at_sampled_points_and_corners(method, sound, x64):
    f = functools.partial(ENDS["a product and a sum"], n=40)
    ball, labels = examples(2)
    bound = jax.vmap(lambda ball, label: method(f, sound=sound).differences(label, ball))(ball, labels)
    rng = np.random.default_rng(0)
    for i in range(2):
        points = rng.uniform(ball.lower[i], ball.upper[i], (500, 6))
        corners = np.where(rng.random((500, 6)) < 0.5, ball.lower[i], ball.upper[i])
        logits = jax.vmap(f)(np.concatenate([points, corners]))
        label = int(labels[i])
        margins = np.delete(logits[:, [label]] - logits, label, axis=1)
        assert (margins.min(0) >= np.asarray(bound.lower[i]) - 1e-12).all()
        assert (margins.max(0) <= np.asarray(bound.upper[i]) + 1e-12).all()


def test_many_classes_cost_little():
    """Rows of the specification times the last weights would be `classes` times the operations counted here."""
    weights = [jnp.asarray(a, jnp.float32) for a in (normal(6, 64), normal(64, 500))]
    ball, labels = examples(16)

    def lower(weights):
        return mt.margins(mt.ibp, lambda x: jax.nn.relu(x @ weights[0]) @ weights[1])(ball, labels)

    cost = jax.jit(lower).lower(weights).compile().cost_analysis()
    assert cost["flops"] < 10 * 16 * 64 * 500


def test_functions_of_nothing_or_of_more_than_one_axis():
    ball = mt.linf_ball(jnp.zeros(3), 1.0)
    constant = mt.ibp(lambda x: jnp.array([1.0, 4.0, 2.0])).differences(1, ball)
    np.testing.assert_array_equal(constant.lower, [3.0, 2.0])
    np.testing.assert_array_equal(constant.upper, [3.0, 2.0])
    with pytest.raises(BoundsError, match=r"one output array \[classes\], got outputs of \[\(1, 3\)\]"):
        mt.ibp(lambda x: x[None] * 2).differences(1, ball)
