# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from mtr_tf.tasks import losses

NAN, INF = math.nan, math.inf


def regression_batch():
    """Two images of 1 x 2 pixels and 2 channels."""
    target = np.array([[[[1, 2], [3, 4]]], [[[0, 0], [5, 5]]]], np.float32)
    errors = np.array([[[[1, -2], [3, 0]]], [[[0, 1], [4, 4]]]], np.float32)
    return target, target + errors


def test_l1_by_hand():
    target, output = regression_batch()
    mask = np.array([[[1, 1]], [[1, 0]]], np.float32)
    # (1 + 2 + 3 + 0) / 4; the second image has one valid pixel: (0 + 1) / 2.
    np.testing.assert_allclose(losses.l1(target, output, mask), [1.5, 0.5])


def test_l2_by_hand():
    target, output = regression_batch()
    mask = np.array([[[1, 1]], [[0, 1]]], np.float32)
    # The mean of the squares 1, 4, 9, 0; then of 16, 16, of the second pixel only.
    np.testing.assert_allclose(losses.l2(target, output, mask), [3.5, 16.0])


def test_cross_entropy_by_hand():
    # Softmax of (0, ln 3) is (1/4, 3/4); of equal logits (1/2, 1/2).
    logits = np.array([[[[0, math.log(3)], [7, 7]]]], np.float32)
    mask = np.ones((1, 1, 2), np.float32)
    loss = losses.cross_entropy(np.array([[[0, 1]]]), logits, mask)
    np.testing.assert_allclose(loss, [(math.log(4) + math.log(2)) / 2], rtol=1e-6)
    loss = losses.cross_entropy(np.array([[[1, 1]]]), logits, mask * [1, 0])
    np.testing.assert_allclose(loss, [math.log(4 / 3)], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1, 30, 1e4])
def test_cross_entropy_is_tensorflows(scale):
    rng = np.random.default_rng(0)
    logits = scale * rng.normal(size=(2, 8, 8, 7)).astype(np.float32)
    target = rng.integers(0, 7, (2, 8, 8)).astype(np.int32)
    mask = np.ones((2, 8, 8), np.float32)

    def reference(target, output, mask):
        del mask
        pixels = tf.nn.sparse_softmax_cross_entropy_with_logits(target, output)
        return tf.reduce_mean(pixels, axis=(1, 2))

    result = loss_and_gradient(losses.cross_entropy, target, logits, mask)
    expected = loss_and_gradient(reference, target, logits, mask)
    np.testing.assert_allclose(result[0], expected[0], rtol=2e-6)
    np.testing.assert_allclose(result[1], expected[1], rtol=1e-5, atol=1e-9)


def test_cross_entropy_of_logits_that_are_not_finite():
    ones = np.ones((1, 1, 1), np.float32)
    target = np.zeros((1, 1, 1), np.int32)

    def value(*logits):
        output = np.array(logits, np.float32).reshape(1, 1, 1, -1)
        return losses.cross_entropy(target, output, ones).numpy()[0]

    assert value(1, 1, -INF) == pytest.approx(math.log(2))  # A class ruled out.
    assert math.isnan(value(NAN, 0))
    assert math.isnan(value(0, NAN))
    assert not math.isfinite(value(-INF, 0))


def arguments(loss, rng, junk):
    """One batch of 3 images, with `junk` where masked; the last is masked wholly."""
    mask = (rng.random((3, 5, 4)) < 0.6).astype(np.float32)
    mask[2] = 0
    output = rng.normal(size=(3, 5, 4, 3)).astype(np.float32)
    if loss is losses.cross_entropy:
        target = rng.integers(0, 3, (3, 5, 4)).astype(np.int32)
    else:
        target = rng.normal(size=(3, 5, 4, 3)).astype(np.float32)
    output[mask == 0], target[mask == 0] = junk
    return target, output, mask


def loss_and_gradient(loss, target, output, mask):
    output = tf.constant(output)
    with tf.GradientTape() as tape:
        tape.watch(output)
        value = loss(target, output, mask)
    return value.numpy(), tape.gradient(value, output).numpy()


@pytest.mark.parametrize(
    ("loss", "junk"),
    [
        (losses.cross_entropy, (NAN, 255)),
        (losses.cross_entropy, (INF, -1)),
        (losses.l1, (NAN, NAN)),
        (losses.l1, (INF, 255)),
        (losses.l2, (NAN, NAN)),
        (losses.l2, (-INF, INF)),
    ],
)
def test_masked_pixels_change_nothing(loss, junk):
    clean = arguments(loss, np.random.default_rng(0), (0, 0))
    dirty = arguments(loss, np.random.default_rng(0), junk)
    value, gradient = loss_and_gradient(loss, *clean)
    dirty_value, dirty_gradient = loss_and_gradient(loss, *dirty)
    np.testing.assert_array_equal(dirty_value, value)
    np.testing.assert_array_equal(dirty_gradient, gradient)
    assert np.isfinite(gradient).all()
    assert value[2] == 0
    assert not gradient[2].any()
    assert not gradient[clean[2] == 0].any()
    assert gradient[clean[2] != 0].any()


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.l1, losses.l2])
def test_gradient_against_finite_differences(loss):
    target, output, mask = arguments(loss, np.random.default_rng(1), (0, 0))
    _, gradient = loss_and_gradient(loss, target, output, mask)
    direction = np.random.default_rng(2).normal(size=output.shape).astype(np.float32)
    step = 1e-2 * direction
    ahead = loss(target, output + step, mask).numpy().sum()
    behind = loss(target, output - step, mask).numpy().sum()
    expected = (ahead - behind) / 2e-2
    # |x| has a kink, and a pixel may lie within a step of it.
    tolerance = 0.05 if loss is losses.l1 else 2e-3
    assert np.sum(gradient * direction) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, tf.bfloat16.as_numpy_dtype])
@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.l1, losses.l2])
def test_any_float_output_is_computed_in_float32(loss, dtype):
    target, output, mask = arguments(loss, np.random.default_rng(3), (0, 0))
    output = output.astype(dtype)
    value = loss(target, output, mask)
    assert value.dtype == tf.float32
    expected = loss(target, output.astype(np.float32), mask)
    np.testing.assert_array_equal(value, expected)


def test_images_do_not_scale_each_other():
    target, output, mask = arguments(losses.l2, np.random.default_rng(4), (0, 0))
    together = losses.l2(target, output, mask).numpy()
    for i in range(3):
        single = losses.l2(target[i : i + 1], output[i : i + 1], mask[i : i + 1])
        np.testing.assert_allclose(single, together[i : i + 1], rtol=1e-6)


def test_inside_a_function_of_unknown_batch():
    signature = [
        tf.TensorSpec((None, 5, 4, 3)),
        tf.TensorSpec((None, 5, 4, 3)),
        tf.TensorSpec((None, 5, 4)),
    ]
    compiled = tf.function(losses.l1, input_signature=signature, autograph=False)
    batch = arguments(losses.l1, np.random.default_rng(5), (0, 0))
    np.testing.assert_allclose(compiled(*batch), losses.l1(*batch), rtol=1e-6)
