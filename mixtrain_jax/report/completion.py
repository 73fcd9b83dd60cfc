"""What complete verification found, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def of_completion(numbers: Mapping[str, Any]) -> list[str]:
    """A sentence of the numbers of a run or a judgement; nothing where it was not asked for or had nothing to do."""
    found = numbers.get("complete")
    if not found or not found["images"]:
        return []

    def counted(status: str, word: str) -> str:
        parts = ", ".join(f"{count} {word} {name}" for name, count in found[status].items())
        return f"{sum(found[status].values())} {status}{f' ({parts})' if parts else ''}"

    verdicts = ", ".join([counted("proved", "by"), counted("broken", "by"), counted("open", "for")])
    domains, seconds = found["domains"], found["seconds"]
    return [
        f"Complete verification of {found['images']} open images, {found['seconds_an_image']:g} s each: {verdicts}. "
        f"Domains {domains['median']:g} in the median and {domains['most']} at most, seconds {seconds['median']:.2f} "
        f"and {seconds['most']:.2f}."
    ]
