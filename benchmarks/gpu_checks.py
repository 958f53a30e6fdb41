# SPDX-License-Identifier: Apache-2.0
"""Whether commands do on a GPU what they must: equal bits, equal results, quick starts.

    python benchmarks/gpu_checks.py
    python benchmarks/gpu_checks.py --tiny    # A rehearsal on a CPU.

Trains and attacks a small net by the commands themselves, several at the same time, and
compares: two runs of one seed, with XLA and without; an attack with XLA, without, and
with --fast; `--batch_size=auto`; training in float16, on replicas and with attacks.
Then a run of one step is made twice, alone, to see how long the second takes with the
compiled code that the first has kept.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence

import timing

from mtr_tf.runs import initial_weights

_COLUMNS = {"check": "s", "found": "s", "goal": "s", "met": "s"}
_TRAIN = {
    "xla": ("--jit=on",),
    "xla-again": ("--jit=on",),
    "no-xla": ("--jit=off",),
    "no-xla-again": ("--jit=off",),
    "float16": ("--jit=on", "--precision=mixed_float16"),
    "replicas": ("--jit=on", "--strategy=mirrored"),
    "adversarial": ("--jit=on", "--adversarial_tasks=seg", "--adversarial_steps=2"),
}
_ATTACK = {  # The model of the first of these.
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
    """Runs the commands, prints the table and writes the JSON file."""
    args = _arguments(argv)
    with tempfile.TemporaryDirectory() as folder:
        records = list(_checks(args, pathlib.Path(args.folder or folder)))
    goals = [(row["check"], row["met"] == "yes") for row in records if row["goal"]]
    timing.finish(args, records, _COLUMNS, goals)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = timing.parser(__doc__, "gpu_checks", rounds=1)
    add = parser.add_argument
    add("--folder", default="", help="for the runs; empty: one that is deleted again")
    add("--processes", type=int, default=4, help="commands at the same time")
    add("--seconds", type=float, default=300, help="that a command may take")
    add("--only", default="", help="of these names of commands, comma-separated")
    add("--tiny", action="store_true", help="small nets and images: a rehearsal")
    return parser.parse_args(argv)


def _checks(args: argparse.Namespace, folder: pathlib.Path) -> Iterator[dict[str, str]]:
    """The rows of the table."""
    wanted = args.only.split(",") if args.only else [*_TRAIN, *_ATTACK, *_STARTS]
    ended = _all_ended(args, folder, wanted)
    for name, found in ended.items():
        yield _row(f"{name} ends well", found.last, "exit code 0", found.code == 0)
    good = {name for name, found in ended.items() if not found.code}
    for name in ("xla", "no-xla"):
        if {name, f"{name}-again"} <= good:
            one, other = (_digest(folder / n) for n in (name, f"{name}-again"))
            yield _row(f"equal bits of two runs, {name}", other, one, one == other)
    losses = {name: _losses(folder / "xla", name) for name in _ATTACK if name in good}
    if "attack" in losses:
        yield from _compared(losses)
    if good.issuperset(_STARTS):
        first, second = (ended[name].seconds for name in _STARTS)
        said = f"{second:.1f} s after {first:.1f}"
        yield _row("second start, one step and its end", said, "12 s", second <= 12)


def _row(check: str, found: str, goal: str, met: bool) -> dict[str, str]:
    return {"check": check, "found": found, "goal": goal, "met": "yes" if met else "no"}


def _all_ended(
    args: argparse.Namespace, folder: pathlib.Path, wanted: Sequence[str]
) -> dict[str, Ended]:
    """Runs the commands; those that attack, after what they attack."""

    def run(name: str, command: Sequence[str]) -> Ended:
        return _ended(args, folder, name, command)

    first = _train(args, folder / "data", ("--jit=off", "--eval_eps=0"))
    ended = {"data": run("data", first)}  # Makes the data set.
    for commands in (
        {n: _train(args, folder / n, flags) for n, flags in _TRAIN.items()},
        {n: _attack(args, folder / "xla", n, flags) for n, flags in _ATTACK.items()},
        *({name: _train(args, folder / name, _ONE_STEP)} for name in _STARTS),
    ):
        commands = {n: command for n, command in commands.items() if n in wanted}
        with concurrent.futures.ThreadPoolExecutor(args.processes) as pool:
            made = pool.map(run, commands, commands.values())
            ended |= dict(zip(commands, made, strict=True))
    return ended


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
    """A rehearsal does without XLA, which on CPUs compiles for minutes."""
    return [f.replace("jit=on", "jit=off") if args.tiny else f for f in flags]


def _ended(
    args: argparse.Namespace, folder: pathlib.Path, name: str, command: Sequence[str]
) -> Ended:
    """Runs a command; what it says goes to a file, too."""
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
    return Ended(code, last[:60], time.perf_counter() - start)


def _digest(run: pathlib.Path) -> str:
    """The beginning of a hash of a model's weights."""
    return initial_weights.digest(str(run / "model.keras"))[:12]


def _losses(run: pathlib.Path, name: str) -> dict[str, float]:
    """{attack and task: its loss under attack} of a command's results."""
    records = json.loads((run / "attacks" / name / "results.json").read_text())
    return {
        f"{row['attack']} {row['task']}": row["attacked_value"]
        for row in records
        if row["metric"] == "loss"
    }


def _compared(losses: Mapping[str, Mapping[str, float]]) -> Iterator[dict[str, str]]:
    """How the losses of other ways to attack differ from those of the first."""
    exact = losses["attack"]
    for name, found in losses.items():
        ratios = [found[key] / exact[key] for key in exact]
        said = f"{min(ratios):.5f} to {max(ratios):.5f}"
        if name == "attack-fast":
            yield _row("losses of --fast", said, "at least .995", min(ratios) >= 0.995)
        elif name != "attack":
            near = max(abs(ratio - 1) for ratio in ratios) <= 0.005
            yield _row(f"losses of {name}", said, "1, within .005", near)


if __name__ == "__main__":
    main()
