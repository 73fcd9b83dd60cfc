"""Properties of outputs beyond the margin of a label: linear inequalities joined by "and" and "or"."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mixtrain_jax.bounds.errors import BoundsError
from mixtrain_jax.bounds.outward import round_down
from mixtrain_jax.bounds.symbolic import Method


@dataclasses.dataclass(frozen=True, eq=False)
class Inequality:
    """`sum(row * y) + offset > 0` for an output `y` of the row's shape; joined by `all_of` and `any_of`."""

    row: jax.Array
    offset: jax.Array


@dataclasses.dataclass(frozen=True)
class Junction:
    """Properties that must hold all, or of which one must."""

    kind: Literal["all", "any"]
    parts: tuple[Property, ...]


Property = Inequality | Junction


def inequality(row: ArrayLike, offset: ArrayLike = 0.0) -> Inequality:
    """The property `sum(row * y) + offset > 0` of an output `y`.

    Args:
      row: coefficients, of the output's shape, as their dtype in jax has them.
      offset: a scalar, rounded down to its dtype in jax: what is proved holds for the decimal number.

    Raises:
      BoundsError: where a coefficient is not finite or the offset is no finite scalar.
    """
    row, offset = np.asarray(row), np.asarray(offset)
    if offset.ndim or not np.isfinite(offset) or not np.all(np.isfinite(row)):
        raise BoundsError(f"inequality wants finite coefficients and a finite scalar offset, got {row} and {offset}.")
    kind = jnp.result_type(offset)
    return Inequality(
        jnp.asarray(row), jnp.asarray(round_down(offset, kind) if jnp.issubdtype(kind, jnp.floating) else offset)
    )


def all_of(*parts: Property) -> Junction:
    """The property that all of these hold."""
    return _junction("all", parts)


def any_of(*parts: Property) -> Junction:
    """The property that at least one of these holds at every point, the same one for all points or not."""
    return _junction("any", parts)


def _junction(kind: Literal["all", "any"], parts: tuple[Property, ...]) -> Junction:
    if not parts or not all(isinstance(part, Inequality | Junction) for part in parts):
        raise BoundsError(f"{kind}_of wants one or more properties, made by inequality, all_of or any_of; got {parts}.")
    return Junction(kind, parts)


def property_margin(method: Method, f: Callable[..., jax.Array], wanted: Property) -> Callable[..., jax.Array]:
    """Lower bound of how far a property of `f`'s output holds; the property is proved where that is positive.

    The margin of an inequality is its left side, that of `all_of` the least of its parts' and that of `any_of` the
    largest. All inequalities are folded into the affine maps that end `f`, in one backward pass.

    Args:
      method: `ibp`, `symbolic`, `crown`, `crown_ibp`, or one of them with options by `functools.partial`.
      f: a function with one output array.
      wanted: the property.

    Returns:
      A function of `f`'s arguments, of which any leaf may be an `Interval`, that returns a scalar.

    Raises:
      BoundsError: (the returned function) where a row doesn't have the shape of the output.

    Example:
      >>> import jax.numpy as jnp
      >>> import mixtrain_jax as mt
      >>> small = mt.bounds.all_of(mt.bounds.inequality([1.0], 3.0), mt.bounds.inequality([-1.0], 3.0))  # |y| < 3
      >>> mt.bounds.property_margin(mt.crown, lambda x: 2 * x, small)(mt.linf_ball(jnp.array([0.5]), 0.25)).item()
      1.5
    """
    atoms = _atoms(wanted)

    def margin(*args: Any) -> jax.Array:
        bounded = method(f)
        shapes = {atom.row.shape for atom in atoms}
        if len(shapes) > 1:
            raise BoundsError(f"property_margin wants rows of one shape, got {sorted(shapes)}.")
        lower = bounded.rows(jnp.stack([atom.row for atom in atoms]), *args).lower
        # The sum is rounded once.
        offsets = jnp.stack([atom.offset for atom in atoms]).astype(lower.dtype)
        values = lower + offsets
        if bounded.domain.sound:
            values = values - 2 * float(jnp.finfo(values.dtype).eps) * jnp.abs(values)
        return _margin(wanted, dict(zip(map(id, atoms), values, strict=True)))

    return margin


def _atoms(wanted: Property) -> list[Inequality]:
    if isinstance(wanted, Inequality):
        return [wanted]
    return list({id(atom): atom for part in wanted.parts for atom in _atoms(part)}.values())


def _margin(wanted: Property, values: dict[int, jax.Array]) -> jax.Array:
    if isinstance(wanted, Inequality):
        return values[id(wanted)]
    join = jnp.minimum if wanted.kind == "all" else jnp.maximum
    return functools.reduce(join, (_margin(part, values) for part in wanted.parts))
