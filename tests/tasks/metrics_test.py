# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from mtr_tf.tasks import losses
from mtr_tf.tasks import metrics


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
        hits = union = 0
        for t, p, m in zip(target.flat, prediction.flat, mask.flat, strict=True):
            if m:
                hits += t == c and p == c
                union += t == c or p == c
        if union:
            ious.append(hits / union)
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


def test_rows_of_classes_are_per_image():
    target = np.array([[[0, 1]], [[1, 1]]], np.int32)
    logits = one_hot_logits(np.array([[[1, 1]], [[0, 1]]]), 2)
    mask = np.array([[[1, 1]], [[1, 0]]], np.float32)
    rows = metrics.miou().statistics(target, logits, mask, 2)
    # Right pixels, targets and predictions, each of classes 0 and 1.
    np.testing.assert_array_equal(rows, [[0, 1, 1, 1, 0, 2], [0, 0, 0, 1, 1, 0]])


def test_miou_value_takes_leading_axes_and_nothing_is_nan():
    sums = [[[2, 2, 2, 2, 2, 2], [0, 0, 4, 0, 0, 4]], [[0] * 6, [3, 0, 3, 0, 3, 0]]]
    values = metrics.miou().value(np.array(sums))
    np.testing.assert_array_equal(values, [[1, 0], [math.nan, 1]])
    assert np.isnan(metrics.pixel_accuracy().value(np.zeros(2)))


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("label", [-1, 3, 4, 255])
def test_a_label_that_is_no_class_is_wrong_and_stays_in_its_image(label, in_graph):
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, (3, 4, 5)).astype(np.int32)
    logits = rng.normal(size=(3, 4, 5, 3)).astype(np.float32)
    mask = np.ones((3, 4, 5), np.float32)
    bad_target = target.copy()
    bad_target[1, 2, 3] = label
    hidden_mask = mask.copy()
    hidden_mask[1, 2, 3] = 0
    prediction = logits[1, 2, 3].argmax()

    def rows(metric, target, mask):
        call = metric.statistics
        if in_graph:
            call = tf.function(call, autograph=False)
        return call(*map(tf.constant, (target, logits, mask)), 3).numpy()

    miou, accuracy = metrics.miou(), metrics.pixel_accuracy()
    expected = rows(miou, target, hidden_mask)
    expected[1, 6 + prediction] += 1  # Predicted, and never a target.
    np.testing.assert_array_equal(rows(miou, bad_target, mask), expected)
    expected = rows(accuracy, target, hidden_mask)
    expected[1, 1] += 1
    np.testing.assert_array_equal(rows(accuracy, bad_target, mask), expected)


def test_rows_of_counts_are_compiled_too():
    batch = batch_for(metrics.miou(), np.random.default_rng(3))
    for metric in (metrics.miou(), metrics.pixel_accuracy()):
        compiled = tf.function(metric.statistics, jit_compile=True, autograph=False)
        rows = compiled(*map(tf.constant, batch), 3)
        np.testing.assert_array_equal(rows, metric.statistics(*batch, 3))


@pytest.mark.slow
def test_large_images_are_counted_exactly():
    """4097 x 4099 pixels are more than float32 can count one by one."""
    shape = (1, 4097, 4099)
    pixels = 4097 * 4099
    assert pixels > 2**24
    target = tf.zeros(shape, tf.int32)
    logits = tf.one_hot(target, 2)
    mask = tf.ones(shape)
    rows = metrics.miou().statistics(target, logits, mask, 2)
    np.testing.assert_array_equal(rows, [[pixels, 0, pixels, 0, pixels, 0]])
    rows = metrics.pixel_accuracy().statistics(target, logits, mask, 2)
    np.testing.assert_array_equal(rows, [[pixels, pixels]])
    output = np.random.default_rng(0).uniform(0, 1, (*shape, 1)).astype(np.float32)
    rows = metrics.mae().statistics(tf.zeros((*shape, 1)), output, mask, None)
    expected = [[output.sum(dtype=np.float64), pixels]]
    np.testing.assert_allclose(rows, expected, rtol=1e-6)


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


@pytest.mark.parametrize("channels", [2, 3])
def test_a_target_that_points_nowhere_is_neither_right_nor_wrong(channels):
    """As where a data set writes 0 for an unknown normal."""
    target, output = np.zeros((2, 1, 1, 3, channels), np.float32)
    target[..., :2, 0] = 1  # The third is unknown.
    output[..., 0, 0], output[..., 1:, 1] = 2, 1  # Right; off by 90 degrees.
    error = value_of(metrics.angular_error(), target, output, ones(1, 1, 3))
    assert error == pytest.approx(45)
    share = value_of(metrics.within_angle(30), target, output, ones(1, 1, 3))
    assert share == pytest.approx(1 / 2)


@pytest.mark.parametrize("channels", [2, 3])
def test_the_length_of_a_target_does_not_matter(channels):
    target, output = np.zeros((2, 1, 1, 2, channels), np.float32)
    target[..., 0, 0], target[..., 1, 1] = 1e-7, 1e30
    output[..., 0] = 1
    value = value_of(metrics.angular_error(), target, output, ones(1, 1, 2))
    assert value == pytest.approx(45, abs=1e-4)


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
    is_count = metric.better == "higher"
    assert clean.dtype == (tf.int64 if is_count else tf.float64)


@BY_NAME
def test_half_precision_outputs(metric):
    target, output, mask = batch_for(metric, np.random.default_rng(1))
    half_output = output.astype(np.float16)
    np.testing.assert_array_equal(
        metric.statistics(target, half_output, mask, 3),
        metric.statistics(target, half_output.astype(np.float32), mask, 3),
    )


@BY_NAME
def test_two_replicas_give_the_rows_of_one(metric, mirrored):
    batch = batch_for(metric, np.random.default_rng(2))
    expected = metric.statistics(*batch, 3)

    def value_fn(context):
        start = slice(context.replica_id_in_sync_group * 4, None)
        return tuple(tf.constant(array[start][:4]) for array in batch)

    @tf.function(autograph=False)
    def rows(*batch):
        per_replica = mirrored.run(lambda *b: metric.statistics(*b, 3), batch)
        return mirrored.gather(per_replica, axis=0)

    distributed = mirrored.experimental_distribute_values_from_function(value_fn)
    np.testing.assert_allclose(rows(*distributed), expected, rtol=1e-6)


# Relative vulnerability, broken outputs, sizes.


def test_relative_vulnerability_by_hand():
    error, accuracy = metrics.mae(), metrics.miou()
    assert metrics.relative_vulnerability(error, 2.0, 3.0) == pytest.approx(0.5)
    assert metrics.relative_vulnerability(accuracy, 0.8, 0.2) == pytest.approx(0.75)
    clean = np.array([0.0, 1.0, math.nan])
    assert np.isnan(metrics.relative_vulnerability(error, -2.0, -1.0))  # No share.
    values = metrics.relative_vulnerability(error, clean, np.array([1.0, 0.5, 1.0]))
    np.testing.assert_array_equal(values, [math.nan, -0.5, math.nan])


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_wrong(broken):
    target = np.zeros((1, 2, 2), np.int32)
    output = np.full((1, 2, 2, 3), broken, np.float32)
    mask = np.ones((1, 2, 2), np.float32)
    for metric in (metrics.miou(), metrics.pixel_accuracy()):
        rows = np.asarray(metric.statistics(target, output, mask, 3))
        assert metric.value(rows.sum(axis=0)) == 0
