# SPDX-License-Identifier: Apache-2.0
"""Who reads the examples of a user's sequences: one thread at a time, or several."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
import time
import weakref
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any
from typing import TypeVar

from absl import logging

MOST = 256  # Threads.
_TIMED = 64  # Examples, after which it is known whether reading is slow.
_SLOW_SECONDS = 0.005  # An example.

_Read = TypeVar("_Read")


class Readers:
    """Reads the examples of a data set, of all its splits, so many at a time.

    One reader is whoever asks, when nobody else reads. Several are threads, which do
    not keep the process from ending: a stop waits for no example.
    """

    def __init__(self, count: int = 1):
        """`count` is at least 1."""
        self._lock = threading.Lock()
        self._asked: queue.SimpleQueue | None = None
        self._reads, self._seconds = 0, 0.0
        if count > 1:
            self._asked = queue.SimpleQueue()
            for _ in range(count):
                thread = threading.Thread(
                    target=_work, args=(self._asked,), name="reader", daemon=True
                )
                thread.start()
            weakref.finalize(self, _dismiss, self._asked, count)

    def read(self, function: Callable[[int], _Read], rows: Iterable[int]) -> list:
        """What a function gives for each row, in the order of the rows.

        Raises:
          Exception: what it raises for the first of the rows for which it does.
        """
        if self._asked is None:
            return [self._alone(function, row) for row in rows]
        jobs = [(concurrent.futures.Future(), function, row) for row in rows]
        for job in jobs:
            self._asked.put(job)
        try:
            return [future.result() for future, _, _ in jobs]
        finally:
            for future, _, _ in jobs:
                future.cancel()

    def _alone(self, function: Callable[[int], _Read], row: int) -> _Read:
        with self._lock:
            start = time.perf_counter()
            found = function(row)
            self._reads += 1
            self._seconds += time.perf_counter() - start
            if self._reads == _TIMED and self._seconds > _TIMED * _SLOW_SECONDS:
                logging.info(
                    "An example takes %.0f ms to read, and one is read at a time. If "
                    'several threads may read your data set at once, say "readers": 8 '
                    "in it (docs/own_data.md).",
                    1000 * self._seconds / _TIMED,
                )
        return found


def _work(asked: queue.SimpleQueue) -> None:
    while _do(asked.get()):
        pass


def _do(job: tuple[concurrent.futures.Future, Callable, Any] | None) -> bool:
    """Does a job, which nothing refers to afterwards; whether there was one."""
    if job is None:
        return False
    future, function, row = job
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(function(row))
        except BaseException as error:
            future.set_exception(error)
    return True


def _dismiss(asked: queue.SimpleQueue, count: int) -> None:
    for _ in range(count):
        asked.put(None)
