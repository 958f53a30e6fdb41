# SPDX-License-Identifier: Apache-2.0
"""Runs the cells of a study in processes of their own, several at a time.

WORKDIR/study.json    the study, and what wrote it
        index.json    all cells, their states and commands, anew after each
        runs/         see `commands`
        logs/         what each command said

Killed at any moment, even by kill -9, it takes its processes with it (see `worker`);
started again, it does what is missing, and ends with the same bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from absl import logging

from mtr_tf import files
from mtr_tf.cli import stopping
from mtr_tf.errors import present
from mtr_tf.runs import directory
from mtr_tf.study import commands
from mtr_tf.study import costs
from mtr_tf.study import messages
from mtr_tf.study import queue
from mtr_tf.study.commands import Cell
from mtr_tf.study.design import Study

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 20.0  # To keep a checkpoint; clusters often give a job 30 in all.
_THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")


@dataclasses.dataclass
class _Process:
    """A cell that runs."""

    cell: Cell
    process: subprocess.Popen
    slot: Mapping[str, str]
    start: float
    whole: bool  # Whether there was nothing of it before.
    log_from: int  # Where its part of the log begins.


def slots(workers: int, gpus: Sequence[str], cores: int) -> list[dict[str, str]]:
    """The environment of each worker.

    One GPU each, or one thread each where there is none: two processes of one thread do
    more than one of two.

    Args:
      workers: how many; 0: one per GPU, or else per core.
      gpus: those that may be used, as CUDA_VISIBLE_DEVICES names them.
      cores: how many processor cores there are.
    """
    if not gpus:
        return [dict.fromkeys(_THREADS, "1") for _ in range(workers or cores)]
    count = workers or len(gpus)
    found = [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(count)]
    if count > len(gpus):  # Several on one GPU: none may take all of its memory.
        found = [slot | {"TF_FORCE_GPU_ALLOW_GROWTH": "true"} for slot in found]
    return found


class Runner:
    """One study in one folder.

    Attributes:
      queue: Its cells and their states.
    """

    def __init__(
        self, study: Study, workdir: pathlib.Path, variants: Sequence[str] = ()
    ):
        """Looks at what is there.

        Args:
          study: What is to be done.
          workdir: Where; the folder need not exist.
          variants: Do only the cells of these, and what they need; empty: all.
        """
        self._study = study
        self._workdir = workdir
        cells = commands.make_cells(study, workdir)
        asked = [cell for cell in cells if not variants or cell.variant in variants]
        chosen = {cell.folder for cell in asked}
        self.queue = queue.Queue(cells, chosen.union(*(cell.needs for cell in asked)))
        self.clock = costs.Clock(costs.of_cells(cells))
        self._errors: dict[str, str] = {}
        self._markers: dict[str, dict[str, Any]] = {}
        self._running: list[_Process] = []
        before = _failed_before(workdir)
        for cell in cells:
            if commands.is_done(cell, workdir):
                self._set_done(cell)
            elif cell.folder in before:
                self._set_failed(cell, before[cell.folder])

    def write(self, computes: bool = True) -> None:
        """Writes study.json and index.json.

        Args:
          computes: whether cells will be run. Else the study is still traced by what
            was run before.
        """
        path = self._workdir / "study.json"
        before = {} if computes else commands.read_json(path)
        provenance = before.get("provenance") or directory.environment()
        files.write_json(path, self._study.to_dict() | {"provenance": provenance})
        self._write_index()

    def run(self, workers: Sequence[Mapping[str, str]]) -> None:
        """Does all cells that are missing; failed ones do not stop the others.

        Args:
          workers: the environment of each, as of `slots`.

        Raises:
          Stopped: a signal came; what ran then has kept what it had.
        """
        with stopping.saying(self._kept), stopping.later():
            try:
                self._run(workers)
            finally:
                self._stop()

    def _run(self, workers: Sequence[Mapping[str, str]]) -> None:
        free = list(workers)
        while not stopping.asked():
            while free and (cell := self.queue.take()):
                self._running.append(self._start(cell, free.pop(0)))
            if not self._running:
                return
            for ended in [p for p in self._running if p.process.poll() is not None]:
                self._running.remove(ended)
                free.append(ended.slot)
                self._finish(ended, len(workers))
            time.sleep(_POLL_SECONDS)

    def _kept(self) -> str:
        done, left = map(self.queue.count, (queue.DONE, queue.MISSING))
        return (
            f"{done} cells are done and kept in {self._workdir}, and {left} are left; "
            "the same command continues with these."
        )

    def failures(self) -> list[str]:
        """A sentence for each cell that failed."""
        return [
            f"{cell.title}: {self._error(cell)}"
            for cell in self.queue.cells
            if self._error(cell)
        ]

    def _error(self, cell: Cell) -> str | None:
        failed = self.queue.state(cell) == queue.FAILED
        return self._errors[cell.folder] if failed else None

    # One cell.

    def _start(self, cell: Cell, slot: Mapping[str, str]) -> _Process:
        folder, log = self._workdir / cell.folder, self._workdir / cell.log
        with files.write_errors_explained(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            whole = not any((folder / part).exists() for part in _PARTS)
            (folder / commands.MARKER).unlink(missing_ok=True)
            with open(log, "ab") as file:
                file.write(f"$ {cell.shown}\n".encode())
                file.flush()
                process = subprocess.Popen(
                    [sys.executable, "-m", "mtr_tf.study.worker", *cell.command],
                    stdin=subprocess.PIPE,  # Ends with this process: see `worker`.
                    bufsize=0,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **slot},
                    process_group=0,  # Ctrl-C comes to the runner alone.
                )
                start = file.tell()
        return _Process(cell, process, slot, time.monotonic(), whole, start)

    def _finish(self, ended: _Process, workers: int) -> None:
        """Takes note of a cell that has ended, in whichever way."""
        cell, seconds = ended.cell, time.monotonic() - ended.start
        present(ended.process.stdin, "a pipe").close()
        code = ended.process.returncode
        if code == 0 and _has_files(cell, self._workdir):
            commands.write_marker(cell, self._workdir, seconds, ended.whole, ended.slot)
            self._set_done(cell)
            self._write_index()
            self._say_done(cell, seconds, workers)
        else:
            log = self._workdir / cell.log
            error = messages.last_words(log.read_bytes()[ended.log_from :], code)
            self._set_failed(cell, error)
            self._write_index()
            logging.error("%s FAILED: %s (log: %s)", cell.title, error, log)

    def _set_done(self, cell: Cell) -> None:
        marker = commands.read_json(self._workdir / cell.folder / commands.MARKER)
        seconds = marker.get("seconds")
        self._markers[cell.folder] = marker
        self.queue.set(cell, queue.DONE)
        measured = isinstance(seconds, int | float) and seconds > 0
        if measured and marker.get("whole"):
            self.clock.add(cell, float(seconds))

    def _set_failed(self, cell: Cell, error: str) -> None:
        self._errors[cell.folder] = error
        self.queue.set(cell, queue.FAILED)

    def _say_done(self, cell: Cell, seconds: float, workers: int) -> None:
        now = time.monotonic()
        running = [(p.cell, now - p.start) for p in self._running]
        waiting = self.queue.waiting()
        count = len(running) + len(waiting)
        left = self.clock.left(waiting, running, workers)
        about = f", about {messages.interval(left)}" if left and count else ""
        logging.info(
            "%s: %s; %d left%s", cell.title, messages.interval(seconds), count, about
        )

    def _stop(self) -> None:
        """Ends what runs: by a word, so that checkpoints are kept, or else by force."""
        for one in self._running:
            with contextlib.suppress(BrokenPipeError):
                present(one.process.stdin, "a pipe").write(b"stop")
        end = time.monotonic() + _GRACE_SECONDS
        for one in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(max(0, end - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one.process.pid, signal.SIGKILL)  # And what it has started.
            one.process.wait()
            present(one.process.stdin, "a pipe").close()

    def _write_index(self) -> None:
        cells = [
            {
                "kind": cell.kind,
                "variant": cell.variant,
                "seed": cell.seed,
                "attack": cell.attack,
                "folder": cell.folder,
                "command": cell.shown,
                "state": self.queue.state(cell),
                "seconds": self._markers.get(cell.folder, {}).get("seconds"),
                "environment": self._markers.get(cell.folder, {}).get("environment"),
                "log": cell.log,
                "error": self._error(cell),
            }
            for cell in self.queue.cells
        ]
        content = {"study": self._study.name, "cells": cells}
        files.write_json(self._workdir / "index.json", content)


# What a cell that was stopped may have left.
_PARTS = ("config.json", "settings.json")


def _has_files(cell: Cell, workdir: pathlib.Path) -> bool:
    return all((workdir / cell.folder / name).exists() for name in cell.files)


def _failed_before(workdir: pathlib.Path) -> dict[str, str]:
    """{folder: why}, of the cells that an earlier runner saw fail."""
    path = workdir / "index.json"
    try:
        return {
            str(cell["folder"]): str(cell["error"])
            for cell in commands.read_json(path).get("cells", ())
            if cell["state"] == queue.FAILED
        }
    except files.DAMAGED as error:
        files.say_damaged(path, error)
        return {}
