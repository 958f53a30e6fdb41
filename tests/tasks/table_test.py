# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import types

import numpy as np
import pytest
import tensorflow as tf

from mtr_tf import tasks
from mtr_tf.errors import InputError

INFO = types.SimpleNamespace(
    colors=((10, 0, 0), (0, 20, 0), (0, 0, 30)), ranges={"depth": (0.0, 10.0)}
)

# Name, letter, Taskonomy's name, channels: the design's table.
TABLE = [
    ("seg", "s", "segmentsemantic", None),
    ("depth", "d", "depth_zbuffer", 1),
    ("depth_euclidean", "D", "depth_euclidean", 1),
    ("normal", "n", "normal", 3),
    ("edge_texture", "e", "edge_texture", 1),
    ("edge_occlusion", "E", "edge_occlusion", 1),
    ("keypoints2d", "k", "keypoints2d", 1),
    ("keypoints3d", "K", "keypoints3d", 1),
    ("reshading", "r", "reshading", 1),
    ("curvature", "p", "principal_curvature", 2),
    ("autoencoder", "A", "autoencoder", 3),
]


def test_the_table_is_the_designs():
    assert list(tasks.TASKS) == [row[0] for row in TABLE]
    for name, letter, taskonomy, channels in TABLE:
        task = tasks.TASKS[name]
        assert (task.name, task.letter, task.channels) == (name, letter, channels)
        assert task.discrete == (name == "seg")
        assert task.output_channels(17) == (channels or 17)
        for alias in (name, letter, taskonomy, name.upper(), taskonomy.title()):
            assert tasks.resolve([alias]) == (name,)


def test_metrics_by_task():
    names = {t.name: [m.name for m in t.metrics] for t in tasks.TASKS.values()}
    assert names["seg"] == ["miou", "pixel_accuracy", "loss"]
    assert names["depth"] == ["mae", "rmse", "rel", "loss"]
    assert names["depth_euclidean"] == ["mae", "rmse", "rel", "loss"]
    assert names["normal"] == ["angular_error", "mae", "loss"]
    assert names["autoencoder"] == ["mse", "mae", "loss"]
    for name in ("edge_texture", "edge_occlusion", "keypoints2d", "keypoints3d"):
        assert names[name] == ["mae", "rmse", "loss"]
    assert names["reshading"] == names["curvature"] == ["mae", "rmse", "loss"]
    units = {t.name: t.metrics[0].unit for t in tasks.TASKS.values()}
    assert (units["depth"], units["normal"]) == ("m", "degrees")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("s,d", ("seg", "depth")),
        ("D,d", ("depth_euclidean", "depth")),
        ("k, K ,E,e", ("keypoints2d", "keypoints3d", "edge_occlusion", "edge_texture")),
        (("segment_semantic", "Depth", "RECONSTRUCT"), ("seg", "depth", "autoencoder")),
        (iter(["autoencoder", "seg"]), ("autoencoder", "seg")),
    ],
)
def test_resolve_keeps_the_order(given, expected):
    assert tasks.resolve(given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("depht", "Unknown task 'depht'. Did you mean 'depth'"),
        ("segmentation", "Did you mean 'seg'"),
        ("S", "Unknown task 'S'. Did you mean 's'"),
        ("u", r"Unknown task 'u'. The tasks are seg \(s\), .*autoencoder \(A\)"),
        ("", "At least one task must be named; the tasks are seg"),
        ([], "At least one task"),
        (" , ", "At least one task"),
        ("seg,,depth", "must not be empty"),
        (
            "seg,d,s",
            "Each task may be named only once, but 'seg,d,s' names 'seg' 2 times",
        ),
    ],
)
def test_resolve_answers_mistakes(given, message):
    with pytest.raises(InputError, match=message):
        tasks.resolve(given)


def batch(names, num_classes, rng):
    """4 images of 3 x 2 with masks; the last one is padding."""
    outputs, targets, masks = {}, {}, {}
    for name in names:
        channels = tasks.TASKS[name].output_channels(num_classes)
        outputs[name] = rng.normal(size=(4, 3, 2, channels)).astype(np.float32)
        targets[name] = rng.normal(size=(4, 3, 2, channels)).astype(np.float32)
        if tasks.TASKS[name].discrete:
            targets[name] = rng.integers(0, num_classes, (4, 3, 2)).astype(np.int32)
        masks[name] = (rng.random((4, 3, 2)) < 0.7).astype(np.float32)
        masks[name][3] = 0
    return outputs, targets, masks


def test_every_task_has_losses_and_rows_inside_a_function():
    names = tuple(tasks.TASKS)
    outputs, targets, masks = batch(names, 5, np.random.default_rng(0))

    @tf.function(autograph=False)
    def losses_and_rows(outputs, targets, masks):
        return (
            tasks.task_losses(names, outputs, targets, masks),
            tasks.statistics(names, outputs, targets, masks, 5),
        )

    losses, rows = losses_and_rows(outputs, targets, masks)
    assert list(losses) == list(rows) == list(names)
    for name in names:
        assert losses[name].shape == (4,)
        assert losses[name].dtype == tf.float32
        assert losses[name][3] == 0
        metric_names = [metric.name for metric in tasks.TASKS[name].metrics]
        assert list(rows[name]) == [*metric_names, tasks.NOT_FINITE]
        for metric in tasks.TASKS[name].metrics:
            row = rows[name][metric.name].numpy()
            assert not row[3].any()
            assert np.isfinite(metric.value(row.sum(0)))
        np.testing.assert_allclose(rows[name]["loss"][:, 0], losses[name], rtol=1e-6)
    assert rows["seg"]["miou"].shape == (4, 15)


def test_losses_are_the_papers():
    outputs, targets, masks = batch(tasks.TASKS, 5, np.random.default_rng(1))
    losses = tasks.task_losses(tuple(tasks.TASKS), outputs, targets, masks)
    for name in tasks.TASKS:
        valid = masks[name][0] != 0
        output, target = outputs[name][0][valid], targets[name][0][valid]
        if name == "seg":
            log_sum = np.log(np.exp(output).sum(-1))
            expected = (log_sum - output[np.arange(len(target)), target]).mean()
        elif name == "autoencoder":
            expected = ((output - target) ** 2).mean()
        else:
            expected = np.abs(output - target).mean()
        assert float(losses[name][0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_every_task_paints_targets_and_outputs(name):
    outputs, targets, masks = batch((name,), 3, np.random.default_rng(2))
    for value in (outputs[name], targets[name]):
        picture = tasks.TASKS[name].to_rgb(value, INFO, masks[name])
        assert picture.shape == (4, 3, 2, 3)
        assert picture.dtype == np.uint8
        assert not picture[masks[name] == 0].any()
        assert tasks.TASKS[name].to_rgb(value[0], INFO).shape == (3, 2, 3)


def test_logits_and_labels_are_painted_alike():
    labels = np.array([[0, 2, 1]], np.int32)
    logits = np.eye(3, dtype=np.float32)[labels]
    for value in (labels, logits):
        picture = tasks.TASKS["seg"].to_rgb(value, INFO)
        np.testing.assert_array_equal(picture, [[[10, 0, 0], [0, 0, 30], [0, 20, 0]]])


def test_a_label_is_there_where_its_logit_is_above_0():
    """Whatever the batch's other logits are; in targets, where a value is above 0.5."""
    colors = ((10, 0, 0), (0, 20, 0))
    tags = tasks.Task("tags", kind="labels", channels=2, colors=colors)
    logits = np.array([[[0.2, 0.1], [0.3, 0.4], [0.0, 0.0]]], np.float32)
    for values in (logits, logits - [0, 0.01]):
        ((*label_colors, background),) = tags.to_rgb(values, INFO, output=True)
        np.testing.assert_array_equal(label_colors, colors)
        np.testing.assert_array_equal(tags.to_rgb(values, INFO), [[background] * 3])
    info = types.SimpleNamespace(image_shape=(6, 6))
    line = tags.bound(places=1).to_rgb(logits, info, output=True)
    assert {tuple(color) for color in line.reshape(-1, 3)} >= set(colors)


def test_a_picture_of_numbers_spans_the_values_that_it_shows():
    points = tasks.Task("points", channels=3)
    value = np.array([[[0, 1, 2], [2, 2, 0], [99, 99, -99], [np.inf, 0, 0]]])
    picture = points.to_rgb(value, INFO, np.array([[1, 1, 0, 1]]))
    black = [0, 0, 0]
    expected = [[[0, 128, 255], [255, 255, 0], black, black]]
    np.testing.assert_array_equal(picture, expected)
    assert not points.to_rgb(value, INFO, np.zeros((1, 4))).any()


def test_depth_is_painted_in_the_data_sets_range():
    paint = tasks.TASKS["depth"].to_rgb
    narrow_picture = paint(np.array([[[1.0], [2.0]]]), INFO)
    wide_picture = paint(np.array([[[1.0], [9.0]]]), INFO)
    np.testing.assert_array_equal(narrow_picture[0, 0], wide_picture[0, 0])
