# SPDX-License-Identifier: Apache-2.0
"""How points are judged: one score per image, in an attack or from rows on disk.

    harm   for classes and labels the share that is wrong, else the mean error of the
           task's headline metric (depth in metres, angles, ...); see `Task.harm`
    loss   the tasks' own losses, as the balance makes one number of them

The harm of several tasks is their geometric mean. This orders points by the mean rise
of log harm from any common start, so no task's unit or scale matters.

The harm of one label of a whole image is 0 until it is 1, and an attack that sees only
that has nowhere to go. So where few places are counted, points of equal harm are told
apart, in an attack, by how near they are to the next wrong place (`nearness`).
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from mtr_tf.attacks import checks
from mtr_tf.attacks.attack_losses import Case
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


def may_tie(
    judge: str,
    tasks: Mapping[str, Task],
    weights: Sequence[float] = (),
    restricted: bool = False,
    draws: int = 1,
) -> tuple[str, ...]:
    """Returns the tasks whose nearness tells points of equal harm apart.

    These are tasks with classes or labels that are no maps, or of which only a part is
    attacked. There are none where the harm is more than counts of wrong places, whose
    steps are known: beside tasks of other kinds, which hardly ever tie; and with
    several tasks, of different weights or under several draws.

    Args:
      judge: "harm" or "loss".
      tasks: The attacked ones.
      weights: Of the tasks; empty where all are 1.
      restricted: Whether only some of the places are attacked.
      draws: Number of draws that a score is the mean over.
    """
    by_task = dict(zip(tasks, weights or [1.0] * len(tasks), strict=True))
    weighted_tasks = {name: tasks[name] for name, weight in by_task.items() if weight}
    comparable = len({by_task[name] for name in weighted_tasks}) == 1 and draws == 1
    if judge != HARM or (len(weighted_tasks) > 1 and not comparable):
        return ()
    if not all(_counts_places(task) for task in weighted_tasks.values()):
        return ()
    return tuple(
        n for n, task in weighted_tasks.items() if restricted or not task.is_map
    )


def _counts_places(task: Task) -> bool:
    """Whether a task's harm is a share of wrong places, or of their labels."""
    is_count = task.harm.better == "higher" and not task.harm.of_shares
    return is_count and (task.discrete or task.kind == "labels")


def nearness(case: Case) -> tf.Tensor:
    """Returns how near places are to being wrong, or how far beyond, [batch].

    The mean over an image's valid places (and labels) of 1 / (2 - 2 m) where the margin
    m is below 0 and the place right, and of 1 - 1 / (2 + 2 m) elsewhere: from 0 to 1,
    rising with every margin.
    """
    margins = case.margins
    side = 0.5 / (1 + tf.abs(margins))
    values = tf.where(margins < 0, side, 1 - side)
    return case.mean(tf.where(tf.math.is_nan(values), 1.0, values))  # Counted as wrong.


def harm(
    metric: metrics.Metric, rows: tf.Tensor | np.ndarray, labels: int = 1
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the harm that rows show, and what stands for no harm, each [batch].

    A metric of which more is better is a share of right pixels: its harm is the share
    of wrong ones, and half a pixel (of one label) stands for no harm. Otherwise the
    harm is the mean itself, and the smallest float stands for no harm. Where an image
    has nothing to count, 1 stands for no harm: a product of harms is left to the other
    tasks.

    Args:
      metric: One with `is_mean`.
      rows: Its (sum, count) per image, [batch, 2].
      labels: Number of labels of each place; the sum adds up their means.
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
    near: Mapping[str, tf.Tensor] | None = None,
    draws: int = 1,
) -> tf.Tensor:
    """Returns each image's score, [batch]: higher is better for the attacker.

    The order of points of different harm does not depend on `near`.

    Args:
      judge: "harm" or "loss".
      balance: How losses become one number.
      rows: Those of the attacked tasks, in order, of the metrics that the judge looks
        at; for a targeted attack, against the targets that it wants.
      weights: Of the tasks; empty where all are 1.
      clean: The rows of the clean images, for balances that compare with them.
      targeted: Whether the score is minus the harm or loss.
      tasks: The tasks by name.
      near: The `nearness` of the tasks of `may_tie`, which tells points of equal harm
        apart; None: they tie.
      draws: Number of draws that a score is the mean over.
    """
    by_task = dict(zip(rows, weights, strict=True)) if weights else {}
    if judge == HARM:
        value = _joint_harm(rows, by_task, tasks, near or {}, draws)
    else:
        clean_losses = None if clean is None else _losses(clean, by_task, tasks)
        value = balance.score(_losses(rows, by_task, tasks), clean_losses)
    return -value if targeted else value


def _joint_harm(
    rows: Rows,
    weights: Mapping[str, float],
    tasks: Mapping[str, Task],
    near: Mapping[str, tf.Tensor],
    draws: int,
) -> tf.Tensor:
    """Returns the geometric mean of the tasks' harms, prod_t harm_t^(w_t / sum |w|).

    `near` adds less than one more wrong place would: half a place times the nearness,
    divided by the draws, each of which may be one place off. With several tasks it does
    so within the product, which is a multiple of prod_t least_t.
    """
    harms = {}
    for task, by_metric in rows.items():
        if weights.get(task, 1.0):
            harm_metric = metric(tasks[task], HARM)
            labels = tasks[task].kind == "labels" and tasks[task].channels
            harms[task] = harm(harm_metric, by_metric[harm_metric.name], labels or 1)
    if len(harms) == 1:  # As it is, without the rounding of a logarithm.
        ((task, (value, least)),) = harms.items()
        return value + least * near[task] / draws if task in near else value
    total = sum(abs(weights.get(task, 1.0)) for task in harms)
    joint = tf.exp(
        tf.add_n(
            [
                weights.get(task, 1.0) / total * tf.math.log(tf.maximum(value, least))
                for task, (value, least) in harms.items()
            ]
        )
    )
    if not near:
        return joint
    steps = [tf.maximum(value, least) / least for value, least in harms.values()]
    part = tf.add_n(list(near.values())) / len(near) / tf.reduce_prod(steps, axis=0)
    return joint * (1 + part) ** (1 / len(harms))


def _losses(
    rows: Rows, weights: Mapping[str, float], tasks: Mapping[str, Task]
) -> dict[str, tf.Tensor]:
    """Returns {task: its weighted loss, [batch]}."""
    return {
        task: weights.get(task, 1.0)
        * tf.cast(by_metric[metric(tasks[task], LOSS).name], tf.float32)[:, 0]
        for task, by_metric in rows.items()
    }
