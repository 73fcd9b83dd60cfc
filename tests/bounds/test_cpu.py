"""Forms of operations that are fast on CPU compute what the operations do, and so do their derivatives."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core

import mixtrain_jax as mt
from mixtrain_jax.bounds import cpu, group_size, loops

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="Elsewhere they are the operations themselves.")
CHANNELS_LAST = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def convolutions(jaxpr: Any) -> list[Any]:
    """All of a jaxpr, those of its loops and calls too."""
    found = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "conv_general_dilated"]
    return found + [eqn for inner in core.subjaxprs(jaxpr) for eqn in convolutions(inner)]


def layouts(f: Any, *args: Any) -> set[Any]:
    """The orders of dimensions of the convolutions in a function."""
    return {tuple(map(tuple, eqn.params["dimension_numbers"])) for eqn in convolutions(jax.make_jaxpr(f)(*args).jaxpr)}


def arrays(*shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


def agree(f: Any, g: Any, *args: jax.Array) -> None:
    """Two functions of arrays have the same values and derivatives, both ways, also when mapped."""
    for do in (
        lambda f, *x: f(*x),
        lambda f, *x: jax.grad(lambda *x: (f(*x) ** 2).sum(), tuple(range(len(x))))(*x),
        lambda f, *x: jax.jvp(f, x, tuple(1.0 - a for a in x)),
        lambda f, *x: jax.vmap(f)(*(jnp.stack([a, 2.0 * a]) for a in x)),
    ):
        ours, theirs = (jax.jit(functools.partial(do, of))(*args) for of in (f, g))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11), ours, theirs)


def in_scan(f: Any) -> Any:
    return lambda x, w: lax.scan(lambda y, _: (jnp.tanh(f(y, w)), None), x, None, length=3)[0]


def in_while(f: Any) -> Any:
    def loop(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.tanh(f(s[1], w))), (0, x))[1]

    return loop


def in_cond(f: Any) -> Any:
    return lambda x, w: lax.cond(x[0, 0, 0, 0] > 0, f, lambda x, w: -f(x, w), x, w)


WAYS = {"plain": lambda f: f, "jit": jax.jit, "scan": in_scan, "while": in_while, "cond": in_cond, "remat": jax.remat}
WAYS["remat in scan"] = lambda f: in_scan(jax.remat(f, prevent_cse=False))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_what_is_ordered_computes_the_same(way: str, layout: str, x64: None) -> None:
    channels = layout.index("C")
    x, w = arrays(tuple(5 if d == channels else 6 for d in range(4)), (3, 3, 5, 5))

    def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=(layout, "HWIO", layout))

    f = WAYS[way](convolve)
    done = [lambda x, w: f(x, w), lambda x, w: jax.jvp(f, (x, w), (w.sum() * x, w))]
    if way != "while":  # which has no derivatives backwards
        done.append(lambda x, w: jax.value_and_grad(lambda x, w: (f(x, w) ** 2).sum(), (0, 1))(x, w))
    for g in done:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), cpu.ordered(g)(x, w), g(x, w))
        assert layouts(cpu.ordered(g), x, w) == {CHANNELS_LAST}
    if way != "while":
        assert layouts(done[-1], x, w) != {CHANNELS_LAST}


def test_what_is_ordered_may_hold_groups_of_channels_and_be_mapped(x64: None) -> None:
    x, w = arrays((3, 2, 6, 6, 4), (3, 3, 3, 1, 4))

    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(x, w, (2, 1), "SAME", dimension_numbers=numbers, feature_group_count=4)
        return (y**3).sum()

    f = jax.vmap(jax.grad(loss, (0, 1)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), cpu.ordered(f)(x, w), f(x, w))
    assert layouts(cpu.ordered(f), x, w) == {CHANNELS_LAST}


@pytest.mark.parametrize(("layout", "channels"), [("NHWC", (1, 3)), ("NCHW", (6, 2))])
def test_transposes_of_strided_convolutions_are_those_of_jax(layout: str, channels: tuple[int, int], x64: None) -> None:
    before, after = channels
    for kernel, strides, padding in itertools.product(
        [(3, 3), (4, 2)], [(2, 2), (3, 2), (2, 1)], ["SAME", ((4, 0), (5, 7)), ((-1, 2), (0, -2))]
    ):
        x, w = arrays((2, 7, 8, before) if layout == "NHWC" else (2, before, 7, 8), (*kernel, before, after))

        def loss(x: jax.Array, w: jax.Array, options: Any = (strides, padding)) -> jax.Array:
            return (lax.conv_general_dilated(x, w, *options, dimension_numbers=(layout, "HWIO", layout)) ** 2).sum()

        gradient = jax.grad(loss, (0, 1))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11),
            jax.jit(cpu.ordered(gradient))(x, w),
            jax.jit(gradient)(x, w),
        )
        taken = all(1 < s <= k for s, k in zip(strides, kernel, strict=True))
        spread = [eqn for eqn in convolutions(jax.make_jaxpr(cpu.ordered(gradient))(x, w).jaxpr) if _has_gaps(eqn)]
        assert bool(spread) != taken


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_gradients_for_small_kernels_are_those_of_jax(layout: str, x64: None) -> None:
    for kernel, padding in itertools.product([(2, 2), (3, 1), (3, 2)], ["VALID", ((1, 0), (2, 1))]):
        x, w = arrays((2, 7, 8, 3) if layout == "NHWC" else (2, 3, 7, 8), (*kernel, 3, 5))

        def loss(w: jax.Array, x: jax.Array = x, padding: Any = padding) -> jax.Array:
            return (
                lax.conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=(layout, "HWIO", layout)) ** 2
            ).sum()

        ours, jaxs = cpu.ordered(jax.grad(loss)), jax.grad(loss)
        np.testing.assert_allclose(jax.jit(ours)(w), jax.jit(jaxs)(w), rtol=1e-11)
        assert len(convolutions(jax.make_jaxpr(ours)(w).jaxpr)) == 1 + (kernel == (3, 2))


def _has_gaps(eqn: Any) -> bool:
    return any(d > 1 for d in eqn.params["lhs_dilation"])


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize(("channels", "thin"), [((1, 3), True), ((3, 2), True), ((5, 2), False)])
def test_convolutions_of_few_channels_are_those_of_jax(
    layout: str, channels: tuple[int, int], thin: bool, x64: None
) -> None:
    before, after = channels
    for kernel, strides, padding in itertools.product(
        [(3, 3), (4, 2), (1, 1)], [(1, 1), (3, 2)], [((1, 2), (3, 0)), ((-1, 0), (0, 0))]
    ):
        x, w = arrays((2, 7, 8, before) if layout == "NHWC" else (2, before, 7, 8), (*kernel, before, after))

        def jaxs(x: jax.Array, w: jax.Array, options: Any = (strides, padding)) -> jax.Array:
            return lax.conv_general_dilated(x, w, *options, dimension_numbers=(layout, "HWIO", layout))

        [eqn] = convolutions(jax.make_jaxpr(jaxs)(x, w).jaxpr)

        def ours(x: jax.Array, w: jax.Array, params: Any = eqn.params) -> jax.Array:
            return cpu.convolution(x, w, **params)

        [found] = convolutions(jax.make_jaxpr(ours)(x, w).jaxpr)
        taken = found.params["window_strides"] == (1, 1) != strides
        assert taken == (thin and strides != (1, 1) and padding[0][0] >= 0 and all(np.less_equal(strides, kernel)))
        if taken or kernel == (3, 3):
            agree(ours, jaxs, x, w)


@pytest.mark.parametrize("shape", [(2048, 640), (30, 20), (2053, 640), (640, 2048)])
def test_a_product_with_absolute_values_is_the_product(shape: tuple[int, int], x64: None) -> None:
    radius, matrix = arrays((3, 1, shape[0]), shape)
    params = jax.make_jaxpr(jnp.matmul)(radius[0], matrix).eqns[0].params

    def ours(radius: jax.Array, matrix: jax.Array) -> jax.Array:
        return jax.vmap(lambda r: cpu.times_absolute(r, matrix, **params))(radius)

    def plain(radius: jax.Array, matrix: jax.Array) -> jax.Array:
        return radius @ jnp.abs(matrix)

    in_strips = "scan" in str(jax.make_jaxpr(ours)(radius, matrix))
    assert in_strips == (shape in ((2048, 640), (640, 2048)))  # 2053 is prime
    agree(ours, plain, radius, matrix)


def test_a_wide_layer_is_bounded_as_a_narrow_one(x64: None) -> None:
    x, w = arrays((2, 2048), (2048, 640))
    ball = mt.linf_ball(x, 0.1)
    bounds = mt.ibp(lambda x: x @ w)(ball)
    center, radius = np.asarray(x @ w), np.asarray(0.1 * jnp.abs(w).sum(0))
    np.testing.assert_allclose(bounds.lower, center - radius, rtol=1e-9)
    np.testing.assert_allclose(bounds.upper, center + radius, rtol=1e-9)


# --- groups ----------------------------------------------------------------------------------------------------------


def network(x: jax.Array) -> jax.Array:
    first, second = (w.astype(x.dtype) for w in arrays((4, 4, 1, 8), (8 * 16, 5)))
    x = lax.conv_general_dilated(x, first, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(x).reshape(len(x), -1) @ second


@pytest.mark.parametrize("method", [mt.ibp, mt.crown_ibp, mt.crown])
@pytest.mark.parametrize("group", [3, 8])
def test_margins_of_groups_are_those_of_all(method: mt.bounds.Method, group: int, x64: None) -> None:
    (x,) = arrays((8, 8, 8, 1))
    ball, labels = mt.linf_ball(x, 0.05), jnp.arange(8) % 5
    whole = jax.jit(mt.margins(method, network))(ball, labels)
    found = jax.jit(mt.margins(method, network, group=group))(ball, labels)
    np.testing.assert_allclose(found, whole, rtol=1e-10, atol=1e-12)


def test_groups_of_balls_that_are_no_boxes() -> None:
    x = arrays((5, 8, 8, 1))[0].astype(jnp.float32)
    ball, labels = jax.vmap(mt.l2_ball, (0, None, None))(x, 0.1, None), jnp.arange(5)
    whole = jax.jit(mt.margins(mt.crown_ibp, network))(ball, labels)
    found = jax.jit(mt.margins(mt.crown_ibp, network, group=2))(ball, labels)
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-4)


def test_totals_of_chunks_are_those_of_all(x64: None) -> None:
    x, w = arrays((12, 3), (3,))

    def sums(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.value_and_grad(lambda w: jnp.tanh(rows @ w).sum())(w)

    for chunk in (None, 1, 4, 12, 20):
        found = loops.total(sums, x, chunk)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, sums(x))


def test_a_group_has_the_size_that_stays_in_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    assert group_size(mt.crown_ibp, network, (8, 8, 1)) is None  # on several devices
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    for forwards in (None, mt.ibp):
        size = group_size(forwards, network, (8, 8, 1))
        assert size is not None
        assert 2**20 < size * 4 * 4 * 8 * 4 <= 2**21
    size = group_size(mt.crown_ibp, network, (8, 8, 1))
    assert size in (4, 8, 16, 32, 64, 128)
    assert size * 4 * 8 * 16 * 4 <= 2**20
    weights = jnp.ones((2, 2**18))
    assert group_size(mt.crown_ibp, lambda x: jax.nn.relu(x @ weights) @ weights.T, (2,)) == 4
    assert group_size(None, lambda x: jax.nn.relu(x @ weights) @ weights.T, (2,)) == 16


def test_what_comes_from_weights_alone_does_not_count() -> None:
    weights = jnp.ones((1000, 10))

    def f(x: jax.Array) -> jax.Array:
        return x @ (jnp.abs(weights) + 1)

    assert loops.largest_array(f, jax.ShapeDtypeStruct((2, 1000), jnp.float32)) == 2 * 10 * 4
    in_a_loop = jax.jit(lambda x: lax.map(lambda row: jnp.outer(row, row).sum(), x))
    assert loops.largest_array(in_a_loop, jax.ShapeDtypeStruct((5, 30), jnp.float32)) == 30 * 30 * 4
