"""Mixing rules: how much each term of an objective weighs, step by step; one file each."""

from mixtrain_jax.mixing.balanced import Balanced, balanced
from mixtrain_jax.mixing.base import Horizon, Metrics, Mixing, MixRule, Signals, Weights
from mixtrain_jax.mixing.constrained import Constrained, ConstrainedState, constrained
from mixtrain_jax.mixing.fixed import Constant, Convex, Ramped, constant, convex, schedule
from mixtrain_jax.mixing.mgda import Mgda, mgda
from mixtrain_jax.mixing.staircase import Staircase, staircase
from mixtrain_jax.schema import Choice

RULES = Choice(
    {
        "constrained": Constrained(),
        "convex": Convex(),
        "constant": Constant(),
        "ramped": Ramped(),
        "staircase": Staircase(),
        "mgda": Mgda(),
        "balanced": Balanced(),
    }
)
"""Settings of rules by the name that a config has for them."""

__all__ = [
    "RULES",
    "Balanced",
    "Constant",
    "Constrained",
    "ConstrainedState",
    "Convex",
    "Horizon",
    "Metrics",
    "Mgda",
    "MixRule",
    "Mixing",
    "Ramped",
    "Signals",
    "Staircase",
    "Weights",
    "balanced",
    "constant",
    "constrained",
    "convex",
    "mgda",
    "schedule",
    "staircase",
]
