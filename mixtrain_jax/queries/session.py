"""Queries answered one after another; what is compiled for a network serves all of the same structure."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.bounds import BoundsError, Interval
from mixtrain_jax.queries.networks import Loaded, Subject, load, subject_of
from mixtrain_jax.verify import Counterexample, Specification, Verifier
from mixtrain_jax.verify.screen import Screen
from mixtrain_jax.verify.verifier import FEW_INPUTS
from mixtrain_jax.verify.vnnlib import Case, Network, Query, as_assignment, as_pairs, read_query

Status = Literal["sat", "unsat", "timed-out", "unknown"]
_KEPT = 8  # structures whose programs are kept, and networks
_KEYS = 3  # random keys that are tried where a counterexample fails in ONNX Runtime


class Witness(NamedTuple):
    """A satisfying assignment.

    Attributes:
      inputs: float64 `[inputs]`, inside the bounds of the query; networks get them rounded to float32.
      outputs: what networks make of them `[outputs]`, by ONNX Runtime where it is installed.
      replayed: whether they are by ONNX Runtime.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    replayed: bool


class Answer(NamedTuple):
    """What is known of a query.

    Attributes:
      query: that was asked.
      status: `sat` with a witness, `unsat`, `timed-out`, or `unknown`.
      reason: why it is neither sat nor unsat.
      witness: of `sat`.
      by: what decided the case that took longest, or was tried last.
      domains: subdomains that were bounded.
      seconds: from files to the answer.
      compiling: those of them that were spent on compilation apart from the search; 0 where it is not apart.
    """

    query: Query
    status: Status
    reason: str
    witness: Witness | None
    by: str
    domains: int
    seconds: float
    compiling: float

    def assignment(self) -> str:
        """The witness as text: in the form of VNN-LIB 2.0, or of the competition for queries of version 1.0."""
        assert self.witness is not None
        inputs, outputs, _ = self.witness
        if self.query.version.startswith("1"):
            return as_pairs(inputs, outputs)
        return as_assignment(self.query, inputs, outputs)


class Session:
    """Answers queries.

    Args:
      memory: bytes, as for `verify.Verifier`.
      seed: of attacks.
      attack: whether inputs are searched by gradients before branching.
      compile_apart: whether the search of a first network and query of a kind is compiled before their time starts.
    """

    def __init__(self, *, memory: int | None = None, seed: int = 0, attack: bool = True, compile_apart: bool = False):
        self.memory, self.attack, self._key = memory, attack, jax.random.key(seed)
        self.compile_apart, self._compiled = compile_apart, set()
        self._verifiers: dict[Hashable, tuple[Verifier, Screen]] = {}
        self._loaded: dict[tuple, Loaded] = {}

    def ask(self, query: Path | str, networks: Mapping[str, Path], timeout: float = 60.0) -> Answer:
        """Answer a query.

        Args:
          query: its file.
          networks: files by the names of networks, as for `subject_of`.
          timeout: seconds, from now on, but for compilation where it is apart; a call on the device is not cut short.

        Raises:
          QueryError: where the query cannot be read, or files do not belong to it.
          ModelError: where a network cannot be read.
        """
        started = time.monotonic()
        read = read_query(query)
        subject = subject_of(read, networks, self._load)
        return _Asked(self, read, subject, started, started + timeout).answer()

    def _load(self, path: Path, network: Network) -> Loaded:
        stamp = path.stat() if path.exists() else None
        key = (path.resolve(), stamp and (stamp.st_mtime_ns, stamp.st_size), network.inputs.shape)
        return _kept(self._loaded, key, lambda: load(path, network))

    def _verifier(self, subject: Subject) -> tuple[Verifier, Screen]:
        def make() -> tuple[Verifier, Screen]:
            verifier = Verifier(subject.apply, subject.params, subject.shape, memory=self.memory)
            return verifier, Screen(verifier.network)

        verifier, screen = _kept(self._verifiers, subject.structure, make)
        return verifier.with_params(subject.params), screen


def _kept(kept: dict, key: Hashable, make: Callable):
    """What is kept by this key, or made now; of the rest the latest."""
    found = kept.pop(key) if key in kept else make()
    while len(kept) >= _KEPT:
        del kept[next(iter(kept))]
    kept[key] = found
    return found


class _Asked:
    """One query while it is answered."""

    def __init__(self, session: Session, query: Query, subject: Subject, started: float, deadline: float):
        self.session, self.query, self.subject, self.started, self.deadline = session, query, subject, started, deadline
        self.by, self.domains, self.reasons, self.compiling = "", 0, {}, 0.0
        self.key = session._key

    def answer(self) -> Answer:
        try:
            witness = self._search()
        except BoundsError as error:  # of operations without a rule, too
            return self._answered("unknown", str(error))
        if witness is not None:
            return self._answered("sat", "", witness)
        if not self.reasons:
            return self._answered("unsat", "")
        cases = len(self.query.cases)
        reason = next(iter(self.reasons.values()))
        where = f"{len(self.reasons)} of {cases} boxes are open, the first one: {reason}" if cases > 1 else reason
        return self._answered("timed-out" if "timeout" in self.reasons.values() else "unknown", where)

    def _answered(self, status: Status, reason: str, witness: Witness | None = None) -> Answer:
        seconds = time.monotonic() - self.started
        return Answer(self.query, status, reason, witness, self.by, self.domains, seconds, self.compiling)

    def _left(self) -> float:
        return self.deadline - time.monotonic()

    def _search(self) -> Witness | None:
        """The first witness. What stays open is in `reasons`, by case."""
        verifier, screen = self.session._verifier(self.subject)
        left = list(range(len(self.query.cases)))
        if len(left) > 1:
            proved = self._screened(screen, left)
            left = [i for i, done in zip(left, proved, strict=True) if not done]
        self.reasons = dict.fromkeys(left, "timeout")
        while self.reasons and self._left() > 0:
            before, left = dict(self.reasons), [i for i, reason in self.reasons.items() if reason == "timeout"]
            for place, i in enumerate(left):
                witness = self._case(verifier, i, self._left() / (len(left) - place))
                if witness is not None:
                    return witness
                if self._left() <= 0:
                    return None
            if before == self.reasons or not left:
                return None
        return None

    def _screened(self, screen: Screen, cases: list[int]) -> np.ndarray:
        boxes = [
            (case.lower.reshape(self.subject.shape), case.upper.reshape(self.subject.shape))
            for case in self.query.cases
        ]
        self.by, self.domains = "crown", len(cases)
        with jax.default_matmul_precision("highest"):
            return screen.proved(
                self.subject.params,
                boxes,
                lambda i: self.query.specification(self.query.cases[i]),
                lambda: self._left() <= 0,
            )

    def _case(self, verifier: Verifier, i: int, seconds: float) -> Witness | None:
        """A witness of a case. Where it is proved, it is left out of `reasons`; else its reason is there."""
        case = self.query.cases[i]
        box, spec = _box(case.lower, case.upper, self.subject.shape), self.query.specification(case)
        self._compile(verifier, box, spec)
        until = time.monotonic() + seconds
        for _ in range(_KEYS):
            self.key, key = jax.random.split(self.key)
            found = verifier.verify(
                box,
                spec,
                timeout=max(until - time.monotonic(), 0.0),
                key=key,
                attack=self.session.attack,
                attacked=_box(*case.attacked(), self.subject.shape),
            )
            self.by, self.domains = found.by, self.domains + found.domains
            if found.status == "proved":
                del self.reasons[i]
                return None
            if found.counterexample is None:
                self.reasons[i] = found.reason
                return None
            witness = self._witness(case, found.counterexample)
            if witness is not None:
                return witness
            self.reasons[i] = "a counterexample does not hold as ONNX Runtime computes the network"
        return None

    def _compile(self, verifier: Verifier, box: Interval, spec: Specification) -> None:
        """Compile the search, once for a kind of network and query, and take its time off none of theirs."""
        few = int(jnp.sum(box.lower < box.upper)) <= FEW_INPUTS
        kind = (self.subject.structure, spec.clauses, int(np.bincount(spec.clause).max()), few)
        if not self.session.compile_apart or kind in self.session._compiled:
            return
        started = time.monotonic()
        verifier.compile(box, spec, attack=self.session.attack)
        self.session._compiled.add(kind)
        self.compiling += time.monotonic() - started
        self.deadline += time.monotonic() - started

    def _witness(self, case: Case, found: Counterexample) -> Witness | None:
        """The counterexample, if it satisfies the query exactly as it will be written, on every runtime there is."""
        tried = found.x.reshape(-1)
        inputs, outputs = case.reported(tried), found.output[: self.query.outputs]
        if not np.array_equal(inputs.astype(np.float32), tried) or not self.query.holds(case, inputs, outputs):
            return None
        if self.subject.replay is None:
            return Witness(inputs, outputs, False)
        outputs = self.subject.replay(tried)
        return Witness(inputs, outputs, True) if self.query.holds(case, inputs, outputs) else None


def _box(lower: np.ndarray, upper: np.ndarray, shape: tuple[int, ...]) -> Interval:
    return Interval(jnp.asarray(lower.reshape(shape)), jnp.asarray(upper.reshape(shape)))
