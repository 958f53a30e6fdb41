# SPDX-License-Identifier: Apache-2.0
"""A sweep's results as records, and as JSON and CSV files."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtr_tf import attacks
from mtr_tf import files
from mtr_tf.attacks import judging
from mtr_tf.errors import doubts_first
from mtr_tf.evaluation import worst_case
from mtr_tf.evaluation.cell_files import Result
from mtr_tf.evaluation.plan import Cell
from mtr_tf.tasks import NOT_FINITE
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import Task
from mtr_tf.tasks import metrics

Record = dict[str, Any]


def make_records(
    clean: Result,
    results: Sequence[Result],
    facts: Mapping[str, Any],
    units: Mapping[str, str] | None = None,
    file_of: Callable[[Cell | None], str] | None = None,
    tasks: Mapping[str, Task] = TASKS,
) -> list[Record]:
    """One record per cell, task and metric; numbers that do not exist are None.

    Args:
      clean: The scores of the clean images.
      results: The scores of the attacks.
      facts: The fields that all records repeat: seed, dataset, split,
        model_fingerprint, interval_over, warnings; a cell's own warnings follow them.
      units: Those of the data set's `DatasetInfo`.
      file_of: Returns the file with a cell's rows per image, for `rows` and
        `clean_rows` of the records; None leaves them empty.
      tasks: The scored tasks.
    """
    file_of = file_of or (lambda cell: "")
    return [
        _record(clean, result, tasks[task], metric, facts, units or {})
        | {"rows": file_of(result.cell), "clean_rows": file_of(None)}
        for result in results
        for task in clean.scores
        for metric in tasks[task].all_metrics
    ]


def _record(
    clean: Result,
    result: Result,
    task: Task,
    metric: metrics.Metric,
    facts: Mapping[str, Any],
    units: Mapping[str, str],
) -> Record:
    cell = result.attack_cell
    clean_score = clean.scores[task.name][metric.name]
    attacked_score = result.scores[task.name][metric.name]
    wanted = result.wanted.get(task.name, {}).get(metric.name, {})
    channels = list(cell.threat.channels)
    channel_field = {"attack_channels": channels} if channels else {}
    query_field = {"queries": cell.attack.queries} if cell.attack.queries else {}
    return {
        "attack": cell.label,
        "norm": cell.threat.norm,
        "eps": cell.eps,
        "steps": cell.attack.steps,
        "step_size": cell.attack.step_size,
        "attacked": list(cell.tasks),
        "task": task.name,
        "metric": metric.name,
        "clean": clean_score["value"],
        "attacked_value": attacked_score["value"],
        "relative_vulnerability": _vulnerability(
            metric, clean_score["value"], attacked_score["value"]
        ),
        "n": result.count,
        **facts,
        "warnings": doubts_first([*facts.get("warnings", ()), *result.warnings]),
        "clean_interval": clean_score["interval"],
        "attacked_interval": attacked_score["interval"],
        "algorithm": cell.attack.name,
        "loss": "+".join(cell.objective.losses) or "own",
        "balance": cell.objective.balance,
        "judge": cell.objective.judge,
        "weights": dict(cell.objective.weights),
        "targeted": cell.objective.targeted,
        "wanted_clean": wanted.get("clean"),
        "wanted_value": wanted.get("attacked"),
        "restarts": cell.attack.restarts,
        "eot": cell.objective.eot,
        "random_start": cell.attack.random_start,
        "ensemble": list(cell.attack.ensemble),
        **query_field,
        "attack_pixels": cell.objective.pixels,
        "attack_block": list(cell.objective.block),
        "attack_classes": list(cell.objective.classes),
        **channel_field,
        "better": metric.better,
        "unit": task.unit_of(metric, units),
        **({"ignored": list(task.ignored)} if task.ignored else {}),
        **({"fast": result.half} if result.half == "float16" else {}),
        **_spared_fields(clean, result, task),
    }


def _spared_fields(clean: Result, result: Result, task: Task) -> Record:
    """The fields of an attack that spares tasks; empty for any other."""
    cell = result.attack_cell
    if not cell.objective.spare:
        return {}
    share, count = None, 0
    if task.name in cell.objective.spare:
        share, count = worst_case.spared_share(cell, task.name, result.rows, clean.rows)
    spare = list(cell.objective.spare)
    return {"spare": spare, "spared_share": share, "spared_images": count}


def _vulnerability(
    metric: metrics.Metric, clean: float | None, attacked: float | None
) -> float | None:
    if clean is None or attacked is None:
        return None
    value = float(metrics.relative_vulnerability(metric, clean, attacked)) + 0.0
    return value if math.isfinite(value) else None


def not_finite(clean: Result, results: Sequence[Result]) -> list[str]:
    """A warning about outputs that are not finite, with the number of images."""
    warnings = []
    for task in clean.scores:
        clean_count = _count_bad_images(clean, task)
        attacked_count = max(
            (_count_bad_images(result, task) for result in results), default=0
        )
        if clean_count or attacked_count:
            warnings.append(
                f"{task} has outputs that are not finite (in {clean_count} of "
                f"{clean.count} clean images, and in up to {attacked_count} attacked "
                "ones): there classes count as wrong, and means of numbers are null."
            )
    return warnings


def without_targets(clean: Result) -> list[str]:
    """A warning about each task that has no target in any image."""
    return [
        f"{task} has no target in any of the {clean.count} images, so that its metrics "
        "are null: its labels are missing, or masked everywhere (those of Cityscapes' "
        "official test split are all void); attack another --split."
        for task, rows in clean.rows.items()
        if rows and not any(np.any(metric_rows) for metric_rows in rows.values())
    ]


def negative_losses(clean: Result, cells: Iterable[Cell]) -> list[str]:
    """Warnings about attacks that compare negative losses or errors by their ratios."""
    warnings = []
    cells = [member for cell in cells for member in cell.members or (cell,)]
    for task in clean.scores:
        for name, rows in clean.rows.get(task, {}).items():
            balances = {
                cell.objective.balance
                for cell in cells
                if name in _needs_positive(cell, task)
            }
            if not balances or not (rows[:, 0] < 0).any():
                continue
            quantity, cure = "losses", "a loss"
            if name != "loss":
                quantity, cure = "errors", "a first metric"
            warnings.append(
                f"the {name} of {task} is below 0 on clean images, but "
                f"{' and '.join(sorted(balances))} compares {quantity} by their "
                "ratios, so that the attack may ignore the task or make it better: "
                f"give it {cure} that is 0 at best, or --balance=sum --judge=loss."
            )
    return warnings


def _needs_positive(cell: Cell, task: str) -> set[str]:
    """The metrics that an attack combines by ratios, so that none may be below 0."""
    goal, names = cell.objective, set()
    if task not in goal.tasks or len(goal.tasks) == 1:
        return names
    record = cell.all_tasks[task]
    if goal.judge == judging.HARM:
        names.add(record.harm.name)
    elif goal.balance not in ("sum", "mean"):
        names.add("loss")
    has_loss = any(attacks.ATTACK_LOSSES[name].fits(record) for name in goal.losses)
    if attacks.BALANCES[goal.balance].relative and not has_loss:
        names.add("loss")
    return names


def _count_bad_images(result: Result, task: str) -> int:
    """How many images have an output or a metric's statistic that is not finite."""
    rows = result.rows.get(task, {})
    masks = [
        row.any(axis=1) if name == NOT_FINITE else ~np.isfinite(row).all(axis=1)
        for name, row in rows.items()
    ]
    return int(np.any(masks, axis=0).sum()) if masks else 0


def write(records: Sequence[Record], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes results.json and results.csv; returns their paths."""
    json_path, csv_path = folder / "results.json", folder / "results.csv"
    files.write_json(json_path, list(records))
    files.write_csv(csv_path, records)
    return [json_path, csv_path]
