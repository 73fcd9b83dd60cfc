"""Thousands of programs are compiled by these tests and run for microseconds: what makes that fast."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jaxlib

# jaxlib 0.10 generates code in two ways, of which users have the newer one and the older one compiles in half the time.
_TWO_WAYS = jaxlib.version.__version_info__ < (0, 11)
_NEWER: dict[str, Any] = {"xla_cpu_use_fusion_emitters": True} if _TWO_WAYS else {}

# What all tests compile with, as XLA reads it from the environment.
# In one piece, since the tests keep all cores busy and splitting a program for several threads is a fifth of the work.
FLAGS = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        *["--xla_cpu_use_fusion_emitters=false"] * _TWO_WAYS,
    ]
)
# For tests of floating point that have no tolerance: code as users have it, but not optimized.
jit = functools.partial(jax.jit, compiler_options=_NEWER)
# Code as users have it.
optimizing_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3, **_NEWER})
