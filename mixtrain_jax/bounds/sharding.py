"""A `shard_map` as the function of whole arrays that it is.

Shards become leading dimensions, mapped over by `jax.vmap` under the names of the mesh axes: collectives of the body
turn into sums and copies along them, for which there are rules. What is computed is the same, on one device or as the
partitioner of `jit` sees fit. `pmap` is a `shard_map` inside.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

Names = list[tuple[str, ...]]  # the mesh axes that each dimension is split over, the major ones first


def unsharded(params: dict[str, Any], calls: Mapping[core.Primitive, str]) -> Callable[..., list[jax.Array]]:
    """The function of whole arrays.

    Args:
      params: the parameters of a `shard_map` operation.
      calls: primitives that call a jaxpr, and under which name they hold it.
    """
    sizes = {name: size for name, size in params["mesh"].shape.items() if name in params["newly_manual_axes"]}
    body = functools.partial(_run, params["jaxpr"], calls)

    def whole(*args: jax.Array) -> list[jax.Array]:
        specs = [_names(spec, jnp.ndim(x), sizes) for spec, x in zip(params["in_specs"], args, strict=True)]
        split = [_split(x, names, sizes) for x, names in zip(args, specs, strict=True)]
        f = body
        for axis, size in reversed(sizes.items()):
            mapped = [0 if any(axis in names for names in spec) else None for spec in specs]
            f = jax.vmap(f, in_axes=mapped, out_axes=0, axis_name=axis, axis_size=size)
        outputs = f(*split)
        dims = [x.ndim - len(sizes) for x in outputs]
        specs = [_names(spec, n, sizes) for spec, n in zip(params["out_specs"], dims, strict=True)]
        return [_joined(x, names, list(sizes)) for x, names in zip(outputs, specs, strict=True)]

    return whole


# What says only how a value varies over the mesh, and collectives that say it too.
_MARKS = ("pvary", "pcast")
_COLLECTIVES: dict[str, Callable[..., jax.Array]] = {
    "psum_invariant": lambda x, axes, **_: jax.lax.psum(x, axes),
    "all_gather_invariant": lambda x, axis_name, all_gather_dimension, tiled, **_: jax.lax.all_gather(
        x, axis_name, axis=all_gather_dimension, tiled=tiled
    ),
}


def _run(closed: Any, calls: Mapping[core.Primitive, str], *args: Any) -> list[Any]:
    """Evaluate the body without marks, of which `vmap` knows nothing."""
    jaxpr = getattr(closed, "jaxpr", closed)
    env = dict(zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        # A bare number: the type of a literal would carry the mesh of the body out of it.
        return np.asarray(atom.val, getattr(atom.aval, "dtype", None)) if isinstance(atom, core.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        values, name = [read(v) for v in eqn.invars], eqn.primitive.name
        if name in _MARKS:
            outputs = values
        elif name in _COLLECTIVES:
            outputs = [_COLLECTIVES[name](*values, **eqn.params)]
        elif eqn.primitive in calls:
            outputs = _run(eqn.params[calls[eqn.primitive]], calls, *values)
        else:
            outputs = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
            outputs = outputs if eqn.primitive.multiple_results else [outputs]
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _names(spec: Any, dims: int, sizes: dict[str, int]) -> Names:
    entries = [() if entry is None else (entry,) if isinstance(entry, str) else tuple(entry) for entry in spec]
    entries += [()] * (dims - len(entries))
    return [tuple(name for name in entry if name in sizes) for entry in entries]


def _split(x: jax.Array, spec: Names, sizes: dict[str, int]) -> jax.Array:
    """Shards along leading dimensions, one a mesh axis that the array is split over, in the order of the mesh."""
    shape: list[int] = []
    place = {}
    for n, names in zip(x.shape, spec, strict=True):
        for name in names:
            place[name] = len(shape)
            shape.append(sizes[name])
        shape.append(n // math.prod(sizes[name] for name in names))
    leading = [place[name] for name in sizes if name in place]
    rest = [d for d in range(len(shape)) if d not in leading]
    return x.reshape(shape).transpose(*leading, *rest)


def _joined(x: jax.Array, spec: Names, axes: Sequence[str]) -> jax.Array:
    """The array whose shards lie along leading dimensions; along axes that it is not split over all are the same."""
    used = {name for names in spec for name in names}
    x = x[tuple(slice(None) if name in used else 0 for name in axes)]
    leading = [name for name in axes if name in used]
    order: list[int] = []
    shape: list[int] = []
    for d, names in enumerate(spec):
        order += [*map(leading.index, names), len(leading) + d]
        shape.append(math.prod(x.shape[leading.index(name)] for name in names) * x.shape[len(leading) + d])
    return x.transpose(order).reshape(shape)
