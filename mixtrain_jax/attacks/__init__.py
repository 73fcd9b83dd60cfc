"""Attacks on whole batches: pure functions of a key, a network and a ball, `-> x_adv`."""

from mixtrain_jax.attacks.apgd import apgd, apgd_targeted
from mixtrain_jax.attacks.checks import flags
from mixtrain_jax.attacks.fab import fab_targeted
from mixtrain_jax.attacks.pgd import descend, pgd
from mixtrain_jax.attacks.square import square
from mixtrain_jax.attacks.standard import QUICK, Budget, Record, standard, standard_record

__all__ = [
    "QUICK",
    "Budget",
    "Record",
    "apgd",
    "apgd_targeted",
    "descend",
    "fab_targeted",
    "flags",
    "pgd",
    "square",
    "standard",
    "standard_record",
]
