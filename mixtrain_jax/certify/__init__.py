"""How much of a data set is classified rightly, survives an attack, is proved."""

from mixtrain_jax.certify.evaluation import Curve, Evaluation, evaluate, measure_curve, methods
from mixtrain_jax.certify.judge import CUSTOMARY, METHODS, SUITES, Judgement, Layer, judge, suite
from mixtrain_jax.certify.threat import Threat

__all__ = [
    "CUSTOMARY",
    "METHODS",
    "SUITES",
    "Curve",
    "Evaluation",
    "Judgement",
    "Layer",
    "Threat",
    "evaluate",
    "judge",
    "measure_curve",
    "methods",
    "suite",
]
