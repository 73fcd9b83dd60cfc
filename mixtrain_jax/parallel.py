"""Many devices and many hosts; the only part that knows of either.

Programs are written for one device and compiled for all of them: what is on the devices says how the work is split, and
XLA puts in the communication. So random draws, subsamples among them, are those of one device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Layout = Literal["replicated", "fsdp", "rows"]
# A function of batches -> the same function, each device working on its share of the rows.
Spread = Callable[[Callable[..., Any]], Callable[..., Any]]

_AXIS = "data"
_LARGE = 2**16  # entries from which on a leaf is worth splitting


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Devices in a row, its one axis `data`; by default all devices of all processes."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def padded(n: int, mesh: Mesh) -> int:
    """The smallest multiple of the number of devices that is at least `n`."""
    return -(-n // mesh.size) * mesh.size


def shardings(tree: Any, mesh: Mesh, layout: Layout) -> Any:
    """Where the leaves of a pytree go.

    Args:
      tree: arrays, or anything with a shape.
      mesh: the devices.
      layout: `replicated`, whole on every device; `rows`, each device an equal share of the first dimension; `fsdp`,
        the same of the largest dimension that divides evenly, for leaves of at least 65536 entries, others replicated.

    Returns:
      A pytree of `NamedSharding`.
    """

    def spec(shape: tuple[int, ...]) -> PartitionSpec:
        if layout == "rows":
            return PartitionSpec(_AXIS)
        even = [size if size % mesh.size == 0 else 0 for size in shape]
        if layout == "replicated" or np.prod(shape) < _LARGE or not any(even):
            return PartitionSpec()
        return PartitionSpec(*[None] * int(np.argmax(even)), _AXIS)

    return jax.tree.map(lambda leaf: NamedSharding(mesh, spec(np.shape(leaf))), tree)


def put(tree: Any, mesh: Mesh, layout: Layout) -> Any:
    """Move arrays to the devices; with several processes, each of them has all of every array.

    Args:
      tree: a pytree of NumPy or JAX arrays; for `rows` their first dimension is a multiple of the number of devices.
      mesh: the devices.
      layout: as for `shardings`.
    """
    if mesh.size == 1:
        return jax.device_put(tree, mesh.devices.item())
    return jax.tree.map(_put, tree, shardings(tree, mesh, layout))


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def pin(tree: T, mesh: Mesh | None, layout: Layout) -> T:
    """Inside `jax.jit`, hold arrays to a layout of `shardings`; nothing where there is one device, or no mesh."""
    if mesh is None or mesh.size == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, shardings(tree, mesh, layout))


def fetch(tree: T) -> T:
    """Bring a pytree to this host as whole NumPy arrays; with several processes, all of them have to ask."""

    def whole(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return leaf

    return jax.device_get(jax.tree.map(whole, tree))


def settled(f: F, mesh: Mesh | None) -> F:
    """The function itself; on several CPU devices it waits for its result.

    There, programs that are under way at once take threads from one another until none can end its communication.
    """
    if mesh is None or mesh.size == 1 or mesh.devices.flat[0].platform != "cpu":
        return f

    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        return jax.block_until_ready(f(*args, **kwargs))

    return cast(F, call)


def by_rows(mesh: Mesh) -> Spread:
    """Make functions of batches work on all devices at once.

    Args:
      mesh: the devices.

    Returns:
      A transformation of functions. The new function splits the rows of every array that it is given, keys, scalars and
      callables apart, and brings what comes out to the host. Rows have to be independent of each other, and their
      number a multiple of the number of devices. With one device it is the old function.
    """

    def place(leaf: Any) -> Any:
        if callable(leaf) or not np.ndim(leaf) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return put(leaf, mesh, "rows")

    def spread(f: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = jax.tree.map(place, (args, kwargs), is_leaf=callable)
            return fetch(f(*args, **kwargs))

        return f if mesh.size == 1 else call

    return spread


def own_rows(n: int, mesh: Mesh) -> np.ndarray:
    """Which of `n` rows, a multiple of the number of devices, the devices of this process hold; `[m]`, in order."""
    return np.flatnonzero(
        np.repeat([device.process_index == jax.process_index() for device in mesh.devices], n // mesh.size)
    )


def put_own(tree: Any, mesh: Mesh) -> Any:
    """Move rows to the devices, each process those of `own_rows`."""
    if mesh.size == 1:
        return put(tree, mesh, "rows")
    where = NamedSharding(mesh, PartitionSpec(_AXIS))
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(where, leaf), tree)


def pmap_step(
    loss: Callable[[Any, Any, jax.Array], jax.Array], tx: optax.GradientTransformation
) -> Callable[..., tuple[Any, Any, jax.Array]]:
    """A data-parallel step of training for loops that are built on `jax.pmap`.

    Args:
      loss: `(params, batch, key) -> scalar`, the mean over the examples of a batch.
      tx: optimizer.

    Returns:
      `(params, opt_state, batch, keys) -> (params, opt_state, loss)`, compiled by `jax.pmap`. The first dimension of
      every leaf is that of the devices; params and state are the same on each of them. All devices have equally many
      examples, so the step is the one that one device takes with all of them.
    """

    def step(params: Any, opt_state: Any, batch: Any, key: jax.Array) -> tuple[Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, batch, key)
        value, gradient = jax.lax.pmean((value, gradient), _AXIS)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    return jax.pmap(step, _AXIS)
