import functools
import io
import json
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from experiments import experiment
from rich.console import Console

from mixtrain_jax import bounds, cli, losses, mixing, parallel, subsample
from mixtrain_jax.attacks import descend
from mixtrain_jax.bounds import linf_ball, margins
from mixtrain_jax.checkpoints import Checkpoints
from mixtrain_jax.data.order import batch_indices, subset_indices
from mixtrain_jax.errors import ConfigError, NonFiniteError
from mixtrain_jax.fingerprints import by_name, fingerprint
from mixtrain_jax.losses import Attacked, Bounded, Clean, Context, Values
from mixtrain_jax.mixing import Metrics, MixRule
from mixtrain_jax.objectives import Term, present
from mixtrain_jax.report.display import Display
from mixtrain_jax.threat import Threat
from mixtrain_jax.training import build, loop, pace
from mixtrain_jax.training.build import make_objective, make_rule, prepare
from mixtrain_jax.training.finish import finish
from mixtrain_jax.training.loop import train
from mixtrain_jax.training.resume import restore
from mixtrain_jax.training.run import run
from mixtrain_jax.training.rundir import RunDir
from mixtrain_jax.training.signals import Stop
from mixtrain_jax.training.state import NonFinite, Totals, TrainState, upgraded
from mixtrain_jax.training.steps import Batch, grouped, jit_once, make_steps

ONE = parallel.data_mesh(jax.devices()[:1])
KEY, K, N, EPS = jax.random.key(5), 4, 16, 0.05
TERMS = ("clean", "robust")
TINY = {
    "holdout": 97,
    "width": 8,
    "bound": "ibp",
    "batch_size": 100,
    "robust_examples": 4,
    "epochs": 2,
    "points": 3,
    "checkpoint_seconds": 1e9,
    "certify": ("ibp",),
    "attack_steps": 1,
    "attack_restarts": 1,
}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(8)(x.reshape((len(x), -1)))))


NET = Net()


def dataset():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(40, 3, 3, 1)).astype(np.float32)
    return jnp.asarray(images), jnp.asarray(rng.integers(0, 3, 40), jnp.int32)


@functools.cache
def default_steps():
    return steps_of()


@functools.cache
def steps_of_all():
    return steps_of(k=N)


@functools.cache
def default_params():
    return jax.jit(NET.init)(jax.random.key(0), dataset()[0][:1])


def steps_of(
    rule=None,
    tx=None,
    *,
    loss=None,
    k=K,
    replace=False,
    eps=EPS,
    steps_per_epoch=2.5,
    bad_steps=2,
    groups=(None, None),
):
    objective = {
        "clean": Term(Clean(), microbatch=groups[0]),
        "robust": Term(loss or Bounded("ibp"), examples=k, replace=replace, microbatch=groups[1]),
    }
    return make_steps(
        NET.apply,
        objective,
        threat=Threat(eps),
        eps=optax.constant_schedule(eps),
        key=KEY,
        rule=rule or mixing.convex(0.3),
        tx=tx or optax.sgd(0.1, momentum=0.9),
        steps_per_epoch=steps_per_epoch,
        bad_steps=bad_steps,
    )


def state_of(rule=None, tx=None, step=0):
    params = copied(default_params())
    return TrainState(
        step=jnp.int32(step),
        params=params,
        opt_state=(tx or optax.sgd(0.1, momentum=0.9)).init(params),
        mix_state=(rule or mixing.convex(0.3)).init(),
        gap=jnp.zeros((), jnp.float32),
        totals=Totals.zeros(TERMS),
        bad=NonFinite.none(params, TERMS),
    )


def copied(tree):
    return jax.tree.map(jnp.copy, tree)


def examples(data, indices):
    return Batch(*(x[indices] for x in data))


def close(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **{"rtol": 1e-4, "atol": 1e-6, **tolerance}), a, b)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


BATCH = jnp.arange(20, 20 + N, dtype=jnp.int32)


def test_every_step_traces_once_over_many():
    rule, data = mixing.constrained(0.9, optax.sgd(0.1)), dataset()
    steps, state = steps_of(rule), state_of(rule)
    absent = steps.skipped(state)
    for i in range(5):
        clean = steps.terms["clean"](state, examples(data, BATCH + i % 3))
        robust = steps.terms["robust"](state, examples(data, BATCH)) if i % 2 else absent
        state = steps.update(state, {"clean": clean, "robust": robust})
    assert int(state.step) == 5
    assert float(state.totals.steps) == 5
    assert (int(state.bad.skipped), int(state.bad.step)) == (0, -1)


@pytest.mark.parametrize("name", ["clean", "robust"])
def test_a_batch_of_another_size_is_refused(name):
    steps, state, data = steps_of(), state_of(), dataset()
    steps.terms[name](state, examples(data, BATCH))
    with pytest.raises(RuntimeError, match=f"The step '{name}' was traced twice"):
        steps.terms[name](state, examples(data, BATCH[:-1]))


def test_jit_once_takes_one_layout_only():
    twice = jit_once(lambda x: 2 * x)
    assert float(twice(jnp.float32(1))) == 2
    assert float(twice(jnp.float32(3))) == 6
    with pytest.raises(RuntimeError, match="traced twice"):
        twice(jnp.int32(1))


def test_clean_part_is_that_of_a_straightforward_loss():
    state, data = state_of(), dataset()
    images, labels = data[0][BATCH], data[1][BATCH]

    def loss(params):
        logits = NET.apply(params, images)
        own = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
        return jnp.mean(jnp.log(jnp.exp(logits).sum(-1)) - own)

    part = default_steps().terms["clean"](state, examples(data, BATCH))
    value, gradient = jax.value_and_grad(loss)(state.params)
    close(part.loss, value)
    close(part.gradient, gradient)
    assert float(part.accuracy) == np.mean(np.asarray(NET.apply(state.params, images)).argmax(-1) == labels)


def robust_losses(params, data, chosen):
    ball = linf_ball(data[0][chosen], EPS, (0.0, 1.0))
    return losses.robust_loss(margins(bounds.ibp, functools.partial(NET.apply, params))(ball, data[1][chosen]))


@pytest.mark.parametrize(("k", "replace"), [(1, False), (4, False), (4, True)])
def test_robust_part_is_the_mean_over_k_examples_of_the_batch(k, replace):
    data = dataset()
    steps, state = steps_of(k=k, replace=replace), state_of(step=7)
    part = steps.terms["robust"](state, examples(data, BATCH))
    chosen = BATCH[subsample.draw(jax.random.fold_in(KEY, 7), N, k, replace=replace)]
    assert len(chosen) == k

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return robust_losses(params, data, chosen).mean()

    value, gradient = loss(state.params)
    close(part.loss, value)
    close(part.gradient, gradient)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(part.gradient))
    assert any((np.asarray(leaf) != 0).any() for leaf in jax.tree.leaves(part.gradient))


@pytest.mark.parametrize("replace", [False, True])
def test_the_subsampled_loss_is_an_unbiased_estimate_of_that_of_all(replace):
    """Over 600 draws, its mean and that of its gradient lie within 4 standard errors of the full ones."""
    data, steps = dataset(), steps_of(k=K, replace=replace)
    full = steps_of_all().terms["robust"](state_of(), examples(data, BATCH))
    batch, state = examples(data, BATCH), state_of()
    drawn = [jax.device_get(steps.terms["robust"](state._replace(step=jnp.int32(i)), batch)) for i in range(600)]
    for name in ("loss", "gradient"):
        estimates = np.stack([np.concatenate([np.ravel(x) for x in jax.tree.leaves(getattr(d, name))]) for d in drawn])
        expected = np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.device_get(getattr(full, name)))])
        error = estimates.std(0) / len(drawn) ** 0.5
        z = np.abs(estimates.mean(0) - expected) / np.maximum(error, 1e-6)
        assert error.max() > 1e-4
        assert z.max() < 4.5
        assert (z < 3).mean() > 0.98


@pytest.mark.parametrize("name", ["clean", "robust"])
def test_groups_of_examples_add_up_to_the_same_part(name):
    images, labels = dataset()
    batch = Batch(images[:7], labels[:7])
    steps = (steps_of(k=7, groups=(group, group)) for group in (None, 1, 3, 4, 7, 50))
    whole, *parts = (some.terms[name](state_of(), batch) for some in steps)
    assert 0 < float(whole.accuracy) < 1
    for part in parts:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), part, whole)


@pytest.mark.parametrize(
    ("count", "group", "rows", "size"), [(7, 3, 9, 3), (8, 4, 8, 4), (5, 4, 6, 3), (4, 9, 4, None)]
)
def test_groups_come_out_even_and_weigh_every_example_once(count, group, rows, size):
    images, labels = dataset()
    (seen, classes, weights, numbers), found = grouped(Batch(images[:count], labels[:count]), group, ONE)
    assert (len(seen), found) == (rows, size)
    np.testing.assert_allclose(weights, [1 / count] * count + [0] * (rows - count), rtol=1e-6)
    np.testing.assert_array_equal(seen[:count], images[:count])
    np.testing.assert_array_equal(classes[:count], labels[:count])
    np.testing.assert_array_equal(numbers, np.arange(rows))


class Random:
    """A loss that is nothing but a draw."""

    method = None

    def __call__(self, context):
        nothing = context.logits_fn(context.images)[:, 0] * 0
        return Values(nothing + jax.random.uniform(context.key), nothing == 0)


def test_attacks_of_several_groups_start_from_other_points():
    images, labels = dataset()
    batch = Batch(images[:6], labels[:6])
    steps = (steps_of(loss=Random(), k=6, groups=(None, group)) for group in (3, 6))
    losses = [float(some.terms["robust"](state_of(), batch).loss) for some in steps]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_robust_part_draws_other_examples_at_another_step():
    steps, data = steps_of(k=1), dataset()
    seen = {float(steps.terms["robust"](state_of(step=step), examples(data, BATCH)).loss) for step in range(8)}
    assert len(seen) > 3


def context(key, apply, params, batch, eps):
    return Context(key, apply, params, batch.images, batch.labels, jnp.float32(eps), Threat(eps))


def test_the_attacked_loss_of_a_linear_network_is_that_of_the_corner(key):
    rng = np.random.default_rng(0)
    w = rng.normal(size=(9, 2)).astype(np.float32)
    images = rng.uniform(0.3, 0.7, size=(5, 3, 3, 1)).astype(np.float32)
    labels = np.array([0, 1, 1, 0, 1], np.int32)
    batch = Batch(jnp.asarray(images), jnp.asarray(labels))
    found = Attacked(7)(context(key, lambda w, x: x.reshape((len(x), -1)) @ w, w, batch, 0.1))
    rows = np.where(labels[:, None] == 0, w[:, 0] - w[:, 1], w[:, 1] - w[:, 0])
    margins = (images.reshape(5, -1) * rows).sum(1) - 0.1 * np.abs(rows).sum(1)
    np.testing.assert_allclose(found.loss, np.log1p(np.exp(-margins)), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.correct, margins > 0)


@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_bounds_lie_above_what_an_attack_finds(key, eps):
    state, batch = state_of(), examples(dataset(), BATCH)
    proved, found = (loss(context(key, NET.apply, state.params, batch, eps)) for loss in (Bounded("ibp"), Attacked(10)))
    assert proved.loss.shape == found.loss.shape == (N,)
    assert (np.asarray(proved.loss) >= np.asarray(found.loss) - 1e-5).all()
    assert (np.asarray(proved.correct) <= np.asarray(found.correct)).all()
    if eps == 0:
        np.testing.assert_allclose(proved.loss, found.loss, rtol=1e-4, atol=1e-5)


def test_adversarial_training_takes_the_gradient_at_the_attacked_images():
    steps = steps_of(loss=Attacked(3), k=N)
    state, batch = state_of(step=4), examples(dataset(), BATCH)
    part = steps.terms["robust"](state, batch)
    ball = linf_ball(batch.images, EPS, (0.0, 1.0))
    logits_fn = functools.partial(NET.apply, state.params)
    images = descend(jax.random.fold_in(jax.random.fold_in(KEY, 4), 0), logits_fn, batch.labels, ball, steps=3)
    assert (np.asarray(images) >= np.asarray(ball.lower)).all()
    assert (np.asarray(images) <= np.asarray(ball.upper)).all()
    clean = default_steps().terms["clean"](state, Batch(images, batch.labels))
    close(part.loss, clean.loss)
    close(part.gradient, clean.gradient)
    assert float(part.loss) > float(default_steps().terms["clean"](state, batch).loss)


def test_robust_loss_at_radius_zero_of_all_is_the_clean_loss():
    state, data, steps = state_of(), dataset(), steps_of(k=N, eps=0.0)
    clean, robust = (
        steps.terms["clean"](state, examples(data, BATCH)),
        steps.terms["robust"](state, examples(data, BATCH)),
    )
    close(robust.loss, clean.loss)
    close(robust.gradient, clean.gradient)


def test_update_is_optax_on_the_mixed_gradient():
    share = 0.3
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9))
    steps, state, data = steps_of(mixing.convex(share), tx), state_of(tx=tx), dataset()
    expected = copied(state)
    sums = np.zeros(2)
    for _ in range(3):
        clean, robust = (
            steps.terms["clean"](state, examples(data, BATCH)),
            steps.terms["robust"](state, examples(data, BATCH)),
        )
        mixed = jax.tree.map(lambda c, r: (1 - share) * c + share * r, clean.gradient, robust.gradient)
        moves, opt_state = tx.update(mixed, expected.opt_state, expected.params)
        expected = expected._replace(params=optax.apply_updates(expected.params, moves), opt_state=opt_state)
        sums += float(clean.loss), float(robust.loss)
        state = steps.update(state, {"clean": clean, "robust": robust})
        close(state.params, expected.params)
        close(state.opt_state, expected.opt_state)
    means = state.totals.means()
    np.testing.assert_allclose([means["clean_loss"], means["robust_loss"]], sums / 3, rtol=1e-5)
    np.testing.assert_allclose(means["loss"], (1 - share) * sums[0] / 3 + share * sums[1] / 3, rtol=1e-5)
    np.testing.assert_allclose([means["clean_weight"], means["robust_weight"]], [1 - share, share], rtol=1e-5)


def test_update_without_a_robust_part_is_optax_on_the_weighed_clean_gradient():
    tx = optax.sgd(0.1)
    steps, state, data = steps_of(mixing.constant(5.0), tx), state_of(mixing.constant(5.0), tx), dataset()
    clean = steps.terms["clean"](state, examples(data, BATCH))
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, clean.gradient)
    close(steps.update(copied(state), {"clean": clean, "robust": steps.skipped(state)}).params, expected)


def test_the_rule_sees_the_step_the_epoch_and_the_losses():
    def update(signals, state):
        return {"clean": jnp.float32(1), "robust": jnp.float32(0)}, signals

    def init():
        return mixing.Signals(jnp.int32(0), jnp.float32(0), {name: Metrics(*jnp.zeros(2)) for name in TERMS})

    rule = MixRule(init, update)
    steps, data = steps_of(rule, steps_per_epoch=2.5), dataset()
    for step, epoch in ((0, 0.0), (4, 1.6), (5, 2.0), (10, 4.0)):
        state = state_of(rule, step=step)
        clean, robust = (
            steps.terms["clean"](state, examples(data, BATCH)),
            steps.terms["robust"](state, examples(data, BATCH)),
        )
        seen = steps.update(state, {"clean": clean, "robust": robust}).mix_state
        assert int(seen.step) == step
        np.testing.assert_allclose(seen.epoch, epoch, rtol=1e-6)
        found = {"clean": Metrics(*clean[:2]), "robust": Metrics(*robust[:2])}
        assert bits(seen.terms) == bits(found)
        assert seen.products is None


def poisoned_params(state, data):
    return state._replace(params=jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), state.params)), data


def poisoned_pixel(state, data):
    return state, (data[0].at[int(BATCH[0])].set(jnp.nan), data[1])


def infinite_params(state, data):
    return state._replace(params=jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.inf), state.params)), data


def moved(state):
    """What a good step moves and a bad one leaves alone."""
    return bits((state.params, state.opt_state, state.mix_state, state.totals, state.gap))


@pytest.mark.parametrize("poison", [poisoned_params, poisoned_pixel, infinite_params])
def test_what_is_not_finite_is_skipped_and_recorded(poison):
    """Two bad steps may come in a row; the third is the last that counts, and the state stands still."""
    steps, good = steps_of_all(), dataset()
    state, data = poison(state_of(step=6), good)
    before = copied(state)
    for step, streak, last in ((7, 1, 6), (8, 2, 7), (9, 3, 8), (9, 3, 8)):
        clean, robust = (
            steps.terms["clean"](state, examples(data, BATCH)),
            steps.terms["robust"](state, examples(data, BATCH)),
        )
        state = steps.update(state, {"clean": clean, "robust": robust})
        assert (int(state.step), int(state.bad.streak), int(state.bad.step)) == (step, streak, last)
        assert int(state.bad.skipped) == streak
        assert moved(state) == moved(before)
    frozen = copied(state)
    assert bits(steps.update(state, {"clean": clean, "robust": robust})) == bits(frozen)


@pytest.mark.parametrize("which", ["loss", "gradient"])
@pytest.mark.parametrize("part", [0, 1], ids=["clean", "robust"])
def test_a_loss_or_a_gradient_alone_is_bad(which, part):
    steps, state, data = default_steps(), state_of(), dataset()
    parts = [steps.terms["clean"](state, examples(data, BATCH)), steps.terms["robust"](state, examples(data, BATCH))]
    bad = jax.tree.map(lambda x: x * jnp.nan, getattr(parts[part], which))
    parts[part] = parts[part]._replace(**{which: bad})
    before = copied(state)
    after = steps.update(state, dict(zip(TERMS, parts, strict=True)))
    assert (int(after.bad.step), int(after.bad.streak)) == (0, 1)
    assert moved(after) == moved(before)


def test_good_steps_are_taken_as_if_the_bad_ones_between_them_had_not_been():
    """But that the step counts: the rule and the schedule of eps see it; here neither depends on it."""
    steps, data = default_steps(), dataset()

    def trained(bad):
        state = state_of()
        for i in range(6):
            clean, robust = steps.terms["clean"](state, examples(data, BATCH)), steps.skipped(state)
            if i in bad:
                state = steps.update(state, {"clean": clean._replace(loss=clean.loss * jnp.nan), "robust": robust})
            if i not in bad:
                state = steps.update(state, {"clean": clean, "robust": robust})
        return state

    broken, whole = trained((1, 2, 4)), trained(())
    assert (int(broken.step), int(broken.bad.skipped), int(broken.bad.streak), int(broken.bad.step)) == (6, 3, 0, 4)
    state = state_of()
    for _ in range(3):
        clean = steps.terms["clean"](state, examples(data, BATCH))
        state = steps.update(state, {"clean": clean, "robust": steps.skipped(state)})
    assert moved(broken) == moved(state) != moved(whole)
    assert float(broken.totals.steps) == 3


def test_the_record_of_a_bad_step_has_its_losses_weights_and_largest_gradients():
    steps, state, data = default_steps(), state_of(step=3), dataset()
    clean, robust = (
        steps.terms["clean"](state, examples(data, BATCH)),
        steps.terms["robust"](state, examples(data, BATCH)),
    )
    gradient = copied(clean.gradient)
    gradient["params"]["Dense_0"]["bias"] = gradient["params"]["Dense_0"]["bias"].at[2].set(-jnp.inf)
    gradient["params"]["Dense_1"]["bias"] = gradient["params"]["Dense_1"]["bias"].at[1].set(jnp.nan)
    expected = jax.tree.map(lambda c, r: np.abs(0.7 * c + 0.3 * r).max(), gradient, robust.gradient)
    bad = steps.update(state, {"clean": clean._replace(gradient=gradient), "robust": robust}).bad
    close(list(bad.largest), jax.tree.leaves(expected))
    found = dict(zip(by_name(gradient), bad.largest, strict=True))
    assert np.isposinf(found["params.Dense_0.bias"])
    assert np.isnan(found["params.Dense_1.bias"])
    assert np.isfinite(found["params.Dense_0.kernel"])
    np.testing.assert_allclose([*bad.loss.values(), *bad.weight.values()], (clean.loss, robust.loss, 0.7, 0.3))


def test_a_skipped_part_is_zero_and_like_the_params():
    steps, state = default_steps(), state_of()
    part = steps.skipped(state)
    assert jax.tree.structure(part.gradient) == jax.tree.structure(state.params)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(part))


@pytest.fixture
def promoting():
    """AdamW of optax relies on implicit promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def display():
    return Display(Console(file=io.StringIO(), width=200))


def nan_at(*steps):
    at = jnp.asarray(steps)
    return lambda config, objective, total: mixing.schedule(lambda now: jnp.where((now == at).any(), jnp.nan, 1.0))


def train_in(config, path):
    setup, folder = prepare(config, mesh=ONE), RunDir(path)
    with folder.opened(config):
        return setup, train(setup, folder, Checkpoints(folder.checkpoints), Stop(), display())


@pytest.mark.usefixtures("promoting")
def test_a_run_that_is_not_finite_names_the_step_and_the_last_good_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "make_rule", nan_at(5, 6, 7))
    config = experiment(**{**TINY, "checkpoint_seconds": 0.0, "bad_steps": 2, "subsample": "epoch"})
    with pytest.raises(
        NonFiniteError,
        match=r"at step 7 and in the 2 steps before it; the last good checkpoint is step 7 in .*checkpoints",
    ) as caught:
        run(config, tmp_path, display())
    assert caught.value.exit_code == 3
    assert str(tmp_path / "postmortem.json") in str(caught.value)
    assert Checkpoints(tmp_path / "checkpoints").latest() == 7
    assert [row["step"] for row in RunDir(tmp_path).metrics() if row["step"] > 7] == []
    assert not (tmp_path / "summary.json").exists()
    found = json.loads((tmp_path / "postmortem.json").read_text())
    setup = prepare(config)
    count = len(setup.train)
    assert found["examples"] == batch_indices(config.seed, 7, 100, count).tolist()
    assert found["pool"] == subset_indices(config.seed, 7, 100, count, 4).tolist()
    assert {name: found[name] for name in ("step", "skipped", "skipped_in_a_row", "last_good_checkpoint")} == {
        **{"step": 7, "skipped": 3, "skipped_in_a_row": 3, "last_good_checkpoint": 7}
    }
    assert (found["clean_weight"], found["robust_weight"]) == (1.0, "nan")
    assert 0 < found["clean_loss"] < 10
    assert found["largest_gradient"].keys() == by_name(setup.initial.params).keys()
    assert set(found["largest_gradient"].values()) == {"nan"}
    np.testing.assert_allclose(found["eps"], config.threat.eps * 7 / round(0.33 * 24), rtol=1e-5)
    # Two updates of seven were skipped.
    np.testing.assert_allclose(found["learning_rate"], 0.005 * (1 + np.cos(np.pi * 5 / 24)) / 2, rtol=1e-5)


@pytest.mark.usefixtures("promoting")
def test_a_run_that_is_not_finite_exits_with_3(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(build, "make_rule", nan_at(2))
    (tmp_path / "tiny.toml").write_text(
        "".join(f"{name} = {json.dumps(value)}\n" for name, value in experiment(**TINY, bad_steps=0).flags().items())
    )
    assert cli.train(["tiny", "--workdir", str(tmp_path / "run")], tmp_path) == 3
    message = capsys.readouterr().err
    assert "became NaN or infinite at step 2; there is no checkpoint yet" in message
    assert "Traceback" not in message
    assert json.loads((tmp_path / "run" / "postmortem.json").read_text())["last_good_checkpoint"] is None


@pytest.mark.usefixtures("promoting")
def test_bad_steps_up_to_the_limit_are_skipped_counted_and_shown(monkeypatch, tmp_path):
    """The rows are of steps 1 to 8, 9 to 16, 17 to 24; all of the second eight are bad."""
    monkeypatch.setattr(build, "make_rule", nan_at(3, *range(8, 16)))
    config = experiment(**TINY, bad_steps=8)
    shown = display()
    summary = run(config, tmp_path, shown)
    rows = RunDir(tmp_path).metrics()
    assert [(row["step"], row["skipped"]) for row in rows] == [(8, 1), (16, 9), (24, 9)]
    means = [[row[name] for name in ("loss", "clean_accuracy", "gradient_norm", "relative_weight")] for row in rows]
    assert means[1] == [None] * 4
    assert all(mean > 0 for row in means[::2] for mean in row)
    assert rows[0]["heldout_clean_accuracy"] > 0
    assert rows[0]["heldout_clean_accuracy"] == rows[1]["heldout_clean_accuracy"]
    assert summary["skipped"] == 9
    assert not (tmp_path / "postmortem.json").exists()
    assert "Training skipped 9 steps: " in (tmp_path / "report.html").read_text()
    text = shown.console.file.getvalue()
    assert "Not finite, so skipped: 1 of the first 8 steps." in text
    assert "Not finite, so skipped: 9 of the first 16 steps." in text
    assert text.count("skipped") == 2


READS = ("__array__", "__int__", "__float__", "__bool__", "__index__", "block_until_ready", "item", "tolist")


@pytest.mark.usefixtures("promoting")
def test_the_host_reads_the_device_at_logs_and_saves_alone(monkeypatch, tmp_path):
    """On CPU a transfer guard sees nothing, so reads of arrays are counted where they are made."""
    setup, folder = prepare(experiment(**TINY, trainer="standard")), RunDir(tmp_path)
    kind, done, reads = type(setup.initial.step), [0], []

    def counted(read):
        def call(*args, **kwargs):
            reads.append(done[0])
            return read(*args, **kwargs)

        return call

    def update(*args):
        done[0] += 1
        return setup.steps.update(*args)

    watched = setup._replace(steps=setup.steps._replace(update=update))
    with folder.opened(setup.config), monkeypatch.context() as patch:
        for name in READS:
            patch.setattr(kind, name, counted(getattr(kind, name)))
        float(jnp.ones(()))
        assert reads.pop() == 0
        train(watched, folder, Checkpoints(folder.checkpoints), Stop(), display())
    compiled = 1  # the step that compiles is no step of training
    assert {read - compiled for read in reads if read > compiled} == {8, 16, 24}


def trained(tmp_path, **fields):
    _, saved = train_in(experiment(**{**TINY, "width": 4, **fields}), tmp_path)
    return fingerprint(saved.state.params), RunDir(tmp_path).metrics()


@pytest.mark.usefixtures("promoting")
def test_trainers_differ_in_which_loss_they_take_of_which_examples(tmp_path):
    runs = {name: trained(tmp_path / name, trainer=name) for name in ("standard", "pgd", "robust", "mixtrain")}
    assert len({sha for sha, _ in runs.values()}) == 4
    for name, (_, rows) in runs.items():
        terms = {"standard": ["clean"], "pgd": ["attacked"]}.get(name, ["clean", "robust"])
        assert all([key for key in row if key.endswith("_loss")] == [f"{term}_loss" for term in terms] for row in rows)
        assert all(row[f"{term}_loss"] > 0 for row in rows for term in terms)
    assert trained(tmp_path / "all", robust_examples=TINY["batch_size"])[0] == runs["robust"][0]
    assert trained(tmp_path / "few", trainer="robust", robust_examples=1)[0] == runs["robust"][0]
    never = trained(tmp_path / "never", robust_probability=0.0, mixing="constant")[0]
    assert never == runs["standard"][0]


@pytest.mark.usefixtures("promoting")
def test_each_way_to_subsample_trains_on_other_examples(tmp_path):
    ways = [{}, {"replace": True}, {"subsample": "epoch"}, {"subsample": "epoch", "replace": True}]
    found = {trained(tmp_path / str(i), **way)[0] for i, way in enumerate(ways)}
    assert len(found) == 4


@pytest.mark.parametrize("shape", ["linear", "smooth"])
def test_the_radius_grows_over_the_ramp_and_stays(shape):
    config = experiment(eps=0.1, train_eps_ratio=2.0, ramp=0.4, ramp_shape=shape)
    radii = np.asarray(jax.vmap(config.radius.radii(config.threat.eps, 1000))(np.arange(1000)))
    assert radii[0] == 0
    assert (np.diff(radii[:401]) > 0).all()
    np.testing.assert_allclose(radii[400:], 0.2, rtol=1e-6)
    slopes = np.diff(radii[:401]) / 5e-4  # of a line
    if shape == "linear":
        np.testing.assert_allclose(slopes, 1, rtol=1e-3)
    else:
        np.testing.assert_allclose(radii[:101], radii[100] * np.linspace(0, 1, 101) ** 4, rtol=1e-5)
        np.testing.assert_allclose(slopes[100:], 4 * radii[100] / 100 / 5e-4, rtol=1e-3)  # no kink at the bend
        assert slopes[:40].max() < 0.1


def test_a_ramp_of_no_steps_is_the_whole_radius_from_the_second_step_on():
    for shape in ("linear", "smooth"):
        config = experiment(eps=0.1, ramp=0.0, ramp_shape=shape)
        schedule = config.radius.radii(config.threat.eps, 10)
        assert float(schedule(1)) == pytest.approx(0.1)


@pytest.mark.usefixtures("promoting")
def test_the_best_state_is_the_one_that_verified_most_after_the_ramp(monkeypatch, tmp_path):
    """By made-up measurements: the best lies before the end of the ramp, the best after it before the last."""
    measured = {6: 0.9, 12: 0.8, 18: 0.3, 24: 0.5, 30: 0.5, 36: 0.4}
    monkeypatch.setattr(loop, "make_measure", lambda setup: lambda state: (0.9, measured.get(int(state.step), 0.0)))
    fields = {**TINY, "epochs": 3, "points": 6, "ramp": 0.4, "choose": "best", "checkpoint_seconds": 0.0}
    setup, folder = prepare(experiment(**fields), mesh=ONE), RunDir(tmp_path)
    seen = {}

    def update(*args):
        state = setup.steps.update(*args)
        seen[int(state.step)] = jax.device_get(state.params)
        return state

    watched = setup._replace(steps=setup.steps._replace(update=update))
    with folder.opened(setup.config):
        checkpoints = Checkpoints(folder.checkpoints)
        saved = train(watched, folder, checkpoints, Stop(), display())
        assert int(saved.best.step) == 30
        assert bits(saved.best.params) == bits(seen[30]) != bits(saved.state.params)
        again = restore(prepare(setup.config, mesh=ONE), checkpoints, display())
        assert bits(again.best) == bits(saved.best)
        summary = finish(setup, saved, folder, Stop(), display())
    assert summary["step"] == 30
    assert summary["params_sha256"] == fingerprint(seen[30])


def test_the_rule_sees_accuracy_less_its_generalization_gap():
    rule = MixRule(
        lambda: jnp.float32(0),
        lambda signals, _: (dict.fromkeys(TERMS, jnp.float32(1)), signals.terms["clean"].accuracy),
    )
    steps, state, data = steps_of(rule), state_of(rule)._replace(gap=jnp.float32(0.25)), dataset()
    clean, robust = (
        steps.terms["clean"](state, examples(data, BATCH)),
        steps.terms["robust"](state, examples(data, BATCH)),
    )
    new = steps.update(state, {"clean": clean, "robust": robust})
    np.testing.assert_allclose(new.mix_state, clean.accuracy - 0.25, rtol=1e-6)
    assert float(new.gap) == 0.25


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("target_on", ["batches", "heldout"])
def test_the_generalization_gap_is_measured_where_the_config_asks_for_it(tmp_path, target_on):
    setup, folder = prepare(experiment(**{**TINY, "target_on": target_on}), mesh=ONE), RunDir(tmp_path)
    with folder.opened(setup.config):
        saved = train(setup, folder, Checkpoints(folder.checkpoints), Stop(), display())
    row = folder.metrics()[-1]
    gap = row["clean_accuracy"] - row["heldout_clean_accuracy"]
    np.testing.assert_allclose(saved.state.gap, gap if target_on == "heldout" else 0, rtol=1e-5)


@pytest.mark.usefixtures("promoting")
def test_every_row_tells_the_rate_of_its_own_steps(monkeypatch, tmp_path):
    """By a clock that only steps move, one second each; the last row is of fewer steps."""
    now = [0.0]
    for module in (loop, pace):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    setup = prepare(experiment(**{**TINY, "epochs": 3, "points": 5}), mesh=ONE)
    steps = setup.steps

    def update(*args):
        now[0] += 1
        return steps.update(*args)

    setup = setup._replace(steps=steps._replace(update=update))
    folder = RunDir(tmp_path)
    with folder.opened(setup.config):
        train(setup, folder, Checkpoints(folder.checkpoints), Stop(), display())
    rows = folder.metrics()
    assert [row["step"] for row in rows] == [7, 14, 21, 28, 35, 36]
    np.testing.assert_allclose([row["seconds"] for row in rows], [row["step"] for row in rows])
    np.testing.assert_allclose([row["examples_per_second"] for row in rows], 100)
    np.testing.assert_allclose([row["step_seconds"] for row in rows], np.ones((6, 3)))


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("trainer", ["standard", "pgd", "robust", "mixtrain"])
def test_prepare_refuses_a_batch_larger_than_the_training_examples(trainer):
    with pytest.raises(ConfigError, match="batch_size must be at most the 1200 training examples left, got 1201"):
        prepare(experiment(batch_size=1201, holdout=97, trainer=trainer), mesh=ONE)
    with pytest.raises(ConfigError, match="holdout must leave examples on both sides"):
        prepare(experiment(holdout=1297), mesh=ONE)


@pytest.mark.usefixtures("promoting")
def test_prepare_refuses_a_network_that_the_images_are_too_small_for():
    with pytest.raises(ConfigError, match=r"resnet_imagenet cannot take images of shape \[8, 8, 1\], those of digits"):
        prepare(experiment(model="resnet_imagenet", width=1))


def presence(probability, seed=0, steps=100):
    objective = {"clean": Term(Clean()), "robust": Term(Bounded(), probability=probability)}
    return [present(objective, seed, step) for step in range(steps)]


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 0, 0), (1.0, 2000, 2000), (0.8, 1520, 1680)])
def test_a_term_is_in_the_share_of_steps_asked_for(probability, low, high):
    found = presence(probability, steps=2000)
    assert low <= sum(step["robust"] for step in found) <= high
    assert all(step["clean"] for step in found)


def test_which_terms_a_step_has_is_a_pure_function_of_seed_and_step():
    assert presence(0.5) == presence(0.5)
    assert presence(0.5) != presence(0.5, seed=1)


def objective_of(**fields):
    return make_objective(experiment(**fields), functools.partial(NET.apply, default_params()), (3, 3, 1))


@pytest.mark.parametrize("fields", [{}, {"robust_probability": 0.5}, {"mixing": "convex", "share": 1.0}])
def test_standard_and_adversarial_training_have_one_loss_in_every_step(fields):
    for trainer, name in (("standard", "clean"), ("pgd", "attacked")):
        objective = objective_of(trainer=trainer, **fields)
        assert list(objective) == [name]
        assert (objective[name].examples, objective[name].probability) == (None, 1.0)


def test_a_loss_that_weighs_nothing_is_not_computed():
    assert list(objective_of(mixing="convex", share=1.0)) == ["robust"]
    assert list(objective_of(mixing="convex", share=0.99)) == ["clean", "robust"]


def rule_weights(config, steps, total=100):
    rule = make_rule(config, config.objective.objective(), total)
    state = rule.init()
    weights = []
    for step in steps:
        epoch = step * config.training.epochs / total
        terms = {"clean": Metrics(jnp.float32(1), jnp.float32(0.5)), "robust": Metrics(*jnp.ones(2))}
        mixed, state = rule.update(mixing.Signals(jnp.int32(step), jnp.float32(epoch), terms), state)
        weights.append((float(mixed["clean"]), float(mixed["robust"])))
    return weights


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"mixing": "authors", "ramp": 0.5, "epochs": 40},
            {0: (1, 0.1), 50: (1, 0.1), 63: (1, 0.25), 99: (1, 0.1 * 2.5**3)},
        ),
        ({"mixing": "constant", "weight": 4.0}, {0: (1, 4), 99: (1, 4)}),
        ({"mixing": "schedule", "weight": 4.0, "ramp": 0.5}, {0: (1, 0), 25: (1, 2), 50: (1, 4), 99: (1, 4)}),
        ({"mixing": "convex", "share": 0.25}, {0: (0.75, 0.25), 99: (0.75, 0.25)}),
    ],
    ids=lambda x: x.get("mixing"),
)
def test_make_rule_knows_every_name(values, expected):
    np.testing.assert_allclose(rule_weights(experiment(**values), expected), list(expected.values()), rtol=1e-5)


def test_make_rule_constrained_starts_at_its_share_and_gives_way():
    config = experiment(mixing="constrained", share=0.25, target=0.9, mixing_learning_rate=0.5)
    weights = rule_weights(config, range(20))
    shares = [robust for _, robust in weights]
    np.testing.assert_allclose(shares[0], 0.25, atol=1e-3)
    assert (np.diff(shares) < 0).all()
    np.testing.assert_allclose(np.sum(weights, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("names", [("clean", "robust"), ("clean",), ("attacked",)], ids="+".join)
def test_checkpoints_of_a_clean_and_a_robust_loss_are_read_by_the_names_of_terms(names):
    old = {"clean": "clean", "robust": "robust", "attacked": "robust"}
    before = {"state.step": np.int32(3), "state.lead": np.float32(0.5), "state.totals.steps": np.float32(2)}
    whats = [f"totals.{name}_{what}" for name in ("clean", "robust") for what in ("loss", "weight")]
    whats += [
        "totals.clean_accuracy",
        *(f"bad.{name}_{what}" for name in ("clean", "robust") for what in ("loss", "weight")),
    ]
    before |= {f"state.{what}": np.float32(i) for i, what in enumerate(whats)}
    after = upgraded(before, names)
    state = {"step": 0, "gap": 0, "totals": Totals.zeros(names)._replace(loss=None, gradient_norm=None)}
    state["bad"] = NonFinite.none({"w": jnp.zeros(1)}, names)._replace(
        skipped=None, streak=None, step=None, largest=None
    )
    assert after.keys() == by_name({"state": state}).keys()
    assert after["state.gap"] == np.float32(0.5)
    for name in names:
        assert after[f"state.totals.terms.{name}.loss"] == before[f"state.totals.{old[name]}_loss"]
        assert after[f"state.bad.weight.{name}"] == before[f"state.bad.{old[name]}_weight"]
        assert after[f"state.totals.terms.{name}.accuracy"] == before.get(f"state.totals.{old[name]}_accuracy", 0)
    assert upgraded(after, names) is after
