# SPDX-License-Identifier: Apache-2.0
"""How much PGD costs above the limit: the gradients that it cannot do without.

    python benchmarks/attack_speed.py [--steps=20 --batch_sizes=1,8,32 --rounds=15]

The limit is as many calls of one compiled forward and backward-to-input pass of the
same net and the same loss as the attack takes steps. Attack and limit alternate within
one run, and the ratio is that of their medians: absolute times say little on a busy
machine. CPU time (all threads) is shown beside it as the steadier figure.
"""

# ruff: noqa: E402  (TensorFlow is imported after its noise is off)
from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable

from mtr_tf import startup

startup.import_tensorflow()  # Without its start-up noise.

import tensorflow as tf

from mtr_tf import attacks
from mtr_tf import models
from mtr_tf import tasks as tasks_lib

_CLASSES = 8
_GOAL = 1.05


def main() -> None:
    """Measures, prints the table, writes the JSON."""
    args = _arguments()
    names = tasks_lib.resolve(args.tasks)
    shape = (args.image_size, args.image_size, 3)
    model = models.build(args.model, names, shape, _CLASSES, width=args.width)
    records = [
        _measure(args, model, names, int(size)) for size in args.batch_sizes.split(",")
    ]
    print(_table(records))
    report = {
        "settings": vars(args),
        "tensorflow": tf.__version__,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "devices": [device.device_type for device in tf.config.list_physical_devices()],
        "results": records,
    }
    path = pathlib.Path(args.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {path}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="resnet18", help="a key of models.MODELS")
    parser.add_argument("--width", type=int, default=16, help="of the first layer")
    parser.add_argument("--image_size", type=int, default=64, help="height and width")
    parser.add_argument("--tasks", default="seg,depth", help="heads, all attacked")
    parser.add_argument("--steps", type=int, default=20, help="of the attack")
    parser.add_argument("--batch_sizes", default="1,8,32", help="comma-separated")
    parser.add_argument("--norm", default="linf", choices=sorted(attacks.NORMS))
    parser.add_argument("--keep", default="best", choices=("best", "last"))
    parser.add_argument("--rounds", type=int, default=15, help="of attack and limit")
    parser.add_argument("--output", default="runs/benchmarks/attack_speed.json")
    return parser.parse_args()


def _measure(
    args: argparse.Namespace, model: Callable, names: tuple[str, ...], size: int
) -> dict[str, float]:
    """Returns medians and ratios for one batch size."""
    x, targets, masks = _batch(args, names, size)
    objective = attacks.objective(model, targets, masks)
    epsilon = 8 / 255 if args.norm == "linf" else 1.0
    attack = attacks.PGD(
        epsilon, epsilon / 4, args.steps, norm=args.norm, keep=args.keep
    )
    gradient = _gradient(model, names)

    def limit():
        for _ in range(args.steps):
            found = gradient(x, targets, masks)
        return found

    contestants = {"attack": lambda: attack(objective, x, seed=0), "limit": limit}
    times = _alternate(contestants, args.rounds)
    wall, cpu = (
        {name: statistics.median(t[kind] for t in rows) for name, rows in times.items()}
        for kind in (0, 1)
    )
    return {
        "batch": size,
        "attack_ms": 1000 * wall["attack"],
        "limit_ms": 1000 * wall["limit"],
        "ratio": wall["attack"] / wall["limit"],
        "cpu_ratio": cpu["attack"] / cpu["limit"],
    }


def _gradient(model: Callable, names: tuple[str, ...]) -> Callable[..., tf.Tensor]:
    """Returns the compiled gradient by the image, written without the library."""

    @tf.function
    def gradient(x, targets, masks):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            outputs = model(x, training=False)
            losses = tasks_lib.task_losses(names, outputs, targets, masks)
            loss = tf.add_n(list(losses.values()))
        return tape.gradient(loss, x)

    return gradient


def _alternate(
    contestants: dict[str, Callable[[], tf.Tensor]], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Returns {name: [(wall, CPU) seconds]}; who goes first changes every round."""
    for run in contestants.values():
        run()  # Compiles.
        run()
    times = {name: [] for name in contestants}
    for number in range(rounds):
        order = list(contestants)[:: 1 if number % 2 else -1]
        for name in order:
            wall, cpu = time.perf_counter(), time.process_time()
            contestants[name]().numpy()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return times


def _batch(args: argparse.Namespace, names: tuple[str, ...], size: int):
    """Returns random images, targets and masks of ones."""
    pixels = (size, args.image_size, args.image_size)
    x = tf.random.stateless_uniform((*pixels, 3), (0, 0))
    targets, masks = {}, {}
    for name in names:
        task = tasks_lib.TASKS[name]
        channels = task.output_channels(_CLASSES)
        targets[name] = (
            tf.random.stateless_uniform(pixels, (0, 1), 0, _CLASSES, tf.int32)
            if task.discrete
            else tf.random.stateless_uniform((*pixels, channels), (0, 2))
        )
        masks[name] = tf.ones(pixels)
    return x, targets, masks


def _table(records: list[dict[str, float]]) -> str:
    lines = [f"{'batch':>5} {'attack ms':>10} {'limit ms':>10} {'ratio':>7} {'CPU':>7}"]
    for r in records:
        verdict = "" if r["ratio"] <= _GOAL else f"  above {_GOAL}"
        lines.append(
            f"{r['batch']:5d} {r['attack_ms']:10.1f} {r['limit_ms']:10.1f} "
            f"{r['ratio']:7.3f} {r['cpu_ratio']:7.3f}{verdict}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
