# SPDX-License-Identifier: Apache-2.0
"""Masks of output pixels, for attacks on a part of what a model predicts."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mtr_tf.errors import InputError
from mtr_tf.errors import is_whole
from mtr_tf.tasks import Task


def random_pixels(height: int, width: int, count: int, seed: int) -> np.ndarray:
    """Returns a mask of `count` pixels drawn without replacement.

    The masks of one seed are nested: a larger count keeps the pixels of a smaller one.

    Returns:
      float32 0/1 [height, width].

    Raises:
      InputError: `count` is not a whole number from 1 to height * width.
    """
    if not is_whole(count) or not 1 <= count <= height * width:
        raise InputError(
            f"count must be a whole number from 1 to {height * width}, the number of "
            f"pixels of a {height}x{width} output; got {count!r}."
        )
    mask = np.zeros(height * width, np.float32)
    order = np.random.default_rng(seed).permutation(height * width)
    mask[order[:count]] = 1
    return mask.reshape(height, width)


def block(
    height: int, width: int, top: int, left: int, rows: int, columns: int
) -> np.ndarray:
    """Returns a mask of a block of pixels, its corner at row `top`, column `left`.

    Returns:
      float32 0/1 [height, width].

    Raises:
      InputError: The block is empty or not inside.
    """
    inside = 0 <= top < top + rows <= height and 0 <= left < left + columns <= width
    if not inside:
        raise InputError(
            "A block must have at least one row and one column, and must lie inside "
            f"the {height}x{width} pixels; got {rows}x{columns} at row {top}, column "
            f"{left}."
        )
    mask = np.zeros((height, width), np.float32)
    mask[top : top + rows, left : left + columns] = 1
    return mask


def restricted(mask: Any, pixels: Any | None) -> tf.Tensor:
    """Returns a mask of targets times one of pixels, [batch, H, W] or [H, W]."""
    mask = tf.cast(mask, tf.float32)
    if pixels is None:
        return mask
    pixels = tf.cast(pixels, tf.float32)
    fits = mask.shape.is_compatible_with(pixels.shape)
    if not fits and not mask.shape[1:].is_compatible_with(pixels.shape):
        raise InputError(
            f"pixels must have the shape of the mask, {mask.shape}, or of one image, "
            f"{mask.shape[1:]}; got {pixels.shape}."
        )
    return mask * pixels


def checked_classes(
    classes: Iterable[int], tasks: Mapping[str, Task]
) -> tuple[int, ...]:
    """Returns the classes; raises InputError if they restrict none of the tasks."""
    numbers = tuple(classes)
    if not numbers or not all(map(is_whole, numbers)) or min(numbers) < 0:
        raise InputError(f"classes must be whole numbers from 0; got {list(numbers)}.")
    if not any(task.discrete for task in tasks.values()):
        raise InputError(
            "classes apply only to tasks with classes, but no attacked task has any "
            f"({', '.join(map(repr, tasks))}); leave them out."
        )
    return numbers


def check_maps(tasks: Mapping[str, Task]) -> None:
    """Raises InputError where pixels restrict none of the tasks."""
    if not any(task.is_map for task in tasks.values()):
        raise InputError(
            "pixels apply only to maps, that is to tasks with a value for each pixel, "
            f"but no attacked task is a map ({', '.join(map(repr, tasks))}); leave "
            "them out, or attack a map."
        )


def of_pixels(
    pixels: Any, masks: Mapping[str, tf.Tensor], tasks: Mapping[str, Task]
) -> dict[str, tf.Tensor]:
    """Returns the masks, those of maps restricted to some pixels; see `restricted`."""
    return {
        name: restricted(masks[name], pixels if task.is_map else None)
        for name, task in tasks.items()
    }


def of_classes(
    classes: Sequence[int],
    targets: Mapping[str, tf.Tensor],
    masks: Mapping[str, tf.Tensor],
    tasks: Mapping[str, Task],
) -> dict[str, tf.Tensor]:
    """Returns the masks, those of tasks with classes restricted to some classes."""
    restricted_masks = dict(masks)
    for name in targets:
        if tasks[name].discrete:
            target = tf.cast(targets[name], tf.int32)[..., tf.newaxis]
            matches = tf.reduce_any(tf.equal(target, classes), axis=-1)
            restricted_masks[name] = masks[name] * tf.cast(matches, tf.float32)
    return restricted_masks
