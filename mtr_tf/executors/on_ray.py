# SPDX-License-Identifier: Apache-2.0
"""Commands as tasks of a Ray cluster: scheduled by GPU, and repeated if a node is lost.

The cluster is the one that RAY_ADDRESS or the option `address` names, or one that was
started on this machine (`ray start --head`), or a new one on this machine.
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
from mtr_tf.executors import extras

_RETRIES = 3  # Of a command whose node was lost: it continues with what it kept.
_STOP_SECONDS = 30.0


class RayExecutor(Executor):
    """A task of Ray for each call.

    Attributes:
      room: How many commands the cluster has room for now.
    """

    def __init__(self, folder: pathlib.Path, options: Mapping[str, Any]):
        """Connects to the cluster.

        Args:
          folder: For the file by which commands know that this process is there; all
            nodes must see it.
          options: `address` for `ray.init`; all others for each task, such as
            `num_gpus`, `num_cpus`, `memory` or `max_retries`. By default a command has
            a GPU if the cluster has some, and otherwise one CPU and one thread.
        """
        given = dict(options)
        self._ray = extras.library("ray", "ray")
        address = given.pop("address", None)
        task = self._ray.remote(command.within)
        with _options_checked():  # Before anything starts.
            task.options(**given)
        try:
            with stopping.kept():  # Ray would end the process on SIGTERM.
                self._ray.init(
                    address and str(address),  # A port alone is a number.
                    log_to_driver=False,
                    logging_level="warning",
                )
        except (ConnectionError, ValueError, RuntimeError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise InputError(
                f"--executor=ray found no cluster at {address or 'RAY_ADDRESS'}: "
                f"{said}. Start one (ray start --head), or correct the address."
            ) from error
        there = self._ray.cluster_resources()
        needs = "num_gpus" if there.get("GPU") else "num_cpus"
        needed = {needs: 1, "max_retries": _RETRIES, **given}
        on_gpus = needed.get("num_gpus", 0)
        if on_gpus > there.get("GPU", 0):
            logging.warning(
                "the Ray cluster has no node with %g GPUs now; commands wait until "
                "there is one",
                on_gpus,
            )
        if not on_gpus:
            needed.setdefault("num_cpus", 1)
        self._task = task.options(**needed)
        self._environment = {} if on_gpus else dict(command.ONE_THREAD)
        if data := os.environ.get("TFDS_DATA_DIR"):
            self._environment["TFDS_DATA_DIR"] = data
        kind, each = ("GPU", on_gpus) if on_gpus else ("CPU", needed["num_cpus"])
        self.room = max(1, int(there.get(kind, 1) / (each or 1)))
        self._lease = command.Lease.begin(folder)
        self._pending: dict[Future, Any] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """See `Executor`."""
        with _options_checked():  # Some are looked at only now, as 1.5 GPUs.
            reference = self._task.remote(
                self._environment, self._lease.path, fn, *args, **kwargs
            )
        future = reference.future()
        self._pending[future] = reference
        future.add_done_callback(lambda done: self._pending.pop(done, None))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Disconnects; with `cancel_futures`, commands that run are stopped."""
        pending = list(self._pending.items())
        self._pending.clear()
        if cancel_futures:
            self._lease.end()  # Commands keep their work, which Ray does not wait for.
        elif not wait:
            return  # What was submitted goes on as long as this process lives.
        given = [future for future, _ in pending]
        futures.wait(given, _STOP_SECONDS if cancel_futures else None)
        for future, reference in pending:
            if not future.done():
                with contextlib.suppress(Exception):  # It has ended meanwhile.
                    self._ray.cancel(reference, force=True)
        self._lease.end()
        self._ray.shutdown()


@contextlib.contextmanager
def _options_checked() -> Iterator[None]:
    """Turns what Ray says of options that it refuses into an `InputError`."""
    try:
        yield
    except (TypeError, ValueError) as error:
        said = "".join(map(str, error.args)).rstrip(".")  # Ray parts one of them.
        raise InputError(
            f"Ray refuses --executor_options: {said}. Correct them."
        ) from error
