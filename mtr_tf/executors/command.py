# SPDX-License-Identifier: Apache-2.0
"""A command, and how it is run in its own process.

Executors are given `run`: it works on any machine, and its argument and result can be
pickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from mtr_tf import files
from mtr_tf.errors import InputError
from mtr_tf.errors import present

ONE_THREAD = dict.fromkeys(
    ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"), "1"
)
_POLL_SECONDS = 0.5
_REFRESH_SECONDS = 20.0
_STALE_SECONDS = 300.0
# With these a process would take itself for one of several that train together.
_WORKER_VARIABLES = ("TF_CONFIG", "SLURM_STEP_NUM_TASKS")
_GRACE_SECONDS = 20.0  # To save a checkpoint; clusters often give a job 30.
# Log lines of TensorFlow and mtr_tf; the beginning of an error.
_NOISE = re.compile(r"[IWEF]\d{4} |WARNING: All log messages|\d\d:\d\d:\d\d |\$ ")
_ERROR = re.compile(r"error: |[\w.]+(Error|Exception|Interrupt)\b")


@dataclasses.dataclass(frozen=True)
class Command:
    """`python -m MODULE --flags`.

    Attributes:
      arguments: Module and flags, such as `("mtr_tf.train", "--tasks=seg")`.
      log: The file that its output is appended to; may be relative to `folder`.
      folder: Its working directory.
    """

    arguments: tuple[str, ...]
    log: str
    folder: str = dataclasses.field(default_factory=os.getcwd)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
      code: Its exit code; negative: the signal that ended it.
      seconds: How long it took.
      reason: The line of its log that says why it failed, if it did.
      environment: Variables that were set for it.
      host: The machine that it ran on.
    """

    code: int
    seconds: float
    reason: str
    environment: Mapping[str, str]
    host: str


class Processes:
    """Processes that can be stopped together, even while others are starting."""

    def __init__(self):
        """Starts with no processes."""
        self._running: list[subprocess.Popen] = []
        self._lock = threading.Lock()
        self._stopped = False

    @contextlib.contextmanager
    def running(
        self, arguments: Sequence[str], **options: Any
    ) -> Iterator[subprocess.Popen]:
        """Runs a process while the context lasts, and ends it then.

        Raises:
          Stopping: All processes are being stopped.
        """
        with self._lock:
            if self._stopped:
                raise Stopping
            process = subprocess.Popen(arguments, stdin=subprocess.PIPE, **options)
            self._running.append(process)
        try:
            yield process
        finally:
            _end_processes([process])  # It still runs only after an exception.
            with self._lock:
                self._running.remove(process)

    def stop(self) -> None:
        """Ends all processes: by a message, so that they can save, else by force."""
        with self._lock:
            self._stopped = True
            processes = list(self._running)
        _end_processes(processes)


class Lease:
    """A file that tells commands on other machines that their runner still lives.

    The runner refreshes it, and deletes it at its end. If it is gone, or has not been
    refreshed for five minutes, nobody waits for the commands any more.
    """

    def __init__(self, path: str):
        """Takes the path, which both sides know."""
        self.path = path
        self._over = threading.Event()
        self._seen = 0
        self._since = time.monotonic()

    @classmethod
    def begin(cls, folder: pathlib.Path) -> Lease:
        """Begins the lease of a runner, refreshed until its end; ends older ones.

        Args:
          folder: The folder of the file; only one runner at a time uses it.

        Raises:
          InputError: The file cannot be written.
        """
        for leftover in folder.glob("*.lease"):  # From runners that were killed.
            cls(str(leftover)).end()
        lease = cls(str(folder.absolute() / f"{uuid.uuid4().hex[:12]}.lease"))
        path = pathlib.Path(lease.path)
        with files.write_errors_explained(path):
            folder.mkdir(parents=True, exist_ok=True)
            path.touch()
        threading.Thread(target=lease._refresh, daemon=True).start()
        return lease

    def _refresh(self) -> None:
        while not self._over.wait(_REFRESH_SECONDS):
            with contextlib.suppress(OSError):  # The next refresh comes soon.
                os.utime(self.path)

    def end(self) -> None:
        """Ends the lease, which stops the runner's remaining commands."""
        self._over.set()
        with contextlib.suppress(OSError):
            pathlib.Path(self.path).unlink()

    def ended(self) -> bool:
        """Whether the lease has ended; clocks of machines are not compared."""
        try:
            modified = os.stat(self.path).st_mtime_ns
        except FileNotFoundError:
            return True
        except OSError:  # The file system may be unavailable for a moment.
            modified = self._seen
        if modified != self._seen:
            self._seen, self._since = modified, time.monotonic()
        return time.monotonic() - self._since > _STALE_SECONDS


def library(name: str, executor: str) -> Any:
    """Imports a library by name, for the executor that needs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"--executor={executor} needs {name}, which is not installed; run pip "
            f"install {name}, on all machines."
        ) from error


class Refused(InputError):
    """An engine does not take a command now."""


class Stopping(Exception):
    """A process was stopped or not started, because nobody waits for it any more."""


def _end_processes(processes: Sequence[subprocess.Popen]) -> None:
    live_processes = [process for process in processes if process.poll() is None]
    for process in live_processes:
        with contextlib.suppress(OSError):
            present(process.stdin, "a pipe").write(b"stop")
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in live_processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # With its children.
        process.wait()


# What executors tell `run` about where it is called: its thread or node.
place = threading.local()


def within(
    environment: Mapping[str, str],
    lease: str,
    fn: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Calls a function on a node.

    Args:
      environment: Variables for the commands that the function runs.
      lease: The file of a `Lease`; commands are stopped when it ends.
      fn: The function.
      *args: Its positional arguments.
      **kwargs: Its keyword arguments.
    """
    place.environment, place.lease = environment, Lease(lease)
    try:
        return fn(*args, **kwargs)
    finally:
        place.environment, place.lease = {}, None


def run(command: Command) -> Ended:
    """Runs a command to its end; if interrupted, stops it so that its work is kept.

    Raises:
      Stopping: See `Processes`; or the runner has ended, or its files are not visible.
      InputError: The log cannot be written.
      OSError: The process cannot be started.
    """
    lease: Lease | None = getattr(place, "lease", None)
    if lease and lease.ended():
        raise Stopping(
            f"{lease.path} is not there on {socket.gethostname()}: the runner has "
            "ended, or not all machines see the same files under the same paths."
        )
    processes = getattr(place, "processes", None) or Processes()
    variables = getattr(place, "environment", {})
    environment = {**os.environ, **variables}
    for name in _WORKER_VARIABLES:
        environment.pop(name, None)
    log = pathlib.Path(command.folder, command.log)
    start = time.monotonic()
    with files.write_errors_explained(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        file = open(log, "ab")  # noqa: SIM115  (closed below)
        file.write(f"$ {shown(command.arguments)}\n".encode())
        file.flush()
    offset = file.tell()
    with (
        file,
        processes.running(
            [sys.executable, "-m", "mtr_tf.executors.worker", *command.arguments],
            bufsize=0,  # The pipe ends with this process: see `worker`.
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=command.folder,
            env=environment,
            process_group=0,  # Ctrl-C goes to the parent alone.
        ) as process,
    ):
        code = _wait_for_exit(process, lease)
        present(process.stdin, "a pipe").close()
    return Ended(
        code=code,
        seconds=time.monotonic() - start,
        reason=last_words(files.read_bytes(log)[offset:], code),
        environment=variables,
        host=socket.gethostname(),
    )


def _wait_for_exit(process: subprocess.Popen, lease: Lease | None) -> int:
    """Waits for the exit code; raises `Stopping` when the lease ends."""
    while True:
        if lease and lease.ended():
            raise Stopping
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_POLL_SECONDS)


def shown(arguments: Sequence[str]) -> str:
    """Module and flags as a command that can be pasted into a shell."""
    return shlex.join(["python", "-m", *arguments])


def last_words(log: bytes, code: int) -> str:
    """The line of a log that says why its command failed.

    Args:
      log: The output of the command.
      code: Its exit code.
    """
    lines = [line.strip() for line in log.decode(errors="replace").splitlines()]
    lines = [line for line in lines if line and not _NOISE.match(line)]
    errors = [line for line in lines if _ERROR.match(line)]
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", which often means too little memory" if code == -9 else ""
        return f"it was ended by {name}{hint}"
    reason = (errors or lines or [f"it ended with code {code}"])[-1]
    return reason.removeprefix("error: ")
