# SPDX-License-Identifier: Apache-2.0
"""From a domain's file to a task's target as the paper's released code has it.

The functions are called like those of `transforms`. What differs, on purpose:

*   Pictures shrink by a blur and linear interpolation (scikit-image's resize at order
    1), whether pixels are known or not: missing depth bleeds into its neighbours. A
    pixel counts as known where the resized mask is at least 0.99.
*   A depth of 0 counts as known.
*   principal_curvature is read as a grey picture in [0, 1] and then standardised as if
    it had levels of 0-255, so that both channels are nearly constant.
*   edge_occlusion is blurred over 4 pixels at any size, also where it is not known.

The released labels were resized by Pillow's default, which was nearest neighbour before
version 7, as here. Pixels without a label have class 0 and no loss, as here; the
released metrics still counted them as background, which a single mask cannot express.
"""

from __future__ import annotations

import functools

import numpy as np

from mtr_tf.data.taskonomy import layout
from mtr_tf.data.taskonomy import resizing
from mtr_tf.data.taskonomy import transforms

_MIN_VALID = 0.99


def depth_known(file: np.ndarray) -> np.ndarray:
    """Where a depth file says something: bool [H, W]."""
    return file < layout.NO_DEPTH


def image(file: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The picture, uint8 [h, w, 3], of uint8 [H, W, 3]; the code keeps floats."""
    return np.rint(resizing.linear_anti_aliased(file, size)).astype(np.uint8)


def log_depth(
    file: np.ndarray, valid: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """ln(1 + v) / ln(2**16)."""
    return _resize(transforms.logarithm(file), valid, size)


def scaled(
    task: str, file: np.ndarray, valid: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The target, with the task's range in `layout.SCALED_FROM` mapped to [-1, 1]."""
    target, valid = _resize(transforms.in_channels(task, file), valid, size)
    return transforms.rescaled(task, target), valid


def edge_occlusion(
    file: np.ndarray, valid: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Occlusion edges from -1, blurred over 4 pixels."""
    target, valid = scaled("edge_occlusion", file, valid, size)
    all_valid = np.ones(size, bool)
    return resizing.blur_valid(target, all_valid, layout.BLUR_SIGMA), valid


def curvature(
    file: np.ndarray, valid: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The grey picture, twice, standardised as if it were curvatures."""
    target, valid = _resize(transforms.grey(file), valid, size)
    return transforms.standardised(target), valid


def _resize(
    values: np.ndarray, valid: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    mask = resizing.linear_anti_aliased(valid[..., np.newaxis], size)[..., 0]
    return resizing.linear_anti_aliased(values, size), mask >= _MIN_VALID


TRANSFORMS = {
    "seg": transforms.labels,
    "depth": log_depth,
    "depth_euclidean": log_depth,
    "edge_occlusion": edge_occlusion,
    "curvature": curvature,
    **{task: functools.partial(scaled, task) for task in transforms.SCALED},
}
