# SPDX-License-Identifier: Apache-2.0
"""Metrics as additive per-image statistics and a function of their sum.

`Metric.statistics` gives a row of K numbers per image; `Metric.value` turns the sum of
rows into the metric. So a streaming metric is a running sum, the metric over replicas
is the gathered rows, and the bootstrap resamples rows: all exact, nothing estimated
twice. A fully masked image (the padding of the last batch) gives a row of zeros.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from mtr_tf import losses
from mtr_tf.errors import InputError


@dataclasses.dataclass(frozen=True)
class Metric:
    """A measure of one task's outputs.

    Attributes:
      name: What tables and TensorBoard call it.
      better: "higher" or "lower".
      unit: Of the value; "" for a plain number.
      statistics: `(target, output, mask, num_classes)` -> float32 `[batch, K]`, with
        batches as the losses take them. `num_classes` matters to classes alone. Counts
        are exact up to 2**24 pixels per image.
      value: Sums of rows, `[..., K]` -> float64 `[...]`; NaN where nothing was counted.
    """

    name: str
    better: str
    unit: str
    statistics: Callable[[tf.Tensor, tf.Tensor, tf.Tensor, int | None], tf.Tensor]
    value: Callable[[np.ndarray], np.ndarray]

    @property
    def is_mean(self) -> bool:
        """Whether rows are (sum, count) and the value is their ratio, a mean."""
        return self.value is _ratio


# Classes.


def miou() -> Metric:
    """Mean, over classes in target or prediction, of intersection over union."""
    return Metric("miou", "higher", "", confusion_matrix, _mean_iou)


def pixel_accuracy() -> Metric:
    """The share of valid pixels whose largest logit is the target's class."""
    return Metric("pixel_accuracy", "higher", "", _correct_and_count, _ratio)


def confusion_matrix(
    target: tf.Tensor, output: tf.Tensor, mask: tf.Tensor, num_classes: int
) -> tf.Tensor:
    """Counts pixels by (target, prediction): float32 `[batch, num_classes**2]`.

    Entry `target * num_classes + prediction`, the prediction being the largest logit
    (the first among equals). Logits that are not finite count as a wrong class: a
    broken model is not right about class 0.
    """
    cells = num_classes**2
    batch = tf.shape(mask)[0]
    prediction = _prediction(target, output) % num_classes
    cell = tf.cast(target, tf.int32) * num_classes + prediction
    first_of_image = tf.range(batch)[:, tf.newaxis, tf.newaxis] * cells
    dropped = -tf.ones_like(cell)  # What unsorted_segment_sum leaves out.
    segment = tf.where(tf.cast(mask, tf.bool), first_of_image + cell, dropped)
    ones = tf.ones_like(segment, tf.float32)
    counts = tf.math.unsorted_segment_sum(ones, segment, batch * cells)
    return tf.reshape(counts, (batch, cells))


def _prediction(target: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
    """The class of the largest logit; target + 1 where a logit is NaN or infinite."""
    sound = tf.reduce_all(tf.math.is_finite(tf.cast(output, tf.float32)), axis=-1)
    largest = tf.argmax(output, axis=-1, output_type=tf.int32)
    return tf.where(sound, largest, tf.cast(target, tf.int32) + 1)


def _mean_iou(sums: np.ndarray) -> np.ndarray:
    sums = np.asarray(sums, np.float64)
    classes = math.isqrt(sums.shape[-1])
    matrix = sums.reshape(*sums.shape[:-1], classes, classes)
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    union = matrix.sum(axis=-1) + matrix.sum(axis=-2) - hits
    occurs = union != 0  # Not `> 0`: NaN must not vanish.
    total = np.where(occurs, hits / np.where(occurs, union, 1.0), 0.0).sum(axis=-1)
    return _divide(total, occurs.sum(axis=-1))


def _correct_and_count(target, output, mask, num_classes) -> tf.Tensor:
    del num_classes
    correct = tf.equal(_prediction(target, output), tf.cast(target, tf.int32))
    return _sum_and_count(tf.cast(correct, tf.float32), mask)


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

    return Metric("rel", "lower", "", statistics, _ratio)


def angular_error() -> Metric:
    """Mean angle between output and target vectors; 90 for an output of length 0.

    The angle is atan2(|a x b|, a . b), which unlike acos is accurate near 0 and 180
    degrees and asks neither vector to have length 1.
    """

    def statistics(target, output, mask, num_classes):
        del num_classes
        return _sum_and_count(_angle(target, output, mask), mask)

    return Metric("angular_error", "lower", "degrees", statistics, _ratio)


def mean_loss(loss: Callable[..., tf.Tensor]) -> Metric:
    """The mean of a loss over the images that have a valid pixel."""

    def statistics(target, output, mask, num_classes):
        del num_classes
        counted = tf.cast(losses.count_valid(mask) > 0, tf.float32)
        return tf.stack((loss(target, output, mask), counted), axis=-1)

    return Metric("loss", "lower", "", statistics, _ratio)


def _angle(target: tf.Tensor, output: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Returns degrees `[batch, H, W]` between vectors of any length."""
    target = losses.where_valid(mask, tf.cast(target, tf.float32))
    output = losses.where_valid(mask, tf.cast(output, tf.float32))
    largest = tf.reduce_max(tf.abs(output), axis=-1, keepdims=True)
    output = tf.math.divide_no_nan(output, largest)  # Else tiny squares come to 0.
    across = tf.norm(tf.linalg.cross(output, target), axis=-1)
    radians = tf.atan2(across, tf.reduce_sum(output * target, axis=-1))
    degrees = radians * (180.0 / math.pi)
    return tf.where(largest[..., 0] == 0, 90.0, degrees)


def _squares(target, output, mask, num_classes) -> tf.Tensor:
    del num_classes
    return _sum_and_count(tf.square(losses.difference(target, output, mask)), mask)


def _sum_and_count(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Returns (sum over valid pixels of the mean over channels, number of them)."""
    if values.shape.rank == 4:
        values = tf.reduce_mean(values, axis=-1)
    total = tf.reduce_sum(losses.where_valid(mask, values), axis=(1, 2))
    return tf.stack((total, losses.count_valid(mask)), axis=-1)


def _ratio(sums: np.ndarray) -> np.ndarray:
    sums = np.asarray(sums, np.float64)
    return _divide(sums[..., 0], sums[..., 1])


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Returns numerator / denominator in float64, NaN where the denominator is 0."""
    nonzero = np.asarray(denominator) != 0
    return np.where(nonzero, numerator / np.where(nonzero, denominator, 1.0), np.nan)


# What an attack does to a metric, and how sure that is.


def relative_vulnerability(
    metric: Metric, clean: np.ndarray, attacked: np.ndarray
) -> np.ndarray:
    """Returns how much worse the attacked value is, as a share of the clean one.

    (attacked - clean) / clean where lower is better, as in Ghamizi et al. (AAAI 2022,
    arXiv 2110.15053); (clean - attacked) / clean where higher is better. NaN where
    `clean` is 0. The arguments are values of the metric, of any one shape.
    """
    clean = np.asarray(clean, np.float64)
    worse = np.asarray(attacked, np.float64) - clean
    return _divide(worse if metric.better == "lower" else -worse, clean)


def bootstrap_interval(
    metric: Metric,
    rows: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int,
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a metric over images.

    Images are drawn with replacement, as many as there are (Efron and Tibshirani, "An
    Introduction to the Bootstrap", 1993, section 13.3). Resamples whose value is NaN
    are left out.

    Args:
      metric: Whose statistics `rows` are.
      rows: `[images, K]`, without the rows of batch padding.
      confidence: Share of the distribution inside the interval, in (0, 1).
      resamples: How many times the images are drawn.
      seed: Equal seeds give equal intervals.

    Returns:
      (low, high); (nan, nan) where there is no image or no value.

    Raises:
      InputError: A confidence outside (0, 1) or less than one resample.
    """
    rows = np.asarray(rows, np.float64)
    counts = _resample_counts(len(rows), resamples, seed)
    return _interval(metric.value(counts @ rows), confidence)


def bootstrap_change_interval(
    metric: Metric,
    clean_rows: np.ndarray,
    attacked_rows: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int,
) -> tuple[float, float]:
    """Returns the paired bootstrap interval of attacked value minus clean value.

    Row i of both arrays is of the same image, and each resample draws the same images
    for both. Otherwise as `bootstrap_interval`.
    """
    clean_rows = np.asarray(clean_rows, np.float64)
    attacked_rows = np.asarray(attacked_rows, np.float64)
    if clean_rows.shape != attacked_rows.shape:
        raise InputError(
            "Clean and attacked rows must be of the same images and metric, got shapes "
            f"{clean_rows.shape} and {attacked_rows.shape}."
        )
    counts = _resample_counts(len(clean_rows), resamples, seed)
    attacked, clean = (metric.value(counts @ r) for r in (attacked_rows, clean_rows))
    return _interval(attacked - clean, confidence)


def bootstrap_means(
    values: np.ndarray, *, resamples: int = 1000, seed: int
) -> np.ndarray:
    """Returns means over resampled images, float64 `[resamples, ...]`.

    Args:
      values: `[images, ...]`; NaN where an image has no value, which leaves it out.
      resamples: How many times the images are drawn, with replacement.
      seed: Equal seeds draw equal images.
    """
    values = np.asarray(values, np.float64)
    counts = _resample_counts(len(values), resamples, seed)
    known = ~np.isnan(values)
    flat = (len(values), -1)
    total = counts @ np.where(known, values, 0.0).reshape(flat)
    count = counts @ known.reshape(flat).astype(np.float64)
    return _divide(total, count).reshape(resamples, *values.shape[1:])


def percentile_interval(draws: np.ndarray, confidence: float = 0.95) -> np.ndarray:
    """Returns (low, high) of draws over their first axis, `[2, ...]`; NaN if none."""
    draws = np.asarray(draws, np.float64)
    columns = draws.reshape(len(draws), -1).T
    ends = [_interval(column, confidence) for column in columns]
    return np.reshape(np.transpose(ends), (2, *draws.shape[1:]))


def _resample_counts(images: int, resamples: int, seed: int) -> np.ndarray:
    """Returns how often each image is drawn, float64 `[resamples, images]`."""
    if resamples < 1:
        raise InputError(f"resamples must be at least 1, got {resamples}.")
    if images == 0:
        return np.zeros((resamples, 0))
    drawn = np.random.default_rng(seed).integers(images, size=(resamples, images))
    drawn += images * np.arange(resamples)[:, np.newaxis]
    counts = np.bincount(drawn.ravel(), minlength=resamples * images)
    return counts.reshape(resamples, images).astype(np.float64)


def _interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie in (0, 1), got {confidence}.")
    values = values[~np.isnan(values)]
    if not values.size:
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)
