# SPDX-License-Identifier: Apache-2.0
"""The table of tasks, and what is computed for each task of a batch.

Nothing outside this file branches on a task's name. A user's own tasks have the same
rank as these in a `TaskSet`.

Losses are those of the paper's code: cross-entropy for classes, the squared error for
the autoencoder (its Cityscapes setting), the absolute error for the rest (its Taskonomy
setting); but averaged over valid pixels only. Names and letters are Taskonomy's.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from mtr_tf.tasks import losses
from mtr_tf.tasks import metrics
from mtr_tf.tasks import names as names_lib
from mtr_tf.tasks.task import MAP
from mtr_tf.tasks.task import Task
from mtr_tf.tasks.task import TaskSet
from mtr_tf.tasks.task import paint_numbers

# Rows besides the metrics': 1 for an image with an output that is not finite, else 0.
NOT_FINITE = "not_finite"


def _task(name: str, **fields: Any) -> Task:
    names = next(names for names in names_lib.NAMES if names.name == name)
    return Task(name, places=MAP, letter=names.letter, aliases=names.aliases, **fields)


def _distance(name: str) -> Task:
    """A task of one distance per pixel."""
    scores = (metrics.mae("m"), metrics.rmse("m"), metrics.rel())
    return _task(name, metrics=scores, unit="m")


def _strength(name: str) -> Task:
    """A task of one number from 0 to 1 per pixel."""
    return _task(name, paint=paint_numbers((0, 1)))


_ALL = (
    _task("seg", kind="classes"),
    _distance("depth"),
    _distance("depth_euclidean"),
    _task("normal", kind="directions"),
    _strength("edge_texture"),
    _strength("edge_occlusion"),
    _strength("keypoints2d"),
    _strength("keypoints3d"),
    _strength("reshading"),
    _task("curvature", channels=2, unit="1/m"),
    _task("autoencoder", kind="image"),
)

TASKS = TaskSet(_ALL)


def task_set(tasks: str | Iterable[str | Task] | Mapping[str, Task]) -> TaskSet:
    """Returns tasks as a set: records as they are, names as the tasks of TASKS.

    Raises:
      InputError: an unknown name, or two tasks of one name.
    """
    if isinstance(tasks, TaskSet):
        return tasks
    if isinstance(tasks, Mapping) and all(isinstance(t, Task) for t in tasks.values()):
        return TaskSet(tasks.values())
    if isinstance(tasks, str):
        return TASKS.select(tasks)
    return TaskSet(
        task if isinstance(task, Task) else TASKS[names_lib.resolve([task])[0]]
        for task in tasks
    )


def task_losses(
    tasks: Iterable[str] | Mapping[str, Task],
    outputs: Mapping[str, tf.Tensor],
    targets: Mapping[str, tf.Tensor],
    masks: Mapping[str, tf.Tensor],
) -> dict[str, tf.Tensor]:
    """Returns {task: float32 `[batch]`}, each task's loss per image."""
    return {
        name: task.loss(targets[name], outputs[name], masks[name])
        for name, task in task_set(tasks).items()
    }


def statistics(
    tasks: Iterable[str] | Mapping[str, Task],
    outputs: Mapping[str, tf.Tensor],
    targets: Mapping[str, tf.Tensor],
    masks: Mapping[str, tf.Tensor],
    num_classes: int | None,
) -> dict[str, dict[str, tf.Tensor]]:
    """Returns {task: {metric: `[batch, K]`}}, rows per image: int64 counts or sums.

    Besides the metrics there is `NOT_FINITE`, `[batch, 1]`: whether any valid place's
    output is NaN or infinite. May be called inside a `tf.function`; padding (masks of
    zero) gives rows of zero.
    """
    return {
        name: {
            metric.name: metric.statistics(
                targets[name],
                outputs[name],
                masks[name],
                task.output_channels(num_classes),
            )
            for metric in task.all_metrics
        }
        | {NOT_FINITE: _not_finite(outputs[name], masks[name])}
        for name, task in task_set(tasks).items()
    }


def _not_finite(output: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    is_bad = ~tf.reduce_all(tf.math.is_finite(tf.cast(output, tf.float32)), axis=-1)
    is_bad = tf.reduce_any(is_bad & tf.cast(mask, tf.bool), axis=losses.places(mask))
    return tf.cast(is_bad, tf.float32)[:, tf.newaxis]
