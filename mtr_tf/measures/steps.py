# SPDX-License-Identifier: Apache-2.0
"""What measures compute on a batch: steps for `passes.Pass`.

Each is a function of a batch (`data.batching`) and tensors that returns arrays with a
row per image. Steps are compiled, and see only the images of the batch. If `channels`
is not empty, gradients and attacks concern only these channels of the images.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from mtr_tf import attacks
from mtr_tf.attacks import base
from mtr_tf.attacks import channels as channels_lib
from mtr_tf.attacks import output_mask as output_mask_lib
from mtr_tf.attacks import threat
from mtr_tf.evaluation.sweep import Subject
from mtr_tf.measures import corruptions
from mtr_tf.measures import gradients as gradients_lib
from mtr_tf.measures import records
from mtr_tf.models import stateless
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import table
from mtr_tf.tasks import task_set


def gradients(
    model: Any, tasks: TaskSet, channels: Sequence[int] = ()
) -> Callable[..., dict]:
    """A pass: batch[, pixels] -> the arrays that l2 norms of all sets need.

    `pixels`, 0/1 `[H, W]`, restricts the losses to some output pixels. The pass returns
    {"loss": `[batch, M]`, "gram": `[batch, M, M]`, "l1": `[batch, M]`, the norm for
    each task, "valid": bool `[batch, M]`}.
    """
    tasks = task_set(tasks)

    def step(batch, pixels=None):
        masks = output_mask_lib.of_pixels(pixels, batch["masks"], tasks)
        by_task, gradients = gradients_lib.task_gradients(
            model, batch["image"], batch["targets"], masks, tasks, channels
        )
        return {
            "loss": by_task,
            "gram": gradients_lib.gram(gradients),
            "l1": tf.reduce_sum(tf.cast(tf.abs(gradients), tf.float64), axis=2),
            "valid": gradients_lib.valid(masks, tasks),
        }

    return step


def l1_of_sets(
    model: Any, tasks: TaskSet, channels: Sequence[int] = ()
) -> Callable[..., dict]:
    """A pass: (batch, divisors `[M]`) -> the l1 norms of all sets.

    Returns {normalisation: float64 `[batch, S]`}, norms of sums of gradients, for all
    NORMALISATIONS. The divisors are those of "dataset", 0 for a task without one.
    """
    tasks = task_set(tasks)

    def step(batch, divisors):
        _, gradients = gradients_lib.task_gradients(
            model, batch["image"], batch["targets"], batch["masks"], tasks, channels
        )
        norms = tf.reduce_sum(tf.abs(gradients), axis=2, keepdims=True)
        dataset_norms = tf.cast(divisors, tf.float32)[:, tf.newaxis]
        return {
            "raw": gradients_lib.l1_of_sums(gradients),
            "unit": gradients_lib.l1_of_sums(tf.math.divide_no_nan(gradients, norms)),
            "dataset": gradients_lib.l1_of_sums(
                tf.math.divide_no_nan(gradients, dataset_norms)
            ),
        }

    return step


def pixel_attack(
    subject: Subject, name: str, attack: Callable[..., tf.Tensor]
) -> Callable[..., dict[str, tf.Tensor]]:
    """A pass: (batch, pixels 0/1 `[H, W]`) -> rows of metrics on just these pixels.

    Returns {"clean/<metric>", "attacked/<metric>": `[batch, K]`}. The attack raises the
    task's loss over the same pixels.
    """
    task = subject.tasks[name]

    def step(batch, pixels):
        mask = output_mask_lib.restricted(batch["masks"][name], pixels)
        masks, target = {name: mask}, batch["targets"][name]
        objective = attacks.objective(
            subject.model, batch["targets"], masks, tasks=(task,)
        )
        images = {
            "clean": batch["image"],
            "attacked": attack(objective, batch["image"]),
        }
        rows = {}
        for kind, image in images.items():
            output = stateless.outputs(subject.model, image)[name]
            for metric in records.shown_metrics(task):
                rows[f"{kind}/{metric.name}"] = metric.statistics(
                    target,
                    output,
                    mask,
                    task.output_channels(subject.info.num_classes),
                )
        return rows

    return step


def corrupted(
    subject: Subject, name: str, channels: Sequence[int] = ()
) -> Callable[..., dict[str, tf.Tensor]]:
    """A pass: (batch, strength) -> rows of metrics on corrupted images.

    Returns {"<task>/<metric>": `[batch, K]`}. `name` is one of
    `corruptions.SEVERITIES`, or empty for unchanged images.
    """

    def step(batch, strength):
        images = batch["image"]
        if name:
            keys = threat.image_keys(subject.seed, batch["index"])
            images = corruptions.corrupted(name, images, strength, keys, channels)
        rows = table.statistics(
            subject.tasks,
            stateless.outputs(subject.model, images),
            batch["targets"],
            batch["masks"],
            subject.info.num_classes,
        )
        return {
            f"{task}/{metric}": values
            for task, by_metric in rows.items()
            for metric, values in by_metric.items()
        }

    return step


def first_order(
    subject: Subject,
    group: Sequence[str],
    norm: str,
    steps: int,
    channels: Sequence[int] = (),
) -> Callable[..., dict[str, tf.Tensor]]:
    """A pass: (batch, epsilon) -> the dual norm, and the mean loss before and after.

    Returns {"norm", "before", "after": `[batch]`, "valid": bool `[batch, M]`}. PGD
    starts at the image itself and keeps the best point.
    """
    tasks = subject.tasks.select(group)

    def step(batch, epsilon):
        objective = attacks.objective(
            subject.model, batch["targets"], batch["masks"], tasks, "mean"
        )
        attack = attacks.PGD(
            epsilon,
            epsilon / min(4, steps),
            steps,
            norm,
            random_start=False,
        )
        channel_attack = attacks.on_channels(attack, channels)
        x, start = batch["image"], tf.constant(0.0)
        slope, clean_loss = base.gradient(objective, x, start)
        slope = channels_lib.chosen(slope, channels)
        order = 1 if norm == "linf" else 2
        vectors = tf.cast(slope, tf.float64)
        return {
            "norm": tf.norm(tf.reshape(vectors, (tf.shape(x)[0], -1)), order, axis=1),
            "before": clean_loss,
            "after": base.score(objective, channel_attack(objective, x), start),
            "valid": gradients_lib.valid(batch["masks"], group),
        }

    return step
