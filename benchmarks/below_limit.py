# SPDX-License-Identifier: Apache-2.0
"""What each way to compute less gains, and whether the attack is as strong as before.

    python benchmarks/below_limit.py --ckpt=runs/NAME

The limit is as many forward and backward-to-input passes of the Keras net as PGD takes
steps, with losses as a user of TensorFlow would write them. The rows are such passes
with the library's losses, then PGD on that net, on the net with its batch norms folded
into its convolutions, on its copy in bfloat16 (`--fast`), and with both. Losses are
those of the original net in float32, relative to what PGD on that net reaches, over
--judged images; over few images, the signs of single pixels move them by a percent.

The last rows are about heads: the passes of the net when one task is attacked, with
all heads, and of a net without the other heads.

Without --ckpt the net is untrained: its times are as good, but its losses say little.
"""

# ruff: noqa: E402  (TensorFlow is imported after its noise is off)
from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from collections.abc import Sequence

from mtr_tf.cli import startup

startup.import_tensorflow()  # Without its start-up noise.

import keras
import problems
import tensorflow as tf
import timing

from mtr_tf import attacks
from mtr_tf.models import folding

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
    image_count = max(*sizes, args.judged)
    problem = (
        problems.trained(args.ckpt, image_count)
        if args.ckpt
        else problems.random(args, image_count)
    )
    half_model = folding.in_half(problem.model)
    losses = {
        name: problem.loss(run())
        for name, run in _runs(args, problem, half_model).items()
    }
    records, goals = [], []
    for size in sizes:
        rows = _attacks(args, problem.head(size), half_model)
        for row in rows:
            row["loss"] = losses.get(row["what"])
            row["relative loss"] = row["loss"] and row["loss"] / losses["PGD"]
        records += rows + _heads(args, problem.head(size))
        goals.append(_goal(rows, size, strong=bool(args.ckpt)))
    timing.finish(args, records, _COLUMNS, goals)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = timing.parser(__doc__, "below_limit", rounds=9)
    problems.add_flags(parser)
    parser.add_argument("--ckpt", help="a trained run; instead of the flags of the net")
    parser.add_argument("--epsilon", type=float, default=4, help="l-inf, of 255")
    parser.add_argument("--steps", type=int, default=20, help="of PGD")
    parser.add_argument("--batch_sizes", default="1,8,32", help="comma-separated")
    parser.add_argument("--judged", type=int, default=64, help="images, for the losses")
    return parser.parse_args(argv)


def _runs(
    args: argparse.Namespace, problem: problems.Problem, half_model: keras.Model
) -> dict[str, Callable[[], tf.Tensor]]:
    """Returns PGD on equivalent nets, first on the original net."""
    epsilon = args.epsilon / 255
    attack = attacks.PGD(epsilon, epsilon / 4, args.steps)
    objectives = {
        "PGD": problem.objective(fold=False),
        "PGD, folded": problem.objective(),
        "PGD, bfloat16": problem.objective(half_model, fold=False),
        "PGD, folded, bfloat16": problem.objective(half_model),
    }
    return {
        name: lambda objective=objective: attack(objective, problem.x, seed=0)
        for name, objective in objectives.items()
    }


def _attacks(
    args: argparse.Namespace, problem: problems.Problem, half_model: keras.Model
) -> list[dict]:
    """Returns the rows of the limit, the passes and the attacks."""
    limit = f"limit, {args.steps} passes"
    contestants = {
        limit: problem.passes(args.steps, plain=True),
        "passes, our losses": problem.passes(args.steps),
        **_runs(args, problem, half_model),
    }
    return _rows(timing.alternate(contestants, args.rounds), limit, problem)


def _heads(args: argparse.Namespace, problem: problems.Problem) -> list[dict]:
    """Returns the rows of passes that attack the first task only."""
    name = problem.names[0]
    single_task = dataclasses.replace(problem, names=(name,))
    image, outputs = problem.model.input, problem.model.output
    single_head = keras.Model(image, {name: outputs[name]})

    contestants = {
        f"passes, {name} alone": single_task.passes(args.steps, plain=True),
        f"passes, {name} alone, net without other heads": dataclasses.replace(
            single_task, model=single_head
        ).passes(args.steps, plain=True),
    }
    times = timing.alternate(contestants, args.rounds)
    return _rows(times, next(iter(contestants)), problem)


def _rows(times: dict, limit: str, problem: problems.Problem) -> list[dict]:
    return [
        {
            "what": name,
            "batch": int(problem.x.shape[0]),
            "ms": 1000 * duration.wall,
            "ratio": duration.over(times[limit]).wall,
            "CPU ratio": duration.over(times[limit]).cpu,
            "loss": None,
            "relative loss": None,
        }
        for name, duration in times.items()
    ]


def _goal(rows: list[dict], size: int, strong: bool) -> tuple[str, bool]:
    """The goal of the fastest row; with `strong`, of those that reach PGD's loss."""
    candidates = [row for row in rows if row["loss"] is not None]
    if strong:
        candidates = [row for row in candidates if row["relative loss"] >= _STRENGTH]
    fastest = min(candidates, key=lambda row: row["ratio"])
    text = (
        f"batch {size}: {fastest['what']} takes {fastest['ratio']:.3f} of the limit, "
        f"goal {_GOAL} at {_STRENGTH} of the loss"
    )
    return text, fastest["ratio"] <= _GOAL


if __name__ == "__main__":
    main()
