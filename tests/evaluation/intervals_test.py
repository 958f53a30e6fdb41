# SPDX-License-Identifier: Apache-2.0
"""Intervals against plain loops and Student's t; how often they hold the truth."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import scipy.signal
import scipy.stats

from mtr_tf.data.source import Groups
from mtr_tf.errors import InputError
from mtr_tf.evaluation import intervals
from mtr_tf.evaluation import resampling
from mtr_tf.tasks import metrics

MEAN = metrics.Metric("mean", "lower", "", None, metrics.mae().value, (-9e9, 9e9))


def rows_of(values):
    return np.stack((values, np.ones(len(values))), axis=-1)


def plain_bootstrap(metric, rows, units, confidence, resamples, seed):
    """The same draws, with rows picked and summed one resample at a time."""
    count = units.max() + 1
    draws = np.random.default_rng(seed).integers(count, size=(resamples, count))
    values = []
    for numbers in draws:
        indices = np.concatenate([np.flatnonzero(units == n) for n in numbers])
        values.append(float(metric.value(rows[indices].sum(0))))
    values = sorted(v for v in values if not math.isnan(v))
    centre = float(metric.value(rows.sum(0)))
    widening = scipy.stats.t.ppf((1 + confidence) / 2, count - 1)
    widening /= scipy.stats.norm.ppf((1 + confidence) / 2)
    widening *= math.sqrt(count / (count - 1))
    interval = []
    for share in ((1 - confidence) / 2, (1 + confidence) / 2):
        position = share * (len(values) - 1)
        low, fraction = math.floor(position), position - math.floor(position)
        high = values[min(low + 1, len(values) - 1)]
        end = values[low] * (1 - fraction) + high * fraction
        interval.append(centre + widening * (end - centre))
    return interval


@pytest.mark.parametrize("confidence", [0.95, 0.5])
@pytest.mark.parametrize("grouped", [False, True])
def test_bootstrap_against_a_plain_loop(confidence, grouped):
    rng = np.random.default_rng(3)
    hits = rng.integers(1, 9, (40, 3))
    counts = np.concatenate([hits, hits + rng.integers(0, 9, (40, 3))] * 2, 1)[:, :9]
    for metric, rows in (
        (metrics.miou(), counts),
        (metrics.rmse(), rng.random((25, 2)) + 0.5),
    ):
        units = np.arange(len(rows))
        if grouped:
            units = rng.permutation(units % 7)
        interval = intervals.of_metric(
            metric,
            rows,
            resampling.Units(units, ""),
            confidence=confidence,
            resamples=200,
            seed=7,
        )
        expected = plain_bootstrap(metric, rows, units, confidence, 200, 7)
        np.testing.assert_allclose(interval, expected, rtol=1e-5)


def test_edge_cases():
    error = metrics.mae()
    for rows in (np.zeros((0, 2)), np.zeros((3, 2)), [[3.0, 2]], [[3.0, 2], [1, 2]]):
        assert np.isnan(intervals.of_metric(error, np.array(rows), seed=0)).all()
    small_rows = np.array([[3.0, 2], [1, 2], [2, 2], [0, 0]])  # The last is empty.
    assert np.isfinite(intervals.of_metric(error, small_rows, seed=0)).all()
    assert np.isnan(intervals.of_metric(error, small_rows[1:], seed=0)).all()
    two_units = resampling.Units(np.array([0, 1, 1, 0]), "2 cities")
    assert np.isnan(intervals.of_metric(error, small_rows, two_units, seed=0)).all()
    nan_rows = np.array([[3.0, 2], [np.nan, 2], [2, 2], [1, 2]])
    assert np.isnan(intervals.of_metric(error, nan_rows, seed=0)).all()
    with pytest.raises(InputError, match="confidence must be above 0"):
        intervals.of_metric(error, small_rows, confidence=1.0, seed=0)
    with pytest.raises(InputError, match="at least 1; got 0"):
        intervals.of_metric(error, small_rows, resamples=0, seed=0)


def test_intervals_end_where_values_do():
    rows = np.array([[9, 10], [10, 10], [2, 10]])
    low, high = intervals.of_metric(metrics.pixel_accuracy(), rows, seed=0)
    assert (low, high) == (0, 1)
    low, _ = intervals.of_metric(metrics.mae(), rows_of([0.1, 5, 0.3]), seed=0)
    assert low == 0


# What is drawn.


@pytest.mark.parametrize("count", [8, 64])
def test_images_that_are_all_right_leave_room_for_others(count):
    """The ends are those of SciPy's exact interval of a proportion."""
    for right in (0, count):
        rows = rows_of(np.full(count, right / count))
        ends = intervals.of_metric(metrics.accuracy(), rows, seed=0)
        expected = scipy.stats.binomtest(right, count).proportion_ci(0.95, "exact")
        np.testing.assert_allclose(ends, expected, atol=1e-12)


def test_pixels_that_are_all_right_have_the_interval_that_they_had():
    rows = np.stack((np.full(8, 1e4), np.full(8, 1e4)), axis=-1)
    assert intervals.of_metric(metrics.accuracy(), rows, seed=0) == (1, 1)


def test_units_of_groups():
    assert resampling.units(None, 5).over == "images"
    assert resampling.units(None, 5).count == 5
    groups = Groups(["b", "a", "b", "c", "d"], "cities")
    units = resampling.units(groups, 4)
    np.testing.assert_array_equal(units.of, [1, 0, 1, 2])
    assert units.over == "3 cities"
    np.testing.assert_array_equal(units.sums([[1], [2], [4], [8]]), [[2], [5], [8]])
    assert units.count_known(np.array([1, np.nan, 2, 3])) == 2
    columns = np.array([[1, 1], [np.nan, 1], [np.nan, 1], [np.nan, np.nan]])
    np.testing.assert_array_equal(units.count_known(columns), [1, 2])


def test_each_column_is_widened_by_its_own_number_of_units():
    draws = np.random.default_rng(0).normal(size=(200, 3))
    ends = intervals.of_draws(draws, np.zeros(3), np.array([100, 3, 2]))
    for column, count in enumerate((100, 3)):
        column_ends = intervals.of_draws(draws[:, column], np.float64(0), count)
        np.testing.assert_allclose(ends[:, column], column_ends)
    assert np.isnan(ends[:, 2]).all()  # As for two images.


def test_intervals_of_draws_end_where_values_do():
    draws = np.random.default_rng(0).uniform(0, 1, size=(200, 2))
    draws[:, 1], centre = 1 + 1e-7, np.array([0.5, 1 + 1e-7])  # As by rounding.
    low, high = intervals.of_draws(draws, centre, 3)[:, 0]
    assert low < 0
    assert high > 1
    ends = intervals.of_draws(draws, centre, 3, bounds=(0.0, 1.0))
    np.testing.assert_array_equal(ends, [[0, 1 + 1e-7], [1, 1 + 1e-7]])


@pytest.mark.parametrize(
    ("lengths", "blocks", "over"),
    [
        ((101,), [21, 20, 20, 20, 20], "5 blocks of about 20 frames"),
        ((39,), [39], "1 block of about 39 frames"),
        ((50, 5, 41), [25, 25, 5, 21, 20], "5 blocks of about 19 frames"),
        ((400,), [50] * 8, "8 blocks of about 50 frames"),
        ((), [], "0 blocks of about 0 frames"),
    ],
)
def test_blocks_of_frames(lengths, blocks, over):
    videos = np.repeat([f"video {9 - i}" for i in range(len(lengths))], lengths)
    units = resampling.units(Groups(videos, frames=True), len(videos))
    np.testing.assert_array_equal(np.bincount(units.of), blocks)
    assert (np.diff(units.of) >= 0).all()
    assert units.over == over


def test_frames_of_videos_may_alternate():
    sorted_videos = Groups(np.repeat(["right", "left"], 64), frames=True)
    mixed_videos = Groups(["right", "left"] * 64, frames=True)
    sorted_videos, mixed_videos = (
        resampling.units(groups, 128) for groups in (sorted_videos, mixed_videos)
    )
    np.testing.assert_array_equal(mixed_videos.of[0::2], sorted_videos.of[:64])
    np.testing.assert_array_equal(mixed_videos.of[1::2], sorted_videos.of[64:])
    assert mixed_videos.over == sorted_videos.over == "6 blocks of about 21 frames"


def test_what_is_said():
    assert resampling.note("images", 96, True) == "intervals: 95 %, over 96 images"
    assert resampling.note("3 cities", 96, True) == "intervals: 95 %, over 3 cities"
    note = resampling.note("images", 2, False)
    assert note == (
        "no intervals: they need 3 or more to draw from, but there are 2 images"
    )


# How often intervals hold the truth.


def coverage(draw_images, groups=None, trials=400):
    """The share of trials in which the 95 % interval holds 0, the mean."""
    hits = 0
    for seed in range(trials):
        values = draw_images(np.random.default_rng(seed))
        units = resampling.units(groups, len(values))
        low, high = intervals.of_metric(
            MEAN, rows_of(values), units, resamples=400, seed=seed
        )
        hits += low <= 0 <= high
    return hits / trials


def series(count, correlation=0.85):
    """AR(1) of variance 1, as CamVid's neighbouring frames are."""

    def draw_images(rng):
        values = rng.normal(size=count)
        values[1:] *= math.sqrt(1 - correlation**2)
        return scipy.signal.lfilter([1], [1, -correlation], values)

    return draw_images


def in_groups(groups, images):
    """Sums of a number for each group and one for each image, of equal variance."""

    def draw_images(rng):
        return (
            rng.normal(size=(groups, 1)) + rng.normal(size=(groups, images))
        ).ravel()

    return draw_images


def video(frames):
    return Groups(["one"] * frames, frames=True)


def test_coverage():
    """Each kind of units; the binomial deviation of 400 trials is 0.011."""
    assert abs(coverage(lambda rng: rng.normal(size=16)) - 0.95) < 0.035
    assert 0.87 < coverage(series(101), video(101)) < 0.97
    assert coverage(series(101)) < 0.6  # As if frames were independent.
    labels = np.repeat(np.arange(3), 8)
    assert abs(coverage(in_groups(3, 8), Groups(labels)) - 0.95) < 0.035


@pytest.mark.slow
def test_coverage_of_independent_images():
    for count in (3, 5, 8, 16, 32, 96):
        share = coverage(lambda rng, n=count: rng.normal(size=n), trials=2000)
        assert abs(share - 0.95) < 0.02, count
    # Skewed: exponential, less its mean.
    for count in (16, 96):
        share = coverage(lambda rng, n=count: rng.exponential(size=n) - 1, trials=2000)
        assert 0.90 < share < 0.96, count


@pytest.mark.slow
@pytest.mark.parametrize("frames", [64, 101, 200, 500, 1000])
def test_coverage_of_videos(frames):
    assert 0.88 < coverage(series(frames), video(frames), trials=2000) < 0.965


@pytest.mark.slow
@pytest.mark.parametrize("groups", [3, 4, 5, 8, 20])
def test_coverage_of_groups(groups):
    labels = Groups(np.repeat(np.arange(groups), 20))
    assert abs(coverage(in_groups(groups, 20), labels, trials=2000) - 0.95) < 0.02


def test_many_classes_take_little_memory():
    """847 classes over 2000 images: less than 1 GB."""
    hits = np.random.default_rng(0).integers(0, 50, (2000, 847))
    rows = np.concatenate([hits, hits + 20, hits + 30], axis=1)
    tracemalloc.start()
    try:
        low, high = intervals.of_metric(metrics.miou(), rows, seed=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**30
    assert 0 < low < metrics.miou().value(rows.sum(axis=0)) < high < 1
