# SPDX-License-Identifier: Apache-2.0
"""Tests of tasks of one's own: kinds, places, Keras losses and metrics, sets."""

import dataclasses
import functools
import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtr_tf import tasks
from mtr_tf.errors import InputError
from mtr_tf.tasks import metrics

RNG = np.random.default_rng(0)


def test_a_kind_gives_what_is_not_said():
    flow = tasks.Task("flow", kind="numbers", channels=2, unit="px")
    assert [metric.name for metric in flow.metrics] == ["mae", "rmse", "loss"]
    assert {metric.unit for metric in flow.metrics} == {"px", ""}
    assert (flow.channels, flow.is_map, flow.discrete, flow.mirror) == (
        2,
        True,
        False,
        None,
    )
    scene = tasks.Task("scene", kind="classes", classes=["in", "out"], places=0)
    assert scene.channels == 2
    assert scene.discrete
    assert not scene.is_map
    assert [metric.name for metric in scene.metrics][0] == "accuracy"


def test_metrics_of_the_kind_follow_the_places_and_own_ones_stay():
    parts = tasks.Task("parts", kind="classes", classes=["a", "b"])
    assert parts.metrics[0].name == "miou"
    assert parts.bound(places=0).metrics[0].name == "accuracy"
    own_task = tasks.Task(
        "parts", kind="classes", classes=["a", "b"], metrics=[metrics.miou()]
    )
    assert [m.name for m in own_task.bound(places=0).metrics] == ["miou", "loss"]


def test_the_last_metric_is_the_loss():
    def loss(target, output, mask):
        return mask[:, 0, 0]

    loss.better = "lower"
    with pytest.raises(InputError, match="2 are named loss"):
        tasks.Task("flow", channels=2, metrics=[loss])
    flow = tasks.Task("flow", channels=2, metrics=[metrics.mae()])
    batch = (tf.zeros((1, 4, 4, 2)), tf.fill((1, 4, 4, 2), 3.0), tf.ones((1, 4, 4)))
    for task, value in (
        (flow, 3),
        (dataclasses.replace(flow, unit="px"), 3),
        (dataclasses.replace(flow, loss=keras.losses.MeanSquaredError()), 9),
    ):
        assert [metric.name for metric in task.metrics] == ["mae", "loss"]
        rows = task.metrics[-1].statistics(*batch, None)
        np.testing.assert_array_equal(rows, [[value, 1]])


@pytest.mark.parametrize("places", [(), (5,), (4, 6), (2, 3, 4)])
def test_rows_of_any_places_are_those_by_hand(places):
    count, classes = 3, 4
    names = [f"c{i}" for i in range(classes)]
    parts = tasks.Task("parts", kind="classes", classes=names, places=len(places))
    flow = tasks.Task("flow", channels=2, places=len(places))
    tags = tasks.Task("tags", kind="labels", classes=names, places=len(places))
    mask = RNG.integers(0, 2, (count, *places)).astype(np.float32)
    mask[0] = 1
    targets = {
        "parts": RNG.integers(0, classes, (count, *places)),
        "flow": RNG.normal(size=(count, *places, 2)),
        "tags": RNG.integers(0, 2, (count, *places, classes)).astype(np.float64),
    }
    targets["parts"][mask == 0] = 255
    targets["flow"][mask == 0] = np.nan
    outputs = {
        "parts": RNG.normal(size=(count, *places, classes)),
        "flow": RNG.normal(size=(count, *places, 2)),
        "tags": RNG.normal(size=(count, *places, classes)),
    }
    rows = tasks.statistics(
        [parts, flow, tags],
        {name: tf.constant(y, tf.float32) for name, y in outputs.items()},
        {name: tf.constant(y) for name, y in targets.items()},
        dict.fromkeys(targets, tf.constant(mask)),
        None,
    )

    def value(task, name):
        (metric,) = [m for m in task.metrics if m.name == name]
        return metric.value(np.asarray(rows[task.name][name]).sum(axis=0))

    valid = mask != 0
    hits = outputs["parts"].argmax(-1) == targets["parts"]
    accuracy = next(m.name for m in parts.metrics if "accuracy" in m.name)
    assert value(parts, accuracy) == pytest.approx(hits[valid].mean())
    error = np.abs(outputs["flow"] - targets["flow"])[valid]
    assert value(flow, "mae") == pytest.approx(error.mean(), rel=1e-6)
    label, prediction = targets["tags"][valid] > 0, outputs["tags"][valid] > 0
    assert value(tags, "label_accuracy") == pytest.approx((label == prediction).mean())
    f1 = [
        2
        * (label & prediction)[:, i].sum()
        / (label[:, i].sum() + prediction[:, i].sum())
        for i in range(classes)
        if label[:, i].any() or prediction[:, i].any()
    ]
    assert value(tags, "f1") == pytest.approx(np.mean(f1))
    bce = np.log1p(np.exp(outputs["tags"])) - targets["tags"] * outputs["tags"]
    axes = tuple(range(1, bce.ndim))
    per_image = np.where(valid[..., None], bce, 0).sum(axes) / np.maximum(
        valid.reshape(count, -1).sum(-1) * classes, 1
    )
    valid_images = valid.reshape(count, -1).any(-1)
    assert value(tags, "loss") == pytest.approx(
        per_image[valid_images].mean(), rel=1e-5
    )


@pytest.mark.parametrize(
    "make",
    [
        keras.metrics.MeanAbsoluteError,
        keras.metrics.RootMeanSquaredError,
        keras.metrics.R2Score,
    ],
)
def test_keras_metrics_of_numbers_are_keras(make):
    task = tasks.Task("flow", channels=2, metrics=[make()])
    target, output = RNG.normal(size=(2, 5, 4, 4, 2)).astype(np.float32)
    mask = RNG.integers(0, 2, (5, 4, 4)).astype(np.float32)
    metric = task.metrics[0]
    rows = metric.statistics(*map(tf.constant, (target, output, mask)), None)
    reference = make()
    reference.update_state(target[mask != 0], output[mask != 0])
    expected = float(reference.result())
    if make is keras.metrics.RootMeanSquaredError:
        expected = np.sqrt(np.square(target - output)[mask != 0].mean())
    assert metric.value(rows.numpy().sum(0)) == pytest.approx(expected, rel=1e-4)
    assert metric.better == ("higher" if make is keras.metrics.R2Score else "lower")


@pytest.mark.parametrize(
    "metric",
    [
        keras.metrics.MeanAbsoluteError(),
        keras.metrics.RootMeanSquaredError(),
        keras.metrics.R2Score(),
        keras.metrics.AUC(),
        keras.metrics.Precision(),
        keras.metrics.FalsePositives(),
    ],
)
def test_keras_metrics_of_nothing_are_no_numbers(metric):
    """Keras says 0, which is perfect for an error."""
    numbers = metric.name.startswith(("mean", "root", "r2"))
    kind = {"kind": "numbers" if numbers else "labels", "channels": 2}
    score = tasks.Task("mine", metrics=[metric], **kind).metrics[0]
    target = RNG.integers(0, 2, (3, 4, 4, 2)).astype(np.float32)
    output = (2 * target - 1) * 9  # A right answer everywhere.
    mask = np.zeros((3, 4, 4), np.float32)
    rows = score.statistics(*map(tf.constant, (target, output, mask)), None).numpy()
    assert math.isnan(score.over(rows))
    mask[1, 2, 3] = 1
    rows = score.statistics(*map(tf.constant, (target, output, mask)), None).numpy()
    assert not math.isnan(score.over(rows))


def test_a_precision_of_no_prediction_is_still_keras():
    """Its state is 0, as if nothing had been counted, although something was."""
    metric = tasks.Task(
        "tag", kind="labels", channels=1, places=0, metrics=[keras.metrics.Precision()]
    ).metrics[0]
    batch = np.zeros((2, 1), "f4"), np.full((2, 1), -9, "f4"), np.ones(2, "f4")
    assert metric.over(metric.statistics(*map(tf.constant, batch), None).numpy()) == 0


def test_keras_metrics_of_labels_and_classes_are_keras():
    tags = tasks.Task(
        "tags",
        kind="labels",
        channels=3,
        places=0,
        metrics=[keras.metrics.AUC(curve="PR"), keras.metrics.F1Score("macro", 0.5)],
    )
    target = RNG.integers(0, 2, (20, 3)).astype(np.float32)
    output, mask = RNG.normal(size=(20, 3)).astype(np.float32), np.ones(20, "f4")
    for metric, reference in zip(
        tags.metrics,
        (keras.metrics.AUC(curve="PR"), keras.metrics.F1Score("macro", 0.5)),
        strict=False,
    ):
        rows = metric.statistics(*map(tf.constant, (target, output, mask)), None)
        reference.update_state(target, 1 / (1 + np.exp(-output)))
        value = metric.value(rows.numpy().sum(0))
        assert value == pytest.approx(float(reference.result()), rel=1e-5)


def test_keras_losses_are_means_over_valid_places():
    huber = tasks.Task("flow", channels=2, loss=keras.losses.Huber(0.5))
    target, output = RNG.normal(size=(2, 3, 4, 4, 2)).astype(np.float32)
    mask = RNG.integers(0, 2, (3, 4, 4)).astype(np.float32)
    masked_target = np.where(mask[..., None] != 0, target, np.nan).astype(np.float32)
    error = np.abs(target - output)
    pixel_losses = np.where(error <= 0.5, error**2 / 2, 0.5 * error - 0.125).mean(-1)
    expected = (pixel_losses * mask).sum((1, 2)) / mask.sum((1, 2))
    loss = huber.loss(*map(tf.constant, (masked_target, output, mask)))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("channels", [2, 4])
def test_angles_in_other_than_three_dimensions(channels):
    task = tasks.Task("aim", kind="directions", channels=channels, places=0)
    target, output = RNG.normal(size=(2, 9, channels)).astype(np.float32)
    rows = task.metrics[0].statistics(
        tf.constant(target), tf.constant(output), tf.ones(9), None
    )
    lengths = np.linalg.norm(target, axis=1) * np.linalg.norm(output, axis=1)
    cosine = (target * output).sum(1) / lengths
    np.testing.assert_allclose(rows[:, 0], np.degrees(np.arccos(cosine)), rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "x"}, "two characters"),
        ({"name": "a b"}, "two characters"),
        ({"name": "each"}, "must not be named"),
        *(
            ({"name": word}, f"must not be named .* got '{word}'. Choose another")
            for word in ("all", "Total", "main", "none", "optimizer", "own")
        ),
        (
            {"name": "flow", "aliases": ["total"]},
            "must not be named .* got 'total' as another name of flow. Choose",
        ),
        ({"name": "flow", "kind": "number"}, "Did you mean 'numbers'"),
        ({"name": "tags", "kind": "labels"}, "how many labels"),
        ({"name": "parts", "kind": "classes", "classes": "abc"}, "list of names"),
        (
            {"name": "parts", "kind": "classes", "classes": ["a"], "channels": 2},
            "as many channels as classes",
        ),
        ({"name": "flow", "channels": 0}, "whole number, 1 or more"),
        ({"name": "flow", "channels": 2, "mirror": (1.0,)}, "mirror"),
        ({"name": "flow", "channels": 1, "mirror": -1}, "list of numbers; got -1"),
        ({"name": "flow", "channels": 1, "mirror": "-"}, "list of numbers; got '-'"),
        (
            {"name": "parts", "classes": ["a", "b"], "mirror": (1, 1)},
            "parts must not have mirror.* because its targets are classes; got",
        ),
        ({"name": "parts", "classes": 3}, "list of names; got 3"),
        ({"name": "parts", "classes": ["a", 1]}, "list of names; got"),
        ({"name": "flow", "aliases": "of"}, "aliases .* list of names; got 'of'"),
        *(
            ({"name": "parts", "classes": ["a", "b"], "colors": colors}, words)
            for colors, words in (
                (("red", "blue"), r"list of triples .* of 0-255; got \('red'"),
                ((1, 2, 3), "list of triples"),
                ([(0, 0, 256), (0, 0, 0)], "list of triples"),
                ([(0.5, 0.5, 1), (0, 0, 0)], "list of triples"),
                ([(0, 0, 255)], "got 1 colors and 2 classes"),
            )
        ),
        ({"name": "flow", "places": (64, 64)}, "how many axes .* got .64, 64"),
        ({"name": "flow", "places": -1}, "how many axes .* got -1"),
        ({"name": "flow", "channels": True}, "whole number, 1 or more; got True"),
        ({"name": "flow", "metrics": "mae"}, r"or a Keras metric.*; got 'mae'\."),
        ({"name": "flow", "metrics": ("mae",)}, r"or a Keras metric.*; got 'mae'\."),
        *(
            ({"name": "flow", "metrics": [metric]}, r"such as keras.metrics.MeanAbs")
            for metric in (
                keras.metrics.MeanAbsoluteError,
                keras.metrics.mean_squared_error,
                lambda target, output: target - output,
            )
        ),
        *(
            ({"name": "flow", "loss": loss}, r"such as keras.losses.MeanSquaredError\(")
            for loss in (
                "mse",
                keras.losses.MeanSquaredError,
                keras.losses.mean_squared_error,
                keras.losses.huber,  # Whose third argument is no mask.
                lambda target, output: target - output,
            )
        ),
    ],
)
def test_what_cannot_be_is_refused(fields, words):
    with pytest.raises(InputError, match=words):
        tasks.Task(**fields)


def test_one_metric_alone_and_numpy_s_numbers_are_taken():
    task = tasks.Task(
        "flow",
        channels=np.int64(2),
        places=np.int32(2),
        metrics=keras.metrics.MeanAbsoluteError(),
        colors=np.array([[0, 1, 2], [3, 4, 255]], np.uint8),
    )
    assert [m.name for m in task.metrics] == ["mean_absolute_error", "loss"]
    assert task.colors == ((0, 1, 2), (3, 4, 255))
    assert json.loads(json.dumps(task.to_dict()))["channels"] == 2
    parts = tasks.Task("parts", classes=np.array(["a", "b"]), ignored=np.array([1]))
    assert parts.classes == ("a", "b")
    assert json.loads(json.dumps(parts.to_dict()))["ignored"] == [1]
    for factors in ((-1, 1), [-1, 1], np.array([-1.0, 1.0], np.float32)):
        flow = tasks.Task("flow", channels=2, mirror=factors)
        assert flow.mirror == (-1.0, 1.0)
        assert flow in {flow}


def test_whatever_takes_target_output_and_mask_is_a_loss():
    class Of:
        def __call__(self, target, output, mask):
            return mask[:, 0, 0]

    def scaled(factor, target, output, mask):
        return factor * mask[:, 0, 0]

    by_2 = functools.partial(scaled, 2.0)
    for loss, value in (
        (Of(), 1),
        (Of().__call__, 1),
        (by_2, 2),
        (tf.function(Of().__call__), 1),
        (lambda *arguments: 3 * arguments[2][:, 0, 0], 3),
        (lambda target, output, mask, factor=4: factor * mask[:, 0, 0], 4),
    ):
        batch = (tf.zeros((1, 4, 4, 1)), tf.zeros((1, 4, 4, 1)), tf.ones((1, 4, 4)))
        np.testing.assert_array_equal(
            tasks.Task("far", loss=loss).loss(*batch), [value]
        )


def test_sets_iterate_names_and_select_by_any_name():
    flow = tasks.Task("flow", channels=2)
    task_set = tasks.TASKS.replaced(flow)
    assert tuple(task_set)[-1] == "flow"
    assert "flow" in task_set
    assert "flow" not in tasks.TASKS
    assert tuple(task_set.select("Flow,d,segmentsemantic")) == ("flow", "depth", "seg")
    assert hash(task_set) == hash(tasks.TASKS.replaced(flow))
    assert task_set == dict(task_set)
    with pytest.raises(InputError, match="Did you mean 'flow'"):
        task_set.select("flwo")
    with pytest.raises(InputError, match="two are named flow"):
        tasks.TaskSet([flow, flow])
    assert tasks.canonical("d,flow") == ("depth", "flow")
