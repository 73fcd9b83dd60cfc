"""The cascade: CROWN, attacks on what is open, alpha-CROWN, branch and bound."""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.bounds import Ball, BoundsError, Interval
from mixtrain_jax.bounds.interval import check
from mixtrain_jax.verify import falsify, inputs, neurons
from mixtrain_jax.verify.falsify import Counterexample, Target
from mixtrain_jax.verify.network import Network
from mixtrain_jax.verify.problem import Problem, problem_of
from mixtrain_jax.verify.search import Grown, Outcome, Tree, search
from mixtrain_jax.verify.specification import specified

Branching = Literal["auto", "neurons", "inputs"]
FEW_INPUTS = 20  # that can change, up to which boxes of inputs are split
_SMALL, _CPU_BATCH, _BATCH = 8, 64, 512


@dataclasses.dataclass(frozen=True)
class Answer:
    """What verification found.

    Attributes:
      status: `proved` for every input of the ball, in floating point too; `broken` by a counterexample; else `open`.
      counterexample: an input that was replayed on the deployed network, which strictly violates the property there.
      bound: the least lower bound of what is open, of all subdomains where it is proved, and above 0 then; the
        violation where it is broken.
      by: what decided, the last thing tried where it is open: `attack`, `crown`, `alpha_crown`, or the branching on
        `neurons` or `inputs`.
      domains: subdomains that were bounded.
      seconds: of wall time, compilation included.
      reason: why it is open: `timeout`, `memory`, or `exhausted` where no subdomain can be split any further.
    """

    status: Literal["proved", "broken", "open"]
    counterexample: Counterexample | None
    bound: float
    by: str
    domains: int
    seconds: float
    reason: str = ""


class Verifier:
    """Verification of one network; what it compiles is kept from query to query.

    Args:
      apply: `(params, inputs [n, ...]) -> outputs [n, ...]`, examples independent of each other.
      params: weights, any pytree.
      shape: of one input.
      dtype: of inputs.
      batch: subdomains bounded at a time; None for what suits the backend.
      memory: bytes that coefficients of the first backward passes, and open subdomains, may take each; None for no
        limit.

    Example:
      >>> import jax.numpy as jnp
      >>> import mixtrain_jax as mt
      >>> from mixtrain_jax.verify import Verifier
      >>> verifier = Verifier(lambda w, x: jnp.maximum(x, 0.0) @ w, jnp.array([[1.0, -1.0]]), (1,))
      >>> answer = verifier.verify(mt.linf_ball(jnp.array([2.0]), 0.5), 0)
      >>> answer.status, round(answer.bound, 3)
      ('proved', 3.0)
      >>> verifier.verify(mt.linf_ball(jnp.array([2.0]), 0.5), 1).status
      'broken'
    """

    def __init__(
        self,
        apply: Callable[[Any, jax.Array], jax.Array],
        params: Any,
        shape: tuple[int, ...],
        *,
        dtype: Any = jnp.float32,
        batch: int | None = None,
        memory: int | None = None,
    ):
        self.network, self.params = Network(apply, tuple(shape), jnp.dtype(dtype)), params
        self.batch = batch or (_CPU_BATCH if jax.default_backend() == "cpu" else _BATCH)
        self.memory = memory
        self._neurons, self._inputs = neurons.Programs(self.network, memory), inputs.Programs(self.network)

    def with_params(self, params: Any) -> Verifier:
        """The verifier of the same network with other weights of the same shapes; it compiles nothing anew."""
        other = copy.copy(self)
        other.params = params
        return other

    def verify(
        self,
        ball: Interval,
        spec: Any,
        *,
        timeout: float = 60.0,
        key: jax.Array | None = None,
        attack: bool = True,
        branching: Branching = "auto",
        attacked: Interval | None = None,
        poll: Callable[[int, int], None] = lambda bounded, still_open: None,
    ) -> Answer:
        """Prove a property of all inputs of a ball, or find one that breaks it.

        Args:
          ball: of one input: `linf_ball`, any `Interval` box, `l2_ball` or `l1_ball`.
          spec: the label that must win; a pair `(rows [k, outputs], offsets)` of which `rows @ y + offsets` must be
            positive in every entry; or a `Specification`.
          timeout: seconds, after which the best that is known is returned; a call on the device is not cut short.
          key: random key of attacks; by default that of seed 0.
          attack: whether inputs are searched by gradients before branching. Points at which bounds are worst are
            tried in any case.
          branching: what is split: `neurons`, `inputs`, or by the number of inputs that can change.
          attacked: where counterexamples may lie; by default the ball. Give a ball rounded inwards to prove of one
            rounded outwards.
          poll: called with the numbers of subdomains bounded and open; whatever it raises ends the search.

        Raises:
          BoundsError: where the ball is malformed or has another shape than the network's input, or the specification
            does not fit the network.
          UnsupportedPrimitiveError: where bounds have no rule for an operation of the network.
        """
        started = time.monotonic()
        query = self._query(ball, spec, branching, attacked, started + timeout, poll)
        with jax.default_matmul_precision("highest"):
            found, by = query.run(jax.random.key(0) if key is None else key, attack)
        status = "broken" if found.counterexample else "open" if found.reason else "proved"
        seconds = time.monotonic() - started
        return Answer(status, found.counterexample, found.bound, by, found.domains, seconds, found.reason)

    def compile(self, ball: Interval, spec: Any, *, attack: bool = True, branching: Branching = "auto") -> None:
        """Compile what queries of this kind call, so that their time is all spent on the search.

        Args:
          ball: any of one shape and kind with those of the queries.
          spec: any with as many clauses and rows in the longest clause.
          attack: as for `verify`.
          branching: as for `verify`.

        Raises:
          BoundsError: as `verify` does.
          UnsupportedPrimitiveError: as `verify` does.
        """
        query = self._query(ball, spec, branching, None, 0.0, lambda bounded, still_open: None)
        with jax.default_matmul_precision("highest"):
            query.compile(attack)

    def _query(
        self,
        ball: Interval,
        spec: Any,
        branching: Branching,
        attacked: Interval | None,
        deadline: float,
        poll: Callable[[int, int], None],
    ) -> _Query:
        ball = check(ball)
        if ball.shape != self.network.shape or ball.dtype != self.network.dtype:
            raise BoundsError(
                f"The network takes one input {self.network.dtype}{list(self.network.shape)}, got a ball "
                f"{ball.dtype}{list(ball.shape)}."
            )
        if branching not in ("auto", "neurons", "inputs"):
            raise BoundsError(f"branching is auto, neurons or inputs, got {branching!r}.")
        if branching == "inputs" and isinstance(ball, Ball):
            raise BoundsError("Inputs are split in boxes, and the ball is none: branching='neurons' takes it.")
        spec = specified(spec, self.network.outputs(self.params))
        target = Target(self.network, self.params, spec, ball if attacked is None else attacked)
        return _Query(self, ball, target, branching, deadline, poll)


@dataclasses.dataclass(frozen=True)
class _Query:
    verifier: Verifier
    ball: Interval
    target: Target
    branching: Branching
    deadline: float
    poll: Callable[[int, int], None]

    @functools.cached_property
    def problem(self) -> Problem:
        """The specification as arrays."""
        return problem_of(self.target.spec, self.verifier.network.dtype)

    @property
    def few_inputs(self) -> bool:
        """Whether boxes of inputs are what is split."""
        changing = int((np.asarray(self.ball.lower) < np.asarray(self.ball.upper)).sum())
        few = changing <= FEW_INPUTS and not isinstance(self.ball, Ball)
        return self.branching == "inputs" or (self.branching == "auto" and few)

    def run(self, key: jax.Array, attack: bool) -> tuple[Outcome, str]:
        """The outcome, and what decided."""
        if found := falsify.replayed(self.target, np.asarray(falsify.middle(self.target.ball))):
            return Outcome(found, found.violation, 0, ""), "attack"
        attacked = functools.partial(self.attacked, key) if attack else lambda clauses: None
        return self.on_inputs(attacked) if self.few_inputs else self.on_neurons(attacked)

    def compile(self, attack: bool) -> None:
        """Call everything once, on nothing much."""
        falsify.replayed(self.target, np.asarray(falsify.middle(self.target.ball)))
        if attack:
            falsify.search(jax.random.key(0), self.target, self.problem, [0], steps=1, restarts=1)
        if self.few_inputs:
            self.boxes().start()
        else:
            self.neurons(self.root()).compile()

    def boxes(self) -> inputs.InputTree:
        """The tree of boxes of inputs."""
        verifier = self.verifier
        return inputs.InputTree(verifier.params, verifier._inputs, self.problem, self.ball, verifier.batch)

    def root(self) -> neurons.Root:
        """The whole domain."""
        return self.verifier._neurons.root(self.verifier.params, self.ball, self.problem)

    def neurons(self, root: neurons.Root) -> neurons.NeuronTree:
        """The tree of signs of neurons."""
        verifier = self.verifier
        sizes = sorted({min(_SMALL, verifier.batch), verifier.batch})
        return neurons.NeuronTree(verifier.params, verifier._neurons, root, self.problem, sizes)

    def on_inputs(self, attacked: Callable[..., Outcome | None]) -> tuple[Outcome, str]:
        """CROWN on the whole box, an attack, and branch and bound on boxes."""
        tree = self.boxes()
        start = tree.start()
        if not start.nodes[0].bound > 0 and (found := attacked(np.arange(self.target.spec.clauses))):
            return found, "attack"
        found = self.search(tree, start)
        return found, "crown" if found.domains == 1 and not found.reason else "inputs"

    def on_neurons(self, attacked: Callable[..., Outcome | None]) -> tuple[Outcome, str]:
        """CROWN on the whole ball, an attack on the clauses that are open, alpha-CROWN, and branch and bound."""
        root = self.root()
        lower = np.asarray(root.lower).max(-1)
        clauses = np.flatnonzero(~(lower > 0))
        if not clauses.size:
            return Outcome(None, float(lower.min()), 1, ""), "crown"
        if self.branching == "auto" and not isinstance(self.ball, Ball) and not np.asarray(root.unstable).any():
            return self.on_inputs(attacked)  # nothing bends at a point that can be split
        if found := attacked(clauses):
            return found, "attack"
        tree = self.neurons(root)
        found = self.search(tree, tree.start(clauses))
        return found, "alpha_crown" if found.domains == len(clauses) else "neurons"

    def attacked(self, key: jax.Array, clauses: np.ndarray) -> Outcome | None:
        """What gradients find."""
        found = falsify.search(key, self.target, self.problem, clauses)
        return Outcome(found, found.violation, 1, "") if found else None

    def search(self, tree: Tree, start: Grown) -> Outcome:
        """Branch and bound within the limits."""
        limits = {"deadline": self.deadline, "memory": self.verifier.memory, "poll": self.poll}
        return search(tree, start, functools.partial(falsify.first_replayed, self.target), **limits)


def verify(
    apply: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    ball: Interval,
    spec: Any,
    *,
    timeout: float = 60.0,
    memory: int | None = None,
    key: jax.Array | None = None,
    attack: bool = True,
    branching: Branching = "auto",
) -> Answer:
    """Prove a property of all inputs of a ball, or find one that breaks it; for many queries, keep a `Verifier`.

    Args:
      apply: `(params, inputs [n, ...]) -> outputs [n, ...]`, examples independent of each other.
      params: weights, any pytree.
      ball: of one input, as for `Verifier.verify`.
      spec: as for `Verifier.verify`.
      timeout: as for `Verifier.verify`.
      memory: as for `Verifier`.
      key: as for `Verifier.verify`.
      attack: as for `Verifier.verify`.
      branching: as for `Verifier.verify`.

    Raises:
      BoundsError: as `Verifier.verify` does.
      UnsupportedPrimitiveError: as `Verifier.verify` does.
    """
    ball = check(ball)
    verifier = Verifier(apply, params, ball.shape, dtype=ball.dtype, memory=memory)
    return verifier.verify(ball, spec, timeout=timeout, key=key, attack=attack, branching=branching)
