"""Attacks on whole batches: pure functions of a key, a network and a ball, `-> x_adv`."""

from collections.abc import Callable

import jax

from mixtrain_jax.attacks.pgd import descend, pgd

Attack = Callable[..., jax.Array]

__all__ = ["Attack", "descend", "pgd"]
