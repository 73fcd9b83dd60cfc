"""How much of a data set is classified rightly, survives an attack, is proved; certificates of it, and their check."""

from mixtrain_jax.certify.certificates import Certificate, Certificates, Header, certificates_of, read, write
from mixtrain_jax.certify.checker import Report, verify
from mixtrain_jax.certify.evaluation import Curve, Evaluation, evaluate, measure_curve, methods

__all__ = [
    "Certificate",
    "Certificates",
    "Curve",
    "Evaluation",
    "Header",
    "Report",
    "certificates_of",
    "evaluate",
    "measure_curve",
    "methods",
    "read",
    "verify",
    "write",
]
