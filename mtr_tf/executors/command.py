# SPDX-License-Identifier: Apache-2.0
"""A command, and how it is run to its end in a process of its own.

`run` is what executors are given: it works on whichever machine it comes to, and what
it takes and returns can be pickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
# By these a process would think that it is one of several that train together.
_OF_WORKERS = ("TF_CONFIG", "SLURM_STEP_NUM_TASKS")
_GRACE_SECONDS = 20.0  # To keep a checkpoint; clusters often give a job 30 in all.
# Log lines of TensorFlow's and our own; what an error begins with.
_NOISE = re.compile(r"[IWEF]\d{4} |WARNING: All log messages|\d\d:\d\d:\d\d |\$ ")
_ERROR = re.compile(r"error: |[\w.]+(Error|Exception|Interrupt)\b")


@dataclasses.dataclass(frozen=True)
class Command:
    """`python -m MODULE --flags`.

    Attributes:
      arguments: Module and flags, as `("mtr_tf.train", "--tasks=seg")`.
      log: The file that what it says is added to; may be relative to `folder`.
      folder: Its working directory.
      environment: Variables that are set for it.
    """

    arguments: tuple[str, ...]
    log: str
    folder: str = dataclasses.field(default_factory=os.getcwd)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
      code: Its exit code; negative: the signal that ended it.
      seconds: How long it took.
      said: The line of its log that says why it failed, if it did.
      environment: Variables that were set for it.
      host: The machine that it ran on.
    """

    code: int
    seconds: float
    said: str
    environment: Mapping[str, str]
    host: str


class Processes:
    """Processes that can all be stopped, also while others are about to start."""

    def __init__(self):
        """None runs yet."""
        self._running: list[subprocess.Popen] = []
        self._lock = threading.Lock()
        self._stopped = False

    @contextlib.contextmanager
    def running(
        self, arguments: Sequence[str], **options: Any
    ) -> Iterator[subprocess.Popen]:
        """A process that runs inside; it does not outlive the end.

        Raises:
          Stopping: all are being stopped.
        """
        with self._lock:
            if self._stopped:
                raise Stopping
            process = subprocess.Popen(arguments, stdin=subprocess.PIPE, **options)
            self._running.append(process)
        try:
            yield process
        finally:
            _end([process])  # Something came from outside if it runs.
            with self._lock:
                self._running.remove(process)

    def stop(self) -> None:
        """Ends all: by a word, so that checkpoints are kept, or else by force."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        _end(running)


class Lease:
    """A file that says that a runner is there, for commands on other machines.

    The runner refreshes it, and deletes it at its end. If it is gone, or has not been
    refreshed for five minutes, nobody waits for what a command does.
    """

    def __init__(self, path: str):
        """Takes the path, by which both sides know it."""
        self.path = path
        self._over = threading.Event()
        self._seen = 0
        self._since = time.monotonic()

    @classmethod
    def begin(cls, folder: pathlib.Path) -> Lease:
        """The lease of a runner, refreshed until its end; older ones there end.

        Args:
          folder: that of the file; only one runner at a time uses it.

        Raises:
          InputError: it cannot be written.
        """
        for left in folder.glob("*.lease"):  # Of runners that were killed.
            cls(str(left)).end()
        lease = cls(str(folder.absolute() / f"{uuid.uuid4().hex[:12]}.lease"))
        path = pathlib.Path(lease.path)
        with files.write_errors_explained(path):
            folder.mkdir(parents=True, exist_ok=True)
            path.touch()
        threading.Thread(target=lease._refresh, daemon=True).start()
        return lease

    def _refresh(self) -> None:
        while not self._over.wait(_REFRESH_SECONDS):
            with contextlib.suppress(OSError):  # It is tried again soon.
                os.utime(self.path)

    def end(self) -> None:
        """Says that the runner is gone, and stops what its commands still do."""
        self._over.set()
        with contextlib.suppress(OSError):
            pathlib.Path(self.path).unlink()

    def ended(self) -> bool:
        """Whether it has ended; clocks of machines are not compared."""
        try:
            seen = os.stat(self.path).st_mtime_ns
        except FileNotFoundError:
            return True
        except OSError:  # The file system is away for a moment.
            seen = self._seen
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        return time.monotonic() - self._since > _STALE_SECONDS


class Refused(InputError):
    """An engine does not take a command now."""


class Stopping(Exception):
    """A process was stopped, or not started, as nobody waits for it any more."""


def _end(processes: Sequence[subprocess.Popen]) -> None:
    running = [process for process in processes if process.poll() is None]
    for process in running:
        with contextlib.suppress(OSError):
            present(process.stdin, "a pipe").write(b"stop")
    end = time.monotonic() + _GRACE_SECONDS
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0, end - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # And what it has started.
        process.wait()


# What executors say to `run` about the place that it was called in.
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
      environment: variables that commands which it runs have.
      lease: the file of a `Lease`: commands are stopped when that ends.
      fn: the function.
      *args: of the function.
      **kwargs: of the function.
    """
    place.environment, place.lease = environment, Lease(lease)
    try:
        return fn(*args, **kwargs)
    finally:
        place.environment, place.lease = {}, None


def run(command: Command) -> Ended:
    """Runs a command to its end; if interrupted, stops it, and it keeps its work.

    Raises:
      Stopping: see `Processes`; or the runner has ended, or its files are not here.
      InputError: the log cannot be written.
      OSError: the process cannot be started.
    """
    lease: Lease | None = getattr(place, "lease", None)
    if lease and lease.ended():
        raise Stopping(
            f"{lease.path} is not there on {socket.gethostname()}: the runner has "
            "ended, or not all machines see the same files under the same paths."
        )
    processes = getattr(place, "processes", None) or Processes()
    own = {**command.environment, **getattr(place, "environment", {})}
    whole = {**os.environ, **own}
    for name in _OF_WORKERS:
        whole.pop(name, None)
    log = pathlib.Path(command.folder, command.log)
    start = time.monotonic()
    with files.write_errors_explained(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        file = open(log, "ab")  # noqa: SIM115  (closed below)
        file.write(f"$ {shown(command.arguments)}\n".encode())
        file.flush()
    begin = file.tell()
    with (
        file,
        processes.running(
            [sys.executable, "-m", "mtr_tf.executors.worker", *command.arguments],
            bufsize=0,  # The pipe ends with this process: see `worker`.
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=command.folder,
            env=whole,
            process_group=0,  # Ctrl-C comes to this process alone.
        ) as process,
    ):
        code = _wait(process, lease)
        present(process.stdin, "a pipe").close()
    return Ended(
        code=code,
        seconds=time.monotonic() - start,
        said=last_words(files.read_bytes(log)[begin:], code),
        environment=own,
        host=socket.gethostname(),
    )


def _wait(process: subprocess.Popen, lease: Lease | None) -> int:
    """The exit code, awaited in short turns; raises `Stopping` when the lease ends."""
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
      log: what the command said.
      code: its exit code.
    """
    lines = [line.strip() for line in log.decode(errors="replace").splitlines()]
    lines = [line for line in lines if line and not _NOISE.match(line)]
    errors = [line for line in lines if _ERROR.match(line)]
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", which often means too little memory" if code == -9 else ""
        return f"it was ended by {name}{hint}"
    said = (errors or lines or [f"it ended with code {code}"])[-1]
    return said.removeprefix("error: ")
