# SPDX-License-Identifier: Apache-2.0
"""Commands as jobs of SLURM, by submitit, which needs no daemon.

A job that SLURM takes back before its end (preemption, time limit) is queued again, and
continues with what its command had kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import threading
import time
import uuid
from collections.abc import Callable
from collections.abc import Mapping
from concurrent import futures
from concurrent.futures import Executor
from concurrent.futures import Future
from typing import Any

from mtr_tf.errors import InputError
from mtr_tf.executors import command
from mtr_tf.executors import extras

_POLL_SECONDS = 0.5  # submitit itself asks SLURM more rarely.
_REFRESH_SECONDS = 20.0
_STOP_SECONDS = 30.0  # For running commands to keep what they have.


@dataclasses.dataclass(frozen=True)
class Resumable:
    """A call that submitit repeats if its job is taken back."""

    fn: Callable[..., Any]
    environment: Mapping[str, str]
    lease: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The call itself, on the node."""
        return command.within(self.environment, self.lease, self.fn, *args, **kwargs)

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """What is to be queued, where the job is taken back."""
        library = extras.library("submitit", "slurm")
        return library.helpers.DelayedSubmission(self, *args, **kwargs)


class SlurmExecutor(Executor):
    """A job of SLURM for each call."""

    def __init__(self, folder: pathlib.Path, options: Mapping[str, Any]):
        """Finds SLURM.

        Args:
          folder: For submitit's files; all nodes must see it.
          options: Of `submitit.AutoExecutor.update_parameters`, such as `timeout_min`,
            `gpus_per_node` or `slurm_partition`; and `cluster`: `slurm`, or `local` for
            processes of this machine, to try it. Without GPUs a command has one thread.
        """
        given = {"timeout_min": 24 * 60, "name": "mtr_tf", **options}
        cluster = given.pop("cluster", "slurm")
        self._environment = (
            {} if any("gpu" in name for name in given) else dict(command.ONE_THREAD)
        )
        library = extras.library("submitit", "slurm")
        try:
            self._engine = library.AutoExecutor(folder=folder, cluster=cluster)
            self._engine.update_parameters(**given)
        except (NameError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"--executor=slurm cannot be used: {str(error).splitlines()[0]} Run "
                "it where sbatch and srun are, and correct --executor_options."
            ) from error
        self._jobs: dict[Future, Any] = {}
        self._lease_file = str(folder.absolute() / f"{uuid.uuid4().hex[:12]}.lease")
        self._lease = command.Lease(self._lease_file)
        self._lease.begin()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """See `Executor`."""
        future: Future = Future()
        call = Resumable(fn, self._environment, self._lease_file)
        job = self._engine.submit(call, *args, **kwargs)
        future.set_running_or_notify_cancel()
        with self._lock:
            self._jobs[future] = job
        return future

    def _watch(self) -> None:
        """Hands on what jobs return, or how they failed."""
        refreshed = time.monotonic()
        while not self._ended.wait(_POLL_SECONDS):
            if time.monotonic() - refreshed > _REFRESH_SECONDS:
                self._lease.refresh()
                refreshed = time.monotonic()
            with self._lock:
                jobs = list(self._jobs.items())
            for future, job in jobs:
                if job.done():
                    with self._lock:
                        del self._jobs[future]
                    _settle(future, job)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends it; with `cancel_futures`, commands are stopped, and jobs cancelled."""
        with self._lock:
            pending = list(self._jobs)
        if cancel_futures:
            self._lease.end()
        if wait or cancel_futures:
            futures.wait(pending, _STOP_SECONDS if cancel_futures else None)
        with self._lock:
            jobs = list(self._jobs.values()) if cancel_futures else []
        for job in jobs:
            with contextlib.suppress(Exception):  # It has ended meanwhile.
                job.cancel(check=False)
        self._lease.end()
        self._ended.set()


def _settle(future: Future, job: Any) -> None:
    try:
        future.set_result(job.result())
    except Exception as error:  # noqa: BLE001  (of whatever kind, it is handed on)
        future.set_exception(error)
