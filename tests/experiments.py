"""Configs by short names of their fields, those of version 0.1: `experiment(trainer="pgd", epochs=3)`."""

from mixtrain_jax import config, flat


def experiment(**fields):
    return config.of_tables(flat.tables(fields))


def options(values):
    """Arguments of `train.py` for values by their flags."""
    several = {flag: value if isinstance(value, tuple) else (value,) for flag, value in values.items()}
    return [str(x) for flag, value in several.items() for x in (f"--{flag.replace('_', '-')}", *value)]
