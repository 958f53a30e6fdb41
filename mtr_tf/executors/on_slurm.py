# SPDX-License-Identifier: Apache-2.0
"""Commands as SLURM jobs, by submitit, which needs no daemon.

A job that SLURM stops before its end (preemption, time limit) is queued again, and
continues from the work that its command had saved.
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

_POLL_SECONDS = 0.5  # submitit itself asks SLURM less often.
_STOP_SECONDS = 30.0  # For running commands to save their work.
_PREEMPTION_SECONDS = 120.0  # Within which SLURM stops a job after its warning.
_MAX_TIMEOUTS = 10_000  # Times that a job may reach its time limit and be requeued.
_STOP_CODES = (143, -signal.SIGTERM)
_REFUSALS = (AssertionError, NameError, RuntimeError, TypeError, ValueError)


@dataclasses.dataclass(frozen=True)
class Resumable:
    """A call that submitit repeats if SLURM stops its job."""

    fn: Callable[..., Any]
    environment: Mapping[str, str]
    lease: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Makes the call on the node.

        If a signal has stopped the command although its runner still lives, SLURM is
        about to stop the job, and the command must not count as ended.
        """
        while True:
            result = command.within(
                self.environment, self.lease, self.fn, *args, **kwargs
            )
            code = getattr(result, "code", None)
            if code not in _STOP_CODES or command.Lease(self.lease).ended():
                return result
            time.sleep(_PREEMPTION_SECONDS)

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """What submitit queues again after SLURM has stopped the job."""
        library = command.library("submitit", "slurm")
        return library.helpers.DelayedSubmission(self, *args, **kwargs)


class SlurmExecutor(Executor):
    """An executor with a SLURM job for each call."""

    def __init__(self, folder: pathlib.Path, options: Mapping[str, Any]):
        """Finds SLURM.

        Args:
          folder: The folder for submitit's files; all nodes must see it.
          options: Those of `submitit.AutoExecutor.update_parameters`, such as
            `timeout_min`, `gpus_per_node` or `slurm_partition`; and `cluster`: `slurm`,
            or for trials `local`, in processes of this machine. Without GPUs a command
            has one thread.
        """
        job_options = {"timeout_min": 24 * 60, "name": "mtr_tf", **options}
        cluster = job_options.pop("cluster", "slurm")
        self._environment = (
            {} if "gpu" in str(job_options) else dict(command.ONE_THREAD)
        )
        library = command.library("submitit", "slurm")
        timeout_options = (
            {"slurm_max_num_timeout": _MAX_TIMEOUTS} if cluster == "slurm" else {}
        )
        try:
            self._engine = library.AutoExecutor(
                folder, cluster=cluster, **timeout_options
            )
            self._engine.update_parameters(**job_options)
        except _REFUSALS as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise InputError(
                f"--executor=slurm cannot be used: {reason}. Run it where sbatch and "
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
        threading.Thread(target=self._watch_jobs, daemon=True).start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """See `Executor`."""
        future: Future = Future()
        call = Resumable(fn, self._environment, self._lease.path)
        try:
            job = self._engine.submit(call, *args, **kwargs)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[-1].rstrip(".")
            raise command.Refused(
                f"SLURM refuses a job ({reason}); correct --executor_options, or let "
                "fewer jobs be there at a time (--workers)."
            ) from error
        future.set_running_or_notify_cancel()
        with self._lock:
            self._jobs[future] = job
        return future

    def _watch_jobs(self) -> None:
        """Passes results and errors of finished jobs to their futures."""
        while not self._ended.wait(_POLL_SECONDS):
            with self._lock:
                jobs = list(self._jobs.items())
            for future, job in jobs:
                with contextlib.suppress(OSError):  # Of the file system; asked again.
                    if job.done():
                        _settle_future(future, job)
                        with self._lock:
                            self._jobs.pop(future, None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the executor; with `cancel_futures`, stops commands and cancels jobs."""
        with self._lock:
            pending = list(self._jobs)
        if cancel_futures:
            self._lease.end()
        elif not wait:
            return  # Submitted jobs go on as long as this process lives.
        futures.wait(pending, _STOP_SECONDS if cancel_futures else None)
        with self._lock:
            jobs, self._jobs = self._jobs, {}
        for future, job in jobs.items() if cancel_futures else ():
            with contextlib.suppress(Exception):  # It has ended meanwhile.
                job.cancel(check=False)
            with contextlib.suppress(futures.InvalidStateError):  # Ended meanwhile.
                future.set_exception(command.Stopping())
        self._lease.end()
        self._ended.set()


def _settle_future(future: Future, job: Any) -> None:
    with contextlib.suppress(futures.InvalidStateError):  # It was cancelled meanwhile.
        try:
            future.set_result(job.result())
        except Exception as error:  # noqa: BLE001  (any error is passed on)
            future.set_exception(error)
