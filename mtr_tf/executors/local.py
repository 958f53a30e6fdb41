# SPDX-License-Identifier: Apache-2.0
"""Commands in processes of this machine, each with one GPU or one thread."""

from __future__ import annotations

import os
import queue
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from mtr_tf.executors import command


def slots(workers: int, gpus: Sequence[str], cores: int) -> list[dict[str, str]]:
    """The environment of each worker.

    One GPU each, or one thread each where there is none: two processes of one thread do
    more than one of two.

    Args:
      workers: how many; 0: one per GPU, or else per core.
      gpus: those that may be used, as CUDA_VISIBLE_DEVICES names them.
      cores: how many processor cores there are.
    """
    if not gpus:
        return [dict(command.ONE_THREAD) for _ in range(workers or cores)]
    count = workers or len(gpus)
    found = [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(count)]
    if count > len(gpus):  # Several on one GPU: none may take all of its memory.
        found = [slot | {"TF_FORCE_GPU_ALLOW_GROWTH": "true"} for slot in found]
    return found


def gpus(count: int) -> list[str]:
    """The GPUs that TensorFlow has found, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in named.split(",") if name.strip()]
    return (names or [str(i) for i in range(count)])[:count]


class LocalExecutor(ThreadPoolExecutor):
    """A thread for each slot, which waits for a process of it.

    However this process ends, even by kill -9, the others end too (see `worker`).
    """

    def __init__(self, slots: Sequence[Mapping[str, str]]):
        """Takes the environment of each worker, as of `slots`."""
        self._processes = command.Processes()
        free: queue.SimpleQueue[Mapping[str, str]] = queue.SimpleQueue()
        for slot in slots:
            free.put(slot)
        super().__init__(len(slots), "worker", self._enter, (free,))

    def _enter(self, free: queue.SimpleQueue[Mapping[str, str]]) -> None:
        """What each thread begins with: its slot, which it keeps."""
        command.place.environment = free.get()
        command.place.processes = self._processes

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends it; with `cancel_futures`, commands that run are stopped."""
        if cancel_futures:
            super().shutdown(wait=False, cancel_futures=True)
            self._processes.stop()
        super().shutdown(wait, cancel_futures=cancel_futures)
