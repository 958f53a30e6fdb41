# SPDX-License-Identifier: Apache-2.0
"""Houdini, a loss in place of the segmentation score, and its released variant.

Cisse et al. ("Houdini: Fooling Deep Structured Prediction Models", 2017) multiply what
an attack is about, the task loss, by the chance that the true class loses against the
predicted one once Gaussian noise is added to the scores:

    task loss / N * sum over pixels of P[noise > s_y - s_max], where P[noise > d]
    is 1 - Phi(d)

Here s are log-softmax scores, s_max the largest of ALL classes (the true one included,
as in the code that "Multitask Learning Strengthens Adversarial Robustness" released),
and N is the image's number of valid pixels. No gradient goes through the task loss.
"""

from __future__ import annotations

import math

import tensorflow as tf

from mtr_tf.tasks import losses
from mtr_tf.tasks import metrics


def houdini(target: tf.Tensor, output: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Returns Houdini with task loss 1 - mIoU and its true derivative, `[batch]`.

    The mIoU is the image's, over the classes in its target or prediction. At a pixel
    that is still right, s_y - s_max is 0 whatever the scores, so its derivative is 0
    too: pixels already wrong are pushed further, the others are not moved, and an
    image without a wrong pixel has a task loss and a gradient of 0.

    Args:
      target: Classes, integer `[batch, height, width]`, in [0, classes) where valid.
      output: Logits, float `[batch, height, width, classes]`.
      mask: `[batch, height, width]`, zero where there is no target.
    """
    labels, scores = _labels_and_scores(target, output, mask)
    chance = _chance(_of_class(scores, labels) - tf.reduce_max(scores, axis=-1))
    share = _mean_iou(target, output, mask, of_all=False)
    return (1 - share) * losses.mean_over_valid(chance, mask)


def released(target: tf.Tensor, output: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Returns Houdini as the released code computes it, float32 `[batch]`.

    It differs from `houdini` in two ways, both kept on purpose. Its "task loss" is the
    image's mIoU in percent, over all classes, absent ones counting 0: a factor that
    falls as the attack succeeds, and ends it at 0. And its backward pass is not its
    derivative: with C = 1 / sqrt(2 pi), each pixel adds C exp(-(s_y - s_max)^2 / 2)
    (task loss) / N to the predicted class and subtracts it from the true one, but
    where both are the same the subtraction alone remains. Through the log-softmax that
    is C (task loss) / N times the gradient of the pixel's cross-entropy, and it is
    what moves the pixels that are still right.

    Void pixels count in neither mIoU nor N. The arguments are those of `houdini`.
    """
    labels, scores = _labels_and_scores(target, output, mask)
    share = _mean_iou(target, output, mask, of_all=True)
    return 100 * share * losses.mean_over_valid(_released_chance(scores, labels), mask)


def _released_chance(scores: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns P[noise > s_y - s_max], `[batch, H, W]`, with the released gradient."""

    @tf.custom_gradient
    def chance(scores):
        gap = _of_class(scores, labels) - tf.reduce_max(scores, axis=-1)

        def backward(upstream):
            size = upstream * tf.exp(-tf.square(gap) / 2) / math.sqrt(2 * math.pi)
            classes = scores.shape[-1]
            predicted = tf.one_hot(tf.argmax(scores, axis=-1), classes)
            true = tf.one_hot(labels, classes)
            move = tf.where(true > 0, -true, predicted)  # Not predicted - true.
            return size[..., tf.newaxis] * move

        return _chance(gap), backward

    return chance(scores)


def _chance(gap: tf.Tensor) -> tf.Tensor:
    """Returns 1 - Phi(gap), Phi being the standard normal distribution function."""
    return tf.math.erfc(gap / math.sqrt(2)) / 2


def _labels_and_scores(target, output, mask) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns labels and log-softmax scores; class 0 and even scores where masked."""
    labels = losses.where_valid(mask, tf.cast(target, tf.int32))
    logits = losses.where_valid(mask, tf.cast(output, tf.float32))
    return labels, tf.nn.log_softmax(logits)


def _of_class(scores: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns each pixel's score of its label, `[batch, H, W]`."""
    chosen = tf.one_hot(labels, scores.shape[-1], on_value=True, off_value=False)
    return tf.reduce_sum(tf.where(chosen, scores, 0.0), axis=-1)


def _mean_iou(target, output, mask, of_all: bool) -> tf.Tensor:
    """Returns each image's mIoU in [0, 1], without a gradient.

    The mean is over the classes in target or prediction, or else over all; 0 where
    there is no valid pixel.
    """
    classes = output.shape[-1]
    counts = metrics.class_counts(target, output, mask, classes)
    hits, of_target, predicted = (tf.cast(count, tf.float32) for count in counts)
    union = of_target + predicted - hits
    occurring = tf.reduce_sum(tf.cast(union > 0, tf.float32), axis=-1)
    total = tf.reduce_sum(tf.math.divide_no_nan(hits, union), axis=-1)
    return total / classes if of_all else tf.math.divide_no_nan(total, occurring)
