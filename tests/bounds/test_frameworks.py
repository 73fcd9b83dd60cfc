"""Networks as people write them, in Flax linen, Flax nnx, Equinox and plain JAX, and what they wrap bounds in."""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from test_probes import assert_holds, boxes, conv, one_by_one, promotion_as_users_have_it, reached, weights

import mixtrain_jax as mt

__all__ = ["promotion_as_users_have_it"]  # a fixture that every test of this file uses

METHODS = {"ibp": mt.ibp, "crown_ibp": mt.crown_ibp, "crown": mt.crown}
# Half a minute of compilation each; smaller attention is bounded by every method.
SLOW = {("linen_transformer_block", "crown"), ("linen_causal_transformer_block", "crown")}
# Backward passes through Flax's masked attention are NaN as yet, which certifies nothing.
SLOW |= {("linen_causal_transformer_block", "crown_ibp")}


class Case(NamedTuple):
    """A network of one example with a vector of outputs, and the shape of the example."""

    f: Callable[[Any, jax.Array], jax.Array]
    params: Any
    shape: tuple[int, ...]


CASES: dict[str, Callable[[], Case]] = {}


def case(build: Callable[[], Case]) -> Callable[[], Case]:
    CASES[build.__name__] = functools.cache(build)
    return CASES[build.__name__]


def _draw(shapes: Any) -> Any:
    """Parameters of these shapes, drawn with NumPy because that compiles nothing."""

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path)
        value = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape.shape)
        if "var" in name:
            value = 0.5 + value**2
        elif len(shape.shape) < 2:
            value = 0.2 * value + ("scale" in name or "weight" in name)
        else:
            value = value * (np.prod(shape.shape) / shape.shape[-1]) ** -0.5
        return jnp.asarray(value, shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


# --- Flax linen -----------------------------------------------------------------------------------------------------


def _linen(call: Callable[[jax.Array], jax.Array], *shape: int) -> Case:
    """A compact linen module of a batch, given by its `__call__`."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return call(x)

    shapes = jax.eval_shape(Net().init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    return Case(lambda variables, x: Net().apply(variables, x[None])[0], _draw(shapes), shape)


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape((x.shape[0], -1))


@case
def linen_mlp() -> Case:
    return _linen(lambda x: nn.Dense(3)(nn.relu(nn.Dense(8)(nn.relu(nn.Dense(8)(x))))), 6)


@case
def linen_cnn_with_pools() -> Case:
    def call(x: jax.Array) -> jax.Array:
        x = nn.max_pool(nn.relu(nn.Conv(3, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.avg_pool(nn.relu(nn.Conv(4, (2, 2))(x)), (2, 2), (1, 1))
        return nn.Dense(3)(_flat(x))

    return _linen(call, 6, 6, 1)


@case
def linen_batch_norm() -> Case:
    def call(x: jax.Array) -> jax.Array:
        x = nn.Conv(3, (3, 3), strides=(2, 2), use_bias=False)(x)
        return nn.Dense(3)(_flat(nn.relu(nn.BatchNorm(use_running_average=True)(x))))

    return _linen(call, 4, 4, 2)


@case
def linen_layer_norm() -> Case:
    return _linen(lambda x: nn.Dense(3)(nn.gelu(nn.LayerNorm()(nn.Dense(8)(x)))), 6)


@case
def linen_group_norm() -> Case:
    def call(x: jax.Array) -> jax.Array:
        return nn.Dense(3)(nn.relu(nn.GroupNorm(2)(nn.Conv(4, (3, 3))(x))).mean((1, 2)))

    return _linen(call, 4, 4, 2)


@case
def linen_residual_block() -> Case:
    def call(x: jax.Array) -> jax.Array:
        y = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3), strides=(2, 2))(x)))
        y = nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(y))
        return nn.Dense(3)(nn.relu(y + nn.Conv(4, (1, 1), strides=(2, 2))(x)).mean((1, 2)))

    return _linen(call, 4, 4, 2)


@case
def linen_depthwise_block() -> Case:
    def call(x: jax.Array) -> jax.Array:
        x = nn.relu6(nn.Conv(4, (3, 3), feature_group_count=2)(x))
        return nn.Dense(3)(nn.hard_swish(nn.Conv(4, (1, 1))(x)).mean((1, 2)))

    return _linen(call, 4, 4, 2)


@case
def linen_perturbed_embedding() -> Case:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, tokens: Any, change: jax.Array) -> jax.Array:
            x = nn.Embed(10, 4)(tokens) + change
            return nn.Dense(3)(nn.tanh(nn.Dense(6)(x)).mean(0))

    tokens = np.array([3, 1, 7], np.int32)
    change = jax.ShapeDtypeStruct((3, 4), jnp.float32)
    shapes = jax.eval_shape(Net().init, jax.random.key(0), tokens, change)
    return Case(lambda variables, x: Net().apply(variables, tokens, x), _draw(shapes), (3, 4))


@case
def linen_lstm() -> Case:
    def call(x: jax.Array) -> jax.Array:
        return nn.Dense(3)(nn.RNN(nn.OptimizedLSTMCell(4, param_dtype=x.dtype))(x)[:, -1])

    return _linen(call, 2, 4)  # each step takes a dozen backward passes over all that is before it


def _transformer_block(mask: Any = None) -> Callable[[jax.Array], jax.Array]:
    def call(x: jax.Array) -> jax.Array:
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x), mask=mask)
        x = x + nn.Dense(4)(nn.gelu(nn.Dense(8)(nn.LayerNorm()(x))))
        return nn.Dense(3)(x.mean(1))

    return call


@case
def linen_transformer_block() -> Case:
    return _linen(_transformer_block(), 3, 4)


@case
def linen_causal_transformer_block() -> Case:
    return _linen(_transformer_block(np.tril(np.ones((1, 1, 3, 3), bool))), 3, 4)


# --- Flax nnx -------------------------------------------------------------------------------------------------------


def _nnx(make: Callable[[nnx.Rngs], nnx.Module], *shape: int) -> Case:
    graph, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param)
    return Case(lambda state, x: nnx.merge(graph, state)(x[None])[0], _draw(state), shape)


@case
def nnx_mlp() -> Case:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.first = nnx.Linear(6, 8, rngs=rngs)
            self.second = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.second(nnx.leaky_relu(self.first(x)))

    return _nnx(Net, 6)


@case
def nnx_cnn() -> Case:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.conv = nnx.Conv(2, 3, (3, 3), rngs=rngs)
            self.linear = nnx.Linear(12, 3, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            x = nnx.max_pool(nnx.elu(self.conv(x)), (2, 2), (2, 2))
            return self.linear(_flat(x))

    return _nnx(Net, 4, 4, 2)


@case
def nnx_attention() -> Case:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
            self.linear = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.linear(x + self.attention(x)).mean(1)

    return _nnx(Net, 3, 4)


# --- Equinox --------------------------------------------------------------------------------------------------------


def _equinox(make: Callable[[jax.Array], Any], *shape: int) -> Case:
    """An Equinox module of one example: the arrays in it are parameters, all else is static."""
    shapes = eqx.filter_eval_shape(make, jax.random.key(0))
    arrays, static = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    return Case(lambda params, x: eqx.combine(params, static)(x), _draw(arrays), shape)


@case
def equinox_mlp() -> Case:
    return _equinox(lambda key: eqx.nn.MLP(6, 3, 8, 2, activation=jax.nn.softplus, key=key), 6)


@case
def equinox_cnn() -> Case:
    def make(key: jax.Array) -> Any:
        layers = [
            eqx.nn.Conv2d(2, 3, 3, padding=1, key=key),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Conv2d(3, 3, 2, key=key),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(3, 3, key=key),
        ]
        return eqx.nn.Sequential(layers)

    return _equinox(make, 2, 4, 4)


@case
def equinox_layer_norm() -> Case:
    def make(key: jax.Array) -> Any:
        linear = eqx.nn.Linear(6, 8, key=key)
        layers = [linear, eqx.nn.LayerNorm(8), eqx.nn.Lambda(jax.nn.silu), eqx.nn.Linear(8, 3, key=key)]
        return eqx.nn.Sequential(layers)

    return _equinox(make, 6)


@case
def equinox_attention() -> Case:
    class Net(eqx.Module):
        attention: eqx.nn.MultiheadAttention
        linear: eqx.nn.Linear

        def __init__(self, key: jax.Array):
            self.attention = eqx.nn.MultiheadAttention(2, 4, key=key)
            self.linear = eqx.nn.Linear(4, 3, key=key)

        def __call__(self, x: jax.Array) -> jax.Array:
            return jax.vmap(self.linear)(x + self.attention(x, x, x)).mean(0)

    return _equinox(Net, 3, 4)


# --- plain JAX, and control flow ------------------------------------------------------------------------------------


def _layers(*sizes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(weights(i, n, m), weights(i, m)) for i, (n, m) in enumerate(itertools.pairwise(sizes))]


def _apply(layer: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    return x @ layer[0] + layer[1]


@case
def jax_mlp() -> Case:
    def f(params: Any, x: jax.Array) -> jax.Array:
        for layer in params[:-1]:
            x = jnp.where(_apply(layer, x) > 0, _apply(layer, x), 0.0)  # a ReLU too
        return _apply(params[-1], x)

    return Case(f, _layers(6, 8, 8, 3), (6,))


@case
def jax_wide_mlp() -> Case:
    return Case(lambda params, x: _apply(params[1], jax.nn.relu(_apply(params[0], x))), _layers(6, 8, 3), (6,))


@case
def jax_cnn() -> Case:
    def f(params: Any, x: jax.Array) -> jax.Array:
        x = conv(x, 3)
        x = x.reshape(2, 2, 2, 2, 3).max((1, 3))  # pooling by hand
        return _apply(params, jnp.sqrt(x**2 + 1).ravel())

    return Case(f, _layers(12, 3)[0], (4, 4, 2))


def _attention(mask: np.ndarray | None = None) -> Case:
    def f(params: Any, x: jax.Array) -> jax.Array:
        query, key, value = (_apply(layer, x) for layer in params[:3])
        scores = jnp.einsum("qd,kd->qk", query, key) / 2
        if mask is not None:
            scores = jnp.where(mask, scores, -jnp.inf)
        x = x + jnp.exp(scores - jax.nn.logsumexp(scores, axis=-1, keepdims=True)) @ value
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return _apply(params[3], x).mean(0)

    return Case(f, [*_layers(4, 4, 4, 4), _layers(4, 3)[0]], (3, 4))


@case
def jax_attention() -> Case:
    return _attention()


@case
def jax_attention_masked_by_infinity() -> Case:
    return _attention(np.tri(3, dtype=bool))


@case
def scan_over_layers() -> Case:
    def f(params: Any, x: jax.Array) -> jax.Array:
        layers, last = params
        x, hidden = lax.scan(lambda h, layer: (jax.nn.relu(_apply(layer, h)), h.sum()), x, layers)
        return _apply(last, x) + hidden

    return Case(f, ((weights(0, 3, 6, 6), weights(1, 3, 6)), _layers(6, 3)[0]), (6,))


@case
def scan_over_a_sequence() -> Case:
    def f(params: Any, x: jax.Array) -> jax.Array:
        def step(h: jax.Array, token: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(_apply(params[0], jnp.concatenate([h, token]))), None

        return _apply(params[1], lax.scan(step, jnp.zeros(4, x.dtype), x, reverse=True)[0])

    return Case(f, [_layers(6, 4)[0], _layers(4, 3)[0]], (3, 2))


@case
def fori_loop() -> Case:
    def f(params: Any, x: jax.Array) -> jax.Array:
        stack = jnp.asarray(params[0])
        return _apply(params[1], lax.fori_loop(0, 3, lambda i, h: jax.nn.relu(h @ stack[i] + i / 4), x))

    return Case(f, (weights(0, 3, 6, 6), _layers(6, 3)[0]), (6,))


@case
def while_loop_of_known_length() -> Case:
    def f(params: Any, x: jax.Array) -> jax.Array:
        def body(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return carry[0] + 1, jax.nn.relu(_apply(params[0], carry[1]))

        return _apply(params[1], lax.while_loop(lambda carry: carry[0] < 3, body, (0, x))[1])

    return Case(f, [_layers(6, 6)[0], _layers(6, 3)[0]], (6,))


def _conditional(predicate: Callable[[Any, jax.Array], Any]) -> Case:
    def f(params: Any, x: jax.Array) -> jax.Array:
        yes = lambda h: jax.nn.relu(_apply(params[0], h))  # noqa: E731
        no = lambda h: 0.5 - _apply(params[1], h)  # noqa: E731
        return _apply(params[2], lax.cond(predicate(params, x), yes, no, x))

    return Case(f, [*_layers(6, 6, 6), _layers(6, 3)[0]], (6,))


@case
def cond_of_a_constant() -> Case:
    return _conditional(lambda params, x: np.bool_(False))


@case
def cond_of_the_parameters() -> Case:
    return _conditional(lambda params, x: params[0][0].sum() > 0)


@case
def cond_of_the_input() -> Case:
    return _conditional(lambda params, x: x.sum() > 0.1)


@case
def switch_of_the_parameters() -> Case:
    def f(params: Any, x: jax.Array) -> jax.Array:
        index = (params[0][0] > 0).sum() % 3
        return _apply(params[1], lax.switch(index, [jnp.sin, jax.nn.relu, jnp.negative], _apply(params[0], x)))

    return Case(f, _layers(6, 6, 3), (6,))


@case
def checkpointed_blocks() -> Case:
    def f(params: Any, x: jax.Array) -> jax.Array:
        block = jax.checkpoint(lambda layer, h: h + jax.nn.relu(_apply(layer, h)))
        return _apply(params[2], block(params[1], block(params[0], x)))

    return Case(f, [*_layers(6, 6, 6), _layers(6, 3)[0]], (6,))


@jax.custom_jvp
def _smooth(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.5 * x)


_smooth.defjvps(lambda g, y, x: g)


@jax.custom_vjp
def _clipped(x: jax.Array) -> jax.Array:
    return jnp.clip(x, -1, 1)


_clipped.defvjp(lambda x: (_clipped(x), None), lambda _, g: (g,))


@case
def functions_with_their_own_derivatives() -> Case:
    def f(params: Any, x: jax.Array) -> jax.Array:
        return _apply(params[2], _clipped(_apply(params[1], _smooth(_apply(params[0], x)))))

    return Case(f, _layers(6, 8, 8, 3), (6,))


@case
def nested_jit_and_vmap() -> Case:
    @jax.jit
    def block(layer: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(jax.jit(lambda w, b: jax.nn.relu(x @ w + b)), (1, 0))(*layer)

    def f(params: Any, x: jax.Array) -> jax.Array:
        return _apply(params[2], jax.jit(lambda h: block(params[1], h))(block(params[0], x)))

    return Case(f, _layers(6, 8, 8, 3), (6,))


# --- every case, by every method ------------------------------------------------------------------------------------


@functools.cache
def _reached(name: str) -> mt.Interval:
    f, params, shape = CASES[name]()
    steps = 0 if name == "while_loop_of_known_length" else 3  # which has no reverse derivative
    return reached(_in_float64(f, params), boxes(shape), samples=200, steps=steps)


def _in_float64(f: Callable[[Any, jax.Array], jax.Array], params: Any) -> Callable[[jax.Array], jax.Array]:
    return functools.partial(f, jax.tree.map(lambda a: np.asarray(a, np.float64), params))


@pytest.mark.parametrize(
    ("name", "method"), [(name, method) for name in CASES for method in METHODS if (name, method) not in SLOW]
)
def test_network_is_bounded(name: str, method: str) -> None:
    """Under jit, and `ibp` under vmap too, points, corners and attacked points lie inside finite bounds."""
    _, params, shape = CASES[name]()
    bound, ball = _bound(name, method), boxes(shape)
    if method == "ibp":
        found = jax.jit(jax.vmap(bound, (None, 0)))(params, ball)
    else:
        found = one_by_one(functools.partial(jax.jit(bound), params), ball)
    assert_holds(found, _reached(name))


# --- what a bound is wrapped in -------------------------------------------------------------------------------------


def _bound(name: str, method: str) -> Callable[[Any, mt.Interval], mt.Interval]:
    f = CASES[name]().f
    return lambda params, ball: METHODS[method](functools.partial(f, params))(ball)


def _close(found: mt.Interval, expected: mt.Interval) -> None:
    np.testing.assert_allclose(found.lower, expected.lower, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.upper, expected.upper, rtol=1e-5, atol=1e-5)


def _ball(shape: tuple[int, ...]) -> mt.Interval:
    """Four boxes, one a device."""
    x = np.random.default_rng(2).uniform(-1, 1, (4, *shape)).astype(np.float32)
    return mt.linf_ball(x, np.array([0.01, 0.03, 0.1, 0.3]).reshape(4, *[1] * len(shape)))


def _mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))


@pytest.mark.parametrize("method", METHODS)
def test_without_jit_and_vmap_nothing_changes(method: str) -> None:
    """A bound of one example as it is called at a prompt."""
    _, params, shape = CASES["linen_mlp"]()
    ball, bound = _ball(shape), functools.partial(_bound("linen_mlp", method), params)
    one = bound(jax.tree.map(lambda end: end[0], ball))
    _close(jax.tree.map(lambda end: end[None], one), jax.tree.map(lambda end: end[:1], jax.jit(jax.vmap(bound))(ball)))


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("linen_mlp", "crown"),
        ("linen_cnn_with_pools", "ibp"),
        ("linen_cnn_with_pools", "crown_ibp"),
        ("nnx_mlp", "crown"),
        ("equinox_mlp", "crown_ibp"),
        ("equinox_attention", "ibp"),
        ("linen_lstm", "ibp"),
        ("scan_over_layers", "crown"),
    ],
)
def test_gradients_are_those_of_finite_differences(name: str, method: str) -> None:
    """In the parameters and in the ends of the box, under jit, in float64."""
    _, params, shape = CASES[name]()
    bound = _bound(name, method)

    @jax.jit
    @jax.value_and_grad
    def width(arguments: Any) -> jax.Array:
        out = bound(*arguments)
        return jnp.sum(out.upper - out.lower)

    with jax.enable_x64(True):
        ball = jax.tree.map(lambda end: end[0], _ball(shape))
        arguments = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, ball))
        rng = np.random.default_rng(0)
        direction = jax.tree.map(lambda a: rng.normal(size=a.shape), arguments)
        forth, back = (jax.tree.map(lambda a, d, t=t: a + t * d, arguments, direction) for t in (1e-6, -1e-6))
        (_, gradient), (ahead, _), (behind, _) = jax.device_get([width(arguments), width(forth), width(back)])
    slope = sum(jax.tree.leaves(jax.tree.map(np.vdot, gradient, direction)))
    assert np.isfinite(slope)
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["ibp", "crown"])
@pytest.mark.parametrize("wrap", ["shard_map", "pmap", "sharded jit"])
def test_bounds_inside_a_parallel_program(wrap: str, method: str) -> None:
    """Each device bounds its own examples; the bounds are those of one device."""
    _, params, shape = CASES["jax_wide_mlp"]()
    ball, bound = _ball(shape), _bound("jax_wide_mlp", method)
    many = jax.vmap(bound, (None, 0))
    spec = PartitionSpec("data")
    if wrap == "shard_map":
        # What a device makes itself, such as rows, has no axis that varies, so the check would refuse it.
        parallel = jax.jit(
            jax.shard_map(many, mesh=_mesh(), in_specs=(PartitionSpec(), spec), out_specs=spec, check_vma=False)
        )
    elif wrap == "pmap":
        parallel = jax.pmap(bound, in_axes=(None, 0))
    else:
        parallel = jax.jit(many)
        ball = jax.device_put(ball, jax.sharding.NamedSharding(_mesh(), spec))
    _close(parallel(params, ball), jax.jit(many)(params, ball))


@pytest.mark.parametrize(
    ("name", "method"), [("linen_mlp", "crown"), ("linen_cnn_with_pools", "ibp"), ("equinox_mlp", "crown_ibp")]
)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_bounds_of_other_dtypes(name: str, dtype: Any, method: str) -> None:
    """A bound has the dtype of its function, and holds to round-off what float64 reaches."""
    f, params, shape = CASES[name]()
    with jax.enable_x64(dtype == jnp.float64):
        params, ball = jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, _ball(shape)))
        bound = jax.jit(jax.vmap(_bound(name, method), (None, 0)))(params, ball)
        assert bound.dtype == dtype
        values = reached(_in_float64(f, params), ball, samples=200, steps=2)
        assert_holds(jax.device_get(bound), values, dtype=dtype)


@pytest.mark.parametrize("method", METHODS)
def test_an_embedding_table_may_be_an_interval(method: str) -> None:
    """Some parameters are boxes, the tokens and all other parameters are exact."""
    net = nn.Sequential([nn.Embed(10, 4), nn.relu, nn.Dense(3)])
    tokens = np.array([3, 1, 3], np.int32)
    params = _draw(jax.eval_shape(net.init, jax.random.key(0), tokens))
    table = params["params"]["layers_0"]["embedding"]

    def f(table: jax.Array) -> jax.Array:
        return net.apply({"params": {**params["params"], "layers_0": {"embedding": table}}}, tokens).ravel()

    ball = jax.tree.map(lambda end: end[None], mt.linf_ball(table, 0.1))
    bound = jax.jit(jax.vmap(METHODS[method](f)))(ball)
    assert_holds(bound, reached(f, ball, samples=200, steps=3))
