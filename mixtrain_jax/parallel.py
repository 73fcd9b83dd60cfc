"""Many devices and many hosts; the only part that knows of either.

Programs are written for one device and compiled for all of them: what is on the devices says how the work is split, and
XLA puts in the communication. So random draws, subsamples among them, are those of one device.
"""

from __future__ import annotations

import collections
import functools
import importlib.util
import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mixtrain_jax.errors import ConfigError, MixtrainError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Layout = Literal["replicated", "fsdp", "rows"]
# A function of batches -> the same function, each device working on its share of the rows.
Spread = Callable[[Callable[..., Any]], Callable[..., Any]]

_AXIS = "data"
_HEARTBEAT = 15  # seconds without a sign of life after which a process is given up, and the others end
_GOODBYE = 20  # seconds that a process waits for the others at the end
_LARGE = 2**16  # entries from which on a leaf is worth splitting


def initialize(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> bool:
    """Join the other processes of the run, if there are any; call it before anything is computed.

    Without arguments, processes find each other where Slurm or Open MPI started several, on TPU hosts, and in the
    indexed jobs of Kubernetes where its Python package is installed; elsewhere nothing happens. Nothing happens either
    where `jax.distributed.initialize` was called before, as Ray does. Should a process die, the others end within half
    a minute.

    Args:
      coordinator: `host:port` of process 0, the port being any free one.
      processes: how many there are.
      process: the number of this one, from 0 on.

    Returns:
      Whether this is process 0.

    Raises:
      ConfigError: where some of the three are missing, one is out of range, or the others cannot be found.
    """
    given = (coordinator, processes, process)
    found: dict[str, Any] = {}
    if any(value is not None for value in given):
        if coordinator is None or processes is None or process is None:
            raise ConfigError(
                "--coordinator, --processes and --process belong together, got "
                f"{', '.join('none' if value is None else str(value) for value in given)}."
            )
        if not re.fullmatch(r".+:\d{1,5}", coordinator):
            raise ConfigError(f"--coordinator must be HOST:PORT, got {coordinator}.")
        if not 0 <= process < processes:
            raise ConfigError(f"--process must be 0 to --processes - 1, got {process} of {processes}.")
        found = {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
        found["cluster_detection_method"] = "deactivate"  # it would change which devices are this process's
    elif jax.distributed.is_initialized() or not _in_cluster(os.environ):
        return jax.process_index() == 0
    try:
        jax.distributed.initialize(**found, heartbeat_timeout_seconds=_HEARTBEAT, shutdown_timeout_seconds=_GOODBYE)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"The processes of this run did not find each other ({reason}). Look whether all were started, and whether "
            "this one reaches the coordinator; --coordinator, --processes and --process name them."
        ) from error
    _connect()
    return jax.process_index() == 0


def _connect() -> None:
    """Have every connection made that processes send each other arrays by, while all of them are at the same place.

    On CPU a process waits half a minute for the others to open one, the first time that it is used; later, when the
    others may be compiling or reading, that is not long enough. In use a connection may wait as long as it has to.
    """
    if jax.default_backend() == "cpu":
        broadcast_from_zero(lambda: None)  # those between processes
        mesh = data_mesh()  # those between devices
        jax.block_until_ready(jax.jit(jnp.sum)(put(np.zeros(mesh.size, np.float32), mesh, "rows")))


def _in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether there are other processes that jax can find."""
    if int(environment.get("SLURM_NTASKS", "1")) > 1:  # set in the steps of a job alone, not where it is started from
        return {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"} <= environment.keys()
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        if "OMPI_MCA_orte_hnp_uri" not in environment:
            raise ConfigError(
                "Open MPI 5 does not say where its processes are. Give each --coordinator HOST:PORT, "
                "--processes $OMPI_COMM_WORLD_SIZE and --process $OMPI_COMM_WORLD_RANK."
            )
        return True
    if "tpu" in environment.get("JAX_PLATFORMS", "tpu") and importlib.util.find_spec("libtpu"):
        return bool(list(Path("/dev").glob("accel[0-9]*")) or list(Path("/dev/vfio").glob("[0-9]*")))
    indexed = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    return indexed and importlib.util.find_spec("kubernetes") is not None


def all_or_raise(act: Callable[[], T]) -> T:
    """Act in all processes; where one fails, all of them fail with its error.

    Raises:
      MixtrainError: that of the first process that raised one.
    """
    if jax.process_count() == 1:
        return act()
    value, failure = None, b""
    try:
        value = act()
    except MixtrainError as error:
        failure = pickle.dumps((type(error), str(error)))
    sizes = multihost_utils.process_allgather(np.int32(len(failure)))
    if sizes.any():
        kind, message = pickle.loads(_broadcast(failure, int(np.flatnonzero(sizes)[0]), int(sizes[sizes > 0][0])))
        raise kind(message)
    return cast(T, value)


def on_process_zero(act: Callable[[], T]) -> T:
    """Act in process 0 alone; where it fails, all fail with its error. Elsewhere the value is None: use it alone, too.

    Raises:
      MixtrainError: that of process 0.
    """
    return all_or_raise(lambda: act() if jax.process_index() == 0 else cast(T, None))


def broadcast_from_zero(act: Callable[[], T]) -> T:
    """Act in process 0 alone and return its value, which can be pickled, in all of them.

    Raises:
      MixtrainError: that of process 0.
    """
    value = on_process_zero(act)
    if jax.process_count() == 1:
        return value
    content = pickle.dumps(value) if jax.process_index() == 0 else b""
    size = multihost_utils.broadcast_one_to_all(np.int32(len(content)))
    return pickle.loads(_broadcast(content, 0, int(size)))


def _broadcast(content: bytes, source: int, size: int) -> bytes:
    """What one process has, so many bytes, in all of them. Processes trust each other: they run one program."""
    own = np.zeros(size, np.uint8)
    if is_source := jax.process_index() == source:
        own[:] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(own, is_source=is_source)).tobytes()


def vote(mesh: Mesh) -> Callable[[int], int]:
    """A function by which processes agree on what to do, without waiting for one another.

    Args:
      mesh: all devices.

    Returns:
      `vote -> verdict`, which all processes call equally often: the largest vote that any of them gave two calls ago,
      once; 0 until then. A verdict that is not 0 settles the votes given meanwhile. With one process it is the vote.
    """
    if jax.process_count() == 1:
        return lambda vote: vote
    where = NamedSharding(mesh, PartitionSpec(_AXIS))
    largest = blocking(jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec())), mesh)
    open_votes: collections.deque[jax.Array] = collections.deque()

    def agree(vote: int) -> int:
        votes = jax.make_array_from_callback((mesh.size,), where, lambda _: np.full(1, vote, np.int32))
        open_votes.append(largest(votes))
        verdict = int(open_votes.popleft()) if len(open_votes) > 2 else 0
        if verdict:
            open_votes.clear()
        return verdict

    return agree


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


def constrain(tree: T, mesh: Mesh | None, layout: Layout) -> T:
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


def map_microbatches(f: Callable[[Any, Any], Any], whole: Any, rows: Any, mesh: Mesh) -> Any:
    """Apply a function to every microbatch of a batch: the same bits on any number of devices.

    Each device loops over its share of the microbatches, and the loop's body is a program of its own, whose shapes know
    nothing of the devices. To be called inside `jax.jit`.

    Args:
      f: `(whole, microbatch) -> pytree of arrays`; it closes over no traced array.
      whole: a pytree of what every microbatch needs all of, such as parameters.
      rows: a pytree of arrays `[microbatches, size, ...]`, as many microbatches as `padded` makes of their number.
      mesh: the devices.

    Returns:
      What `f` returns, stacked: `[microbatches, ...]`.
    """
    return _in_shards(functools.partial(_loop, f), mesh, PartitionSpec(_AXIS))(whole, rows)


def sum_microbatches(f: Callable[[Any, Any], Any], whole: Any, rows: Any, mesh: Mesh, count: int) -> Any:
    """Sum a function over the first `count` microbatches, one after the other: the same bits on any number of devices.

    Every device adds up its share of the entries for all microbatches: with one microbatch a device, as many numbers
    are sent as for the all-reduce of a plain sum.

    Args:
      f: as for `map_microbatches`, its leaves of one dtype.
      whole: as for `map_microbatches`.
      rows: as for `map_microbatches`.
      mesh: the devices.
      count: microbatches that count; those behind are there to give all devices equally many.
    """
    example = jax.eval_shape(f, whole, jax.tree.map(lambda x: x[0], rows))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example)
    flat, unravel = ravel_pytree(zeros)

    def local(whole: Any, rows: Any) -> jax.Array:
        parts = _loop(lambda whole, row: ravel_pytree(f(whole, row))[0], whole, rows)
        if mesh.size > 1:
            parts = jnp.pad(parts, ((0, 0), (0, padded(flat.size, mesh) - flat.size)))
            parts = jax.lax.all_to_all(parts, _AXIS, 1, 0, tiled=True)  # [microbatches, entries of this device]
        total = jax.lax.fori_loop(1, _opaque(count), lambda i, so_far: so_far + parts[i], parts[0])
        return jax.lax.all_gather(total, _AXIS, tiled=True) if mesh.size > 1 else total

    return unravel(_in_shards(local, mesh, PartitionSpec())(whole, rows)[: flat.size])


def _in_shards(local: Callable[[Any, Any], Any], mesh: Mesh, out: PartitionSpec) -> Callable[[Any, Any], Any]:
    if mesh.size == 1:
        return local
    given = (PartitionSpec(), PartitionSpec(_AXIS))
    # Gradients inside are those of the shard alone, as `check_vma` would not have it.
    return jax.shard_map(local, mesh=mesh, in_specs=given, out_specs=out, check_vma=False)


def _loop(f: Callable[[Any, Any], Any], whole: Any, rows: Any) -> Any:
    """`f` of each row, stacked, in a loop that XLA compiles alike however many rows there are.

    All that an iteration computes on was carried to it, and what it computes is carried on: the row of the next one is
    read, and the value of the last one is stored, beside `f` and not within its fusions, whose rounding could differ.
    """
    count, rows = len(jax.tree.leaves(rows)[0]), jax.lax.optimization_barrier(rows)  # else constants move into it

    def read(i: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), rows)

    def store(stacked: Any, value: Any, i: Any) -> Any:
        return jax.tree.map(lambda xs, x: jax.lax.dynamic_update_index_in_dim(xs, x, i, 0), stacked, value)

    def body(i: jax.Array, carry: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
        whole, row, value, stacked = carry
        stacked = store(stacked, value, jnp.maximum(i - 1, 0))
        # What an iteration does not change could leave the loop.
        return jax.lax.optimization_barrier(whole), read(jnp.minimum(i + 1, count - 1)), f(whole, row), stacked

    value = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(f, whole, read(0)))
    stacked = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), value)
    *_, value, stacked = jax.lax.fori_loop(0, _opaque(count), body, (whole, read(0), value, stacked))
    return store(stacked, value, count - 1)


def _opaque(count: int) -> jax.Array:
    """A number that the compiler does not know: a loop of one step would be compiled into its surroundings."""
    return jax.lax.optimization_barrier(jnp.int32(count))


def blocking(f: F, mesh: Mesh | None) -> F:
    """The function itself; on several CPU devices it waits for its result.

    There, programs that are under way at once take threads from one another until none can end its communication.
    """
    if mesh is None or mesh.size == 1 or mesh.devices.flat[0].platform != "cpu":
        return f

    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        return jax.block_until_ready(f(*args, **kwargs))

    return cast(F, call)


def data_parallel(mesh: Mesh) -> Spread:
    """Make functions of batches work on all devices at once.

    Args:
      mesh: the devices.

    Returns:
      A transformation of functions. The new function splits the rows of every array that it is given, keys, scalars and
      callables apart, and brings what comes out, rows too, to the host. Rows have to be independent of each other; the
      last one fills them up to a multiple of the number of devices. With one device it is the old function.
    """

    def has_rows(leaf: Any) -> bool:
        return not callable(leaf) and np.ndim(leaf) > 0 and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)

    def spread(f: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            given = (args, kwargs)
            count = next(len(leaf) for leaf in jax.tree.leaves(given, is_leaf=callable) if has_rows(leaf))
            rows = np.minimum(np.arange(padded(count, mesh)), count - 1)

            def place(leaf: Any) -> Any:
                return put(np.asarray(leaf)[rows], mesh, "rows") if has_rows(leaf) else leaf

            args, kwargs = jax.tree.map(place, given, is_leaf=callable)
            return jax.tree.map(lambda leaf: leaf[:count], fetch(f(*args, **kwargs)))

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
