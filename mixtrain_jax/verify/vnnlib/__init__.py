"""Queries in VNN-LIB 1.0 and 2.0: from a file to boxes of inputs and specifications of outputs.

A reader of our own. The package vnnlib 1.0 (2026) reads version 2.0 alone and no exponents (`1e-6`), and a few thousand
nested parentheses end its process, which a file that is not trusted must not do.
"""

from mixtrain_jax.verify.vnnlib.assignment import as_assignment, as_pairs
from mixtrain_jax.verify.vnnlib.cases import Case
from mixtrain_jax.verify.vnnlib.declarations import Network, Tensor
from mixtrain_jax.verify.vnnlib.query import Query, parse_query, read_query

__all__ = ["Case", "Network", "Query", "Tensor", "as_assignment", "as_pairs", "parse_query", "read_query"]
