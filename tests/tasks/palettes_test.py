# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest

from mtr_tf.tasks import palettes

BLACK = [0, 0, 0]
NAN, INF = math.nan, math.inf


def column(*values):
    return np.array(values, np.float32)[:, np.newaxis]


def test_classes():
    colors = ((1, 2, 3), (4, 5, 6))
    picture = palettes.classes_to_rgb(np.array([1, 0, 255, -1, 2]), colors)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, [[4, 5, 6], [1, 2, 3], BLACK, BLACK, BLACK])
    masked_picture = palettes.classes_to_rgb(
        np.array([1, 0]), colors, np.array([0.0, 1.0])
    )
    np.testing.assert_array_equal(masked_picture, [BLACK, [1, 2, 3]])


def test_scalars_use_viridis_and_clip_to_the_range():
    first, last = [68, 1, 84], [253, 231, 37]  # Viridis as published.
    picture = palettes.scalar_to_rgb(column(2, 4, 1, 9), (2, 4))
    np.testing.assert_array_equal(picture, [first, last, first, last])


def test_scalars_grow_brighter():
    picture = palettes.scalar_to_rgb(column(*np.linspace(0, 1, 50)), (0, 1))
    luminance = picture @ [0.299, 0.587, 0.114]
    assert (np.diff(luminance) > 0).all()


def test_scalars_without_a_range_ignore_outliers_and_what_is_masked():
    ramp = np.linspace(0, 1, 101)
    values = column(*ramp, 1e6, NAN)
    mask = np.ones(103)
    mask[101] = 0
    picture = palettes.scalar_to_rgb(values, mask=mask)
    expected = palettes.scalar_to_rgb(column(*ramp), (0.02, 0.98))
    np.testing.assert_allclose(picture[:101].astype(int), expected, atol=4)
    np.testing.assert_array_equal(picture[101:], [BLACK, BLACK])


@pytest.mark.parametrize("values", [(5, 5), (NAN, INF), (0, 0)])
def test_scalars_of_one_value_or_none(values):
    assert palettes.scalar_to_rgb(column(*values)).shape == (2, 3)
    picture = palettes.scalar_to_rgb(column(*values), mask=np.zeros(2))
    assert not picture.any()


def test_vectors():
    vectors = np.array([[1, -1, 0], [0, 0, 1], [NAN, 0, 0], [3, 0, -3]])
    picture = palettes.vectors_to_rgb(vectors)
    np.testing.assert_array_equal(
        picture, [[255, 0, 128], [128, 128, 255], BLACK, [255, 128, 0]]
    )


def test_pairs_are_grey_at_zero():
    values = np.array([[0, 0], [2, -2], [-9, 1], [NAN, 0]])
    picture = palettes.pair_to_rgb(values, (-2, 2))
    np.testing.assert_array_equal(
        picture, [[128, 128, 128], [255, 0, 128], [0, 191, 128], BLACK]
    )
    symmetric = palettes.pair_to_rgb(np.array([[0, 0], [4, -1]]))
    np.testing.assert_array_equal(symmetric[0], [128, 128, 128])


def test_images():
    picture = palettes.image_to_rgb(np.array([[0, 0.5, 1], [-1, 2, 0], [NAN, 1, 1]]))
    np.testing.assert_array_equal(picture, [[0, 128, 255], [0, 255, 0], BLACK])


def test_perturbation_is_centred_on_grey_and_magnified():
    epsilon = 4 / 255
    perturbation = np.array([[0, epsilon, -epsilon]])
    picture = palettes.perturbation_rgb(perturbation, 1 / (2 * epsilon))
    np.testing.assert_array_equal(picture, [[128, 255, 0]])


def test_magnification():
    change = np.array([[0.0, -0.02, 0.01]])
    assert palettes.magnification(change, 0.05) == pytest.approx(10)
    assert palettes.magnification(change) == pytest.approx(25)
    assert palettes.magnification(change * 0) == 1
