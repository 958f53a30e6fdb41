# SPDX-License-Identifier: Apache-2.0
"""Transforms of Taskonomy's files, against arrays made by hand and skimage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import taskonomy_fixture

from mtr_tf.data.taskonomy import coding
from mtr_tf.data.taskonomy import layout
from mtr_tf.data.taskonomy import released
from mtr_tf.data.taskonomy import resizing
from mtr_tf.data.taskonomy import transforms

ALL = np.ones((2, 2), bool)


def one_pixel(task, file, valid=ALL):
    """The one pixel that a 2 x 2 file is reduced to, and whether it is known."""
    target, mask = transforms.TRANSFORMS[task](np.asarray(file), valid, (1, 1))
    return target[0, 0], bool(mask[0, 0])


def sixteen_bits(*values):
    return np.array(values, np.uint16).reshape(2, 2)


# The correct transforms, by hand.


def test_depth_is_the_mean_logarithm_of_what_is_known():
    file = sixteen_bits(15, 255, 65535, 1023)  # ln 2**4, ln 2**8, missing, ln 2**10
    for task in ("depth", "depth_euclidean"):
        target, mask = one_pixel(task, file, transforms.depth_known(file))
        assert mask
        np.testing.assert_allclose(target, [(4 + 8 + 10) / 3 / 16], rtol=1e-6)


def test_depth_is_unknown_at_zero_and_where_files_say_so():
    file = np.array([0, 1, 64499, 64500, 65535], np.uint16)
    assert transforms.depth_known(file).tolist() == [False, True, True, False, False]
    assert released.depth_known(file).tolist() == [True, True, True, False, False]


def test_a_pixel_is_known_where_any_of_its_area_is():
    file = sixteen_bits(15, 255, 15, 15)
    valid = np.array([[False, True], [False, False]])
    target, mask = one_pixel("depth", file, valid)
    assert mask
    np.testing.assert_allclose(target, [8 / 16], rtol=1e-6)
    target, mask = one_pixel("depth", file, ~ALL)
    assert not mask
    assert target == 0


def test_labels_are_picked_and_zero_is_not_known():
    file = np.array([[1, 17, 0, 5], [1, 17, 0, 5]], np.uint8)
    target, mask = transforms.labels(file, None, (2, 4))
    assert target[0].tolist() == [0, 16, 0, 4]
    assert mask[0].tolist() == [True, True, False, True]
    assert list(layout.CLASSES)[4] == "potted_plant"
    target, mask = transforms.labels(file, None, (1, 2))
    assert target.tolist() == [[16, 4]]  # The far corner of each 2 x 2.


@pytest.mark.parametrize(
    ("task", "values", "expected"),
    [
        # The mean of 0, 0.02, 0.04 and 0.1 in 16 bits is 0.04: half way to 0.08.
        ("edge_texture", (0, 0.02, 0.04, 0.1), 0.0),
        ("edge_texture", (0.2, 0.2, 0.2, 0.2), 1.0),
        ("keypoints2d", (0.001, 0.001, 0.001, 0.002), -0.5),
        ("keypoints2d", (1, 1, 1, 1), 1.0),
        ("keypoints3d", (0, 0, 1, 0.5), -0.25),
        # Not clipped, and the blur keeps a constant.
        ("edge_occlusion", (0.0125, 0.0125, 0.0125, 0.0125), 3.0),
    ],
)
def test_maps_are_scaled_to_one(task, values, expected):
    file = sixteen_bits(*np.rint(np.array(values) * 65535))
    target, mask = one_pixel(task, file)
    assert mask
    np.testing.assert_allclose(target, [expected], atol=0.01)


def test_bits_are_counted():
    file8 = np.full((2, 2), 51, np.uint8)
    np.testing.assert_allclose(one_pixel("keypoints3d", file8)[0], [-0.6], rtol=1e-5)
    file16 = np.full((2, 2), 51, np.uint16)
    target, _ = one_pixel("keypoints3d", file16)
    np.testing.assert_allclose(target, [2 * 51 / 65535 - 1], rtol=1e-6)


def test_normals_are_known_where_depth_is():
    file = np.zeros((2, 2, 3), np.uint8)
    file[0] = (255, 0, 51)
    valid = np.array([[True, True], [False, False]])
    target, mask = one_pixel("normal", file, valid)
    assert mask
    np.testing.assert_allclose(target, [1, -1, -0.6], rtol=1e-6)


def test_reshading_is_the_grey_of_colours():
    file = np.zeros((2, 2, 3), np.uint8)
    file[..., 1] = 255
    target, _ = one_pixel("reshading", file)
    np.testing.assert_allclose(target, [2 * 0.7154 - 1], rtol=1e-5)


def test_curvature_is_red_and_green():
    file = np.zeros((2, 2, 3), np.uint8)
    file[...] = (127, 100, 255)
    target, _ = one_pixel("curvature", file)
    expected = [(127 - 123.572) / 31.922, (100 - 120.1) / 21.658]
    np.testing.assert_allclose(target, expected, rtol=1e-5)


def test_image_is_averaged():
    file = np.array([[[0, 10, 255], [1, 20, 255]], [[2, 30, 255], [3, 40, 254]]])
    image = transforms.image(file.astype(np.uint8), (1, 1))
    assert image.dtype == np.uint8
    assert image.tolist() == [[[2, 25, 255]]]  # 1.5 goes to the even 2.


def test_nothing_unknown_is_blended():
    """Values of unknown pixels change no target."""
    rng = np.random.default_rng(0)
    valid = rng.random((12, 10)) < 0.6
    for task, domain in layout.DOMAINS.items():
        if domain.stored == np.uint8:
            continue
        shape = valid.shape if domain.channels == 1 else (*valid.shape, 3)
        kind = np.uint16 if domain.channels == 1 else np.uint8
        file = rng.integers(1, 256, shape, kind)
        other_file = np.where(
            valid.reshape(valid.shape + (1,) * (file.ndim - 2)), file, 255
        )
        a, b = (
            transforms.TRANSFORMS[task](values.astype(kind), valid, (5, 5))
            for values in (file, other_file)
        )
        np.testing.assert_array_equal(a[0], b[0], task)
        np.testing.assert_array_equal(a[1], b[1], task)
        assert not a[0][~a[1]].any()


def test_the_blur_is_a_mean_of_the_known():
    rng = np.random.default_rng(0)
    values, valid = rng.random((7, 9, 1)), rng.random((7, 9)) < 0.5
    sigma = 1.2
    result = resizing.blur_valid(values, valid, sigma)
    # By brute force: every pixel of the mirrored picture, weighted by its distance.
    values = np.pad(np.where(valid, values[..., 0], 0), 5, "symmetric")
    weights = np.pad(valid.astype(float), 5, "symmetric")
    steps = np.arange(-5, 6)
    gauss = np.exp(-0.5 * (steps[:, None] ** 2 + steps**2) / sigma**2)
    for i in range(7):
        for j in range(9):
            window = gauss * weights[i : i + 11, j : j + 11]
            expected = (window * values[i : i + 11, j : j + 11]).sum() / window.sum()
            assert math.isclose(result[i, j, 0], expected, abs_tol=1e-4)


@pytest.mark.parametrize("size", [(4, 3), (5, 7), (12, 9), (1, 1), (16, 4)])
def test_areas_are_averaged_exactly(size):
    """Against block means of a picture enlarged by repetition to a common multiple."""
    values = np.random.default_rng(0).random((12, 9, 2))
    rows, columns = math.lcm(12, size[0]), math.lcm(9, size[1])
    picture = values.repeat(rows // 12, 0).repeat(columns // 9, 1)
    blocks = picture.reshape(size[0], rows // size[0], size[1], columns // size[1], 2)
    result = resizing.mean_of_area(values, size)
    np.testing.assert_allclose(result, blocks.mean((1, 3)), rtol=1e-5)


# How targets are stored.


@pytest.mark.parametrize("task", layout.DOMAINS)
def test_codes_hold_target_and_mask(task):
    rng = np.random.default_rng(0)
    valid = rng.random((6, 5)) < 0.7
    shape, kind = coding.spec(task, (6, 5))
    if kind == np.uint8:
        target, step = rng.integers(0, 17, shape), 0
    else:
        low, high = layout.DOMAINS[task].span or (-1, 300)
        target, step = rng.uniform(low, high, shape), (high - low) / 65534
        target[0, 0], target[0, 1] = low, high
    codes = coding.encode(task, target, valid)
    assert codes.dtype == kind
    np.testing.assert_array_equal(coding.mask(codes[None])[0], valid)
    result = coding.target(task, codes[None])[0]
    np.testing.assert_allclose(
        result[valid], target[valid], atol=0.51 * step, rtol=1e-6
    )
    assert not result[~valid].any()
    assert not coding.mask(coding.unknown(task, (6, 5))[None]).any()


# The released transforms, against scikit-image and SciPy, which they used.


@pytest.fixture(scope="module")
def skimage():
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    import skimage.color
    import skimage.transform
    import skimage.util

    return skimage


def released_by_skimage(skimage, task, file, euclidean, zbuffer, size):
    """The loader's recipe (paper's code, load_ops.py), in its own library."""
    from scipy import ndimage

    def resize(values):
        return skimage.transform.resize(values, size, order=1, preserve_range=True)

    channels = layout.DOMAINS[task].channels
    if file.ndim == 3 and channels < 3:
        file = skimage.color.rgb2gray(file)
    file = file.reshape(*file.shape[:2], -1)
    if task in ("depth", "depth_euclidean"):
        target = resize(np.log(1.0 + file) / np.log(2.0**16))
    elif task == "curvature":
        target = (resize(file) - [123.572, 120.1]) / [31.922, 21.658]
    else:
        target = resize(skimage.util.img_as_float(file))
        limits = {"edge_texture": 0.08, "edge_occlusion": 0.00625, "keypoints2d": 0.005}
        limit = limits.get(task)
        if task in ("edge_texture", "keypoints2d"):
            target = np.clip(target, 0, limit)
        target = target / (limit or 1.0) * 2 - 1
        if task == "edge_occlusion":
            target = ndimage.gaussian_filter(target, sigma=4)
    if task in ("edge_texture", "keypoints2d"):
        return target, np.ones(size, bool)
    depth = zbuffer if task == "depth" else euclidean
    mask = resize((depth < 64500).astype(np.float32)[..., None])
    return target, mask[..., 0] >= 0.99


@pytest.mark.parametrize("task", [task for task in layout.DOMAINS if task != "seg"])
@pytest.mark.parametrize("size", [(16, 16), (32, 32), (20, 11)])
def test_released_targets_are_those_of_skimage(skimage, task, size):
    images = taskonomy_fixture.draw(3, 32)
    depths = images["depth_euclidean"], images["depth_zbuffer"]
    file = images[layout.DOMAINS[task].names[0]]
    expected, expected_mask = released_by_skimage(skimage, task, file, *depths, size)
    depth = images["depth_zbuffer" if task == "depth" else "depth_euclidean"]
    valid = released.depth_known(depth)
    if task in ("edge_texture", "keypoints2d"):
        valid = np.ones_like(valid)
    target, mask = released.TRANSFORMS[task](file, valid, size)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_allclose(target, expected, atol=5e-6, rtol=5e-6)


def test_released_curvature_is_nearly_constant():
    file = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    target, _ = released.curvature(file, np.ones((8, 8), bool), (4, 4))
    assert np.ptp(target[..., 0]) < 0.035
    np.testing.assert_allclose(target.mean((0, 1)), [-3.86, -5.52], atol=0.02)
    right_target, _ = transforms.curvature(file, np.ones((8, 8), bool), (4, 4))
    assert np.ptp(right_target[..., 0]) > 1


def test_released_image_is_that_of_skimage(skimage):
    file = taskonomy_fixture.draw(0, 32)["rgb"]
    expected = skimage.transform.resize(file, (12, 20), order=1)
    image = released.image(file, (12, 20)).astype(float)
    np.testing.assert_allclose(image, expected * 255, atol=0.501)
