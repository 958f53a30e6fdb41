# SPDX-License-Identifier: Apache-2.0
"""Puts the attack results of several runs side by side; computes nothing new.

Example:
  python -m mtr_tf.compare --runs=runs/a,runs/b --task=seg

First, how one task holds up in each run when it alone is attacked. Then, for runs of
several tasks, how much of its single-task rise in loss each task suffers when tasks are
attacked together.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

from mtr_tf import files
from mtr_tf.cli import flags as cli_flags
from mtr_tf.config.settings import Settings
from mtr_tf.config.settings import setting
from mtr_tf.config.settings import shortened
from mtr_tf.errors import InputError
from mtr_tf.errors import did_you_mean

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class CompareConfig(Settings):
    """What `python -m mtr_tf.compare` takes."""

    runs: tuple[str, ...] = setting(
        (), "Run directories that have been attacked. Required."
    )
    name: str = setting(
        "", "Which RUN/attacks/NAME to read; empty: the only one that there is."
    )
    attack: str = setting("pgd", "Which attack to compare.")
    task: str = setting("seg", "The task that is compared between runs.")
    metric: str = setting("miou", "The metric of that task.")
    plot: str = setting("", "Also draw the first table into this PNG file.")


def main(config: CompareConfig) -> None:
    """Prints the tables; raises `InputError` for what the user can put right."""
    if not config.runs:
        raise InputError("--runs must name one or more attacked runs; it is empty.")
    if config.plot and pathlib.Path(config.plot).suffix.lower() != ".png":
        raise InputError(
            f"--plot must name a PNG file, such as plot.png; got {config.plot!r}."
        )
    found = {run: _read(pathlib.Path(run), config) for run in config.runs}
    _check_comparable(found)
    curves = {name: _curve(name, records, config) for name, records in found.items()}
    first = next(iter(found.values()))[0]
    print(
        f"{config.task} {config.metric} under {config.attack} on {config.task} alone "
        f"({first['norm']}, {first['n']} images of {first['dataset']} "
        f"{first['split']}; 95 % intervals over {first.get('interval_over', 'images')})"
        "\n"
    )
    print(_curves_table(curves))
    for name, records in found.items():
        if any(len(record["attacked"]) > 1 for record in records):
            print(
                f"\n{name}: rise of each task's loss, joint attack / attack on it alone"
            )
            print(_joint_table(records))
    print(
        "\nOne training run per model proves nothing about the method: another seed "
        "can turn\nthe order round. Intervals cover the choice of images, not of seeds."
    )
    if config.plot:
        _plot(curves, config, next(iter(found.values())))
        print(f"\nplot: {config.plot}")


def _read(run: pathlib.Path, config: CompareConfig) -> list[Record]:
    """The records of one run and attack."""
    path = _results_file(run, config.name)
    try:
        records = json.loads(path.read_text())
        for number, record in enumerate(records, start=1):
            wrong = next((n for n, fits in _FIELDS.items() if not fits(record[n])), "")
            if wrong:
                raise ValueError(
                    f"{wrong} of record {number} is {shortened(record[wrong])}"
                )
    except files.DAMAGED as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {error}); repeat "
            "the attack to write it anew."
        ) from error
    chosen = [record for record in records if record["attack"] == config.attack]
    if not chosen:
        known = list(dict.fromkeys(record["attack"] for record in records))
        hint = did_you_mean(config.attack, known)
        raise InputError(
            f"{path} has no attack {config.attack!r}, only {', '.join(known)}; choose "
            f"one with --attack.{hint}"
        )
    return chosen


def _number(value: Any) -> bool:
    """Whether it is a number or none, as JSON has them where they do not exist."""
    return value is None or type(value) in (int, float)


def _interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_number, value))


def _text(value: Any) -> bool:
    return isinstance(value, str)


# What is read of a record, and what it must be.
_FIELDS = {
    "attack": _text,
    "task": _text,
    "metric": _text,
    "norm": _text,
    "dataset": _text,
    "split": _text,
    "n": lambda value: type(value) is int,
    "eps": lambda value: value is not None and _number(value),
    "attacked": lambda value: isinstance(value, list) and all(map(_text, value)),
    "clean": _number,
    "attacked_value": _number,
    "clean_interval": _interval,
    "attacked_interval": _interval,
}


def _results_file(run: pathlib.Path, name: str) -> pathlib.Path:
    """The results.json of a run's attack of that name; empty: of its only one."""
    folder = run / "attacks"
    try:
        begun = sorted(path.name for path in folder.iterdir()) if run.is_dir() else []
    except OSError:
        begun = []
    done = [each for each in begun if (folder / each / "results.json").is_file()]
    if name in done or (not name and len(done) == 1):
        return folder / (name or done[0]) / "results.json"
    if not run.is_dir():
        raise InputError(
            f"--runs must name run directories, got {str(run)!r}, which "
            f"{'is a file' if run.exists() else 'does not exist'}."
        )
    if not done:
        unfinished = f" (only unfinished: {', '.join(begun)})" if begun else ""
        raise InputError(
            f"--runs must name attacked runs, and {run} has no finished attack"
            f"{unfinished}; run python -m mtr_tf.attack --ckpt={run} first."
        )
    if name:
        raise InputError(
            f"--name must be a finished attack of {run}, one of {', '.join(done)}; got "
            f"{name!r}.{did_you_mean(name, done)}"
        )
    raise InputError(
        f"{run} has {len(done)} finished attacks, {', '.join(done)}; choose one with "
        "--name."
    )


def _check_comparable(found: dict[str, list[Record]]) -> None:
    """Raises `InputError` unless all runs were attacked in the same way."""
    same = ("norm", "steps", "restarts", "attack_pixels", "dataset", "split", "n")
    settings = {
        run: {name: records[0].get(name) for name in same}
        for run, records in found.items()
    }
    first, expected = next(iter(settings.items()))
    for run, given in settings.items():
        different = [
            f"{name} is {expected[name]} in {first} and {given[name]} in {run}"
            for name in same
            if given[name] != expected[name]
        ]
        if different:
            raise InputError(
                f"runs must have been attacked alike to be compared: "
                f"{'; '.join(different)}. Repeat one attack with the other's settings."
            )


def _curve(
    name: str, records: Iterable[Record], config: CompareConfig
) -> list[tuple[float, float, list[float]]]:
    """(eps, value, interval) with the clean value at 0, of the attack on one task."""
    chosen = [
        record
        for record in records
        if record["attacked"] == [config.task]
        and (record["task"], record["metric"]) == (config.task, config.metric)
    ]
    if not chosen:
        raise InputError(
            f"{name} has no {config.task}/{config.metric} under an attack on "
            f"{config.task} alone; run mtr_tf.attack with --attack_tasks={config.task}."
        )
    clean = (0.0, chosen[0]["clean"], chosen[0]["clean_interval"])
    attacked = [(r["eps"], r["attacked_value"], r["attacked_interval"]) for r in chosen]
    return [clean, *sorted((a for a in attacked if a[0]), key=lambda a: a[0])]


def _curves_table(curves: dict[str, list]) -> str:
    radii = sorted({eps for curve in curves.values() for eps, *_ in curve})
    rows = [["eps", *curves]]
    for eps in radii:
        row = [f"{eps:g}" if eps else "clean"]
        for curve in curves.values():
            cells = {eps: _cell(value, ends) for eps, value, ends in curve}
            row.append(cells.get(eps, "-"))
        rows.append(row)
    from mtr_tf.show import tables

    return tables.aligned(rows, "r")


def _cell(value: float | None, interval: Sequence[float | None]) -> str:
    if value is None:  # What is not a number in JSON.
        return "-"
    low, high = interval
    return f"{value:.3f}" + ("" if low is None else f" ({low:.3f}-{high:.3f})")


def _joint_table(records: Sequence[Record]) -> str:
    """Rows: radius and joint group; columns: each attacked task's share of its rise."""
    losses = {
        (r["eps"], tuple(r["attacked"]), r["task"]): r["attacked_value"] - r["clean"]
        for r in records
        if r["metric"] == "loss" and None not in (r["attacked_value"], r["clean"])
    }
    tasks = list(dict.fromkeys(task for *_, task in losses))
    groups = list(dict.fromkeys(group for _, group, _ in losses if len(group) > 1))
    rows = [["eps", "attacked together", *tasks]]
    for eps in sorted({eps for eps, *_ in losses if eps}):
        for group in groups:
            row = [f"{eps:g}", "+".join(group)]
            for task in tasks:
                joint = losses.get((eps, group, task))
                alone = losses.get((eps, (task,), task))
                known = task in group and joint is not None and alone
                row.append(f"{joint / alone:.2f}" if known else "-")
            rows.append(row)
    from mtr_tf.show import tables

    return tables.aligned(rows, "r")


def _plot(
    curves: dict[str, list], config: CompareConfig, records: Sequence[Record]
) -> None:
    from mtr_tf.show import curves as show_curves
    from mtr_tf.show import style

    lines = [
        show_curves.from_points(
            name, [(eps, value, *ends) for eps, value, ends in curve], style.look(place)
        )
        for place, (name, curve) in enumerate(curves.items())
    ]
    shown = (config.task, config.metric)
    facts = next(r for r in records if (r["task"], r["metric"]) == shown)
    title = f"{config.task} under {config.attack} on {config.task} alone, one seed each"
    path = pathlib.Path(config.plot)
    style.save(lambda: show_curves.of_variants(title, lines, facts), path)


def run() -> None:
    """The console entry point `mtr-compare`."""
    cli_flags.run("mtr_tf.compare", __doc__, (CompareConfig,), main, "")


if __name__ == "__main__":
    run()
