"""Attacks: `attack(key, logits_fn, x, labels, ball) -> x_adv`, pure and batched."""

from mixtrain_jax.attacks.pgd import pgd

__all__ = ["pgd"]
