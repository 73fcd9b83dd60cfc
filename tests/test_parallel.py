"""The same numbers on any number of devices; conftest provides four."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_networks as networks
from experiments import experiment
from jax.sharding import PartitionSpec

import mixtrain_jax as mt
from mixtrain_jax import certify, losses, mixing, parallel, subsample
from mixtrain_jax.attacks import pgd
from mixtrain_jax.certify import Threat
from mixtrain_jax.checkpoints import Checkpoints
from mixtrain_jax.losses import Values
from mixtrain_jax.objectives import Term
from mixtrain_jax.report.display import Display
from mixtrain_jax.training.build import prepare
from mixtrain_jax.training.program import dispatches, one_step
from mixtrain_jax.training.resume import Saved, restore, untrained
from mixtrain_jax.training.state import Totals, TrainState
from mixtrain_jax.training.steps import Batch, make_steps

STEPS = 20
# 50 examples and 5 robust ones divide evenly over no more than one device.
TINY = {"width": 8, "batch_size": 50, "robust_examples": 5, "epochs": 1, "holdout": 97, "measure": 50}
ALL_AT_ONCE = {"bound": "crown_ibp", "subsample": "epoch", "flip": True, "crop": 1, "replace": True}
# On another number of devices sums are taken in another order: an error of some units in the last place of each
# gradient (2**-24), which 20 steps of Adam of at most 0.005 cannot make larger than this.
CLOSE = 2e-5


@pytest.fixture(autouse=True, scope="module")
def _quick():
    jax.config.update("jax_disable_most_optimizations", True)  # compiling takes longer than all that runs
    with jax.numpy_dtype_promotion("standard"):  # optax promotes
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def mesh_of(count):
    return parallel.data_mesh(jax.devices()[:count])


@functools.cache
def prepared(count, **fields):
    return prepare(experiment(**{**TINY, **fields}), mesh=mesh_of(count))


def trained(setup, first=0, last=STEPS, state=None):
    state = untrained(setup).state if state is None else state
    state = jax.tree.map(jnp.copy, state)
    for examples in setup.feed(first, last):
        state, _ = one_step(setup, state, examples, list(setup.objective))
    return state


def close(a, b, tolerance=CLOSE):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=tolerance), a, b)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(parallel.fetch(tree))]


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        ({}, (2, 3, 4)),
        ({"robust_group": 1}, (4,)),
        ({"trainer": "pgd", "train_attack_steps": 2}, (4,)),
        (ALL_AT_ONCE, (4,)),
    ],
    ids=["mixtrain", "groups", "pgd", "pool of an epoch, augmented"],
)
def test_parameters_are_those_of_one_device(fields, counts):
    setup = prepared(1, **fields)
    one = trained(setup)
    assert (
        max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (one.params, setup.initial.params)), strict=True))
        > 0.02
    )
    for count in counts:
        many = parallel.fetch(trained(prepared(count, **fields)))
        close(parallel.fetch(one.params), many.params)
        (*_, name) = setup.objective
        close(one.totals.means()[f"{name}_loss"], many.totals.means()[f"{name}_loss"])
        assert int(many.step) == STEPS


@pytest.mark.parametrize("trainer", ["standard", "pgd", "robust", "mixtrain"])
def test_a_batch_of_one_example_is_trained_on_by_three_devices_as_by_one(trainer):
    ended = []
    for count in (1, 3):
        setup = prepared(count, trainer=trainer, batch_size=1, robust_examples=1, train_attack_steps=1, width=4)
        state = jax.tree.map(jnp.copy, setup.initial)
        for _, dispatch in dispatches(setup, state, 0, 3):
            state, _ = dispatch(state)
        ended.append(parallel.fetch(state))
    one, three = ended
    assert (int(one.step), int(one.bad.skipped)) == (3, 0)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (one.params, setup.initial.params)), strict=True))
    close(one.params, three.params)
    close(one.totals, three.totals)


class OfLabels:
    """A loss whose gradient is not 0 for the labels of the examples that were drawn."""

    method = None

    def __call__(self, context):
        own = context.logits_fn(context.images)[jnp.arange(len(context.labels)), context.labels]
        return Values(jax.nn.softplus(-own), own > 0)


def of_labels(mesh, k, n):
    """The one term of a step on the labels of the examples that were drawn, and a state."""
    rule, tx = mixing.convex(0.5), optax.sgd(0.1)
    objective = {"labels": Term(OfLabels(), examples=k)}
    steps = make_steps(
        lambda params, images: jnp.tile(params, (len(images), 1)),
        objective,
        **{"threat": Threat(0.1), "eps": optax.constant_schedule(0.1)},
        **{"key": jax.random.key(7), "rule": rule, "tx": tx, "steps_per_epoch": 1.0, "mesh": mesh},
    )
    params, zero = jnp.zeros(n), jnp.zeros(())
    totals = Totals.zeros(objective)
    state = TrainState(jnp.int32(3), params, tx.init(params), rule.init(), zero, totals, jnp.int32(-1))
    return steps.terms["labels"], parallel.put(state, mesh, "replicated")


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_subsample_is_the_one_that_one_device_draws(count):
    n, k, mesh = 14, 5, mesh_of(count)
    term, state = of_labels(mesh, k, n)
    rows = np.minimum(np.arange(parallel.padded(n, mesh)), n - 1)
    pool = Batch(*parallel.put((np.zeros((len(rows), 2, 2, 1), np.float32), rows.astype(np.int32)), mesh, "rows"), n)
    drawn = subsample.draw(jax.random.fold_in(jax.random.key(7), 3), n, k)
    gradient = np.asarray(term(state, pool).gradient)
    # The derivative of softplus(-margin) at 0, over k, however often an example fills up.
    np.testing.assert_allclose(gradient, np.isin(np.arange(n), drawn) * -0.5 / k, rtol=1e-6)


def compiled(setup, name):
    """What devices send in a step, each time the kind and how many numbers, and the operations of each of them."""
    batch, _ = next(iter(setup.feed(0, 1)))
    step = setup.steps.terms[name]
    jitted = step if hasattr(step, "lower") else step.__wrapped__
    program = jitted.lower(setup.initial, batch).compile()
    sent = []
    for shapes, kind in re.findall(
        r"= (.+?) (all-[a-z]+|reduce-scatter|collective-[a-z]+)(?:-start)?\(", program.as_text()
    ):
        arrays = [[int(size) for size in x.split(",") if size] for x in re.findall(r"\w\d+\[([\d,]*)\]", shapes)]
        sent.append((kind, sum(int(np.prod(x)) for x in arrays)))
    return sorted(sent), program.cost_analysis()["flops"]


@pytest.mark.parametrize("fields", [{}, {"model": "small", "width": 8, "bound": "crown_ibp"}], ids=["ibp", "crown_ibp"])
def test_devices_send_gradients_and_the_subsample_and_nothing_else(fields):
    fields = {"batch_size": 128, "robust_examples": 32, "width": 256, **fields}
    one, four = prepared(1, **fields), prepared(4, **fields)
    params = sum(x.size for x in jax.tree.leaves(four.initial.params))
    sent, flops = compiled(four, "clean")
    assert sent == [("all-reduce", params + 2)]  # and the loss and the accuracy
    assert flops < 0.27 * compiled(one, "clean")[1]
    sent, flops = compiled(four, "robust")
    # Where the examples of the subsample are, their labels, their images, and once more the gradient, in the several
    # parts that lower and upper bounds make of it. What was sent from within a bound could not be sent with those.
    *subsample_, (kind, gradient) = sent
    assert subsample_ == [("all-gather", 32), ("all-gather", 32), ("all-reduce", 32), ("all-reduce", 32 * 64)]
    assert kind == "all-reduce"
    assert params < gradient < 4 * params
    # A quarter, and what every device does: drawing the subsample, and folding the last layer.
    assert flops < 0.29 * compiled(one, "robust")[1]


def test_split_parameters_are_those_of_whole_ones_and_take_a_share_of_the_memory():
    fields = {"width": 1024}
    whole, split = (trained(prepared(4, params=layout, **fields), last=8) for layout in ("replicated", "fsdp"))
    close(parallel.fetch(whole.params), parallel.fetch(split.params))
    shared = [leaf for leaf in jax.tree.leaves(split) if not leaf.is_fully_replicated]
    assert len(shared) == 3  # the large kernel and both moments of Adam
    assert all(leaf.shape == (64, 1024) and leaf.addressable_shards[0].data.shape == (64, 256) for leaf in shared)
    kernel = prepared(4, params="fsdp", **fields).steps.skipped(split).gradient["params"]["Dense_0"]["kernel"]
    assert kernel.sharding == shared[0].sharding


def test_layouts():
    mesh = mesh_of(4)
    assert [parallel.padded(n, mesh) for n in (1, 4, 5, 50)] == [4, 4, 8, 52]
    tree = {
        "wide": np.zeros((6, 2**14)),
        "odd": np.zeros((7, 2**14 + 1)),
        "small": np.zeros(2**15),
        "first": np.zeros((2**14, 8, 3)),
    }
    specs = {name: x.spec for name, x in parallel.shardings(tree, mesh, "fsdp").items()}
    assert specs == {
        "wide": PartitionSpec(None, "data"),
        "odd": PartitionSpec(),
        "small": PartitionSpec(),
        "first": PartitionSpec("data"),
    }
    rows = parallel.put(np.arange(8), mesh, "rows")
    assert [shard.data.tolist() for shard in rows.addressable_shards] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert parallel.own_rows(8, mesh).tolist() == list(range(8))
    assert bits(parallel.put_own(np.arange(8), mesh)) == bits(rows)


@pytest.mark.parametrize(("before", "after", "layout"), [(4, 1, "fsdp"), (1, 4, "fsdp"), (2, 4, "replicated")])
def test_a_checkpoint_goes_on_on_another_number_of_devices(before, after, layout, tmp_path):
    fields = {"width": 1024, "params": layout}
    state, checkpoints = trained(prepared(before, **fields), last=3), Checkpoints(tmp_path)
    checkpoints.save(3, Saved(np.int64(3), np.float64(0), state, None))
    setup = prepared(after, **fields)
    restored = restore(setup, checkpoints, Display()).state
    assert bits(restored) == bits(state)
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, setup.initial)
    close(
        parallel.fetch(trained(setup, 3, 6, restored).params),
        parallel.fetch(trained(prepared(1, **fields), last=6).params),
    )


def test_certification_is_that_of_one_device(key):
    logits_fn = networks.mlp(3, 9, 4)
    split = networks.labelled(logits_fn, networks.images(4, 30))
    methods, attacks = certify.methods(["ibp", "crown"]), {"pgd": functools.partial(pgd, steps=5, restarts=2)}
    found = []
    for count in (1, 3):
        options = {"batch_size": 8, "spread": parallel.data_parallel(mesh_of(count))}
        at = certify.evaluate(
            key, logits_fn, split, Threat(0.05, (0.0, 1.0)), attacks=attacks, methods=methods, **options
        )
        curve = certify.measure_curve(
            key, logits_fn, split, at, methods=certify.methods(["ibp"]), points=3, attack_steps=2, **options
        )
        found.append((at, curve))
    (one, curve_of_one), (many, curve_of_many) = found
    assert 0 < one.verified.sum() <= one.attacked.sum() < 30
    for name in ("clean", "attacked", "verified", "proved_by", "broken_by", "seen_as"):
        np.testing.assert_array_equal(getattr(one, name), getattr(many, name))
    np.testing.assert_allclose(one.margin, many.margin, rtol=0, atol=1e-5)
    np.testing.assert_allclose(one.adversarial, many.adversarial, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(curve_of_one.attacked, curve_of_many.attacked)
    np.testing.assert_allclose(curve_of_one.radius, curve_of_many.radius, atol=1e-4)


def robust_loss_of(method):
    """(params, images [n, d], labels [n]) -> mean robust loss."""

    def loss(params, images, labels):
        def logits_fn(x):
            return jnp.tanh(x @ params["a"]) @ params["b"]

        return losses.robust_loss(mt.margins(method, logits_fn)(mt.linf_ball(images, 0.1), labels)).mean()

    return loss


def network():
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(5, 7)).astype(np.float32), "b": rng.normal(size=(7, 3)).astype(np.float32)}
    return params, (rng.normal(size=(8, 5)).astype(np.float32), rng.integers(0, 3, 8).astype(np.int32))


WRAPS = [f"{where} {wrap}" for wrap in ("vmap", "pmap", "shard_map") for where in ("inside", "outside")]


@pytest.mark.parametrize(
    ("method", "wraps"),
    [
        (mt.ibp, ["sharded jit", *WRAPS]),
        (mt.crown_ibp, ["inside pmap", "inside shard_map"]),
        (mt.symbolic, ["outside pmap"]),
        (mt.crown, ["outside shard_map"]),
    ],
    ids=["ibp", "crown_ibp", "symbolic", "crown"],
)
def test_gradients_of_bounds_are_the_same_inside_and_outside_of_parallel_programs(method, wraps):
    params, (images, labels) = network()
    loss = robust_loss_of(method)
    gradient = jax.grad(loss)
    spec, mesh = PartitionSpec("data"), mesh_of(4)
    rows = parallel.put((images, labels), mesh, "rows")
    parts = images.reshape(4, 2, 5), labels.reshape(4, 2)
    # Rows that a bound makes itself have no axis that varies, so the check of those would refuse it.
    in_shards = functools.partial(jax.shard_map, mesh=mesh, in_specs=(PartitionSpec(), spec, spec), check_vma=False)
    in_parts = {"in_axes": (None, 0, 0)}

    def local(params, images, labels):
        return loss(params, images, labels)[None]

    def averaged(params, images, labels):
        return jax.lax.pmean(gradient(params, images, labels), "data")

    def first(tree):
        return jax.tree.map(lambda x: x[0], tree)

    def of_mean(losses_of, *batch):
        return jax.grad(lambda params: losses_of(params, *batch).mean())

    programs = {
        "sharded jit": lambda params: gradient(params, *rows),
        "inside vmap": lambda params: first(jax.vmap(averaged, axis_name="data", **in_parts)(params, *parts)),
        "outside vmap": of_mean(jax.vmap(loss, **in_parts), *parts),
        "inside pmap": lambda params: first(jax.pmap(averaged, "data", **in_parts)(params, *parts)),
        "outside pmap": of_mean(jax.pmap(loss, **in_parts), *parts),
        "inside shard_map": lambda params: in_shards(averaged, out_specs=PartitionSpec())(params, *rows),
        "outside shard_map": of_mean(in_shards(local, out_specs=spec), *rows),
    }
    expected = jax.jit(gradient)(params, images, labels)
    for name in wraps:
        found = jax.jit(programs[name])(params)
        compare = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6, err_msg=name)
        jax.tree.map(compare, found, expected)


def test_a_step_of_pmap_is_that_of_one_device():
    params, (images, labels) = network()
    mean, tx = robust_loss_of(mt.ibp), optax.adam(0.01)

    def loss(params, batch, key):
        return mean(params, *batch)

    step = parallel.pmap_step(loss, tx)
    one, state = params, tx.init(params)
    many, many_state = (jax.tree.map(lambda x: np.stack([x] * 4), tree) for tree in (one, state))
    keys = jax.random.split(jax.random.key(0), 4)
    single = jax.jit(jax.value_and_grad(loss))
    for _ in range(3):
        many, many_state, value = step(many, many_state, (images.reshape(4, 2, 5), labels.reshape(4, 2)), keys)
        expected, gradient = single(one, (images, labels), keys[0])
        updates, state = tx.update(gradient, state, one)
        one = optax.apply_updates(one, updates)
        np.testing.assert_allclose(value, np.full(4, expected), rtol=1e-6)
    for i in range(4):
        close(one, jax.tree.map(lambda x, i=i: x[i], many), 1e-6)
