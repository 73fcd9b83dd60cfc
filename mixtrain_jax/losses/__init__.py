"""Losses of training: one file each, one value an example; whoever averages does so outside."""

from mixtrain_jax.losses.attacked import Attacked
from mixtrain_jax.losses.base import Context, Loss, Values
from mixtrain_jax.losses.bounded import Bounded, robust_loss
from mixtrain_jax.losses.clean import Clean, clean_loss

__all__ = ["Attacked", "Bounded", "Clean", "Context", "Loss", "Values", "clean_loss", "robust_loss"]
