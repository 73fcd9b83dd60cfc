"""Complete verification: proved, broken by a counterexample, or open with the reason."""

import sys
import types

from mixtrain_jax.verify.falsify import Counterexample
from mixtrain_jax.verify.specification import Specification, all_positive, margins_of, unsafe_if_any
from mixtrain_jax.verify.verifier import Answer, Verifier, verify

__all__ = [
    "Answer",
    "Counterexample",
    "Specification",
    "Verifier",
    "all_positive",
    "margins_of",
    "unsafe_if_any",
    "verify",
]


class _Door(types.ModuleType):
    """`mt.verify` is this room and its front door: `mt.verify(...)` calls `verify`."""

    __call__ = staticmethod(verify)


sys.modules[__name__].__class__ = _Door
