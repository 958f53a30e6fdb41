# SPDX-License-Identifier: Apache-2.0
"""Metrics on request: against values by hand and against loops over the definitions."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtr_tf.errors import InputError
from mtr_tf.evaluation import intervals
from mtr_tf.evaluation import resampling
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import average_precision
from mtr_tf.tasks import metric_names
from mtr_tf.tasks import metrics
from mtr_tf.tasks import more_metrics


def rows_of(metric, target, output, mask=None, num_classes=None):
    output = np.asarray(output, np.float32)
    mask = np.ones(output.shape[:-1], np.float32) if mask is None else mask
    run = tf.function(metric.statistics, autograph=False)
    batch = (tf.constant(target), tf.constant(output), tf.constant(mask, tf.float32))
    return run(*batch, num_classes).numpy()


def value_of(metric, *arguments, **options):
    return metric.over(rows_of(metric, *arguments, **options))


def test_the_mean_iou_of_each_image_by_hand():
    # Right is half of class 1 in the first image, and nothing in the second.
    target = np.array([[[0, 0, 1, 1]], [[0, 0, 0, 1]], [[0, 0, 0, 0]]], np.int32)
    prediction = np.array([[[0, 0, 1, 0]], [[1, 1, 1, 0]], [[0, 0, 0, 0]]])
    logits, mask = np.eye(3)[prediction], np.ones((3, 1, 4))
    mask[2] = 0  # An image without a target counts for nothing.
    metric = metrics.image_miou()
    first_value = (2 / 3 + 1 / 2) / 2
    rows = rows_of(metric, target, logits, mask, num_classes=3)
    np.testing.assert_allclose(rows, [[first_value, 1], [0, 1], [0, 0]])
    assert metric.over(rows) == pytest.approx(first_value / 2)
    assert metric.is_mean


def test_ignored_classes_are_left_out_of_mean_ious():
    """A pixel predicted as void still counts as missing from its own class."""
    target = np.array([[[1, 1, 2, 2, 0, 0]]], np.int32)
    prediction = np.array([[[1, 0, 2, 2, 0, 1]]])
    logits, mask = np.eye(3)[prediction], (target > 0).astype("f")
    for make in (metrics.miou, metrics.image_miou):
        values = [
            value_of(make(ignored), target, logits, mask, num_classes=3)
            for ignored in ((), (0,))
        ]
        assert values == pytest.approx([(0 + 1 / 2 + 1) / 3, (1 / 2 + 1) / 2])
    assert metrics.miou((0,)) == metrics.miou((0,)) != metrics.miou()
    own_miou = metrics.of_function("miou", lambda *arguments: 0, "higher")
    task_metrics = [own_miou, metrics.image_miou(), metrics.accuracy()]
    task = Task("parts", kind="classes", channels=3, metrics=task_metrics, ignored=(0,))
    more_tasks = more_metrics.with_more(
        TaskSet([task.bound(metrics=())]), ["all"], None
    )
    for variant in (task, task.bound(places=2), more_tasks["parts"]):
        metric = next(m for m in variant.all_metrics if m.name == "image_miou")
        value = value_of(metric, target, logits, mask, num_classes=3)
        assert value == pytest.approx(3 / 4)
    assert task.metrics[0] == own_miou
    assert task.bound(metrics=()).metrics[0] == metrics.miou((0,))


def test_a_small_object_counts_as_much_as_a_large_one():
    """What pooled pixels hide: one image with a lost object of a single pixel."""
    target = np.zeros((2, 8, 8), np.int32)
    target[0, :4], target[1, 0, 0] = 1, 1
    prediction = target.copy()
    prediction[1] = 0
    logits = np.eye(2)[prediction]
    pooled = value_of(metrics.miou(), target, logits, num_classes=2)
    per_image = value_of(metrics.image_miou(), target, logits, num_classes=2)
    assert pooled == pytest.approx((95 / 96 + 32 / 33) / 2)
    assert per_image == pytest.approx((1 + (63 / 64 + 0) / 2) / 2)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_is_that_of_sorted_logits(k):
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 4, (5, 6, 4)).astype("f")  # Many are equal.
    target = rng.integers(0, 4, (5, 6)).astype(np.int32)
    target[0, 0], logits[1, 1, 0] = 255, np.nan  # No class; no number.
    mask = rng.random((5, 6)) < 0.8
    best = np.argsort(-logits, axis=-1, kind="stable")[..., :k]
    hits = (best == target[..., None]).any(-1) & np.isfinite(logits).all(-1)
    rows = rows_of(metrics.top(k), target, logits, mask)
    np.testing.assert_array_equal(rows[:, 0], (hits & mask).sum(1))
    np.testing.assert_array_equal(rows[:, 1], mask.sum(1))
    if k == 1:
        accuracy_rows = rows_of(metrics.accuracy(), target, logits, mask)
        np.testing.assert_array_equal(rows, accuracy_rows)


def test_delta_and_log_rmse_by_hand():
    target = np.array([[[2.0], [2.0], [2.0], [4.0], [0.0], [-1.0], [1.0]]], "f")
    output = np.array([[[2.4], [1.7], [1.5], [9.0], [1.0], [1.0], [-3.0]]], "f")
    # Of the first four pixels and the last: 1.2, 1.18, 1.33, 2.25, and one below 0.
    ratios = np.array([1.2, 2 / 1.7, 2 / 1.5, 2.25, np.inf])
    for power in (1, 2, 3):
        expected = np.mean(ratios < 1.25**power)
        assert value_of(metrics.delta(power), target, output) == pytest.approx(expected)
    logs = np.square(np.log([1.2, 1.7 / 2, 0.75, 2.25, metrics.LEAST_OF_LOG]))
    value = value_of(metrics.log_rmse(), target, output)
    assert value == pytest.approx(np.sqrt(logs.mean()), rel=1e-6)
    # Exactly 1.25 is not within it.
    assert value_of(metrics.delta(1), np.ones((1, 1, 1), "f"), [[[1.25]]]) == 0


def test_the_log_of_small_distances():
    """Like depth in kilometres: a right output has no error, and 0 has a large one."""
    target = np.array([[[1e-4], [1e-4], [1e-4], [1e-2]]], "f")
    output = np.array([[[1e-4], [2e-4], [0.0], [1e-4]]], "f")
    logs = np.log([1, 2, metrics.LEAST_OF_LOG, metrics.LEAST_OF_LOG / 1e-2])
    value = value_of(metrics.log_rmse(), target, output)
    assert value == pytest.approx(np.sqrt(np.square(logs).mean()), rel=1e-6)
    assert value_of(metrics.log_rmse(), target, target) == 0


def test_what_is_no_number_is_not_within_and_has_no_log():
    target, output = np.ones((1, 2, 1), "f"), np.array([[[1.0], [np.nan]]])
    assert value_of(metrics.delta(1), target, output) == 0.5
    assert np.isnan(value_of(metrics.log_rmse(), target, output))
    mask = np.array([[1, 0]])
    assert value_of(metrics.log_rmse(), target, output, mask) == 0


def test_shares_of_directions_within_an_angle():
    degrees = np.array([0, 10, 12, 22, 29, 31, 90, 180.0])
    angles = np.radians(degrees)
    output = np.stack([np.sin(angles), 0 * angles, np.cos(angles)], -1)[None]
    target = np.broadcast_to(np.array([0, 0, 1], "f"), output.shape)
    for limit in (11.25, 22.5, 30.0):
        share = value_of(metrics.within_angle(limit), target, output)
        assert share == pytest.approx(np.mean(degrees < limit))


# Average precision.


def average_precision_by_hand(positive, scores):
    """Each distinct score as a threshold, one after the other."""
    area, last_recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        predicted = scores >= threshold
        precision = positive[predicted].mean()
        recall = positive[predicted].sum() / positive.sum()
        area += (recall - last_recall) * precision
        last_recall = recall
    return area


def mean_ap_by_hand(positive, scores):
    columns = [i for i in range(positive.shape[1]) if positive[:, i].any()]
    values = [average_precision_by_hand(positive[:, i], scores[:, i]) for i in columns]
    return np.mean(values)


def labelled(seed=0, count=40, labels=4):
    rng = np.random.default_rng(seed)
    positive = rng.random((count, labels)) < 0.3
    positive[:, -1] = False  # None has the last label: it is left out.
    scores = np.round(rng.normal(positive, 1.5, (count, labels)), 1)  # Some are equal.
    return positive, scores.astype("f")


def test_mean_ap_of_a_known_ranking():
    # Right at ranks 1 and 3: (1/1 + 2/3) / 2.
    target = np.array([[1], [0], [1], [0]], "f")
    output = [[9], [3], [1], [-5]]
    metric = average_precision.mean_ap()
    assert value_of(metric, target, output) == pytest.approx((1 + 2 / 3) / 2)
    # All equal: one threshold, whose precision is the share of images with the label.
    assert value_of(metric, target, [[1]] * 4) == pytest.approx(0.5)


def test_mean_ap_against_loops_over_thresholds():
    positive, scores = labelled()
    valid = np.random.default_rng(1).random(len(positive)) < 0.8
    metric = average_precision.mean_ap()
    value = value_of(metric, positive.astype("f"), scores, valid)
    expected = mean_ap_by_hand(positive[valid], scores[valid])
    assert value == pytest.approx(expected, rel=1e-12)


def test_logits_that_are_no_numbers_rank_as_wrong():
    target, output = np.array([[1], [0], [1], [0]], "f"), [[np.nan], [2], [1], [np.inf]]
    finite_output = [[-1e9], [2], [1], [1e9]]
    metric = average_precision.mean_ap()
    assert value_of(metric, target, output) == value_of(metric, target, finite_output)


def test_images_that_are_drawn_twice_count_twice():
    positive, scores = labelled(2)
    metric = average_precision.mean_ap()
    rows = rows_of(metric, positive.astype("f"), scores)
    counts = np.random.default_rng(3).integers(0, 3, (5, len(rows))).astype(float)
    draws = [np.repeat(np.arange(len(rows)), row.astype(int)) for row in counts]
    expected = [metric.over(rows[indices]) for indices in draws]
    np.testing.assert_allclose(metric.of_rows(rows, counts), expected, rtol=1e-12)


def test_intervals_of_mean_ap_draw_images_or_groups_of_them():
    positive, scores = labelled(4)
    metric = average_precision.mean_ap()
    rows = rows_of(metric, positive.astype("f"), scores)
    for units in (None, resampling.Units(np.arange(40) // 8, "5 groups")):
        low, high = intervals.of_metric(metric, rows, units, resamples=200, seed=0)
        assert 0 <= low < metric.over(rows) < high <= 1
    assert np.isnan(intervals.of_metric(metric, rows * 0, resamples=9, seed=0)).all()


def test_bins_of_labels_with_places_are_near_to_the_exact_value():
    rng = np.random.default_rng(5)
    positive = rng.random((2, 9, 11, 3)) < 0.3
    scores = rng.normal(positive * 2.0, 2.0).astype("f")
    mask = rng.random((2, 9, 11)) < 0.9
    metric = average_precision.pixel_mean_ap()
    rows = rows_of(metric, positive.astype("f"), scores, mask)
    assert rows.dtype == np.int64
    expected = np.mean(
        [
            average_precision_by_hand(positive[mask][:, i], scores[mask][:, i])
            for i in (0, 1, 2)
        ]
    )
    assert metric.over(rows) == pytest.approx(expected, abs=0.005)
    # It is exact for scores in separate bins.
    coarse_scores = (np.round(scores * 2) / 2).clip(-6, 6)  # 0.5 is at least 2.6 bins.
    expected = np.mean(
        [
            average_precision_by_hand(positive[mask][:, i], coarse_scores[mask][:, i])
            for i in (0, 1, 2)
        ]
    )
    value = value_of(metric, positive.astype("f"), coarse_scores, mask)
    assert value == pytest.approx(expected, rel=1e-12)


def test_scores_of_a_saturated_net_are_told_apart():
    """Where a sigmoid is 0 or 1 to seven digits, and wherever the scores lie."""
    rng = np.random.default_rng(6)
    positive = (rng.random((1, 40, 100, 1)) < 0.02).astype("f")
    scores = rng.normal(-18 + 4 * positive, 1.0).astype("f")
    mask = np.ones(positive.shape[:3])
    metric = average_precision.pixel_mean_ap()
    expected = average_precision_by_hand(positive.ravel() > 0, scores.ravel())
    for offset in (0, 16, 32):
        value = value_of(metric, positive, scores + offset, mask)
        assert value == pytest.approx(expected, abs=0.04)


# Which tasks get them.


def names(task):
    return [metric.name for metric in task.all_metrics]


def test_what_all_are():
    tasks = TaskSet(
        (
            *TASKS.select(("seg", "depth", "normal", "curvature")).values(),
            Task("scene", classes=tuple("abcdefg"), places=0),
            Task("tags", kind="labels", channels=3, places=0),
            Task("parts", kind="labels", channels=3, places=2),
        )
    )
    more_tasks = more_metrics.with_more(tasks, ("all",), 4)
    assert names(more_tasks["seg"]) == ["miou", "pixel_accuracy", "image_miou", "loss"]
    depth = ["mae", "rmse", "rel", "delta1", "delta2", "delta3", "log_rmse", "loss"]
    assert names(more_tasks["depth"]) == depth
    assert names(more_tasks["normal"])[2:-1] == ["within_11", "within_22", "within_30"]
    assert names(more_tasks["curvature"]) == names(tasks["curvature"])
    assert names(more_tasks["scene"]) == ["accuracy", "top5", "loss"]
    assert names(more_tasks["tags"]) == ["f1", "label_accuracy", "mean_ap", "loss"]
    assert names(more_tasks["parts"]) == [
        "f1",
        "label_accuracy",
        "pixel_mean_ap",
        "loss",
    ]
    for name, task in more_tasks.items():  # Attacks use the same ones.
        assert [m.name for m in task.metrics] == names(tasks[name])
        assert task.harm.name == tasks[name].harm.name
    assert set(metric_names.MORE) == set(more_metrics._MORE) | {metric_names.TOP5}


def test_some_by_name_and_metrics_of_ones_own():
    def worst(target, output, mask):
        return tf.reduce_max(tf.abs(target - output), [1, 2, 3])

    worst.better = "lower"
    task = Task("disparity", metrics=(worst,), places=2)
    more_tasks = more_metrics.with_more(TaskSet((task,)), ("rel", "delta1"), None)
    assert names(more_tasks["disparity"]) == ["worst", "rel", "delta1", "loss"]
    # A metric that the task has already is not added again.
    depth = TASKS.select("depth")
    assert names(more_metrics.with_more(depth, ("rel",), None)["depth"]) == names(
        depth["depth"]
    )
    # A task with the name of a known one is treated as that one.
    huber = TaskSet((Task("depth", unit="m", loss=keras.losses.Huber()),))
    more_tasks = more_metrics.with_more(huber, ("delta1", "rel"), None)
    assert names(more_tasks["depth"]) == ["mae", "rmse", "delta1", "rel", "loss"]
    edges = TaskSet((Task("edge_texture", loss=keras.losses.Huber()),))
    with pytest.raises(InputError, match="delta1 fits none"):
        more_metrics.with_more(edges, ("delta1",), None)
    seg_tasks = more_metrics.with_more(TASKS.select("seg"), ("top2",), 3)
    assert names(seg_tasks["seg"])[2:] == ["top2", "loss"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("delta4", "'delta4'"),
        ("mAP", "mean_ap"),
        ("top0", "'top0'"),
        ("top3", "fits none of the tasks seg, depth; .* image_miou, delta1"),
        ("mean_ap", "fits none"),
    ],
)
def test_what_cannot_be(asked, words):
    tasks = TASKS.select(("seg", "depth"))
    with pytest.raises(InputError, match=words):
        more_metrics.with_more(tasks, (asked,), 3)
