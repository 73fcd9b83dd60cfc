"""How much of a data set is classified rightly, survives an attack, is proved."""

from mixtrain_jax.certify.evaluation import Curve, Evaluation, evaluate, measure_curve, methods
from mixtrain_jax.certify.threat import Threat

__all__ = ["Curve", "Evaluation", "Threat", "evaluate", "measure_curve", "methods"]
