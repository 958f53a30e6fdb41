# SPDX-License-Identifier: Apache-2.0
"""What all benchmarks share: contestants that alternate, a table, a JSON file.

Absolute times say little on a busy machine, so contestants take turns within one run
and are compared by their medians. CPU time (of all threads) is the steadier figure.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from mtr_tf.show import tables

_PACKAGES = (
    "mtr_tf",
    "tensorflow",
    "keras",
    "numpy",
    "foolbox",
    "adversarial-robustness-toolbox",
    "cleverhans",
    "torch",
)


class Times(NamedTuple):
    """Medians over rounds, in seconds: by the clock, and CPU time of all threads."""

    wall: float
    cpu: float

    def over(self, other: Times, share: float = 1.0) -> Times:
        """Returns the ratios to `share` of the other's times."""
        return Times(self.wall / (share * other.wall), self.cpu / (share * other.cpu))


def parser(doc: str, name: str, rounds: int = 15) -> argparse.ArgumentParser:
    """Returns a parser with the flags that every benchmark has."""
    flags = argparse.ArgumentParser(
        description=doc.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    flags.add_argument("--rounds", type=int, default=rounds, help="of each contestant")
    flags.add_argument("--output", default=f"runs/benchmarks/{name}.json")
    return flags


def alternate(
    contestants: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 2
) -> dict[str, Times]:
    """Runs every contestant once per round, in an order that changes every round.

    Args:
      contestants: {name: function}; its result, an array, a tensor or None, is awaited.
      rounds: The number of rounds that medians are over.
      warm_up: Runs of each contestant before the first round; the first one compiles.
    """
    for run in contestants.values():
        for _ in range(warm_up):
            run()
    generator = random.Random(0)
    times = {name: [] for name in contestants}
    for _ in range(rounds):
        for name in generator.sample(list(contestants), len(contestants)):
            wall, cpu = time.perf_counter(), time.process_time()
            np.asarray(contestants[name]())
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: Times(*map(statistics.median, zip(*rows, strict=True)))
        for name, rows in times.items()
    }


def finish(
    args: argparse.Namespace,
    records: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    goals: Iterable[tuple[str, bool]] = (),
) -> None:
    """Prints the table and the goals, and writes settings, versions and records.

    Args:
      args: The settings; `args.output` is the file.
      records: The table's rows.
      columns: {key of a record: format of its cell, such as "8.3f"}, in order.
      goals: (goal in words, whether it was met).
    """
    print(table(records, columns))
    goals = list(goals)
    for text, met in goals:
        print(f"{'met   ' if met else 'MISSED'} {text}")
    print(f"written to {write(args, records, goals)}")


def write(
    args: argparse.Namespace,
    records: Sequence[Mapping[str, Any]],
    goals: Iterable[tuple[str, bool]] = (),
) -> pathlib.Path:
    """Writes the JSON file, and returns its path; arguments as for `finish`."""
    report = {
        "command": [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
        "settings": vars(args),
        "versions": _versions(),
        "machine": {"cpus": os.cpu_count(), "kind": platform.machine()},
        "goals": [{"goal": text, "met": bool(met)} for text, met in goals],
        "results": list(records),
    }
    path = pathlib.Path(args.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    return path


def table(records: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Returns lines of aligned cells; None becomes an empty cell."""
    rows = [list(columns)]
    for record in records:
        cells = ((record[key], form) for key, form in columns.items())
        rows.append(["" if v is None else format(v, form).strip() for v, form in cells])
    return tables.aligned(rows, "lr")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
