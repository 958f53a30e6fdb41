# SPDX-License-Identifier: Apache-2.0
"""Several workers as threads of this process, which send messages in its memory.

Each computes on TensorFlow's default strategy; the messages replace the collectives of
`tf.distribute`, so that their protocol is tested without processes.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from mtr_tf.runs.cluster import Cluster
from mtr_tf.runs.workers import Workers

PATIENCE = 60  # Seconds to wait for the others.


class _Threaded(Workers):
    def __init__(self, index: int, messages: list[bytes], barrier: threading.Barrier):
        addresses = tuple(f"host{i}:1" for i in range(len(messages)))
        super().__init__(
            tf.distribute.get_strategy(), Cluster(addresses, index, "a test")
        )
        self._messages, self._barrier = messages, barrier
        self.local = self.strategy

    @property
    def replicas(self) -> int:
        return len(self._messages)

    def _gather_bytes(self, data: bytes) -> list[bytes]:
        self._messages[self._index] = data
        self._barrier.wait(PATIENCE)
        messages = list(self._messages)
        self._barrier.wait(PATIENCE)
        return messages


def run(work: Callable[[Workers], Any], count: int = 2) -> list[Any]:
    """What each of `count` workers returns, or the error it raises; the chief first."""
    barrier, messages = threading.Barrier(count), [b""] * count

    def run_worker(index: int) -> Any:
        try:
            return work(_Threaded(index, messages, barrier))
        except Exception as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(run_worker, range(count)))
