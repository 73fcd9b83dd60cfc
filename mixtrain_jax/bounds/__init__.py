"""Sound bounds of JAX functions, as function transformations. Imports jax and nothing else."""

from mixtrain_jax.bounds.alpha_crown import alpha_crown
from mixtrain_jax.bounds.crown import crown, crown_ibp
from mixtrain_jax.bounds.curves import Curve
from mixtrain_jax.bounds.custom_rule import CustomRule, custom_rule
from mixtrain_jax.bounds.engine import Bounded, Hidden
from mixtrain_jax.bounds.errors import BoundsError, UnsupportedPrimitiveError
from mixtrain_jax.bounds.ibp import ibp
from mixtrain_jax.bounds.interval import Ball, Interval, intersect, l1_ball, l2_ball, linf_ball
from mixtrain_jax.bounds.margins import group_size, margins, specification
from mixtrain_jax.bounds.methods import METHODS, method, methods
from mixtrain_jax.bounds.properties import Inequality, Junction, all_of, any_of, inequality, property_margin
from mixtrain_jax.bounds.rules import Rule, register
from mixtrain_jax.bounds.symbolic import Method, symbolic
from mixtrain_jax.bounds.undefined import Undefined, explain

__all__ = [
    "METHODS",
    "Ball",
    "Bounded",
    "BoundsError",
    "Curve",
    "CustomRule",
    "Hidden",
    "Inequality",
    "Interval",
    "Junction",
    "Method",
    "Rule",
    "Undefined",
    "UnsupportedPrimitiveError",
    "all_of",
    "alpha_crown",
    "any_of",
    "crown",
    "crown_ibp",
    "custom_rule",
    "explain",
    "group_size",
    "ibp",
    "inequality",
    "intersect",
    "l1_ball",
    "l2_ball",
    "linf_ball",
    "margins",
    "method",
    "methods",
    "property_margin",
    "register",
    "specification",
    "symbolic",
]
