"""Mixing rules: how much each term of an objective weighs, step by step; one file each."""

from mixtrain_jax.mixing.balanced import balanced
from mixtrain_jax.mixing.base import Metrics, MixRule, Signals, Weights
from mixtrain_jax.mixing.constrained import ConstrainedState, constrained
from mixtrain_jax.mixing.fixed import constant, convex, schedule
from mixtrain_jax.mixing.mgda import mgda
from mixtrain_jax.mixing.staircase import staircase

__all__ = [
    "ConstrainedState",
    "Metrics",
    "MixRule",
    "Signals",
    "Weights",
    "balanced",
    "constant",
    "constrained",
    "convex",
    "mgda",
    "schedule",
    "staircase",
]
