# SPDX-License-Identifier: Apache-2.0
"""Whether commands do on a GPU what they must: equal bits, equal results, quick starts.

    python benchmarks/gpu_checks.py
    python benchmarks/gpu_checks.py --tiny    # A rehearsal on a CPU.

Trains and attacks a small net with the commands, several at the same time, and compares
two runs of one seed, with XLA and without; an attack with XLA, without, and with
--fast; `--batch_size=auto`; training in float16, on replicas and with attacks. Then a
run of one step is made twice, alone, to see how long the second one takes with the
compiled code that the first one has stored.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import timing

from mtr_tf.runs import initial_weights

_TRAIN = {
    "xla": ("--jit=on",),
    "xla-again": ("--jit=on",),
    "no-xla": ("--jit=off",),
    "no-xla-again": ("--jit=off",),
    "float16": ("--jit=on", "--precision=mixed_float16"),
    "replicas": ("--jit=on", "--strategy=mirrored"),
    "adversarial": ("--jit=on", "--adversarial_tasks=seg", "--adversarial_steps=2"),
}
_ATTACK = {  # All attack the model of the first training.
    "attack": ("--jit=on",),
    "attack-again": ("--jit=on", "--batch_size=16"),
    "attack-no-xla": ("--jit=off",),
    "attack-fast": ("--jit=on", "--fast"),
    "attack-auto": ("--jit=on", "--batch_size=auto"),
}
_STARTS = ("first-start", "second-start")
_ONE_STEP = ("--jit=on", "--train_examples=32", "--epochs=1", "--eval_eps=0")


@dataclasses.dataclass(frozen=True)
class Ended:
    """A command that has ended: its exit code, last line, and seconds."""

    code: int
    last: str
    seconds: float


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the commands; prints and writes each check as soon as it is done."""
    args = _arguments(argv)
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for row in _checks(args, pathlib.Path(args.folder or folder)):
            text = "{check}: {found}; wanted: {goal}".format(**row)
            print(f"{'met   ' if row['met'] else 'MISSED'} {text}", flush=True)
            records.append(row)
            timing.write(args, records)
    print(f"written to {args.output}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = timing.parser(__doc__, "gpu_checks", rounds=1)
    add = parser.add_argument
    add("--folder", default="", help="for the runs; empty: one that is deleted again")
    limit = max(2, min(8, (os.cpu_count() or 1) // 2))
    add("--processes", type=int, default=limit, help="commands at the same time")
    add("--seconds", type=float, default=300, help="that a command may take")
    add("--only", default="", help="of these names of commands, comma-separated")
    add("--tiny", action="store_true", help="small nets and images: a rehearsal")
    return parser.parse_args(argv)


def _checks(args: argparse.Namespace, folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The checks as records, each with its result and its goal."""
    command_names = args.only.split(",") if args.only else [*_TRAIN, *_ATTACK, *_STARTS]
    results: dict[str, Ended] = {}

    def succeeded(*names: str) -> bool:
        return all(name in results and not results[name].code for name in names)

    def run(commands: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Any]]:
        with concurrent.futures.ThreadPoolExecutor(args.processes) as pool:
            names = {
                pool.submit(_run_command, args, folder, name, command): name
                for name, command in commands.items()
                if name in ("data", *command_names)
            }
            for future in concurrent.futures.as_completed(names):
                name = names[future]
                result = results[name] = future.result()
                met = not result.code
                yield _row(f"{name} ends well", result.last, "exit code 0", met)

    # Makes the data set.
    yield from run({"data": _train(args, folder / "data", (*_ONE_STEP, "--jit=off"))})
    yield from run({n: _train(args, folder / n, flags) for n, flags in _TRAIN.items()})
    for name in ("xla", "no-xla"):
        if succeeded(name, f"{name}-again"):
            digest, repeat = (_digest(folder / n) for n in (name, f"{name}-again"))
            yield _row(
                f"equal bits of two runs, {name}", repeat, digest, digest == repeat
            )
    ckpt = folder / "xla"
    yield from run({n: _attack(args, ckpt, n, flags) for n, flags in _ATTACK.items()})
    if succeeded("attack"):
        attack_names = [
            name for name in _ATTACK if name != "attack" and succeeded(name)
        ]
        yield from _loss_checks(ckpt, attack_names)
    for name in _STARTS:
        yield from run({name: _train(args, folder / name, _ONE_STEP)})
    if succeeded(*_STARTS):
        first, second = (results[name].seconds for name in _STARTS)
        finding = f"{second:.1f} s after {first:.1f}"
        yield _row("second start, one step and its end", finding, "12 s", second <= 12)


def _row(check: str, value: str, goal: str, met: bool) -> dict[str, Any]:
    return {"check": check, "found": value, "goal": goal, "met": met}


def _train(
    args: argparse.Namespace, workdir: pathlib.Path, flags: Sequence[str]
) -> list[str]:
    sizes = ["--model=resnet18", "--rooms_scenes=256", "--epochs=8"]
    if args.tiny:
        sizes = ["--model=tiny", "--width=4", "--rooms_scenes=64", "--epochs=1"]
    sizes += ["--image_size=64", "--eval_examples=16", "--eval_steps=2"]
    command = [sys.executable, "-m", "mtr_tf.train", "--tasks=seg,depth", *sizes]
    return [*command, *_flags(args, flags), f"--workdir={workdir}"]


def _attack(
    args: argparse.Namespace, workdir: pathlib.Path, name: str, flags: Sequence[str]
) -> list[str]:
    size = ["--num_examples=4", "--steps=3"] if args.tiny else ["--num_examples=96"]
    command = [sys.executable, "-m", "mtr_tf.attack", f"--ckpt={workdir}", *size]
    command += ["--attack=pgd,apgd", "--attack_tasks=all", "--eps=4", "--checks=false"]
    return [*command, *_flags(args, flags), f"--name={name}"]


def _flags(args: argparse.Namespace, flags: Sequence[str]) -> Sequence[str]:
    """The flags, in a rehearsal without XLA, which compiles for minutes on CPUs."""
    return [f.replace("jit=on", "jit=off") if args.tiny else f for f in flags]


def _run_command(
    args: argparse.Namespace, folder: pathlib.Path, name: str, command: Sequence[str]
) -> Ended:
    """Runs a command and writes its output to FOLDER/NAME.log."""
    start, last = time.perf_counter(), ""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    timer = threading.Timer(args.seconds, process.kill)
    timer.start()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.log", "w") as log:
        for line in process.stdout:
            log.write(line)
            last = line.strip() or last
    code = process.wait()
    timer.cancel()
    if code < 0:
        last = f"ended after {args.seconds:g} s: {last}"
    return Ended(code, last[:300], time.perf_counter() - start)


def _digest(run: pathlib.Path) -> str:
    """The beginning of a hash of a model's weights."""
    return initial_weights.digest(str(run / "model.keras"))[:12]


def _losses(run: pathlib.Path, name: str) -> dict[str, float]:
    """{attack and task: its loss under attack} of a command's results."""
    records = json.loads((run / "attacks" / name / "results.json").read_text())
    losses = {}
    for row in records:
        if row["metric"] == "loss":
            value = row["attacked_value"]  # None where it is not finite.
            key = f"{row['attack']} {row['task']}"
            losses[key] = math.nan if value is None else value
    return losses


def _loss_checks(run: pathlib.Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Checks of the losses of other ways to attack against those of "attack"."""
    reference = _losses(run, "attack")
    for name in names:
        losses = _losses(run, name)
        ratios = [losses[key] / reference[key] for key in reference]
        finding = f"{min(ratios):.5f} to {max(ratios):.5f}"
        if name == "attack-fast":
            strong = all(ratio >= 0.995 for ratio in ratios)
            yield _row("losses of --fast", finding, "at least .995", strong)
        else:
            close = all(abs(ratio - 1) <= 0.005 for ratio in ratios)
            yield _row(f"losses of {name}", finding, "1, within .005", close)


if __name__ == "__main__":
    main()
