"""Networks by name, as Flax linen modules of `[n, height, width, channels] -> [n, classes]`."""

from mixtrain_jax.models.small import CNN, MLP

MODELS = {"mlp": MLP, "cnn": CNN}

__all__ = ["CNN", "MLP", "MODELS"]
