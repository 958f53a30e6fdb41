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
    """The environment variables of each worker.

    Each worker has one GPU, or one thread if there is no GPU: two processes with one
    thread do more than one process with two.

    Args:
      workers: The number of workers; 0: one per GPU, or else one per core.
      gpus: The GPUs to use, as CUDA_VISIBLE_DEVICES names them.
      cores: The number of processor cores.
    """
    if not gpus:
        return [dict(command.ONE_THREAD) for _ in range(workers or cores)]
    count = workers or len(gpus)
    # Workers that share a GPU must not take all its memory.
    shared = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"} if count > len(gpus) else {}
    return [
        {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)], **shared} for i in range(count)
    ]


def gpus(count: int) -> list[str]:
    """The `count` GPUs found by TensorFlow, as CUDA_VISIBLE_DEVICES names them."""
    variable = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in variable.split(",") if name.strip()]
    return (names or [str(i) for i in range(count)])[:count]


class LocalExecutor(ThreadPoolExecutor):
    """A thread for each slot, which waits for the slot's current process.

    However this process ends, even by kill -9, the others end too (see `worker`).
    """

    def __init__(self, slots: Sequence[Mapping[str, str]]):
        """Takes the environment of each worker, as returned by `slots`."""
        self._processes = command.Processes()
        free_slots: queue.SimpleQueue[Mapping[str, str]] = queue.SimpleQueue()
        for slot in slots:
            free_slots.put(slot)
        super().__init__(len(slots), "worker", self._take_slot, (free_slots,))

    def _take_slot(self, free_slots: queue.SimpleQueue[Mapping[str, str]]) -> None:
        """Gives a new thread its slot, which it keeps."""
        command.place.environment = free_slots.get()
        command.place.processes = self._processes

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the executor; with `cancel_futures`, running commands are stopped."""
        if cancel_futures:
            super().shutdown(wait=False, cancel_futures=True)
            self._processes.stop()
        super().shutdown(wait, cancel_futures=cancel_futures)
