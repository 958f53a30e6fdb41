# SPDX-License-Identifier: Apache-2.0
"""A sweep's results as records, as a table to read, and as JSON and CSV files."""

from __future__ import annotations

import csv
import math
import pathlib
import shutil
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtr_tf import files
from mtr_tf import tasks as tasks_lib
from mtr_tf.evaluation import resampling
from mtr_tf.evaluation.cell_store import Result
from mtr_tf.evaluation.plan import Cell
from mtr_tf.tasks import metrics

Record = dict[str, Any]


def make_records(
    clean: Result,
    results: Sequence[Result],
    facts: Mapping[str, Any],
    units: Mapping[str, str] | None = None,
    file_of: Callable[[Cell | None], str] | None = None,
) -> list[Record]:
    """One record per cell, task and metric; numbers that do not exist are None.

    Args:
      clean: The scores of the clean images.
      results: Those of the attacks.
      facts: What every record repeats: seed, dataset, split, model_fingerprint,
        interval_over, warnings; a cell's own warnings come after these.
      units: Those of the data set's `DatasetInfo`.
      file_of: The file with a cell's rows per image, `rows` and `clean_rows` of the
        records; without, they are empty.
    """
    file_of = file_of or (lambda cell: "")
    return [
        _record(clean, result, task, metric, facts, units or {})
        | {"rows": file_of(result.cell), "clean_rows": file_of(None)}
        for result in results
        for task in clean.scores
        for metric in tasks_lib.TASKS[task].metrics
    ]


def _record(
    clean: Result,
    result: Result,
    task: str,
    metric: metrics.Metric,
    facts: Mapping[str, Any],
    units: Mapping[str, str],
) -> Record:
    cell = result.cell
    before = clean.scores[task][metric.name]
    after = result.scores[task][metric.name]
    wanted = result.wanted.get(task, {}).get(metric.name, {})
    return {
        "attack": cell.label,
        "norm": cell.norm,
        "eps": cell.eps,
        "steps": cell.steps,
        "step_size": cell.step_size,
        "attacked": list(cell.attacked),
        "task": task,
        "metric": metric.name,
        "clean": before["value"],
        "attacked_value": after["value"],
        "relative_vulnerability": _vulnerability(
            metric, before["value"], after["value"]
        ),
        "n": result.count,
        **facts,
        "warnings": [*facts.get("warnings", ()), *cell.warnings],
        "clean_interval": before["interval"],
        "attacked_interval": after["interval"],
        "algorithm": cell.attack,
        "loss": "+".join(cell.losses) or "own",
        "balance": cell.balance,
        "judge": cell.judge,
        "weights": dict(cell.weights),
        "targeted": cell.targeted,
        "wanted_clean": wanted.get("clean"),
        "wanted_value": wanted.get("attacked"),
        "restarts": cell.restarts,
        "eot": cell.eot,
        "random_start": cell.random_start,
        "ensemble": list(cell.ensemble),
        "attack_pixels": cell.pixels,
        "attack_block": list(cell.block),
        "attack_classes": list(cell.classes),
        "better": metric.better,
        "unit": tasks_lib.TASKS[task].unit_of(metric, units),
    }


def _vulnerability(
    metric: metrics.Metric, clean: float | None, attacked: float | None
) -> float | None:
    if clean is None or attacked is None:
        return None
    value = float(metrics.relative_vulnerability(metric, clean, attacked)) + 0.0
    return value if math.isfinite(value) else None


def not_finite(clean: Result, results: Sequence[Result]) -> list[str]:
    """What must be said of outputs that are not finite: of how many images they are."""
    said = []
    for task in clean.scores:
        before = _bad_images(clean, task)
        after = max((_bad_images(result, task) for result in results), default=0)
        if before or after:
            said.append(
                f"{task} has outputs that are not finite: such pixels count as wrong "
                "classes, and means over them are null (of "
                f"{clean.count} images {before} clean and up to {after} attacked)."
            )
    return said


def _bad_images(result: Result, task: str) -> int:
    """How many images have an output, or a number of a metric, that is not finite."""
    rows = result.rows.get(task, {})
    bad = [
        row.any(axis=1)
        if name == tasks_lib.NOT_FINITE
        else ~np.isfinite(row).all(axis=1)
        for name, row in rows.items()
    ]
    return int(np.any(bad, axis=0).sum()) if bad else 0


def write(records: Sequence[Record], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes results.json and results.csv; returns their paths."""
    json_path, csv_path = folder / "results.json", folder / "results.csv"
    files.write_json(json_path, list(records))
    rows = [_flat(record) for record in records]
    with (
        files.whole_file(csv_path) as beside,
        open(beside, "w", newline="") as file,
    ):
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return [json_path, csv_path]


def _flat(record: Record) -> Record:
    """A record without lists: groups joined by `+`, intervals as two columns."""
    flat = {}
    for name, value in record.items():
        if name.endswith("_interval"):
            flat[f"{name}_low"], flat[f"{name}_high"] = value
        elif isinstance(value, dict):
            flat[name] = "+".join(f"{key}:{item}" for key, item in value.items())
        else:
            listed = isinstance(value, list)
            flat[name] = "+".join(map(str, value)) if listed else value
    return flat


def text(title: str, records: Sequence[Record], folder: pathlib.Path) -> str:
    """What is printed of a sweep: the table, wanted targets, warnings, places."""
    lines = [title, "", table(records, shutil.get_terminal_size((140, 24)).columns)]
    lines += ["", about_intervals(records)]
    wanted = wanted_table(records)
    if wanted:
        lines += ["", "outputs against the targets that they are drawn to:", wanted]
    for warning in dict.fromkeys(w for r in records for w in r["warnings"]):
        lines += ["", f"WARNING, can these numbers be trusted? {warning}"]
    return "\n".join(
        [
            *lines,
            "",
            f"results:  {folder / 'results.json'} and .csv",
            f"plots:    {folder / 'curves.png'}, {folder / 'gallery.png'}",
        ]
    )


def about_intervals(records: Sequence[Record]) -> str:
    """A line on what the intervals of records are over, or why there are none."""
    known = any(end is not None for r in records for end in r["attacked_interval"])
    return resampling.note(records[0]["interval_over"], records[0]["n"], known)


def table(records: Sequence[Record], width: int = 120) -> str:
    """A table to read: a row per cell; per task its headline metric and its loss.

    Args:
      records: As `make_records` returns them.
      width: Tasks that do not fit beside the others come in a table below.
    """
    tasks = list(dict.fromkeys(record["task"] for record in records))
    rows = list(dict.fromkeys(_row_of(record) for record in records))
    by_place = {(_row_of(r), r["task"], r["metric"]): r for r in records}
    left = [["", "attack", *(row[0] for row in rows)]]
    left.append(["", "attacked", *(_short_group(row[1], tasks) for row in rows)])
    left.append(["", "eps", *(f"{row[2]:g}" for row in rows)])
    left = _paste([_align(left[0]), _align(left[1]), _align(left[2], str.rjust)])
    blocks = [_block(task, rows, by_place) for task in tasks]
    tables, line = [], [left]
    for block in blocks:
        if len(line) > 1 and sum(len(b[0]) + 3 for b in [*line, block]) > width:
            tables.append(line)
            line = [left]
        line.append(block)
    return "\n\n".join("\n".join(_paste(line, " | ")) for line in [*tables, line])


def wanted_table(records: Sequence[Record]) -> str:
    """How near the outputs come to the targets that targeted attacks are after.

    A row per targeted cell and task, with the task's headline metric against those
    targets, clean and attacked; empty without a targeted attack.
    """
    rows = [("attack", "attacked", "eps", "task", "metric", "clean", "attacked")]
    for record in records:
        headline = tasks_lib.TASKS[record["task"]].metrics[0].name
        if record["targeted"] and record["metric"] == headline:
            numbers = (short(record[key]) for key in ("wanted_clean", "wanted_value"))
            attack, group, eps = _row_of(record)
            rows.append((attack, group, f"{eps:g}", record["task"], headline, *numbers))
    if len(rows) == 1:
        return ""
    return "\n".join(_paste([_align(column) for column in zip(*rows, strict=True)]))


def _short_group(group: str, tasks: Sequence[str]) -> str:
    """The group's name in a table: not all of more than three tasks one by one."""
    count = group.count("+") + 1
    return f"all {count} tasks" if count == len(tasks) > 3 else group


def _row_of(record: Record) -> tuple[str, str, float]:
    return record["attack"], "+".join(record["attacked"]), record["eps"]


def _block(task: str, rows: Sequence[tuple], by_place: Mapping) -> list[str]:
    """One task's columns: a title, the heads, and a line per row."""
    metric = tasks_lib.TASKS[task].metrics[0]
    clean, attacked, interval, ratio = ["clean"], ["attacked"], ["95 % interval"], []
    for row in rows:
        record = by_place[row, task, metric.name]
        loss = by_place[row, task, "loss"]
        clean.append(short(record["clean"]))
        attacked.append(short(record["attacked_value"]))
        ends = record["attacked_interval"]
        interval.append("-" if None in ends else " to ".join(map(short, ends)))
        ratio.append(_times(loss["clean"], loss["attacked_value"]))
    columns = [clean, attacked, interval, ["loss", *ratio]]
    body = _paste([_align(column, str.rjust) for column in columns])
    unit = by_place[rows[0], task, metric.name]["unit"]
    unit = f" [{unit}]" if unit else ""
    title = f"{task} {metric.name}{unit}, {metric.better} is better"
    return _align([title, *body])


def _times(before: float | None, after: float | None) -> str:
    return f"x{short(after / before)}" if before and after is not None else "-"


def short(value: float | None) -> str:
    """Three significant digits; `-` for a number that does not exist."""
    return "-" if value is None else f"{value:#.3g}".rstrip(".")


def _align(texts: Sequence[str], justify=str.ljust) -> list[str]:
    width = max(map(len, texts))
    return [justify(text, width) for text in texts]


def _paste(columns: Sequence[Sequence[str]], between: str = "  ") -> list[str]:
    """Joins columns of equally many lines side by side."""
    return [between.join(parts) for parts in zip(*columns, strict=True)]
