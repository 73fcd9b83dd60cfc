"""What a trial is, and what all cases need to make and to judge one."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixtrain_jax.bounds import BoundsError, UnsupportedPrimitiveError
from mixtrain_jax.errors import MixtrainError

TYPED = (MixtrainError, BoundsError, UnsupportedPrimitiveError)


class Trial(NamedTuple):
    """One fault: `act` makes it, and returns "" where the package does as it should, else what is wrong.

    An exception that comes out of it is a failure too.
    """

    what: str
    act: Callable[[], str]


Case = Callable[[np.random.Generator, int, Path], Iterator[Trial]]
"""`(rng, count, tmp) -> trials`, about `count` of them, which may use the empty folder `tmp`."""


def spawned(rng: np.random.Generator, count: int) -> Iterator[tuple[int, np.random.Generator]]:
    """A generator of its own for each trial, so that a number and a seed stand for one fault however many there are."""
    return enumerate(rng.spawn(count))


def judged(act: Callable[[], Any], right: Callable[[Any], bool] | None = None, words: Iterable[str] = ()) -> str:
    """Judge what comes of a call: the right result, or a typed error.

    Args:
      act: the call.
      right: whether a result is right; None where the call must be refused.
      words: what the message of the error must hold.
    """
    try:
        result = act()
    except TYPED as error:
        message = str(error)
        absent = [word for word in words if word not in message]
        if absent or not message:
            return f"{type(error).__name__} does not say {', '.join(absent) or 'anything'}: {message[:300]}"
        return ""
    if right is None:
        return f"was accepted: {repr(result)[:200]}"
    return "" if right(result) else f"gave a wrong result without a word: {repr(result)[:200]}"


def command(act: Callable[[], int], words: Iterable[str] = ()) -> str:
    """Judge a command that must fail: an exit code other than 0, and one message without a traceback."""
    code, out, err = captured(act)
    if code == 0:
        return f"exit code 0: {out[-200:]}"
    told = " ".join((out + err).split())
    absent = [word for word in words if word not in told]
    if "Traceback" in told or not told or absent:
        return f"exit code {code} and the words {told[-300:]!r}, without {absent}"
    return ""


def captured(act: Callable[[], int]) -> tuple[int, str, str]:
    """Exit code, output and errors of a command that runs in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = act()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return code, out.getvalue(), err.getvalue()


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with one bit changed."""
    changed = bytearray(data)
    if changed:
        changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with a few of them changed, cut out, inserted or doubled, or cut short."""
    at = int(rng.integers(len(data) + 1))
    match int(rng.integers(6)):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + rng.bytes(int(rng.integers(1, 9))) + data[at:]
        case 2:
            return data[:at] + data[at + int(rng.integers(1, 9)) :]
        case 3:
            return data[:at] + data[max(0, at - 64) :]
        case 4:
            for _ in range(int(rng.integers(1, 9))):
                data = flipped(data, rng)
            return data
    return flipped(data, rng)


def pick(rng: np.random.Generator, choices: Any) -> Any:
    """One of them."""
    listed = list(choices)
    return listed[rng.integers(len(listed))]
