# SPDX-License-Identifier: Apache-2.0
"""Records of metrics under common corruptions: see `records`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mtr_tf.evaluation import intervals
from mtr_tf.evaluation import resampling
from mtr_tf.evaluation.resampling import Units
from mtr_tf.evaluation.scores import number
from mtr_tf.measures.records import Arrays
from mtr_tf.measures.records import Record
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks.metrics import Metric


def of_corruptions(
    tasks: TaskSet,
    by_severity: Mapping[tuple[str, int], Arrays],
    seed: int,
    units: Units | None = None,
    target_units: Mapping[str, str] | None = None,
) -> list[Record]:
    """Each metric under each corruption and severity, and the mean over all of them.

    Args:
      tasks: The tasks whose metrics the arrays hold.
      by_severity: {(corruption, severity): {"<task>/<metric>": `[N, K]`, rows of the
        metric}}; clean images are ("", 0).
      seed: Seed of the intervals.
      units: What the bootstrap draws; None: single images.
      target_units: The data set's units of targets, by task.
    """
    count = len(next(iter(by_severity["", 0].values())))
    units = units or resampling.independent(count)
    return [
        record
        for task in tasks.values()
        for metric in task.all_metrics
        for record in _metric_records(
            task,
            metric,
            by_severity,
            seed,
            units,
            task.unit_of(metric, target_units or {}),
        )
    ]


def _metric_records(
    task: Task,
    metric: Metric,
    by_severity: Mapping[tuple[str, int], Arrays],
    seed: int,
    units: Units,
    unit: str,
) -> list[Record]:
    rows = {
        key: arrays[f"{task.name}/{metric.name}"] for key, arrays in by_severity.items()
    }
    values = {key: metric.over(metric_rows) for key, metric_rows in rows.items()}
    clean = number(values.pop(("", 0)))
    common: Record = {"measure": "corruptions", "tasks": [task.name]}
    common |= {"metric": metric.name, "better": metric.better, "unit": unit}
    common |= {"clean": clean}
    records = []
    for (name, severity), value in values.items():
        ends = intervals.of_metric(metric, rows[name, severity], units, seed=seed)
        details = {"quantity": "corrupted", "corruption": name, "severity": severity}
        ends = [number(end) for end in ends]
        records.append(common | details | {"value": number(value), "interval": ends})
    mean = number(np.mean(list(values.values())))
    return [*records, common | {"quantity": "mean_corrupted", "value": mean}]
