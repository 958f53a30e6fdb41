# SPDX-License-Identifier: Apache-2.0
"""Bootstrap intervals over images, or over other units (see `resampling`)."""

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
    are moved apart, the more the fewer units there are (`resampling.widened`), within
    the metric's bounds. Where a share is 0 or 1 for all images, the interval is that of
    Clopper and Pearson. Resamples whose value is NaN are left out.

    Args:
      metric: The metric.
      rows: Its statistics, `[images, K]`, without the rows of batch padding.
      units: What is drawn; None: single images.
      confidence: Share of the distribution inside the interval, in (0, 1).
      resamples: How many times the units are drawn.
      seed: Equal seeds give equal intervals.

    Returns:
      (low, high); (nan, nan) where the metric has no value, or fewer than
      `resampling.LEAST` units have a statistic other than 0.

    Raises:
      InputError: A confidence outside (0, 1) or less than one resample.
    """
    units = units or resampling.independent(len(rows))
    counts = resampling.draw(units.count, resamples, seed)
    unit_sums = summed(metric, rows, units)
    ends = _ends(resampled(metric, unit_sums, units, counts), confidence)
    unit_count = len(np.unique(units.of[(np.asarray(rows) != 0).any(axis=1)]))
    if unit_count < resampling.LEAST:
        return math.nan, math.nan
    centre = metric.over(unit_sums)
    low, high = resampling.widened(ends, centre, unit_count, confidence)
    lower, upper = metric.bounds
    low, high = float(np.maximum(low, lower)), float(np.minimum(high, upper))
    is_share = metric.is_mean and np.max(np.asarray(rows)[:, 1], initial=0) <= 1
    if is_share and low == high and (lower, upper) == (0, 1):
        return _clopper_pearson(centre, unit_count, confidence)
    return low, high


def _clopper_pearson(
    value: float, count: int, confidence: float
) -> tuple[float, float]:
    """The interval of a share if all of `count` values are 0, or all are 1.

    No resample shows another value, although others may exist (Clopper and Pearson,
    "The use of confidence or fiducial limits", 1934).
    """
    margin = 1 - ((1 - confidence) / 2) ** (1 / count)
    if value == 1:
        return 1 - margin, 1.0
    return (0.0, margin) if value == 0 else (value, value)


def summed(metric: Metric, rows: np.ndarray, units: resampling.Units) -> np.ndarray:
    """The sums of a metric's rows, `[images, K]`, by unit, for `resampled`.

    If no sum gives the metric, the rows themselves.
    """
    return np.asarray(rows, np.float64) if metric.of_rows else units.sums(rows)


def resampled(
    metric: Metric, unit_sums: np.ndarray, units: resampling.Units, counts: np.ndarray
) -> np.ndarray:
    """Returns the metric of each resample, `[resamples]`.

    Args:
      metric: The metric.
      unit_sums: As `summed` returns it.
      units: What is drawn.
      counts: How often each unit is drawn, `[resamples, units]`.
    """
    if metric.of_rows:
        return metric.of_rows(unit_sums, counts[:, units.of])
    return metric.value(counts @ unit_sums)


def resampled_means(
    values: np.ndarray,
    units: resampling.Units | None = None,
    *,
    resamples: int = 1000,
    seed: int,
) -> np.ndarray:
    """Returns means over resampled images, float64 `[resamples, ...]`.

    Args:
      values: `[images, ...]`; NaN where an image has no value, and is left out.
      units: What is drawn; None: single images.
      resamples: How many times units are drawn, with replacement.
      seed: Equal seeds draw equal units.
    """
    values = np.asarray(values, np.float64)
    units = units or resampling.independent(len(values))
    counts = resampling.draw(units.count, resamples, seed)
    flat = values.reshape(len(values), -1)
    valid = ~np.isnan(flat)
    total = counts @ units.sums(np.where(valid, flat, 0.0))
    count = counts @ units.sums(valid)
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
      bounds: The smallest and largest possible values, except for rounding.
    """
    ends = percentiles(draws, confidence)
    too_few = np.asarray(count) < resampling.LEAST
    wide_ends = resampling.widened(ends, centre, count, confidence)
    lower, upper = np.minimum(centre, bounds[0]), np.maximum(centre, bounds[1])
    return np.where(too_few, np.nan, np.clip(wide_ends, lower, upper))


def _ends(values: np.ndarray, confidence: float) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be above 0 and below 1; got {confidence}.")
    values = values[~np.isnan(values)]
    if not values.size:
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)
