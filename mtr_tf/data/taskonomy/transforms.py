# SPDX-License-Identifier: Apache-2.0
"""From a domain's file to a task's target, without the released code's errors.

Each function takes (file, valid, size): the file's numbers, [H, W] or [H, W, 3]; bool
[H, W], False where they mean nothing; and the (height, width) of the result. It returns
the target, [h, w] labels or float32 [h, w, C], and bool [h, w], where it is known.
Targets are 0 where they are not known. `layout` says what scale they have.

Numbers are averaged over the valid part of the area that a new pixel covers; labels are
picked by nearest neighbour. The depth files' numbers are averaged after the logarithm,
as in the released code. See `released` for what that code does.
"""

from __future__ import annotations

import functools

import numpy as np

from mtr_tf.data.taskonomy import layout
from mtr_tf.data.taskonomy import resizing

# Luminance of linear RGB, ITU-R BT.709, which scikit-image's greys are made with.
_GREY = np.array((0.2125, 0.7154, 0.0721), np.float32)


def depth_known(file: np.ndarray) -> np.ndarray:
    """Where a depth file says something: bool [H, W]."""
    return (file > 0) & (file < layout.NO_DEPTH)


def image(file: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The picture, uint8 [h, w, 3], of uint8 [H, W, 3]."""
    return np.rint(resizing.mean_of_area(file, size)).astype(np.uint8)


def labels(
    file: np.ndarray, valid: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Classes from 0, the background; label 0 of the file is not known."""
    del valid
    numbers = resizing.nearest(file, size)
    return np.where(numbers > 0, numbers - 1, 0).astype(np.uint8), numbers > 0


def log_depth(
    file: np.ndarray, valid: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """ln(1 + v) / ln(2**16)."""
    return resizing.mean_of_valid_area(logarithm(file), valid, size)


def scaled(
    task: str, file: np.ndarray, valid: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The target, with the task's range in `layout.SCALED_FROM` mapped to [-1, 1]."""
    mean, valid = resizing.mean_of_valid_area(in_channels(task, file), valid, size)
    return np.where(valid[..., np.newaxis], rescaled(task, mean), np.float32(0)), valid


def edge_occlusion(
    file: np.ndarray, valid: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Occlusion edges from -1, blurred over the known pixels.

    The blur grows with the picture: `layout.BLUR_SIGMA` pixels at a width of 256.
    """
    target, valid = scaled("edge_occlusion", file, valid, size)
    sigma = layout.BLUR_SIGMA * size[1] / layout.IMAGE_SIZE[1]
    blurred = resizing.blur_valid(target, valid, sigma)
    return np.where(valid[..., np.newaxis], blurred, np.float32(0)), valid


def curvature(
    file: np.ndarray, valid: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Two principal curvatures, red and green, standardised."""
    return resizing.mean_of_valid_area(standardised(file[..., :2]), valid, size)


# Steps that `released` shares.


def unit(file: np.ndarray) -> np.ndarray:
    """Integers as float32 in [0, 1]."""
    return file.astype(np.float32) / np.float32(np.iinfo(file.dtype).max)


def grey(file: np.ndarray) -> np.ndarray:
    """The luminance of colours, [H, W, 1] in [0, 1]."""
    return unit(file) @ _GREY[:, np.newaxis]


def in_channels(task: str, file: np.ndarray) -> np.ndarray:
    """`grey` of colours if the task has one channel, else `unit`: [H, W, C]."""
    if file.ndim == 2:
        return unit(file)[..., np.newaxis]
    return grey(file) if layout.DOMAINS[task].channels == 1 else unit(file)


def logarithm(file: np.ndarray) -> np.ndarray:
    """ln(1 + v) / ln(2**16), float32 [H, W, 1]."""
    return (np.log1p(file.astype(np.float32)) / layout.LOG_SCALE)[..., np.newaxis]


def standardised(values: np.ndarray) -> np.ndarray:
    """Standardised curvatures, from [..., 2] or from one channel for both."""
    mean = np.array(layout.CURVATURE_MEAN, np.float32)
    return (values.astype(np.float32) - mean) / np.array(
        layout.CURVATURE_STD, np.float32
    )


def rescaled(task: str, values: np.ndarray) -> np.ndarray:
    """Maps `layout.SCALED_FROM` to [-1, 1], and clips the tasks in `layout.CLIPPED`."""
    low, high = map(np.float32, layout.SCALED_FROM[task])
    if task in layout.CLIPPED:
        values = np.clip(values, low, high)
    return (values - low) / (high - low) * np.float32(2) - np.float32(1)


SCALED = ("normal", "edge_texture", "keypoints2d", "keypoints3d", "reshading")
TRANSFORMS = {
    "seg": labels,
    "depth": log_depth,
    "depth_euclidean": log_depth,
    "edge_occlusion": edge_occlusion,
    "curvature": curvature,
    **{task: functools.partial(scaled, task) for task in SCALED},
}
