"""Reparametrisations: the parameters of a network as a pure function of fewer numbers; one file each.

The numbers are what is trained, saved and decayed. Losses, attacks, bounds and certificates see the parameters that are
made of them, so whatever holds for a network holds for one that is masked or factored.
"""

from mixtrain_jax.reparam.base import Plain, Reparam, wrapped
from mixtrain_jax.reparam.kronecker import Kronecker
from mixtrain_jax.reparam.mask import Mask
from mixtrain_jax.schema import Choice

REPARAMS = Choice({"plain": Plain(), "mask": Mask(), "kronecker": Kronecker()})
"""Reparametrisations by the name that a config has for them."""

__all__ = ["REPARAMS", "Kronecker", "Mask", "Plain", "Reparam", "wrapped"]
