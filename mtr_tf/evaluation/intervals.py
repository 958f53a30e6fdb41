# SPDX-License-Identifier: Apache-2.0
"""Bootstrap intervals over images, or over what `resampling` draws in their place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from mtr_tf.errors import InputError
from mtr_tf.evaluation import resampling

if TYPE_CHECKING:
    from mtr_tf.tasks.metrics import Metric


def of_metric(
    metric: Metric,
    rows: np.ndarray,
    units: resampling.Units | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int,
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a metric over images.

    Units of images are drawn with replacement, as many as there are (Efron and
    Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3), and the ends
    moved apart as few of them ask for (`resampling.widened`), within the metric's
    bounds. Shares of images that are all 0 or 1 have Clopper and Pearson's.
    Resamples whose value is NaN are left out.

    Args:
      metric: Whose statistics `rows` are.
      rows: `[images, K]`, without the rows of batch padding.
      units: What is drawn; None: each image by itself.
      confidence: Share of the distribution inside the interval, in (0, 1).
      resamples: How many times the units are drawn.
      seed: Equal seeds give equal intervals.

    Returns:
      (low, high); (nan, nan) where the metric has no value, or fewer than
      `resampling.LEAST` units have anything that it counts.

    Raises:
      InputError: A confidence outside (0, 1) or less than one resample.
    """
    units = units or resampling.independent(len(rows))
    counts = resampling.draw(units.count, resamples, seed)
    of_units = summed(metric, rows, units)
    ends = _ends(resampled(metric, of_units, units, counts), confidence)
    drawn = len(np.unique(units.of[(np.asarray(rows) != 0).any(axis=1)]))
    if drawn < resampling.LEAST:
        return math.nan, math.nan
    centre = metric.over(of_units)
    low, high = resampling.widened(ends, centre, drawn, confidence)
    least, most = metric.bounds
    low, high = float(np.maximum(low, least)), float(np.minimum(high, most))
    of_images = metric.is_mean and np.max(np.asarray(rows)[:, 1], initial=0) <= 1
    if of_images and low == high and (least, most) == (0, 1):
        return _of_equals(centre, drawn, metric.bounds, confidence)
    return low, high


def _of_equals(
    value: float, count: int, bounds: tuple[float, float], confidence: float
) -> tuple[float, float]:
    """The interval of a mean where all of `count` values are at the same bound.

    No resample shows another value; what is not seen may still be there (Clopper and
    Pearson, "The use of confidence or fiducial limits", 1934).
    """
    least, most = bounds
    unseen = (most - least) * (1 - ((1 - confidence) / 2) ** (1 / count))
    if value == most:
        return most - unseen, most
    return (least, least + unseen) if value == least else (value, value)


def summed(metric: Metric, rows: np.ndarray, units: resampling.Units) -> np.ndarray:
    """What `resampled` takes of a metric's rows, `[images, K]`: their sums by unit.

    The rows themselves where no sum of them gives the metric.
    """
    return np.asarray(rows, np.float64) if metric.of_rows else units.sums(rows)


def resampled(
    metric: Metric, of_units: np.ndarray, units: resampling.Units, counts: np.ndarray
) -> np.ndarray:
    """Returns a metric with each unit drawn so often, `[resamples, units]`.

    `of_units` is what `summed` returns.
    """
    if metric.of_rows:
        return metric.of_rows(of_units, counts[:, units.of])
    return metric.value(counts @ of_units)


def resampled_means(
    values: np.ndarray,
    units: resampling.Units | None = None,
    *,
    resamples: int = 1000,
    seed: int,
) -> np.ndarray:
    """Returns means over resampled images, float64 `[resamples, ...]`.

    Args:
      values: `[images, ...]`; NaN where an image has no value, which leaves it out.
      units: What is drawn; None: each image by itself.
      resamples: How many times, with replacement.
      seed: Equal seeds draw equal images.
    """
    values = np.asarray(values, np.float64)
    units = units or resampling.independent(len(values))
    counts = resampling.draw(units.count, resamples, seed)
    flat = values.reshape(len(values), -1)
    known = ~np.isnan(flat)
    total = counts @ units.sums(np.where(known, flat, 0.0))
    count = counts @ units.sums(known)
    means = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return means.reshape(resamples, *values.shape[1:])


def percentiles(draws: np.ndarray, confidence: float = 0.95) -> np.ndarray:
    """Returns (low, high) of draws over their first axis, `[2, ...]`; NaN if none."""
    draws = np.asarray(draws, np.float64)
    columns = draws.reshape(len(draws), -1).T
    ends = [_ends(column, confidence) for column in columns]
    return np.reshape(np.transpose(ends), (2, *draws.shape[1:]))


def of_draws(
    draws: np.ndarray,
    centre: np.ndarray,
    count: np.ndarray | int,
    confidence: float = 0.95,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> np.ndarray:
    """Returns (low, high) of draws over their first axis, `[2, ...]`.

    Args:
      draws: `[resamples, ...]`, of `count` units each.
      centre: `[...]`, the values that are resampled.
      count: How many units were drawn, a number or `[...]`; fewer than
        `resampling.LEAST` give NaN.
      confidence: Share of the distribution inside the interval, in (0, 1).
      bounds: The smallest and largest possible values, but for rounding.
    """
    ends = percentiles(draws, confidence)
    few = np.asarray(count) < resampling.LEAST
    wide = resampling.widened(ends, centre, count, confidence)
    least, most = np.minimum(centre, bounds[0]), np.maximum(centre, bounds[1])
    return np.where(few, np.nan, np.clip(wide, least, most))


def _ends(values: np.ndarray, confidence: float) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be above 0 and below 1; got {confidence}.")
    values = values[~np.isnan(values)]
    if not values.size:
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)
