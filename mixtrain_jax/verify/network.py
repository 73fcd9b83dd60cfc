"""The network that is verified, as a function of one input."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.bounds import BoundsError


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network without its weights, and what it compiles for any of them.

    Attributes:
      apply: `(params, inputs [n, ...]) -> outputs [n, ...]`, examples independent of each other.
      shape: of one input.
      dtype: of inputs.
    """

    apply: Callable[[Any, jax.Array], jax.Array]
    shape: tuple[int, ...]
    dtype: Any = jnp.float32

    def of_one(self, params: Any, x: jax.Array) -> jax.Array:
        """Outputs `[outputs]` of one input, flattened."""
        return self.apply(params, x[None]).reshape(-1)

    def outputs(self, params: Any) -> int:
        """Number of outputs.

        Raises:
          BoundsError: where the network returns anything but one floating array.
        """
        out = jax.eval_shape(self.apply, params, jax.ShapeDtypeStruct((1, *self.shape), self.dtype))
        if not isinstance(out, jax.ShapeDtypeStruct) or not jnp.issubdtype(out.dtype, jnp.floating):
            raise BoundsError(f"Verification wants a network of one floating output array, got {out}.")
        return math.prod(out.shape)

    @functools.cached_property
    def many(self) -> Callable[[Any, jax.Array], jax.Array]:
        """`(params, inputs [n, ...]) -> outputs [n, outputs]`, each by itself; compiled, the same object every time."""
        return jax.jit(jax.vmap(self.of_one, (None, 0)))

    @functools.cached_property
    def _deployed(self) -> Callable[[Any, jax.Array], jax.Array]:
        return jax.jit(self.apply)

    def deployed(self, params: Any, x: np.ndarray) -> np.ndarray:
        """Outputs `[outputs]` of one input as the network computes them in a batch of one."""
        return np.asarray(self._deployed(params, jnp.asarray(x)[None])).reshape(-1)
