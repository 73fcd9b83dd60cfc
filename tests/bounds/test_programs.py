"""Random programs of a hundred operations: what is deployed, and float64, are inside of sound bounds."""

from __future__ import annotations

import programs
import pytest
from test_probes import promotion_as_users_have_it

__all__ = ["promotion_as_users_have_it"]  # a fixture that every test of this file uses


@pytest.mark.parametrize("seed", range(5))
def test_random_programs_stay_inside_of_their_bounds(seed: int) -> None:
    found = programs.check(seed, "ibp", compiled=True, count=10, each=32)
    assert found.operations >= 100
    assert not found.violations, found.worst
    assert found.points > 0
