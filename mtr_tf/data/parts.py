# SPDX-License-Identifier: Apache-2.0
"""Expensive work on many examples: in several processes, and kept until all is done.

The arrays of each example are a file of their own, a part, which appears whole or not
at all; existing parts are not made again. Workers are plain subprocesses, which do not
import TensorFlow unless the module of the work does. They do not use `multiprocessing`,
so that a user's script needs no `if __name__ == "__main__"`, and a process that runs
TensorFlow is never forked.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import itertools
import json
import os
import pathlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import IO
from typing import Any

import numpy as np

from mtr_tf import files
from mtr_tf.cli import progress
from mtr_tf.errors import InputError
from mtr_tf.errors import present

MAX_PROCESSES = 8
_MIN_SHARED = 32  # Fewer examples than this are not worth several processes.

_AHEAD = 16  # Jobs that each worker may be ahead of the next example to yield.

Arrays = dict[str, np.ndarray | bytes]
"""The arrays of one example by name; bytes are written as they are."""
Jobs = Sequence[tuple[str, Any]]


class WorkerError(Exception):
    """A process that makes examples has ended too early."""


def examples(
    folder: pathlib.Path,
    jobs: Jobs,
    work: str,
    what: str,
    unit: str = "images",
    processes: int | None = None,
) -> Iterator[Arrays]:
    """Yields the arrays of each example, in the order of `jobs`.

    Args:
      folder: where the parts are kept, as KEY.npz; created if needed. The caller
        removes it in the end.
      jobs: pairs of a key, which must be a valid file name, and the argument of the
        work, which must be valid JSON. They are not kept.
      work: "package.module:function", `function(job)` -> arrays by name. It must depend
        only on the job and the files that it names.
      what: a few words for the progress bar.
      unit: what the progress bar calls examples.
      processes: their number; None for one per core, at most MAX_PROCESSES.

    Raises:
      InputError: the work raises it, or a part cannot be written.
      WorkerError: a worker has died for another reason.
    """
    missing = sum(not _path(folder, key).exists() for key, _ in jobs)
    with progress.bar(len(jobs), what, unit, done=len(jobs) - missing) as advance:
        for key, job, is_new in _ensure_parts(folder, jobs, work, missing, processes):
            if is_new:  # Each advance past the last one would log a line.
                advance(1)
            arrays = _read(_path(folder, key))
            if arrays is None:
                _part_maker(folder, work)(key, job)
                arrays = present(_read(_path(folder, key)), "what was just written")
            # The part stays open so that TFDS, which holds files too, is the first to
            # meet the limit of open files, and raises it; reading a part would fail.
            with open(_path(folder, key), "rb"):
                yield arrays


def help_with(
    folder: pathlib.Path,
    jobs: Jobs,
    work: str,
    is_over: Callable[[], bool],
) -> None:
    """Makes parts for another process, on this or another machine, which needs all.

    Any number of processes may help at once without knowing of each other: each goes
    through the jobs in its own random order and leaves out existing parts. So two of
    them rarely make the same part, which does no harm, and what a killed process was
    making is soon made by another.

    Args:
      folder: as for `examples`, like `jobs` and `work`.
      jobs: any number of them may be finished.
      work: the function that makes a part.
      is_over: whether parts are no longer needed.

    Raises:
      InputError: the work raises it, or a part cannot be written.
      WorkerError: a worker has died for another reason.
    """
    order = np.random.default_rng().permutation(len(jobs))
    shuffled_jobs = (jobs[int(place)] for place in order)
    with progress.bar(len(jobs), "helping to prepare", "examples") as advance:
        for _ in _ensure_parts(folder, shuffled_jobs, work, len(jobs)):
            advance(1)
            if is_over():
                return


@contextlib.contextmanager
def worker(module: str, *arguments: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `main` of a module in a process of one thread, which is stopped at the end.

    Args:
      module: Its name; it must not import TensorFlow.
      *arguments: The command line of `main`.

    Yields:
      The process; its standard input and output are pipes of bytes.
    """
    root = str(pathlib.Path(__file__).resolve().parents[2])  # Holds this package.
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in [root, *sys.path] if path),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    start = f"from {module} import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", start, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    try:
        yield process
    finally:
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):  # Nobody reads these jobs.
                present(pipe, "a pipe").close()
        process.wait()


def processes_for(count: int, minimum: int) -> int:
    """The number of processes for `count` examples: one for fewer than `minimum`."""
    return min(cores(), MAX_PROCESSES) if count >= minimum else 1


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _path(folder: pathlib.Path, key: str) -> pathlib.Path:
    return folder / f"{key}.npz"


def _function(work: str) -> Callable[[Any], Arrays]:
    module, name = work.split(":")
    return getattr(importlib.import_module(module), name)


def _read(path: pathlib.Path) -> Arrays | None:
    """A part; None, with a logged line, if its checksums (CRC) show damage.

    None also if another process has removed it.
    """
    try:
        with files.opened(path) as stream, np.load(stream) as file:
            return dict(file)
    except FileNotFoundError:
        return None
    except files.DAMAGED as error:
        if getattr(error, "errno", None):  # The system's, such as too many open files.
            raise
        files.say_damaged(path, error)
        return None


def _write(path: pathlib.Path, arrays: Arrays) -> None:
    """Writes a file for `np.load`, several times faster than `savez_compressed`."""
    with (
        files.whole_file(path) as temp_path,
        zipfile.ZipFile(
            temp_path, "w", zipfile.ZIP_DEFLATED, compresslevel=1
        ) as archive,
    ):
        for name, array in arrays.items():
            if isinstance(array, bytes):
                archive.writestr(name, array, zipfile.ZIP_STORED)
                continue
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


def _part_maker(folder: pathlib.Path, work: str) -> Callable[[str, Any], None]:
    """Returns a function that makes a part in this process."""
    return lambda key, job: _write(_path(folder, key), _function(work)(job))


def _ensure_parts(
    folder: pathlib.Path,
    jobs: Iterable[tuple[str, Any]],
    work: str,
    missing: int,
    processes: int | None = None,
) -> Iterator[tuple[str, Any, bool]]:
    """Yields (key, job, is_new) in order, each once its part exists.

    `is_new` says whether the part was missing. Workers are a limited number of jobs
    ahead of the one that is yielded.

    Args:
      folder: where the parts are.
      jobs: all of them.
      work: the function that makes a part.
      missing: the number of missing parts.
      processes: their number; None for as many as `missing` is worth.
    """
    if processes is None:
        processes = processes_for(missing, _MIN_SHARED)
    with contextlib.ExitStack() as stack:
        if processes < 2 or not missing:
            ask, wait = None, _part_maker(folder, work)
        else:
            ask, wait = stack.enter_context(_workers(folder, work, processes))
        pending: collections.deque[tuple[str, Any, bool]] = collections.deque()
        for key, job in jobs:
            is_new = not _path(folder, key).exists()
            if is_new and ask:
                ask(key, job)
            pending.append((key, job, is_new))
            if len(pending) > (_AHEAD * processes if ask else 0):
                yield _wait_if_new(wait, *pending.popleft())
        while pending:
            yield _wait_if_new(wait, *pending.popleft())


def _wait_if_new(
    wait: Callable[[str, Any], None], key: str, job: Any, is_new: bool
) -> tuple[str, Any, bool]:
    if is_new:
        wait(key, job)
    return key, job, is_new


@contextlib.contextmanager
def _workers(
    folder: pathlib.Path, work: str, processes: int
) -> Iterator[tuple[Callable[[str, Any], None], Callable[[str, Any], None]]]:
    """Starts workers; yields a function to request a part, and one to wait for it."""
    with contextlib.ExitStack() as stack:
        team = [
            stack.enter_context(worker(__name__, folder, work))
            for _ in range(processes)
        ]
        senders, receivers = itertools.cycle(team), itertools.cycle(team)

        def ask(key: str, job: Any) -> None:
            pipe = present(next(senders).stdin, "a pipe")
            with contextlib.suppress(BrokenPipeError):  # `wait` reports it.
                pipe.write(json.dumps([key, job]).encode() + b"\n")
                pipe.flush()

        yield ask, lambda key, job: _wait(present(next(receivers).stdout, "a pipe"))


def _wait(pipe: IO[bytes]) -> None:
    """Waits until a worker has made its next part; raises its error if it failed."""
    line = pipe.readline()
    if not line:
        raise WorkerError(
            "a process that prepares examples ended early; its error is above, unless "
            "it was killed (perhaps for lack of memory)"
        )
    error = json.loads(line)
    if error is not None:
        raise InputError(error)


def main() -> None:
    """Makes the parts of the jobs on standard input; prints null or an error for each.

    The command line is FOLDER WORK; jobs are lines of JSON, [KEY, JOB]. Existing parts
    are not made again, and nothing is made after an error.
    """
    folder, work = sys.argv[1:]
    function = _function(work)
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        for line in sys.stdin:
            key, job = json.loads(line)
            path, message = _path(pathlib.Path(folder), key), None
            try:
                if not path.exists():
                    _write(path, function(job))
            except InputError as error:
                message = str(error)
            print(json.dumps(message), flush=True)
            if message is not None:
                return
