# SPDX-License-Identifier: Apache-2.0
"""Metrics that are computed where they are asked for, beside a task's own: `--metrics`.

They are not among a task's own: what was attacked without them keeps its results, no
attack is judged by them, and tables stay narrow.
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
      names: Of metrics, or "all".
      num_classes: Of the data set, for tasks that do not say how many they have.

    Raises:
      InputError: There is no such metric, or it fits none of the tasks.
    """
    metric_names.check(names)
    named_ones = [name for name in names if name != metric_names.ALL]
    all_there_are = metric_names.MORE if metric_names.ALL in names else ()
    asked = dict.fromkeys((*all_there_are, *named_ones))
    fitting = {
        task.name: {
            name: metric
            for name in (*metric_names.MORE, *asked)
            if (metric := _fitting(task, name, num_classes))
        }
        for task in tasks.values()
    }
    own = {metric.name for task in tasks.values() for metric in task.metrics}
    for name in named_ones:
        if name not in own and not any(name in of for of in fitting.values()):
            there = dict.fromkeys(known for of in fitting.values() for known in of)
            raise InputError(
                f"--metrics={name} fits none of the tasks {', '.join(tasks)}; metrics "
                f"that can be added for them are {', '.join(there) or 'none'}. Leave "
                "it out."
            )
    return TaskSet(
        task.bound(more=tuple(of[name] for name in asked if name in of))
        for task, of in zip(tasks.values(), fitting.values(), strict=True)
    )


@functools.cache
def named(name: str) -> Metric:
    """Returns the metric of a name."""
    k = metric_names.top(name)
    return metrics.top(k) if k else _MORE[name][0]()


def _fitting(task: Task, name: str, num_classes: int | None) -> Metric | None:
    """The metric of a name; None where it does not fit a task, or the task has it."""
    k = metric_names.top(name)
    if k:
        fits = task.discrete and task.output_channels(num_classes) > k
    else:
        fits = _MORE[name][1](task)
    there = name in (metric.name for metric in task.metrics)
    return named(name) if fits and not there else None


def _is_distance(task: Task) -> bool:
    """Whether numbers are ratios: a distance's, or those of a task of one's own.

    A task that takes the place of one of the table is what that one is.
    """
    known = TASKS.get(task.name)
    is_ratio = known is None or any(metric.relative for metric in known.metrics)
    return task.kind == "numbers" and is_ratio


def _is_directions(task: Task) -> bool:
    return task.kind == "directions"


# How it is made, and which tasks it fits.
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
