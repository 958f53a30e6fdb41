# SPDX-License-Identifier: Apache-2.0
"""The mean over labels of the average precision (mAP).

    AP = sum_n (R_n - R_(n-1)) P_n

over all thresholds n, which are the scores that occur, from the highest down (the area
under the curve of precision over recall, without interpolation). Equal scores are one
threshold. Labels that no valid place has are left out.

The order of scores between images does not follow from one image alone, so no sum of
rows gives the value. For one value per image, the rows are the scores themselves, and
the result is exact. For labels with places these would be too many: scores are counted
in `BINS` bins, and those in one bin count as equal.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from mtr_tf.tasks import losses
from mtr_tf.tasks.metrics import Metric
from mtr_tf.tasks.metrics import count_labels
from mtr_tf.tasks.metrics import divide

BINS = 512  # 64 for one unit of a logit near 0, about 3 near 16, and 1 near 28.
_HALF = 4.0  # Logits between this and its negative have half of the bins.
_BOUNDS = (0.0, 1.0)


def mean_ap() -> Metric:
    """The mAP of one value per image: exact."""
    name = "mean_ap"
    return Metric(
        name, "higher", "", _scores, _raise_no_sum, _BOUNDS, of_rows=_ap_of_scores
    )


def pixel_mean_ap() -> Metric:
    """The mAP of labels with places, which all count equally: from scores in bins."""
    return Metric("pixel_mean_ap", "higher", "", _bins, _ap_of_bins, _BOUNDS)


def of_counts(positives: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """The AP from counts at each threshold, from the highest score down.

    Args:
      positives: How many have the label, `[..., thresholds]`.
      totals: How many there are, `[..., thresholds]`.

    Returns:
      `[...]`; NaN where none has the label.
    """
    precision = divide(np.cumsum(positives, -1), np.cumsum(totals, -1))
    area = np.where(positives != 0, precision * positives, 0.0).sum(axis=-1)
    return divide(area, positives.sum(axis=-1))


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis, without NaN; NaN where nothing is left."""
    valid = ~np.isnan(values)
    return divide(np.where(valid, values, 0.0).sum(-1), valid.sum(-1))


def _labels_and_scores(
    target: tf.Tensor, output: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Which labels the target has, and the scores, with those not finite as wrong."""
    has_label = tf.cast(target, tf.float32) > 0.5
    output = tf.cast(output, tf.float32)
    worst_scores = tf.where(has_label, output.dtype.min, output.dtype.max)
    return has_label, tf.where(tf.math.is_finite(output), output, worst_scores)


# One value per image.


def _scores(target, output, mask, num_classes) -> tf.Tensor:
    """1 or -1 for each label that is present or not, then the scores; 0 if masked."""
    del num_classes
    has_label, scores = _labels_and_scores(target, output)
    rows = tf.concat((tf.where(has_label, 1.0, -1.0), scores), axis=-1)
    return tf.cast(losses.where_valid(mask, rows), tf.float64)


def _ap_of_scores(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    values = []
    for sign, score in zip(*np.split(np.asarray(rows).T, 2), strict=True):
        order = np.argsort(-score, kind="stable")
        order = order[sign[order] != 0]
        if not len(order):
            continue
        starts = np.flatnonzero(np.diff(score[order], prepend=np.inf))
        ordered_weights = weights[:, order]
        totals = np.add.reduceat(ordered_weights, starts, axis=1)
        positives = np.add.reduceat(ordered_weights * (sign[order] > 0), starts, axis=1)
        values.append(of_counts(positives, totals))
    return _mean(np.stack(values, -1)) if values else np.full(len(weights), np.nan)


def _raise_no_sum(sums: np.ndarray) -> np.ndarray:
    raise ValueError("mean_ap is no function of sums of rows")


# Labels with places.


def _bins(target, output, mask, num_classes) -> tf.Tensor:
    """By label and bin, the number of places with the label; then of all places."""
    del num_classes
    has_label, scores = _labels_and_scores(target, output)
    labels = output.shape[-1]
    bins = tf.cast((1 + scores / (_HALF + tf.abs(scores))) / 2 * BINS, tf.int32)
    bins = BINS - 1 - tf.minimum(bins, BINS - 1)  # The highest comes first.
    bins += tf.range(labels) * BINS
    valid = tf.broadcast_to(tf.cast(mask, tf.bool)[..., tf.newaxis], tf.shape(bins))
    counts = [count_labels(bins, c, labels * BINS) for c in (valid & has_label, valid)]
    return tf.cast(tf.concat(counts, axis=-1), tf.int64)


def _ap_of_bins(sums: np.ndarray) -> np.ndarray:
    sums = np.asarray(sums, np.float64)
    positives, totals = np.split(sums, 2, axis=-1)
    shape = (*sums.shape[:-1], -1, BINS)
    return _mean(of_counts(positives.reshape(shape), totals.reshape(shape)))
