# SPDX-License-Identifier: Apache-2.0
"""The scores of a cell, from its rows per image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtr_tf.evaluation import evaluator
from mtr_tf.evaluation import intervals
from mtr_tf.evaluation import resampling
from mtr_tf.evaluation.evaluator import Rows
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import Task
from mtr_tf.tasks.metrics import Metric


def of_rows(
    rows: Rows,
    seed: int,
    units: resampling.Units | None = None,
    tasks: Mapping[str, Task] = TASKS,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Each metric's value with its interval, as `of_metric` gives them."""
    return {
        task: {
            metric.name: of_metric(metric, by_metric[metric.name], units, seed)
            for metric in tasks[task].all_metrics
        }
        for task, by_metric in rows.items()
    }


def of_metric(
    metric: Metric, rows: np.ndarray, units: resampling.Units | None, seed: int
) -> dict[str, Any]:
    """A metric's value with its 95 % bootstrap interval; None for NaN."""
    ends = intervals.of_metric(metric, rows, units, seed=seed)
    return {"value": number(metric.over(rows)), "interval": [number(e) for e in ends]}


def wanted(
    clean: Mapping[str, Any], rows: Rows, tasks: Mapping[str, Task] = TASKS
) -> dict[str, Any]:
    """The scores against wanted targets; `clean` has those of the clean images."""
    attacked = evaluator.values(rows, tasks)
    return {
        task: {
            name: {"clean": clean[task][name]["clean"], "attacked": number(value)}
            for name, value in by_metric.items()
        }
        for task, by_metric in attacked.items()
    }


def number(value: Any) -> float | None:
    """A Python float, or None for NaN and infinity, which JSON lacks."""
    return float(value) if np.isfinite(value) else None
