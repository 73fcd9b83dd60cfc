"""Every test runs on four CPU devices, with implicit dtype and rank promotion forbidden."""

import gc
import os

import hypothesis
import jax
import pytest
from compiling import FLAGS

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"  # before the first computation
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_compilation_cache", False)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing makes many objects and next to no cycles.
gc.freeze()
gc.set_threshold(50_000, 20, 20)

# Examples are seeds and radii of arrays of fixed shapes, and the first one compiles. Nothing here measures speed.
hypothesis.settings.register_profile(
    "default",
    deadline=None,
    max_examples=20,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("default")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
