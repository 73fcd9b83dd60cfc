"""Complete verification: proved, broken by a counterexample, or open with the reason."""

from mixtrain_jax.verify.specification import Specification, all_positive, margins_of, unsafe_if_any

__all__ = ["Specification", "all_positive", "margins_of", "unsafe_if_any"]
