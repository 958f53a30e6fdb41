# SPDX-License-Identifier: Apache-2.0
"""What training minimises: each task's loss, and its weight.

Attacks and evaluation use the tasks' own losses. Training may use others: those of the
paper's code, to repeat its runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence

import keras
import tensorflow as tf

from mtr_tf import tasks as tasks_lib
from mtr_tf.attacks import checks
from mtr_tf.config.train import TrainConfig
from mtr_tf.data.source import DatasetInfo
from mtr_tf.errors import InputError
from mtr_tf.tasks import losses
from mtr_tf.tasks.groups import task_weights
from mtr_tf.tasks.task import Loss

# The losses of targets that are not numbers, by kind, and of those that are.
_KIND_LOSSES = {"classes": ("cross_entropy",), "labels": ("binary_cross_entropy",)}
_NUMBER_LOSSES = ("l1", "l2")

_ALL = "_over_all_pixels"  # Suffix of the names of losses.

LOSSES: dict[str, Loss] = {
    "cross_entropy": losses.cross_entropy,
    "binary_cross_entropy": losses.binary_cross_entropy,
    "l1": losses.l1,
    "l2": losses.l2,
}


def make(config: TrainConfig, info: DatasetInfo) -> dict[str, Loss]:
    """Returns each task's training loss, `(target, output, mask) -> float32 [batch]`.

    Raises:
      InputError: `task_losses` names a task that is not trained, a loss that does not
        exist or does not fit; or classes have weights, but a task's own loss takes
        none.
    """
    tasks = info.tasks.select(config.tasks)
    task_losses = _parse(config.task_losses, tasks)
    by_task = {}
    for name, task in tasks.items():
        loss = task_losses.get(name, task.loss)
        weights = info.weights_of(task) if config.class_weights else ()
        if weights:
            _check_weightable(name, loss)
            loss = weighted_cross_entropy(weights, config.loss_norm)
        elif config.loss_norm == "all":
            loss = over_all_pixels(loss)
        by_task[name] = loss
    return by_task


def _check_weightable(task: str, loss: Loss) -> None:
    """Raises `InputError` for a loss that takes no class weights."""
    if loss is not losses.cross_entropy:
        raise InputError(
            "Class weights are for the cross-entropy, but the data give some for "
            f"{task}, which has a loss of its own; give --noclass_weights, or "
            f'--task_losses={task}:cross_entropy, or leave out "class_weights" or '
            "the loss."
        )


def over_all_pixels(loss: Loss) -> Loss:
    """Returns the loss with its sum divided by all pixels, not by the valid ones.

    As the paper's code does on Taskonomy: images with few valid pixels count little.
    """

    def mean(target: tf.Tensor, output: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        share = losses.count_valid(mask) / tf.cast(
            tf.reduce_prod(tf.shape(mask)[1:]), tf.float32
        )
        return loss(target, output, mask) * share

    return _set_name(mean, f"{losses.name_of(loss)}{_ALL}")


def weighted_cross_entropy(weights: Sequence[float], norm: str) -> Loss:
    """Returns the cross-entropy with a weight per class.

    Args:
      weights: the weight of each class.
      norm: "valid" divides an image's sum by the weights of its valid pixels; "all",
        as the paper's code does, by the number of all its pixels.
    """
    table = tf.constant(weights, tf.float32)

    def loss(target: tf.Tensor, output: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        labels = losses.where_valid(mask, tf.cast(target, tf.int32))
        weight = losses.where_valid(mask, tf.gather(table, labels))
        pixels = losses.pixel_cross_entropy(target, output, mask)
        total = tf.reduce_sum(weight * pixels, axis=losses.places(mask))
        if norm == "all":
            return total / tf.cast(tf.reduce_prod(tf.shape(mask)[1:]), tf.float32)
        weight_sum = tf.reduce_sum(weight, axis=losses.places(mask))
        return tf.math.divide_no_nan(total, weight_sum)

    return _set_name(loss, f"weighted_cross_entropy{_ALL if norm == 'all' else ''}")


def _set_name(loss: Loss, name: str) -> Loss:
    """Gives the loss the name by which TensorBoard shows it, and returns it."""
    loss.__name__ = name
    return loss


def _parse(pairs: Sequence[str], tasks: tasks_lib.TaskSet) -> dict[str, Loss]:
    """Reads `autoencoder:l1`, ... as {task: loss}."""
    by_task = {}
    for pair in pairs:
        task, separator, loss = pair.partition(":")
        if not separator:
            raise InputError(
                "--task_losses must be pairs of a task and a loss, such as "
                f"autoencoder:l1; got {pair!r}."
            )
        checks.check_name("loss in --task_losses", loss, LOSSES)
        if task in by_task:
            raise InputError(
                f"--task_losses must name each task once, but {task} has several "
                f"losses in {','.join(pairs)}; leave one."
            )
        if task not in tasks:
            raise InputError(
                "--task_losses must name tasks that are trained "
                f"({', '.join(tasks)}); got {task}. Remove it."
            )
        if loss not in _KIND_LOSSES.get(tasks[task].kind, _NUMBER_LOSSES):
            raise InputError(
                "cross_entropy is for classes, binary_cross_entropy for labels, and "
                f"l1 and l2 for everything else, but --task_losses has {pair!r}; "
                "choose another loss."
            )
        by_task[task] = LOSSES[loss]
    return by_task


# Weights of tasks.


@dataclasses.dataclass(frozen=True)
class Weighting:
    """Combines the tasks' losses into one.

    Attributes:
      fixed: {task: weight}, the order of tasks everywhere.
      log_variances: {task: trainable scalar s}, for learned weights; else empty.
    """

    fixed: Mapping[str, float]
    log_variances: Mapping[str, keras.Variable] = dataclasses.field(
        default_factory=dict
    )

    def total(self, task_losses: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns the weighted sum of {task: scalar mean loss}."""
        weights = self._weights()
        return tf.add_n([weights[task] * task_losses[task] for task in weights])

    def penalty(self) -> tf.Tensor | float:
        """Returns what learned weights add to the loss, to keep them from vanishing.

        With `total` it is the sum of c exp(-s) L + s / 2, c being 1 for classes and
        labels and 1/2 for all else: Kendall, Gal and Cipolla, "Multi-Task Learning
        Using Uncertainty to Weigh Losses", CVPR 2018, equations 5 to 10, s = log
        sigma^2.
        """
        return sum(s.value / 2 for s in self.log_variances.values())

    def current(self) -> dict[str, float]:
        """Returns {task: current weight of its loss}."""
        return {task: float(w) for task, w in self._weights().items()}

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables that are trained besides the model."""
        return list(self.log_variances.values())

    def _weights(self) -> dict[str, float | tf.Tensor]:
        return {
            task: weight * tf.exp(-self.log_variances[task].value)
            if task in self.log_variances
            else weight
            for task, weight in self.fixed.items()
        }


def make_weighting(config: TrainConfig, tasks: tasks_lib.TaskSet) -> Weighting:
    """Returns the rule of `--task_weights`; call it inside the strategy's scope.

    Raises:
      InputError: a main task is not among the tasks.
    """
    if config.task_weights == "uncertainty":
        scales = {
            name: 1.0 if task.kind in _KIND_LOSSES else 0.5
            for name, task in tasks.items()
        }
        return Weighting(
            scales,
            {
                task: keras.Variable(0.0, dtype="float32", name=f"log_variance_{task}")
                for task in tasks
            },
        )
    return Weighting(task_weights(tuple(tasks), config.main_tasks, config.aux_weight))
