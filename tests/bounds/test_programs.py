"""Random programs of a hundred operations: what is deployed, and float64, are inside of sound bounds."""

from __future__ import annotations

import programs
import pytest
from test_probes import promotion_as_users_have_it

__all__ = ["promotion_as_users_have_it"]  # a fixture that every test of this file uses

# Op by op, a program finds most of its code compiled by programs before; backward passes have more of it, so they get
# shorter programs.
FORWARDS = 42
BACKWARDS = [name for name in programs.METHODS if name != "ibp"]


def _assert_holds(seed: int, method: str, operations: int, compiled: bool = False) -> None:
    found = programs.check(seed, method, compiled=compiled, count=10, each=32, operations=operations)
    assert found.operations >= operations
    assert not found.violations, found.worst
    assert found.points > 0


@pytest.mark.parametrize("seed", range(FORWARDS))
def test_random_programs_stay_inside_of_their_bounds(seed: int) -> None:
    _assert_holds(seed, "ibp", 100, compiled=seed < 3)


@pytest.mark.parametrize(("seed", "method"), list(enumerate(BACKWARDS, FORWARDS)), ids=BACKWARDS)
def test_every_method_bounds_random_programs(seed: int, method: str) -> None:
    _assert_holds(seed, method, 15)


def test_there_are_fifty() -> None:
    assert FORWARDS + len(BACKWARDS) == 50
