"""Attacks on whole batches: pure functions of a key, a network and a ball, `-> x_adv`."""

from mixtrain_jax.attacks.apgd import apgd
from mixtrain_jax.attacks.checks import flags, non_finite_gradient
from mixtrain_jax.attacks.combinators import bpda, chunked, eot, restarts, targeted, worst_of
from mixtrain_jax.attacks.fab import fab
from mixtrain_jax.attacks.feature import feature
from mixtrain_jax.attacks.in_turn import NO_CLASS, Record, in_turn, smaller
from mixtrain_jax.attacks.interval_attack import interval_attack
from mixtrain_jax.attacks.objectives import Objective, cross_entropy, dlr, margin
from mixtrain_jax.attacks.pgd import descend, fgsm, pgd
from mixtrain_jax.attacks.search import Attack, LogitsFn, Poll
from mixtrain_jax.attacks.square import square
from mixtrain_jax.attacks.standard import QUICK, Budget, standard, standard_attacks

__all__ = [
    "NO_CLASS",
    "QUICK",
    "Attack",
    "Budget",
    "LogitsFn",
    "Objective",
    "Poll",
    "Record",
    "apgd",
    "bpda",
    "chunked",
    "cross_entropy",
    "descend",
    "dlr",
    "eot",
    "fab",
    "feature",
    "fgsm",
    "flags",
    "in_turn",
    "interval_attack",
    "margin",
    "non_finite_gradient",
    "pgd",
    "restarts",
    "smaller",
    "square",
    "standard",
    "standard_attacks",
    "targeted",
    "worst_of",
]
