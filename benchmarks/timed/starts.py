"""What is timed in fresh processes: imports, and the time to the first training step; on one core in CPU seconds."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

_IMPORTS = """
import os, time
clock = time.process_time if len(os.sched_getaffinity(0)) == 1 else time.perf_counter
start = clock()
import jax
between = clock()
import mixtrain_jax
print(between - start, clock() - between)
"""
_FIRST_STEP = """
import os, sys, time
import jax
from timed.measures import Bench, certified
from timed.nets import NETS
bench = Bench(NETS[sys.argv[1]])
jax.block_until_ready(certified(bench.trainer, bench.problem, "ibp", 8).call())
print(time.process_time() if len(os.sched_getaffinity(0)) == 1 else time.time() - float(sys.argv[2]))
"""


def imports(rounds: int) -> list[tuple[float, float]]:
    """Seconds of `import jax`, and of `import mixtrain_jax` after it, in so many fresh processes."""
    return [(jax, ours) for jax, ours in (_run(_IMPORTS) for _ in range(rounds))]


def first_step(net: str) -> tuple[float, float]:
    """Seconds from the start of a process to the end of its first step of mixed training, cold and warm.

    Imports, first weights, tracing and compilation included; warm is with the compilation cache of the cold one.
    """
    with tempfile.TemporaryDirectory() as folder:
        cache = {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        (cold,), (warm,) = (_run(_FIRST_STEP, net, str(time.time()), **cache) for _ in range(2))
    return cold, warm


def _run(code: str, *arguments: str, **variables: str) -> list[float]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return [float(x) for x in done.stdout.split()]
