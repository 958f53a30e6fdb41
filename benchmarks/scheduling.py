# SPDX-License-Identifier: Apache-2.0
"""Measures what the runner of studies itself costs, with cells that do nothing.

    python benchmarks/scheduling.py --cells=1000,10000

Each command "runs" in no time and leaves the files of a cell, so the times are those of
the runner itself: finding the cells, choosing the next one, writing its marker with
checksums, the index, and estimates of the remaining time. A last line compares the cost
of starting a command that does nothing with that of starting Python alone.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from collections.abc import Sequence
from concurrent import futures
from typing import Any

import timing
from absl import logging

from mtr_tf import executors
from mtr_tf.executors import command
from mtr_tf.runs import directory
from mtr_tf.study import queue
from mtr_tf.study.commands import Cell
from mtr_tf.study.design import AttackSpec
from mtr_tf.study.design import Study
from mtr_tf.study.design import Variant
from mtr_tf.study.runner import Runner

_COLUMNS = {
    "cells": "d",
    "look, s": ".2f",
    "run, s": ".2f",
    "ms a cell": ".2f",
    "look again, s": ".2f",
}
_VARIANTS, _ATTACKS = 10, 9  # Ten cells per variant and seed: a training, 9 attacks.


def study(cells: int) -> Study:
    """A study of about `cells` cells."""
    names = tuple(f"v{i}" for i in range(_VARIANTS))
    return Study(
        name="many",
        about="Many cells.",
        seeds=tuple(range(max(1, cells // (_VARIANTS * (_ATTACKS + 1))))),
        train={"dataset": "rooms"},
        attack={"checks": False},
        variants=tuple(Variant(n, {"width": 8 + i}) for i, n in enumerate(names)),
        attacks=tuple(
            AttackSpec(f"a{k}", {"steps": k + 1}, names) for k in range(_ATTACKS)
        ),
        claims=(),
    )


class Nothing(futures.Executor):
    """Leaves the files of a cell and does nothing else."""

    def __init__(self, cells: dict[tuple[str, ...], Cell], workdir: pathlib.Path):
        """Takes {command: its cell}."""
        self._cells, self._workdir = cells, workdir
        self.seconds = 0.0  # Spent in this executor.

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> futures.Future:
        """See `Executor`."""
        start = time.perf_counter()
        (job,) = args
        cell = self._cells[job.arguments]
        folder = self._workdir / cell.folder
        folder.mkdir(parents=True, exist_ok=True)
        if cell.kind == "train":
            (folder / "config.json").write_text(
                json.dumps({"train": directory.canonical(cell.config).to_dict()})
            )
        for name in cell.files:
            (folder / name).write_text("[]")
        future: futures.Future = futures.Future()
        future.set_result(command.Ended(0, 1.0, "", {}, "here"))
        self.seconds += time.perf_counter() - start
        return future


def measure(cells: int) -> dict[str, float]:
    """Seconds to look at an empty folder, to run all, and to look at it again."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        start = time.perf_counter()
        runner = Runner(study(cells), workdir)
        look_end = time.perf_counter()
        by_command = {cell.command: cell for cell in runner.queue.cells}
        executor = Nothing(by_command, workdir)
        runner.run(executors.Engine(executor, 100, 100))
        run_end = time.perf_counter()
        second_runner = Runner(study(cells), workdir)
        second_look_end = time.perf_counter()
        if second_runner.queue.count(queue.DONE) != len(by_command):
            raise RuntimeError("not all cells are done")
        return {
            "cells": len(by_command),
            "look, s": look_end - start,
            "run, s": run_end - look_end - executor.seconds,
            "ms a cell": 1e3
            * (run_end - look_end - executor.seconds)
            / len(by_command),
            "look again, s": second_look_end - run_end,
        }


def processes(count: int) -> float:
    """Milliseconds to start and end a command that does nothing, two at a time."""
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "nothing.py").write_text("def run(): pass\n")
        engine = executors.create("local", pathlib.Path(folder), workers=2)
        commands = iter(
            (i, command.Command(("nothing",), f"{folder}/{i}.log", folder))
            for i in range(count)
        )
        start = time.perf_counter()
        for _, future in executors.results(engine, lambda: next(commands, None)):
            if reason := executors.failure(future):
                raise RuntimeError(reason)
        return 1e3 * (time.perf_counter() - start) / count


def bare(count: int) -> float:
    """Milliseconds of the same processes without the runner, one after the other."""
    start = time.perf_counter()
    for _ in range(count):
        subprocess.run([sys.executable, "-c", "pass"], check=True)
    return 1e3 * (time.perf_counter() - start) / count


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row for each number of cells."""
    parser = timing.parser(__doc__, "scheduling", rounds=1)
    parser.add_argument("--cells", default="1000,10000")
    parser.add_argument("--processes", type=int, default=40)
    args = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)
    records = [measure(int(cells)) for cells in args.cells.split(",")]
    timing.finish(args, records, _COLUMNS)
    print(
        f"a command that does nothing: {processes(args.processes):.0f} ms, two at a "
        f"time; Python alone: {bare(args.processes):.0f} ms"
    )


if __name__ == "__main__":
    main()
