# SPDX-License-Identifier: Apache-2.0
"""Expensive work on many examples: in several processes, and kept until all is done.

The arrays of each example are a file of their own, a part, which appears whole or not
at all; parts that are there are not made again. Workers are plain subprocesses that
never import TensorFlow provided that the module of the work does not either. They are
not of `multiprocessing`: a user's script needs no `if __name__ == "__main__"`, and
nothing is forked from under TensorFlow.
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
_FEW = 32  # Fewer examples than this are not worth a process.

_AHEAD = 16  # Jobs that each worker may be ahead of the example that is wanted.

Arrays = dict[str, np.ndarray | bytes]
"""Of an example, by name; bytes are kept as they are."""
Jobs = Sequence[tuple[str, Any]]


class WorkerError(Exception):
    """A process that makes examples has ended before its time."""


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
      folder: where the parts are kept, as KEY.npz; made if need be. Its owner removes
        it in the end.
      jobs: pairs of a key, which must serve as a file name, and what the work is given;
        JSON must be able to say it. None of them is kept.
      work: "package.module:function", `function(job)` -> arrays by name. It must not
        depend on anything but the job and the files that it names.
      what: a few words for the progress bar.
      unit: what an example is called there.
      processes: how many work; None for one per core, at most MAX_PROCESSES.

    Raises:
      InputError: as the work raises it, or a part cannot be written.
      WorkerError: a worker has died of something else.
    """
    missing = sum(not _path(folder, key).exists() for key, _ in jobs)
    with progress.bar(len(jobs), what, unit, done=len(jobs) - missing) as advance:
        for key, job, is_new in _ensured(folder, jobs, work, missing, processes):
            if is_new:  # Each advance past the last one would log a line.
                advance(1)
            arrays = _read(_path(folder, key))
            if arrays is None:
                _here(folder, work)(key, job)
                arrays = present(_read(_path(folder, key)), "what was just written")
            # Held open: of too many open files TFDS, which keeps them, learns first and
            # raises the limit. Reading the next example would only fail.
            with open(_path(folder, key), "rb"):
                yield arrays


def help_with(
    folder: pathlib.Path,
    jobs: Jobs,
    work: str,
    is_over: Callable[[], bool],
    processes: int | None = None,
) -> None:
    """Makes parts for another process, of this machine or another, which wants all.

    Any number may help at once, and none needs to know of the others: each goes through
    the jobs in a random order of its own and leaves out the parts that are there. So
    two rarely make the same part, which does no harm, and what a killed process was
    making is soon made by another.

    Args:
      folder: as for `examples`, like `jobs`, `work` and `processes`.
      jobs: any number of them may be finished.
      work: what makes a part.
      is_over: whether nobody wants parts any more.
      processes: how many work.

    Raises:
      InputError: as the work raises it, or a part cannot be written.
      WorkerError: a worker has died of something else.
    """
    order = np.random.default_rng().permutation(len(jobs))
    mixed = (jobs[int(place)] for place in order)
    with progress.bar(len(jobs), "helping to prepare", "examples") as advance:
        for _ in _ensured(folder, mixed, work, len(jobs), processes):
            advance(1)
            if is_over():
                return


@contextlib.contextmanager
def worker(module: str, *arguments: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `main` of a module in a process of one thread, which is stopped at the end.

    Args:
      module: Which must not import TensorFlow.
      *arguments: Its command line.

    Yields:
      The process; its standard input and output are pipes of bytes.
    """
    root = str(pathlib.Path(__file__).resolve().parents[2])  # Of this package.
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
            with contextlib.suppress(BrokenPipeError):  # Of jobs that nobody reads.
                present(pipe, "a pipe").close()
        process.wait()


def processes_for(count: int, few: int) -> int:
    """How many processes to share work on so many examples: one if they are few."""
    return min(cores(), MAX_PROCESSES) if count >= few else 1


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _path(folder: pathlib.Path, key: str) -> pathlib.Path:
    return folder / f"{key}.npz"


def _function(work: str) -> Callable[[Any], Arrays]:
    module, name = work.split(":")
    return getattr(importlib.import_module(module), name)


def _read(path: pathlib.Path) -> Arrays | None:
    """A part; None, with a line, for a damaged one, as its checksums (CRC) show.

    None also where another process has removed it.
    """
    try:
        with files.opened(path) as plain, np.load(plain) as file:
            return dict(file)
    except FileNotFoundError:
        return None
    except files.DAMAGED as error:
        if getattr(error, "errno", None):  # The system's, such as too many open files.
            raise
        files.say_damaged(path, error)
        return None


def _write(path: pathlib.Path, arrays: Arrays) -> None:
    """Writes what `np.load` reads; several times faster than `savez_compressed`."""
    with (
        files.whole_file(path) as beside,
        zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for name, array in arrays.items():
            if isinstance(array, bytes):
                archive.writestr(name, array, zipfile.ZIP_STORED)
                continue
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


def _here(folder: pathlib.Path, work: str) -> Callable[[str, Any], None]:
    """Makes a part in this process."""
    return lambda key, job: _write(_path(folder, key), _function(work)(job))


def _ensured(
    folder: pathlib.Path,
    jobs: Iterable[tuple[str, Any]],
    work: str,
    missing: int,
    processes: int | None,
) -> Iterator[tuple[str, Any, bool]]:
    """Yields jobs in order, each when its part is there, and whether it was made now.

    Workers are some jobs ahead of what is yielded, and no more.

    Args:
      folder: where parts are.
      jobs: all of them.
      work: what makes a part.
      missing: how many parts are not there.
      processes: how many work; None for as many as `missing` is worth.
    """
    if processes is None:
        processes = processes_for(missing, _FEW)
    with contextlib.ExitStack() as stack:
        if processes < 2 or not missing:
            ask, wait = None, _here(folder, work)
        else:
            ask, wait = stack.enter_context(_workers(folder, work, processes))
        ahead: collections.deque[tuple[str, Any, bool]] = collections.deque()
        for key, job in jobs:
            is_new = not _path(folder, key).exists()
            if is_new and ask:
                ask(key, job)
            ahead.append((key, job, is_new))
            if len(ahead) > (_AHEAD * processes if ask else 0):
                yield _waited(wait, *ahead.popleft())
        while ahead:
            yield _waited(wait, *ahead.popleft())


def _waited(
    wait: Callable[[str, Any], None], key: str, job: Any, is_new: bool
) -> tuple[str, Any, bool]:
    if is_new:
        wait(key, job)
    return key, job, is_new


@contextlib.contextmanager
def _workers(
    folder: pathlib.Path, work: str, processes: int
) -> Iterator[tuple[Callable[[str, Any], None], Callable[[str, Any], None]]]:
    """Starts workers; gives what asks for a part, and what waits for it, in order."""
    with contextlib.ExitStack() as stack:
        team = [
            stack.enter_context(worker(__name__, folder, work))
            for _ in range(processes)
        ]
        asked, waited = itertools.cycle(team), itertools.cycle(team)

        def ask(key: str, job: Any) -> None:
            pipe = present(next(asked).stdin, "a pipe")
            with contextlib.suppress(BrokenPipeError):  # `wait` will tell.
                pipe.write(json.dumps([key, job]).encode() + b"\n")
                pipe.flush()

        yield ask, lambda key, job: _wait(present(next(waited).stdout, "a pipe"))


def _wait(pipe: IO[bytes]) -> None:
    """Reads that a worker has made its next part, or why not."""
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
    """Makes the parts of the jobs on standard input; says null, or an error, for each.

    The command line is FOLDER WORK; jobs are lines of JSON, [KEY, JOB]. Nothing is made
    after an error, or that another process has made.
    """
    folder, work = sys.argv[1:]
    function = _function(work)
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        for line in sys.stdin:
            key, job = json.loads(line)
            path, error = _path(pathlib.Path(folder), key), None
            try:
                if not path.exists():
                    _write(path, function(job))
            except InputError as raised:
                error = str(raised)
            print(json.dumps(error), flush=True)
            if error is not None:
                return
