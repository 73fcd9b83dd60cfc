"""Compiled programs, kept from one process to the next."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def keep_compiled() -> Path | None:
    """Keep compiled programs in the user's cache folder, `mixtrain_jax/xla` in `$XDG_CACHE_HOME` or `~/.cache`.

    On accelerators alone. XLA:CPU logs an error for every program that it reads on processors with tuning flags, and
    compiles it anew; and what one machine kept in a shared home another may not be able to run.
    Whoever names a folder, in `JAX_COMPILATION_CACHE_DIR` or the config of jax, gets that one on every backend; an
    empty name, or `JAX_ENABLE_COMPILATION_CACHE=false`, is for none.

    Returns:
      The folder; None where jax keeps what it kept before, also where the folder cannot be used.
    """
    named, enabled = (
        getattr(jax.config, name) for name in ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    )
    if named is not None or not enabled or jax.default_backend() == "cpu":
        return None
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixtrain_jax" / "xla"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # who can write there can run code here
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder
