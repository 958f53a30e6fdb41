# SPDX-License-Identifier: Apache-2.0
"""How points are judged: one score per image, in an attack or from rows on disk.

    harm   what the table of results shows: for classes the share of wrong pixels, else
           the mean error of the task's headline metric (depth in metres, angles, ...)
    loss   the tasks' own training losses, as the balance makes one number of them

The harm of several tasks is their geometric mean. This orders points by the mean rise
of log harm from any common start, so no task's unit or scale matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from mtr_tf.attacks import checks
from mtr_tf.attacks.balance import Balance
from mtr_tf.errors import InputError
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import Task
from mtr_tf.tasks import metrics

AUTO, HARM, LOSS = JUDGES = ("auto", "harm", "loss")

# {task: {metric: rows [batch, K]}}, as `evaluation` and `tasks.statistics` have them.
Rows = Mapping[str, Mapping[str, tf.Tensor | np.ndarray]]


def check(judge: str) -> None:
    """Raises InputError unless it is one of JUDGES."""
    if judge == "error":
        raise InputError(
            f"judge must be one of {', '.join(JUDGES)}; got 'error'. Did you mean "
            "'harm'?"
        )
    checks.check_name("judge", judge, JUDGES)


def resolve(judge: str, other_losses: bool, ensemble: bool = False) -> str:
    """Returns "harm" or "loss".

    "auto" is "loss" where each task raises its own loss, outside ensembles, and "harm"
    where any task raises another loss and in all ensembles.

    Args:
      judge: One of JUDGES; see `check`.
      other_losses: Whether a loss other than the tasks' own is named.
      ensemble: Whether it is an ensemble, or a member of one.
    """
    if judge != AUTO:
        return judge
    return HARM if other_losses or ensemble else LOSS


def metric(task: Task, judge: str) -> metrics.Metric:
    """Returns the metric of a task whose rows the judge looks at."""
    return task.harm if judge == HARM else task.metrics[-1]


def harm(
    metric: metrics.Metric, rows: tf.Tensor | np.ndarray, labels: int = 1
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns how much harm rows show, and what counts for none at all, each [batch].

    A metric of which more is better is a share of right pixels: its harm is the share
    of wrong ones, and half a pixel (of one label) stands for none; else it is the mean
    itself, and none is the smallest number. Where an image has nothing to count, no
    harm is 1, which leaves a product of harms to the other tasks.

    Args:
      metric: One with `is_mean`.
      rows: Its (sum, count) per image, [batch, 2].
      labels: How many each place has, whose mean it adds up.
    """
    total, count = tf.unstack(tf.cast(rows, tf.float32), axis=-1)
    least = tf.fill(tf.shape(total), np.finfo(np.float32).tiny)
    if metric.better == "higher":
        total = count - total
        if not metric.of_shares:
            least = tf.math.divide_no_nan(0.5 / labels, count)
    least = tf.where(count > 0, least, 1.0)
    return tf.math.divide_no_nan(total, count), least


def score(
    judge: str,
    balance: Balance,
    rows: Rows,
    weights: Sequence[float] = (),
    clean: Rows | None = None,
    targeted: bool = False,
    tasks: Mapping[str, Task] = TASKS,
) -> tf.Tensor:
    """Returns each image's score, [batch]: higher is better for the attacker.

    Args:
      judge: "harm" or "loss".
      balance: How losses become one number.
      rows: Of the attacked tasks, in order: of those metrics that the judge looks at.
        Of a targeted attack against the targets that it is after.
      weights: Of the tasks; empty where all are 1.
      clean: The rows of the clean images, for balances that compare with them.
      targeted: Whether the score is minus the harm, or the loss.
      tasks: What the names are of.
    """
    by_task = dict(zip(rows, weights, strict=True)) if weights else {}
    if judge == HARM:
        value = _joint_harm(rows, by_task, tasks)
    else:
        before = None if clean is None else _losses(clean, by_task, tasks)
        value = balance.score(_losses(rows, by_task, tasks), before)
    return -value if targeted else value


def _joint_harm(
    rows: Rows, weights: Mapping[str, float], tasks: Mapping[str, Task]
) -> tf.Tensor:
    """Returns the geometric mean of the tasks' harms, prod_t harm_t^(w_t / sum |w|)."""
    harms = {}
    for task, by_metric in rows.items():
        if weights.get(task, 1.0):
            record = metric(tasks[task], HARM)
            several = tasks[task].kind == "labels" and tasks[task].channels
            harms[task] = harm(record, by_metric[record.name], several or 1)
    if len(harms) == 1:  # As it is, without the rounding of a logarithm.
        return next(iter(harms.values()))[0]
    total = sum(abs(weights.get(task, 1.0)) for task in harms)
    return tf.exp(
        tf.add_n(
            [
                weights.get(task, 1.0) / total * tf.math.log(tf.maximum(value, least))
                for task, (value, least) in harms.items()
            ]
        )
    )


def _losses(
    rows: Rows, weights: Mapping[str, float], tasks: Mapping[str, Task]
) -> dict[str, tf.Tensor]:
    """Returns {task: its weighted loss, [batch]}."""
    return {
        task: weights.get(task, 1.0)
        * tf.cast(by_metric[metric(tasks[task], LOSS).name], tf.float32)[:, 0]
        for task, by_metric in rows.items()
    }
