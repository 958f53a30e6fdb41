# SPDX-License-Identifier: Apache-2.0
"""Commands as jobs of SLURM, by submitit, which needs no daemon.

A job that SLURM takes back before its end (preemption, time limit) is queued again, and
continues with what its command had kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import signal
import threading
import time
from collections.abc import Callable
from collections.abc import Mapping
from concurrent import futures
from concurrent.futures import Executor
from concurrent.futures import Future
from typing import Any

from absl import logging

from mtr_tf.errors import InputError
from mtr_tf.executors import command
from mtr_tf.executors import extras

_POLL_SECONDS = 0.5  # submitit itself asks SLURM more rarely.
_STOP_SECONDS = 30.0  # For running commands to keep what they have.
_AGAIN_SECONDS = 120.0  # Within which SLURM takes a job away that it has warned.
_TIMES = 10_000  # That a job may reach its time limit and be queued again.
_STOPPED = (143, -signal.SIGTERM)
_REFUSALS = (AssertionError, NameError, RuntimeError, TypeError, ValueError)


@dataclasses.dataclass(frozen=True)
class Resumable:
    """A call that submitit repeats if its job is taken back."""

    fn: Callable[..., Any]
    environment: Mapping[str, str]
    lease: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The call itself, on the node.

        A command that a signal has stopped although its runner is there is one whose
        job is being taken back: it must not count as ended.
        """
        while True:
            ended = command.within(
                self.environment, self.lease, self.fn, *args, **kwargs
            )
            code = getattr(ended, "code", None)
            if code not in _STOPPED or command.Lease(self.lease).ended():
                return ended
            time.sleep(_AGAIN_SECONDS)

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
        self._environment = {} if "gpu" in str(given) else dict(command.ONE_THREAD)
        library = extras.library("submitit", "slurm")
        times = {"slurm_max_num_timeout": _TIMES} if cluster == "slurm" else {}
        try:
            self._engine = library.AutoExecutor(folder, cluster=cluster, **times)
            self._engine.update_parameters(**given)
        except _REFUSALS as error:
            said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise InputError(
                f"--executor=slurm cannot be used: {said}. Run it where sbatch and "
                "srun are, and correct --executor_options."
            ) from error
        if self._environment and cluster == "slurm":
            logging.info(
                "each job has one thread and no GPU; for GPUs, give "
                "--executor_options=gpus_per_node=1"
            )
        self._jobs: dict[Future, Any] = {}
        self._lease = command.Lease.begin(folder)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """See `Executor`."""
        future: Future = Future()
        call = Resumable(fn, self._environment, self._lease.path)
        try:
            job = self._engine.submit(call, *args, **kwargs)
        except Exception as error:
            said = (str(error).splitlines() or [type(error).__name__])[-1].rstrip(".")
            raise command.Refused(
                f"SLURM refuses a job ({said}); correct --executor_options, or let "
                "fewer jobs be there at a time (--workers)."
            ) from error
        future.set_running_or_notify_cancel()
        with self._lock:
            self._jobs[future] = job
        return future

    def _watch(self) -> None:
        """Hands on what jobs return, or how they failed."""
        while not self._ended.wait(_POLL_SECONDS):
            with self._lock:
                jobs = list(self._jobs.items())
            for future, job in jobs:
                with contextlib.suppress(OSError):  # Of the file system: asked again.
                    if job.done():
                        _settle(future, job)
                        with self._lock:
                            self._jobs.pop(future, None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends it; with `cancel_futures`, commands are stopped, and jobs cancelled."""
        with self._lock:
            pending = list(self._jobs)
        if cancel_futures:
            self._lease.end()
        elif not wait:
            return  # What was submitted goes on as long as this process lives.
        futures.wait(pending, _STOP_SECONDS if cancel_futures else None)
        with self._lock:
            jobs, self._jobs = self._jobs, {}
        for future, job in jobs.items() if cancel_futures else ():
            with contextlib.suppress(Exception):  # It has ended meanwhile.
                job.cancel(check=False)
            with contextlib.suppress(futures.InvalidStateError):  # It has, too.
                future.set_exception(command.Stopping())
        self._lease.end()
        self._ended.set()


def _settle(future: Future, job: Any) -> None:
    with contextlib.suppress(futures.InvalidStateError):  # It was given up meanwhile.
        try:
            future.set_result(job.result())
        except Exception as error:  # noqa: BLE001  (of whatever kind, it is handed on)
            future.set_exception(error)
