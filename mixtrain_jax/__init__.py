"""Neural networks whose robustness is proved: bound, train, certify.

`import mixtrain_jax as mt`, then `mt.ibp`, `mt.symbolic`, `mt.crown` and `mt.margins` for bounds of JAX functions,
`mt.mixing` for dynamic weights. Bounds need jax alone; the other modules are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mixtrain_jax.bounds import (
    Ball,
    BoundsError,
    Interval,
    UnsupportedPrimitiveError,
    alpha_crown,
    crown,
    crown_ibp,
    ibp,
    intersect,
    l1_ball,
    l2_ball,
    linf_ball,
    margins,
    symbolic,
)

if TYPE_CHECKING:
    from mixtrain_jax import (
        attacks,
        bounds,
        certify,
        experiment,
        foreign,
        losses,
        mixing,
        models,
        objectives,
        parallel,
        subsample,
    )
    from mixtrain_jax.certify import judge
    from mixtrain_jax.runs import Run, load_run
    from mixtrain_jax.verify import verify

__version__ = "0.1.0"

__all__ = [
    "Ball",
    "BoundsError",
    "Interval",
    "Run",
    "UnsupportedPrimitiveError",
    "alpha_crown",
    "attacks",
    "bounds",
    "certify",
    "crown",
    "crown_ibp",
    "experiment",
    "foreign",
    "ibp",
    "intersect",
    "judge",
    "l1_ball",
    "l2_ball",
    "linf_ball",
    "load_run",
    "losses",
    "margins",
    "mixing",
    "models",
    "objectives",
    "parallel",
    "subsample",
    "symbolic",
    "verify",
]

_LATER = {"judge": "mixtrain_jax.certify", "load_run": "mixtrain_jax.runs", "Run": "mixtrain_jax.runs"}

_PARTS = {
    "attacks",
    "certify",
    "experiment",
    "foreign",
    "losses",
    "mixing",
    "models",
    "objectives",
    "parallel",
    "subsample",
    "verify",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    if name in _PARTS:
        return importlib.import_module(f"mixtrain_jax.{name}")
    raise AttributeError(f"module 'mixtrain_jax' has no attribute '{name}'")
