# SPDX-License-Identifier: Apache-2.0
"""Commands as tasks of a Ray cluster, scheduled by GPU and repeated if a node is lost.

The cluster is the one that RAY_ADDRESS or the option `address` names, else the one that
was started on this machine (`ray start --head`), else a new one on this machine.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from concurrent import futures
from concurrent.futures import Executor
from concurrent.futures import Future
from typing import Any

from absl import logging

from mtr_tf.cli import stopping
from mtr_tf.errors import InputError
from mtr_tf.executors import command

_RETRIES = 3  # If the node of a command is lost; it continues from its saved work.
_STOP_SECONDS = 30.0


class RayExecutor(Executor):
    """An executor with a Ray task for each call.

    Attributes:
      room: How many commands the cluster has room for now.
    """

    def __init__(self, folder: pathlib.Path, options: Mapping[str, Any]):
        """Connects to the cluster.

        Args:
          folder: The folder of the `Lease`, by which commands know that this process
            still lives; all nodes must see it.
          options: `address` for `ray.init`; all others for each task, such as
            `num_gpus`, `num_cpus`, `memory` or `max_retries`. By default a command has
            one GPU if the cluster has any, otherwise one CPU and one thread.
        """
        user_options = dict(options)
        self._ray = command.library("ray", "ray")
        address = user_options.pop("address", None)
        task = self._ray.remote(command.within)
        with _explain_refusals():  # Before anything starts.
            task.options(**user_options)
        try:
            with stopping.kept():  # Ray would end the process on SIGTERM.
                self._ray.init(
                    address and str(address),  # A mere port is a number.
                    log_to_driver=False,
                    logging_level="warning",
                )
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise InputError(
                f"--executor=ray found no cluster at {address or 'RAY_ADDRESS'}: "
                f"{reason}. Start one (ray start --head), or correct the address."
            ) from error
        resources = self._ray.cluster_resources()
        option_name = "num_gpus" if resources.get("GPU") else "num_cpus"
        task_options = {option_name: 1, "max_retries": _RETRIES, **user_options}
        gpu_count = task_options.get("num_gpus", 0)
        if gpu_count > resources.get("GPU", 0):
            logging.warning(
                "the Ray cluster has no node with %g GPUs now; commands wait until "
                "there is one",
                gpu_count,
            )
        if not gpu_count:
            task_options.setdefault("num_cpus", 1)
        self._task = task.options(**task_options)
        self._environment = {} if gpu_count else dict(command.ONE_THREAD)
        if data := os.environ.get("TFDS_DATA_DIR"):
            self._environment["TFDS_DATA_DIR"] = data
        kind, amount = (
            ("GPU", gpu_count) if gpu_count else ("CPU", task_options["num_cpus"])
        )
        self.room = max(1, int(resources.get(kind, 1) / (amount or 1)))
        self._lease = command.Lease.begin(folder)
        self._pending: dict[Future, Any] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """See `Executor`."""
        with _explain_refusals():  # Some are checked only now, such as 1.5 GPUs.
            reference = self._task.remote(
                self._environment, self._lease.path, fn, *args, **kwargs
            )
        future = reference.future()
        self._pending[future] = reference
        future.add_done_callback(lambda key: self._pending.pop(key, None))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Disconnects; with `cancel_futures`, running commands are stopped."""
        pending = list(self._pending.items())
        self._pending.clear()
        if cancel_futures:
            self._lease.end()  # Lets commands save their work; Ray would not wait.
        elif not wait:
            return  # Submitted tasks go on as long as this process lives.
        pending_futures = [future for future, _ in pending]
        futures.wait(pending_futures, _STOP_SECONDS if cancel_futures else None)
        for future, reference in pending:
            if not future.done():
                with contextlib.suppress(Exception):  # It has ended meanwhile.
                    self._ray.cancel(reference, force=True)
        self._lease.end()
        self._ray.shutdown()


@contextlib.contextmanager
def _explain_refusals() -> Iterator[None]:
    """Turns Ray's errors for options that it refuses into an `InputError`."""
    try:
        yield
    except (TypeError, ValueError) as error:
        reason = "".join(map(str, error.args)).rstrip(".")  # Ray splits one message.
        raise InputError(
            f"Ray refuses --executor_options: {reason}. Correct them."
        ) from error
