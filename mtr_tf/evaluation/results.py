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
      results: Those of the attacks.
      facts: What every record repeats: seed, dataset, split, model_fingerprint,
        interval_over, warnings; a cell's own warnings come after these.
      units: Those of the data set's `DatasetInfo`.
      file_of: The file with a cell's rows per image, `rows` and `clean_rows` of the
        records; without, they are empty.
      tasks: Those that were looked at.
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
    before = clean.scores[task.name][metric.name]
    after = result.scores[task.name][metric.name]
    wanted = result.wanted.get(task.name, {}).get(metric.name, {})
    of_channels = list(cell.threat.channels)
    channels = {"attack_channels": of_channels} if of_channels else {}
    queries = {"queries": cell.attack.queries} if cell.attack.queries else {}
    return {
        "attack": cell.label,
        "norm": cell.threat.norm,
        "eps": cell.eps,
        "steps": cell.attack.steps,
        "step_size": cell.attack.step_size,
        "attacked": list(cell.tasks),
        "task": task.name,
        "metric": metric.name,
        "clean": before["value"],
        "attacked_value": after["value"],
        "relative_vulnerability": _vulnerability(
            metric, before["value"], after["value"]
        ),
        "n": result.count,
        **facts,
        "warnings": doubts_first([*facts.get("warnings", ()), *result.warnings]),
        "clean_interval": before["interval"],
        "attacked_interval": after["interval"],
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
        **queries,
        "attack_pixels": cell.objective.pixels,
        "attack_block": list(cell.objective.block),
        "attack_classes": list(cell.objective.classes),
        **channels,
        "better": metric.better,
        "unit": task.unit_of(metric, units),
        **({"ignored": list(task.ignored)} if task.ignored else {}),
        **_spared(clean, result, task),
    }


def _spared(clean: Result, result: Result, task: Task) -> Record:
    """What is said of an attack that spares tasks; nothing of any other."""
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
    said = []
    for task in clean.scores:
        before = _bad_images(clean, task)
        after = max((_bad_images(result, task) for result in results), default=0)
        if before or after:
            said.append(
                f"{task} has outputs that are not finite (in {before} of "
                f"{clean.count} clean images, and in up to {after} attacked ones): "
                "such pixels count as wrong classes, and means over them are null."
            )
    return said


def without_targets(clean: Result) -> list[str]:
    """A warning about each task that has no target in any image."""
    return [
        f"{task} has no target in any of the {clean.count} images, so that its metrics "
        "are null: its labels are missing, or masked everywhere (those of Cityscapes' "
        "official test split are all void); attack another --split."
        for task, rows in clean.rows.items()
        if rows and not any(np.any(of_metric) for of_metric in rows.values())
    ]


def negative_losses(clean: Result, cells: Iterable[Cell]) -> list[str]:
    """Warnings about attacks that compare, by ratios, losses or errors below 0."""
    said, cells = [], [each for cell in cells for each in cell.members or (cell,)]
    for task in clean.scores:
        for name, rows in clean.rows.get(task, {}).items():
            wrong = {
                cell.objective.balance
                for cell in cells
                if name in _needs_positive(cell, task)
            }
            if not wrong or not (rows[:, 0] < 0).any():
                continue
            compared, cure = "losses", "a loss"
            if name != "loss":
                compared, cure = "errors", "a first metric"
            said.append(
                f"the {name} of {task} is below 0 on clean images, but "
                f"{' and '.join(sorted(wrong))} compares {compared} by their ratios, "
                "so that the attack may ignore the task or make it better: give it "
                f"{cure} that is 0 at best, or --balance=sum --judge=loss."
            )
    return said


def _needs_positive(cell: Cell, task: str) -> set[str]:
    """The metrics of which an attack makes one number of several, none below 0."""
    goal, found = cell.objective, set()
    if task not in goal.tasks or len(goal.tasks) == 1:
        return found
    record = cell.known[task]
    if goal.judge == judging.HARM:
        found.add(record.harm.name)
    elif goal.balance not in ("sum", "mean"):
        found.add("loss")
    raised = any(attacks.ATTACK_LOSSES[name].fits(record) for name in goal.losses)
    if attacks.BALANCES[goal.balance].relative and not raised:
        found.add("loss")
    return found


def _bad_images(result: Result, task: str) -> int:
    """How many images have an output, or a number of a metric, that is not finite."""
    rows = result.rows.get(task, {})
    bad = [
        row.any(axis=1) if name == NOT_FINITE else ~np.isfinite(row).all(axis=1)
        for name, row in rows.items()
    ]
    return int(np.any(bad, axis=0).sum()) if bad else 0


def write(records: Sequence[Record], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes results.json and results.csv; returns their paths."""
    json_path, csv_path = folder / "results.json", folder / "results.csv"
    files.write_json(json_path, list(records))
    files.write_csv(csv_path, records)
    return [json_path, csv_path]
