"""Configs of version 0.1, which had no tables: the same experiment in those of today."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# The flag of today for each field that means the same whatever the others say.
FLAGS = {
    "data": "data.name",
    "crop": "data.crop",
    "flip": "data.flip",
    "holdout": "data.holdout",
    "model": "model.name",
    "width": "model.width",
    "eps": "threat.eps",
    "trainer": "objective.name",
    "bound": "objective.bound",
    "robust_examples": "objective.examples",
    "robust_group": "objective.microbatch",
    "subsample": "objective.pool",
    "replace": "objective.replace",
    "robust_probability": "objective.probability",
    "train_attack_steps": "objective.steps",
    "mixing": "mixing.name",
    "weight": "mixing.weight",
    "share": "mixing.share",
    "target": "mixing.target",
    "target_on": "mixing.target_on",
    "mixing_learning_rate": "mixing.learning_rate",
    "learning_rate": "optimizer.learning_rate",
    "weight_decay": "optimizer.weight_decay",
    "clip": "optimizer.clip",
    "warmup": "schedule.warmup",
    "ramp_shape": "radius.name",
    "train_eps_ratio": "radius.ratio",
    "ramp": "radius.ramp",
    **{
        name: f"training.{name}"
        for name in (
            *("epochs", "batch_size", "bad_steps", "measure", "choose", "compute", "params", "microbatches", "points"),
            *("steps_per_dispatch", "checkpoint_seconds"),
        )
    },
    "certify": "certify.bounds",
    "attack_steps": "certify.attack_steps",
    "attack_restarts": "certify.attack_restarts",
    "curve_examples": "certify.curve_examples",
}
# Fields that did nothing unless another field had one of these values (the first of which was its default).
_NEEDS = {
    "bound": ("trainer", "mixtrain", "robust"),
    "robust_examples": ("trainer", "mixtrain"),
    "robust_group": ("trainer", "mixtrain", "robust", "pgd"),
    "subsample": ("trainer", "mixtrain"),
    "replace": ("trainer", "mixtrain"),
    "robust_probability": ("trainer", "mixtrain"),
    "train_attack_steps": ("trainer", "pgd"),
    "weight": ("mixing", "constant", "schedule"),
    "share": ("mixing", "constrained", "convex"),
    "target": ("mixing", "constrained"),
    "target_on": ("mixing", "constrained"),
    "mixing_learning_rate": ("mixing", "constrained"),
}
_DEFAULTS = {"trainer": "mixtrain", "mixing": "constrained"}
_RULES = {"authors": "staircase", "schedule": "ramped"}


def is_flat(values: Mapping[str, Any]) -> bool:
    """Whether a config is of version 0.1: it has a field of that time, and no table."""
    return any(name in FLAGS and not isinstance(value, Mapping) for name, value in values.items()) and not any(
        isinstance(value, Mapping) for value in values.values()
    )


def tables(values: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of a config of version 0.1; fields that did nothing are left out, unknown ones kept as they are."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        of, *useful = _NEEDS.get(name, ("", ""))
        if of and values.get(of, _DEFAULTS[of]) not in useful:
            continue
        if name not in FLAGS:
            found[name] = value
            continue
        table, _, field = FLAGS[name].partition(".")
        found.setdefault(table, {})[field] = value
    mixing = found.get("mixing", {})
    if "share" in mixing and values.get("mixing", "constrained") == "constrained":
        mixing["start"] = mixing.pop("share")
    if values.get("mixing") == "convex" and values.get("share") == 1:
        found.setdefault("objective", {})["clean"] = False
    if "name" in mixing:
        mixing["name"] = _RULES.get(mixing["name"], mixing["name"])
    for table, default in (("objective", "mixtrain"), ("mixing", "constrained")):
        if table in found:  # named first, and whatever the default is tomorrow
            found[table] = {"name": default, **found[table]}
    found = {
        key: dict(sorted(x.items(), key=lambda item: item[0] != "name")) if isinstance(x, dict) else x
        for key, x in found.items()
    }
    order = [*dict.fromkeys(flag.partition(".")[0] for flag in FLAGS.values()), *found]
    return {table: found[table] for table in dict.fromkeys(order) if table in found}


def as_toml(values: Mapping[str, Any]) -> str:
    """The tables of a config of version 0.1 as TOML."""
    new = tables(values)
    lines = [f"{name} = {json.dumps(value)}" for name, value in new.items() if not isinstance(value, Mapping)]
    for table, inner in new.items():
        if isinstance(inner, Mapping):
            lines += ["", f"[{table}]", *(f"{name} = {json.dumps(value)}" for name, value in inner.items())]
    return "\n".join(lines).strip() + "\n"
