# SPDX-License-Identifier: Apache-2.0
"""Targets and outputs painted for people: NumPy in, uint8 `[..., 3]` out.

`mask` is an optional `[...]` array without the channel axis; where it is zero the
picture is black. Values that are not finite are black too.
"""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Sequence

import matplotlib
import numpy as np

_GOLDEN = 0.618  # Hues at multiples of it are never close.
_ROBUST_PERCENTILES = (2.0, 98.0)


def classes_to_rgb(
    classes: np.ndarray,
    colors: Sequence[tuple[int, int, int]],
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Paints class i, of an integer array `[...]`, with the i-th of `colors`.

    A class for which there is no color, such as 255, is black.
    """
    classes = np.asarray(classes)
    table = np.concatenate((np.asarray(colors, np.uint8), np.zeros((1, 3), np.uint8)))
    has_color = (classes >= 0) & (classes < len(colors))
    return _blacken(table[np.where(has_color, classes, len(colors))], mask)


def scalar_to_rgb(
    values: np.ndarray,
    value_range: tuple[float, float] | None = None,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Paints numbers `[..., 1]` by viridis, a perceptually ordered colormap.

    Args:
      values: Float `[..., 1]`.
      value_range: The values at the ends of the colormap. By default the 2nd and 98th
        percentiles of the valid values; do not use this for pictures that will be
        compared.
      mask: `[...]`, zero where black.
    """
    values = np.asarray(values, np.float32)[..., 0]
    mask = _finite_mask(values, mask)
    low, high = value_range or _robust_range(values[mask])
    level = _unit_range(values, low, high, mask)
    return _blacken(_viridis()[_to_uint8(level)], mask)


def vectors_to_rgb(vectors: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Paints unit vectors n `[..., 3]`, or shorter outputs, as (n + 1) / 2."""
    vectors = np.asarray(vectors, np.float32)
    mask = _finite_mask(vectors.sum(axis=-1), mask)
    return _blacken(_to_uint8((np.where(mask[..., None], vectors, 0) + 1) / 2), mask)


def pair_to_rgb(
    values: np.ndarray,
    value_range: tuple[float, float] | None = None,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Paints two numbers `[..., 2]` of either sign as red and green, 0 as mid-grey.

    Args:
      values: Float `[..., 2]`, such as two principal curvatures.
      value_range: The values of no and of full red (or green); by default minus and
        plus the 98th percentile of the magnitude. Blue is at half throughout.
      mask: `[...]`, zero where black.
    """
    values = np.asarray(values, np.float32)
    mask = _finite_mask(values.sum(axis=-1), mask)
    if value_range is None:
        _, high = _robust_range(np.abs(values[mask]))
        value_range = (-high, high)
    level = _unit_range(values, *value_range, mask[..., None])
    blue = np.full_like(level[..., :1], 0.5)
    return _blacken(_to_uint8(np.concatenate((level, blue), axis=-1)), mask)


def image_to_rgb(image: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Returns an image `[..., 3]` in [0, 1] as bytes; values outside are clipped."""
    image = np.asarray(image, np.float32)
    mask = _finite_mask(image.sum(axis=-1), mask)
    return _blacken(_to_uint8(np.where(mask[..., None], image, 0)), mask)


def three_channels(image: np.ndarray) -> np.ndarray:
    """An image as three channels: its first three, or the first one three times."""
    return image[..., :3] if image.shape[-1] >= 3 else image[..., :1].repeat(3, -1)


def perturbation_rgb(perturbation: np.ndarray, magnify: float) -> np.ndarray:
    """Paints x_adv - x, in units of [0, 1], magnified around mid-grey.

    `magnify = 1 / (2 * epsilon)` lets an l-inf perturbation of that radius fill the
    range from black to white.
    """
    return image_to_rgb(0.5 + magnify * np.asarray(perturbation, np.float32))


def magnification(change: np.ndarray, epsilon: float | None = None) -> float:
    """The factor that spreads changes of up to `epsilon` over black to white."""
    largest = epsilon or float(np.abs(change).max(initial=0))
    return 0.5 / largest if largest else 1.0


def distinct_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """Returns `count` colors; neighbours have very different hues."""
    hues = (i * _GOLDEN % 1 for i in range(count))
    colors = (colorsys.hsv_to_rgb(hue, 0.65, 0.9) for hue in hues)
    return tuple((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colors)


def _finite_mask(values: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    is_finite = np.isfinite(values)
    return is_finite if mask is None else is_finite & (np.asarray(mask) != 0)


def _robust_range(valid: np.ndarray) -> tuple[float, float]:
    if not valid.size:
        return 0.0, 1.0
    low, high = np.percentile(valid, _ROBUST_PERCENTILES)
    return float(low), float(high)


def _unit_range(
    values: np.ndarray, low: float, high: float, mask: np.ndarray
) -> np.ndarray:
    """Maps [low, high] to [0, 1] (a range of one point to 0.5), 0 where masked."""
    if high > low:
        level = (np.where(mask, values, low) - low) / (high - low)
    else:
        level = np.full_like(values, 0.5)
    return np.clip(level, 0, 1)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _blacken(rgb: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    return rgb if mask is None else np.where(np.asarray(mask)[..., None] != 0, rgb, 0)


@functools.cache
def _viridis() -> np.ndarray:
    colors = matplotlib.colormaps["viridis"](np.arange(256))[:, :3]
    return np.rint(colors * 255).astype(np.uint8)
