"""Lines below and above a nonlinear function on an interval.

Each function takes arrays `lower <= upper` and returns slopes and offsets of the same shape with
`lower_slope * x + lower_offset <= f(x) <= upper_slope * x + upper_offset` for every `x` in between.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Slopes = Literal["parallel", "adaptive"] | jax.Array


class Lines(NamedTuple):
    """A line below and a line above; parallel ones share the *same* slope array, which is how a walk knows."""

    lower_slope: jax.Array
    lower_offset: jax.Array | None  # None: the line goes through the origin
    upper_slope: jax.Array
    upper_offset: jax.Array | None


def relu(lower: jax.Array, upper: jax.Array, slopes: Slopes) -> Lines:
    """Relax `max(x, 0)`.

    Both kinds share the upper line, the chord with slope `u / (u - l)` over an unstable interval. `parallel` takes the
    same slope below (symbolic intervals of MixTrain, arXiv 1811.02625; Fast-Lin; DeepZ). `adaptive` takes slope 1 where
    `u > -l` and 0 elsewhere (CROWN, arXiv 1811.00866, section 3.2), which has the smaller area. An array of slopes
    between 0 and 1 is taken as it is (alpha-CROWN, arXiv 2011.13824).
    """
    unstable = (lower < 0) & (upper > 0)
    active = (lower >= 0).astype(lower.dtype)
    # The inner `where` keeps the unused branch finite, so that gradients are too.
    chord = jnp.where(unstable, upper / jnp.where(unstable, upper - lower, 1), active)
    offset = jnp.where(unstable, -chord * lower, 0)
    if isinstance(slopes, str) and slopes == "parallel":
        return Lines(chord, None, chord, offset)
    chosen = (upper > -lower).astype(lower.dtype) if isinstance(slopes, str) else slopes
    steep = jnp.where(unstable, chosen, active)
    return Lines(steep, None, chord, offset)
