"""Attacks on whole batches: pure functions of a key, a network and a ball, `-> x_adv`."""

from mixtrain_jax.attacks.pgd import descend, pgd

__all__ = ["descend", "pgd"]
