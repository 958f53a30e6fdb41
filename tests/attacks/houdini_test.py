# SPDX-License-Identifier: Apache-2.0
"""Houdini against loops over pixels, with SciPy's normal distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from mtr_tf.attacks.attack_losses import Case
from mtr_tf.attacks.attack_losses import houdini
from mtr_tf.attacks.attack_losses import houdini_released

CLASSES = 4


def batch(seed=0):
    """Images of 3x4 pixels: whole, partly masked with garbage, all masked."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, CLASSES - 1, (3, 3, 4)).astype(np.int32)
    logits = rng.normal(size=(3, 3, 4, CLASSES)) + np.eye(CLASSES)[target]
    mask = np.ones((3, 3, 4), np.float32)
    mask[1] = rng.integers(0, 2, (3, 4))
    mask[2] = 0
    target[mask == 0] = 255
    logits[mask == 0] = np.nan
    return target, logits.astype(np.float32), mask


def run(loss, target, logits, mask):
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(Case(tf.constant(target), logits, tf.constant(mask)))
    return value.numpy(), tape.gradient(value, logits).numpy()


def log_softmax(z):
    return z - max(z) - math.log(sum(math.exp(v - max(z)) for v in z))


def mean_iou(target, prediction, all_classes):
    """The mean IoU of valid pixels, flat; absent classes count 0 if `all_classes`."""
    shares = []
    for c in range(CLASSES):
        union = np.sum((target == c) | (prediction == c))
        if union:
            shares.append(np.sum((target == c) & (prediction == c)) / union)
        elif all_classes:
            shares.append(0.0)
    return sum(shares) / len(shares)


def chance(target, logits):
    """Sum over pixels, in float64."""
    total = 0.0
    for y, z in zip(target, logits, strict=True):
        s = log_softmax(z)
        total += stats.norm.sf(s[y] - max(s))
    return total


@pytest.mark.parametrize("seed", range(3))
def test_the_true_one_is_the_formula_and_has_its_derivative(seed):
    target, logits, mask = batch(seed)
    value, slope = run(houdini, target, logits, mask)
    for i in range(2):
        valid = mask[i] > 0
        y, z = target[i][valid], logits[i][valid].astype(float)
        factor = (1 - mean_iou(y, z.argmax(-1), all_classes=False)) / len(y)
        np.testing.assert_allclose(value[i], factor * chance(y, z), rtol=1e-5)
        expected = np.zeros_like(z)
        for index in np.ndindex(z.shape):
            move = np.zeros_like(z)
            move[index] = 1e-5
            rise = chance(y, z + move) - chance(y, z - move)
            expected[index] = factor * rise / 2e-5
        np.testing.assert_allclose(slope[i][valid], expected, rtol=1e-4, atol=1e-6)
        assert np.abs(expected).max() > 0
        assert not slope[i][~valid].any()
    assert value[2] == 0
    assert not slope[2].any()


@pytest.mark.parametrize("seed", range(3))
def test_the_released_one_is_the_formula_and_has_the_released_backward_pass(seed):
    target, logits, mask = batch(seed)
    value, slope = run(houdini_released, target, logits, mask)
    for i in range(2):
        valid = mask[i] > 0
        y, z = target[i][valid], logits[i][valid].astype(float)
        factor = 100 * mean_iou(y, z.argmax(-1), all_classes=True) / len(y)
        np.testing.assert_allclose(value[i], factor * chance(y, z), rtol=1e-5)
        for pixel in range(len(y)):
            s = log_softmax(z[pixel])
            size = math.exp(-((s[y[pixel]] - max(s)) ** 2) / 2) / math.sqrt(2 * math.pi)
            score_slope = np.zeros(CLASSES)  # The second entry may overwrite the first.
            score_slope[s.argmax()] = size
            score_slope[y[pixel]] = -size
            logit_slope = score_slope - np.exp(s) * score_slope.sum()
            got = slope[i][valid][pixel]
            np.testing.assert_allclose(got, factor * logit_slope, rtol=1e-4, atol=1e-5)
    assert value[2] == 0
    assert not slope[2].any()


def test_absent_classes_count_zero_in_the_released_one_alone():
    # As run on the released code: 2 of 4 classes occur, all right: 50 percent.
    target = np.array([[[0, 1], [1, 0]]], np.int32)
    right = 9 * np.eye(CLASSES, dtype=np.float32)[target]
    mask = np.ones((1, 2, 2), np.float32)
    value, slope = run(houdini_released, target, right, mask)
    np.testing.assert_allclose(value, [50 * 0.5])
    assert np.abs(slope).max() > 0  # Right pixels are moved, unlike below.
    value, slope = run(houdini, target, right, mask)
    assert not value.any()
    assert not slope.any()


def test_what_is_wrong_everywhere_ends_the_released_one_alone():
    target = np.array([[[0, 1], [1, 0]]], np.int32)
    wrong = 2 * np.eye(CLASSES, dtype=np.float32)[target + 2]
    mask = np.ones((1, 2, 2), np.float32)
    value, slope = run(houdini_released, target, wrong, mask)
    assert not value.any()
    assert not slope.any()
    value, slope = run(houdini, target, wrong, mask)
    np.testing.assert_allclose(value, stats.norm.sf(-2.0), rtol=1e-5)
    assert np.abs(slope).max() > 0


def test_the_released_gradient_of_a_right_pixel_is_that_of_its_cross_entropy():
    target = np.zeros((1, 1, 1), np.int32)
    logits = np.array([[[[2.0, 1.0, -1.0, 0.5]]]], np.float32)
    mask = np.ones((1, 1, 1), np.float32)
    slope = run(houdini_released, target, logits, mask)[1]
    scale = 100 / CLASSES / math.sqrt(2 * math.pi)
    p = np.exp(log_softmax(logits[0, 0, 0]))
    np.testing.assert_allclose(slope[0, 0, 0], scale * (p - [1, 0, 0, 0]), rtol=1e-5)
