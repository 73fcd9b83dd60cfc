"""Hundreds of programs are compiled by these tests and run for microseconds: what makes that fast."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jaxlib

# What bounds in floating point are tested with.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# jaxlib 0.10 generates code in two ways, of which this compiles in half the time. For tests that have a tolerance.
_OLDER: dict[str, Any] = {"xla_cpu_use_fusion_emitters": False} if jaxlib.version.__version_info__ < (0, 11) else {}
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0, **_OLDER})
