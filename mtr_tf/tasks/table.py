# SPDX-License-Identifier: Apache-2.0
"""The table of tasks: all that the rest of the package knows about any of them.

A task is what one head of a model predicts and how that is scored. Nothing outside this
file branches on a task's name. Targets are int32 `[batch, H, W]` for classes, float32
`[batch, H, W, channels]` otherwise; outputs always have channels; masks are float32
`[batch, H, W]`, zero where there is no target.

Losses are those of the paper's code: cross-entropy for classes, the squared error for
the autoencoder (its Cityscapes setting), the absolute error for the rest (its Taskonomy
setting); but averaged over valid pixels only. Names and letters are Taskonomy's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mtr_tf.tasks import losses
from mtr_tf.tasks import metrics
from mtr_tf.tasks import names as names_lib
from mtr_tf.tasks import palettes

Loss = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
# Beside the metrics' rows: 1 for an image with an output that is not finite, else 0.
NOT_FINITE = "not_finite"
# (target or output, DatasetInfo, mask or None) -> uint8 RGB
Paint = Callable[[np.ndarray, Any, np.ndarray | None], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Task:
    """What model, loss, metrics and pictures need to know of a task.

    Attributes:
      name: The one name used in code, files and tables.
      letter: The paper's code for it, case-sensitive.
      aliases: Other names the command line takes, lower case.
      channels: Of the output; None stands for the data set's number of classes.
      loss: `(target, output, mask)` -> float32 `[batch]`.
      metrics: The headline first, the loss last.
      unit: Of the target; "" for a plain number.
      paint: What `to_rgb` calls.
      mirror: What a channel's values are multiplied by when left and right change
        places; None where they stay as they are.
    """

    name: str
    letter: str
    aliases: tuple[str, ...]
    channels: int | None
    loss: Loss
    metrics: tuple[metrics.Metric, ...]
    unit: str
    paint: Paint
    mirror: tuple[float, ...] | None = None

    @property
    def discrete(self) -> bool:
        """Whether targets are classes and outputs their logits."""
        return self.channels is None

    @property
    def harm(self) -> metrics.Metric:
        """What harm is measured by: the first of its metrics that images have means of.

        Mean IoU is none, so that for classes it is the accuracy of pixels.
        """
        return next(metric for metric in self.metrics if metric.is_mean)

    def unit_of(self, metric: metrics.Metric, units: Mapping[str, str]) -> str:
        """Returns a metric's unit on a data set with the `units` of its DatasetInfo.

        A share of something that is not in the task's own unit is said to be so: "share
        of log" is none of a distance.
        """
        unit = units.get(self.name, self.unit)
        if metric.relative and unit != self.unit:
            return f"share of {unit}"
        of_target = self.unit and metric.unit == self.unit
        return units.get(self.name, metric.unit) if of_target else metric.unit

    def output_channels(self, num_classes: int) -> int:
        """Returns the channels of this task's head on a data set of so many classes."""
        return num_classes if self.channels is None else self.channels

    def to_rgb(
        self, value: np.ndarray, info: Any, mask: np.ndarray | None = None
    ) -> np.ndarray:
        """Paints a target or an output.

        Args:
          value: `[..., H, W]` for targets that are classes, else `[..., H, W, C]`.
          info: The data set's `DatasetInfo`, for its `colors` and `ranges`.
          mask: `[..., H, W]`, zero where the picture shall be black.

        Returns:
          uint8 `[..., H, W, 3]`.
        """
        return self.paint(np.asarray(value), info, mask)


def task_losses(
    names: Sequence[str],
    outputs: Mapping[str, tf.Tensor],
    targets: Mapping[str, tf.Tensor],
    masks: Mapping[str, tf.Tensor],
) -> dict[str, tf.Tensor]:
    """Returns {task: float32 `[batch]`}, each task's loss per image."""
    return {
        name: TASKS[name].loss(targets[name], outputs[name], masks[name])
        for name in names
    }


def statistics(
    names: Sequence[str],
    outputs: Mapping[str, tf.Tensor],
    targets: Mapping[str, tf.Tensor],
    masks: Mapping[str, tf.Tensor],
    num_classes: int,
) -> dict[str, dict[str, tf.Tensor]]:
    """Returns {task: {metric: `[batch, K]`}}, rows per image: int64 counts or sums.

    Beside the metrics there is `NOT_FINITE`, `[batch, 1]`: whether any valid pixel's
    output is NaN or infinite. May be called inside a `tf.function`; padding (masks of
    zero) gives rows of zero.
    """
    return {
        name: {
            metric.name: metric.statistics(
                targets[name], outputs[name], masks[name], num_classes
            )
            for metric in TASKS[name].metrics
        }
        | {NOT_FINITE: _not_finite(outputs[name], masks[name])}
        for name in names
    }


def _not_finite(output: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    bad = ~tf.reduce_all(tf.math.is_finite(tf.cast(output, tf.float32)), axis=-1)
    bad = tf.reduce_any(bad & tf.cast(mask, tf.bool), axis=(1, 2))
    return tf.cast(bad, tf.float32)[:, tf.newaxis]


# How tasks are painted.


def _paint_classes(value: np.ndarray, info: Any, mask: np.ndarray | None):
    is_logits = np.issubdtype(value.dtype, np.floating)
    classes = value.argmax(axis=-1) if is_logits else value
    return palettes.classes_to_rgb(classes, info.colors, mask)


def _paint_scalar(name: str, default: tuple[float, float] | None = None) -> Paint:
    return lambda value, info, mask: palettes.scalar_to_rgb(
        value, info.ranges.get(name, default), mask
    )


def _paint_pair(name: str) -> Paint:
    return lambda value, info, mask: palettes.pair_to_rgb(
        value, info.ranges.get(name), mask
    )


def _paint_vectors(value: np.ndarray, info: Any, mask: np.ndarray | None):
    return palettes.vectors_to_rgb(value, mask)


def _paint_image(value: np.ndarray, info: Any, mask: np.ndarray | None):
    low, high = info.ranges.get("autoencoder", (0, 1))
    return palettes.image_to_rgb((value - low) / (high - low), mask)


# The table.


def _task(name, *, channels, loss, scores, paint, unit="", mirror=None) -> Task:
    called = next(each for each in names_lib.NAMES if each.name == name)
    scores = (*scores, metrics.mean_loss(loss))
    return Task(
        name,
        called.letter,
        called.aliases,
        channels,
        loss,
        scores,
        unit,
        paint,
        mirror,
    )


def _map(name, *, unit="", value_range=None, scores=()) -> Task:
    """A task of one number per pixel."""
    return _task(
        name,
        channels=1,
        loss=losses.l1,
        scores=(metrics.mae(unit), metrics.rmse(unit), *scores),
        paint=_paint_scalar(name, value_range),
        unit=unit,
    )


_ALL = (
    _task(
        "seg",
        channels=None,
        loss=losses.cross_entropy,
        scores=(metrics.miou(), metrics.pixel_accuracy()),
        paint=_paint_classes,
    ),
    _map("depth", unit="m", scores=(metrics.rel(),)),
    _map("depth_euclidean", unit="m", scores=(metrics.rel(),)),
    _task(
        "normal",
        channels=3,
        loss=losses.l1,
        scores=(metrics.angular_error(), metrics.mae()),
        paint=_paint_vectors,
        mirror=(-1.0, 1.0, 1.0),
    ),
    _map("edge_texture", value_range=(0, 1)),
    _map("edge_occlusion", value_range=(0, 1)),
    _map("keypoints2d", value_range=(0, 1)),
    _map("keypoints3d", value_range=(0, 1)),
    _map("reshading", value_range=(0, 1)),
    _task(
        "curvature",
        channels=2,
        loss=losses.l1,
        scores=(metrics.mae("1/m"), metrics.rmse("1/m")),
        paint=_paint_pair("curvature"),
        unit="1/m",
    ),
    _task(
        "autoencoder",
        channels=3,
        loss=losses.l2,
        scores=(metrics.mse(), metrics.mae()),
        paint=_paint_image,
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
