# SPDX-License-Identifier: Apache-2.0
"""Commands in processes of their own, to send signals to.

When to send one is decided by what a process has said or written, never by a clock
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

    Who runs the tests in the background (`pytest &`) has them, and what they start,
    ignore it.
    """

    def restore():
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)

    return subprocess.Popen(command, preexec_fn=restore, **options)


def imported_by(code: str) -> set[str]:
    """The modules that there are in a process of its own which has run the code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return set(done.stdout.split())


def kill_at_random_moments(
    begin: Callable[[pathlib.Path], subprocess.Popen],
    places: Iterator[pathlib.Path],
    seed: int,
    kills: int = 20,
    killed: Callable[[pathlib.Path], object] = lambda place: None,
) -> list[pathlib.Path]:
    """Starts a command and kills it again and again, while it goes on with its work.

    The first start is undisturbed, and shows how often a file comes or goes and how
    long it takes each time. The others are killed after a random number of that, few
    more often than many, and a random part of the time to the next one. Where one ends
    before that, the next starts in another place.

    Args:
      begin: Starts the command on a folder.
      places: Folders for it.
      seed: Of the moments.
      kills: How many.
      killed: Called with the folder after each kill.

    Returns:
      The folders. In the last one the work may be unfinished, and in no other.
    """
    used = [next(places)]
    pauses = _pauses(begin(used[0]), used[0])
    moment = random.Random(seed)
    used.append(next(places))
    while kills:
        number = int(len(pauses) * moment.random() ** 2)
        wait = moment.uniform(0, pauses[number])
        process = begin(used[-1])
        try:
            ended = _ends_first(process, used[-1], number, wait)
        finally:
            process.kill()
            process.wait()
        if ended:
            assert process.returncode == 0
            used.append(next(places))
        else:
            kills -= 1
            killed(used[-1])
    return used


def _pauses(process: subprocess.Popen, folder: pathlib.Path) -> list[float]:
    """Seconds to each file of a process that is not disturbed, and to its end."""
    times = [time.monotonic()]
    seen = _state(folder)
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        if seen != (seen := _state(folder)):
            times.append(time.monotonic())
    assert process.returncode == 0
    times.append(time.monotonic())
    return [after - before for before, after in zip(times, times[1:], strict=False)]


def _ends_first(
    process: subprocess.Popen, folder: pathlib.Path, count: int, seconds: float
) -> bool:
    """Waits for so many files and then so long; whether the process ends before."""
    seen = _state(folder)
    while count and process.poll() is None:
        time.sleep(POLL_SECONDS)
        count -= seen != (seen := _state(folder))
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
