"""What numbers depend on besides the code: versions of software, and the device."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import jax

import mixtrain_jax

PROOF = ("jax", "jaxlib", "numpy")  # what a proof depends on
TRAINING = (*PROOF, "flax", "optax", "orbax-checkpoint")


def versions(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of Python, of this package and of the packages of these names."""
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), "mixtrain_jax": mixtrain_jax.__version__, **found}


def device() -> str:
    """The accelerators in words, and the processors of the host."""
    count = f"{jax.device_count()} x " if jax.device_count() > 1 else ""
    return f"{count}{jax.devices()[0].device_kind} ({jax.default_backend()}), {os.cpu_count()} host cores"


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process could still get of the host's memory, within its control group; None where none tells.

    Args:
      root: of the file system that Linux tells it in.
    """
    told = []
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        told += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        group = root / "sys/fs/cgroup"
        if (most := (group / "memory.max").read_text().strip()) != "max":
            cached = [
                line.split()[1]
                for line in (group / "memory.stat").read_text().splitlines()
                if line.startswith(("active_file ", "inactive_file "))
            ]
            told.append(int(most) - int((group / "memory.current").read_text()) + sum(map(int, cached)))
    except (OSError, ValueError, IndexError):
        pass  # another system, or another version of this one
    return min(told, default=None)
