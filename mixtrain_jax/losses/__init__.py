"""Losses of training: one file each, one value an example; whoever averages does so outside."""

from mixtrain_jax.losses.attacked import Attacked
from mixtrain_jax.losses.base import Context, Loss, Values
from mixtrain_jax.losses.bounded import Bounded, robust_loss
from mixtrain_jax.losses.clean import Clean, clean_loss
from mixtrain_jax.losses.costly import Costly, costly_loss
from mixtrain_jax.losses.expressive import CcIbp, ExpIbp, MtlIbp
from mixtrain_jax.losses.input_gradient import InputGradient
from mixtrain_jax.losses.sabr import Sabr
from mixtrain_jax.losses.trades import Trades

__all__ = [
    "Attacked",
    "Bounded",
    "CcIbp",
    "Clean",
    "Context",
    "Costly",
    "ExpIbp",
    "InputGradient",
    "Loss",
    "MtlIbp",
    "Sabr",
    "Trades",
    "Values",
    "clean_loss",
    "costly_loss",
    "robust_loss",
]
