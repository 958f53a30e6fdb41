# SPDX-License-Identifier: Apache-2.0
"""Targets and outputs as tiles of the image's size, whether they are maps or not.

One class for the image is a tile of its color; all else that is no map is a bar for
each number, from the top down.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mtr_tf.tasks import Task
from mtr_tf.tasks import palettes

_GREY = (96, 96, 96)
_WHITE = 255


def paint(
    task: Task,
    value: np.ndarray,
    info: Any,
    mask: np.ndarray | None,
    size: tuple[int, int],
) -> np.ndarray:
    """Returns uint8 `[batch, H, W, 3]`.

    Args:
      task: What is painted.
      value: Targets or outputs, `[batch, *places]` or with channels.
      info: The data set's `DatasetInfo`, for its `colors` and `ranges`.
      mask: `[batch, *places]`, zero where the tile shall be black; None: nowhere.
      size: (H, W) of tiles that are no maps.
    """
    if task.is_map:
        return task.to_rgb(value, info, mask)
    value = np.asarray(value)
    if task.discrete and task.places == 0:
        is_logits = np.issubdtype(value.dtype, np.floating)
        classes = value.argmax(axis=-1) if is_logits else value
        whole = np.broadcast_to(classes[:, None, None], (len(classes), *size))
        known = None if mask is None else _spread(mask, size)
        return palettes.classes_to_rgb(whole, task.colors or info.colors, known)
    return _bars(task, value, info, mask, size)


def _spread(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask `[batch]` as one of tiles."""
    return np.broadcast_to(np.asarray(mask)[:, None, None], (len(mask), *size))


def _bars(task, value, info, mask, size) -> np.ndarray:
    """Bars whose lengths are numbers between the least and the largest."""
    places = value.shape[: task.axes + 1]
    if task.discrete and np.issubdtype(value.dtype, np.floating):
        value = value.argmax(axis=-1)
    numbers = value.reshape(*places, -1).astype(float)
    known = np.ones(places, bool) if mask is None else np.asarray(mask, bool)
    known = np.broadcast_to(known[..., None], numbers.shape).reshape(len(value), -1)
    numbers = numbers.reshape(len(value), -1)
    if task.kind == "labels":
        is_share = numbers.size and numbers.min() >= 0 and numbers.max() <= 1
        low, high = 0.0, 1.0
        numbers = numbers if is_share else 1 / (1 + np.exp(-numbers))
    else:
        seen = numbers[known & np.isfinite(numbers)]
        ends = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 1.0)
        low, high = info.ranges.get(task.name, ends)
    shares = np.clip((numbers - low) / ((high - low) or 1), 0, 1)
    height, width = size
    which = np.arange(height) * numbers.shape[1] // height  # The bar of each row.
    filled = (np.arange(width) + 0.5) / width < shares[:, which, None]
    tiles = np.where(filled[..., None], _GREY, _WHITE).astype(np.uint8)
    tiles[~known[:, which]] = 0
    return tiles
