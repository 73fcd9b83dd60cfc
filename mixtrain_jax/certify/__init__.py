"""How much of a data set is classified rightly, survives an attack, is proved."""

from mixtrain_jax.certify.evaluation import Curve, Evaluation, evaluate, measure_curve, methods

__all__ = ["Curve", "Evaluation", "evaluate", "measure_curve", "methods"]
