# SPDX-License-Identifier: Apache-2.0
"""How much attacks cost above the limit: the gradients that they cannot do without.

    python benchmarks/attack_speed.py
    python benchmarks/attack_speed.py --model=drn_d_22 --image_size=128x256

The limit is as many calls of one compiled forward and backward-to-input pass as the
attack takes steps, with the same loss and the same net as in Keras, with its batch
norms. Attacks fold those into the convolutions, so ratios may be below 1; the columns
"unfolded" are of attacks that do not.
"""

# ruff: noqa: E402  (TensorFlow is imported after its noise is off)
from __future__ import annotations

import argparse
from collections.abc import Sequence

from mtr_tf.cli import startup

startup.import_tensorflow()  # Without its start-up noise.

import problems
import timing

from mtr_tf import attacks

_GOAL = 1.02
_COLUMNS = {
    "attack": "s",
    "norm": "s",
    "batch": "d",
    "limit ms": ".1f",
    "attack ms": ".1f",
    "ratio": ".3f",
    "CPU ratio": ".3f",
    "unfolded ms": ".1f",
    "unfolded ratio": ".3f",
    "unfolded CPU": ".3f",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes the JSON."""
    args = _arguments(argv)
    records = []
    for size in map(int, args.batch_sizes.split(",")):
        records += _measure(args, problems.random(args, size))
    worst_ratio = max(record["ratio"] for record in records)
    goal = f"every attack at most {_GOAL} times the limit: {worst_ratio:.3f}"
    timing.finish(args, records, _COLUMNS, [(goal, worst_ratio <= _GOAL)])


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = timing.parser(__doc__, "attack_speed", rounds=9)
    problems.add_flags(parser)
    parser.add_argument("--attacks", default="pgd,mim,apgd", help="comma-separated")
    parser.add_argument("--norms", default="linf,l2", help="comma-separated")
    parser.add_argument("--steps", type=int, default=20, help="of the attacks")
    parser.add_argument("--batch_sizes", default="1,8,32", help="comma-separated")
    return parser.parse_args(argv)


def _measure(args: argparse.Namespace, problem: problems.Problem) -> list[dict]:
    """Returns the table's rows of one batch size."""
    contestants = {"limit": problem.passes(args.steps)}
    steps = {}
    for name in args.attacks.split(","):
        for norm in args.norms.split(","):
            attack = _attack(name, norm, args.steps)
            steps[name, norm] = getattr(attack, "steps", args.steps)
            for fold in (True, False):
                contestants[name, norm, fold] = _run(attack, problem, fold)
    times = timing.alternate(contestants, args.rounds)
    return [
        _record(key, int(problem.x.shape[0]), times, count / args.steps)
        for key, count in steps.items()
    ]


def _attack(name: str, norm: str, steps: int) -> attacks.Attack:
    epsilon = 8 / 255 if norm == "linf" else 1.0
    return attacks.make(name, epsilon, norm=norm, step_size=epsilon / 4, steps=steps)


def _run(attack: attacks.Attack, problem: problems.Problem, fold: bool):
    objective = problem.objective(fold=fold)
    return lambda: attack(objective, problem.x, seed=0)


def _record(key: tuple[str, str], size: int, times: dict, share: float) -> dict:
    limit, folded, unfolded = times["limit"], times[*key, True], times[*key, False]
    return {
        "attack": key[0],
        "norm": key[1],
        "batch": size,
        "limit ms": 1000 * share * limit.wall,
        "attack ms": 1000 * folded.wall,
        "ratio": folded.over(limit, share).wall,
        "CPU ratio": folded.over(limit, share).cpu,
        "unfolded ms": 1000 * unfolded.wall,
        "unfolded ratio": unfolded.over(limit, share).wall,
        "unfolded CPU": unfolded.over(limit, share).cpu,
    }


if __name__ == "__main__":
    main()
