# SPDX-License-Identifier: Apache-2.0
"""Resizing arrays of one picture: by area, by nearest neighbour, and back.

Pixel i of n along a side stands for [i, i + 1) / n of it. The paper's size, 336 x 680
of 1024 x 2048, is the one exception: there a pixel stands for 3 x 3 pixels, counted
from the upper left, and the last 16 rows and 8 columns are left out (a third is
341 x 682, of which the released code keeps 336 x 680).
"""

from __future__ import annotations

import numpy as np

from mtr_tf.data.cityscapes import layout

Size = tuple[int, int]  # (height, width)


def window(original_size: Size, size: Size) -> Size:
    """(height, width) of the upper left part of the original that `size` stands for."""
    if size == layout.IMAGE_SIZE and original_size == layout.ORIGINAL_SIZE:
        return 3 * size[0], 3 * size[1]
    return original_size


def area(values: np.ndarray, size: Size) -> np.ndarray:
    """The mean over the area that each new pixel stands for; exact for integers.

    Args:
      values: [H, W, ...] numbers, of magnitude below 2**31.
      size: of the result.

    Returns:
      float64 [*size, ...].
    """
    height, width = window(values.shape[:2], size)
    values = values[:height, :width].astype(np.float64)
    for axis, length in enumerate(size):
        values = np.moveaxis(_mean_first(np.moveaxis(values, axis, 0), length), 0, axis)
    return values


def area_of_known(
    values: np.ndarray, valid: np.ndarray, size: Size
) -> tuple[np.ndarray, np.ndarray]:
    """The mean over the valid pixels of the area that each new pixel stands for.

    Args:
      values: [H, W] numbers; anything where not valid.
      valid: bool [H, W].
      size: of the result.

    Returns:
      float64 [*size], 0 where no pixel is valid; bool [*size], whether any pixel is.
    """
    share = area(valid, size)
    total = area(np.where(valid, values, 0), size)
    any_valid = share > 0
    return np.divide(total, share, out=np.zeros(size), where=any_valid), any_valid


def nearest(values: np.ndarray, size: Size) -> np.ndarray:
    """The pixel that each new pixel's centre lies in (between two, the further one).

    Args:
      values: [H, W].
      size: of the result.
    """
    rows, columns = (
        (2 * np.arange(n) + 1) * length // (2 * n)
        for n, length in zip(size, window(values.shape, size), strict=True)
    )
    return values[np.ix_(rows, columns)]


def nearest_back(values: np.ndarray, original_size: Size) -> np.ndarray:
    """For each original pixel, the value of the new pixel that stands for it.

    Outside the area that the new pixels stand for, the value of the nearest one.

    Args:
      values: [h, w].
      original_size: of the result, and of the picture that was resized.
    """
    rows, columns = (
        np.minimum((2 * np.arange(n) + 1) * count // (2 * span), count - 1)
        for n, count, span in zip(
            original_size,
            values.shape,
            window(original_size, values.shape),
            strict=True,
        )
    )
    return values[np.ix_(rows, columns)]


def _mean_first(values: np.ndarray, length: int) -> np.ndarray:
    """Means over `length` equal parts of the first axis."""
    total = len(values)
    step, remainder = divmod(total, length)
    if not remainder:  # The same as below, but faster.
        return sum((values[k::step] for k in range(1, step)), values[::step]) / step
    sums = np.zeros((total + 1, *values.shape[1:]))
    np.cumsum(values, axis=0, out=sums[1:])
    edge, remainder = np.divmod(np.arange(length + 1) * total, length)
    share = (remainder / length).reshape(-1, *(1,) * (values.ndim - 1))
    edge_values = np.append(values, np.zeros_like(values[:1]), axis=0)[edge]
    return np.diff(sums[edge] + share * edge_values, axis=0) * (length / total)
