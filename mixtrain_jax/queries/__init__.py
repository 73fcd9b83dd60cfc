"""Queries answered: from files of networks and of VNN-LIB to sat with an assignment, unsat, or why not."""

from mixtrain_jax.queries.networks import Subject, subject_of
from mixtrain_jax.queries.session import Answer, Session, Witness

__all__ = ["Answer", "Session", "Subject", "Witness", "subject_of"]
