"""Sound bounds of JAX functions, as function transformations. Imports jax and nothing else."""

from mixtrain_jax.bounds.crown import crown, crown_ibp
from mixtrain_jax.bounds.errors import BoundsError, UnsupportedPrimitiveError
from mixtrain_jax.bounds.ibp import ibp
from mixtrain_jax.bounds.interval import Interval, intersect, linf_ball
from mixtrain_jax.bounds.margins import Method, margins
from mixtrain_jax.bounds.rules import Rule, register
from mixtrain_jax.bounds.symbolic import symbolic

__all__ = [
    "BoundsError",
    "Interval",
    "Method",
    "Rule",
    "UnsupportedPrimitiveError",
    "crown",
    "crown_ibp",
    "ibp",
    "intersect",
    "linf_ball",
    "margins",
    "register",
    "symbolic",
]
