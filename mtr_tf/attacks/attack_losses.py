# SPDX-License-Identifier: Apache-2.0
"""Losses that an attacker may raise in place of a task's own loss.

All are means over an image's N valid pixels, float32, one number per image. Values
where the mask is zero (labels of 255, NaN) affect neither a loss nor its gradient. A
targeted attack raises minus the loss towards the wanted target.

Weights of pixels are always held fixed (stop_gradient). Where they depend on whether a
pixel is still right, those of a targeted attack depend instead on whether it is not yet
as wanted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from mtr_tf.tasks import losses
from mtr_tf.tasks import metrics
from mtr_tf.tasks.task import Loss
from mtr_tf.tasks.task import Task


class Case(NamedTuple):
    """One task's batch, as an attack loss sees it.

    Attributes:
      target: The true one, or the wanted one if `targeted`; shapes as in `losses`.
      output: The model's logits or values.
      mask: [batch, *places], zero where there is no target.
      task_loss: The task's own loss, `(target, output, mask)` -> [batch].
      progress: Share of the attack's steps done, in [0, 1].
      targeted: Whether the loss will be lowered, towards `target`.
      kind: The task's.
    """

    target: tf.Tensor
    output: tf.Tensor
    mask: tf.Tensor
    task_loss: Loss = losses.cross_entropy
    progress: tf.Tensor | float = 0.0
    targeted: bool = False
    kind: str = ""

    @property
    def labels(self) -> tf.Tensor:
        """Classes, int32 [batch, *places]; 0 where masked."""
        return losses.where_valid(self.mask, tf.cast(self.target, tf.int32))

    @property
    def prediction(self) -> tf.Tensor:
        """The output, float32 [batch, *places, channels]; 0 where masked."""
        return losses.where_valid(self.mask, tf.cast(self.output, tf.float32))

    @property
    def values(self) -> tf.Tensor:
        """The target of a task that is not discrete, as `prediction`."""
        return losses.where_valid(self.mask, tf.cast(self.target, tf.float32))

    @property
    def per_pixel(self) -> tf.Tensor:
        """Each place's own loss, float32 [batch, *places], as of a one-place image."""
        axes = len(self.mask.shape) - 1

        def pixels(values):
            return tf.reshape(values, (-1, *[1] * axes, *values.shape[1 + axes :]))

        pixel_losses = self.task_loss(
            *map(pixels, (self.target, self.output, self.mask))
        )
        return tf.reshape(pixel_losses, tf.shape(self.mask))

    @property
    def cross_entropy(self) -> tf.Tensor:
        """Each place's -log p of its class, float32 [batch, *places]."""
        return losses.pixel_cross_entropy(self.target, self.output, self.mask)

    @property
    def unfinished(self) -> tf.Tensor:
        """1 where the predicted class is still the target (targeted: is not yet)."""
        predicted = tf.argmax(self.prediction, axis=-1, output_type=tf.int32)
        right = tf.equal(predicted, self.labels)
        return tf.cast(right != self.targeted, tf.float32)

    @property
    def margins(self) -> tf.Tensor:
        """Each place's largest other logit minus its class's; above 0 it is wrong.

        Float32 [batch, *places]. Of labels, each with its own logit: minus the logit
        where the label is there, else the logit; [batch, *places, labels].
        """
        logits = self.prediction
        if self.kind == "labels":
            return tf.where(self.values > 0.5, -logits, logits)
        is_target = _one_hot(self.labels, logits.shape[-1])
        largest_other = tf.reduce_max(
            tf.where(is_target, logits.dtype.min, logits), axis=-1
        )
        return largest_other - tf.reduce_sum(tf.where(is_target, logits, 0.0), axis=-1)

    def mean(self, values: tf.Tensor) -> tf.Tensor:
        """Returns the mean per image over its valid pixels, [batch]."""
        return losses.mean_over_valid(values, self.mask)


def own(case: Case) -> tf.Tensor:
    """The task's own loss: (1/N) sum_i l_i."""
    return case.task_loss(case.target, case.output, case.mask)


# For classes.


def segpgd(case: Case) -> tf.Tensor:
    """SegPGD: weight 1 - a on pixels still right, a on wrong ones, a = progress / 2.

    Gu et al. 2022. Targeted: 1 - a on pixels not yet as wanted, a on the others.
    """
    a = tf.cast(case.progress, tf.float32) / 2
    weights = tf.where(case.unfinished > 0, 1 - a, a)
    return case.mean(weights * case.cross_entropy)


def masked_ce(case: Case) -> tf.Tensor:
    """Cross-entropy of the pixels that are still right (SEA, Croce et al. 2024).

    Divided by all valid pixels, so that it is 0 for an image that is wrong everywhere.
    Targeted: of the pixels that are not yet as wanted.
    """
    return case.mean(case.unfinished * case.cross_entropy)


def masked_ce_balanced(case: Case) -> tf.Tensor:
    """As `masked_ce`, with each class of the target counting the same (after SEA).

    A pixel of class c weighs N / (K n_c): n_c of the image's N valid pixels have this
    target class, K classes occur. So it is the mean over the image's classes of the
    class's mean, as the mIoU is a mean over classes. SEA's weights are fixed numbers
    per class, from the frequencies in a whole data set; these need no data set.
    """
    classes = case.output.shape[-1]
    counts = metrics.class_counts(case.target, case.output, case.mask, classes)
    sizes = tf.cast(counts[1], tf.float32)
    class_count = tf.reduce_sum(tf.cast(sizes > 0, tf.float32), axis=1, keepdims=True)
    valid = losses.count_valid(case.mask)[:, tf.newaxis]
    weights = tf.math.divide_no_nan(valid, class_count * sizes)  # [batch, classes]
    pixel_weights = tf.gather(weights, case.labels, batch_dims=1)
    return case.mean(pixel_weights * case.unfinished * case.cross_entropy)


def js(case: Case) -> tf.Tensor:
    """Jensen-Shannon divergence, in nats, between softmax and the one-hot target.

    With p the probability of the target class it is log 2 + (p log p - (1 + p)
    log(1 + p)) / 2, from 0 to log 2: bounded, so lost pixels cease to pull (SEA).
    """
    log_p = -case.cross_entropy
    p = tf.exp(log_p)
    return case.mean(math.log(2) + (p * log_p - (1 + p) * tf.math.log1p(p)) / 2)


def margin(case: Case) -> tf.Tensor:
    """Largest other logit minus the target's; negative where the pixel is right."""
    return case.mean(case.margins)


def _one_hot(labels: tf.Tensor, classes: int) -> tf.Tensor:
    return tf.one_hot(labels, classes, on_value=True, off_value=False)


# Houdini, for classes, and its released variant.
#
# Cisse et al. ("Houdini: Fooling Deep Structured Prediction Models", 2017) multiply
# what an attack is about, the task loss, by the chance that the true class loses
# against the predicted one once Gaussian noise is added to the scores:
#
#     task loss / N * sum over pixels of P[noise > s_y - s_max], where P[noise > d]
#     is 1 - Phi(d)
#
# Here s are log-softmax scores, s_max the largest of ALL classes (the true one
# included, as in the code that "Multitask Learning Strengthens Adversarial Robustness"
# released), and N is the image's number of valid pixels. No gradient goes through the
# task loss.


def houdini(case: Case) -> tf.Tensor:
    """Houdini with task loss 1 - mIoU and its true derivative.

    The mIoU is the image's, over the classes in its target or prediction. At a pixel
    that is still right, s_y - s_max is 0 whatever the scores, so its derivative is 0
    too: pixels already wrong are pushed further, the others are not moved, and an
    image without a wrong pixel has a task loss and a gradient of 0.
    """
    chance = _chance(_gap(tf.nn.log_softmax(case.prediction), case.labels))
    return (1 - _mean_iou(case, all_classes=False)) * case.mean(chance)


def houdini_released(case: Case) -> tf.Tensor:
    """Houdini as the released code computes it.

    It differs from `houdini` in two ways, both kept on purpose. Its "task loss" is the
    image's mIoU in percent, over all classes, absent ones counting 0: a factor that
    falls as the attack succeeds, and ends it at 0. And its backward pass is not its
    derivative: with C = 1 / sqrt(2 pi), each pixel adds C exp(-(s_y - s_max)^2 / 2)
    (task loss) / N to the predicted class and subtracts it from the true one, but
    where both are the same the subtraction alone remains. Through the log-softmax that
    is C (task loss) / N times the gradient of the pixel's cross-entropy, and it is
    what moves the pixels that are still right.

    Void pixels count in neither mIoU nor N.
    """
    chance = _released_chance(tf.nn.log_softmax(case.prediction), case.labels)
    return 100 * _mean_iou(case, all_classes=True) * case.mean(chance)


def _released_chance(scores: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns P[noise > s_y - s_max], [batch, *places], with the released gradient."""

    @tf.custom_gradient
    def chance(scores):
        gap = _gap(scores, labels)

        def backward(upstream):
            size = upstream * tf.exp(-tf.square(gap) / 2) / math.sqrt(2 * math.pi)
            classes = scores.shape[-1]
            predicted = tf.one_hot(tf.argmax(scores, axis=-1), classes)
            true = tf.one_hot(labels, classes)
            move = tf.where(true > 0, -true, predicted)  # Not predicted - true.
            return size[..., tf.newaxis] * move

        return _chance(gap), backward

    return chance(scores)


def _gap(scores: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns s_y - s_max of each pixel, [batch, *places]."""
    is_target = _one_hot(labels, scores.shape[-1])
    target_scores = tf.reduce_sum(tf.where(is_target, scores, 0.0), axis=-1)
    return target_scores - tf.reduce_max(scores, axis=-1)


def _chance(gap: tf.Tensor) -> tf.Tensor:
    """Returns 1 - Phi(gap), Phi being the standard normal distribution function."""
    return tf.math.erfc(gap / math.sqrt(2)) / 2


def _mean_iou(case: Case, all_classes: bool) -> tf.Tensor:
    """Returns each image's mIoU in [0, 1], [batch], without a gradient.

    With `all_classes` the mean is over all classes, otherwise over those in target or
    prediction; 0 where there is no valid pixel.
    """
    classes = case.output.shape[-1]
    counts = metrics.class_counts(case.target, case.output, case.mask, classes)
    hits, target_pixels, predicted_pixels = (
        tf.cast(count, tf.float32) for count in counts
    )
    union = target_pixels + predicted_pixels - hits
    class_count = tf.reduce_sum(tf.cast(union > 0, tf.float32), axis=-1)
    total = tf.reduce_sum(tf.math.divide_no_nan(hits, union), axis=-1)
    return total / classes if all_classes else tf.math.divide_no_nan(total, class_count)


# For labels.


def masked_bce(case: Case) -> tf.Tensor:
    """Binary cross-entropy of the labels that are still right, over all labels.

    A label is right where its logit has the sign of its target. Targeted: of the labels
    that are not yet as wanted. As `masked_ce` is for classes.
    """
    right = tf.equal(case.prediction > 0, case.values > 0.5)
    unfinished = tf.cast(right != case.targeted, tf.float32)
    label_losses = tf.nn.sigmoid_cross_entropy_with_logits(case.values, case.prediction)
    return case.mean(unfinished * label_losses)


# For classes and values.


def cospgd(case: Case) -> tf.Tensor:
    """CosPGD: own losses weighted by the cosine of prediction and target, per pixel.

    Agnihotri et al. 2024. The cosine is that of softmax and one-hot target for classes,
    of the softmax over channels of both for values, and of (s, 1 - s) and (y, 1 - y)
    for labels, with the sigmoid s and the target y. Targeted: weighted by 1 minus the
    cosine.

    A softmax over one channel is 1, and so is the cosine: for tasks of one channel this
    is plain PGD on the own loss (also if targeted, where the weight would be 0).
    """
    if case.kind == "labels":
        predicted, wanted = map(
            _with_complement, (tf.nn.sigmoid(case.prediction), case.values)
        )
    elif case.output.shape[-1] == 1:
        return own(case)
    else:
        predicted = tf.nn.softmax(case.prediction)
        if losses.has_channels(case.target, case.mask):
            wanted = tf.nn.softmax(case.values)
        else:
            wanted = tf.cast(_one_hot(case.labels, predicted.shape[-1]), tf.float32)
    cosine = tf.stop_gradient(_cosine(predicted, wanted))
    return case.mean((1 - cosine if case.targeted else cosine) * case.per_pixel)


def _with_complement(shares: tf.Tensor) -> tf.Tensor:
    return tf.concat([shares, 1 - shares], axis=-1)


def _cosine(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Returns the cosine along the last axis; 0 for a vector of length 0."""
    a, b = tf.math.l2_normalize(a, -1), tf.math.l2_normalize(b, -1)
    return tf.reduce_sum(a * b, axis=-1)


# For values.


def relative(case: Case) -> tf.Tensor:
    """|output - target| / target, mean over the valid pixels with target > 0.

    As the metric `rel`: pixels with a channel that is not positive do not count.
    """
    positive = tf.cast(tf.reduce_all(case.values > 0, axis=-1), tf.float32)
    error = tf.abs(losses.difference(case.target, case.output, positive))
    share = tf.math.divide_no_nan(error, losses.where_valid(positive, case.values))
    return losses.mean_over_valid(share, positive)


def angular(case: Case) -> tf.Tensor:
    """1 - cosine of the output and target vectors, of any length; from 0 to 2."""
    return case.mean(1 - _cosine(case.prediction, case.values))


# The table.


def _case_loss(loss: Loss) -> Callable[[Case], tf.Tensor]:
    """Returns a task's loss as a function of a case."""
    return lambda case: loss(case.target, case.output, case.mask)


def _is_discrete(task: Task) -> bool:
    return task.discrete


def _is_of_labels(task: Task) -> bool:
    return task.kind == "labels"


def _is_continuous(task: Task) -> bool:
    return not task.discrete and not _is_of_labels(task)


def _is_direction(task: Task) -> bool:
    by_angles = any(metric.name == "angular_error" for metric in task.metrics)
    return task.kind == "directions" or by_angles


@dataclasses.dataclass(frozen=True)
class AttackLoss:
    """A loss to raise.

    Attributes:
      loss: Case -> [batch], never negative unless `signed`.
      fits: Whether it can stand in for a task's own loss.
      formula: What a pixel counts, a line of Markdown for docs/attacks.md: l is the
        pixel's own loss, y its target's class, p the softmax, z the logits.
      source: Where it is from, likewise.
      signed: Whether it may be negative.
      targetable: Whether a targeted form is defined.
      leaves_out: Whether an image that is wrong everywhere (targeted: as wanted) has no
        gradient at first, since nothing is left to do.
    """

    loss: Callable[[Case], tf.Tensor]
    fits: Callable[[Task], bool]
    formula: str
    source: str
    signed: bool = False
    targetable: bool = True
    leaves_out: bool = False


ATTACK_LOSSES: dict[str, AttackLoss] = {
    "ce": AttackLoss(
        _case_loss(losses.cross_entropy),
        _is_discrete,
        "`-log p_y`",
        "own loss of classes",
    ),
    "segpgd": AttackLoss(
        segpgd,
        _is_discrete,
        "`(1 - a) l` where right, `a l` where wrong, `a` from 0 to 1/2: half the "
        "progress",
        "Gu et al., ECCV 2022",
        leaves_out=True,
    ),
    "cospgd": AttackLoss(
        cospgd,
        lambda task: True,
        "`[cos(softmax(output), target)] l`, with the one-hot target or its softmax; "
        "with one channel it is plain PGD",
        "Agnihotri et al., ICML 2024",
    ),
    "masked_ce": AttackLoss(
        masked_ce,
        _is_discrete,
        "`-log p_y` where right, else 0",
        "Croce et al., ECCV 2024 (SEA)",
        leaves_out=True,
    ),
    "masked_ce_balanced": AttackLoss(
        masked_ce_balanced,
        _is_discrete,
        "the same, times `N / (K n_y)`",
        "after Croce et al., ECCV 2024 (SEA), with weights from the image itself",
        leaves_out=True,
    ),
    "js": AttackLoss(
        js,
        _is_discrete,
        "Jensen-Shannon divergence of p and the one-hot target: "
        "`log 2 + (p_y log p_y - (1 + p_y) log(1 + p_y)) / 2`",
        "Croce et al., ECCV 2024 (SEA)",
    ),
    "margin": AttackLoss(
        margin,
        _is_discrete,
        "largest other logit minus `z_y`",
        "Carlini and Wagner 2017, without their bound",
        signed=True,
    ),
    "houdini": AttackLoss(
        houdini,
        _is_discrete,
        "`[1 - mIoU] (1 - Phi(s_y - max s))`, `s = log p`",
        "Cisse et al. 2017",
    ),
    "houdini_released": AttackLoss(
        houdini_released,
        _is_discrete,
        "`[100 mIoU] (1 - Phi(s_y - max s))` and another backward pass",
        "released code of Mao et al. 2020",
        targetable=False,
        leaves_out=True,
    ),
    "bce": AttackLoss(
        _case_loss(losses.binary_cross_entropy),
        _is_of_labels,
        "`-y log s - (1 - y) log(1 - s)`, `s` the sigmoid, mean over labels",
        "own loss of labels",
    ),
    "masked_bce": AttackLoss(
        masked_bce,
        _is_of_labels,
        "the same for labels that are right, else 0",
        "as masked_ce, for labels",
        leaves_out=True,
    ),
    "l1": AttackLoss(
        _case_loss(losses.l1),
        _is_continuous,
        "`|output - target|`",
        "own loss of most maps",
    ),
    "l2": AttackLoss(
        _case_loss(losses.l2),
        _is_continuous,
        "`(output - target)^2`",
        "own loss of the autoencoder",
    ),
    "relative": AttackLoss(
        relative,
        _is_continuous,
        "`|output - target| / target` where target > 0",
        "the metric REL of depth estimation",
    ),
    "angular": AttackLoss(
        angular,
        _is_direction,
        "`1 - cos(output, target)`",
        "the metric of surface normals",
    ),
}
