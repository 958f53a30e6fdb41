# SPDX-License-Identifier: Apache-2.0
"""Losses and metrics of a user's own: their inputs and the digests of their code."""

from __future__ import annotations

import dataclasses
import functools

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from mtr_tf.attack_job import resolving
from mtr_tf.errors import InputError
from mtr_tf.evaluation import intervals
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import losses
from mtr_tf.tasks import metrics
from mtr_tf.tasks import own_code

RNG = np.random.default_rng(0)


def labels(count=4, side=4):
    """(target, logits, mask) of images with one label."""
    target = RNG.integers(0, 2, (count, side, side, 1)).astype(np.float32)
    logits = RNG.normal(size=target.shape).astype(np.float32)
    return target, logits, np.ones(target.shape[:-1], np.float32)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def lesion(**fields):
    return Task("lesion", kind="labels", channels=1, places=2, **fields)


# Losses.


def test_a_keras_loss_over_the_whole_batch_is_refused():
    with pytest.raises(InputError, match=r"Dice gives one for the whole batch.*axis="):
        lesion(loss=keras.losses.Dice()).loss(*map(tf.constant, labels()))


def test_a_keras_loss_of_one_number_per_image_is_that_of_each_image():
    """Also where images are as wide as the batch is large."""
    target, logits, mask = labels(4, 4)
    mask[3] = 0
    loss = lesion(loss=keras.losses.Dice(axis=(1, 2, 3))).loss
    values = loss(*map(tf.constant, (target, logits, mask)))
    p, axes = sigmoid(logits), (1, 2, 3)
    overlap, sums = (p * target).sum(axes), (p + target).sum(axes)
    expected = 1 - 2 * overlap / sums
    np.testing.assert_allclose(values[:3], expected[:3], rtol=1e-4)
    assert values[3] == 0
    np.testing.assert_allclose(loss(target[:1], logits[:1], mask[:1]), values[:1], 1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.Dice(axis=(1, 2, 3)),
        keras.losses.Tversky(axis=(1, 2, 3)),
        keras.losses.CosineSimilarity(axis=(1, 2, 3)),
        keras.losses.BinaryCrossentropy(axis=(1, 2, 3)),
        keras.losses.BinaryFocalCrossentropy(axis=(1, 2, 3)),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_masked_places_do_not_count_in_losses_of_one_number_per_image(loss):
    """The loss is that of the valid part alone, and so is its gradient."""
    target, logits, mask = labels(2, 8)
    mask[:, 4:] = mask[:, :, 4:] = 0
    target[mask == 0], logits[mask == 0] = 7, np.nan
    output = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(output)
        values = lesion(loss=loss).loss(target, output, mask)
    part = np.s_[:, :4, :4]
    expected = loss.call(tf.constant(target[part]), tf.sigmoid(logits[part]))
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    slope = tape.gradient(values, output).numpy()
    assert np.all(slope[part])
    assert not slope[mask == 0].any()


def test_places_of_a_class_that_the_loss_ignores_do_not_count():
    target, (_, logits, mask) = RNG.integers(0, 3, (4, 4, 4)), labels()
    logits = np.concatenate([logits, -logits, logits**2], axis=-1)
    mask[0, 0], target[3] = 0, 2
    task = Task(
        "parts",
        kind="classes",
        channels=3,
        loss=keras.losses.SparseCategoricalCrossentropy(ignore_class=2),
    )
    values = task.loss(*map(tf.constant, (target, logits, mask)))
    valid = mask * (target != 2)
    expected = losses.cross_entropy(target, logits, valid)
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert values[3] == 0


OF_CLASSES = {
    keras.losses.CategoricalCrossentropy: r"Use keras\.losses\.SparseCategoricalC",
    keras.losses.Dice: r"got Dice\. Use a function",
    keras.losses.CategoricalHinge: r"got CategoricalHinge\. Use a function",
    keras.metrics.CategoricalAccuracy: r"Use keras\.metrics\.SparseCategoricalAcc",
    keras.metrics.TopKCategoricalAccuracy: r"Use keras\.metrics\.SparseTopKCat",
    keras.metrics.BinaryAccuracy: r"got BinaryAccuracy\. Use a function",
    functools.partial(keras.metrics.MeanIoU, 3): r"Use MeanIoU with sparse_y_pred=F",
}


@pytest.mark.parametrize(("make", "said"), OF_CLASSES.items())
def test_losses_and_metrics_that_take_no_class_numbers_are_refused(make, said):
    instance = make()
    is_loss = isinstance(instance, keras.losses.Loss)
    fields = {"loss": instance} if is_loss else {"metrics": [instance]}
    with pytest.raises(InputError, match=f"must take whole numbers as .*{said}"):
        Task("parts", classes=("a", "b", "c"), **fields)
    lesion(**fields)


class OwnAccuracy(keras.metrics.CategoricalAccuracy):
    def update_state(self, y_true, y_pred, sample_weight=None):
        y_true = tf.one_hot(tf.cast(y_true, tf.int32), 3)
        return super().update_state(y_true, y_pred, sample_weight)


@pytest.mark.parametrize("places", [(), (4, 4)])
def test_metrics_that_take_class_numbers_are_right(places):
    """The outputs are right except at every fourth place."""
    target = RNG.integers(0, 3, (4, *places)).astype(np.int32)
    predictions = target.reshape(-1).copy()
    predictions[::4] = (predictions[::4] + 1) % 3
    logits = tf.one_hot(predictions.reshape(target.shape), 3) * 8 - 4
    hits = [np.sum((predictions == i) & (target.ravel() == i)) for i in range(3)]
    unions = [np.sum((predictions == i) | (target.ravel() == i)) for i in range(3)]
    values = [
        metric.value(
            np.sum(metric.statistics(target, logits, np.ones_like(target), 3), axis=0)
        )
        for metric in Task(
            "parts",
            classes=("a", "b", "c"),
            places=len(places),
            metrics=[
                keras.metrics.SparseCategoricalAccuracy(),
                keras.metrics.SparseTopKCategoricalAccuracy(1),
                OwnAccuracy(),
                keras.metrics.MeanIoU(3, sparse_y_pred=False),
            ],
        ).metrics[:-1]
    ]
    iou_by_hand = np.mean([h / e for h, e in zip(hits, unions, strict=True) if e])
    np.testing.assert_allclose(values, [0.75] * 3 + [iou_by_hand], rtol=1e-6)


@pytest.mark.parametrize("from_logits", [False, True])
def test_keras_cross_entropy_is_ours_however_it_was_made(from_logits):
    """As compiled for a model with a softmax, which is taken off; logits are large."""
    standard = Task("parts", classes=("a", "b", "c"))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    task = Task("parts", classes=("a", "b", "c"), loss=loss)
    target = tf.constant(RNG.integers(0, 3, (2, 4, 4)), tf.int32)
    logits = tf.constant(RNG.normal(size=(2, 4, 4, 3)) * 30, tf.float32)
    gradients = []
    for variant in (standard, task):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = variant.loss(target, logits, tf.ones((2, 4, 4)))
        gradients.append((value, tape.gradient(value, logits)))
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


def test_losses_of_labels_get_what_they_were_made_for():
    target, logits, mask = labels()
    square = np.square(sigmoid(logits) - target).mean((1, 2, 3))
    values = lesion(loss=keras.losses.MeanSquaredError()).loss(target, logits, mask)
    np.testing.assert_allclose(values, square, rtol=1e-4)
    hinge = np.maximum(1 - (2 * target - 1) * logits, 0).mean((1, 2, 3))
    values = lesion(loss=keras.losses.Hinge()).loss(target, logits, mask)
    np.testing.assert_allclose(values, hinge, rtol=1e-4)

    class Own(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return tf.reduce_mean(tf.abs(y_true - y_pred), -1)

    values = lesion(loss=Own()).loss(target, logits, mask)
    np.testing.assert_allclose(values, np.abs(logits - target).mean((1, 2, 3)), 1e-4)


def test_a_function_is_0_of_images_without_a_target_and_so_is_its_gradient():
    def mean(target, output, mask):
        return tf.reduce_sum(tf.abs(output - target)[..., 0] * mask, (1, 2)) / (
            tf.reduce_sum(mask, (1, 2))
        )

    task = Task("distance", places=2, loss=mean)
    target, output = np.zeros((2, 4, 4, 1), "f4"), np.ones((2, 4, 4, 1), "f4")
    mask = np.stack([np.ones((4, 4), "f4"), np.zeros((4, 4), "f4")])
    x = tf.constant(output)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = task.loss(tf.constant(target), x, tf.constant(mask))
    np.testing.assert_array_equal(value, [1, 0])
    gradient = tape.gradient(value, x)
    np.testing.assert_allclose(gradient[0], 1 / 16)
    np.testing.assert_array_equal(gradient[1], np.zeros((4, 4, 1)))
    rows = task.metrics[-1].statistics(target, x, tf.constant(mask), None)
    np.testing.assert_array_equal(rows, [[1, 1], [0, 0]])
    assert task.bound(unit="m").loss is task.loss  # Not wrapped once more.


@pytest.mark.parametrize("half", [tf.float16, tf.bfloat16])
def test_losses_and_metrics_get_float32_whatever_a_model_computes_in(half):
    """float16 cannot hold 300^2, and bfloat16 cannot hold 300.5."""

    def square(target, output, mask):
        return tf.reduce_mean(tf.square(output - target), [1, 2, 3])

    square.better = "lower"
    target = tf.fill((1, 2, 2, 1), 0.5)
    output, mask = tf.fill((1, 2, 2, 1), tf.cast(300, half)), tf.ones((1, 2, 2))
    for loss in (square, keras.losses.MeanSquaredError()):
        task = Task("far", loss=loss, metrics=[square])
        assert task.loss(target, output, mask) == 299.5**2
        for metric in task.metrics:
            rows = metric.statistics(target, output, mask, None)
            np.testing.assert_array_equal(rows, [[299.5**2, 1]])


def test_outputs_in_float64_stay_so():
    """Own code may cast its targets to float64; float32 cannot hold 1 + 1e-9."""

    def square(target, output, mask):
        error = output - tf.cast(target, tf.float64)
        return tf.reduce_mean(tf.square(error), [1, 2, 3]) * 1e18

    square.better = "lower"
    target, mask = tf.ones((1, 2, 2, 1)), tf.ones((1, 2, 2))
    output = tf.fill((1, 2, 2, 1), tf.constant(1 + 1e-9, tf.float64))
    task = Task("far", loss=square, metrics=[square])
    np.testing.assert_allclose(task.loss(target, output, mask), 1, rtol=1e-6)
    rows = task.metrics[0].statistics(target, output, mask, None)
    np.testing.assert_allclose(rows, [[1, 1]], rtol=1e-6)


def test_a_function_of_the_whole_batch_or_of_each_place_is_refused():
    for loss in (
        lambda target, output, mask: tf.reduce_mean(tf.abs(target - output)),
        lambda target, output, mask: tf.reduce_mean(tf.abs(target - output), -1),
    ):
        with pytest.raises(InputError, match="one number for each image, .batch., but"):
            lesion(loss=loss).loss(*map(tf.constant, labels()))


def test_losses_keep_their_names():
    assert lesion(loss=with_limit).loss.__name__ == "with_limit"
    assert lesion(loss=keras.losses.Huber(name="h")).loss.__name__ == "h"


# Metrics.


def test_keras_metrics_get_probabilities_of_labels():
    target, logits, mask = labels(8)
    options = {"threshold": 0.9, "name": "sure"}
    for make in (
        keras.metrics.BinaryAccuracy,
        functools.partial(keras.metrics.BinaryAccuracy, **options),
        keras.metrics.AUC,
    ):
        metric = lesion(metrics=[make()]).metrics[0]
        rows = metric.statistics(*map(tf.constant, (target, logits, mask)), None)
        reference = make()
        reference.update_state(target, sigmoid(logits))
        assert metric.value(rows.numpy().sum(0)) == pytest.approx(
            float(reference.result())
        )


def test_a_binary_iou_of_several_labels():
    for places in (0, 2):
        shape = (4, *(4,) * places, 3)
        target = RNG.integers(0, 2, shape).astype(np.float32)
        logits = RNG.normal(size=shape).astype(np.float32)
        mask = (RNG.random(shape[:-1]) < 0.8).astype(np.float32)
        task = Task(
            "parts",
            kind="labels",
            channels=3,
            places=places,
            metrics=[keras.metrics.BinaryIoU([1])],
        )
        rows = task.metrics[0].statistics(*map(tf.constant, (target, logits, mask)), 3)
        prediction, label = logits[mask > 0] > 0, target[mask > 0] > 0
        expected = (prediction & label).sum() / (prediction | label).sum()
        assert task.metrics[0].over(rows.numpy()) == pytest.approx(expected)


def iou(target, output, mask):
    return tf.reduce_mean(target * output, [1, 2, 3]) * tf.reduce_max(mask, [1, 2])


class OwnMetric(keras.metrics.Mean):
    _direction = None


@pytest.mark.parametrize(
    "metric",
    [
        lambda target, output, mask: 0,
        functools.partial(iou),
        iou,
        keras.metrics.MeanMetricWrapper(iou, name="wrapped"),
        OwnMetric(),
        keras.metrics.Mean(),
    ],
)
def test_a_metric_says_which_values_are_better(metric):
    with pytest.raises(InputError, match="must say whether higher or lower values are"):
        lesion(metrics=[metric])


@pytest.mark.parametrize(
    "metric",
    [
        lambda target, output, mask: tf.reduce_mean(tf.abs(target - output)),
        lambda target, output, mask: tf.reduce_mean(tf.abs(target - output), -1),
        lambda target, output, mask: tf.reduce_mean(output, [1, 2]),
        lambda target, output, mask: tf.reduce_mean(output, keepdims=True)[0, 0, 0],
    ],
)
def test_a_metric_of_the_whole_batch_or_of_each_place_is_refused(metric):
    metric.better = "lower"
    own_metric = lesion(metrics=[metric]).metrics[0]
    with pytest.raises(InputError, match=r"A metric .* each image, \[batch\], but"):
        own_metric.statistics(*map(tf.constant, labels()), None)
    with pytest.raises(InputError, match=r"A loss .* each image, \[batch\], but"):
        metrics.mean_loss(metric).statistics(*map(tf.constant, labels()), None)


def test_keras_counts_know_which_values_are_better():
    directions = {
        name: lesion(metrics=[getattr(keras.metrics, name)()]).metrics[0].better
        for name in ("TruePositives", "FalsePositives", "FalseNegatives")
    }
    assert list(directions.values()) == ["higher", "lower", "lower"]


def outputs_of(wrong, count):
    """(target, logits, mask) of `count` images with one label; `wrong` are wrong."""
    target = np.zeros((count, 1), "f4")
    logits = np.where(np.arange(count) < wrong, 5, -5)[:, np.newaxis].astype("f4")
    return target, logits, np.ones(count, "f4")


def value_and_ends(metric, wrong, count):
    task = Task("tag", kind="labels", channels=1, places=0, metrics=[metric])
    batch = map(tf.constant, outputs_of(wrong, count))
    rows = task.metrics[0].statistics(*batch, None).numpy()
    return task.metrics[0].over(rows), *intervals.of_metric(
        task.metrics[0], rows, seed=0
    )


def test_intervals_of_keras_metrics_are_those_of_ours_and_end_where_values_do():
    for wrong in (0, 1):
        result = value_and_ends(keras.metrics.BinaryAccuracy(), wrong, 8)
        expected = value_and_ends(metrics.label_accuracy(), wrong, 8)
        np.testing.assert_allclose(result, expected)
    assert value_and_ends(keras.metrics.FalsePositives(), 1, 8)[1] == 0
    assert value_and_ends(keras.metrics.MeanSquaredError(), 1, 8)[1] == 0


def test_counts_are_over_images_with_none_too():
    value, *ends = value_and_ends(keras.metrics.FalsePositives(), 5, 100)
    assert value == 5
    expected = scipy.stats.binom(100, 0.05).ppf([0.025, 0.975])
    np.testing.assert_allclose(ends, expected, atol=1.1)


def test_bounds_and_harm_of_keras_metrics():
    own_metrics = {
        metric: lesion(metrics=[metric]).metrics[0]
        for metric in (keras.metrics.BinaryAccuracy(), keras.metrics.AUC())
    }
    assert [metric.bounds for metric in own_metrics.values()] == [(0, 1), (0, 1)]
    assert [metric.measures_harm for metric in own_metrics.values()] == [True, False]
    cosine = lesion(metrics=[keras.metrics.CosineSimilarity()]).metrics[0]
    assert (cosine.bounds, cosine.measures_harm) == ((-1, 1), False)
    mean = OwnMetric()
    mean.better = "higher"
    assert lesion(metrics=[mean]).metrics[0].bounds == (-np.inf, np.inf)


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_what_a_metric_says_counts(better):
    wrapped = keras.metrics.MeanMetricWrapper(iou, name="wrapped")
    for metric in (lambda target, output, mask: 0, wrapped):
        metric.better = better
        assert lesion(metrics=[metric]).metrics[0].better == better


def test_metrics_of_one_name_are_refused():
    def within(limit):
        def share(target, output, mask):
            return tf.reduce_mean(tf.cast(output < limit, tf.float32), [1, 2, 3])

        share.better = "higher"
        return share

    with pytest.raises(InputError, match="different names .* 2 are named share"):
        lesion(metrics=[within(0.1), within(0.9)])

    def loss(target, output, mask):
        return tf.zeros(len(target))

    loss.better = "lower"
    with pytest.raises(InputError, match="2 are named loss"):
        lesion(metrics=[loss, keras.metrics.AUC()])


def test_names_that_keras_gave_are_the_same_in_each_process_and_task():
    def names():
        keras_metrics = [keras.metrics.AUC(), keras.metrics.AUC(curve="PR")]
        keras_metrics += [
            keras.metrics.AUC(name="auc_of_7"),
            keras.metrics.F1Score("macro"),
        ]
        return [metric.name for metric in lesion(metrics=keras_metrics).metrics]

    assert names() == ["auc", "auc-2", "auc_of_7", "f1_score", "loss"]
    assert names() == names()
    metric = keras.metrics.MeanIoU(2)
    assert names_of(metric) == ["mean_io_u"]
    assert names_of(keras.metrics.F1Score(), keras.metrics.F1Score()) == [
        "f1_score",
        "f1_score-2",
    ]
    digests = [known(metrics=[keras.metrics.AUC()]) for _ in range(2)]
    assert digests[0] == digests[1]


def names_of(*own_metrics):
    return [metric.name for metric in metrics.as_metrics(own_metrics)]


def precisions(*names):
    return [keras.metrics.Precision(name=name) for name in names]


@pytest.mark.parametrize(
    "names",
    [
        ("precision_50", "precision_90"),
        ("precision_2", "precision_1"),
        ("precision_0", "precision_1"),
        ("precision_0",),
        ("precision_01",),
    ],
)
def test_names_that_are_not_keras_s_stay(names):
    assert names_of(*precisions(*names)) == [*names]


def test_a_name_never_stands_for_another_metric():
    ious = [keras.metrics.IoU(3, [i], name=f"iou_{i}") for i in (1, 2)]
    assert names_of(*ious) == ["iou_1", "iou_2"]
    errors = [keras.metrics.MeanAbsoluteError(name="mean_absolute_error_1")]
    assert names_of(*errors) == ["mean_absolute_error_1"]
    # These may be Keras's own.
    for names in (("precision", "precision_1"), ("precision_1", "precision_2")):
        assert names_of(*precisions(*names)) == ["precision", "precision-2"]
    assert names_of(*precisions("precision_3")) == ["precision"]

    def precision(target, output, mask):
        return mask[:, 0]

    precision.better = "higher"
    pair = [precision, *precisions("precision_3")]
    assert names_of(*pair) == ["precision", "precision_3"]


# Digests.


def above(limit):
    def share(target, output, mask):
        return tf.reduce_mean(tf.cast(output > limit, tf.float32), [1, 2, 3])

    share.better = "higher"
    return share


def weighted(weights):
    def loss(target, output, mask):
        return tf.reduce_mean(tf.abs(output - target)[..., 0] * weights, [1, 2])

    return loss


def known(**fields):
    return own_code.digest(lesion(**fields))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # Both give 0 for noise.
        ({"metrics": [above(10)]}, {"metrics": [above(20)]}),
        # Neither can be computed from noise of this size.
        (
            {"loss": weighted(np.ones((32, 32), "f4"))},
            {"loss": weighted(np.full((32, 32), 9, "f4"))},
        ),
        # The state is the same.
        (
            {"metrics": [keras.metrics.AUC(curve="ROC", name="auc")]},
            {"metrics": [keras.metrics.AUC(curve="PR", name="auc")]},
        ),
        ({"loss": keras.losses.Huber(40.0)}, {"loss": keras.losses.Huber(50.0)}),
    ],
)
def test_another_loss_or_metric_has_another_digest(one, other):
    assert known(**one) == known(**one) != known(**other)
    assert known(**one)


class Weighted(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return tf.reduce_mean(tf.abs(y_true - y_pred), -1)


def test_the_digest_is_the_same_before_and_after_use_and_in_each_process():
    task = lesion(loss=Weighted(), metrics=[keras.metrics.AUC(), above(0.5)])
    digest = own_code.digest(task)
    for metric in task.metrics:
        metric.statistics(*map(tf.constant, labels()), None)
    assert own_code.digest(task) == digest
    assert known(loss=Weighted()) == known(loss=Weighted())  # Keras numbers names.
    SEEN.append(1)
    first = known(loss=noting)
    SEEN.append(2)
    assert known(loss=noting) == first


SEEN = []


def noting(target, output, mask):
    SEEN.append(len(target))
    return tf.zeros(len(target))


def test_what_a_function_refers_to_counts(monkeypatch):
    digest = known(loss=with_limit)
    assert known(loss=with_limit) == digest
    monkeypatch.setitem(globals(), "LIMIT", 3.0)
    assert known(loss=with_limit) != digest


LIMIT = 2.0


def with_limit(target, output, mask):
    return tf.zeros(len(target)) if LIMIT > 100 else tf.ones(len(target))


def test_bounds_of_keras_metrics_count():
    """Intervals, which are saved with finished work, end at the bounds."""
    metric = metrics.of_keras(keras.metrics.BinaryAccuracy())
    unbounded = dataclasses.replace(metric, bounds=(-np.inf, np.inf))
    assert known(metrics=[metric]) != known(metrics=[unbounded]) != ""


def test_those_of_the_kind_have_none():
    assert own_code.digest(lesion()) == ""


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_the_eleven_are_standard_with_any_classes_and_places(task):
    assert own_code.is_standard(task)
    assert own_code.digest(task) == ""
    for places in (0, 2):
        assert own_code.is_standard(task.bound(places=places))
    if task.discrete:
        assert own_code.is_standard(task.bound(channels=7))


REL_FIRST = (metrics.rel(), metrics.mae("m"), metrics.rmse("m"))


@pytest.mark.parametrize(
    "task",
    [
        Task("depth", unit="m", metrics=REL_FIRST),
        Task("depth", unit="m"),
        Task("reshading", kind="image"),
        Task("reshading", kind="image", loss=losses.l1),
        Task("reshading", loss=losses.l2),
        Task("seg", kind="classes", metrics=metrics.miou()),
        Task("mine"),
    ],
    ids=lambda task: task.name,
)
def test_results_of_a_task_unlike_the_eleven_are_known_by_it(task):
    (record,) = resolving._own_tasks(TaskSet([task]))
    assert record["name"] == task.name
    assert record["kind"] == task.kind
    standard = TaskSet([TASKS["depth"], TASKS["reshading"], TASKS["seg"]])
    assert resolving._own_tasks(standard) == ()


def test_a_loss_of_another_kind_counts():
    """The metrics are those of the task's kind, but the loss is of another kind."""
    first, second = (
        resolving._own_tasks(TaskSet([Task("reshading", kind="image", **loss)]))
        for loss in ({}, {"loss": losses.l1})
    )
    assert first != second
