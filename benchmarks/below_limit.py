# SPDX-License-Identifier: Apache-2.0
"""What each way to compute less gains, and whether the attack is as strong as before.

    python benchmarks/below_limit.py --ckpt=runs/NAME

The limit is as many forward and backward-to-input passes of the net as Keras has it as
PGD takes steps. The rows are PGD on that net; on it with its batch norms folded into
its convolutions; on its copy in bfloat16 (`--fast`); on both. Losses are always those
of the original net in float32, relative to those that PGD on that net reaches.

Then heads: the passes of the net when one task is attacked, against a net without the
other heads, and against all heads evaluated.

Without --ckpt, the net is new: its times are as good, its losses say little.
"""

# ruff: noqa: E402  (TensorFlow is imported after its noise is off)
from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from mtr_tf import startup

startup.import_tensorflow()  # Without its start-up noise.

import keras
import problems
import timing

from mtr_tf import attacks
from mtr_tf.models import inference

_GOAL = 0.70
_STRENGTH = 0.995
_COLUMNS = {
    "what": "s",
    "batch": "d",
    "ms": ".1f",
    "ratio": ".3f",
    "CPU ratio": ".3f",
    "loss": ".4f",
    "relative loss": ".4f",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes the JSON."""
    args = _arguments(argv)
    sizes = [int(size) for size in args.batch_sizes.split(",")]
    whole = (
        problems.trained(args.ckpt, max(sizes))
        if args.ckpt
        else problems.random(args, max(sizes))
    )
    fast = inference.in_bfloat16(whole.model)
    records, goals = [], []
    for size in sizes:
        problem = whole.head(size)
        rows = _attacks(args, problem, fast)
        records += rows + _heads(args, problem)
        goals += _goals(rows, size, judged=bool(args.ckpt))
    timing.finish(args, records, _COLUMNS, goals)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = timing.parser(__doc__, "below_limit", rounds=9)
    problems.add_flags(parser)
    parser.add_argument("--ckpt", help="a trained run; instead of the flags of the net")
    parser.add_argument("--epsilon", type=float, default=4, help="l-inf, of 255")
    parser.add_argument("--steps", type=int, default=20, help="of PGD")
    parser.add_argument("--batch_sizes", default="1,8,32", help="comma-separated")
    return parser.parse_args(argv)


def _attacks(
    args: argparse.Namespace, problem: problems.Problem, fast: keras.Model
) -> list[dict]:
    """Returns the rows of PGD on equivalent nets, the limit's first."""
    epsilon = args.epsilon / 255
    attack = attacks.PGD(epsilon, epsilon / 4, args.steps)
    objectives = {
        "PGD": problem.objective(fold=False),
        "PGD, folded": problem.objective(),
        "PGD, bfloat16": problem.objective(fast, fold=False),
        "PGD, folded, bfloat16": problem.objective(fast),
    }
    runs = {
        name: lambda objective=objective: attack(objective, problem.x, seed=0)
        for name, objective in objectives.items()
    }
    limit = f"limit, {args.steps} passes"
    times = timing.alternate({limit: problem.passes(args.steps), **runs}, args.rounds)
    losses = {name: problem.loss(run()) for name, run in runs.items()}
    rows = _rows(times, limit, problem)
    for row in rows:
        row["loss"] = losses.get(row["what"])
        row["relative loss"] = row["loss"] and row["loss"] / losses["PGD"]
    return rows


def _heads(args: argparse.Namespace, problem: problems.Problem) -> list[dict]:
    """Returns the rows of passes that attack the first task only."""
    name = problem.names[0]
    one = dataclasses.replace(problem, names=(name,))
    image, outputs = problem.model.input, problem.model.output
    alone = keras.Model(image, {name: outputs[name]})

    contestants = {
        f"passes, {name} alone": one.passes(args.steps),
        f"passes, {name} alone, net without other heads": dataclasses.replace(
            one, model=alone
        ).passes(args.steps),
    }
    times = timing.alternate(contestants, args.rounds)
    return _rows(times, next(iter(contestants)), problem)


def _rows(times: dict, limit: str, problem: problems.Problem) -> list[dict]:
    return [
        {
            "what": name,
            "batch": int(problem.x.shape[0]),
            "ms": 1000 * own.wall,
            "ratio": own.over(times[limit]).wall,
            "CPU ratio": own.over(times[limit]).cpu,
            "loss": None,
            "relative loss": None,
        }
        for name, own in times.items()
    ]


def _goals(rows: list[dict], size: int, judged: bool) -> list[tuple[str, bool]]:
    """The fastest attack that is as strong as PGD on the original net."""
    strong = [
        row
        for row in rows
        if row["loss"] is not None and (not judged or row["relative loss"] >= _STRENGTH)
    ]
    best = min(strong, key=lambda row: row["ratio"])
    text = (
        f"batch {size}: {best['what']} takes {best['ratio']:.3f} of the limit, "
        f"goal {_GOAL} at {_STRENGTH} of the loss"
    )
    return [(text, best["ratio"] <= _GOAL)]


if __name__ == "__main__":
    main()
