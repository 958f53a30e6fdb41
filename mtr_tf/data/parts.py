# SPDX-License-Identifier: Apache-2.0
"""Expensive work on many examples: in several processes, and kept until all is done.

The arrays of each example are a file of their own, a part, which appears whole or not
at all; parts that are there are not made again. Workers are plain subprocesses that
never import TensorFlow provided that the module of the work does not either. They are
not of `multiprocessing`: a user's script needs no `if __name__ == "__main__"`, and
nothing is forked from under TensorFlow.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import pathlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import TextIO

import numpy as np

from mtr_tf import files
from mtr_tf.cli import progress
from mtr_tf.errors import InputError
from mtr_tf.errors import present

MAX_PROCESSES = 8
_FEW = 32  # Fewer examples than this are not worth a process.

Arrays = dict[str, np.ndarray]


class WorkerError(Exception):
    """A process that makes parts has ended before its time."""


def examples(
    folder: pathlib.Path,
    jobs: Mapping[str, Any],
    work: str,
    what: str,
    unit: str = "images",
    processes: int | None = None,
) -> Iterator[Arrays]:
    """Yields the arrays of each example, in the order of `jobs`.

    Args:
      folder: where the parts are kept, as KEY.npz; made if need be. Its owner removes
        it in the end.
      jobs: by key, which must serve as a file name, what the work is given; JSON must
        be able to say it.
      work: "package.module:function", `function(job)` -> arrays by name. It must not
        depend on anything but the job and the files that it names.
      what: a few words for the progress bar.
      unit: what an example is called there.
      processes: how many work; None for one per core, at most MAX_PROCESSES.

    Raises:
      InputError: as the work raises it, or a part cannot be written.
      WorkerError: a worker has died of something else.
    """
    missing = {key: job for key, job in jobs.items() if not _path(folder, key).exists()}
    if processes is None:
        processes = processes_for(len(missing), _FEW)
    finished = len(jobs) - len(missing)
    with contextlib.ExitStack() as stack:
        if processes > 1:
            make = stack.enter_context(_workers(folder, missing, work, processes))
        else:
            make = _here(folder, missing, work)
        bar = progress.bar(len(jobs), what, unit, done=finished)
        advance = stack.enter_context(bar)
        for key in jobs:
            if key in missing:
                make(key)
                advance(1)
            arrays = _read(_path(folder, key))
            if arrays is None:
                _here(folder, jobs, work)(key)
                arrays = present(_read(_path(folder, key)), "what was just written")
            # Held open: of too many open files TFDS, which keeps them, learns first and
            # raises the limit. Reading the next example would only fail.
            with open(_path(folder, key), "rb"):
                yield arrays


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
    """A part; None, with a line, for a damaged one, as its checksums (CRC) show."""
    try:
        with files.opened(path) as plain, np.load(plain) as file:
            return dict(file)
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
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


def _here(
    folder: pathlib.Path, jobs: Mapping[str, Any], work: str
) -> Callable[[str], None]:
    """Makes a part in this process."""
    return lambda key: _write(_path(folder, key), _function(work)(jobs[key]))


@contextlib.contextmanager
def _workers(
    folder: pathlib.Path, jobs: Mapping[str, Any], work: str, processes: int
) -> Iterator[Callable[[str], None]]:
    """Starts workers; gives a function that waits for a part, asked for in order."""
    with contextlib.ExitStack() as stack:
        pipes = [
            stack.enter_context(
                _worker(folder, dict(list(jobs.items())[first::processes]), work)
            )
            for first in range(processes)
        ]
        turn = {key: pipes[i % processes] for i, key in enumerate(jobs)}
        yield lambda key: _wait(turn[key])


@contextlib.contextmanager
def _worker(
    folder: pathlib.Path, jobs: Mapping[str, Any], work: str
) -> Iterator[TextIO]:
    """Starts a worker, gives its output, and stops it."""
    with worker(__name__, folder, work) as process:
        pipe = present(process.stdin, "a pipe")
        with contextlib.suppress(BrokenPipeError), pipe:
            pipe.write(json.dumps(jobs).encode())
        yield io.TextIOWrapper(present(process.stdout, "a pipe"))


def _wait(pipe: TextIO) -> None:
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

    The command line is FOLDER WORK. Nothing is made after an error.
    """
    folder, work = sys.argv[1:]
    jobs, function = json.load(sys.stdin), _function(work)
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        for key, job in jobs.items():
            error = None
            try:
                _write(_path(pathlib.Path(folder), key), function(job))
            except InputError as raised:
                error = str(raised)
            print(json.dumps(error), flush=True)
            if error is not None:
                return
