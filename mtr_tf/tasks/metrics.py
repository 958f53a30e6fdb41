# SPDX-License-Identifier: Apache-2.0
"""Metrics as additive per-image statistics and a function of their sum.

`Metric.statistics` gives a row of K numbers per image; `Metric.value` turns the sum of
rows into the metric. So a streaming metric is a running sum, the metric over replicas
is that of the gathered rows, and the bootstrap resamples rows: all are exact. A fully
masked image (the padding of the last batch) gives a row of zeros.

Rows of counts are int64, all others float64: numbers of pixels are exact whatever the
size of an image. A valid pixel whose label is no class counts as wrong.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import math
import re
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mtr_tf.errors import InputError
from mtr_tf.tasks import losses

_UNBOUNDED = (-math.inf, math.inf)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A measure of one task's outputs.

    Attributes:
      name: Its name in tables and TensorBoard.
      better: "higher" or "lower".
      unit: Of the value; "" for a plain number.
      statistics: `(target, output, mask, num_classes)` -> int64 or float64 `[batch,
        K]`, with batches as the losses take them. Only tasks of classes use
        `num_classes`.
      value: Sums of rows, `[..., K]` -> float64 `[...]`; NaN where nothing was counted.
      bounds: The smallest and largest possible values.
      of_shares: Whether a row's sum is itself a share, not a number of right places.
      relative: Whether the value is a share of the target: of a distance, or of what a
        data set has as the target instead.
      of_rows: Where no sum of rows gives the value: (rows `[images, K]`, how often each
        image counts `[resamples, images]`) -> `[resamples]`.
      of_given: Whether it is made from a function, a loss or a Keras metric.
      is_accuracy: Whether it is the share of places whose largest logit is the
        target's.
    """

    name: str
    better: str
    unit: str
    statistics: Callable[[tf.Tensor, tf.Tensor, tf.Tensor, int | None], tf.Tensor]
    value: Callable[[np.ndarray], np.ndarray]
    bounds: tuple[float, float] = (0.0, math.inf)
    of_shares: bool = False
    relative: bool = False
    of_rows: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    of_given: bool = False
    is_accuracy: bool = False

    def over(self, rows: np.ndarray) -> float:
        """Returns the value over images with these rows, `[images, K]`."""
        if self.of_rows:
            return float(self.of_rows(rows, np.ones((1, len(rows))))[0])
        return float(self.value(rows.sum(0, np.float64)))

    @property
    def is_mean(self) -> bool:
        """Whether rows are (sum, count) and the value is their ratio, a mean."""
        return self.value is _ratio

    @property
    def measures_harm(self) -> bool:
        """Whether it is the mean of an error, or the share that is right."""
        return self.is_mean and (self.better == "lower" or self.bounds == (0.0, 1.0))


# Classes.


def miou(ignored: tuple[int, ...] = ()) -> Metric:
    """Mean, over classes in target or prediction, of intersection over union.

    `ignored` are classes that no target has, because their labels mean "no label". They
    do not count in the mean; a pixel predicted as one of them is a miss of its own
    class.
    """
    return Metric(
        "miou", "higher", "", _class_rows, _mean_iou_without(ignored), (0.0, 1.0)
    )


def image_miou(ignored: tuple[int, ...] = ()) -> Metric:
    """The mean over images of each image's own mean IoU.

    The classes are those in the image's target or prediction, except the `ignored`, as
    in `miou`. Pooling pixels over a data set hides small objects, which attacks reach
    more easily: the size bias of Halmosi, Mohos and Jelasity (ECCV 2024).
    """

    def statistics(target, output, mask, num_classes):
        counts = class_counts(target, output, mask, num_classes)
        hits, target_pixels, predicted_pixels = (
            tf.cast(count, tf.float64) for count in counts
        )
        union = target_pixels + predicted_pixels - hits
        if ignored:
            union *= 1.0 - np.isin(np.arange(num_classes), ignored)
        class_count = tf.reduce_sum(tf.cast(union > 0, tf.float64), axis=-1)
        total = tf.reduce_sum(tf.math.divide_no_nan(hits, union), axis=-1)
        mean = tf.math.divide_no_nan(total, class_count)
        return tf.stack((mean, tf.cast(class_count > 0, tf.float64)), axis=-1)

    options = {"bounds": (0.0, 1.0), "of_shares": True}
    return Metric("image_miou", "higher", "", statistics, _ratio, **options)


def without_classes(metric: Metric, ignored: tuple[int, ...]) -> Metric:
    """The same metric with these classes `ignored`, if it is one of our mean IoUs."""
    make = {"miou": miou, "image_miou": image_miou}.get(metric.name)
    if not make or not ignored or metric.of_given:
        return metric
    return make(ignored) if metric.statistics.__module__ == __name__ else metric


def pixel_accuracy() -> Metric:
    """The share of valid pixels whose largest logit is the target's class."""
    return dataclasses.replace(accuracy(), name="pixel_accuracy")


def accuracy() -> Metric:
    """The share of valid places whose largest logit is the target's class."""
    rows, bounds = _correct_and_count, (0.0, 1.0)
    return Metric("accuracy", "higher", "", rows, _ratio, bounds, is_accuracy=True)


def top(k: int) -> Metric:
    """The share of valid places whose target is among the k largest logits.

    Of equal logits, the first counts as larger, so that top 1 is the accuracy.
    """

    def statistics(target, output, mask, num_classes):
        del num_classes
        output = tf.cast(output, tf.float32)
        target = tf.cast(target, tf.int32)[..., tf.newaxis]
        classes = tf.range(tf.shape(output)[-1])
        logit = tf.where(tf.equal(classes, target), output, -math.inf)
        # Minus infinity where the target is no class.
        logit = tf.reduce_max(logit, axis=-1, keepdims=True)
        is_larger = (output > logit) | (tf.equal(output, logit) & (classes < target))
        rank = tf.math.count_nonzero(is_larger, axis=-1)
        is_finite = tf.reduce_all(tf.math.is_finite(output), axis=-1)
        valid = tf.cast(mask, tf.bool)
        correct = valid & is_finite & (rank < k) & tf.math.is_finite(logit[..., 0])
        return tf.stack((_count_nonzero(correct), _count_nonzero(valid)), axis=-1)

    return Metric(f"top{k}", "higher", "", statistics, _ratio, (0.0, 1.0))


def class_counts(
    target: tf.Tensor, output: tf.Tensor, mask: tf.Tensor, num_classes: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Counts valid pixels by class, three times int32 `[batch, num_classes]`.

    Returns:
      Right pixels by class; all pixels by target; all pixels by prediction, which is
      the largest logit (the first among equals). Logits that are not finite count as a
      wrong class, so that a broken model is not right about class 0. A pixel whose
      label is no class counts only by its prediction, so it is wrong.
    """
    target = tf.cast(target, tf.int32)
    prediction = _prediction(target, output) % num_classes
    valid = tf.cast(mask, tf.bool)
    correct = valid & tf.equal(prediction, target)
    return (
        count_labels(target, correct, num_classes),
        count_labels(target, valid, num_classes),
        count_labels(prediction, valid, num_classes),
    )


def count_labels(labels: tf.Tensor, mask: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Counts each image's pixels in `mask` by label, int32 `[batch, num_classes]`."""
    batch = tf.shape(labels)[0]
    labels, mask = tf.reshape(labels, (batch, -1)), tf.reshape(mask, (batch, -1))
    first_of_image = tf.range(batch)[:, tf.newaxis] * num_classes
    # Labels that are no class would count for other images.
    mask &= (labels >= 0) & (labels < num_classes)
    no_segment = -tf.ones_like(labels)  # unsorted_segment_sum leaves these out.
    segment = tf.where(mask, first_of_image + labels, no_segment)
    ones = tf.ones_like(segment)
    counts = tf.math.unsorted_segment_sum(ones, segment, batch * num_classes)
    return tf.reshape(counts, (batch, num_classes))


def _class_rows(target, output, mask, num_classes) -> tf.Tensor:
    counts = class_counts(target, output, mask, num_classes)
    return tf.cast(tf.concat(counts, axis=-1), tf.int64)


def _prediction(target: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
    """The class of the largest logit; target + 1 where a logit is NaN or infinite."""
    is_finite = tf.reduce_all(tf.math.is_finite(tf.cast(output, tf.float32)), axis=-1)
    largest = tf.argmax(output, axis=-1, output_type=tf.int32)
    return tf.where(is_finite, largest, tf.cast(target, tf.int32) + 1)


@functools.cache  # So that equal metrics are equal.
def _mean_iou_without(ignored: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    return functools.partial(_mean_iou, ignored=ignored) if ignored else _mean_iou


def _mean_iou(sums: np.ndarray, ignored: tuple[int, ...] = ()) -> np.ndarray:
    """The mean IoU of hits and pixels by target and prediction, `[..., 3 classes]`."""
    hits, target_pixels, predicted_pixels = np.split(
        np.asarray(sums, np.float64), 3, axis=-1
    )
    union = target_pixels + predicted_pixels - hits
    occurs = union != 0  # Not `> 0`: NaN must not vanish.
    occurs &= ~np.isin(np.arange(union.shape[-1]), ignored)
    total = np.where(occurs, hits / np.where(occurs, union, 1.0), 0.0).sum(axis=-1)
    return divide(total, occurs.sum(axis=-1))


def _correct_and_count(target, output, mask, num_classes) -> tf.Tensor:
    del num_classes
    correct = tf.equal(_prediction(target, output), tf.cast(target, tf.int32))
    valid = tf.cast(mask, tf.bool)
    return tf.stack((_count_nonzero(correct & valid), _count_nonzero(valid)), axis=-1)


# Labels, several at once.


def label_accuracy() -> Metric:
    """The share of labels, over valid places, rightly predicted present or absent."""

    def statistics(target, output, mask, num_classes):
        del num_classes
        correct = tf.equal(_is_predicted(output), tf.cast(target, tf.float32) > 0.5)
        is_finite = tf.math.is_finite(tf.cast(output, tf.float32))
        return _sum_and_count(tf.cast(correct & is_finite, tf.float32), mask)

    return Metric("label_accuracy", "higher", "", statistics, _ratio, (0.0, 1.0))


def f1() -> Metric:
    """Mean over labels, in target or prediction, of 2 TP / (2 TP + FP + FN)."""

    def statistics(target, output, mask, num_classes):
        del num_classes
        predictions, labels = _is_predicted(output), tf.cast(target, tf.float32) > 0.5
        # A logit that is not finite is a wrong answer, whatever the label.
        predictions = tf.where(
            tf.math.is_finite(tf.cast(output, tf.float32)), predictions, ~labels
        )
        valid = tf.cast(mask, tf.bool)[..., tf.newaxis]
        rows = [
            tf.math.count_nonzero(occurrences & valid, axis=losses.places(mask))
            for occurrences in (predictions & labels, labels, predictions)
        ]
        return tf.concat(rows, axis=-1)

    return Metric("f1", "higher", "", statistics, _mean_f1, (0.0, 1.0))


def _is_predicted(output: tf.Tensor) -> tf.Tensor:
    """Whether each label is predicted: its logit is above 0."""
    return tf.cast(output, tf.float32) > 0


def _mean_f1(sums: np.ndarray) -> np.ndarray:
    """Mean F1 of hits, labels in targets and labels predicted, `[..., 3 labels]`."""
    hits, labels, predictions = np.split(np.asarray(sums, np.float64), 3, axis=-1)
    denominator = labels + predictions
    occurs = denominator != 0
    total = np.where(occurs, 2 * hits / np.where(occurs, denominator, 1.0), 0.0).sum(-1)
    return divide(total, occurs.sum(axis=-1))


# Everything else.


def mae(unit: str = "") -> Metric:
    """Mean absolute error over pixels and channels."""

    def statistics(target, output, mask, num_classes):
        del num_classes
        return _sum_and_count(tf.abs(losses.difference(target, output, mask)), mask)

    return Metric("mae", "lower", unit, statistics, _ratio)


def mse(unit: str = "") -> Metric:
    """Mean squared error over pixels and channels."""
    return Metric("mse", "lower", f"{unit}^2" if unit else "", _squares, _ratio)


def rmse(unit: str = "") -> Metric:
    """Root of the mean squared error over all pixels and channels of all images."""
    return Metric("rmse", "lower", unit, _squares, lambda sums: np.sqrt(_ratio(sums)))


def rel() -> Metric:
    """Mean of |output - target| / target over the valid pixels with target > 0."""

    def statistics(target, output, mask, num_classes):
        del num_classes
        target = losses.where_valid(mask, tf.cast(target, tf.float32))
        positive = tf.cast(tf.reduce_all(target > 0, axis=-1), tf.float32)
        error = tf.abs(losses.difference(target, output, positive))
        return _sum_and_count(tf.math.divide_no_nan(error, target), positive)

    return Metric("rel", "lower", "", statistics, _ratio, relative=True)


def delta(power: int) -> Metric:
    """The share of valid pixels with target > 0 that are within a factor of 1.25^power.

    That is, max(output / target, target / output) is below the factor (Eigen et al.
    2014); an output of 0 or less is never within it.
    """
    factor = 1.25**power

    def statistics(target, output, mask, num_classes):
        del num_classes
        target, output, positive = _positive_values(target, output, mask)
        is_within = (output < factor * target) & (target < factor * output)
        return _sum_and_count(tf.cast(is_within, tf.float32), positive)

    bounds = (0.0, 1.0)
    name = f"delta{power}"
    return Metric(name, "higher", "", statistics, _ratio, bounds, relative=True)


def log_rmse() -> Metric:
    """Root of the mean of (ln output - ln target)^2 where the target is above 0.

    Outputs below `LEAST_OF_LOG` count as that value. If the target itself is below it,
    outputs count as at least that share of the target.
    """

    def statistics(target, output, mask, num_classes):
        del num_classes
        target, output, positive = _positive_values(target, output, mask)
        lower_limit = LEAST_OF_LOG * tf.where(target < LEAST_OF_LOG, target, 1.0)
        # Not `maximum`, which may turn NaN into a number.
        output = tf.where(output < lower_limit, lower_limit, output)
        error = tf.math.log(tf.where(target > 0, output / target, 1.0))
        return _sum_and_count(tf.square(error), positive)

    def value(sums: np.ndarray) -> np.ndarray:
        return np.sqrt(_ratio(sums))

    return Metric("log_rmse", "lower", "", statistics, value, relative=True)


LEAST_OF_LOG = 1e-3  # In the unit of the target.


def _positive_values(target, output, mask) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Target and output, 1 where no valid target is above 0; the mask where one is."""
    target = losses.where_valid(mask, tf.cast(target, tf.float32))
    positive = tf.reduce_all(target > 0, axis=-1, keepdims=True)
    target = tf.where(positive, target, 1.0)
    output = tf.where(positive, tf.cast(output, tf.float32), 1.0)
    return target, output, tf.cast(positive[..., 0], tf.float32)


def angular_error() -> Metric:
    """Mean angle between output and target vectors; 90 for an output of length 0.

    Targets of length 0, which point nowhere, are left out like those that are masked.
    The angle is atan2(|a x b|, a . b), which unlike acos is accurate near 0 and 180
    degrees, for vectors of any length.
    """

    def statistics(target, output, mask, num_classes):
        del num_classes
        mask = _direction_mask(target, mask)
        return _sum_and_count(_angle(target, output, mask), mask)

    bounds = (0.0, 180.0)
    return Metric("angular_error", "lower", "degrees", statistics, _ratio, bounds)


def within_angle(degrees: float) -> Metric:
    """The share of vectors off by less than `degrees`; without targets of length 0."""

    def statistics(target, output, mask, num_classes):
        del num_classes
        mask = _direction_mask(target, mask)
        is_within = tf.cast(_angle(target, output, mask) < degrees, tf.float32)
        return _sum_and_count(is_within, mask)

    name = f"within_{int(degrees)}"
    return Metric(name, "higher", "", statistics, _ratio, (0.0, 1.0))


def mean_loss(loss: Callable[..., tf.Tensor]) -> Metric:
    """The mean of a loss over the images that have a valid pixel."""

    def statistics(target, output, mask, num_classes):
        del num_classes
        values = loss(target, output, mask)
        return _sum_and_count_of_images("loss", loss, values, mask)

    return Metric("loss", "lower", "", statistics, _ratio, _UNBOUNDED, of_given=True)


def _direction_mask(target: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """The mask without targets of length 0, which have no direction."""
    return tf.where(tf.reduce_any(target != 0, axis=-1), mask, tf.zeros_like(mask))


def _angle(target: tf.Tensor, output: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Returns degrees `[batch, *places]` between vectors of any length."""
    target = losses.where_valid(mask, tf.cast(target, tf.float32))
    output = losses.where_valid(mask, tf.cast(output, tf.float32))
    # Vectors are divided by their largest numbers, or squares of tiny ones become 0.
    target_scale = tf.reduce_max(tf.abs(target), axis=-1, keepdims=True)
    target = tf.math.divide_no_nan(target, target_scale)
    output_scale = tf.reduce_max(tf.abs(output), axis=-1, keepdims=True)
    output = tf.math.divide_no_nan(output, output_scale)
    if output.shape[-1] == 3:
        cross_norm = tf.norm(tf.linalg.cross(output, target), axis=-1)
        radians = tf.atan2(cross_norm, tf.reduce_sum(output * target, axis=-1))
    else:  # Kahan's formula, for any number of channels.
        a, b = (tf.math.l2_normalize(v, axis=-1) for v in (output, target))
        radians = 2 * tf.atan2(tf.norm(a - b, axis=-1), tf.norm(a + b, axis=-1))
    degrees = radians * (180.0 / math.pi)
    return tf.where(output_scale[..., 0] == 0, 90.0, degrees)


def _squares(target, output, mask, num_classes) -> tf.Tensor:
    del num_classes
    return _sum_and_count(tf.square(losses.difference(target, output, mask)), mask)


def _sum_and_count(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Returns (sum over valid places of the mean over channels, number of them).

    Rows are summed in float32, their sums in float64: a sum of 4096 x 4096 pixels has
    an error of 1e-6 or less.
    """
    if losses.has_channels(values, mask):
        values = tf.reduce_mean(values, axis=-1)
    *other_axes, last_axis = [0, *losses.places(mask)]
    lines = losses.where_valid(mask, values)
    if last_axis:
        lines = tf.reduce_sum(lines, axis=last_axis)
    total = tf.reduce_sum(tf.cast(lines, tf.float64), axis=other_axes[1:])
    return tf.stack((total, tf.cast(_count_nonzero(mask), tf.float64)), axis=-1)


def _sum_and_count_of_images(
    kind: str, function: Callable, values: tf.Tensor, mask: tf.Tensor
) -> tf.Tensor:
    """Returns (value, 1) per image, or (0, 0) without a valid place.

    Raises `InputError` unless the function, a "loss" or "metric", gave `[batch]`.
    """
    has_valid = tf.cast(losses.count_valid(mask) > 0, tf.float64)
    values = tf.cast(values, tf.float64)
    losses.check_per_image(kind, function, values, has_valid)
    return tf.stack((tf.where(has_valid > 0, values, 0.0), has_valid), axis=-1)


def _count_nonzero(values: tf.Tensor) -> tf.Tensor:
    """Counts the nonzero values of each image: int64 `[batch]`."""
    return tf.math.count_nonzero(values, axis=losses.places(values))


def _ratio(sums: np.ndarray) -> np.ndarray:
    sums = np.asarray(sums, np.float64)
    return divide(sums[..., 0], sums[..., 1])


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Returns numerator / denominator in float64, NaN where the denominator is 0."""
    nonzero = np.asarray(denominator) != 0
    return np.where(nonzero, numerator / np.where(nonzero, denominator, 1.0), np.nan)


# A user's own metrics.


def of_function(name: str, function: Callable, better: str, unit: str = "") -> Metric:
    """The mean over images of `function(target, output, mask)` -> `[batch]`.

    Only images with a valid place count. The statistics raise `InputError` if the
    function does not give one number for each image.
    """

    def statistics(target, output, mask, num_classes):
        del num_classes
        values = function(target, losses.not_half(output), mask)
        return _sum_and_count_of_images("metric", function, values, mask)

    return Metric(name, better, unit, statistics, _ratio, _UNBOUNDED, of_given=True)


# Keras's words for it; it has none for its counts.
_DIRECTIONS = {"up": "higher", "down": "lower"}
_COUNTS = {
    "TruePositives": "higher",
    "TrueNegatives": "higher",
    "FalsePositives": "lower",
    "FalseNegatives": "lower",
}
# The bounds of Keras's own classes; those of others are not known.
_BOUNDS = {
    (0.0, 1.0): (
        "Accuracy BinaryAccuracy CategoricalAccuracy SparseCategoricalAccuracy "
        "TopKCategoricalAccuracy SparseTopKCategoricalAccuracy AUC Precision Recall "
        "PrecisionAtRecall RecallAtPrecision SensitivityAtSpecificity "
        "SpecificityAtSensitivity F1Score FBetaScore IoU BinaryIoU MeanIoU OneHotIoU "
        "OneHotMeanIoU"
    ),
    (0.0, math.inf): (
        "MeanAbsoluteError MeanAbsolutePercentageError MeanSquaredError "
        "MeanSquaredLogarithmicError RootMeanSquaredError LogCoshError Hinge "
        "SquaredHinge CategoricalHinge BinaryCrossentropy CategoricalCrossentropy "
        f"SparseCategoricalCrossentropy {' '.join(_COUNTS)}"
    ),
    (-1.0, 1.0): "CosineSimilarity PearsonCorrelation ConcordanceCorrelation",
    (-math.inf, 1.0): "R2Score",
}


def of_keras(
    metric: keras.metrics.Metric, probabilities: Callable | None = None
) -> Metric:
    """A Keras metric of one number, whose state is a sum over examples.

    This holds for `Mean` and what is built on it, for counts of right and wrong, for
    confusion matrices and for AUC. An image's row is the state after that image alone.
    Except for plain means, it is followed by a 1 if the image has a valid place: where
    nothing was counted there is no value, but Keras gives a number, which may look
    perfect. The mask is passed as `sample_weight`. For classes and labels, Keras's own
    metrics get the `probabilities` of the outputs, unless they were made with
    `from_logits=True`.
    """
    builds = []
    convert = losses.is_kerass(metric) and not metric.get_config().get("from_logits")

    def statistics(target, output, mask, num_classes):
        del num_classes
        target = losses.where_valid(mask, target)
        output = losses.where_valid(mask, tf.cast(output, tf.float32))
        if probabilities and convert:
            output = probabilities(output)
        if not builds:
            builds.append(_build(metric, target, output))
        zeros = [tf.zeros(v.shape, v.dtype) for v in metric.variables]

        def row(example):
            target, output, mask = example
            weights = tf.reshape(tf.cast(mask, tf.float32), (-1,))
            if isinstance(metric, keras.metrics.BinaryIoU):  # It flattens labels, too.
                weights = tf.repeat(weights, output.shape[-1])
            state = metric.stateless_update_state(
                zeros,
                tf.reshape(target, (-1, *target.shape[mask.shape.rank :])),
                tf.reshape(output, (-1, output.shape[-1])),
                sample_weight=weights,
            )
            flat = [tf.reshape(tf.cast(v, tf.float64), (-1,)) for v in state]
            has_valid = tf.reduce_any(tf.cast(mask, tf.bool))
            return tf.where(has_valid, tf.concat(flat, 0), 0.0)

        size = sum(math.prod(v.shape) for v in metric.variables)
        spec = tf.TensorSpec((size,), tf.float64)
        return tf.map_fn(row, (target, output, mask), fn_output_signature=spec)

    def value(sums: np.ndarray) -> np.ndarray:
        sums = np.asarray(sums, np.float64)
        rows = sums.reshape(-1, sums.shape[-1])
        ends = np.cumsum([math.prod(v.shape) for v in metric.variables])
        values = []
        for row in rows:
            parts = zip(np.split(row, ends)[:-1], metric.variables, strict=True)
            state = [tf.constant(p.reshape(v.shape), v.dtype) for p, v in parts]
            result = np.asarray(metric.stateless_result(state))
            if result.ndim:
                raise InputError(
                    f"A Keras metric must give one number, but {metric.name} gives "
                    f"{result.size}; set its average, or use another metric."
                )
            is_valid = row[-1] > 0 and np.isfinite(row).all()
            values.append(float(result) if is_valid else np.nan)
        return np.array(values).reshape(sums.shape[:-1])

    direction = _COUNTS.get(type(metric).__name__) if losses.is_kerass(metric) else None
    direction = direction or _DIRECTIONS.get(str(getattr(metric, "_direction", "")))
    better = _better(metric, metric.name, direction)
    functions = (_with_ones(statistics), value)
    if type(metric).result is keras.metrics.Mean.result:
        functions = (statistics, _ratio)
    return Metric(
        metric.name,
        better,
        "",
        *functions,
        _bounds(metric),
        of_given=True,
        is_accuracy=type(metric) is keras.metrics.SparseCategoricalAccuracy,
    )


def _with_ones(statistics: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Statistics whose rows end with a 1 for each image that has a valid place."""

    def rows(target, output, mask, num_classes):
        has_valid = tf.cast(losses.count_valid(mask) > 0, tf.float64)[:, tf.newaxis]
        return tf.concat(
            (statistics(target, output, mask, num_classes), has_valid), axis=-1
        )

    return rows


def _bounds(metric: keras.metrics.Metric) -> tuple[float, float]:
    """The smallest and largest values of Keras's own metrics; others are unbounded."""
    if type(metric).__module__.split(".")[0] == "keras":
        for bounds, names in _BOUNDS.items():
            if type(metric).__name__ in names.split():
                return bounds
    return _UNBOUNDED


def _build(metric: keras.metrics.Metric, target: tf.Tensor, output: tf.Tensor) -> bool:
    """Makes a metric create the variables that it creates in its first update."""
    with tf.init_scope():
        example = tf.zeros((1, output.shape[-1]))
        has_channels = target.shape.rank == output.shape.rank
        metric.update_state(example if has_channels else tf.zeros((1,)), example)
        metric.reset_state()
    return True


def _better(metric: Any, name: str, default: str | None = None) -> str:
    """Which values are better, "higher" or "lower": the metric's, or the default."""
    direction = getattr(metric, "better", default)
    if direction in ("higher", "lower"):
        return direction
    raise InputError(
        f"The metric {name} must say whether higher or lower values are better, or "
        "nobody knows which attack does harm: set its attribute better to 'higher' or "
        f"'lower'; got {direction!r}."
    )


def as_metric(
    metric: Metric | keras.metrics.Metric | Callable,
    probabilities: Callable | None = None,
) -> Metric:
    """Returns a user's own metric as a `Metric`.

    Args:
      metric: A `Metric`; a Keras metric; or a function `(target, output, mask)` ->
        `[batch]`, whose name becomes the metric's. Its attribute `better`, "higher" or
        "lower", says which values are better; Keras's own metrics do not need it.
      probabilities: Turns outputs that are logits into probabilities; see `of_keras`.
        Functions get logits.

    Raises:
      InputError: It is none of these, or does not say which values are better.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, keras.metrics.Metric):
        return of_keras(metric, probabilities)
    if losses.takes_mask(metric):
        name = getattr(metric, "__name__", type(metric).__name__)
        return of_function(name, metric, _better(metric, name))
    raise InputError(
        "A metric must be a function (target, output, mask) -> [batch] or a Keras "
        f"metric, such as keras.metrics.MeanAbsoluteError(); got {metric!r}."
    )


def as_metrics(
    metrics: Sequence, probabilities: Callable | None = None
) -> list[Metric]:
    """Returns a task's metrics; see `as_metric`.

    Keras names a metric without a name after its class, with a number that counts those
    made in the process: `auc_1`. Here it is `auc` in every process, and several of one
    class are `auc`, `auc-2`, `auc-3`, in their order. A user's names may look like
    Keras's. So names stay as they are if their numbers do not rise by one, as Keras's
    do, or if a new name is that of another metric.
    """
    results = [as_metric(metric, probabilities) for metric in metrics]
    numbers: dict[str, dict[int, int]] = {}  # Of each name, by place.
    for place, metric in enumerate(metrics):
        if isinstance(metric, keras.metrics.Metric):
            name, number = _kerass_name(metric)
            if name:
                numbers.setdefault(name, {})[place] = number
    for name, by_place in numbers.items():
        first, *_ = suffixes = list(by_place.values())
        steps = {b - a for a, b in itertools.pairwise(suffixes)}
        new_names = [name, *(f"{name}-{i}" for i in range(2, len(suffixes) + 1))]
        other_names = {
            metric.name for i, metric in enumerate(results) if i not in by_place
        }
        if (
            first >= 0
            and steps in (set(), {0}, {1})
            and other_names.isdisjoint(new_names)
        ):
            for place, new_name in zip(by_place, new_names, strict=True):
                results[place] = dataclasses.replace(results[place], name=new_name)
    return results


def _kerass_name(metric: keras.metrics.Metric) -> tuple[str, int]:
    """The name that Keras gives to a metric's class, and the number after it.

    The number is 0 if there is none, and -1 if it cannot be Keras's; the name is empty
    if the metric has a different one.
    """
    parameter = inspect.signature(type(metric).__init__).parameters.get("name")
    if parameter and isinstance(parameter.default, str):  # It never has a number.
        return (metric.name if metric.name == parameter.default else ""), 0
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", type(metric).__name__)
    name = re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
    match = re.fullmatch(rf"{name}(?:_(\d+))?", metric.name)
    if not match:
        return "", 0
    digits = match[1] or ""
    return name, -1 if digits.startswith("0") else int(digits or 0)


# What an attack does to a metric.


def relative_vulnerability(
    metric: Metric, clean: np.ndarray | float, attacked: np.ndarray | float
) -> np.ndarray:
    """Returns how much worse the attacked value is, as a share of the clean one.

    (attacked - clean) / clean where lower is better, as in Ghamizi et al. (AAAI 2022,
    arXiv 2110.15053); (clean - attacked) / clean where higher is better. NaN where
    `clean` is not above 0. The arguments are values of the metric, both of the same
    shape.
    """
    clean = np.asarray(clean, np.float64)
    change = np.asarray(attacked, np.float64) - clean
    positive = np.where(clean > 0, clean, 0.0)
    return divide(change if metric.better == "lower" else -change, positive)
