# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from mtr_tf import losses
from mtr_tf import metrics
from mtr_tf.errors import InputError


def one_hot_logits(prediction, classes):
    return np.eye(classes, dtype=np.float32)[prediction]


def value_of(metric, target, output, mask, num_classes=None):
    rows = metric.statistics(target, output, mask, num_classes).numpy()
    return float(metric.value(rows.astype(np.float64).sum(0)))


def ones(*shape):
    return np.ones(shape, np.float32)


# Classes.


def test_miou_and_accuracy_by_hand():
    target = np.array([[[0, 0, 1], [1, 2, 2]]], np.int32)
    prediction = np.array([[[0, 1, 1], [1, 2, 0]]])
    logits = one_hot_logits(prediction, 4)
    # Class 0: 1 of 3; 1: 2 of 3; 2: 1 of 2; class 3 occurs nowhere.
    expected = (1 / 3 + 2 / 3 + 1 / 2) / 3
    mask = ones(1, 2, 3)
    assert value_of(metrics.miou(), target, logits, mask, 4) == pytest.approx(expected)
    accuracy = value_of(metrics.pixel_accuracy(), target, logits, mask, 4)
    assert accuracy == pytest.approx(4 / 6)


def test_miou_counts_a_class_that_is_only_predicted():
    target = np.zeros((1, 1, 2), np.int32)
    logits = one_hot_logits(np.array([[[0, 1]]]), 3)
    value = value_of(metrics.miou(), target, logits, ones(1, 1, 2), 3)
    assert value == pytest.approx((1 / 2 + 0) / 2)


def brute_force_miou(target, prediction, mask, classes):
    """Pixel by pixel over all images, by the definition."""
    ious = []
    for c in range(classes):
        both = either = 0
        for t, p, m in zip(target.flat, prediction.flat, mask.flat, strict=True):
            if m:
                both += t == c and p == c
                either += t == c or p == c
        if either:
            ious.append(both / either)
    return sum(ious) / len(ious)


@pytest.mark.parametrize("classes", [2, 5, 19])
def test_miou_against_brute_force(classes):
    rng = np.random.default_rng(classes)
    target = rng.integers(0, max(classes - 1, 1), (4, 6, 5)).astype(np.int32)
    logits = rng.normal(size=(4, 6, 5, classes)).astype(np.float32)
    mask = (rng.random((4, 6, 5)) < 0.7).astype(np.float32)
    expected = brute_force_miou(target, logits.argmax(-1), mask, classes)
    value = value_of(metrics.miou(), target, logits, mask, classes)
    assert value == pytest.approx(expected, rel=1e-12)


def test_confusion_matrix_rows_are_per_image():
    target = np.array([[[0, 1]], [[1, 1]]], np.int32)
    logits = one_hot_logits(np.array([[[1, 1]], [[0, 1]]]), 2)
    mask = np.array([[[1, 1]], [[1, 0]]], np.float32)
    rows = metrics.confusion_matrix(target, logits, mask, 2)
    # (target, prediction): (0,0), (0,1), (1,0), (1,1).
    np.testing.assert_array_equal(rows, [[0, 1, 0, 1], [0, 0, 1, 0]])


def test_miou_value_takes_leading_axes_and_nothing_is_nan():
    sums = np.array([[[2, 0, 0, 2], [0, 4, 0, 0]], [[0, 0, 0, 0], [3, 0, 0, 0]]])
    values = metrics.miou().value(sums)
    np.testing.assert_array_equal(values, [[1, 0], [math.nan, 1]])
    assert np.isnan(metrics.pixel_accuracy().value(np.zeros(2)))


# Everything else.


def test_errors_by_hand():
    target = np.array([[[[1], [2], [4], [9]]]], np.float32)
    output = np.array([[[[2], [0], [8], [0]]]], np.float32)
    mask = np.array([[[1, 1, 1, 0]]], np.float32)
    # Errors 1, -2, 4; relative to the target 1, 1, 1.
    assert value_of(metrics.mae(), target, output, mask) == pytest.approx(7 / 3)
    assert value_of(metrics.mse(), target, output, mask) == pytest.approx(7)
    assert value_of(metrics.rmse(), target, output, mask) == pytest.approx(7**0.5)
    assert value_of(metrics.rel(), target, output, mask) == pytest.approx(1)


def test_errors_are_means_over_channels():
    target = np.zeros((1, 1, 1, 2), np.float32)
    output = np.array([[[[3, -4]]]], np.float32)
    mask = ones(1, 1, 1)
    assert value_of(metrics.mae(), target, output, mask) == pytest.approx(3.5)
    assert value_of(metrics.rmse(), target, output, mask) == pytest.approx(12.5**0.5)


def test_rmse_is_over_all_pixels_not_a_mean_of_images():
    target = np.zeros((2, 1, 2, 1), np.float32)
    output = np.array([[[[1], [1]]], [[[5], [0]]]], np.float32)
    mask = np.array([[[1, 1]], [[1, 0]]], np.float32)
    value = value_of(metrics.rmse(), target, output, mask)
    assert value == pytest.approx(((1 + 1 + 25) / 3) ** 0.5)


def test_rel_leaves_out_targets_that_are_not_positive():
    target = np.array([[[[2], [0], [-1]]]], np.float32)
    output = np.array([[[[3], [7], [7]]]], np.float32)
    assert value_of(metrics.rel(), target, output, ones(1, 1, 3)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("output", "degrees"),
    [
        ((0, 0, 1), 0),
        ((0, 0, 1e-30), 0),
        ((0, 0, 1e30), 0),
        ((0, 0, -2), 180),
        ((5, 0, 0), 90),
        ((1, 0, 1), 45),
        ((0, math.sqrt(3), 1), 60),
        ((1e-4, 0, 1), math.degrees(math.atan(1e-4))),  # acos in float32 would say 0.
        ((0, 0, 0), 90),
    ],
)
def test_angular_error_by_hand(output, degrees):
    target = np.array([[[[0, 0, 1]]]], np.float32)
    output = np.array([[[output]]], np.float32)
    value = value_of(metrics.angular_error(), target, output, ones(1, 1, 1))
    assert value == pytest.approx(degrees, rel=1e-5, abs=1e-5)


def test_mean_loss_is_over_images_with_a_valid_pixel():
    target = np.zeros((3, 1, 2, 1), np.float32)
    output = np.array([[[[1], [3]]], [[[5], [5]]], [[[9], [9]]]], np.float32)
    mask = np.array([[[1, 1]], [[1, 0]], [[0, 0]]], np.float32)
    metric = metrics.mean_loss(losses.l1)
    # Per image 2, 5, none: not the 3 of a mean over pixels.
    assert value_of(metric, target, output, mask) == pytest.approx(3.5)


METRICS = [
    metrics.miou(),
    metrics.pixel_accuracy(),
    metrics.mae(),
    metrics.mse(),
    metrics.rmse(),
    metrics.rel(),
    metrics.angular_error(),
    metrics.mean_loss(losses.l1),
]
BY_NAME = pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)


def batch_for(metric, rng, junk=(0, 0)):
    """8 images for any metric, `junk` where masked; the last two are masked wholly."""
    mask = (rng.random((8, 6, 5)) < 0.6).astype(np.float32)
    mask[6:] = 0
    output = rng.normal(size=(8, 6, 5, 3)).astype(np.float32)
    if metric.better == "higher":
        target = rng.integers(0, 3, (8, 6, 5)).astype(np.int32)
        junk = (junk[0], 255 if np.isnan(junk[1]) else int(junk[1]))
    else:
        target = rng.normal(size=(8, 6, 5, 3)).astype(np.float32)
    output[mask == 0], target[mask == 0] = junk
    return target, output, mask


@BY_NAME
@pytest.mark.parametrize("junk", [(math.nan, math.nan), (math.inf, -1)])
def test_masked_pixels_change_nothing(metric, junk):
    clean = metric.statistics(*batch_for(metric, np.random.default_rng(0)), 3)
    dirty = metric.statistics(*batch_for(metric, np.random.default_rng(0), junk), 3)
    np.testing.assert_array_equal(clean, dirty)
    assert not clean[6:].numpy().any()
    assert clean[:6].numpy().any(axis=1).all()
    assert clean.dtype == tf.float32


@BY_NAME
def test_half_precision_outputs(metric):
    target, output, mask = batch_for(metric, np.random.default_rng(1))
    half = output.astype(np.float16)
    np.testing.assert_array_equal(
        metric.statistics(target, half, mask, 3),
        metric.statistics(target, half.astype(np.float32), mask, 3),
    )


@BY_NAME
def test_two_replicas_give_the_rows_of_one(metric, mirrored):
    batch = batch_for(metric, np.random.default_rng(2))
    expected = metric.statistics(*batch, 3)

    def value_fn(context):
        half = slice(context.replica_id_in_sync_group * 4, None)
        return tuple(tf.constant(array[half][:4]) for array in batch)

    @tf.function
    def rows(*batch):
        per_replica = mirrored.run(lambda *b: metric.statistics(*b, 3), batch)
        return mirrored.gather(per_replica, axis=0)

    distributed = mirrored.experimental_distribute_values_from_function(value_fn)
    np.testing.assert_allclose(rows(*distributed), expected, rtol=1e-6)


# Relative vulnerability and the bootstrap.


def test_relative_vulnerability_by_hand():
    error, accuracy = metrics.mae(), metrics.miou()
    assert metrics.relative_vulnerability(error, 2.0, 3.0) == pytest.approx(0.5)
    assert metrics.relative_vulnerability(accuracy, 0.8, 0.2) == pytest.approx(0.75)
    clean = np.array([0.0, 1.0, math.nan])
    values = metrics.relative_vulnerability(error, clean, np.array([1.0, 0.5, 1.0]))
    np.testing.assert_array_equal(values, [math.nan, -0.5, math.nan])


def plain_bootstrap(metric, rows, confidence, resamples, seed):
    """The same draws, with rows picked and summed one resample at a time."""
    drawn = np.random.default_rng(seed).integers(len(rows), size=(resamples, len(rows)))
    values = [float(metric.value(rows[indices].sum(0))) for indices in drawn]
    values = sorted(v for v in values if not math.isnan(v))
    interval = []
    for share in ((1 - confidence) / 2, (1 + confidence) / 2):
        place = share * (len(values) - 1)
        low, part = math.floor(place), place - math.floor(place)
        high = values[min(low + 1, len(values) - 1)]
        interval.append(values[low] * (1 - part) + high * part)
    return interval


@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_bootstrap_against_a_plain_loop(confidence):
    rng = np.random.default_rng(3)
    for metric, rows in (
        (metrics.miou(), rng.integers(0, 9, (40, 9)).astype(np.float64)),
        (metrics.rmse(), rng.random((25, 2)) + 0.5),
        (metrics.mae(), np.array([[2.0, 1], [0, 0], [0, 0]])),  # NaN now and then.
    ):
        interval = metrics.bootstrap_interval(
            metric, rows, confidence=confidence, resamples=200, seed=7
        )
        expected = plain_bootstrap(metric, rows, confidence, 200, 7)
        np.testing.assert_allclose(interval, expected, rtol=1e-10)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(4)
    covered = 0
    for seed in range(200):
        errors = rng.exponential(2.0, 60)  # Of mean 2.
        rows = np.stack((errors, np.ones(60)), axis=-1)
        low, high = metrics.bootstrap_interval(
            metrics.mae(), rows, confidence=0.9, resamples=300, seed=seed
        )
        covered += low <= 2 <= high
    # Skewed and small: somewhat under 0.9. Binomial deviation of 200 draws: 0.02.
    assert 0.8 < covered / 200 < 0.96


def test_paired_interval_sees_what_unpaired_ones_cannot():
    rng = np.random.default_rng(5)
    clean = np.stack((rng.normal(10, 3, 50), np.ones(50)), axis=-1)
    attacked = clean + np.stack((rng.normal(0.5, 0.1, 50), np.zeros(50)), axis=-1)
    low, high = metrics.bootstrap_change_interval(
        metrics.mae(), clean, attacked, seed=0
    )
    assert 0.4 < low < 0.5 < high < 0.6
    shifted = clean + [1.0, 0.0]
    low, high = metrics.bootstrap_change_interval(metrics.mae(), clean, shifted, seed=0)
    assert low == pytest.approx(1)
    assert high == pytest.approx(1)


def test_bootstrap_edge_cases():
    nothing = metrics.bootstrap_interval(metrics.mae(), np.zeros((0, 2)), seed=0)
    assert np.isnan(nothing).all()
    padding = metrics.bootstrap_interval(metrics.mae(), np.zeros((3, 2)), seed=0)
    assert np.isnan(padding).all()
    one = metrics.bootstrap_interval(metrics.mae(), np.array([[3.0, 2]]), seed=0)
    assert one == (1.5, 1.5)
    with pytest.raises(InputError, match="confidence must lie in"):
        metrics.bootstrap_interval(metrics.mae(), one, confidence=1.0, seed=0)
    with pytest.raises(InputError, match="at least 1, got 0"):
        metrics.bootstrap_interval(metrics.mae(), one, resamples=0, seed=0)
    with pytest.raises(InputError, match=r"\(3, 2\) and \(2, 2\)"):
        metrics.bootstrap_change_interval(
            metrics.mae(), np.zeros((3, 2)), np.zeros((2, 2)), seed=0
        )


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_wrong(broken):
    target = np.zeros((1, 2, 2), np.int32)
    output = np.full((1, 2, 2, 3), broken, np.float32)
    mask = np.ones((1, 2, 2), np.float32)
    for metric in (metrics.miou(), metrics.pixel_accuracy()):
        rows = np.asarray(metric.statistics(target, output, mask, 3))
        assert metric.value(rows.sum(axis=0)) == 0
