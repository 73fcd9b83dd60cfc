"""One run from its config to its report."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mixtrain_jax import bounds, certify, data, environment, image_table, mixing, models, objectives, parallel
from mixtrain_jax.attacks import LogitsFn, non_finite_gradient, pgd
from mixtrain_jax.checkpoints import Checkpoints
from mixtrain_jax.config import Config
from mixtrain_jax.errors import ConfigError, NonFiniteError
from mixtrain_jax.fingerprints import fingerprint, leaf_name, sha256_of_files
from mixtrain_jax.objectives import Objective
from mixtrain_jax.report import page
from mixtrain_jax.report.display import Display
from mixtrain_jax.training.feed import Examples, Feed, indices, make_feed
from mixtrain_jax.training.pace import AHEAD, Pace
from mixtrain_jax.training.records import CURVE, curve_text
from mixtrain_jax.training.rundir import RunDir
from mixtrain_jax.training.signals import Stop
from mixtrain_jax.training.state import NonFinite, Totals, TrainState, upgraded
from mixtrain_jax.training.steps import Apply, Batch, LossAndGrad, Steps, jit_once, make_steps

# (state, data of the feed, what it handed over for each step, which terms each has) -> (state, last loss)
Program = Callable[[TrainState, Any, tuple[Any, ...], dict[str, np.ndarray]], tuple[TrainState, jax.Array]]
# state -> (state, a loss that is known once it is)
Dispatch = Callable[[TrainState], tuple[TrainState, jax.Array]]

_LOOKED_AT = 64  # test images, for gradients that attacks cannot follow


class Best(NamedTuple):
    """The state that verified most held-out examples, of those measured after the ramp."""

    step: np.int64  # 0 where none was measured yet
    verified: np.float64  # share of the held-out examples, 0 to 1
    params: Any


class Saved(NamedTuple):
    """What a checkpoint holds."""

    step: np.int64  # steps done
    seconds: np.float64  # spent in training so far
    state: TrainState
    best: Best | None  # where the config asks for it


class Setup(NamedTuple):
    """What a config stands for: everything of a run that no step changes."""

    config: Config
    dataset: data.Dataset
    train: data.Split | data.Streamed
    heldout: data.Split
    apply: Apply
    objective: Objective
    feed: Feed
    steps: Steps
    program: Program  # of several steps at once
    rule: mixing.MixRule
    eps: optax.Schedule
    total_steps: int
    mesh: Mesh
    initial: TrainState


def run(
    config: Config, workdir: Path, display: Display, data_dir: Path | None = None, *, profile: bool = False
) -> dict[str, Any]:
    """Train, certify and report; go on where an earlier run of the same config in the same folder stopped.

    Args:
      config: the experiment.
      workdir: folder of the run, created if needed.
      display: shows what happens.
      data_dir: folder of prepared data sets, as for `data.load`.
      profile: whether to trace some steps first, into the folder `profile` of the run.

    Returns:
      What is written to `summary.json`.

    Raises:
      MixtrainError: one of its kinds, each with the exit code of the command line; the message says what to do.
    """
    folder = RunDir(workdir)
    with contextlib.ExitStack() as held, Stop() as stop:
        parallel.alone(lambda: held.enter_context(folder.opened(config)))
        refuse_another_config(config)
        summary = parallel.led(folder.summary)
        if summary is None:
            setup = parallel.together(lambda: prepare(config, data.load(config.data, data_dir, display.progress)))
            checkpoints = parallel.alone(lambda: held.enter_context(Checkpoints(folder.checkpoints)))
            saved = train(setup, folder, checkpoints, stop, display, profile=profile)
            summary = finish(setup, saved, folder, stop, display)
        else:
            display.note("This run has ended already; choose another --workdir to run it again.")
    display.summary(summary)
    display.note(f"Report: {folder.path / 'report.html'}")
    return summary


def refuse_another_config(config: Config) -> None:
    """Hold all processes to the config of the first.

    Raises:
      ConfigError: (in all processes) where one has another.
    """
    first = parallel.led(config.to_json)

    def compare() -> None:
        mine = config.to_json()
        if differ := [name for name in mine if mine[name] != first[name]]:
            raise ConfigError(f"The processes of this run were given different configs ({', '.join(differ)} differ).")

    parallel.together(compare)


def prepare(config: Config, dataset: data.Dataset | None = None, mesh: Mesh | None = None) -> Setup:
    """Build network, rule, optimizer and steps, and the state that training starts from.

    Args:
      config: the experiment.
      dataset: what to train on; by default what the config names is loaded.
      mesh: the devices; by default all.

    Raises:
      ConfigError: where the config does not fit the data.
      DataError: where the data are missing or damaged.
    """
    dataset, mesh = dataset or data.load(config.data), mesh or parallel.data_mesh()
    train_split, heldout = dataset.hold_out(config.holdout)
    if config.batch_size > len(train_split):
        raise ConfigError(
            f"batch_size must be at most the {len(train_split)} training examples left, got {config.batch_size}."
        )
    count = len(train_split)
    total_steps = max(1, round(config.epochs * count / config.batch_size))
    network = models.build(
        config.model, classes=dataset.classes, width=config.width, normalization=dataset.normalization
    )
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    apply, example = models.pure_apply(network), heldout[:1].floats().images
    try:
        params = jax.jit(network.init)(init_key, example)
    except (ValueError, TypeError, ZeroDivisionError) as error:  # a layer has no pixels left
        raise ConfigError(
            f"The network {config.model} cannot take images of shape {list(example.shape[1:])}, those of "
            f"{config.data}: {str(error).splitlines()[0]}."
        ) from error
    eps = radius(config, total_steps)
    tx = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(learning_rate(config, total_steps), weight_decay=config.weight_decay),
    )
    objective = make_objective(config, functools.partial(apply, params), example.shape[1:])
    rule = make_rule(config, total_steps)
    steps = make_steps(
        apply,
        objective,
        domain=dataset.domain,
        eps=eps,
        key=step_key,
        rule=rule,
        tx=tx,
        steps_per_epoch=count / config.batch_size,
        bad_steps=config.bad_steps,
        microbatches=config.microbatches,
        mesh=mesh,
        layout=config.params,
    )
    initial = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        mix_state=rule.init(),
        gap=jnp.zeros((), jnp.float32),
        totals=Totals.zeros(objective),
        bad=NonFinite.none(params, objective),
    )
    initial = parallel.put(initial, mesh, config.params)
    feed = make_feed(config, train_split, jax.random.fold_in(step_key, 1), mesh)
    program = make_program(config, objective, steps, feed, mesh)
    return Setup(
        config,
        dataset,
        train_split,
        heldout,
        apply,
        objective,
        feed,
        steps,
        program,
        rule,
        eps,
        total_steps,
        mesh,
        initial,
    )


def learning_rate(config: Config, total_steps: int) -> optax.Schedule:
    """The step of the optimizer at every step of training: up in a line, down by a cosine."""
    if not (warmup := round(config.warmup * total_steps)):
        return optax.cosine_decay_schedule(config.learning_rate, total_steps)
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(warmup + 1, total_steps))


def radius(config: Config, total_steps: int) -> optax.Schedule:
    """The radius that is trained on at every step, in pixel units.

    The smooth one is that of Xu et al. (arXiv 2002.12920, `SmoothedScheduler` of their code): the parts meet with one
    slope. Interval bounds of a new deep network are off by orders of magnitude more than those of a trained one, which
    a line jumps over in a few steps.
    """
    end, last = config.eps * config.train_eps_ratio, max(1, round(config.ramp * total_steps))
    if config.ramp_shape == "linear":
        return optax.linear_schedule(0.0, end, last)
    bend = 0.25
    height = end / (1 + 4 * (1 - bend) / bend)  # at the bend

    def smooth(step: jax.typing.ArrayLike) -> jax.Array:
        done = jnp.minimum(jnp.asarray(step, jnp.float32) / last, 1.0)
        line = end - (end - height) * (1 - done) / (1 - bend)
        return jnp.where(done < bend, height * (done / bend) ** 4, line)

    return smooth


def method(config: Config) -> bounds.Method:
    """The bound that held-out examples are measured with."""
    return bounds.method(config.bound)


def make_objective(config: Config, logits_fn: LogitsFn, shape: Sequence[int]) -> Objective:
    """The terms that a config names, in microbatches that are fast for this network and this shape of an image."""
    match config.trainer:
        case "standard":
            terms = objectives.standard(config.compute)
        case "pgd":
            terms = objectives.pgd(config.train_attack_steps, config.compute)
        case "robust":
            terms = objectives.robust(config.bound, config.compute)
        case "mixtrain":
            terms = objectives.mixtrain(
                config.bound,
                config.robust_examples,
                replace=config.replace and config.subsample == "batch",
                probability=config.robust_probability,
                dtype=config.compute,
            )
    if config.mixing == "convex" and config.share == 1:  # a loss that weighs nothing is not computed
        terms = {name: term for name, term in terms.items() if name != "clean"} or terms
    sizes = {name: config.robust_group if name != "clean" else 0 for name in terms}
    return {
        name: term._replace(microbatch=sizes[name] or bounds.group_size(term.loss.method, logits_fn, shape))
        for name, term in terms.items()
    }


def make_rule(config: Config, total_steps: int) -> mixing.MixRule:
    """The mixing rule that a config names; a single loss has nothing to be weighed against."""
    if config.trainer in ("standard", "pgd"):
        return mixing.constant(1.0)
    match config.mixing:
        case "authors":
            return mixing.staircase(config.ramp * config.epochs)
        case "constant":
            return mixing.constant(config.weight)
        case "schedule":
            return mixing.schedule(optax.linear_schedule(0.0, config.weight, max(1, round(config.ramp * total_steps))))
        case "convex":
            return mixing.convex(config.share)
        case "constrained":
            tx = optax.sgd(config.mixing_learning_rate)
            return mixing.constrained(config.target, tx, start=config.share)
        case "mgda":
            return mixing.mgda()
        case "balanced":
            return mixing.balanced()


def train(
    setup: Setup, folder: RunDir, checkpoints: Checkpoints, stop: Stop, display: Display, *, profile: bool = False
) -> Saved:
    """Take the steps that are left, logging, measuring and saving on the way.

    Raises:
      NonFiniteError: where more than `bad_steps` steps in a row were not finite; `postmortem.json` tells of the last.
      PreemptedError, InterruptedRunError: after a signal, once the state is saved.
      CheckpointError: where a checkpoint cannot be written or none can be read.
    """
    config, total = setup.config, setup.total_steps
    saved = restore(setup, checkpoints, display)
    state, first, spent, best = saved.state, int(saved.step), float(saved.seconds), saved.best
    parallel.alone(lambda: folder.rewind_metrics(first))
    if first >= total:
        return saved
    measure = make_measure(setup)
    display.note(f"Compiling. Clean and verified accuracy below are of {measured(setup)} held-out examples.")
    compile_steps(setup)
    measure(state)
    if profile:
        trace_steps(setup, state, folder.path / "profile", display)
    many = config.steps_per_dispatch
    log_every = max(1, total // config.points // many) * many
    pace, agree = Pace(spent, max(1, AHEAD // many)), parallel.agreement(setup.mesh)
    done, saved_at = first, time.monotonic()
    for taken, dispatch in dispatches(setup, state, first, total):
        with jax.transfer_guard_device_to_host("disallow"):  # a step that waits for the device slows all of them
            state, loss = dispatch(state)
        pace.follow(loss, taken)
        done += taken
        display.progress("train", done, total)
        if done % log_every == 0 or done == total:
            parallel.alone(functools.partial(refuse_non_finite, setup, state, folder, checkpoints))
            row = pace.rates(config.batch_size)
            with pace.paused():
                began = time.monotonic()
                row = {**log_row(setup, state, measure(state), done), **row}
                measuring = time.monotonic() - began
                left = ((row["seconds"] - spent) / (done - first) + measuring / log_every) * (total - done)
                display.row({**row, "seconds_left": left}, last=done == total)
                parallel.alone(functools.partial(folder.append_metrics, row))
                state, best = after_row(setup, row, state, best)
        # The number of a signal, or 1 to save: any process may be told to stop, and process 0 has the clock.
        late = time.monotonic() - saved_at >= config.checkpoint_seconds and jax.process_index() == 0
        verdict = agree(stop.signal or int(late))
        if verdict or done == total:
            parallel.alone(functools.partial(refuse_non_finite, setup, state, folder, checkpoints))
            saved = Saved(np.int64(done), np.float64(pace.seconds()), state, best)
            with pace.paused():
                save(checkpoints, saved, wait=verdict > 1 or done == total)
            saved_at = time.monotonic()
        if verdict > 1 and done < total:
            raise stop.error(verdict, f"step {done} of {total} is saved")
    return saved


def after_row(
    setup: Setup, row: dict[str, Any], state: TrainState, best: Best | None
) -> tuple[TrainState, Best | None]:
    """The state with what the row tells it and new sums, and the best state so far."""
    if best and row["eps"] == setup.eps(setup.total_steps) and row["heldout_verified_accuracy"] >= best.verified:
        verified = np.float64(row["heldout_verified_accuracy"])
        best = Best(np.int64(row["step"]), verified, jax.tree.map(jnp.copy, state.params))
    if setup.config.target_on == "heldout" and row.get("clean_accuracy") is not None:
        gap = np.float32(row["clean_accuracy"] - row["heldout_clean_accuracy"])
        state = state._replace(gap=parallel.put(gap, setup.mesh, "replicated"))
    return state._replace(totals=parallel.put(Totals.zeros(setup.objective), setup.mesh, "replicated")), best


def save(checkpoints: Checkpoints, saved: Saved, *, wait: bool) -> None:
    """Write a checkpoint, in process 0; the arrays come there from all of them.

    Args:
      checkpoints: those of the run.
      saved: what to write.
      wait: until it is whole.

    Raises:
      CheckpointError: where it cannot be written, or the one before it could not.
    """
    whole = parallel.fetch(saved) if jax.process_count() > 1 else saved

    def write() -> None:
        checkpoints.save(int(saved.step), whole)
        if wait:
            checkpoints.wait()

    parallel.alone(write)


def restore(setup: Setup, checkpoints: Checkpoints, display: Display) -> Saved:
    """The newest whole checkpoint, or the state that training starts from."""
    start, upgrade = untrained(setup), functools.partial(upgraded, names=tuple(setup.objective))
    saved = parallel.led(lambda: checkpoints.restore(start, display.note, upgrade=upgrade))
    if saved is not None:
        display.note(f"Going on from step {int(saved.step)} of {setup.total_steps}.")
        best = saved.best and saved.best._replace(
            params=parallel.put(saved.best.params, setup.mesh, setup.config.params)
        )
        state = parallel.put(saved.state, setup.mesh, setup.config.params)
        return saved._replace(state=state, best=best)
    return start


def untrained(setup: Setup) -> Saved:
    """What a checkpoint of step 0 would hold."""
    none = None
    if setup.config.choose == "best":  # a copy, for the first step takes the memory of the state that it is given
        none = Best(np.int64(0), np.float64(0), jax.tree.map(jnp.copy, setup.initial.params))
    return Saved(np.int64(0), np.float64(0), setup.initial, none)


def chosen(saved: Saved) -> tuple[int, Any]:
    """The step and the parameters that are certified: the best ones where the config asks for them, else the last."""
    if saved.best is not None and saved.best.step:
        return int(saved.best.step), saved.best.params
    return int(saved.step), saved.state.params


def refuse_non_finite(setup: Setup, state: TrainState, folder: RunDir, checkpoints: Checkpoints) -> None:
    """Look whether the state stands still after too many bad steps; waits for the device.

    Raises:
      NonFiniteError: where it does, with the step, the last good checkpoint and the post-mortem, which is written.
    """
    if (streak := int(state.bad.streak)) <= setup.config.bad_steps:
        return
    report = {**postmortem(setup, state), "last_good_checkpoint": (good := checkpoints.latest())}
    folder.write("postmortem.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
    kept = "there is no checkpoint yet" if good is None else f"the last good checkpoint is step {good}"
    before = f" and in the {streak - 1} steps before it" if streak > 1 else ""
    raise NonFiniteError(
        f"The loss or a gradient became NaN or infinite at step {report['step']}{before}; {kept} in "
        f"{checkpoints.folder}. {report['try']} More in {folder.path / 'postmortem.json'}."
    )


def postmortem(setup: Setup, state: TrainState) -> dict[str, Any]:
    """What is known of the last step that was skipped, as JSON values; NaN and the infinities are words."""
    bad, config = jax.device_get(state.bad), setup.config
    step = int(bad.step)
    batch, pool = indices(config, step, len(setup.train))
    updates = step - int(bad.skipped) + 1  # that the optimizer took before it: its schedule counts no others
    names = [leaf_name(path) for path, _ in jax.tree.flatten_with_path(state.params)[0]]
    largest = {name: number(value) for name, value in zip(names, bad.largest, strict=True)}
    broken = [name for name in setup.objective if not np.isfinite(bad.loss[name])]
    if broken and "clean" in setup.objective and "clean" not in broken:
        advice = f"The {' and '.join(broken)} loss alone is not finite: lower weight or eps, or lengthen the ramp."
    else:
        advice = "Lower learning_rate or weight, or lengthen the ramp."
    return {
        "step": step,
        "skipped_in_a_row": int(bad.streak),
        "skipped": int(bad.skipped),
        "try": advice,
        "eps": number(setup.eps(step)),
        "learning_rate": number(learning_rate(config, setup.total_steps)(updates)),
        **{f"{name}_loss": number(bad.loss[name]) for name in setup.objective},
        **{f"{name}_weight": number(bad.weight[name]) for name in setup.objective},
        "largest_gradient": largest,
        "examples": batch.tolist(),  # in the training split without those held out
        "pool": pool.tolist(),
    }


def number(x: Any) -> float | str:
    """A scalar as a JSON value: a number, or the word for one that is none."""
    value = float(x)
    return value if math.isfinite(value) else str(value)


def make_program(config: Config, objective: Objective, steps: Steps, feed: Feed, mesh: Mesh) -> Program:
    """Compile `steps_per_dispatch` steps as one program, so that the host hands over many at a time."""
    always = {name: bool(share) for name, term in objective.items() if (share := term.probability) in (0.0, 1.0)}

    def program(
        state: TrainState, data: Any, handed: tuple[Any, ...], present: dict[str, jax.Array]
    ) -> tuple[TrainState, jax.Array]:
        def step(state: TrainState, given: tuple[Any, dict[str, jax.Array]]) -> tuple[TrainState, jax.Array]:
            batch, pool = feed.make(data, given[0])
            return steps.fused(state, batch, pool, {**given[1], **always})

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *handed)
        state, losses = jax.lax.scan(step, state, (stacked, present))
        return state, losses[-1]

    return parallel.settled(jit_once(program, donate_argnums=0), mesh)


def dispatches(setup: Setup, state: TrainState, first: int, last: int) -> Iterator[tuple[int, Dispatch]]:
    """The programs that take the steps `first` to `last - 1`, each with the number of its steps.

    All are of `steps_per_dispatch` steps but for the rest at the end, whose steps are taken one by one.

    Args:
      setup: the run.
      state: any state of it, for its shapes.
      first: the first step.
      last: the step behind the last one.
    """
    many = setup.config.steps_per_dispatch
    rest = last - (last - first) % many if many > 1 else first
    read, skipped = setup.feed.read(first, rest), setup.steps.skipped(state)
    for at in range(first, rest, many):
        handed = tuple(itertools.islice(read, many))
        steps = [objectives.present(setup.objective, setup.config.seed, step) for step in range(at, at + many)]
        present = {name: np.array([step[name] for step in steps]) for name in setup.objective}

        def several(state: TrainState, handed: Any = handed, present: dict[str, np.ndarray] = present) -> Any:
            return setup.program(state, setup.feed.data, handed, present)

        yield many, several
    for step, examples in enumerate(setup.feed(rest, last), rest):

        def single(state: TrainState, step: int = step, examples: Examples = examples) -> Any:
            present = objectives.present(setup.objective, setup.config.seed, step)
            return one_step(setup, state, examples, [name for name in present if present[name]], skipped)

        yield 1, single


def one_step(
    setup: Setup, state: TrainState, examples: Examples, names: Sequence[str], skipped: LossAndGrad | None = None
) -> tuple[TrainState, jax.Array]:
    """Take one step with the terms of these names; the new state, and a loss that is known once the step is done."""
    skipped = skipped or setup.steps.skipped(state)
    parts = dict.fromkeys(setup.objective, skipped)
    for name in names:
        own = examples.batch if setup.objective[name].examples is None else examples.pool
        parts[name] = setup.steps.terms[name](state, own)
    last = parts[names[-1]] if names else skipped
    return setup.steps.update(state, parts), last.loss


def compile_steps(setup: Setup) -> None:
    """Run every program once on a copy of the first state, so that compilation is no part of the time of training."""
    many = setup.config.steps_per_dispatch
    if 1 < many <= setup.total_steps:
        _, dispatch = next(dispatches(setup, setup.initial, 0, many))
        jax.block_until_ready(dispatch(jax.tree.map(jnp.copy, setup.initial)))
    if many == 1 or setup.total_steps % many:
        state = jax.tree.map(jnp.copy, setup.initial)
        names = [name for name, term in setup.objective.items() if term.probability]
        for examples in setup.feed(0, 1):
            jax.block_until_ready(one_step(setup, state, examples, names))


def trace_steps(setup: Setup, state: TrainState, folder: Path, display: Display) -> None:
    """Trace some twenty steps of a copy of the state, after a few that are not traced; training knows nothing of it.

    Args:
      setup: the run.
      state: where the steps start.
      folder: of the trace; where there are several processes, each has a folder in it.
      display: told what to do with it.
    """
    many, state = setup.config.steps_per_dispatch, jax.tree.map(jnp.copy, state)
    before, traced = -(-5 // many), -(-20 // many)  # programs
    own = folder / f"process{jax.process_index()}" if jax.process_count() > 1 else folder
    with contextlib.ExitStack() as tracing:
        for number, (_, dispatch) in enumerate(dispatches(setup, state, 0, (before + traced) * many)):
            if number == before:
                jax.block_until_ready(state)
                tracing.enter_context(jax.profiler.trace(str(own), create_perfetto_trace=True))
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                state, _ = dispatch(state)
        jax.block_until_ready(state)
    display.note(
        f"Traced {traced * many} steps: `xprof --logdir {folder}` shows them (pip install xprof), and ui.perfetto.dev "
        "the perfetto_trace.json.gz in there."
    )


def measured(setup: Setup) -> int:
    """How many held-out examples are measured on while training."""
    return min(setup.config.measure, len(setup.heldout))


def make_measure(setup: Setup) -> Callable[[TrainState], tuple[float, float]]:
    """A function of the state: clean and verified accuracy on the held-out examples at the full radius."""
    config, count = setup.config, measured(setup)
    split = setup.heldout[:count].floats()
    group = bounds.group_size(
        method(config), functools.partial(setup.apply, setup.initial.params), split.images.shape[1:]
    )

    def correct_of(params: Any, rows: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        images, labels = rows
        logits_fn = functools.partial(setup.apply, params)
        right = logits_fn(images).argmax(-1) == labels
        ball = bounds.linf_ball(images, config.eps, setup.dataset.domain)
        lower = bounds.margins(method(config), logits_fn, group=group)(ball, labels)
        return right, right & (lower > 0).all(-1)

    @jax.jit
    def correct(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        params, rows = parallel.pin(params, setup.mesh, "replicated"), (batch.images, batch.labels)
        if not config.microbatches:
            return parallel.pin(correct_of(params, rows), setup.mesh, "replicated")
        rows = jax.tree.map(lambda x: x.reshape(-1, each, *x.shape[1:]), rows)
        found = parallel.map_microbatches(correct_of, params, rows, setup.mesh)
        return parallel.pin(jax.tree.map(jnp.ravel, found), setup.mesh, "replicated")

    # Some at a time, the rows of a backward bound taking far more memory than the examples; the last ones come twice.
    each = -(-min(config.batch_size, count) // max(config.microbatches, 1))
    size = each * parallel.padded(config.microbatches, setup.mesh) or parallel.padded(each, setup.mesh)
    rows = np.minimum(np.arange(-(-count // size) * size), count - 1).reshape(-1, size)
    correct = parallel.settled(correct, setup.mesh)
    batches = [Batch(*parallel.put(split.take(row), setup.mesh, "rows")) for row in rows]

    def measure(state: TrainState) -> tuple[float, float]:
        with jax.default_matmul_precision("highest"):  # as in certification
            found = jax.device_get([correct(state.params, batch) for batch in batches])
        right, proved = (np.concatenate(parts)[:count].mean() for parts in zip(*found, strict=True))
        return float(right), float(proved)

    return measure


def log_row(setup: Setup, state: TrainState, heldout: tuple[float, float], done: int) -> dict[str, Any]:
    """A row of `metrics.jsonl`, but for what depends on the clock."""
    totals, skipped = jax.device_get((state.totals, state.bad.skipped))
    means = totals.means()
    reference, *others = (means[f"{name}_weight"] for name in setup.objective)
    means["relative_weight"] = sum(others) / max(reference, 1e-9)
    return {
        "step": done,
        "epoch": done * setup.config.batch_size / len(setup.train),
        **{name: mean if math.isfinite(mean) else None for name, mean in means.items()},  # NaN: all were skipped
        "skipped": int(skipped),
        "eps": float(np.asarray(setup.eps(done))),
        "heldout_clean_accuracy": heldout[0],
        "heldout_verified_accuracy": heldout[1],
    }


def finish(setup: Setup, saved: Saved, folder: RunDir, stop: Stop, display: Display) -> dict[str, Any]:
    """Certify the chosen state on the whole test set and write the report; the summary comes last: the run has ended.

    Raises:
      PreemptedError, InterruptedRunError: after a signal; training is saved.
      SoundnessError: where an image is both proved and broken.
    """
    config, dataset = setup.config, setup.dataset
    saved = parallel.fetch(saved)
    step, params = chosen(saved)
    logits_fn = functools.partial(setup.apply, jax.tree.map(jnp.asarray, params))
    spread = parallel.by_rows(setup.mesh)

    agree = parallel.agreement(setup.mesh)

    def poll(what: str, done: int, total: int) -> None:
        display.progress(what, done, total)
        if number := agree(stop.signal or 0):
            raise stop.error(number, "training is saved, certification starts anew")

    started = time.monotonic()
    display.note(f"Measuring on the {len(dataset.test)} test images.")
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    methods = certify.methods(config.certify)
    attacks = {"pgd": functools.partial(pgd, steps=config.attack_steps, restarts=config.attack_restarts)}
    threat = certify.Threat(config.eps, dataset.domain)
    evaluation = certify.evaluate(
        key, logits_fn, dataset.test, threat, attacks=attacks, methods=methods, poll=poll, spread=spread
    )
    curve = None
    if few := min(config.curve_examples, len(dataset.test)):
        curve = certify.measure_curve(
            key,
            logits_fn,
            dataset.test[:few],
            evaluation.first(few),
            methods=methods,
            attack_steps=config.attack_steps,
            poll=poll,
            spread=spread,
        )
    few = dataset.test[:_LOOKED_AT].floats()
    if warning := non_finite_gradient(logits_fn, jnp.asarray(few.images), jnp.asarray(few.labels)):
        display.note(f"Mind: {warning}. Attacks, that of training too, follow the other entries.")
    summary = {
        **evaluation.accuracies(),
        "eps": config.eps,
        "method": ", ".join(config.certify),
        "attack": f"PGD {config.attack_steps} steps x {config.attack_restarts} starts",
        "seconds": float(saved.seconds),
        "step_seconds": parallel.led(lambda: median_step(folder.metrics())),
        "certify_seconds": time.monotonic() - started,
        "seed": config.seed,
        "test_examples": len(dataset.test),
        "verified_by": {name: int((evaluation.proved_by == name).sum()) for name in methods},
        "step": step,
        "skipped": int(saved.state.bad.skipped),
        "warnings": [warning] if warning else [],
        "params_sha256": fingerprint(params),
        "state_sha256": fingerprint(saved.state),
        "versions": environment.versions(environment.TRAINING),
        "device": environment.device(),
    }

    def write() -> None:
        content = page.render(config, summary, folder.metrics(), evaluation, curve, dataset.test)
        arrays = {"certificates.npz": certificates(evaluation, dataset.test), CURVE: curve_text(curve)}
        told = {**summary, "files_sha256": sha256_of_files(arrays)}
        folder.write_all({"report.html": content, **arrays, "summary.json": json.dumps(told, indent=2) + "\n"})

    parallel.alone(write)
    return summary


def median_step(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds of a step: the median of the medians of the rows; None where those are of an earlier version."""
    medians = [row["step_seconds"][0] for row in rows if "step_seconds" in row]
    return statistics.median(medians) if medians else None


def certificates(evaluation: certify.Evaluation, split: data.Split) -> bytes:
    """What is known of each test image, in their order, as the bytes of an `.npz` file."""
    return image_table.pack({"labels": split.labels, **vars(evaluation)})
