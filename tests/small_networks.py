"""Networks and data small enough to check by hand."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.data import Split

Logits = Callable[[jax.Array], jax.Array]


def linear(seed: int, inputs: int, classes: int) -> tuple[np.ndarray, np.ndarray, Logits]:
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(inputs, classes)).astype(np.float32)
    b = rng.normal(size=classes).astype(np.float32)
    return w, b, lambda x: jnp.reshape(x, (len(x), -1)) @ w + b[None]


def mlp(seed: int, inputs: int, classes: int, width: int = 16) -> Logits:
    rng = np.random.default_rng(seed)
    hidden = (rng.normal(size=(inputs, width)) / inputs**0.5).astype(np.float32)
    out = (rng.normal(size=(width, classes)) / width**0.5).astype(np.float32)
    return lambda x: jax.nn.relu(jnp.reshape(x, (len(x), -1)) @ hidden) @ out


def images(seed: int, n: int, side: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(n, side, side, 1)).astype(np.float32)


def labelled(logits_fn: Logits, x: np.ndarray) -> Split:
    """The images with the classes that the network itself gives them."""
    return Split(x, np.asarray(jnp.argmax(logits_fn(jnp.asarray(x)), -1), np.int32))


def exact_margins(w: np.ndarray, b: np.ndarray, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Margins of a linear network at the images, and how fast they fall with eps: both `[n, classes - 1]`, float64."""
    w, b = w.astype(np.float64), b.astype(np.float64)
    logits = split.images.reshape(len(split), -1).astype(np.float64) @ w + b
    others = np.array([[j for j in range(len(b)) if j != y] for y in split.labels])
    rows = np.arange(len(split))
    margin = logits[rows, split.labels][:, None] - np.take_along_axis(logits, others, 1)
    fall = np.abs(w[:, split.labels].T[:, None, :] - w.T[others]).sum(-1)
    return margin, fall
