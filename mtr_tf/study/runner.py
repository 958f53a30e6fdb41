# SPDX-License-Identifier: Apache-2.0
"""Runs the cells of a study on an executor, several at a time.

WORKDIR/study.json    the study, and what wrote it
        index.json    all cells, their states and commands
        runs/         see `commands`
        logs/         the output of each command
        jobs/         files of --executor=ray and slurm

A runner may be killed at any moment, even by kill -9. Started again, it does what is
missing, and ends with the same bits.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable
from collections.abc import Sequence
from concurrent import futures
from typing import Any

from absl import logging

from mtr_tf import executors
from mtr_tf import files
from mtr_tf.cli import stopping
from mtr_tf.executors import command
from mtr_tf.runs import directory
from mtr_tf.study import commands
from mtr_tf.study import costs
from mtr_tf.study import queue
from mtr_tf.study.commands import Cell
from mtr_tf.study.design import Study

_SHARE = 0.05  # The share of time that the index and estimates may take.


@dataclasses.dataclass(eq=False)
class _Job:
    """A cell that an executor has."""

    cell: Cell
    start: float
    is_new: bool  # Whether nothing of it was there before.


class _Throttle:
    """Calls a function so rarely that its calls take at most `_SHARE` of the time."""

    def __init__(self, fn: Callable[[], Any]):
        self._fn = fn
        self._next = 0.0
        self._last: Any = None

    def __call__(self) -> Any:
        """Returns what the function returns now, or what it returned last."""
        start = time.monotonic()
        if start >= self._next:
            self._last = self._fn()
            end = time.monotonic()
            self._next = end + (end - start) / _SHARE
        return self._last


class Runner:
    """One study in one folder.

    Attributes:
      queue: Its cells and their states.
      before: The kind, state and error of the cells of an earlier runner, by folder;
        these may be of another study, or have other settings.
    """

    def __init__(
        self, study: Study, workdir: pathlib.Path, variants: Sequence[str] = ()
    ):
        """Looks at what is done already.

        Args:
          study: The study.
          workdir: Its folder, which need not exist.
          variants: Run only the cells of these variants, and those that they need;
            empty to run all.
        """
        self._study = study
        self._workdir = workdir
        cells = commands.make_cells(study, workdir)
        self.queue = queue.Queue(cells, _chosen_folders(cells, variants))
        self.clock = costs.Clock(costs.of_cells(cells))
        self._errors: dict[str, str] = {}
        self._markers: dict[str, dict[str, Any]] = {}
        self._running: list[_Job] = []
        self._room = 1
        self._write_index_sparingly = _Throttle(self._write_index)
        self._left = _Throttle(self._time_left)
        self.before = _previous_cells(workdir)
        for cell in cells:
            previous = self.before.get(cell.folder, {})
            if commands.is_done(cell, workdir):
                self._set_done(cell)
            elif previous.get("state") == queue.FAILED:
                self._set_failed(cell, previous["error"])
        for cell in reversed(cells):  # Large models may go once results are there.
            if self.queue.state(cell) != queue.DONE and self.queue.is_spent(cell):
                self._set_done(cell)

    def write(self, computes: bool = True) -> None:
        """Writes study.json and index.json.

        Args:
          computes: Whether cells will be run. If not, study.json keeps the provenance
            of what was run before.
        """
        path = self._workdir / "study.json"
        old_content = {} if computes else files.read_object(path)
        provenance = old_content.get("provenance") or directory.environment()
        files.write_json(path, self._study.to_dict() | {"provenance": provenance})
        self._write_index()

    def run(self, engine: executors.Engine) -> None:
        """Runs all missing cells; those that fail do not stop the others.

        Args:
          engine: Runs the commands of the cells; it is shut down at the end.

        Raises:
          Stopped: A signal came; the commands that ran have saved their work.
        """
        self._room = engine.room
        with stopping.saying(self._progress_text), stopping.later():
            try:
                for job, future in executors.results(engine, self._take):
                    self._finish(job, future)
            finally:
                self._write_index()

    def _take(self) -> tuple[_Job, command.Command] | None:
        """The next job and its command; None if no cell can run now."""
        cell = self.queue.take()
        if not cell:
            return None
        job = _Job(cell, time.monotonic(), self._prepare(cell))
        self._running.append(job)
        return job, command.Command(cell.command, str(self._workdir / cell.log))

    def _progress_text(self) -> str:
        done, missing = map(self.queue.count, (queue.DONE, queue.MISSING))
        return (
            f"{done} cells are done and kept in {self._workdir}, and {missing} are "
            "left; the same command continues with these."
        )

    def failures(self) -> list[str]:
        """A sentence for each cell that failed."""
        return [
            f"{cell.title}: {self._error(cell)}"
            for cell in self.queue.cells
            if self._error(cell)
        ]

    def _error(self, cell: Cell) -> str | None:
        has_failed = self.queue.state(cell) == queue.FAILED
        return self._errors[cell.folder] if has_failed else None

    # One cell.

    def _prepare(self, cell: Cell) -> bool:
        """Removes the marker, and returns whether nothing of the cell is there yet."""
        folder = self._workdir / cell.folder
        with files.write_errors_explained(folder):
            (folder / commands.MARKER).unlink(missing_ok=True)
            commands.renew_init(cell, self._workdir)
        names = ("config.json", "settings.json")
        return not any((folder / name).exists() for name in names)

    def _finish(self, job: _Job, future: futures.Future[command.Ended]) -> None:
        """Records how the command of a cell has ended."""
        self._running.remove(job)
        cell = job.cell
        failure = executors.failure(future)
        if not failure and not commands.has_files(cell, self._workdir):
            failure = f"it left no {', '.join(cell.files)}: {future.result().reason}"
        if failure:
            log = self._workdir / cell.log
            self._set_failed(cell, failure)
            self._write_index()
            logging.error("%s FAILED: %s (log: %s)", cell.title, failure, log)
        else:
            outcome = future.result()
            commands.write_marker(cell, self._workdir, outcome, job.is_new)
            self._set_done(cell)
            self._write_index_sparingly()
            self._say_done(cell, outcome.seconds)

    def _set_done(self, cell: Cell) -> None:
        marker = files.read_object(self._workdir / cell.folder / commands.MARKER)
        seconds = marker.get("seconds")
        self._markers[cell.folder] = marker
        self.queue.set(cell, queue.DONE)
        has_time = isinstance(seconds, int | float) and seconds > 0
        if has_time and marker.get("whole"):
            self.clock.add(cell, float(seconds))

    def _set_failed(self, cell: Cell, error: str) -> None:
        self._errors[cell.folder] = error
        self.queue.set(cell, queue.FAILED)

    def _say_done(self, cell: Cell, seconds: float) -> None:
        count, seconds_left = self._left()
        estimate = (
            f", about {costs.in_words(seconds_left)}" if seconds_left and count else ""
        )
        logging.info(
            "%s: %s; %d left%s", cell.title, costs.in_words(seconds), count, estimate
        )

    def _time_left(self) -> tuple[int, float | None]:
        """The number of cells left, and the seconds that they will take, if known."""
        now = time.monotonic()
        running = [(job.cell, now - job.start) for job in self._running]
        waiting = self.queue.waiting()
        seconds_left = self.clock.left(waiting, running, self._room)
        return len(running) + len(waiting), seconds_left

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


def _chosen_folders(cells: Sequence[Cell], variants: Sequence[str]) -> set[str]:
    """The folders of the cells of variants, or of all, and of the cells they need."""
    folders: set[str] = set()
    for cell in reversed(cells):
        if not variants or cell.variant in variants or cell.folder in folders:
            folders.update((cell.folder, *cell.needs))
    return folders


def _previous_cells(workdir: pathlib.Path) -> dict[str, dict[str, str]]:
    """The kind, state and error of each cell of index.json, by folder."""
    path = workdir / "index.json"
    try:
        return {
            str(cell["folder"]): {
                name: str(cell.get(name)) for name in ("kind", "state", "error")
            }
            for cell in files.read_object(path).get("cells", ())
        }
    except files.DAMAGED as error:
        files.say_damaged(path, error)
        return {}
