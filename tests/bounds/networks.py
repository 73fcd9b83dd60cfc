"""Small random networks of every shape that the bounds must handle: `build(seed) -> (f, params, x)`.

Weights and inputs are float32 values, drawn with NumPy because that compiles nothing.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.models import MLP, Small

Built = tuple[Callable[[Any, jax.Array], jax.Array], Any, np.ndarray]


def _dense(seed: int, *widths: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [(_normal(rng, (n, m), n**-0.5), _normal(rng, (m,), 0.2)) for n, m in itertools.pairwise(widths)]


def _flax(net: nn.Module, seed: int, *shape: int) -> Built:
    rng = np.random.default_rng(seed)
    x = rng.random(shape, np.float32)
    params = jax.tree.map(lambda p: _normal(rng, p.shape, np.prod(p.shape[:-1]) ** -0.5), _shapes(net, shape))
    return net.apply, params, x


@functools.cache
def _shapes(net: nn.Module, shape: tuple[int, ...]) -> Any:
    return jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, np.float32))


def _normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    return (rng.normal(size=shape) * scale).astype(np.float32)


def _uniform(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def _affine(layer: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    return x @ layer[0] + layer[1][None, :]


def deep_mlp(seed: int) -> Built:
    def f(params: Any, x: jax.Array) -> jax.Array:
        for layer in params[:-1]:
            x = jnp.maximum(_affine(layer, x), 0.0)
        return _affine(params[-1], x)

    return f, _dense(seed, 6, 12, 12, 12, 4), _uniform(seed, 3, 6)


def residual_mlp(seed: int) -> Built:
    def f(params: Any, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(_affine(params[0], x))
        h = h + jax.nn.relu(_affine(params[1], h)) - 0.5 * h
        h = jnp.concatenate([h, -x], axis=1) / 2
        return _affine(params[2], jax.nn.relu(h - 0.1))

    layers = [*_dense(seed, 6, 10), *_dense(seed + 1, 10, 10), *_dense(seed + 2, 16, 4)]
    return f, layers, _uniform(seed, 3, 6)


class _PooledCNN(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = (x - 0.3) / 0.4
        x = nn.relu(nn.Conv(4, (3, 3), strides=2, padding=1)(x))
        x = nn.avg_pool(x, (2, 2), (1, 1), padding="SAME", count_include_pad=False)
        x = nn.relu(nn.Conv(4, (3, 2), padding="VALID")(x))
        return nn.Dense(4)(x.reshape((x.shape[0], -1)))


def pooled_cnn(seed: int) -> Built:
    return _flax(_PooledCNN(), seed, 2, 7, 7, 2)


class _OddConvolutions(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(4, (3, 3), padding=((0, 1), (2, 0)), feature_group_count=2)(x))
        x = nn.relu(nn.Conv(4, (2, 2), kernel_dilation=2, padding=1)(x))
        x = nn.relu(nn.ConvTranspose(3, (2, 2), strides=(2, 1))(x))
        x = x.mean((1, 2)) + jnp.transpose(x, (0, 3, 1, 2)).sum((2, 3)) * 0.1
        return nn.Dense(4)(x)


def odd_convolutions(seed: int) -> Built:
    return _flax(_OddConvolutions(), seed, 2, 5, 5, 2)


def rearranged(seed: int) -> Built:
    """Selection by an exact mask, slices, pads, flips, cumulative sums, minima, and a nested jit and checkpoint."""

    @jax.checkpoint
    def inner(params: Any, h: jax.Array) -> jax.Array:
        return jax.jit(lambda v: jax.nn.relu(_affine(params, v)))(h)

    def f(params: Any, x: jax.Array) -> jax.Array:
        h = inner(params[0], x[:, ::-1])
        h = jnp.where(jnp.arange(8)[None, :] % 3 == 0, h, 2 * x)
        h = jnp.pad(h[:, 2:7], ((0, 0), (1, 2)), constant_values=0.3)
        h = jnp.minimum(jnp.cumsum(h, axis=1), 1.5) + jnp.stack([h, h], 2)[:, :, 0]
        return _affine(params[1], jax.nn.relu(h[:, jnp.array([3, 3, 0, 1, 7, 2, 5, 4])]))

    return f, _dense(seed, 8, 8, 4), _uniform(seed, 3, 8)


def mlp(seed: int) -> Built:
    return _flax(MLP(classes=4, width=20), seed, 3, 4, 4, 1)


def cnn(seed: int) -> Built:
    return _flax(Small(classes=4, width=10), seed, 2, 8, 8, 1)


NETWORKS: dict[str, Callable[[int], Built]] = {
    build.__name__: build for build in (deep_mlp, residual_mlp, pooled_cnn, odd_convolutions, rearranged, mlp, cnn)
}
