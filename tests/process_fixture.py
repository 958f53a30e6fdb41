# SPDX-License-Identifier: Apache-2.0
"""Commands in processes of their own, to send signals to.

The moment for one depends on what a process has printed or written, never on a clock
alone: machines differ, and are busy with other things.
"""

from __future__ import annotations

import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator

POLL_SECONDS = 0.005


def start(command, **options) -> subprocess.Popen:
    """Starts a command that Ctrl-C stops.

    Tests that run in the background (`pytest &`) ignore Ctrl-C, and so would the
    processes that they start.
    """

    def restore():
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)

    return subprocess.Popen(command, preexec_fn=restore, **options)


def imported_by(code: str) -> set[str]:
    """The names of the modules in a new process after it has run the code."""
    process = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return set(process.stdout.split())


def kill_at_random_moments(
    begin: Callable[[pathlib.Path], subprocess.Popen],
    places: Iterator[pathlib.Path],
    seed: int,
    kills: int = 20,
    killed: Callable[[pathlib.Path], object] = lambda place: None,
) -> list[pathlib.Path]:
    """Starts a command and kills it again and again, while it goes on with its work.

    The first start is undisturbed: it shows how often a file comes or goes, and the
    time to each such change. Each later start is killed after a random number of
    changes, more often few than many, plus a random part of the time to the next
    change. Where a command ends before that, the next start is in a new folder.

    Args:
      begin: Starts the command on a folder.
      places: Folders for the command.
      seed: Seed of the random moments.
      kills: The number of kills.
      killed: Called with the folder after each kill.

    Returns:
      The folders. Only in the last one may the work be unfinished.
    """
    folders = [next(places)]
    pauses = _pauses(begin(folders[0]), folders[0])
    rng = random.Random(seed)
    folders.append(next(places))
    while kills:
        number = int(len(pauses) * rng.random() ** 2)
        wait = rng.uniform(0, pauses[number])
        process = begin(folders[-1])
        try:
            is_finished = _ends_first(process, folders[-1], number, wait)
        finally:
            process.kill()
            process.wait()
        if is_finished:
            assert process.returncode == 0
            folders.append(next(places))
        else:
            kills -= 1
            killed(folders[-1])
    return folders


def _pauses(process: subprocess.Popen, folder: pathlib.Path) -> list[float]:
    """Seconds to each change of files by an undisturbed process, and to its end."""
    times = [time.monotonic()]
    state = _state(folder)
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        if state != (state := _state(folder)):
            times.append(time.monotonic())
    assert process.returncode == 0
    times.append(time.monotonic())
    return [end - start for start, end in zip(times, times[1:], strict=False)]


def _ends_first(
    process: subprocess.Popen, folder: pathlib.Path, count: int, seconds: float
) -> bool:
    """Returns whether the process ends before `count` changes and then `seconds`."""
    state = _state(folder)
    while count and process.poll() is None:
        time.sleep(POLL_SECONDS)
        count -= state != (state := _state(folder))
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _state(folder: pathlib.Path) -> set[str]:
    """The paths of all files below a folder; files that only grow change nothing."""
    return {
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
    }
