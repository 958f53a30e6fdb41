# SPDX-License-Identifier: Apache-2.0
"""Edges and keypoints of the geometry: responses computed from exact surfaces.

Both look at a pixel's neighbours, so they depend on the resolution, as edges do.
"""

from __future__ import annotations

import numpy as np

from mtr_tf.data.rooms.geometry import Vector

OCCLUSION_METRES = 0.3  # A gap of this size, or more, is a full edge.
OFFSET_METRES = 2.0  # A step of this size counts like one of 1 in a normal.
KEYPOINT_SCALE = 0.01  # A response of this size is half a keypoint.


def edge_occlusion(surface: np.ndarray, point: Vector, normal: Vector) -> np.ndarray:
    """3D edges in [0, 1]: where one smooth surface ends and another begins.

    Two neighbouring pixels p, q (left-right or up-down) on different smooth surfaces
    (another thing, or another face of the same one) have an edge of strength

        max(min(1, gap / 0.3 m), (1 - n_p . n_q) / 2),
        gap = min(|n_p . (X_q - X_p)|, |n_q . (X_q - X_p)|),

    X being their points and n their normals: the first term is an occlusion (each
    point is off the other's tangent plane), the second a crease, 0.5 at a right angle.
    A pixel's value is the largest strength of its up to four pairs, 0 if it has none.

    Args:
      surface: integer [H, W], which smooth surface is seen.
      point: three float64 [H, W], camera frame or any other.
      normal: three float64 [H, W], unit, in the same frame.
    """
    edges = np.zeros(surface.shape)
    for axis in (0, 1):
        first = (slice(None), slice(None, -1)) if axis else (slice(None, -1),)
        second = (slice(None), slice(1, None)) if axis else (slice(1, None),)
        is_border = surface[first] != surface[second]
        p = [part[first][is_border] for part in (*point, *normal)]
        q = [part[second][is_border] for part in (*point, *normal)]
        step = [b - a for a, b in zip(p[:3], q[:3], strict=True)]
        gap_p = np.abs(p[3] * step[0] + p[4] * step[1] + p[5] * step[2])
        gap_q = np.abs(q[3] * step[0] + q[4] * step[1] + q[5] * step[2])
        gap = np.minimum(gap_p, gap_q)
        turn = 1 - (p[3] * q[3] + p[4] * q[4] + p[5] * q[5])
        strength = np.zeros(is_border.shape)
        strength[is_border] = np.maximum(
            np.minimum(gap / OCCLUSION_METRES, 1), turn / 2
        )
        for side in (first, second):
            np.maximum(edges[side], strength, out=edges[side])
    return edges


def _blur(x: np.ndarray) -> np.ndarray:
    """Mean over 3 x 3 pixels, the border repeated."""
    x = np.concatenate([x[:1], x, x[-1:]], axis=0)
    x = x[:-2] + x[1:-1] + x[2:]
    x = np.concatenate([x[:, :1], x, x[:, -1:]], axis=1)
    return (x[:, :-2] + x[:, 1:-1] + x[:, 2:]) / 9


def _slopes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half the difference of the two neighbours, across and down; 0 at the border."""
    across, down = np.zeros(x.shape), np.zeros(x.shape)
    across[:, 1:-1] = 0.5 * (x[:, 2:] - x[:, :-2])
    down[1:-1] = 0.5 * (x[2:] - x[:-2])
    return across, down


def keypoints3d(point: Vector, normal: Vector) -> np.ndarray:
    """3D keypoints in [0, 1): corners of the surface, whatever its colours.

    The tangent plane at a pixel has the coordinates (n, n . X / 2 m), constant over a
    plane. They are averaged over 3 x 3 pixels; their structure tensor (central
    differences, summed over the four coordinates, averaged over 3 x 3 pixels twice) has
    eigenvalues a <= b. a is large where the plane changes in both directions: it is the
    corner response of Shi and Tomasi (1994, Good features to track), with the tangent
    plane in place of the brightness. It is multiplied by a / b, so that the pixel steps
    of a slanted edge count little: r = a^2 / b. The value is r / (r + 0.01).

    Args:
      point: three float64 [H, W], camera frame.
      normal: three float64 [H, W], unit, camera frame.
    """
    offset = normal[0] * point[0] + normal[1] * point[1] + normal[2] * point[2]
    shape = offset.shape
    xx, xy, yy = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for part in (*normal, offset / OFFSET_METRES):
        across, down = _slopes(_blur(part))
        xx += across * across
        xy += across * down
        yy += down * down
    xx, xy, yy = (_blur(_blur(sum_)) for sum_ in (xx, xy, yy))
    middle, half = 0.5 * (xx + yy), 0.5 * (xx - yy)
    spread = np.sqrt(half * half + xy * xy)
    eigenvalue = np.maximum(middle - spread, 0.0)
    response = eigenvalue * eigenvalue / np.maximum(middle + spread, 1e-12)
    return response / (response + KEYPOINT_SCALE)
