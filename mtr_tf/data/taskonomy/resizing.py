# SPDX-License-Identifier: Apache-2.0
"""Resizing and blurring of arrays, without the pixels that are not valid.

Every operation here but `nearest` is linear and separable: a matrix for the rows and
one for the columns. Pixel i of n covers [i / n, (i + 1) / n] of the side, whatever n.
"""

from __future__ import annotations

import functools

import numpy as np

# A Gaussian is cut off at this many standard deviations, as in SciPy.
_TRUNCATE = 4.0


def mean_of_area(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Averages over the area that each new pixel covers; float32 [h, w, C].

    Args:
      values: [H, W, C].
      size: (h, w).
    """
    return separable(values, area_matrix(values.shape[0], size[0]),
                     area_matrix(values.shape[1], size[1]))  # fmt: skip


def mean_of_valid_area(
    values: np.ndarray, valid: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Averages over the valid part of the area that each new pixel covers.

    Args:
      values: [H, W, C], anything (finite) where not valid.
      valid: bool [H, W].
      size: (h, w).

    Returns:
      Means, float32 [h, w, C], 0 where there is none; and bool [h, w], whether any of
      the area is valid.
    """
    weight = mean_of_area(valid[..., np.newaxis], size)
    total = mean_of_area(np.where(valid[..., np.newaxis], values, 0), size)
    mean = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    return mean, weight[..., 0] > 0


def blur_valid(values: np.ndarray, valid: np.ndarray, sigma: float) -> np.ndarray:
    """Takes the Gaussian mean of the valid pixels around each one.

    Beyond the border the values continue as their mirror image, with border pixels
    repeated.

    Args:
      values: [H, W, C], anything (finite) where not valid.
      valid: bool [H, W].
      sigma: standard deviation in pixels.

    Returns:
      Float32 [H, W, C]; 0 where nothing valid is in reach.
    """
    rows, columns = (gauss_matrix(n, sigma, "symmetric") for n in valid.shape)
    mask = valid[..., np.newaxis]
    total = separable(np.where(mask, values, 0), rows, columns)
    weight = separable(mask, rows, columns)
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)


def nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Picks the pixel that each new pixel's centre lies in.

    A centre between two pixels picks the further one.

    Args:
      values: [H, W, ...].
      size: (h, w).
    """
    height, width = values.shape[:2]
    rows = ((2 * np.arange(size[0]) + 1) * height) // (2 * size[0])
    columns = ((2 * np.arange(size[1]) + 1) * width) // (2 * size[1])
    return values[rows[:, np.newaxis], columns]


def linear_anti_aliased(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Interpolates linearly, after a blur where the picture shrinks; float32 [h, w, C].

    Does what `skimage.transform.resize` does to floats at order 1 with its defaults: a
    Gaussian of (H / h - 1) / 2 pixels, then linear interpolation between the pixels'
    centres, with the picture mirrored around the centres of its border pixels.

    Args:
      values: [H, W, C].
      size: (h, w).
    """
    if values.shape[:2] == size:
        return values.astype(np.float32)
    return separable(values, _anti_aliased_matrix(values.shape[0], size[0]),
                     _anti_aliased_matrix(values.shape[1], size[1]))  # fmt: skip


def separable(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Applies float32 [h, H] to the rows and [w, W] to the columns of [H, W, C]."""
    channels_first = np.moveaxis(values.astype(np.float32), -1, 0)
    return np.moveaxis(rows @ channels_first @ columns.T, 0, -1)


@functools.lru_cache(maxsize=32)
def area_matrix(old: int, new: int) -> np.ndarray:
    """The share of each old pixel in the mean over each new one, float32 [new, old]."""
    ends = np.arange(old + 1) * new  # In units of 1 / (old * new) of the side.
    starts = np.arange(new)[:, np.newaxis] * old
    clipped_ends = np.clip(ends, starts, starts + old)
    return (np.diff(clipped_ends, axis=1) / old).astype(np.float32)


@functools.lru_cache(maxsize=32)
def gauss_matrix(size: int, sigma: float, border: str) -> np.ndarray:
    """The Gaussian mean around each pixel, float32 [size, size].

    Args:
      size: number of pixels.
      sigma: standard deviation in pixels; 0 for the unit matrix.
      border: how the pixels continue beyond the border, one of `numpy.pad`'s modes.
    """
    radius = int(_TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2) if radius else np.ones(1)
    weights /= weights.sum()
    source = np.pad(np.arange(size), radius, border)  # pyrefly: ignore
    matrix = np.zeros((size, size))
    for offset, weight in zip(offsets, weights, strict=True):
        columns = source[radius + offset : radius + offset + size]
        matrix[np.arange(size), columns] += weight
    return matrix.astype(np.float32)


@functools.lru_cache(maxsize=32)
def _anti_aliased_matrix(old: int, new: int) -> np.ndarray:
    """A Gaussian against aliasing, then linear interpolation: float32 [new, old]."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    centres = np.abs(centres)  # Mirrored around the first pixel's centre
    centres = (old - 1) - np.abs((old - 1) - centres)  # and the last one's.
    low = np.clip(np.floor(centres).astype(int), 0, max(old - 2, 0))
    share = centres - low
    matrix = np.zeros((new, old))
    matrix[np.arange(new), low] += 1 - share
    matrix[np.arange(new), np.minimum(low + 1, old - 1)] += share
    sigma = max(0.0, (old / new - 1) / 2)
    return (matrix @ gauss_matrix(old, sigma, "reflect")).astype(np.float32)
