# SPDX-License-Identifier: Apache-2.0
"""3D edges and keypoints on surfaces made by hand."""

from __future__ import annotations

import numpy as np

from mtr_tf.data.rooms import labels


def test_edges_in_closed_form():
    """A step of 0.15 m between parallel planes, and a right angle."""
    surface = np.array([[0, 0, 1, 1]])
    zero, ones = np.zeros((1, 4)), np.ones((1, 4))
    depth = np.array([[2, 2, 2.15, 2.15]])
    x = np.array([[0.0, 0.1, 0.2, 0.3]])
    edges = labels.edge_occlusion(surface, (x, zero, depth), (zero, zero, -ones))
    np.testing.assert_allclose(edges, [[0, 0.5, 0.5, 0]])

    x = np.array([[-0.1, 0.0, 0.0, 0.0]])
    depth = np.array([[2.0, 2.0, 2.0, 1.9]])
    normal = (np.array([[0.0, 0, -1, -1]]), zero, np.array([[-1.0, -1, 0, 0]]))
    edges = labels.edge_occlusion(surface, (x, zero, depth), normal)
    np.testing.assert_allclose(edges, [[0, 0.5, 0.5, 0]])
    assert not labels.edge_occlusion(zero.astype(int), (x, zero, depth), normal).any()


def test_keypoints_are_corners():
    """Three faces that meet give a keypoint; a plane and a straight edge give none."""
    size = 33
    row, column = np.mgrid[:size, :size]
    zero = np.zeros((size, size))
    flat_response = labels.keypoints3d((zero, zero, zero + 2), (zero, zero, zero - 1))
    assert flat_response.max() == 0

    right_half = column >= size // 2
    normal = (np.where(right_half, 1.0, 0.0), zero, np.where(right_half, 0.0, -1.0))
    assert labels.keypoints3d((zero, zero, zero), normal).max() < 1e-9

    lower_half = row >= size // 2
    normal = (
        np.where(right_half & ~lower_half, 1.0, 0.0),
        np.where(lower_half, 1.0, 0.0),
        np.where(right_half | lower_half, 0.0, -1.0),
    )
    response = labels.keypoints3d((zero, zero, zero), normal)
    peak = np.unravel_index(response.argmax(), response.shape)
    assert np.abs(np.array(peak) - size // 2).max() <= 2
    assert response.max() > 0.5
    assert response[:8].max() < 1e-9
