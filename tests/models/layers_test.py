# SPDX-License-Identifier: Apache-2.0
"""The pieces of models against plain NumPy loops."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtr_tf.models.layers import BilinearUpSampling
from mtr_tf.models.layers import Blocks


def _noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _pytorch_conv(x, kernel, strides, dilation):
    """PyTorch's Conv2d with padding dilation * (k // 2), as its definition reads."""
    batch, height, width, _ = x.shape
    side = kernel.shape[0]
    padding = dilation * (side // 2)
    padded = np.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    reach = dilation * (side - 1) + 1
    rows = range(0, height + 2 * padding - reach + 1, strides)
    columns = range(0, width + 2 * padding - reach + 1, strides)
    out = np.zeros((batch, len(rows), len(columns), kernel.shape[3]))
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            window = padded[:, top : top + reach : dilation, left : left + reach]
            window = window[:, :, ::dilation]
            out[:, i, j] = np.einsum("bhwc,hwco->bo", window, kernel)
    return out


def _bilinear_transposed_conv(x, factor):
    """PyTorch's grouped ConvTranspose2d(2 f, stride f, padding f / 2) with kernel w.

    w[i, j] = (1 - |i / f - c|) (1 - |j / f - c|), c = (2 f - 1) / (2 f).
    """
    batch, height, width, channels = x.shape
    side = 2 * factor
    triangle = 1 - abs(np.arange(side) / factor - (2 * factor - 1) / (2 * factor))
    kernel = np.outer(triangle, triangle)[None, :, :, None]
    canvas = np.zeros(
        (batch, height * factor + factor, width * factor + factor, channels)
    )
    for i in range(height):
        for j in range(width):
            top, left = i * factor, j * factor
            spread = x[:, i, j][:, None, None] * kernel
            canvas[:, top : top + side, left : left + side] += spread
    crop = factor // 2
    return canvas[:, crop:-crop, crop:-crop]


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_bilinear_is_the_transposed_convolution(factor):
    x = _noise(2, 3, 5, 2)
    y = BilinearUpSampling(factor)(x)
    np.testing.assert_allclose(y, _bilinear_transposed_conv(x, factor), atol=1e-6)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_bilinear_that_replicates_is_tensorflows(factor):
    x = _noise(2, 3, 5, 2)
    y = BilinearUpSampling(factor, replicate=True)(x)
    expected = tf.image.resize(x, (3 * factor, 5 * factor))
    np.testing.assert_allclose(y, expected, atol=1e-6)


def test_bilinear_gradient_is_the_adjoint():
    x, cotangent = tf.constant(_noise(2, 3, 4, 2)), _noise(2, 24, 32, 2, seed=1)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = BilinearUpSampling(8)(x)
    gradient = tape.gradient(y, x, output_gradients=cotangent)
    basis = np.eye(3 * 4, dtype=np.float32).reshape(12, 3, 4, 1)
    columns = _bilinear_transposed_conv(basis, 8)[..., 0]
    expected = np.einsum("khw,bhwc->bkc", columns, cotangent).reshape(2, 3, 4, 2)
    np.testing.assert_allclose(gradient, expected, atol=1e-4)


def test_bilinear_keeps_an_impulse_in_place_and_a_constant_inside():
    impulse = np.zeros((1, 3, 3, 1), np.float32)
    impulse[0, 1, 1] = 1
    y = BilinearUpSampling(2)(impulse).numpy()[0, :, :, 0]
    line = np.array([0, 0.25, 0.75, 0.75, 0.25, 0])
    np.testing.assert_array_equal(y, np.outer(line, line))
    inside = BilinearUpSampling(8)(np.ones((1, 3, 3, 1)))[:, 4:-4, 4:-4]
    np.testing.assert_allclose(inside, 1, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (7, 6)])
@pytest.mark.parametrize(
    ("side", "strides", "dilation"),
    [(7, 2, 1), (3, 2, 1), (3, 1, 2), (3, 1, 4), (1, 2, 1), (1, 1, 1)],
)
def test_convolutions_pad_as_pytorch_does(side, strides, dilation, size):
    image = keras.Input((*size, 3))
    y = Blocks().conv(image, 4, side, "c", strides=strides, dilation_rate=dilation)
    model = keras.Model(image, y)
    x = _noise(2, *size, 3)
    kernel = model.get_layer("c").kernel.numpy()
    expected = _pytorch_conv(x, kernel, strides, dilation)
    np.testing.assert_allclose(model(x), expected, atol=1e-5)


def test_no_one_by_one_convolution_is_strided():
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, Blocks().basic_block(image, 4, "b", strides=2))
    shortcut = model.get_layer("b_shortcut_conv")
    assert shortcut.kernel_size == (1, 1)
    assert shortcut.strides == (1, 1)
    assert model.output_shape == (None, 4, 4, 4)


def test_an_identity_shortcut_has_no_weights():
    image = keras.Input((8, 8, 4))
    model = keras.Model(image, Blocks().basic_block(image, 4, "b"))
    assert not [layer.name for layer in model.layers if "shortcut" in layer.name]
    assert model.count_params() == 2 * (9 * 4 * 4) + 2 * 4 * 4


def test_batch_norm_has_pytorchs_momentum_and_epsilon():
    image = keras.Input((2, 2, 1))
    model = keras.Model(image, Blocks().norm(image, "n", relu=False))
    x = np.float32([1, 2, 3, 6]).reshape(1, 2, 2, 1)
    y = model(x, training=True)
    np.testing.assert_allclose(y, (x - 3) / math.sqrt(3.5 + 1e-5), rtol=1e-6)
    norm = model.get_layer("n_norm")
    np.testing.assert_allclose(norm.moving_mean, [0.1 * 3], rtol=1e-6)
    np.testing.assert_allclose(norm.moving_variance, [0.9 + 0.1 * 3.5], rtol=1e-6)


def test_initial_kernels_have_the_stated_distribution():
    kernel = Blocks().normal_by_output(3, 32, "c")((3, 3, 64, 32)).numpy()
    assert kernel.std() == pytest.approx(math.sqrt(2 / (9 * 32)), rel=0.02)
    assert abs(kernel.mean()) < 0.002
    kernel = Blocks().uniform(64, "u")((2, 2, 16, 64)).numpy()
    assert abs(kernel).max() <= 1 / 8
    assert kernel.std() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.03)


def test_initial_values_depend_on_seed_and_name_alone():
    def kernel(seed, name):
        return Blocks(seed).normal_by_output(3, 4, name)((3, 3, 2, 4)).numpy()

    np.testing.assert_array_equal(kernel(1, "a"), kernel(1, "a"))
    assert (kernel(1, "a") != kernel(2, "a")).all()
    assert (kernel(1, "a") != kernel(1, "b")).all()
