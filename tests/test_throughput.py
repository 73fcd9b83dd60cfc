"""What makes training fast: programs ahead of the device, many steps a program, half precision, traces."""

import dataclasses
import functools
import gzip
import io
import json
import re
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments import experiment
from rich.console import Console

from mixtrain_jax import data, mixing, models, parallel
from mixtrain_jax.checkpoints import Checkpoints
from mixtrain_jax.data import Streamed
from mixtrain_jax.errors import PreemptedError
from mixtrain_jax.fingerprints import fingerprint
from mixtrain_jax.report.display import Display
from mixtrain_jax.training import build
from mixtrain_jax.training import pace as pace_module
from mixtrain_jax.training.build import prepare
from mixtrain_jax.training.loop import train
from mixtrain_jax.training.pace import AHEAD, Pace
from mixtrain_jax.training.program import compile_steps, dispatches, trace_steps
from mixtrain_jax.training.rundir import RunDir
from mixtrain_jax.training.signals import Stop
from mixtrain_jax.training.steps import computed_in


class Device:
    """Runs one program after another, each in its time; the host reads the clock and waits."""

    def __init__(self, monkeypatch):
        self.now = self.free = 0.0
        self.waits = []
        monkeypatch.setattr(pace_module, "time", SimpleNamespace(monotonic=lambda: self.now))

    def dispatch(self, seconds, host=0.0):
        self.now += host
        self.free = max(self.free, self.now) + seconds
        return SimpleNamespace(block_until_ready=lambda at=self.free: self._wait(at))

    def _wait(self, until):
        self.waits.append(until)
        self.now = max(self.now, until)


@pytest.mark.parametrize(("device_seconds", "host_seconds"), [(2.0, 0.5), (0.5, 2.0)])
def test_the_time_of_a_step_is_that_of_the_slower_of_host_and_device(monkeypatch, device_seconds, host_seconds):
    device = Device(monkeypatch)
    pace = Pace(spent=100.0)
    for done in range(1, 31):
        pace.follow(device.dispatch(device_seconds, host_seconds))
        assert len(device.waits) == max(0, done - AHEAD)
    rates = pace.rates(10)
    np.testing.assert_allclose(rates["step_seconds"], 2.0)
    # The device is at most so many steps behind.
    assert device.free - device.now <= AHEAD * device_seconds
    assert rates["seconds"] == 100 + device.now


def test_percentiles_are_of_the_steps_since_the_last_row_without_pauses(monkeypatch):
    device = Device(monkeypatch)
    pace = Pace(spent=0.0)
    times = np.random.default_rng(0).uniform(1, 2, 300)
    for seconds in times:
        pace.follow(device.dispatch(seconds))
    device.now = device.free
    with pace.paused():
        device.now += 1000
    found = pace.rates(7)
    # The first wait starts the clock, and the last ones are never waited for.
    np.testing.assert_allclose(found["step_seconds"], np.percentile(times[1:-AHEAD], (50, 90, 99)))
    np.testing.assert_allclose((found["seconds"], found["examples_per_second"]), (times.sum(), 7 / times.mean()))
    for _ in range(20):
        pace.follow(device.dispatch(10.0), steps=5)
    device.now = device.free
    np.testing.assert_allclose(pace.rates(7)["step_seconds"], 2.0)
    with pace.paused():
        device.now += 1000
    pace.follow(device.dispatch(0, host=3.0))
    with pace.paused():
        device.now += 1000
    pace.follow(device.dispatch(0, host=5.0))
    np.testing.assert_allclose(pace.rates(7)["step_seconds"], 4.0)  # too few: their mean


# On another schedule sums are taken in another order: an error of some units in the last place of each gradient
# (2**-24), which 20 steps of Adam of at most 0.005 cannot make larger than this.
CLOSE = 2e-5
STEPS, MANY = 20, 8
TINY = {"width": 8, "batch_size": 50, "robust_examples": 5, "epochs": 1, "holdout": 97, "measure": 50}
ALL_AT_ONCE = {"robust_probability": 0.5, "subsample": "epoch", "flip": True, "crop": 1, "replace": True}


@pytest.fixture(autouse=True, scope="module")
def _quick():
    jax.config.update("jax_disable_most_optimizations", True)  # compiling takes longer than all that runs
    with jax.numpy_dtype_promotion("standard"):  # optax promotes
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def prepared(devices=1, streamed=False, **fields):
    dataset = data.load("digits")
    if streamed:
        split = dataset.train
        dataset = dataclasses.replace(dataset, train=Streamed(split.take, 0, len(split), split.levels))
    return prepare(experiment(**{**TINY, **fields}), dataset, parallel.data_mesh(jax.devices()[:devices]))


def trained(setup, last=STEPS, first=0, state=None):
    state = jax.tree.map(jnp.copy, setup.initial if state is None else state)
    taken = []
    for steps, dispatch in dispatches(setup, state, first, last):
        state, loss = dispatch(state)
        taken.append(steps)
    assert np.isfinite(loss)
    return state, taken


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(parallel.fetch(tree))]


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=CLOSE), *parallel.fetch((a, b)))


@pytest.mark.parametrize(
    ("devices", "streamed", "fields"),
    [(1, False, {}), (1, True, ALL_AT_ONCE), (4, True, {**ALL_AT_ONCE, "params": "fsdp", "width": 1024})],
    ids=["in memory", "streamed, some without a robust loss", "the same, split over four devices"],
)
def test_many_steps_in_a_program_are_those_of_single_ones(devices, streamed, fields):
    """And the program is traced once, or the second one would be an error."""
    if streamed:
        pytest.importorskip("grain")
    one, taken = trained(prepared(devices, streamed, **fields))
    assert taken == [1] * STEPS
    many, taken = trained(prepared(devices, streamed, **fields, steps_per_dispatch=MANY))
    assert taken == [MANY, MANY, 1, 1, 1, 1]
    close(one.params, many.params)
    initial = prepared(devices, streamed, **fields).initial.params
    moves = jax.tree.map(lambda a, b: np.abs(a - b).max(), *parallel.fetch((one.params, initial)))
    assert max(jax.tree.leaves(moves)) > 0.02
    # Another subsample has another robust loss.
    means = [parallel.fetch(state.totals).means() for state in (one, many)]
    np.testing.assert_allclose(*([mean[name] for name in ("clean_loss", "robust_loss")] for mean in means), rtol=1e-4)
    assert int(many.step) == STEPS


def nan_at(*steps):
    at = jnp.asarray(steps)

    def weights(signals, state):
        return dict.fromkeys(signals.terms, jnp.where((signals.step == at).any(), jnp.nan, jnp.float32(1))), state

    return lambda config, objective, total: mixing.MixRule(lambda: (), weights)


def test_steps_that_are_not_finite_are_skipped_within_a_program(monkeypatch):
    monkeypatch.setattr(build, "make_rule", nan_at(3, 9, 10))
    fields = {"trainer": "standard", "bad_steps": 2}
    states = [trained(prepared.__wrapped__(**fields, steps_per_dispatch=many))[0] for many in (1, MANY)]
    close(states[0].params, states[1].params)
    assert [tuple(map(int, (s.step, s.bad.skipped, s.bad.step, s.totals.steps))) for s in states] == [
        (20, 3, 10, 17)
    ] * 2


def display():
    return Display(Console(file=io.StringIO(), width=200))


FIVE = {"steps_per_dispatch": 5, "checkpoint_seconds": 0.0, "points": 3}


def whole_run(path, stop=None):
    setup, folder = prepared(**FIVE), RunDir(path)
    setup = setup._replace(initial=jax.tree.map(jnp.copy, setup.initial))  # training takes its memory
    with folder.opened(setup.config):
        saved = train(setup, folder, Checkpoints(folder.checkpoints), stop or Stop(), display())
    return fingerprint(saved.state), [row["step"] for row in folder.metrics()]


def test_rows_and_stops_come_between_programs_and_a_resumed_run_has_the_same_bits(tmp_path):
    uninterrupted = whole_run(tmp_path / "whole")
    assert uninterrupted[1] == [5, 10, 15, 20, 24]
    stop = Stop()
    stop.signal = signal.SIGTERM
    for at in (5, 10):
        with pytest.raises(PreemptedError, match=f"step {at} of 24 is saved"):
            whole_run(tmp_path / "stopped", stop)
    assert whole_run(tmp_path / "stopped") == uninterrupted


def test_all_programs_are_compiled_before_training_starts():
    for fields, expected in (({}, [0, 1]), (FIVE, [1, 1]), ({"steps_per_dispatch": MANY}, [1, 0])):
        setup, calls = prepared(**fields), {"program": 0, "update": 0}

        def counted(name, f, calls=calls):
            def call(*args):
                calls[name] += 1
                return f(*args)

            return call

        steps = setup.steps._replace(update=counted("update", setup.steps.update))
        compile_steps(setup._replace(steps=steps, program=counted("program", setup.program)))
        assert list(calls.values()) == expected, fields


def gradients_and_programs(**fields):
    """Gradients of the terms of the first step, and their programs before XLA sees them."""
    setup = prepared.__wrapped__(**fields)
    (batch, pool), state = next(iter(setup.feed(0, 1))), setup.initial
    terms, own = setup.steps.terms, {"clean": batch, "robust": pool, "attacked": pool}
    traced = [term.trace(state, own[name]) for name, term in terms.items()]
    gradients = [term(state, own[name]).gradient for name, term in terms.items()]
    return gradients, [str(program.jaxpr) for program in traced]


def products(jaxpr):
    """Element types of the results of all matrix products and convolutions."""
    return set(re.findall(r"(\w+)\[[\d,]*\] = (?:dot_general|conv_general_dilated)\[", jaxpr))


@pytest.mark.parametrize("fields", [{}, {"trainer": "pgd", "train_attack_steps": 1}], ids=["ibp", "pgd"])
def test_bfloat16_is_for_the_clean_loss_and_attacks_alone(fields):
    """The step that is a bound has the same bits as without it."""
    whole, before = gradients_and_programs(**fields)
    narrow, programs = gradients_and_programs(**fields, compute="bfloat16")
    assert [products(x) for x in before] == [{"f32"}] * len(before)
    assert products(programs[0]) == ({"bf16", "f32"} if fields else {"bf16"})  # margins of attacked logits stay float32
    for exact, rounded in zip(whole[:1], narrow[:1], strict=True):
        assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {jnp.dtype("float32")}
        # Half an ulp is 2**-9; some layers there and back, relative to the largest entry of each leaf.
        for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
            error = np.abs(a - b).max() / np.abs(a).max()
            assert 0 < error < 0.1
    for program, exact, same in zip(programs[1:], whole[1:], narrow[1:], strict=True):
        assert "bf16" not in program
        assert bits(same) == bits(exact)


def test_convolutions_and_normalization_are_computed_in_bfloat16():
    network = models.build("small", classes=3, width=4, normalization=((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    images = jnp.ones((2, 8, 8, 3))
    params = jax.eval_shape(network.init, jax.random.key(0), images)
    with jax.numpy_dtype_promotion("strict"):
        jaxpr = jax.make_jaxpr(computed_in(network.apply, "bfloat16"))(params, images)
    assert products(str(jaxpr)) == {"bf16"}
    assert str(jaxpr).count("conv_general_dilated[") == 2
    assert [x.dtype for x in jaxpr.out_avals] == [jnp.float32]


def test_a_trace_of_some_steps_comes_and_the_run_is_as_without_it(tmp_path):
    setup, shown = prepared(**FIVE), display()
    state = jax.tree.map(jnp.copy, setup.initial)
    before = bits(state)
    trace_steps(setup, state, tmp_path / "profile", shown)
    assert bits(state) == before
    assert "Traced 20 steps" in shown.console.file.getvalue()
    (perfetto,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    assert list(perfetto.parent.glob("*.xplane.pb"))
    names = [event.get("name", "") for event in json.loads(gzip.decompress(perfetto.read_bytes()))["traceEvents"]]
    assert names.count("train") == 4  # programs of five steps
