# SPDX-License-Identifier: Apache-2.0
"""Which attack does most harm, at equal numbers of gradients.

    python benchmarks/strongest_attack.py --quick
    python benchmarks/strongest_attack.py --camvid=CamVid

Trains small nets on rooms, and on CamVid if --camvid is given, each once without and
once with adversarial training; or takes --ckpt. Each task of a net is attacked alone,
by every attack that fits its kind, at every radius and number of gradients. Attacks are
judged as with `--judge=auto`, so that PGD on the losses segpgd and cospgd is SegPGD and
CosPGD. An ensemble divides the gradients among its members; a query of Square counts as
one gradient. "worst" is `--attack=worst`: APGD, PGD and Square.

Lower values mean stronger attacks for accuracy and mean IoU, higher ones for errors.
The last lines rank the attacks for claims of robustness: their harm as a share of the
strongest one's, the mean over nets, tasks and radii.
"""

# ruff: noqa: E402  (TensorFlow is imported after its noise is off)
from __future__ import annotations

import argparse
import itertools
import pathlib
import statistics
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

from mtr_tf.cli import startup

startup.import_tensorflow()  # Without its start-up noise.

import numpy as np
import problems
import timing

from mtr_tf import attacks
from mtr_tf import tasks as tasks_lib
from mtr_tf.attacks import ensemble
from mtr_tf.config.train import TrainConfig
from mtr_tf.training import loop as training

# The losses that attacks raise, for tasks with classes and for others, if they fit.
_LOSSES = {
    True: ("own", "segpgd", "cospgd", "masked_ce", "js"),
    False: ("own", "cospgd", "l2", "relative", "angular"),
}
_DEFENCES = {
    "standard": {},
    "adversarial": {"adversarial_tasks": "all", "adversarial_eps": 4.0},
}
_QUICK = {"budgets": "20,60", "images": 32, "eps": "8", "epochs": 8, "seeds": 1}


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, attacks, prints the table and the strongest, writes the JSON."""
    args = _arguments(argv)
    budgets = [int(budget) for budget in args.budgets.split(",")]
    records = []
    for name, problem in _nets(args):
        for task in problem.names:
            for eps in map(float, args.eps.split(",")):
                rows = _attack_rows(args, problem.only(task), eps, budgets)
                records += (rows := [{"net": name, **row} for row in rows])
                print(timing.table(rows, _columns(budgets)), flush=True)
    print()
    timing.finish(args, records, _columns(budgets))
    for kind, budget in itertools.product(("classes", "maps"), budgets):
        ranks = _ranking([r for r in records if r["kind"] == kind], str(budget))
        if ranks:
            text = ", ".join(f"{name} {share:.3f}" for name, share in ranks[:4])
            print(f"strongest on {kind} at {budget} gradients: {text}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = timing.parser(__doc__, "strongest_attack", rounds=1)
    parser.add_argument("--camvid", help="folder of CamVid, to have it beside rooms")
    parser.add_argument("--ckpt", default="", help="trained runs, in place of our own")
    parser.add_argument("--tasks", default="seg,depth,normal", help="of the rooms nets")
    parser.add_argument("--budgets", default="20,60,180", help="gradients per image")
    parser.add_argument("--eps", default="4,8", help="l-inf radii, of 255")
    parser.add_argument(
        "--images", type=int, default=64, help="of the validation split"
    )
    parser.add_argument("--seeds", type=int, default=2, help="whose mean is shown")
    parser.add_argument("--image_size", default="32", help="of rooms")
    parser.add_argument("--camvid_size", default="32x48", help="of CamVid")
    parser.add_argument("--model", default="small", help="a key of models.MODELS")
    parser.add_argument("--width", type=int, default=16, help="of its first layer")
    parser.add_argument("--epochs", type=int, default=20, help="on rooms; CamVid: 3 x")
    parser.add_argument("--train_examples", type=int, default=0, help="0: all")
    parser.add_argument("--workdir", default="runs/benchmarks/strongest_attack")
    parser.add_argument(
        "--quick", action="store_true", help="few images, one radius, one seed"
    )
    args = parser.parse_args(argv)
    if args.quick:
        for name, value in _QUICK.items():
            if getattr(args, name) == parser.get_default(name):
                setattr(args, name, value)
    return args


def _nets(args: argparse.Namespace) -> Iterator[tuple[str, problems.Problem]]:
    """Yields each net with its first validation images; trains missing nets."""
    for ckpt in filter(None, args.ckpt.split(",")):
        yield pathlib.Path(ckpt).name, problems.trained(ckpt, args.images)
    if args.ckpt:
        return
    net_settings = {"model": args.model, "width": args.width, "learning_rate": 2e-3}
    rooms = {"tasks": tasks_lib.resolve(args.tasks), "image_size": args.image_size}
    sets = {"rooms": {**rooms, "epochs": args.epochs}}
    if args.camvid:
        camvid = {"image_size": args.camvid_size, "data_dir": args.camvid}
        sets["camvid"] = {**camvid, "tasks": ("seg",), "epochs": 3 * args.epochs}
    for (data, settings), (name, defence) in itertools.product(
        sets.items(), _DEFENCES.items()
    ):
        examples = args.train_examples
        config = TrainConfig(
            dataset=data, train_examples=examples, **net_settings, **settings, **defence
        )
        sizes = f"{settings['image_size']}-{args.width}-{settings['epochs']}-{examples}"
        workdir = pathlib.Path(args.workdir) / f"{data}-{name}-{args.model}-{sizes}"
        training.train(config, workdir)
        yield f"{data} {name}", problems.trained(str(workdir), args.images)


def _attack_rows(
    args: argparse.Namespace,
    problem: problems.Problem,
    eps: float,
    budgets: Sequence[int],
) -> Iterator[dict[str, Any]]:
    """Yields a row per attack and metric: its value for each number of gradients."""
    (name,) = problem.names
    task = tasks_lib.TASKS[name]
    metrics = dict.fromkeys((task.harm, *task.metrics[:1]))
    facts = {"task": name, "eps": eps, "kind": "classes" if task.discrete else "maps"}
    clean = _metric_values(problem, problem.x, metrics)
    yield from _rows(
        {"attack": "none", **facts}, metrics, dict.fromkeys(budgets, clean)
    )
    for attack, losses in _contestants(task):
        options = {"losses": losses} if losses in attacks.ATTACK_LOSSES else {}
        objective = problem.objective(**options)
        by_budget = {}
        for budget in budgets:
            search = _make(attack, eps / 255, budget)
            seed_values = [
                _metric_values(problem, search(objective, problem.x, seed), metrics)
                for seed in range(args.seeds)
            ]
            by_budget[budget] = [
                statistics.fmean(v) for v in zip(*seed_values, strict=True)
            ]
        label = attack if attack == "sea" else f"{attack} {losses}"
        yield from _rows({"attack": label, **facts}, metrics, by_budget)


def _rows(facts: dict, metrics: dict, by_budget: dict) -> Iterator[dict[str, Any]]:
    for number, metric in enumerate(metrics):
        values = {str(budget): means[number] for budget, means in by_budget.items()}
        yield {**facts, "metric": metric.name, **values}


def _contestants(task: tasks_lib.Task) -> list[tuple[str, str]]:
    """Pairs of an attack and the loss that it raises."""
    losses = [
        loss
        for loss in _LOSSES[task.discrete]
        if loss == "own"
        or (attacks.ATTACK_LOSSES[loss].fits(task) and not _is_own_loss(loss, task))
    ]
    pairs = list(itertools.product(("pgd", "apgd"), losses))
    pairs += [("worst", loss) for loss in losses if loss in ("own", "cospgd")]
    return [*pairs, ("sea", "")] if task.discrete else pairs


def _is_own_loss(loss: str, task: tasks_lib.Task) -> bool:
    """Whether the loss is the task's own under another name."""
    return loss == "cospgd" and task.channels == 1


def _make(attack: str, epsilon: float, budget: int) -> attacks.Attack:
    """Returns the attack with `budget` gradients; ensembles divide them."""
    if attack == "pgd":
        return attacks.PGD(epsilon, epsilon / 4, budget)
    if attack == "apgd":
        return attacks.APGD(epsilon, budget)
    if attack == "sea":
        return attacks.SEA(epsilon, budget // len(ensemble.SEA_LOSSES))
    third = budget // 3  # As --attack=worst by default.
    return attacks.Worst(
        (
            attacks.APGD(epsilon, third),
            attacks.PGD(epsilon, epsilon / 4, third),
            attacks.Square(epsilon, third),
        )
    )


def _metric_values(problem: problems.Problem, x: Any, metrics: dict) -> list[float]:
    """The values of the net's metrics on the images `x`."""
    (name,) = problem.names
    outputs = problem.model(x, training=False)[name]
    case = (problem.targets[name], outputs, problem.masks[name])
    return [
        float(m.value(np.sum(m.statistics(*case, outputs.shape[-1]), 0, np.float64)))
        for m in metrics
    ]


def _ranking(records: list[dict], budget: str) -> list[tuple[str, float]]:
    """Attacks with their mean harm, as a share of each group's strongest."""
    groups: dict[tuple, dict[str, float]] = {}
    for record in records:
        harm_metric = tasks_lib.TASKS[record["task"]].harm
        if record["metric"] == harm_metric.name and record["attack"] != "none":
            harm = record[budget]
            harm = 1 - harm if harm_metric.better == "higher" else harm
            place = (record["net"], record["task"], record["eps"])
            groups.setdefault(place, {})[record["attack"]] = harm
    names = dict.fromkeys(name for group in groups.values() for name in group)
    shares = {
        name: statistics.fmean(
            group[name] / max(group.values())
            for group in groups.values()
            if name in group
        )
        for name in names
    }
    return sorted(shares.items(), key=lambda pair: -pair[1])


def _columns(budgets: Sequence[int]) -> dict[str, str]:
    """The table's columns, with one for each number of gradients."""
    words = dict.fromkeys(("net", "task", "metric"), "s")
    numbers = dict.fromkeys(map(str, budgets), ".4f")
    return {**words, "eps": "g", "attack": "s", **numbers}


if __name__ == "__main__":
    main()
