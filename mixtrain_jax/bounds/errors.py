"""What can go wrong when a bound is asked for."""


class BoundsError(ValueError):
    """The input of a bound is malformed: shapes, dtypes, NaN, crossed or negative radii."""


class UnsupportedPrimitiveError(NotImplementedError):
    """A function uses a primitive that has no rule for the interval operands it was given."""
