# SPDX-License-Identifier: Apache-2.0
"""Whether an attack of many steps needs more memory than one of few: it must not.

    python benchmarks/memory.py

Each attack runs in a process of its own. The table has the process's peak resident
memory, and the attack's own: how far the memory in use by TensorFlow rose above what
was in use before. TensorFlow's allocator for GPUs counts it; an environment variable
enables that allocator on CPUs. Equal attacks agree within a few percent.
"""

# ruff: noqa: E402  (TensorFlow is imported after its noise is off)
from __future__ import annotations

import argparse
import os
import pathlib
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence

from mtr_tf.cli import startup

os.environ["TF_CPU_ALLOCATOR_USE_BFC"] = "1"  # Counts; read when TensorFlow starts.
startup.import_tensorflow()  # Without its start-up noise.

import problems
import tensorflow as tf
import timing

from mtr_tf import attacks

_TOLERANCE = 0.05  # Of the attack's own memory.
_COLUMNS = {"attack": "s", "steps": "d", "peak MB": ".1f", "attack's own MB": ".1f"}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes the JSON; or is one of the processes."""
    args = _arguments(argv)
    if args.child:
        name, steps = args.child.split(",")
        print(*_measure(args, name, int(steps)))
        return
    records, goals = [], []
    for name in args.attacks.split(","):
        rows = [_medians(args, name, int(steps)) for steps in args.steps.split(",")]
        goals += _goals(rows)
        records += rows
    timing.finish(args, records, _COLUMNS, goals)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = timing.parser(__doc__, "memory", rounds=3)
    problems.add_flags(parser)
    parser.add_argument("--attacks", default="pgd,apgd", help="comma-separated")
    parser.add_argument("--steps", default="5,100", help="comma-separated")
    parser.add_argument("--batch_size", type=int, default=32, help="images")
    parser.add_argument("--child", help="what a process of its own measures")
    return parser.parse_args(argv)


def _goals(rows: list[dict]) -> list[tuple[str, bool]]:
    """Compares the attack of the fewest steps with that of the most."""
    fewest, most = (choice(rows, key=lambda row: row["steps"]) for choice in (min, max))
    ratio = most["attack's own MB"] / fewest["attack's own MB"]
    text = (
        f"{fewest['attack']}, {most['steps']} steps against {fewest['steps']}: its own "
        f"memory at most {1 + _TOLERANCE} times: {ratio:.3f}"
    )
    return [(text, ratio <= 1 + _TOLERANCE)]


def _medians(args: argparse.Namespace, name: str, steps: int) -> dict:
    """Returns a row: medians over processes."""
    pairs = [_measure_in_process(args, name, steps) for _ in range(args.rounds)]
    peak, attack_peak = map(statistics.median, zip(*pairs, strict=True))
    return {
        "attack": name,
        "steps": steps,
        "peak MB": peak,
        "attack's own MB": attack_peak,
    }


def _measure_in_process(
    args: argparse.Namespace, name: str, steps: int
) -> tuple[float, float]:
    """Returns the result of `_measure`, run in a process of its own."""
    command = [sys.executable, str(pathlib.Path(__file__)), f"--child={name},{steps}"]
    for flag in ("model", "width", "image_size", "decoders", "tasks", "batch_size"):
        if getattr(args, flag) is not None:
            command.append(f"--{flag}={getattr(args, flag)}")
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    peak, attack_peak = map(float, process.stdout.split())
    return peak, attack_peak


def _measure(args: argparse.Namespace, name: str, steps: int) -> tuple[float, float]:
    """Returns the peak memory of this process and of the attack alone, in MB."""
    problem = problems.random(args, args.batch_size)
    objective = problem.objective()
    epsilon = 8 / 255
    attack = attacks.make(name, epsilon, step_size=epsilon / 4, steps=steps)
    attack(objective, problem.x, seed=0).numpy()  # Builds the graph.
    config = tf.config.experimental
    config.reset_memory_stats("CPU:0")
    start_bytes = config.get_memory_info("CPU:0")["current"]
    attack(objective, problem.x, seed=0).numpy()
    attack_peak = config.get_memory_info("CPU:0")["peak"] - start_bytes
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak / 1e6, attack_peak / 1e6


if __name__ == "__main__":
    main()
