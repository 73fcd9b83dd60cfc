"""Asking a run to stop: SIGTERM and Ctrl-C are noted and honoured between steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from mixtrain_jax.errors import InterruptedRunError, MixtrainError, PreemptedError


class Stop:
    """While entered, turns the first SIGTERM or SIGINT into a request; a second one ends the process at once.

    Outside of the main thread it does nothing: Python hands signals to that one alone.
    """

    def __init__(self) -> None:
        """Nothing requested yet."""
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ():
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)

    @staticmethod
    def error(number: int, saved: str) -> MixtrainError:
        """What to raise for a signal once the state is saved."""
        if number == signal.SIGTERM:
            return PreemptedError(f"Stopped by SIGTERM; {saved}. The same command goes on from there.")
        return InterruptedRunError(f"Stopped by Ctrl-C; {saved}. The same command goes on from there.")
