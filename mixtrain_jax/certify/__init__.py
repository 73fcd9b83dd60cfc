"""How much of a data set is classified rightly, survives an attack, is proved; certificates of it, and their check."""

from mixtrain_jax.bounds import methods
from mixtrain_jax.certify.certificates import Certificate, Certificates, Header, certificates_of, read, text, write
from mixtrain_jax.certify.checker import Report, verify
from mixtrain_jax.certify.complete import Completion, complete
from mixtrain_jax.certify.evaluation import Curve, Evaluation, evaluate, measure_curve
from mixtrain_jax.certify.judge import CUSTOMARY, METHODS, SUITES, Judgement, Layer, judge, suite
from mixtrain_jax.threat import Threat

__all__ = [
    "CUSTOMARY",
    "METHODS",
    "SUITES",
    "Certificate",
    "Certificates",
    "Completion",
    "Curve",
    "Evaluation",
    "Header",
    "Judgement",
    "Layer",
    "Report",
    "Threat",
    "certificates_of",
    "complete",
    "evaluate",
    "judge",
    "measure_curve",
    "methods",
    "read",
    "suite",
    "text",
    "verify",
    "write",
]
