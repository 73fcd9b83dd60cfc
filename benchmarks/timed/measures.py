"""What is timed of this package, by name: functions of a problem that return something ready to be timed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mixtrain_jax as mt
from mixtrain_jax import certify, losses, mixing
from mixtrain_jax.attacks import cross_entropy, pgd
from mixtrain_jax.bounds.cpu import ordered
from mixtrain_jax.bounds.loops import total
from mixtrain_jax.losses import Attacked, Bounded, Clean
from mixtrain_jax.objectives import Term
from mixtrain_jax.threat import Threat
from mixtrain_jax.training.state import NonFinite, Totals, TrainState
from mixtrain_jax.training.steps import Batch, LossAndGrad, Steps, grouped, make_steps
from timed.nets import DOMAIN, EPS, Net, Problem, make_problem
from timed.turns import Costs, Timed, program, together

CHUNK = 256  # rows of a layer that CROWN has in memory at a time
ATTACK_STEPS = 20
FEW = ("symbolic", "crown")  # bounds with a backward pass from every layer


def method(bound: str, *, sound: bool = False, chunk: int | None = CHUNK) -> mt.bounds.Method:
    """A bound method by name; rows in chunks where it takes them."""
    found = certify.methods([bound], sound=sound)[bound]
    return functools.partial(found, chunk=chunk) if bound == "crown" else found


def of_arrays(f: Callable[..., Any], *args: Any, **options: Any) -> Timed:
    """A compiled function of arrays; of a gradient the norm is what can be compared. Options are those of `program`."""
    run, costs = program(f, *args, **options)
    return Timed(lambda: run(*args), costs, read)


def read(result: Any) -> tuple[np.ndarray, ...]:
    """The arrays of a result; of a gradient, a list of tuples, the norm."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(result)]
    return (norm(leaves),) if isinstance(result, list) else tuple(leaves)


def norm(arrays: list[np.ndarray]) -> np.ndarray:
    """Norm of all arrays together."""
    return np.sqrt(sum(np.square(x, dtype=np.float64).sum() for x in arrays))


# --- single functions -----------------------------------------------------------------------------------------------


def matmul() -> Timed:
    """A large product of float32 matrices at the default precision: the rate that others are a share of."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size))
    run, costs = program(jnp.matmul, x, x)
    return Timed(lambda: run(x, x), costs._replace(flops=2.0 * size**3))


def forward(problem: Problem) -> Timed:
    """Logits."""
    return of_arrays(problem.apply, problem.params, problem.images)


def gradient(problem: Problem) -> Timed:
    """Gradient of the clean loss for the parameters."""

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        return losses.clean_loss(problem.apply(params, images), labels).mean()

    return of_arrays(jax.grad(loss), problem.params, problem.images, problem.labels)


def logits(problem: Problem, bound: str) -> Timed:
    """Bounds of the logits."""

    def bounds(params: Any, ball: mt.Interval) -> Any:
        return method(bound)(functools.partial(problem.apply, params))(ball)

    return of_arrays(bounds, problem.params, problem.ball)


def group_of(problem: Problem, f: mt.bounds.Method | None, examples: int) -> int | None:
    """How many examples are worked on at a time, as in training and certification; None where all are."""
    logits_fn = functools.partial(problem.apply, problem.params)
    group = mt.bounds.group_size(f, logits_fn, problem.images.shape[1:])
    return None if group is None or group >= examples else group


def margins(problem: Problem, bound: str, sound: bool = False, chunk: int | None = CHUNK) -> Timed:
    """Lower bounds of all margins; soundly in floating point, at the highest precision, if asked for."""
    f = method(bound, sound=sound, chunk=chunk)
    group = group_of(problem, f, len(problem.labels))

    def bounds(group: int | None, params: Any, ball: mt.Interval, labels: jax.Array) -> Any:
        return mt.margins(f, functools.partial(problem.apply, params), group=group)(ball, labels)

    with jax.default_matmul_precision("highest" if sound else None):
        made, whole = functools.partial(bounds, group), functools.partial(bounds, None) if group else None
        return of_arrays(made, problem.params, problem.ball, problem.labels, loops=bound == "crown", whole=whole)


def margins_gradient(problem: Problem, bound: str) -> Timed:
    """Gradient for the parameters of the sum of all margins, in groups of examples as in training."""
    f = method(bound)
    group = group_of(problem, f, len(problem.labels))

    def gradient(group: int | None, params: Any, images: jax.Array, labels: jax.Array) -> Any:
        def one(rows: Any) -> Any:
            images, labels, weights, _ = rows

            def part(params: Any) -> jax.Array:
                bounds = mt.margins(f, functools.partial(problem.apply, params))
                found = bounds(mt.linf_ball(images, EPS, DOMAIN), labels).sum(-1)
                return jnp.vdot(weights * len(problem.labels), found)

            return ordered(jax.grad(part))(params)

        rows, size = grouped(Batch(images, labels), group, None)
        return total(one, rows, size)

    made, whole = functools.partial(gradient, group), functools.partial(gradient, None) if group else None
    return of_arrays(made, problem.params, problem.images, problem.labels, loops=bound == "crown", whole=whole)


def _input_gradient(problem: Problem) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return jax.grad(lambda x, y: cross_entropy(problem.apply(problem.params, x), y).sum())


def gradients(problem: Problem) -> Timed:
    """As many gradients for the inputs as an attack takes steps."""
    run, costs = program(_input_gradient(problem), problem.images, problem.labels)

    def call() -> Any:
        return [run(problem.images, problem.labels) for _ in range(ATTACK_STEPS)]

    return Timed(call, together([costs] * ATTACK_STEPS)._replace(compile_seconds=costs.compile_seconds))


def attack(problem: Problem) -> Timed:
    """PGD as it measures: a compiled call a step."""
    logits_fn = functools.partial(problem.apply, problem.params)

    def call() -> jax.Array:
        return pgd(
            *(jax.random.key(0), logits_fn, problem.images, problem.labels, problem.ball),
            **{"steps": ATTACK_STEPS, "restarts": 1, "objective": cross_entropy, "random_start": True},
        )

    return Timed(call)


# --- whole training steps -------------------------------------------------------------------------------------------


def steps(problem: Problem, **terms: Term) -> tuple[Steps, TrainState, Batch]:
    """Steps with the clean loss and these, a first state and one batch."""
    terms = {"clean": Term(Clean()), **terms}
    tx = optax.chain(optax.clip_by_global_norm(10.0), optax.adamw(1e-3, weight_decay=1e-4))
    rule, params = mixing.constrained(0.98, optax.sgd(0.05)), list(problem.params)
    made = make_steps(
        problem.apply,
        terms,
        **{"threat": Threat(EPS, DOMAIN), "eps": optax.constant_schedule(EPS)},
        **{"key": jax.random.key(1), "rule": rule, "tx": tx, "steps_per_epoch": 4},
    )
    zero = jnp.zeros((), jnp.int32)
    params = jax.tree.map(jnp.copy, params)  # an update takes the arrays of its state
    totals, bad = Totals.zeros(terms), NonFinite.none(params, terms)
    state = TrainState(zero, params, tx.init(params), rule.init(), jnp.zeros(()), totals, bad)
    return made, state, Batch(problem.images, problem.labels)


class Trainer:
    """What all training steps on a problem have in common: the state, the clean gradient, and the update.

    The state goes on from step to step, whatever the trainer: an update takes the arrays of the old one.
    """

    def __init__(self, problem: Problem):
        group = group_of(problem, None, len(problem.labels))
        other = Term(Attacked(1), examples=1)
        made, self.state, self.batch = steps(problem, clean=Term(Clean(), microbatch=group), other=other)
        self.skipped = made.skipped(self.state)
        whole = steps(problem, clean=Term(Clean()), other=other)[0].terms["clean"] if group else None
        self.clean, clean_costs = program(made.terms["clean"], self.state, self.batch, whole=whole)
        parts = {"clean": self.skipped, "other": self.skipped}
        self.update, update_costs = program(made.update, self.state, parts)
        self.costs = {"clean": clean_costs, "update": update_costs}

    def step(self, robust: Callable[..., LossAndGrad] | None, costs: Costs, clean: bool = True) -> Timed:
        """A whole step with this robust part, and with the clean one or without."""

        def call() -> jax.Array:
            first = self.clean(self.state, self.batch) if clean else self.skipped
            second = robust(self.state, self.batch) if robust else self.skipped
            self.state = self.update(self.state, {"clean": first, "other": second})
            return self.state.step

        return Timed(call, together([costs, self.costs["update"], *([self.costs["clean"]] if clean else [])]))


def standard(trainer: Trainer) -> Timed:
    """A step of ordinary training."""
    return trainer.step(None, Costs())


def adversarial(trainer: Trainer, problem: Problem, attack_steps: int = 7) -> Timed:
    """A step of adversarial training: no clean loss, an attack on every example."""
    group = group_of(problem, None, len(problem.labels))
    made, state, batch = steps(problem, other=Term(Attacked(attack_steps), microbatch=group))
    robust, costs = program(made.terms["other"], state, batch, loops=True)
    return trainer.step(robust, costs, clean=False)


def certified(trainer: Trainer, problem: Problem, bound: str, share: int) -> Timed:
    """A step of training with sound bounds of one example in so many."""
    k = max(1, len(problem.labels) // share)
    group = group_of(problem, method(bound), k)
    term = Term(Bounded(bound), examples=k)
    made, state, batch = steps(problem, other=term._replace(microbatch=group))
    whole = steps(problem, other=term)[0].terms["other"] if group else None
    robust, costs = program(made.terms["other"], state, batch, whole=whole)
    return trainer.step(robust, costs)


# --- all of them by name --------------------------------------------------------------------------------------------


class Bench:
    """One network with what its measures share, made when it is first wanted."""

    def __init__(self, net: Net, batch: int | None = None, few: int | None = None):
        self.net, self.batch, self.size_of_few = net, batch or net.batch, few or net.few

    @functools.cached_property
    def problem(self) -> Problem:
        """The usual batch."""
        return make_problem(self.net, self.batch)

    @functools.cached_property
    def few(self) -> Problem:
        """A few examples."""
        return make_problem(self.net, self.size_of_few)

    @functools.cached_property
    def many_classes(self) -> Problem:
        """The usual batch, and 1,000 logits on the same trunk."""
        return make_problem(self.net.with_classes(1000), self.batch)

    @functools.cached_property
    def trainer(self) -> Trainer:
        """Training steps on the usual batch."""
        return Trainer(self.problem)

    def of(self, name: str) -> Problem:
        """The problem that a measure is of."""
        if "1000" in name:
            return self.many_classes
        return self.few if name.removeprefix("certify-").split("-")[0] in FEW else self.problem


SHARES = (4, 8, 16)
MEASURES: dict[str, Callable[[Bench], Timed]] = {
    "matmul": lambda bench: matmul(),
    "forward": lambda bench: forward(bench.problem),
    "gradient": lambda bench: gradient(bench.problem),
    "ibp": lambda bench: logits(bench.problem, "ibp"),
    **{
        f"{bound}-margins": lambda bench, bound=bound: margins(bench.of(bound), bound)
        for bound in ("ibp", "crown_ibp", "symbolic", "crown")
    },
    **{
        f"{bound}-gradient": lambda bench, bound=bound: margins_gradient(bench.of(bound), bound)
        for bound in ("ibp", "crown_ibp", "symbolic", "crown")
    },
    "ibp-margins-1000": lambda bench: margins(bench.many_classes, "ibp"),
    "ibp-gradient-1000": lambda bench: margins_gradient(bench.many_classes, "ibp"),
    **{
        f"certify-{bound}": lambda bench, bound=bound: margins(bench.of(bound), bound, sound=True)
        for bound in ("ibp", "crown_ibp", "crown")
    },
    "gradients-20": lambda bench: gradients(bench.problem),
    "pgd-20": lambda bench: attack(bench.problem),
    "step-standard": lambda bench: standard(bench.trainer),
    "step-pgd-7": lambda bench: adversarial(bench.trainer, bench.problem),
    **{
        f"step-{bound}-{'robust' if share == 1 else share}": lambda bench, bound=bound, share=share: certified(
            bench.trainer, bench.problem, bound, share
        )
        for bound in ("ibp", "crown_ibp")
        for share in (1, *SHARES)
    },
    "step-symbolic-8": lambda bench: certified(bench.trainer, bench.problem, "symbolic", 8),
}
