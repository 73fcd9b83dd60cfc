"""Networks that mix the images of a batch are refused, and no other is."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixtrain_jax as mt
from mixtrain_jax.bounds import BoundsError
from mixtrain_jax.bounds.batch_axis import batch_dependence
from mixtrain_jax.bounds.independence import compare_batches

RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.normal(size=(12, 4)), jnp.float32)
SMALL = jnp.asarray(RNG.normal(size=(4, 4)), jnp.float32)
KERNEL = jnp.asarray(RNG.normal(size=(2, 2, 4, 4)), jnp.float32)


def dense(x):
    return jnp.reshape(x, (len(x), -1)) @ W


def of_one(image):
    return image.reshape(-1) @ W


def rnn(x):
    def step(state, row):
        state = jnp.tanh(state + row @ SMALL)
        return state, state

    return jax.lax.scan(step, jnp.zeros((len(x), 4)), x.transpose(1, 0, 2))[0]


def convolution(x):
    y = jax.lax.conv_general_dilated(
        x[..., None, :], KERNEL, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y = jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 2, 1, 1), (1, 1, 1, 1), "SAME")
    return y.mean((1, 2))


def attention(x):
    q = x[:, :, None]
    return jax.nn.dot_product_attention(q, q, q)[:, 0, 0]


def until(row):
    return jax.lax.while_loop(lambda v: v.sum() < 30, lambda v: v + 1, row)[0]


def either(row):
    return jax.lax.cond(row.sum() > 6, lambda v: v[0], lambda v: -v[1], row)


HONEST = {
    "dense": dense,
    "conv and pool": convolution,
    "per-example mean": lambda x: dense(x - x.mean((1, 2), keepdims=True)),
    "tokens": lambda x: (x.reshape(-1, 4) @ SMALL).reshape(x.shape).sum(1),
    "tokens the other way": lambda x: (x.transpose(1, 0, 2).reshape(-1, 4) @ SMALL).reshape(3, len(x), 4).sum(0),
    "attention": attention,
    "bilinear": lambda x: jnp.einsum("nij,nkj->nik", x, x)[:, 0],
    "vmap": jax.vmap(of_one),
    "map": lambda x: jax.lax.map(of_one, x),
    "map in groups": lambda x: jax.lax.map(of_one, x, batch_size=2),
    "recurrent": rnn,
    "loop of each": jax.vmap(until),
    "loop of each, one by one": lambda x: jax.lax.map(until, x),
    "branch of each": jax.vmap(either),
    "branch of each, one by one": lambda x: jax.lax.map(either, x),
    "fixed loop": lambda x: jax.lax.fori_loop(0, 3, lambda _, v: jnp.sin(v), x)[:, 0],
    "two views": lambda x: sum(jnp.split(dense(jnp.concatenate([x, x[:, ::-1]])), 2)),
    "two views side by side": lambda x: dense(jnp.stack([x, x[:, ::-1]], 1).reshape(-1, 3, 4)).reshape(-1, 2, 4).sum(1),
    "embedding": lambda x: W[jnp.argmax(x, 1)][:, 0],
    "take along": lambda x: jnp.take_along_axis(x, jnp.argsort(x, 1), 1)[:, 0],
    "cumulative": lambda x: jnp.cumsum(x, 1)[:, -1],
    "masked": lambda x: x.at[:, 0].set(0.0).sum(1),
    "padded": lambda x: jnp.pad(x, ((0, 0), (1, 1), (0, 0))).max(1),
    "remat and jit": jax.checkpoint(jax.jit(lambda x: jax.nn.gelu(dense(x)))),
    "statistics that nobody uses": lambda x: (x.mean(0), dense(x))[1],
    "fourier": lambda x: jnp.abs(jnp.fft.fft(x))[:, 0],
    "constant": lambda x: jnp.zeros((len(x), 4)),
}
# What the jaxpr alone leaves open, and numbers clear.
OPEN = {
    "row after row": lambda x: jnp.stack([of_one(image) for image in x]),
    "gather by position": lambda x: x[jnp.arange(len(x)), 0],
    "inverse": lambda x: jnp.linalg.inv(jnp.eye(3)[None] * 3 + x[:, :, :3])[:, 0],
    "there and back": lambda x: jnp.roll(jnp.roll(dense(x), 1, 0), -1, 0),
}
MIXING = {
    "mean": (lambda x: dense(x - x.mean(0, keepdims=True)), "reduce_sum"),
    "softmax": (lambda x: jax.nn.softmax(dense(x), 0), "reduce_max"),
    "reversed": (lambda x: dense(x[::-1]), "rev"),
    "transposed": (lambda x: dense(x).T.reshape(-1, 4), "reshape"),
    "accumulated": (lambda x: jax.lax.scan(lambda c, row: (c + row, c + row), jnp.zeros((3, 4)), x)[1][:, 0], "scan"),
    "cumulative": (lambda x: jnp.cumsum(dense(x), 0), "cumsum"),
    "products": (lambda x: dense(x) @ dense(x).T, "dot_general"),
    "one maximum for all": (lambda x: jnp.exp(dense(x) - dense(x).max()), "reduce_max"),
    "groups": (lambda x: jax.vmap(lambda g: jax.nn.softmax(dense(g), 0))(x.reshape(-1, 2, 3, 4)).reshape(-1, 4), "max"),
}
MIXING_BY_NUMBERS = {
    "size of the batch": (lambda x: -dense(x) if len(x) > 1 else dense(x), "neg"),
    "divided by the size": (lambda x: dense(x) / len(x), "div"),
    "first image": (lambda x: dense(x - x[:1]), "slice"),
    "rolled": (lambda x: jnp.roll(dense(x), 1, 0), "slice"),
    "a branch for all": (lambda x: jax.lax.cond(x.sum() > 10, lambda v: -v, lambda v: v, dense(x)), "cond"),
}
SHAPE = (3, 4)


def verdict(f, n=8, alone=True):
    return batch_dependence(f, jax.ShapeDtypeStruct((n, *SHAPE), jnp.float32), alone=alone)[0]


@pytest.mark.parametrize("name", HONEST)
def test_independent_networks_are_told_from_their_jaxpr(name):
    assert verdict(HONEST[name])[:2] == ("independent", "")


@pytest.mark.parametrize("name", MIXING)
def test_mixing_networks_are_told_from_their_jaxpr(name):
    f, operation = MIXING[name]
    found = verdict(f, alone=name != "groups")
    assert found.kind == "mixing"
    assert operation in found.cause
    assert "test_independence.py" in found.cause


@pytest.mark.parametrize("name", [name for name in MIXING if name != "groups"])
def test_margins_refuse_mixing_networks_also_inside_jit(name):
    f = MIXING[name][0]
    bound = jax.jit(lambda x: mt.margins(mt.ibp, f)(mt.linf_ball(x, 0.1), jnp.zeros(len(x), int)))
    with pytest.raises(BoundsError, match=r"(?s)mixes the images of a batch: .* running averages"):
        jax.eval_shape(bound, jax.ShapeDtypeStruct((8, *SHAPE), jnp.float32))


def images(n):
    return RNG.uniform(size=(n, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize("name", OPEN)
def test_numbers_clear_independent_networks_that_the_jaxpr_leaves_open(name):
    found = verdict(OPEN[name])
    assert found.kind == "undecided"
    compare_batches(OPEN[name], images(2), [2, 8], found)


@pytest.mark.parametrize("name", MIXING_BY_NUMBERS)
def test_numbers_find_what_the_jaxpr_leaves_open(name):
    f, operation = MIXING_BY_NUMBERS[name]
    ball = mt.linf_ball(jnp.asarray(images(5)), 0.1)
    with pytest.raises(BoundsError, match=f"change by .* between an image alone and .*'{operation}'"):
        mt.margins(mt.ibp, f)(ball, jnp.zeros(5, int))


def test_a_batch_of_one_is_judged_as_one_of_two():
    ball = mt.linf_ball(jnp.asarray(images(1)), 0.1)
    with pytest.raises(BoundsError, match="mixes the images"):
        mt.margins(mt.ibp, MIXING["mean"][0])(ball, jnp.zeros(1, int))


class Normalized(nn.Module):
    running: bool

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=self.running)(nn.Conv(4, (3, 3))(x)))
        x = nn.GroupNorm(2)(nn.max_pool(x, (2, 2), (2, 2)))
        x = nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x.reshape(len(x), -1, 4)))
        return nn.Dense(3)(x.mean(1))


def test_batch_norm_is_refused_in_training_mode_alone():
    shape = jax.ShapeDtypeStruct((2, 4, 4, 1), jnp.float32)
    variables = jax.eval_shape(Normalized(True).init, jax.random.key(0), shape)
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), variables)

    def verdict_on(net):
        return batch_dependence(lambda x: net.apply(variables, x, mutable=["batch_stats"])[0], shape)[0]

    running, training = verdict_on(Normalized(True)), verdict_on(Normalized(False))
    assert running.kind == "independent"
    assert training.kind == "mixing"
    assert "Normalized.__call__" in training.cause


def test_sums_in_another_order_are_rounding_and_not_mixing():
    deep = [jnp.asarray(RNG.normal(size=(64, 64)) / 8, jnp.float32) for _ in range(8)]

    def net(x, dtype):
        x = jnp.tile(jnp.reshape(x, (len(x), -1)), 6)[:, :64].astype(dtype)
        for w in deep:
            x = jax.nn.relu(x @ w.astype(dtype) + 0.01)
        return x.astype(jnp.float32)

    for dtype in (jnp.float32, jnp.bfloat16):
        compare_batches(
            lambda x, d=dtype: net(jnp.asarray(x), d), images(3), [2, 33], verdict(lambda x, d=dtype: net(x, d))
        )


def test_steps_that_rounding_alone_can_tip_are_not_mixing():
    drift = iter(range(10**6))

    def net(x):  # each call rounds otherwise, as batches of other sizes may
        return np.sign(np.asarray(x).sum((1, 2)) - x.sum((1, 2)) * (1 + 1e-7 * (next(drift) % 3 - 1)))[:, None]

    compare_batches(net, images(3), [4], verdict(dense)._replace(eps=1e-9))


@pytest.mark.parametrize(
    "call",
    [
        lambda: mt.ibp(lambda w, x: x @ w)(SMALL, jnp.ones(4)),
        lambda: mt.crown(lambda w, x: x @ w).rows(jnp.eye(4), SMALL, jnp.ones(4)),
        lambda: mt.symbolic(lambda w, x: x @ w).differences(0, SMALL, jnp.ones(4)),
        lambda: mt.alpha_crown(lambda x: x * 2)(jnp.ones(4)),
        lambda: mt.crown_ibp(jax.nn.relu).hidden(jnp.ones(4)),
        lambda: mt.crown(jax.nn.relu).coefficients(jnp.eye(4), jnp.ones(4)),
        lambda: mt.bounds.property_margin(mt.crown, lambda x: x, mt.bounds.inequality([1.0]))(jnp.ones(1)),
        lambda: mt.ibp(lambda: jnp.ones(3))(),
    ],
)
def test_bounds_without_an_interval_are_refused(call):
    with pytest.raises(BoundsError, match=re.escape("None of the arguments is an Interval") + ".*linf_ball"):
        call()


def program(rng, n):
    """A random function of images `[n, 2, 3]` that moves, joins and sums entries along any axes; `[n, any]`."""

    def step(kind, x, seed):
        rng = np.random.default_rng(seed)
        axis = int(rng.integers(x.ndim))
        size = x.shape[axis]
        match kind:
            case "transpose":
                return x.transpose(rng.permutation(x.ndim))
            case "merge":
                cut = int(rng.integers(x.ndim))
                return x.reshape(*x.shape[:cut], -1, *x.shape[cut + 2 :]) if cut + 2 <= x.ndim else x
            case "split":
                factor = int(rng.choice([d for d in range(1, size + 1) if size % d == 0]))
                return x.reshape(*x.shape[:axis], factor, size // factor, *x.shape[axis + 1 :])
            case "twice":
                return jnp.concatenate([x, jnp.sin(x)], axis)
            case "half":
                return jax.lax.slice_in_dim(x, 0, max(size // 2, 1), axis=axis)
            case "sum":
                return x.sum(axis, keepdims=True) + 0 * x if rng.random() < 0.3 else x
            case "sums":
                return jnp.cumsum(x, axis) if rng.random() < 0.3 else x
            case "back":
                return jnp.flip(x, axis) if rng.random() < 0.5 else x
            case "matrix":
                w = np.random.default_rng(seed).normal(size=(x.shape[-1], 3)).astype(np.float32)
                return x @ w
            case "square":
                return x[..., :, None] * x[..., None, :] if x.size < 500 else x
            case "rows":
                return jax.lax.map(jnp.tanh, x)
            case "pick":
                return jnp.take(x, np.random.default_rng(seed).permutation(size), axis)
        raise AssertionError(kind)

    kinds = ("transpose", "merge", "split", "twice", "half", "sum", "sums", "back", "matrix", "square", "rows", "pick")
    chosen = [(str(rng.choice(kinds)), int(rng.integers(2**31))) for _ in range(rng.integers(1, 7))]

    def f(x):
        for kind, seed in chosen:
            x = step(kind, x, seed) if x.ndim else x
        return x.reshape(n, -1) if x.size % n == 0 else jnp.broadcast_to(x.reshape(1, -1), (n, x.size))

    return f


def influence(f, x):
    """Which outputs change with which images, bool `[n, n]`."""
    f = jax.jit(f)
    base = np.asarray(f(x))
    return np.stack([(np.asarray(f(x.at[i].add(0.37))) != base).any(-1) for i in range(len(x))], 1)


@pytest.mark.parametrize("seed", range(40))
def test_verdicts_on_random_programs_are_what_changing_single_images_shows(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.choice([4, 6]))
    f = program(rng, n)
    found, _ = batch_dependence(f, jax.ShapeDtypeStruct((n, 2, 3), jnp.float32), alone=False)
    apart = not (influence(f, jnp.asarray(rng.normal(size=(n, 2, 3)), jnp.float32)) & ~np.eye(n, dtype=bool)).any()
    assert found.kind == "undecided" or (found.kind == "independent") == apart
