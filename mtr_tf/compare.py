# SPDX-License-Identifier: Apache-2.0
"""Compares finished attacks on several models side by side; computes nothing new.

Example:
  python -m mtr_tf.compare --runs=runs/a,runs/b --plot=compare.png
  python -m mtr_tf.compare --runs=runs/a,my.keras --task=seg --format=markdown

Attacks are matched by their settings, whatever their folders are called. Each attack
that all models share gives one table per task, which shows how the task holds up when
it alone is attacked. For models with several tasks, another table compares the rise in
each task's loss when tasks are attacked together with the rise when it is attacked
alone.

--leaderboard=board.html writes a page of all models in order instead, and board.json,
the records that it is made of. Such files, of other people too, and the records.json
of a study's report are taken by --runs beside runs.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

from mtr_tf import files
from mtr_tf.cli import flags as cli_flags
from mtr_tf.config.settings import FORMAT
from mtr_tf.config.settings import Settings
from mtr_tf.config.settings import setting
from mtr_tf.errors import InputError


@dataclasses.dataclass(frozen=True)
class CompareConfig(Settings):
    """What `python -m mtr_tf.compare` takes."""

    runs: tuple[str, ...] = setting(
        (),
        "What to compare, after it was attacked: run directories, .keras files, or "
        "folders RUN/attacks/NAME or of --out; all may be at addresses. For "
        "--leaderboard also .json files of records. Required.",
        path=True,
        address=True,
    )
    name: str = setting(
        "",
        "Use only the results in the folders RUN/attacks/NAME; empty: all "
        "finished attacks.",
    )
    attack: tuple[str, ...] = setting(
        (),
        "Attacks to compare, such as pgd; empty: all that the models have in common.",
    )
    task: tuple[str, ...] = setting(
        (), "Tasks to compare; empty: all that were attacked alone in all models."
    )
    metric: str = setting("", "The metric; empty: each task's headline metric.")
    format: str = FORMAT
    plot: str = setting(
        "",
        "Also plot the curves in this file (.png, .pdf or .svg), one plot per table.",
        path=True,
    )
    leaderboard: str = setting(
        "",
        "Write this page (.html) of all models, in the order of what is left of each "
        "task under the attack that did the most harm; and beside it (.json) the "
        "records that it is made of.",
        path=True,
    )


def main(config: CompareConfig) -> None:
    """Prints the tables; raises `InputError` for mistakes that the user can fix."""
    if not config.runs:
        raise InputError("--runs must name one or more attacked runs, but it is empty.")
    plot = pathlib.Path(config.plot)
    if config.plot:
        files.check_picture("--plot", plot)
    from mtr_tf.runs import remote

    if config.leaderboard:
        _check_flags(config)
        with remote.copies():
            print(_leaderboard(config))
        return
    from mtr_tf.show import side_by_side
    from mtr_tf.show import style

    with remote.copies():
        models = side_by_side.read(config.runs, config.name)
    tables = side_by_side.compare(models, config.attack, config.task, config.metric)
    records = [record for table in tables for record in table.records()]
    if config.format == "json":
        print(json.dumps(records, indent=1))
    elif config.format == "csv":
        print(files.csv_text(records), end="")
    else:
        print(getattr(side_by_side, config.format)(tables, models))
    if config.plot:
        for table, path in zip(tables, _paths(plot, tables), strict=True):
            style.save(table.figure, path)
            if config.format in ("text", "markdown"):
                print(f"\nplot: {path}")


def _check_flags(config: CompareConfig) -> None:
    """Raises `InputError` for flags that a leaderboard does not use."""
    allowed_names = {"runs", "name", "leaderboard"}
    other_flags = [
        f"--{name}" for name in config.not_default() if name not in allowed_names
    ]
    if other_flags:
        raise InputError(
            "--leaderboard takes all tasks and attacks, with each task's headline "
            f"metric, but {', '.join(other_flags)} is given too; leave it out, or "
            "print tables without --leaderboard."
        )


def _leaderboard(config: CompareConfig) -> str:
    """Writes the page and its records; returns a text with their paths."""
    page = pathlib.Path(config.leaderboard)
    if page.suffix != ".html":
        raise InputError(
            f"--leaderboard must end with .html, but it is {config.leaderboard!r}; "
            "give it such a name."
        )
    from mtr_tf.show import leaderboard
    from mtr_tf.show import side_by_side

    runs = [path for path in config.runs if not path.endswith(".json")]
    record_files = [
        pathlib.Path(path) for path in config.runs if path.endswith(".json")
    ]
    all_records = [record for path in record_files for record in leaderboard.read(path)]
    side_by_side.read(runs, config.name)  # Raises for damaged results.
    for label, path in zip(side_by_side.labels_of(runs), runs, strict=True):
        for file in side_by_side.result_files(path, config.name):
            all_records += leaderboard.of_folder(label, file.parent)
    records = leaderboard.together(all_records)
    leaderboard.write(records, page.with_suffix(".json"))
    files.write_text(page, leaderboard.html(records))
    return f"leaderboard: {page}\nits records: {page.with_suffix('.json')}"


def _paths(plot: pathlib.Path, tables: list) -> list[pathlib.Path]:
    """A path for each table: `plot`; for several tables, attack and task are added."""
    if len(tables) == 1:
        return [plot]
    stems = [f"{plot.stem}-{table.facts['attack']}-{table.task}" for table in tables]
    paths = []
    for i, stem in enumerate(stems):
        repeats = stems[:i].count(stem)
        name = f"{stem}-{repeats + 1}" if repeats else stem
        paths.append(plot.with_name(name + plot.suffix))
    return paths


def run() -> None:
    """The console entry point `mtr-compare`."""
    cli_flags.run("mtr_tf.compare", __doc__, (CompareConfig,), main, "")


if __name__ == "__main__":
    run()
