"""Checkpoints that are whole or not used: Orbax writes them, a SHA-256 of every leaf vouches for them.

The one file that imports Orbax. Orbax makes a save atomic but does not notice a flipped bit, so each checkpoint
carries a manifest of shape, dtype and hash per leaf, and is held to it when it is read. Hashes and files are made by a
thread of our own, not by Orbax's, which would have the hashes beforehand.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from mixtrain_jax.errors import CheckpointError, first_line
from mixtrain_jax.fingerprints import by_name, leaf_name, manifest

T = TypeVar("T")
Leaves = dict[str, np.ndarray]  # by name

# Where a run has many processes, one has all the arrays on its host, and the checkpoints to itself.
ALONE = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax narrates every save, and errors that it raises too.

_PATIENCE = 60.0  # seconds for reads or writes that were under way when another one failed
_ORBAX = threading.Lock()  # one save or restore at a time


class Checkpoints:
    """The checkpoints of one run, newest last. As a context manager it waits at the end for the save under way."""

    def __init__(self, folder: Path, *, keep: int = 3):
        """Open or create the folder, and sweep what a crash in mid-save left there.

        Args:
          folder: where the checkpoints are, one sub-folder a step.
          keep: how many to keep.

        Raises:
          CheckpointError: where the folder cannot be used.
        """
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
            create=False,
            multiprocessing_options=ALONE,
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise CheckpointError(f"Cannot keep checkpoints in {self.folder}: {error}") from error
        self._background = futures.ThreadPoolExecutor(max_workers=1)
        self._saving: futures.Future[None] | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._settle()

    def latest(self) -> int | None:
        """Step of the newest checkpoint, damaged or not; None where there is none. Waits for the save under way."""
        self._settle()
        return self._manager.latest_step()

    def save(self, step: int, tree: Any) -> None:
        """Copy the arrays to the host and write them in the background; does nothing where the step has a checkpoint.

        Waits for the save before it. A checkpoint is whole when `wait` returns.

        Args:
          step: steps done.
          tree: a pytree of arrays, none of size 0, with a leaf `step` that holds the same number.

        Raises:
          CheckpointError: where the save before this one failed, as `wait` has it.
        """
        self.wait()
        before = self.latest()
        if before == step:
            return
        # A copy even where the device is the host: the next training step takes the memory of its state.
        leaves = {name: np.array(leaf) for name, leaf in by_name(jax.device_get(tree)).items()}
        self._saving = self._background.submit(self._write, step, leaves, before)

    def wait(self) -> None:
        """Wait until the save under way is whole.

        Raises:
          CheckpointError: where it could not be written, with the step that is still good.
        """
        self._settle()
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _settle(self) -> None:
        if self._saving is not None:
            futures.wait([self._saving])

    def _write(self, step: int, leaves: dict[str, np.ndarray], before: int | None) -> None:
        args = ocp.args.Composite(state=ocp.args.StandardSave(leaves), manifest=ocp.args.JsonSave(manifest(leaves)))
        try:
            with _patient_loops():
                self._manager.save(step, args=args, force=True)
        except Exception as error:  # Orbax and tensorstore raise whatever the file system made them raise.
            kept = "there is no earlier one" if before is None else f"step {before} is whole"
            raise CheckpointError(
                f"Could not save the checkpoint of step {step} in {self.folder} ({kept}). Free some space or choose "
                f"another workdir, then run the same command again. Cause: {first_line(error)}"
            ) from error

    def restore(
        self, target: T, tell: Callable[[str], None], *, upgrade: Callable[[Leaves], Leaves] = lambda leaves: leaves
    ) -> T | None:
        """Read the newest whole checkpoint.

        Damaged ones that are newer are moved to a folder `damaged` beside the checkpoints.

        Args:
          target: a pytree of arrays of the structure, shapes and dtypes that are expected.
          tell: is called with one line for every damaged checkpoint that is passed over.
          upgrade: gives leaves of an earlier layout the names and shapes of this one; others come back as they are.

        Returns:
          A pytree like `target`, or None where there is no checkpoint.

        Raises:
          CheckpointError: where there are checkpoints, but none can be used, or a save before this failed.
        """
        self.wait()
        if (found := _newest(self.folder, self._manager.all_steps())) is None:
            return None
        step, leaves, damaged = found
        tree = _fill(target, upgrade(leaves), f"{self.folder}, step {step}")
        for bad, why in damaged:
            tell(f"checkpoint {bad} is damaged ({why}); moved to {self._discard(bad)}, going on from step {step}")
        return tree

    def _discard(self, step: int) -> Path:
        destination = _free(self.folder.parent / "damaged" / str(step))
        destination.parent.mkdir(exist_ok=True)
        (self.folder / str(step)).rename(destination)
        self._manager.reload()
        return destination


def load(folder: Path, target: T, tell: Callable[[str], None]) -> T | None:
    """Read a part of the newest whole checkpoint, changing nothing in the folder: a run may be in progress there.

    Args:
      folder: where the checkpoints are.
      target: a pytree of the structure, shapes and dtypes that are wanted; the checkpoint may hold more.
      tell: is called with one line for every damaged checkpoint that is passed over.

    Returns:
      A pytree like `target`, or None where there is no checkpoint.

    Raises:
      CheckpointError: where there are checkpoints, but none can be used.
    """
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
    if (found := _newest(folder, steps)) is None:
        return None
    step, leaves, damaged = found
    for bad, why in damaged:
        tell(f"checkpoint {bad} is damaged ({why}); step {step} is taken instead")
    return _fill(target, leaves, f"{folder}, step {step}", part=True)


def _newest(folder: Path, steps: Iterable[int]) -> tuple[int, dict[str, np.ndarray], list[tuple[int, str]]] | None:
    """The newest whole checkpoint: its step, its leaves, and the damaged ones after it, each with the reason."""
    damaged = []
    for step in sorted(steps, reverse=True):
        try:
            return step, read(folder, step), damaged
        except CheckpointError as error:
            damaged.append((step, first_line(error)))
    if damaged:
        listed = "; ".join(f"step {step}: {why}" for step, why in damaged)
        raise CheckpointError(f"All checkpoints in {folder} are damaged ({listed}). Delete the folder to start anew.")
    return None


def read(folder: Path, step: int) -> dict[str, np.ndarray]:
    """Read a checkpoint and hold it to its manifest, changing nothing in the folder.

    Args:
      folder: where the checkpoints are.
      step: which of them.

    Returns:
      The leaves by name.

    Raises:
      CheckpointError: naming the leaf that differs from the manifest, or saying what else is damaged.
    """
    try:
        with _patient_loops():
            return _read(folder.absolute() / str(step), step)
    except Exception as error:  # A damaged file can fail anywhere inside Orbax, tensorstore or JSON.
        raise CheckpointError(first_line(error)) from error


def _read(path: Path, step: int) -> dict[str, np.ndarray]:
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=ALONE))
    with ocp.Checkpointer(handler, multiprocessing_options=ALONE) as checkpointer:
        restored = checkpointer.restore(
            path, args=ocp.args.Composite(state=ocp.args.StandardRestore(), manifest=ocp.args.JsonRestore())
        )
    leaves = {name: np.asarray(value) for name, value in restored["state"].items()}
    found, expected = manifest(leaves), restored["manifest"]
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise CheckpointError(f"the leaf {name} does not match its SHA-256 manifest")
    if int(leaves["step"]) != step:
        raise CheckpointError(f"it holds step {int(leaves['step'])}")
    return leaves


class PatientLoop(asyncio.SelectorEventLoop):
    """An event loop that closes when its tasks are done, and logs no errors but leaves them to who waits for it.

    Orbax reads and writes leaves in tasks and closes its loop when the first one fails. Tensorstore then reports the
    others to a closed loop, each with a traceback on standard error.
    """

    def close(self) -> None:
        """Wait for the tasks, then close."""
        if not self.is_closed() and (left := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.wait(left, timeout=_PATIENCE))
        super().close()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Log nothing."""


@contextlib.contextmanager
def _patient_loops() -> Iterator[None]:
    """Orbax makes its event loops by `asyncio.new_event_loop` and takes none of others."""
    with _ORBAX:
        before = asyncio.new_event_loop
        asyncio.new_event_loop = PatientLoop
        try:
            yield
        finally:
            asyncio.new_event_loop = before


def _fill(target: T, leaves: dict[str, np.ndarray], where: str, *, part: bool = False) -> T:
    def pick(path: Any, like: Any) -> jax.Array | np.ndarray:
        name = leaf_name(path)
        if name not in leaves:
            raise CheckpointError(f"{where} has no leaf {name}; it belongs to another network, optimizer or version.")
        leaf = leaves[name]
        if leaf.shape != like.shape or leaf.dtype != like.dtype:
            raise CheckpointError(
                f"{where}: the leaf {name} is {leaf.dtype}{list(leaf.shape)}, expected "
                f"{like.dtype}{list(like.shape)}; it belongs to another network or optimizer."
            )
        return jax.numpy.asarray(leaf) if isinstance(like, jax.Array) else leaf

    filled = jax.tree.map_with_path(pick, target)
    extra = leaves.keys() - by_name(filled).keys()
    if extra and not part:
        raise CheckpointError(f"{where} has a leaf {min(extra)} that is not expected here.")
    return filled


def _free(path: Path) -> Path:
    count = 1
    candidate = path
    while candidate.exists():
        candidate, count = path.with_name(f"{path.name}-{count}"), count + 1
    return candidate
