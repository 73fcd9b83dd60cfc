"""A query: what is asked, of which networks."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path

import numpy as np

from mixtrain_jax.errors import QueryError
from mixtrain_jax.verify.specification import Specification
from mixtrain_jax.verify.vnnlib.cases import Case, cases_of, features_of, specification_of
from mixtrain_jax.verify.vnnlib.declarations import Network
from mixtrain_jax.verify.vnnlib.parser import parse
from mixtrain_jax.verify.vnnlib.terms import Monomial
from mixtrain_jax.verify.vnnlib.text import MAX_BYTES, read_text


@dataclasses.dataclass(frozen=True, eq=False)
class Query:
    """Is there an input, in the box of one of the cases, for which outputs are unsafe?

    Inputs of all networks form one vector, in the order of the declarations, and so do outputs.

    Attributes:
      version: of VNN-LIB, "1.0" where the file doesn't say.
      networks: as declared; one in version 1.0.
      cases: what is asked, in the order of the file; none where no input is in any box.
      features: products that comparisons are of besides outputs: inputs alone, and products of several variables.
        Columns of specifications are outputs, then these.
    """

    version: str
    networks: tuple[Network, ...]
    cases: tuple[Case, ...]
    features: tuple[Monomial, ...]

    @property
    def inputs(self) -> int:
        """Number of inputs of all networks."""
        return sum(network.inputs.size for network in self.networks)

    @property
    def outputs(self) -> int:
        """Number of outputs of all networks."""
        return sum(network.outputs.size for network in self.networks)

    def specification(self, case: Case) -> Specification:
        """What is unsafe in a case, of the vector of outputs and features; a superset where numbers are rounded.

        Raises:
          QueryError: where float64 cannot hold a coefficient of an output.
        """
        return specification_of(case, self.outputs, self.features)

    def holds(self, case: Case, inputs: np.ndarray, outputs: np.ndarray) -> bool:
        """Whether an assignment satisfies a case, in exact arithmetic.

        Args:
          case: one of the cases.
          inputs: float64 `[inputs]`.
          outputs: of the networks for these inputs, `[outputs]`.
        """
        values = [*map(float, inputs), *map(float, outputs[::-1])]
        return bool(np.all(np.isfinite(values))) and case.contains(inputs) and case.unsafe(values)


def parse_query(text: str) -> Query:
    """Read the text of a query in VNN-LIB 1.0 or 2.0.

    Raises:
      QueryError: where it is damaged, or asks for something that is not supported.
    """
    collecting = gc.isenabled()
    gc.disable()  # of a hundred thousand comparisons none is garbage, and looking for it takes a third of the time
    try:
        version, networks, asserted = parse(text)
        cases = tuple(cases_of(asserted, sum(network.inputs.size for network in networks)))
        return Query(version, networks, cases, features_of(cases))
    finally:
        if collecting:
            gc.enable()


def read_query(path: Path | str, max_bytes: int = MAX_BYTES) -> Query:
    """Read a file in VNN-LIB 1.0 or 2.0, packed by gzip or not.

    Args:
      path: the file.
      max_bytes: of the file, and of what it unpacks to.

    Raises:
      QueryError: where it is missing, too large, damaged, or asks for something that is not supported.
    """
    try:
        return parse_query(read_text(Path(path), max_bytes))
    except QueryError as error:
        raise error if str(error).startswith(str(path)) else QueryError(f"{path}: {error}") from None
