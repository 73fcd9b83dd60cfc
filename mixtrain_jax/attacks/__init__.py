"""Attacks on whole batches: pure functions of a key, a network and a ball, `-> x_adv`."""

from mixtrain_jax.attacks.combinators import bpda, chunked, eot, restarts, targeted, worst_of
from mixtrain_jax.attacks.feature import feature
from mixtrain_jax.attacks.interval_attack import interval_attack
from mixtrain_jax.attacks.objectives import Objective, cross_entropy, dlr, margin
from mixtrain_jax.attacks.pgd import descend, fgsm, pgd
from mixtrain_jax.attacks.search import Attack

__all__ = [
    "Attack",
    "Objective",
    "bpda",
    "chunked",
    "cross_entropy",
    "descend",
    "dlr",
    "eot",
    "feature",
    "fgsm",
    "interval_attack",
    "margin",
    "pgd",
    "restarts",
    "targeted",
    "worst_of",
]
