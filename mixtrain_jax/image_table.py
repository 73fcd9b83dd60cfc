"""What is known of each test image of a run, one column an array: `certificates.npz`, packed and looked at."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from mixtrain_jax.errors import MixtrainError

COLUMNS = ("labels", "predictions", "clean", "attacked", "verified", "margin", "proved_by")
_ALWAYS = ("labels", "clean", "attacked", "verified", "proved_by")  # in files of all versions
_ADVICE = "Delete it and summary.json and run the same command again."


def pack(columns: Mapping[str, np.ndarray]) -> bytes:
    """The columns as the bytes of an `.npz` file."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: columns[name] for name in COLUMNS}
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def unpack(content: bytes, limit: int) -> dict[str, np.ndarray]:
    """The columns of a file, as far as it has them.

    Args:
      content: of the file.
      limit: bytes that it may unpack to.

    Raises:
      MixtrainError: where it is damaged or too large, or lacks a column that all versions write.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        if sum(entry.file_size for entry in file.infolist()) > limit:
            raise MixtrainError(f"unpacks to more than {limit / 1e6:.1f} MB, which no run writes.")
        if (damaged := file.testzip()) is not None:  # NumPy reads as much as a header says, which may be damaged
            raise MixtrainError(f"is damaged: {damaged} does not match its checksum. {_ADVICE}")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        columns = {name: file[name] for name in COLUMNS if name in file.files}
    if absent := [name for name in _ALWAYS if name not in columns]:
        raise MixtrainError(f"lacks {', '.join(absent)}. {_ADVICE}")
    return columns


def contradictions(columns: Mapping[str, np.ndarray]) -> list[str]:
    """What of the columns cannot be true at once, in words; those that are absent are not asked."""
    if len({column.shape for column in columns.values()}) > 1 or columns["labels"].ndim != 1:
        return ["its columns are not of one length"]
    clean, attacked, verified = (columns[name].astype(bool) for name in ("clean", "attacked", "verified"))
    wrong = {
        "verified but broken by the attack": verified & ~attacked,
        "unbroken but misclassified": attacked & ~clean,
        "verified without a method, or not verified in spite of one": verified != (columns["proved_by"] != ""),
    }
    if "margin" in columns:
        wrong["verified without a margin above 0, or not verified above it"] = verified != (columns["margin"] > 0)
    if "predictions" in columns:
        right = columns["predictions"] == columns["labels"]
        wrong["clean with another prediction, or not clean with the label"] = clean != right
    return [f"{count} images are {what}" for what, where in wrong.items() if (count := int(where.sum()))]
