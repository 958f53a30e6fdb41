# SPDX-License-Identifier: Apache-2.0
"""Makes the arrays of one example of Cityscapes out of its files.

*   `image` is averaged over areas, rounded to bytes.
*   `seg` is picked at the nearest pixel; void has label 0 and mask False.
*   `depth` starts from the file's 16-bit p: disparity = (p - 1) / 256 pixels of the
    original picture where p > 0, and not known where p = 0. A new pixel's disparity is
    the mean over its known original pixels, and stays in pixels of the original,
    whatever the new size. With the baseline b (metres) and the focal length fx (pixels
    of the original) of the camera file, the depth in metres is b fx / disparity; it is
    not known where the disparity is 0 (infinitely far). `inverse_depth` is its inverse.
    `released` is the mean of p / 1000 over all pixels, with nothing masked, as in the
    paper's code. (The target of `autoencoder` that goes with it is computed from
    `image` on reading, see `reading.standardised`.)
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from mtr_tf.data import png
from mtr_tf.data.cityscapes import layout
from mtr_tf.data.cityscapes import resizing
from mtr_tf.data.cityscapes.files import File
from mtr_tf.data.cityscapes.resizing import Size
from mtr_tf.errors import InputError
from mtr_tf.errors import present
from mtr_tf.files import DAMAGED
from mtr_tf.files import reason


def make(job: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of an example.

    Args:
      job: "size" [h, w], "depth_target", and under each kind's folder the fields of a
        `File`, or None if there is none.

    Returns:
      image uint8 [h, w, 3]; seg uint8 [h, w] of train ids and its mask seg_known bool
      [h, w]; depth float32 [h, w, 1] and depth_known bool [h, w], all False where there
      is no file; original_size int32 [2], (height, width).

    Raises:
      InputError: a file cannot be read, or has invalid content.
    """
    image_file, label_file, disparity_file, camera_file = (
        File(*job[kind.folder]) if job[kind.folder] else None for kind in layout.KINDS
    )
    (height, width), target = job["size"], job["depth_target"]
    size = height, width
    image = _read(present(image_file, "the picture"), np.uint8, 3, None)
    original_size = image.shape[0], image.shape[1]
    train_ids = _train_ids(label_file, original_size)
    depth, valid = _depth(disparity_file, camera_file, original_size, size, target)
    labels = resizing.nearest(train_ids, size)
    return {
        "image": np.rint(resizing.area(image, size)).astype(np.uint8),
        "seg": np.where(labels == layout.VOID, 0, labels).astype(np.uint8),
        "seg_known": labels != layout.VOID,
        "depth": depth[..., np.newaxis].astype(np.float32),
        "depth_known": valid,
        "original_size": np.array(original_size, np.int32),
    }


def _read(file: File, kind: type, axes: int, size: Size | None) -> np.ndarray:
    """A picture, checked to have this type, number of axes and size."""
    picture = png.decode(file.read(), str(file))
    if picture.dtype != kind or picture.ndim != axes:
        bits = 8 * np.dtype(kind).itemsize
        channels = "three channels" if axes == 3 else "one channel"
        raise InputError(
            f"'{file}' must have {channels} of {bits} bits, but has the shape "
            f"{picture.shape} and the type {picture.dtype}; extract or download it "
            "again."
        )
    if size and picture.shape[:2] != size:
        raise InputError(
            f"A file must have the size of its picture, {size[1]} x {size[0]}, but "
            f"'{file}' is {picture.shape[1]} x {picture.shape[0]}."
        )
    return picture


def _train_ids(file: File | None, size: Size) -> np.ndarray:
    """Train ids, int16 [H, W]; VOID where there is none."""
    if file is None:
        return np.full(size, layout.VOID, np.int16)
    values = _read(file, np.uint8, 2, size)
    is_train_ids = file.path.endswith(layout.LABEL.suffixes[0])
    table = layout.OF_TRAIN_IDS if is_train_ids else layout.OF_LABEL_IDS
    train_ids = table[values]
    bad_values = values[train_ids < 0]
    if bad_values.size:
        last_id = 18 if is_train_ids else layout.LAST_LABEL_ID
        raise InputError(
            f"The labels of '{file}' must be 0-{last_id}, or 255 for none, but one is "
            f"{bad_values.max()}; extract or download it again."
        )
    return train_ids


def _depth(
    file: File | None, camera: File | None, original_size: Size, size: Size, target: str
) -> tuple[np.ndarray, np.ndarray]:
    """The target of `depth`, float64 [h, w], and its mask."""
    empty = np.zeros(size), np.zeros(size, bool)
    if file is None:
        return empty
    file_values = _read(file, np.uint16, 2, original_size).astype(np.int32)
    if target == layout.RELEASED:
        return resizing.area(file_values, size) / 1000, np.ones(size, bool)
    mean, valid = resizing.area_of_known(file_values - 1, file_values > 0, size)
    disparity = mean / 256
    if target == "disparity":
        return disparity, valid
    if camera is None:
        return empty
    metres_times_pixels = _baseline_times_focal_length(camera)
    if target == "inverse_depth":
        return disparity / metres_times_pixels, valid
    has_depth = valid & (disparity > 0)
    metres = np.divide(
        metres_times_pixels, disparity, out=np.zeros(size), where=has_depth
    )
    return metres, has_depth


def _baseline_times_focal_length(camera: File) -> float:
    """The product in metres times pixels of the original picture."""
    content = camera.read()
    try:
        values = json.loads(content)
        baseline = float(values["extrinsic"]["baseline"])
        focal_length = float(values["intrinsic"]["fx"])
    except DAMAGED as error:
        raise InputError(
            f"'{camera}' must be JSON with extrinsic.baseline and intrinsic.fx, but "
            f"it is not ({type(error).__name__}: {reason(error)}); extract or "
            "download it again."
        ) from error
    product = baseline * focal_length
    if not 0 < product < math.inf:
        raise InputError(
            f"extrinsic.baseline and intrinsic.fx of '{camera}' must be positive, got "
            f"{baseline:g} and {focal_length:g}; extract or download it again."
        )
    return product
