# SPDX-License-Identifier: Apache-2.0
"""Reads the examples of a user's sequences, in one thread at a time or in several."""

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
_TIMED = 64  # Examples that are timed to know whether reading is slow.
_SLOW_SECONDS = 0.005  # Per example.

_Read = TypeVar("_Read")


class Readers:
    """Reads the examples of all splits of a data set, a number of them at a time.

    A single reader is the calling thread, once no other thread reads. Several readers
    are daemon threads, so that the process can end without waiting for an example.
    """

    def __init__(self, count: int = 1):
        """`count` is the number of readers, at least 1."""
        self._lock = threading.Lock()
        self._asked: queue.SimpleQueue | None = None
        self._reads, self._seconds = 0, 0.0
        if count > 1:
            self._asked = queue.SimpleQueue()
            for _ in range(count):
                thread = threading.Thread(
                    target=_run_jobs, args=(self._asked,), name="reader", daemon=True
                )
                thread.start()
            weakref.finalize(self, _stop_threads, self._asked, count)

    def read(self, function: Callable[[int], _Read], rows: Iterable[int]) -> list:
        """The result of a function for each row, in the order of the rows.

        Raises:
          Exception: what the function raises, for the first such row.
        """
        if self._asked is None:
            return [self._read_timed(function, row) for row in rows]
        jobs = [(concurrent.futures.Future(), function, row) for row in rows]
        for job in jobs:
            self._asked.put(job)
        try:
            return [future.result() for future, _, _ in jobs]
        finally:
            for future, _, _ in jobs:
                future.cancel()

    def _read_timed(self, function: Callable[[int], _Read], row: int) -> _Read:
        with self._lock:
            start = time.perf_counter()
            result = function(row)
            self._reads += 1
            self._seconds += time.perf_counter() - start
            if self._reads == _TIMED and self._seconds > _TIMED * _SLOW_SECONDS:
                logging.info(
                    "An example takes %.0f ms to read, and one is read at a time. If "
                    'several threads may read your data set at once, say "readers": 8 '
                    "in it (docs/own_data.md).",
                    1000 * self._seconds / _TIMED,
                )
        return result


def _run_jobs(jobs: queue.SimpleQueue) -> None:
    while _run_job(jobs.get()):
        pass


def _run_job(job: tuple[concurrent.futures.Future, Callable, Any] | None) -> bool:
    """Runs a job and keeps no reference to it; returns False for None, the end."""
    if job is None:
        return False
    future, function, row = job
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(function(row))
        except BaseException as error:
            future.set_exception(error)
    return True


def _stop_threads(jobs: queue.SimpleQueue, count: int) -> None:
    for _ in range(count):
        jobs.put(None)
