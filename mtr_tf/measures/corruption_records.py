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
    found: Mapping[tuple[str, int], Arrays],
    seed: int,
    units: Units | None = None,
    of_values: Mapping[str, str] | None = None,
) -> list[Record]:
    """Each metric under each corruption and severity, and the mean over all of them.

    Args:
      tasks: Whose metrics are in the arrays.
      found: {(corruption, severity): {"<task>/<metric>": `[N, K]`, rows of the
        metric}}; clean images are ("", 0).
      seed: Seed of the intervals.
      units: What is drawn for them; None: each image by itself.
      of_values: By task, the data set's units of targets.
    """
    count = len(next(iter(found["", 0].values())))
    units = units or resampling.independent(count)
    return [
        record
        for task in tasks.values()
        for metric in task.all_metrics
        for record in _of_metric(
            task, metric, found, seed, units, task.unit_of(metric, of_values or {})
        )
    ]


def _of_metric(
    task: Task,
    metric: Metric,
    found: Mapping[tuple[str, int], Arrays],
    seed: int,
    units: Units,
    unit: str,
) -> list[Record]:
    rows = {of: arrays[f"{task.name}/{metric.name}"] for of, arrays in found.items()}
    values = {of: metric.over(metric_rows) for of, metric_rows in rows.items()}
    clean = number(values.pop(("", 0)))
    about: Record = {"measure": "corruptions", "tasks": [task.name]}
    about |= {"metric": metric.name, "better": metric.better, "unit": unit}
    about |= {"clean": clean}
    records = []
    for (name, severity), value in values.items():
        ends = intervals.of_metric(metric, rows[name, severity], units, seed=seed)
        of = {"quantity": "corrupted", "corruption": name, "severity": severity}
        ends = [number(end) for end in ends]
        records.append(about | of | {"value": number(value), "interval": ends})
    mean = number(np.mean(list(values.values())))
    return [*records, about | {"quantity": "mean_corrupted", "value": mean}]
