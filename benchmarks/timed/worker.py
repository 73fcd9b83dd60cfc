"""A process that times the measures of one network, and the one that watches it.

A measure may run out of memory, crash or take for ever: the process that runs it is then ended and started again
without it, and what was compiled comes from a cache.
"""

from __future__ import annotations

import importlib
import multiprocessing
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import jax

from mixtrain_jax.environment import device
from timed import peers
from timed.curves import CURVES
from timed.measures import MEASURES, Bench
from timed.nets import NETS
from timed.turns import Timed, peak_mib, room, sample, take_turns


class Options(NamedTuple):
    """How things are timed."""

    rounds: int
    seconds: float  # for one measure: to compile and run it once, and for all its turns
    cache: str  # folder of compiled programs
    batch: int | None = None
    few: int | None = None
    gib: float | None = None  # that one measure may take


def work(connection: Connection, group: str, names: Sequence[str], options: Options) -> None:
    """Time the measures of a network, of peers by MEASURE@PEER, or the sizes of a curve; send what is found.

    Sends ("device", words); ("begin", name), then ("ready", name, facts) or ("failed", name, why) of each; then
    ("time", name, round, wall seconds, CPU seconds) of each turn; at last ("done",).
    """
    warnings.simplefilter("ignore")  # peers warn of much
    jax.config.update("jax_compilation_cache_dir", options.cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    connection.send(("device", device()))
    bench = Bench(NETS[group], options.batch, options.few) if group in NETS else None
    limit = room() if options.gib is None else options.gib * 2**30
    ready: dict[str, Timed] = {}
    results: dict[str, Any] = {}
    first: dict[str, float] = {}
    for name in names:
        connection.send(("begin", name))
        measure, _, peer = name.partition("@")
        try:
            if bench is None:
                timed = CURVES[group].make(int(name))
            else:
                timed = peers.prepare(measure, peer, bench) if peer else MEASURES[measure](bench)
            if (timed.costs.bytes or 0) > limit:
                raise MemoryError(f"would take {timed.costs.bytes / 2**30:.2g} GiB")
            before, started = peak_mib(), time.perf_counter()
            result = jax.block_until_ready(timed.call())
            called = time.perf_counter() - started
            after = peak_mib()
            first[name], _ = sample(timed, 1)
        except Exception as error:  # Whatever one measure or peer fails by, the others still count.
            connection.send(("failed", name, f"{type(error).__name__}: {str(error).strip()[:200]}"))
            continue
        facts: dict[str, Any] = {**timed.costs._asdict(), "batch": len(bench.of(measure).labels) if bench else None}
        facts["compile_seconds"] = facts["compile_seconds"] or max(called - first[name], 0.0)
        facts["peak_mib"] = None if before is None or after is None else after - before
        if timed.read:
            results[name] = timed.read(result)
        if peer and timed.read and measure in results:
            facts |= peers.compare(measure, results[measure], results[name])
        connection.send(("ready", name, facts))
        ready[name] = timed
    for i, name, wall, cpu in take_turns(ready, first, options.rounds, options.seconds):
        connection.send(("time", name, i, wall, cpu))
    connection.send(("done",))


class Found(NamedTuple):
    """What is known of the measures of one network, or of the sizes of one curve."""

    facts: dict[str, dict[str, Any]]
    failed: dict[str, str]
    wall: dict[str, dict[int, float]]  # seconds by name and round
    cpu: dict[str, dict[int, float]]
    device: list[str]  # in words, once it is known


def watch(group: str, names: Sequence[str], options: Options, say: Callable[[str], None] = print) -> Found:
    """Time measures in a process of their own, and again without the one that ended it or took too long.

    This process does not touch the accelerator itself, of which one process would take all memory.
    """
    found = Found({}, {}, {}, {}, [])
    facts, failed = found.facts, found.failed
    while True:
        left = [name for name in names if name not in failed]
        found = Found(facts, failed, {}, {}, found.device)
        why = _attempt(group, left, options, found)
        if why is None:
            break
        name, reason = why
        if not name:
            raise RuntimeError(f"A process that was to time {group} did not get as far as a first measure: {reason}.")
        say(f"{group}: {name}: {reason}; going on without it")
        failed[name] = reason
    return found


def _attempt(group: str, names: Sequence[str], options: Options, found: Found) -> tuple[str, str] | None:
    """One process; the measure that ended it early, and why."""
    context = multiprocessing.get_context("spawn")  # JAX has threads
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(theirs, group, names, options), daemon=True)
    process.start()
    theirs.close()
    name, began = "", time.monotonic()
    patience = 120.0  # to import everything
    try:
        while True:
            if not ours.poll(max(began + patience - time.monotonic(), 0)):
                return name, f"not done after {options.seconds:g} s"
            kind, *rest = ours.recv()
            began = time.monotonic()
            if kind == "device":
                found.device[:] = rest
            elif kind == "begin":
                (name,), patience = rest, options.seconds
            elif kind == "ready":
                found.facts.setdefault(rest[0], rest[1])  # of a first time, before there was a cache
                patience = 120.0
            elif kind == "failed":
                found.failed[rest[0]] = rest[1]
            elif kind == "time":
                name, i, wall, cpu = rest
                found.wall.setdefault(name, {})[i], found.cpu.setdefault(name, {})[i] = wall, cpu
                patience = 10 * options.seconds + 120
            else:
                return None
    except EOFError:
        process.join()
        return name, f"the process ended with code {process.exitcode}"
    finally:
        process.kill()
        process.join()
        ours.close()


def importable(wanted: Sequence[str], say: Callable[[str], None] = print) -> list[str]:
    """The peers that can be imported; says of the others why not."""
    found = []
    for peer in wanted:
        try:
            with warnings.catch_warnings(action="ignore"):
                importlib.import_module(peer)
            found.append(peer)
        except Exception as error:  # An old library can fail at import in any way.
            say(f"{peer} cannot be imported and is left out: {type(error).__name__}: {error}")
    return found
