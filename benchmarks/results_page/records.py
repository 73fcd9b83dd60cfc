"""What docs/results.jsonl holds: a record for every finished run, and one for the `steps.json` of every study.

A run is {"group", "name", "config", "summary", "curve"}: the name is that of its folder without seed or digest, the
curve has rows [step, seconds, held-out clean accuracy, held-out verified accuracy]. The other kind is {"group",
"steps"}, with median seconds of a training step by bound and share, or by bound and name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixtrain_jax.config import of_flags, of_run
from mixtrain_jax.errors import ConfigError, MixtrainError
from mixtrain_jax.training.rundir import RunDir

Record = dict[str, Any]

GROUPS = ("configs", "subsampling-", "weights-", "time-")  # what the page has sections for
SUMMARY = (
    *("clean_accuracy", "attacked_accuracy", "verified_accuracy", "test_examples", "method", "attack", "seconds"),
    *("certify_seconds", "seed", "params_sha256", "versions", "device"),
)
TEST_EXAMPLES = {
    "digits": 500,
    "mnist": 10_000,
    "fashion_mnist": 10_000,
    "cifar10": 10_000,
    "svhn_cropped": 26_032,
    "imagenet200": 10_000,
    "imagenet200/train250": 10_000,
}


def gather(paths: Sequence[Path], group: str | None = None) -> list[Record]:
    """Records of run folders, and of the `steps.json` beside them or named itself.

    Args:
      paths: folders of finished runs; a `steps.json` among them, as from a wildcard, is read too.
      group: the group of all of them; by default that of `read`.

    Raises:
      ConfigError: where a path is no finished run on the whole test set, or two of them are rivals for one name.
    """
    found: dict[tuple[str, str, int], tuple[Path, Record]] = {}
    for path in paths:
        record = read_steps(path, group) if path.name == "steps.json" else read(path, group)
        beside = path.resolve().parent / "steps.json"
        if record["group"] != "configs" and beside.is_file():
            steps = read_steps(beside, record["group"])
            found[identity(steps)] = (beside, steps)
        for other, known in found.values():
            if known != record and (identity(known) == identity(record) or _rivals(known, record)):
                raise ConfigError(
                    f"{other} and {path} are both '{record.get('name', 'steps')}' of group '{record['group']}' and "
                    "differ in more than the seed; give one of them."
                )
        found[identity(record)] = (path, record)
    return [record for _, record in found.values()]


def read(folder: Path, group: str | None = None) -> Record:
    """The record of one run.

    Args:
      folder: of the run.
      group: by default "configs" where the folder is called NAME-DIGEST as `train.py` does, else the parent's name.

    Raises:
      ConfigError: where it is no run folder, the run has not ended, or it cannot be shown; the message says what to do.
    """
    if not (folder / "config.json").is_file():
        inside = f", here {folder}/*" if any(folder.glob("*/config.json")) else ""
        raise ConfigError(f"{folder} is no run folder: it has no config.json. Give the folders of runs{inside}.")
    if not (folder / "summary.json").is_file():
        raise ConfigError(
            f"{folder} has not finished: it has no summary.json. Run its command again to let it end, or leave it out."
        )
    run, name = RunDir(folder), folder.resolve().name
    try:
        config = of_run(folder).flags()
        ended = json.loads((folder / "summary.json").read_text())
        summary = {key: ended[key] for key in SUMMARY}
        curve = [
            [
                row["step"],
                *(round(row[key], 6) for key in ("seconds", "heldout_clean_accuracy", "heldout_verified_accuracy")),
            ]
            for row in run.metrics()
        ]
        if not curve:
            raise ValueError("metrics.jsonl has no row")
        _refuse_part(folder, config["data.name"], summary["test_examples"])
        seed = config["seed"]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{folder} is damaged or of another version ({error!r}). Run it again, or leave it out."
        ) from error
    if (named := re.sub(r"-[0-9a-f]{8}$", "", name)) == name:
        named, group = name.removesuffix(f"-{seed}"), group or folder.resolve().parent.name
    _refuse_group(group := group or "configs")
    return {"group": group, "name": named, "config": config, "summary": summary, "curve": curve}


def read_steps(path: Path, group: str | None = None) -> Record:
    """The record of the `steps.json` of a study.

    Raises:
      ConfigError: where it is damaged.
    """
    _refuse_group(group := group or path.resolve().parent.name)
    try:
        return {"group": group, "steps": json.loads(path.read_text())}
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Delete it and run the study again.") from error


def merge(old: Iterable[Record], new: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """All records in order, and the old ones that went because their run has a new config.

    A new record replaces the one of its name and seed. Records of its name whose config differs in more than the seed
    go too: a mean over both would be that of no experiment.
    """
    replaced = {identity(record) for record in new}
    kept = [record for record in old if identity(record) not in replaced]
    stale = [record for record in kept if any(_rivals(record, other) for other in new)]
    return sorted([*(r for r in kept if r not in stale), *new], key=identity), stale


def identity(record: Record) -> tuple[str, str, int]:
    """Group, name and seed."""
    return (
        (record["group"], record["name"], record["config"]["seed"]) if "name" in record else (record["group"], "", -1)
    )


def load(path: Path) -> list[Record]:
    """The records of a file, none where there is no file.

    Raises:
      ConfigError: where a line is damaged.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}). Take an older one from git.") from error


def dump(records: Iterable[Record]) -> str:
    """A compact line a record."""
    return "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)


def write(files: Mapping[Path, str]) -> None:
    """Write files, each whole, and none before all of them lie ready beside their places.

    Raises:
      MixtrainError: where one cannot be written.
    """
    staged = {path: path.with_name(f".{path.name}.tmp") for path in files}
    try:
        for path, temporary in staged.items():
            temporary.write_text(files[path], encoding="utf-8")
        for path, temporary in staged.items():
            temporary.replace(path)
    except OSError as error:
        raise MixtrainError(f"Cannot write {error.filename2 or error.filename}: {error.strerror}.") from error
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)


def _rivals(one: Record, other: Record) -> bool:
    """Whether two runs of one name have configs that differ in more than the seed."""
    return "name" in one and identity(one)[:2] == identity(other)[:2] and _settings(one) != _settings(other)


def _settings(record: Record) -> dict[str, Any]:
    # A record may be older than a field; the default is what it ran with.
    return {**of_flags(record["config"]).flags(), "seed": None}


def _refuse_group(group: str) -> None:
    if not any(group == known or (known.endswith("-") and group.startswith(known)) for known in GROUPS):
        wanted = ", ".join(f"{known}NAME" if known.endswith("-") else known for known in GROUPS)
        raise ConfigError(f"The page has no section for group '{group}'. Say --group with one of {wanted}.")


def _refuse_part(folder: Path, data: str, count: int) -> None:
    if count != TEST_EXAMPLES[data]:
        raise ConfigError(
            f"{folder} was measured on {count} test images, not on all {TEST_EXAMPLES[data]} of {data}. Run it on all."
        )
