# SPDX-License-Identifier: Apache-2.0
"""Several workers as threads of this process, which speak to each other in its memory.

Each computes on TensorFlow's default strategy; what they say goes in the place of
`tf.distribute`'s collectives, so that their protocol is tested without processes.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from mtr_tf.runs.cluster import Cluster
from mtr_tf.runs.workers import Workers

PATIENCE = 60  # Seconds for the others to come.


class _Threaded(Workers):
    def __init__(self, index: int, said: list[bytes], barrier: threading.Barrier):
        addresses = tuple(f"host{i}:1" for i in range(len(said)))
        super().__init__(
            tf.distribute.get_strategy(), Cluster(addresses, index, "a test")
        )
        self._said, self._barrier = said, barrier
        self.local = self.strategy

    @property
    def replicas(self) -> int:
        return len(self._said)

    def _gather_bytes(self, data: bytes) -> list[bytes]:
        self._said[self._index] = data
        self._barrier.wait(PATIENCE)
        found = list(self._said)
        self._barrier.wait(PATIENCE)
        return found


def run(work: Callable[[Workers], Any], count: int = 2) -> list[Any]:
    """What each of so many workers returns, the chief first, or the error it raises."""
    barrier, said = threading.Barrier(count), [b""] * count

    def one(index: int) -> Any:
        try:
            return work(_Threaded(index, said, barrier))
        except Exception as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))
