# SPDX-License-Identifier: Apache-2.0
"""Tiles of what is no map: colors and bars, pixel by pixel."""

from __future__ import annotations

import types

import numpy as np
import pytest

from mtr_tf.show import tiles
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import Task

INFO = types.SimpleNamespace(colors=(), ranges={"angle": (0.0, 4.0)})
RED, BLUE, GREY, WHITE = (200, 0, 0), (0, 0, 200), (96, 96, 96), (255, 255, 255)
SCENE = Task("scene", classes=("in", "out"), colors=(RED, BLUE), places=0)
SEEN = Task("seen", kind="labels", classes=("a", "b"), places=0)
ANGLE = Task("angle", places=0)
JOINTS = Task("joints", channels=2, places=1)


@pytest.mark.parametrize(
    "value", [np.array([0, 1, 1]), np.array([[2.0, 1], [0, 1], [-2, -1]])]
)
def test_a_class_of_the_image_is_a_tile_of_its_color(value):
    painted = tiles.paint(SCENE, value, INFO, np.array([1, 1, 0]), (4, 6))
    assert painted.shape == (3, 4, 6, 3)
    assert painted.dtype == np.uint8
    for tile, color in zip(painted, (RED, BLUE, (0, 0, 0)), strict=True):
        assert (tile == color).all()


def test_numbers_are_bars_between_the_ends_of_their_range():
    painted = tiles.paint(ANGLE, np.array([[1.0], [9.0], [-1]]), INFO, None, (3, 8))
    assert (painted[0, :, :2] == GREY).all()
    assert (painted[0, :, 2:] == WHITE).all()
    assert (painted[1] == GREY).all()
    assert (painted[2] == WHITE).all()


def test_labels_are_bars_of_shares_or_of_logits():
    for value in (np.array([[1, 0]]), np.array([[50.0, -50.0]])):
        painted = tiles.paint(SEEN, value, INFO, None, (4, 8))[0]
        assert (painted[:2] == GREY).all()
        assert (painted[2:] == WHITE).all()
    half = tiles.paint(SEEN, np.array([[0.0, 9.0]]), INFO, None, (4, 8))[0]
    assert (half[0] == GREY).all(axis=-1).sum() == 4


def test_other_places_have_a_bar_for_each_number_and_none_where_masked():
    value = np.array([[[0.0, 1.0], [1.0, 0.5]]])
    painted = tiles.paint(JOINTS, value, INFO, np.array([[1, 0]]), (4, 2))[0]
    assert (painted[0] == WHITE).all()
    assert (painted[1] == GREY).all()
    assert (painted[2:] == 0).all()


def test_maps_are_painted_as_ever():
    depth = np.random.default_rng(0).random((2, 4, 6, 1))
    info = types.SimpleNamespace(ranges={"depth": (0, 1)})
    np.testing.assert_array_equal(
        tiles.paint(TASKS["depth"], depth, info, None, (9, 9)),
        TASKS["depth"].to_rgb(depth, info),
    )
