# SPDX-License-Identifier: Apache-2.0
"""Metrics that are computed on request, besides a task's own: `--metrics`.

They are not among a task's own metrics, so results of attacks without them stay valid,
no attack is judged by them, and tables stay narrow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from collections.abc import Sequence

from mtr_tf.errors import InputError
from mtr_tf.tasks import average_precision
from mtr_tf.tasks import metric_names
from mtr_tf.tasks import metrics
from mtr_tf.tasks.metrics import Metric
from mtr_tf.tasks.table import TASKS
from mtr_tf.tasks.task import Task
from mtr_tf.tasks.task import TaskSet


def with_more(tasks: TaskSet, names: Sequence[str], num_classes: int | None) -> TaskSet:
    """Returns the tasks with those of the named metrics that fit them.

    Args:
      tasks: The tasks.
      names: Names of metrics, or "all".
      num_classes: The data set's, for tasks that do not say how many they have.

    Raises:
      InputError: There is no such metric, or it fits none of the tasks.
    """
    metric_names.check(names)
    explicit_names = [name for name in names if name != metric_names.ALL]
    all_names = metric_names.MORE if metric_names.ALL in names else ()
    selected_names = dict.fromkeys((*all_names, *explicit_names))
    additions = {
        task.name: {
            name: metric
            for name in (*metric_names.MORE, *selected_names)
            if (metric := _fitting_metric(task, name, num_classes))
        }
        for task in tasks.values()
    }
    own_names = {metric.name for task in tasks.values() for metric in task.metrics}
    for name in explicit_names:
        if name not in own_names and not any(
            name in by_name for by_name in additions.values()
        ):
            choices = dict.fromkeys(
                choice for by_name in additions.values() for choice in by_name
            )
            raise InputError(
                f"--metrics={name} fits none of the tasks {', '.join(tasks)}; metrics "
                f"that can be added for them are {', '.join(choices) or 'none'}. Leave "
                "it out."
            )
    return TaskSet(
        task.bound(
            more=tuple(by_name[name] for name in selected_names if name in by_name)
        )
        for task, by_name in zip(tasks.values(), additions.values(), strict=True)
    )


@functools.cache
def named(name: str) -> Metric:
    """Returns the metric with this name."""
    k = metric_names.top(name)
    return metrics.top(k) if k else _MORE[name][0]()


def _fitting_metric(task: Task, name: str, num_classes: int | None) -> Metric | None:
    """The metric with a name; None if it does not fit the task, or the task has it."""
    k = metric_names.top(name)
    if k:
        fits = task.discrete and task.output_channels(num_classes) > k
    else:
        fits = _MORE[name][1](task)
    has_metric = name in (metric.name for metric in task.metrics)
    return named(name) if fits and not has_metric else None


def _is_distance(task: Task) -> bool:
    """Whether ratios of the numbers make sense: for distances and a user's own tasks.

    For a task that replaces one of the table, that one decides.
    """
    standard_task = TASKS.get(task.name)
    is_ratio = standard_task is None or any(
        metric.relative for metric in standard_task.metrics
    )
    return task.kind == "numbers" and is_ratio


def _is_directions(task: Task) -> bool:
    return task.kind == "directions"


# Name -> (function that makes it, whether it fits a task).
_MORE: dict[str, tuple[Callable[[], Metric], Callable[[Task], bool]]] = {
    "image_miou": (metrics.image_miou, lambda task: task.discrete and task.axes > 0),
    "mean_ap": (
        average_precision.mean_ap,
        lambda task: task.kind == "labels" and not task.axes,
    ),
    "pixel_mean_ap": (
        average_precision.pixel_mean_ap,
        lambda task: task.kind == "labels" and task.axes > 0,
    ),
    "delta1": (lambda: metrics.delta(1), _is_distance),
    "delta2": (lambda: metrics.delta(2), _is_distance),
    "delta3": (lambda: metrics.delta(3), _is_distance),
    "log_rmse": (metrics.log_rmse, _is_distance),
    "rel": (metrics.rel, _is_distance),
    "within_11": (lambda: metrics.within_angle(11.25), _is_directions),
    "within_22": (lambda: metrics.within_angle(22.5), _is_directions),
    "within_30": (lambda: metrics.within_angle(30.0), _is_directions),
}
