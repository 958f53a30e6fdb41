# SPDX-License-Identifier: Apache-2.0
"""Training losses by hand, and the rules of task weights."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from mtr_tf.config.train import TrainConfig
from mtr_tf.data.source import DatasetInfo
from mtr_tf.errors import InputError
from mtr_tf.runs import directory
from mtr_tf.tasks import Task
from mtr_tf.tasks import task_set
from mtr_tf.training import losses as training_losses

INFO = DatasetInfo(
    name="made",
    image_shape=(1, 4, 3),
    classes=("a", "b"),
    colors=((0, 0, 0), (9, 9, 9)),
    tasks=("seg", "depth", "autoencoder"),
    splits={"train": 1},
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
    ranges={},
    class_weights=(1.0, 3.0),
)
TASKS = ("seg", "depth", "autoencoder")
# Four pixels, the last not valid; probabilities of the right class: 1/2, 1/4, 3/4.
LABELS = np.array([[[0, 1, 1, 9]]], np.int32)
LOGITS = np.log([[[[1, 1], [3, 1], [1, 3], [1, 1]]]]).astype(np.float32)
MASK = np.array([[[1, 1, 1, 0]]], np.float32)


def made(info=INFO, **settings):
    config = directory.canonical(TrainConfig(tasks=("s", "d", "A"), **settings))
    return training_losses.make(config, info)


def test_class_weights_by_hand():
    total = math.log(2) + 3 * math.log(4) + 3 * math.log(4 / 3)
    by_weights = made()["seg"](LABELS, LOGITS, MASK)
    np.testing.assert_allclose(by_weights, [total / 7], rtol=1e-6)
    by_pixels = made(loss_norm="all")["seg"](LABELS, LOGITS, MASK)
    np.testing.assert_allclose(by_pixels, [total / 4], rtol=1e-6)
    unweighted = made(class_weights=False)["seg"](LABELS, LOGITS, MASK)
    total = math.log(2) + math.log(4) + math.log(4 / 3)
    np.testing.assert_allclose(unweighted, [total / 3], rtol=1e-6)


def test_losses_are_called_what_they_are():
    losses = {norm: made(loss_norm=norm) for norm in ("valid", "all")}
    assert [loss.__name__ for loss in losses["valid"].values()] == [
        "weighted_cross_entropy",
        "l1",
        "l2",
    ]
    assert [loss.__name__ for loss in losses["all"].values()] == [
        "weighted_cross_entropy_over_all_pixels",
        "l1_over_all_pixels",
        "l2_over_all_pixels",
    ]


def test_class_weights_beside_a_loss_of_ones_own_are_refused():
    task = Task("seg", classes=("a", "b"), loss=lambda target, output, mask: mask[:, 0])
    info = dataclasses.replace(INFO, tasks=INFO.tasks.replaced(task))
    with pytest.raises(InputError, match=r"for seg, which .* --noclass_weights"):
        made(info)
    assert made(info, class_weights=False)["seg"] is task.loss
    by_weights = made(info, task_losses=("seg:cross_entropy",))["seg"]
    total = math.log(2) + 3 * math.log(4) + 3 * math.log(4 / 3)
    np.testing.assert_allclose(by_weights(LABELS, LOGITS, MASK), [total / 7], rtol=1e-6)


def test_an_image_without_valid_pixels_has_no_loss():
    for norm in ("valid", "all"):
        loss = made(loss_norm=norm)["seg"](LABELS, LOGITS, 0 * MASK)
        np.testing.assert_array_equal(loss, [0])


def test_sums_over_all_pixels_by_hand():
    target = np.array([1, 2, 3, math.nan], np.float32).reshape(1, 1, 4, 1)
    output = np.zeros_like(target)
    np.testing.assert_allclose(made()["depth"](target, output, MASK), [2])
    over_all = made(loss_norm="all")["depth"](target, output, MASK)
    np.testing.assert_allclose(over_all, [6 / 4])


def test_other_losses_by_name():
    target = np.zeros((1, 1, 4, 3), np.float32)
    output = np.full((1, 1, 4, 3), 3, np.float32)
    squared, absolute = made(), made(task_losses=("A:l1",))
    np.testing.assert_allclose(squared["autoencoder"](target, output, MASK), [9])
    np.testing.assert_allclose(absolute["autoencoder"](target, output, MASK), [3])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("depth", "pairs of a task and a loss.* got 'depth'"),
        ("depth:l3", "l1, l2; got 'l3'"),
        ("normal:l1", "tasks that are trained .* got normal"),
        ("seg:l1", "cross_entropy is for classes"),
        ("depth:cross_entropy", "cross_entropy is for classes"),
    ],
)
def test_losses_that_cannot_be(given, message):
    with pytest.raises(InputError, match=message):
        made(task_losses=(given,))


def test_rules_by_flag():
    def fixed_weights(**settings):
        config = directory.canonical(TrainConfig(tasks=("s", "d"), **settings))
        return training_losses.make_weighting(config, task_set(config.tasks)).fixed

    assert fixed_weights(main_tasks=("s",), aux_weight=0.01) == {
        "seg": 1,
        "depth": 0.01,
    }
    assert fixed_weights(task_weights="equal") == {"seg": 0.5, "depth": 0.5}
    weighting = training_losses.make_weighting(
        TrainConfig(tasks=("seg", "depth"), task_weights="uncertainty"),
        task_set(("seg", "depth")),
    )
    assert weighting.current() == {"seg": 1, "depth": 0.5}
    with pytest.raises(InputError, match="--aux_weight need"):
        TrainConfig(task_weights="equal", aux_weight=0.1)


def test_task_weights_are_the_papers():
    assert training_losses.task_weights(("seg", "depth"), (), 1) == {
        "seg": 0.5,
        "depth": 0.5,
    }
    assert training_losses.task_weights(TASKS, ("seg",), 0.1) == {
        "seg": 1,
        "depth": 0.05,
        "autoencoder": 0.05,
    }
    assert training_losses.task_weights(TASKS, ("seg", "depth"), 0.1) == {
        "seg": 0.5,
        "depth": 0.5,
        "autoencoder": 0.1,
    }
    with pytest.raises(
        InputError, match="--main_tasks .*seg, depth.* but normal is not"
    ):
        training_losses.task_weights(("seg", "depth"), ("normal",), 1)
