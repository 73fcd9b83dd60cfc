"""What numbers depend on besides the code: versions of software, and the device."""

from __future__ import annotations

import importlib.metadata
import os
import platform

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
