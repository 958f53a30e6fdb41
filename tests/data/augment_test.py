# SPDX-License-Identifier: Apache-2.0
"""Flips and crops of pictures whose pixels encode their own coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from mtr_tf import tasks as task_table
from mtr_tf.data.augment import Augment
from mtr_tf.data.augment import uniform
from mtr_tf.errors import InputError

HEIGHT, WIDTH = 7, 9


def coordinates(batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image number, row and column of each pixel, int [batch, H, W] each."""
    return tuple(np.indices((batch, HEIGHT, WIDTH)))


def mark(i, y, x) -> dict[str, np.ndarray]:
    """Targets and masks as functions of a pixel's coordinates."""
    return {
        "seg": (i + 10 * y + x).astype(np.int32),
        "depth": np.sin(i + 3.0 * y + 7.0 * x)[..., None].astype(np.float32),
        "seg_mask": ((x + 2 * y + i) % 3 > 0).astype(np.float32),
        "depth_mask": ((x * y + i) % 2 > 0).astype(np.float32),
    }


def make_batch(batch: int, step: int = 0, **targets) -> dict:
    i, y, x = coordinates(batch)
    marks = mark(i, y, x)
    ones = np.ones((batch, HEIGHT, WIDTH), np.float32)
    value = {
        "image": (np.stack([i, y, x], -1) / 255).astype(np.float32),
        "targets": {"seg": marks["seg"], "depth": marks["depth"], **targets},
        "masks": {
            "seg": marks["seg_mask"],
            "depth": marks["depth_mask"],
            **{task: ones for task in targets},
        },
        "index": np.arange(batch)[::-1].astype(np.int64),
        "position": np.arange(batch, dtype=np.int64),
        "step": np.int64(step),
    }
    return tf.nest.map_structure(tf.constant, value)


def origin(batch: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads image number, row and column back from the pixels."""
    return tuple(np.moveaxis(np.rint(batch["image"].numpy() * 255).astype(int), -1, 0))


def flips(batch: dict) -> np.ndarray:
    _, _, x = origin(batch)
    return x[:, 0, 0] > x[:, 0, -1]


@pytest.mark.parametrize(
    ("flip", "crop"),
    [(True, None), (True, (4, 5)), (True, (7, 9)), (True, (1, 1)), (False, (4, 5))],
)
def test_image_targets_and_masks_move_together(flip, crop):
    result = Augment(flip, crop)(make_batch(16), seed=1)
    i, y, x = origin(result)
    height, width = crop or (HEIGHT, WIDTH)
    assert i.shape == (16, height, width)
    marks = mark(i, y, x)
    for task in ("seg", "depth"):
        np.testing.assert_array_equal(result["targets"][task], marks[task])
        np.testing.assert_array_equal(result["masks"][task], marks[f"{task}_mask"])
    assert result["targets"]["seg"].dtype == tf.int32
    # Each image keeps its place and is a window: rows and columns without a gap.
    assert (i == np.arange(16)[:, None, None]).all()
    assert (np.diff(y, axis=1) == 1).all()
    assert (np.diff(y, axis=2) == 0).all()
    assert (np.diff(x, axis=1) == 0).all()
    signs = np.where(flips(result), -1, 1)[:, None, None]
    assert (np.diff(x, axis=2) == signs).all()
    assert flips(result).any() == (flip and width > 1)
    np.testing.assert_array_equal(result["index"], np.arange(16)[::-1])


def test_nothing_to_do_changes_nothing():
    batch = make_batch(8)
    result = Augment(flip=False)(batch, seed=0)
    tf.nest.map_structure(np.testing.assert_array_equal, result, batch)


def test_half_are_flipped_and_every_window_is_as_likely():
    n = 6000
    result = tf.function(Augment(crop=(5, 6)))(make_batch(n), seed=0)
    flipped = flips(result)
    assert abs(flipped.sum() - n / 2) < 4 * np.sqrt(n / 4)
    _, y, x = origin(result)
    places = y[:, 0, 0] * 4 + x.min(axis=(1, 2))  # 3 x 4 windows
    for subset in (places[flipped], places[~flipped]):
        counts = np.bincount(subset, minlength=12)
        assert len(counts) == 12
        share = len(subset) / 12
        # Chi-squared with 11 degrees of freedom: above 31.3 once in a thousand.
        assert ((counts - share) ** 2 / share).sum() < 31.3


def test_draws_are_a_function_of_seed_step_and_position():
    def draw(seed, step, position):
        place = tf.constant([step, position], tf.int64)
        return uniform(seed, place[0], place[1], 3).numpy()

    keys = [(s, t, p) for s in (0, 1, 2**40) for t in (0, 1, 2**40) for p in range(4)]
    draws = np.stack([draw(*key) for key in keys])
    assert ((draws >= 0) & (draws < 1)).all()
    assert len(np.unique(draws)) == draws.size  # All of them differ.
    np.testing.assert_array_equal(draws, [draw(*key) for key in keys])


def test_an_image_is_varied_as_its_position_says_whoever_is_beside_it():
    batch = make_batch(8)
    rows = [5, 2, 7]
    part = {
        name: value
        if name == "step"
        else tf.nest.map_structure(lambda v: tf.gather(v, rows), value)
        for name, value in batch.items()
    }
    augment = Augment(crop=(4, 5))
    full_result, part_result = augment(batch, seed=3), augment(part, seed=3)
    np.testing.assert_array_equal(
        part_result["image"], full_result["image"].numpy()[rows]
    )


def test_seed_and_step_change_what_is_done():
    def places(seed, step):
        result = Augment(crop=(3, 3))(make_batch(4, step), seed)
        return result["image"].numpy().tobytes()

    kinds = [places(s, t) for s in range(2) for t in range(2)]
    assert len(set(kinds)) == 4
    assert places(1, 0) == kinds[2]


def normals_of(depth: np.ndarray) -> np.ndarray:
    """Unit normals of surfaces z(y, x) seen along z, by central differences."""
    slope_y, slope_x = np.gradient(depth, axis=(1, 2))
    normals = np.stack([slope_x, slope_y, -np.ones_like(depth)], -1)
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


def curvatures_of(depth: np.ndarray) -> np.ndarray:
    """Eigenvalues of the second derivatives, ascending [b, H, W, 2]."""
    rows = np.stack(
        [
            np.stack(np.gradient(slope, axis=(1, 2)), -1)
            for slope in np.gradient(depth, axis=(1, 2))
        ],
        -2,
    )
    return np.linalg.eigvalsh((rows + np.swapaxes(rows, -1, -2)) / 2)


def test_mirrored_geometry_is_the_geometry_of_the_mirrored_surface():
    i, y, x = coordinates(40)
    depth = np.sin(0.7 * x + i) + 0.2 * y + np.cos(0.5 * x * y + 0.3 * i)
    batch = make_batch(
        40,
        normal=normals_of(depth).astype(np.float32),
        curvature=curvatures_of(depth).astype(np.float32),
        depth_euclidean=depth[..., None].astype(np.float32),
    )
    result = Augment()(batch, seed=2)
    flipped = flips(result)
    assert 5 < flipped.sum() < 35
    surface = np.where(flipped[:, None, None], depth[:, :, ::-1], depth)
    targets = result["targets"]
    np.testing.assert_allclose(targets["normal"], normals_of(surface), atol=1e-6)
    np.testing.assert_allclose(targets["curvature"], curvatures_of(surface), atol=1e-5)
    np.testing.assert_allclose(targets["depth_euclidean"][..., 0], surface, atol=1e-6)


def test_only_the_normal_turns_round_in_a_mirror():
    mirrors = {name: task.mirror for name, task in task_table.TASKS.items()}
    assert mirrors.pop("normal") == (-1, 1, 1)
    assert set(mirrors.values()) == {None}


def test_a_crop_must_fit():
    with pytest.raises(InputError, match="8x9 for pictures of 7x9"):
        Augment(crop=(8, 9))(make_batch(2), seed=0)
