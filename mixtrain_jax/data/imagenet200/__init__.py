"""ImageNet-200, also known as Tiny-ImageNet-200, as a TFDS data set; `python -m mixtrain_jax.data.imagenet200`."""
