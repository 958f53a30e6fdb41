# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import numpy as np
import pytest

from mtr_tf.data import picture

EACH = pytest.mark.parametrize("task", picture.TASKS)


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def oracle(image):
    """The documented formulas for one float64 image, by scipy: (edges, keypoints)."""
    ndimage = pytest.importorskip("scipy.ndimage")
    luminance = image @ np.array([0.299, 0.587, 0.114])
    gradient_x = ndimage.sobel(luminance, axis=1, mode="reflect") / 4
    gradient_y = ndimage.sobel(luminance, axis=0, mode="reflect") / 4

    def window(values):
        return ndimage.gaussian_filter(values, 1.0, mode="reflect", radius=3)

    tensor = np.empty((*luminance.shape, 2, 2))
    tensor[..., 0, 0] = window(gradient_x * gradient_x)
    tensor[..., 1, 1] = window(gradient_y * gradient_y)
    tensor[..., 0, 1] = tensor[..., 1, 0] = window(gradient_x * gradient_y)
    eigenvalue = np.linalg.eigvalsh(tensor)[..., 0]
    return np.sqrt(gradient_x**2 + gradient_y**2), eigenvalue / (eigenvalue + 0.05**2)


@pytest.mark.parametrize("shape", [(9, 13), (32, 32), (2, 3)])
def test_against_scipy(shape):
    images = random_images(3, *shape)
    images[1] = images[1] // 16 + 100  # Low contrast.
    edges = picture.compute("edge_texture", images)
    keypoints = picture.compute("keypoints2d", images)
    for i, image in enumerate(images / 255):
        expected_edges, expected_keypoints = oracle(image)
        np.testing.assert_allclose(edges[i, ..., 0], expected_edges, atol=1e-5)
        np.testing.assert_allclose(keypoints[i, ..., 0], expected_keypoints, atol=1e-3)


def test_edge_of_a_step_is_its_height_on_either_side():
    image = np.zeros((1, 6, 8, 3), np.float32)
    image[:, :, 4:] = 0.5
    edges = picture.compute("edge_texture", image)[0, ..., 0]
    expected = np.tile(np.array([0, 0, 0, 0.5, 0.5, 0, 0, 0]), (6, 1))
    np.testing.assert_allclose(edges, expected, atol=1e-6)
    edges_t = picture.compute("edge_texture", image.transpose(0, 2, 1, 3))[0, ..., 0]
    np.testing.assert_allclose(edges_t, expected.T, atol=1e-6)


def test_keypoints_answer_to_corners_not_to_edges_or_planes():
    image = np.zeros((1, 32, 32, 3), np.float32)
    image[:, 16:, 16:] = 1
    response = picture.compute("keypoints2d", image)[0, ..., 0]
    assert response[14:18, 14:18].min() > 0.5
    assert np.unravel_index(response.argmax(), response.shape) in ((15, 15), (16, 16))
    assert response[24:, 14:18].max() < 1e-4  # Along an edge.
    assert response[:10, :10].max() == 0  # In the plane.


def test_ranges():
    # |g| is convex in the pixels, so it is largest for pixels of 0 and 1: try all.
    patterns = np.array(list(itertools.product((0, 1), repeat=9)), np.uint8)
    images = np.repeat(patterns.reshape(-1, 3, 3, 1) * np.uint8(255), 3, axis=-1)
    edges = picture.compute("edge_texture", images)
    assert edges.min() == 0
    assert edges[:, 1, 1].max() == pytest.approx(5**0.5 / 2, rel=1e-6)
    for batch in (images, random_images(4, 16, 16)):
        keypoints = picture.compute("keypoints2d", batch)
        assert keypoints.min() >= 0
        assert keypoints.max() < 1


@EACH
def test_shape_and_type(task):
    channels = 3 if task == "autoencoder" else 1
    for images in (random_images(2, 5, 7), random_images(0, 5, 7)):
        target = picture.compute(task, images)
        assert target.shape == (len(images), 5, 7, channels)
        assert target.dtype == np.float32


@EACH
def test_bytes_and_floats_agree(task):
    images = random_images(2, 8, 8)
    floats = images.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(
        picture.compute(task, images), picture.compute(task, floats)
    )


def test_autoencoder_is_the_picture():
    images = random_images(2, 4, 4)
    expected = images.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(picture.compute("autoencoder", images), expected)


@EACH
@pytest.mark.parametrize("flip", [np.fliplr, np.flipud])
def test_flips_commute_to_the_last_bit(task, flip):
    images = random_images(3, 11, 14)

    def flip_batch(batch):
        return np.stack([flip(image) for image in batch])

    np.testing.assert_array_equal(
        picture.compute(task, flip_batch(images)),
        flip_batch(picture.compute(task, images)),
    )


@EACH
def test_an_image_does_not_depend_on_its_batch(task):
    images = random_images(4, 9, 9)
    targets = picture.compute(task, images)
    np.testing.assert_array_equal(picture.compute(task, images[2:3]), targets[2:3])
