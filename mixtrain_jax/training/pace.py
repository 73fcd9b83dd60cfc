"""The clock of training: how far the host may be ahead of the device, and how long steps take."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

AHEAD = 8  # steps under way at most: enough to hide what the host does, few enough to hold their batches


class Pace:
    """Waits for programs of some time ago, and takes the time of training, pauses left out.

    To wait for a program that was handed over some programs ago never empties the device's queue, so the time from one
    wait to the next is that of a program, be the host or the device the slower one.
    """

    def __init__(self, spent: float, ahead: int = AHEAD):
        """Start the clock.

        Args:
          spent: seconds of training so far.
          ahead: programs under way at most.
        """
        self._started = time.monotonic() - spent
        self._ahead = ahead
        self._open: collections.deque[jax.Array] = collections.deque()
        self._last: float | None = None  # when the last wait ended; None where a pause came after it
        # Since the last `rates`: seconds of single steps, the number of all, and the time then.
        self._times: list[float] = []
        self._steps = 0
        self._told = spent

    def seconds(self) -> float:
        """Seconds of training, pauses left out."""
        return time.monotonic() - self._started

    def follow(self, output: jax.Array, steps: int = 1) -> None:
        """Wait until no more than `ahead` programs are under way.

        Args:
          output: a result of the program that was just dispatched, donated to none that follows.
          steps: how many steps the program takes.
        """
        self._steps += steps
        self._open.append(output)
        if len(self._open) <= self._ahead:
            return
        jax.block_until_ready(self._open.popleft())
        now = time.monotonic()
        if self._last is not None:
            self._times.append((now - self._last) / steps)
        self._last = now

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock; all programs have ended when this is entered."""
        began = time.monotonic()
        self._open.clear()
        self._last = None
        yield
        self._started += time.monotonic() - began

    def rates(self, batch_size: int) -> dict[str, Any]:
        """What a row of the log says of time, of the steps since the last one.

        Returns:
          `seconds` of training so far, `examples_per_second`, and `step_seconds`, the percentiles 50, 90 and 99 of
          the seconds of a step; where there were too few steps, their mean.
        """
        seconds = self.seconds()
        mean = (seconds - self._told) / self._steps
        times = np.percentile(self._times or [mean], (50, 90, 99)).tolist()
        self._told, self._steps, self._times = seconds, 0, []
        return {"seconds": seconds, "examples_per_second": batch_size / mean, "step_seconds": times}
