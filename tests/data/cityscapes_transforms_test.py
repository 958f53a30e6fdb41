# SPDX-License-Identifier: Apache-2.0
"""Cityscapes' resizing and targets against loops, hand-computed arrays, other code."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction

import cityscapes_fixture as fixture
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from mtr_tf.data.cityscapes import examples
from mtr_tf.data.cityscapes import layout
from mtr_tf.data.cityscapes import resizing
from mtr_tf.data.cityscapes.files import File
from mtr_tf.errors import InputError

SIZES = st.tuples(st.integers(1, 7), st.integers(1, 7))


def overlap(i, n, j, length) -> Fraction:
    """The share of original pixel j, of `length`, that new pixel i of n covers."""
    low = max(Fraction(i * length, n), Fraction(j))
    return max(min(Fraction((i + 1) * length, n), Fraction(j + 1)) - low, Fraction(0))


def brute(values, valid, size):
    """Yields i, j and the mean of the valid area of that new pixel, None if empty."""
    height, width = values.shape
    for i in range(size[0]):
        for j in range(size[1]):
            total = weight = Fraction(0)
            for y in range(height):
                for x in range(width):
                    share = overlap(i, size[0], y, height) * overlap(
                        j, size[1], x, width
                    )
                    if valid[y, x]:
                        total += share * int(values[y, x])
                        weight += share
            yield i, j, total / weight if weight else None


@given(SIZES, SIZES, st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_means_over_areas_are_those_of_a_loop(original, size, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2**16, original)
    valid = rng.random(original) < 0.4
    mean, mask = resizing.area_of_known(values, valid, size)
    plain_mean = resizing.area(values, size)
    for i, j, expected in brute(values, valid, size):
        assert mask[i, j] == (expected is not None)
        np.testing.assert_allclose(mean[i, j], float(expected or 0), rtol=1e-9)
    for i, j, expected in brute(values, np.ones(original, bool), size):
        np.testing.assert_allclose(plain_mean[i, j], float(expected), rtol=1e-9)


@given(SIZES, SIZES)
@settings(max_examples=40, deadline=None)
def test_the_nearest_pixel_is_the_one_with_the_centre(original, size):
    values = np.arange(original[0] * original[1]).reshape(original)
    result, inverse = (
        resizing.nearest(values, size),
        resizing.nearest_back(values, size),
    )
    for i in range(size[0]):
        for j in range(size[1]):
            y = int(Fraction(2 * i + 1, 2 * size[0]) * original[0])
            x = int(Fraction(2 * j + 1, 2 * size[1]) * original[1])
            assert result[i, j] == values[y, x]
            assert inverse[i, j] == values[y, x]


def test_unknown_pixels_do_not_blend_in():
    values = np.array([[8, 999, 4, 4], [999, 999, 4, 6]])
    valid = values != 999
    mean, mask = resizing.area_of_known(values, valid, (1, 2))
    np.testing.assert_array_equal(mean, [[8.0, 4.5]])
    np.testing.assert_array_equal(mask, [[True, True]])
    mean, mask = resizing.area_of_known(values, valid, (2, 2))
    np.testing.assert_array_equal(mean, [[8, 4], [0, 5]])
    np.testing.assert_array_equal(mask, [[True, True], [False, True]])


def test_the_papers_size_is_a_third_then_a_crop():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**16, layout.ORIGINAL_SIZE)
    size = layout.IMAGE_SIZE
    assert size == (336, 680)
    third = values[:1023, :2046].reshape(341, 3, 682, 3)
    np.testing.assert_allclose(
        resizing.area(values, size), third.mean((1, 3))[:336, :680], rtol=1e-12
    )
    np.testing.assert_array_equal(
        resizing.nearest(values, size), third[:336, 1, :680, 1]
    )
    inverse = resizing.nearest_back(third[:336, 1, :680, 1], layout.ORIGINAL_SIZE)
    assert inverse.shape == layout.ORIGINAL_SIZE
    for y, x in [(0, 0), (1, 1), (2, 3), (500, 701), (1007, 2039)]:
        assert inverse[y, x] == values[y // 3 * 3 + 1, x // 3 * 3 + 1]
    for y, x in [(1023, 2047), (1008, 2040)]:  # Outside the crop: the nearest pixel.
        assert inverse[y, x] == values[1006, 2038]
    np.testing.assert_array_equal(
        resizing.nearest(inverse, size), third[:336, 1, :680, 1]
    )


def test_other_sizes_of_the_original_are_plain():
    values = np.arange(512 * 1024).reshape(512, 1024)
    half = values.reshape(256, 2, 512, 2)
    np.testing.assert_array_equal(resizing.area(values, (256, 512)), half.mean((1, 3)))
    np.testing.assert_array_equal(
        resizing.nearest(values, (256, 512)), half[:, 1, :, 1]
    )
    np.testing.assert_array_equal(resizing.area(values, values.shape), values)


# Targets.

IMAGE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


@pytest.fixture
def job(tmp_path):
    """The job of one 4 x 6 example at 2 x 3, whose files tests may overwrite."""
    name = "aachen_000000_000019"
    labels = np.array([[7] * 6, [7, 8, 0, 33, 26, 255]] * 2, np.uint8)
    raw = np.zeros((4, 6), np.uint16)
    raw[:2, :2] = [[257, 0], [513, 0]]  # Disparities 1 and 2.
    raw[:2, 4:] = 1  # Zero, which is known.
    raw[2:, :2] = 60000
    fixture.save(fixture.path(tmp_path, "leftImg8bit", "train", name), IMAGE)
    fixture.save(fixture.path(tmp_path, "gtFine", "train", name), labels)
    fixture.save(fixture.path(tmp_path, "disparity", "train", name), raw)
    camera = fixture.path(tmp_path, "camera", "train", name)
    camera.parent.mkdir(parents=True)
    values = {"extrinsic": {"baseline": 0.25}, "intrinsic": {"fx": 2000}}
    camera.write_text(json.dumps(values))
    files = {
        kind: dataclasses.astuple(
            File("", str(fixture.path(tmp_path, kind, "train", name)), 0)
        )
        for kind in fixture.KINDS
    }
    return {"size": [2, 3], "depth_target": "disparity", **files}


def rewrite(job, kind, array):
    fixture.save(fixture.pathlib.Path(job[kind][1]), array)


def test_pictures_and_labels(job):
    example = examples.make(json.loads(json.dumps(job)))
    blocks = IMAGE.reshape(2, 2, 3, 2, 3).astype(float)
    np.testing.assert_array_equal(example["image"], np.rint(blocks.mean((1, 3))))
    assert example["image"].dtype == example["seg"].dtype == np.uint8
    # The far corner of each 2 x 2: ids 8, 33 and 255.
    np.testing.assert_array_equal(example["seg"], [[1, 18, 0]] * 2)
    np.testing.assert_array_equal(example["seg_known"], [[True, True, False]] * 2)
    np.testing.assert_array_equal(example["original_size"], [4, 6])


@pytest.mark.parametrize(
    ("target", "expected", "known"),
    [
        # (257 - 1) / 256 = 1 and (513 - 1) / 256 = 2 have the mean 1.5.
        ("disparity", [1.5, 0, 0, 59999 / 256], [1, 0, 1, 1]),
        ("inverse_depth", [1.5 / 500, 0, 0, 59999 / 256 / 500], [1, 0, 1, 1]),
        ("metres", [500 / 1.5, 0, 0, 500 * 256 / 59999], [1, 0, 0, 1]),
        # (257 + 513 + 0 + 0) / 4 / 1000; no mask.
        ("released", [0.1925, 0, 0.001, 60.0], [1, 1, 1, 1]),
    ],
)
def test_depths_by_hand(job, target, expected, known):
    example = examples.make({**job, "depth_target": target})
    depth, mask = example["depth"], example["depth_known"]
    assert depth.shape == (2, 3, 1)
    assert depth.dtype == np.float32
    assert mask.dtype == bool
    values = [depth[0, 0, 0], depth[0, 1, 0], depth[0, 2, 0], depth[1, 0, 0]]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert [mask[0, 0], mask[0, 1], mask[0, 2], mask[1, 0]] == list(map(bool, known))
    assert np.isfinite(depth).all()


def test_the_depth_of_a_size_is_that_of_the_mean_disparity(job):
    """Disparities stay in pixels of the original at any size."""
    rewrite(job, "disparity", np.full((4, 6), 1 + 256 * 10, np.uint16))
    for size in ([2, 3], [4, 6], [1, 1], [3, 5], [8, 12]):
        for target, value in (("disparity", 10), ("metres", 50), ("released", 2.561)):
            example = examples.make({**job, "depth_target": target, "size": size})
            np.testing.assert_allclose(example["depth"], value, rtol=1e-6)
            assert example["depth_known"].all()


def test_what_is_missing_is_unknown(job):
    example = examples.make({**job, "gtFine": None, "disparity": None})
    assert not example["seg_known"].any()
    assert not example["depth_known"].any()
    assert not example["seg"].any()
    assert not example["depth"].any()
    for target, valid in (("metres", False), ("disparity", True), ("released", True)):
        example = examples.make({**job, "camera": None, "depth_target": target})
        assert example["depth_known"].any() == valid


def test_train_ids_are_read_where_the_file_says_so(job, tmp_path):
    path = fixture.path(tmp_path, "trainIds", "train", "aachen_000000_000019")
    fixture.save(path, np.array([[0, 18, 255] * 2] * 4, np.uint8))
    example = examples.make({**job, "gtFine": ["", str(path), 0], "size": [4, 6]})
    np.testing.assert_array_equal(example["seg"], [[0, 18, 0] * 2] * 4)
    np.testing.assert_array_equal(example["seg_known"], [[True, True, False] * 2] * 4)
    fixture.save(path, np.full((4, 6), 19, np.uint8))
    with pytest.raises(InputError, match=r"TrainIds.png' must be 0-18, .* one is 19"):
        examples.make({**job, "gtFine": ["", str(path), 0]})


def cut(job, kind, end):
    path = fixture.pathlib.Path(job[kind][1])
    path.write_bytes(path.read_bytes()[:end])


GREY = np.zeros((4, 6), np.uint8)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda job: rewrite(job, "gtFine", GREY + 34),
            r"labels of '.*labelIds.png' must be 0-33, or 255 for none, but one is 34",
        ),
        (
            lambda job: rewrite(job, "gtFine", GREY + 254),
            r"labelIds.png' must be 0-33.*one is 254",
        ),
        (
            lambda job: rewrite(job, "gtFine", np.zeros((4, 7), np.uint8)),
            r"picture, 6 x 4, but '.*labelIds.png' is 7 x 4",
        ),
        (
            lambda job: rewrite(job, "gtFine", IMAGE),
            r"labelIds.png' must have one channel of 8 bits",
        ),
        (
            lambda job: rewrite(job, "disparity", GREY),
            r"disparity.png' must have one channel of 16 bits",
        ),
        (
            lambda job: rewrite(job, "disparity", np.zeros((2, 3), np.uint16)),
            r"6 x 4, but '.*disparity.png' is 3 x 2",
        ),
        (
            lambda job: rewrite(job, "leftImg8bit", GREY),
            r"leftImg8bit.png' must have three channels of 8 bits",
        ),
        (
            lambda job: cut(job, "leftImg8bit", 60),
            r"leftImg8bit.png' must be a complete",
        ),
        (
            lambda job: cut(job, "leftImg8bit", -5),
            r"leftImg8bit.png' must be a complete",
        ),
        (lambda job: cut(job, "disparity", 0), r"disparity.png' must be a complete"),
        (lambda job: cut(job, "camera", 20), r"camera.json' must be JSON with ext"),
        (
            lambda job: fixture.pathlib.Path(job["camera"][1]).write_text(
                '{"extrinsic": {"baseline": 0}, "intrinsic": {"fx": 5}}'
            ),
            r"camera.json' must be positive, got 0 and 5",
        ),
        (
            lambda job: fixture.pathlib.Path(job["leftImg8bit"][1]).unlink(),
            r"leftImg8bit.png' cannot be read",
        ),
    ],
)
def test_broken_files_are_named(job, spoil, message):
    spoil(job)
    with pytest.raises(InputError, match=message):
        examples.make({**job, "depth_target": "metres"})


# The table of classes.


def test_the_table_of_labels():
    assert len(layout.CLASSES) == len(layout.COLORS) == len(layout.LABEL_IDS) == 19
    assert len(set(layout.COLORS)) == 19
    train_ids = layout.OF_LABEL_IDS
    assert [train_ids[i] for i in layout.LABEL_IDS] == list(range(19))
    assert (train_ids[:34] >= 0).all()
    assert (train_ids[34:255] == -1).all()
    assert train_ids[255] == train_ids[0] == layout.VOID
    assert (train_ids[:34] != layout.VOID).sum() == 19
    np.testing.assert_array_equal(layout.OF_TRAIN_IDS[:19], range(19))
    assert (layout.OF_TRAIN_IDS[19:255] == -1).all()


def test_the_table_is_cityscapes_own():
    script = pytest.importorskip(
        "cityscapesscripts.helpers.labels", reason="needs the extra [cityscapes]"
    )
    for label in script.labels:
        if label.id < 0:  # Not in label images.
            assert label.name == "license plate"
            continue
        train_id = int(layout.OF_LABEL_IDS[label.id])
        assert train_id == label.trainId
        assert (train_id == layout.VOID) == label.ignoreInEval
        if train_id != layout.VOID:
            assert layout.CLASSES[train_id] == label.name
            assert layout.COLORS[train_id] == label.color
            assert layout.LABEL_IDS[train_id] == label.id
    assert script.name2label["unlabeled"].id == layout.UNLABELED
