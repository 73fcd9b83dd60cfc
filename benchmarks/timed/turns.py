"""Programs that are compiled apart from what is timed, and contenders that take turns."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

SAMPLE = 0.05  # seconds that one sample lasts at least: short calls are repeated


class Costs(NamedTuple):
    """What a program costs before it runs."""

    compile_seconds: float = 0.0  # tracing included
    flops: float | None = 0.0  # None where XLA does not tell, or counts a loop's body once
    bytes: float | None = 0.0  # of results and of what lies between, arguments apart; None where XLA does not tell


class Timed(NamedTuple):
    """One contender, ready to be timed."""

    call: Callable[[], Any]  # its result may be under way still
    costs: Costs = Costs(0.0, None, None)
    read: Callable[[Any], tuple[np.ndarray, ...]] | None = None  # what to compare with a peer's


def together(parts: Sequence[Costs]) -> Costs:
    """What programs cost that run one after another."""
    seconds, flops, size = zip(*parts, strict=True)
    return Costs(sum(seconds), None if None in flops else sum(flops), None if None in size else max(size))


def program(
    f: Callable[..., Any], *args: Any, loops: bool = False, whole: Callable[..., Any] | None = None
) -> tuple[Callable[..., Any], Costs]:
    """A function compiled for these arguments, and its costs.

    Args:
      f: the function.
      *args: its arguments.
      loops: whether it has loops, in which FLOPs are not counted rightly: they are not known then.
      whole: what computes the same without loops, whose FLOPs are counted in its place.
    """
    started = time.perf_counter()
    compiled = _compiled(f, args)
    seconds = time.perf_counter() - started
    flops = None if loops else ((_compiled(whole, args) if whole else compiled).cost_analysis() or {}).get("flops")
    memory = compiled.memory_analysis()
    size = None if memory is None else memory.temp_size_in_bytes + memory.output_size_in_bytes
    return compiled, Costs(seconds, flops, size)


def _compiled(f: Callable[..., Any], args: Sequence[Any]) -> Any:
    return (f if hasattr(f, "lower") else jax.jit(f)).lower(*args).compile()


def sample(timed: Timed, repeats: int) -> tuple[float, float]:
    """Wall and CPU seconds of a call, mean over as many as are repeated."""
    wall, cpu, result = time.perf_counter(), time.process_time(), None
    for _ in range(repeats):
        result = timed.call()
    jax.block_until_ready(result)
    return (time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats


def take_turns(
    contenders: Mapping[str, Timed], first: Mapping[str, float], rounds: int, seconds: float
) -> Iterator[tuple[int, str, float, float]]:
    """Time all in turn, round by round; one that has had its seconds is left out of the later rounds.

    Args:
      contenders: what is timed; each has been called before.
      first: seconds that a call took then.
      rounds: how often each has its turn.
      seconds: for each contender; it has one turn at least.

    Yields:
      Round, name, wall and CPU seconds of a call.
    """
    repeats = {name: min(50, max(1, math.ceil(SAMPLE / max(first[name], 1e-9)))) for name in contenders}
    spent = dict.fromkeys(contenders, 0.0)
    for i in range(rounds):
        for name, timed in contenders.items():
            if spent[name] * (i + 1) <= seconds * max(i, 1):
                wall, cpu = sample(timed, repeats[name])
                spent[name] += wall * repeats[name]
                yield i, name, wall, cpu


def quartiles(values: list[float]) -> list[float]:
    """First quartile, median, third quartile."""
    return [float(q) for q in np.quantile(values, [0.25, 0.5, 0.75])] if values else []


def ratio(over: Mapping[int, float], under: Mapping[int, float]) -> list[float]:
    """Quartiles of a ratio, over the rounds in which both had their turn."""
    return quartiles([over[i] / under[i] for i in over if i in under])


def median(values: Mapping[int, float]) -> float:
    """Median over the rounds."""
    return statistics.median(values.values())


def room() -> float:
    """Bytes that a measure may take: most of the accelerator, or half of what the host has left."""
    if stats := jax.local_devices()[0].memory_stats():
        return 0.9 * stats["bytes_limit"]
    available = Path("/proc/meminfo")
    if available.exists():
        (kib,) = (line.split()[1] for line in available.read_text().splitlines() if line.startswith("MemAvailable"))
        return int(kib) * 512
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


def peak_mib() -> float | None:
    """Peak memory of this process so far, in MiB, where Linux tells."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    (peak,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak) / 2**10
