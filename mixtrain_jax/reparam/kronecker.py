"""Dense layers as sums of Kronecker products."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from mixtrain_jax.errors import ConfigError
from mixtrain_jax.schema import Range


@dataclasses.dataclass(frozen=True)
class Kronecker:
    """Matrices W = sum_r A_r (x) B_r, of which A_r and B_r are trained.

    A matrix of m1 m2 rows and n1 n2 columns takes R (m1 n1 + m2 n2) numbers. Rows and columns are factored as evenly as
    they can be. The start is the nearest such sum in the Frobenius norm, by a singular value decomposition (Van Loan
    and Pitsianis, 1993). Arrays of other than two dimensions, and matrices that would not get smaller, stay.

    Attributes:
      terms: R: products that are summed; 1 to 64.
    """

    terms: Annotated[int, Range(1, 64)] = 1

    def init(self, params: Any) -> Any:
        """The factors, `left [R, m1, n1]` and `right [R, m2, n2]` in place of each matrix.

        Raises:
          ConfigError: where no matrix gets smaller.
        """
        theta = jax.tree.map(lambda leaf: self._factors(leaf) if self._shrinks(leaf) else leaf, params)
        if not any(map(_is_factored, jax.tree.leaves(theta, is_leaf=_is_factored))):
            shapes = ", ".join(str(list(leaf.shape)) for leaf in jax.tree.leaves(params) if leaf.ndim == 2)
            raise ConfigError(
                f"reparam kronecker with {self.terms} terms makes no matrix of this network smaller ("
                f"{shapes or 'none'}). Choose fewer terms, a width with divisors, or another reparam."
            )
        return theta

    def realise(self, theta: Any) -> Any:
        """The matrices."""
        return jax.tree.map(lambda leaf: _product(leaf) if _is_factored(leaf) else leaf, theta, is_leaf=_is_factored)

    def _shrinks(self, leaf: jax.Array) -> bool:
        if leaf.ndim != 2:
            return False
        (m1, m2), (n1, n2) = map(_factor, leaf.shape)
        return self.terms * (m1 * n1 + m2 * n2) < leaf.size

    def _factors(self, matrix: jax.Array) -> dict[str, jax.Array]:
        (m1, m2), (n1, n2) = map(_factor, matrix.shape)
        rearranged = matrix.reshape(m1, m2, n1, n2).transpose(0, 2, 1, 3).reshape(m1 * n1, m2 * n2)
        with jax.default_matmul_precision("highest"):
            u, s, v = jnp.linalg.svd(rearranged, full_matrices=False)
        roots = jnp.sqrt(s[: self.terms])
        left, right = u[:, : self.terms] * roots[None], v[: self.terms] * roots[:, None]
        return {"left": left.T.reshape(-1, m1, n1), "right": right.reshape(-1, m2, n2)}


def _factor(size: int) -> tuple[int, int]:
    """The two factors of a size that are closest to each other, the smaller one first."""
    small = next(d for d in range(math.isqrt(size), 0, -1) if size % d == 0)
    return small, size // small


def _is_factored(node: Any) -> bool:
    return isinstance(node, Mapping) and node.keys() == {"left", "right"}


def _product(factors: Mapping[str, jax.Array]) -> jax.Array:
    left, right = factors["left"], factors["right"]
    (_, m1, n1), (_, m2, n2) = left.shape, right.shape
    return jnp.einsum("rab,rcd->acbd", left, right).reshape(m1 * m2, n1 * n2)
