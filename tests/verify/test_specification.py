import numpy as np
import pytest

from mixtrain_jax.bounds import BoundsError
from mixtrain_jax.verify import Specification, all_positive, margins_of, unsafe_if_any
from mixtrain_jax.verify.specification import specified


def test_margins_of_a_label_are_violated_by_a_larger_logit():
    spec = margins_of(1, 3)
    assert spec.violation([[0, 2, 1], [3, 2, 1], [2, 2, 1]]).tolist() == [-1, 1, 0]


def test_clauses_are_conjunctions_and_one_of_them_is_enough():
    spec = unsafe_if_any([([[1, 0], [0, 1]], [-1, -1]), ([[-1, 0]], [-5])])
    assert spec.clauses == 2
    assert spec.violation([[2, 3], [2, 0], [-6, 0]]).tolist() == [1, -1, 1]


def test_rows_that_must_be_positive_are_unsafe_where_one_is_not():
    spec = all_positive([[1, 0], [0, 1]], 0.5)
    assert spec.violation([[1, 1], [1, -1]]).tolist() == [-1.5, 0.5]


def test_rounding_never_makes_a_violation():
    """0.1 + 0.2 - 0.3 is positive in float64, and the exact sum of these three doubles is smaller than its error."""
    spec = Specification([[0.1, 0.2, -0.3]], [0], [0])
    assert spec.rows[0].sum() > 0 >= spec.violation([1, 1, 1])


def test_outputs_that_are_no_numbers_violate_nothing():
    assert not margins_of(0, 2).violation([0, np.nan]) > 0
    assert not margins_of(0, 2).violation([np.inf, np.inf]) > 0


@pytest.mark.parametrize("spec", [1, np.int64(1), ([[-1.0, 1.0]], 0.0), margins_of(1, 2)])
def test_what_users_write_means_the_same(spec):
    assert specified(spec, 2).violation([[3, 1], [1, 3]]).tolist() == [2, -2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Specification([[1, 0]], [0], [1]), "numbered"),
        (lambda: Specification([[1, 0], [0, 1]], [0, 0], [0, 2]), "numbered"),
        (lambda: Specification([[1, np.nan]], [0], [0]), "finite"),
        (lambda: Specification([1, 0], [0], [0]), r"\[k, outputs\]"),
        (lambda: margins_of(3, 3), "label 3 of 3"),
        (lambda: unsafe_if_any([]), "at least one clause"),
        (lambda: specified("all", 3), "got 'all'"),
        (lambda: specified(margins_of(0, 2), 3), "of 2 outputs"),
        (lambda: specified(1.5, 3), "got 1.5"),
    ],
)
def test_malformed_specifications_say_what_is_wrong(make, message):
    with pytest.raises(BoundsError, match=message):
        make()
