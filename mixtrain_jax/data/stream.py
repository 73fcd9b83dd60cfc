"""Batches read ahead by grain's threads, in an order that is a pure function of the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

from mixtrain_jax.data.tfds import INSTALL
from mixtrain_jax.errors import CheckpointError, ConfigError, DataError

T = TypeVar("T")


class Stream(Generic[T]):
    """Iterator over the batches of the steps `first` to `last - 1`; made by `stream`.

    It can be saved and restored as grain's iterators can. Use it in a `with` statement: a process that ends with a
    stream open first reads what is in its queue, at most `buffer` batches.
    """

    def __init__(self, iterator: Any, first: int, last: int):
        self._iterator = iterator
        self._first = first
        self._last = last

    def __iter__(self) -> Stream[T]:
        return self

    def __next__(self) -> T:
        state = self._iterator.get_state()
        try:
            return next(self._iterator)
        except StopIteration:
            raise
        except Exception:
            # Grain would go on behind the batch that failed, but call it by the number of the one before.
            self._iterator.set_state(state)
            raise

    def get_state(self) -> dict[str, int]:
        """The step whose batch comes next, `{"step": step}`."""
        return {"step": self._first + self._iterator.get_state()["next_index"]}

    def set_state(self, state: dict[str, int]) -> None:
        """Go on at the step of `state`.

        Raises:
          CheckpointError: where the stream has no such step.
        """
        step = state["step"]
        if not self._first <= step <= self._last:
            raise CheckpointError(f"A stream of the steps {self._first} to {self._last} cannot go on at step {step}.")
        self._iterator.set_state({"next_index": step - self._first})

    def close(self) -> None:
        """Stop reading ahead; nothing can be read any more."""
        self._iterator.close()

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_iterator"):
            self.close()


def stream(
    take: Callable[[np.ndarray], T],
    plan: Callable[[int], np.ndarray],
    first: int,
    last: int,
    *,
    threads: int = 2,
    buffer: int = 4,
) -> Stream[T]:
    """Yield `take(plan(step))` for every step from `first` to `last - 1`, read ahead in the background.

    A run that is resumed starts another stream at another step: it gets the batches it would have got.

    Args:
      take: reads the examples of these indices, for example `Source.take`; called by several threads at once.
      plan: indices `[n]` of the examples of a step; a pure function, called by several threads at once.
      first: the first step.
      last: the step behind the last one.
      threads: threads that read, at least 0; 0 reads each batch when it is asked for.
      buffer: batches that are read ahead, at least `threads`; they are kept in memory.

    Raises:
      ConfigError: where a number is out of range.
      DataError: where grain is not installed. What `take` or `plan` raises comes out of the stream as it is, at the
        step it belongs to; the next try reads that step again.
    """
    if not 0 <= first <= last or not 0 <= threads <= buffer:
        raise ConfigError(
            "A stream needs 0 <= first <= last and 0 <= threads <= buffer, "
            f"got first {first}, last {last}, threads {threads}, buffer {buffer}."
        )
    try:
        import grain
    except ImportError as error:
        raise DataError(f"Streaming needs packages that are missing ({error}): {INSTALL}.") from error

    def batch(offset: int) -> T:
        return take(plan(first + int(offset)))

    steps = grain.MapDataset.range(last - first).map(batch)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    return Stream(iter(steps.to_iter_dataset(options)), first, last)
