# SPDX-License-Identifier: Apache-2.0
"""What attacking several tasks at once costs, against one of them: one backward pass.

    python benchmarks/joint_speed.py

Compares the same attack on the same net with the same heads evaluated: on the sum of
all tasks' losses, and on the first task's with weights of nearly 0 for the others
(TensorFlow leaves out what is multiplied by 0). Further rows, with and without shared
decoders: the attack on the first task without the other heads, and one gradient per
task, as in code that handles tasks one after the other.
"""

# ruff: noqa: E402  (TensorFlow is imported after its noise is off)
from __future__ import annotations

import argparse
from collections.abc import Callable
from collections.abc import Sequence

from mtr_tf.cli import startup

startup.import_tensorflow()  # Without its start-up noise.

import problems
import timing

from mtr_tf import attacks

_GOAL = 1.05
_NEARLY_ZERO = 1e-6
_JOINT = "joint"
_SINGLE = "single, all heads evaluated"
_COLUMNS = {
    "decoders": "s",
    "attack": "s",
    "batch": "d",
    "ms": ".1f",
    "over single": ".3f",
    "CPU": ".3f",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes the JSON."""
    args = _arguments(argv)
    records, goals = [], []
    for args.decoders in ("shared", "separate"):
        for size in map(int, args.batch_sizes.split(",")):
            problem = problems.random(args, size)
            times = timing.alternate(_contestants(args, problem), args.rounds)
            single = times[_SINGLE]
            records += [
                {
                    "decoders": args.decoders,
                    "attack": name,
                    "batch": size,
                    "ms": 1000 * duration.wall,
                    "over single": duration.over(single).wall,
                    "CPU": duration.over(single).cpu,
                }
                for name, duration in times.items()
            ]
            ratio = times[_JOINT].over(single).wall
            text = f"{args.decoders} decoders, batch {size}: joint at most {_GOAL} of "
            goals.append((f"{text}{_SINGLE}: {ratio:.3f}", ratio <= _GOAL))
    timing.finish(args, records, _COLUMNS, goals)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = timing.parser(__doc__, "joint_speed", rounds=9)
    problems.add_flags(parser, tasks="seg,depth,normal")
    parser.add_argument("--steps", type=int, default=10, help="of PGD")
    parser.add_argument("--batch_sizes", default="8", help="comma-separated")
    return parser.parse_args(argv)


def _contestants(
    args: argparse.Namespace, problem: problems.Problem
) -> dict[str, Callable]:
    attack = attacks.PGD(8 / 255, 2 / 255, args.steps)
    first_task, *other_tasks = problem.names

    def run(objective):
        return lambda: attack(objective, problem.x, seed=0)

    objectives = [problem.only(name).objective() for name in problem.names]

    def one_by_one():
        return [attack(objective, problem.x, seed=0) for objective in objectives][-1]

    return {
        _JOINT: run(problem.objective()),
        _SINGLE: run(
            problem.objective(weights=dict.fromkeys(other_tasks, _NEARLY_ZERO))
        ),
        f"single, {first_task}'s head only": run(objectives[0]),
        "one gradient per task": one_by_one,
    }


if __name__ == "__main__":
    main()
