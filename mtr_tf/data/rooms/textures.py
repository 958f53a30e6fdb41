# SPDX-License-Identifier: Apache-2.0
"""Solid textures: how much of a material's second colour there is at a point.

Each takes coordinates x, y, z counted in cells of the texture and the table of the
value noise, and returns a weight in [0, 1]. As in `geometry`, only exactly rounded
operations are used.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

NOISE_CELLS = 16  # Period of the noise in cells; the table has this number cubed.


def _fraction(x: np.ndarray) -> np.ndarray:
    """Distance to the nearest integer below."""
    return x - np.floor(x)


def noise(x: np.ndarray, y: np.ndarray, z: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Value noise: numbers at the corners of cells, smoothly interpolated."""
    corners, weights = [], []
    for value, stride in ((x, NOISE_CELLS * NOISE_CELLS), (y, NOISE_CELLS), (z, 1)):
        cell = np.floor(value)
        part = value - cell
        weights.append(part * part * (3 - 2 * part))
        lower = cell.astype(np.int64) & (NOISE_CELLS - 1)
        upper = (lower + 1) & (NOISE_CELLS - 1)
        corners.append((lower * stride, upper * stride))
    planes = []
    for i in corners[0]:
        rows = []
        for j in corners[1]:
            ends = [table[i + j + k] for k in corners[2]]
            rows.append(ends[0] + weights[2] * (ends[1] - ends[0]))
        planes.append(rows[0] + weights[1] * (rows[1] - rows[0]))
    return planes[0] + weights[0] * (planes[1] - planes[0])


def _plain(x, y, z, table):
    return np.zeros_like(x)


def _checker(x, y, z, table):
    cells = np.floor(x) + np.floor(y) + np.floor(z)
    return 2 * _fraction(0.5 * cells)


def _stripes(x, y, z, table):
    return (_fraction(x) < 0.4).astype(np.float64)


def _bricks(x, y, z, table):
    row = np.floor(z)
    along = 0.5 * (x + y + row)
    return ((z - row < 0.16) | (_fraction(along) < 0.08)).astype(np.float64)


def _dots(x, y, z, table):
    a, b, c = _fraction(x) - 0.5, _fraction(y) - 0.5, _fraction(z) - 0.5
    return (a * a + b * b + c * c < 0.2).astype(np.float64)


def _rings(x, y, z, table):
    return (_fraction(np.sqrt(x * x + y * y)) < 0.5).astype(np.float64)


def _clouds(x, y, z, table):
    return np.clip(3 * noise(x, y, z, table) - 1, 0.0, 1.0)


def _marble(x, y, z, table):
    wave = _fraction(0.5 * x + 2 * noise(x, y, z, table))
    return np.abs(2 * wave - 1)


# Name -> weight(x, y, z, table).
TEXTURES: dict[str, Callable[..., np.ndarray]] = {
    "plain": _plain,
    "checker": _checker,
    "stripes": _stripes,
    "bricks": _bricks,
    "dots": _dots,
    "rings": _rings,
    "clouds": _clouds,
    "marble": _marble,
}
