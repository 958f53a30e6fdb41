# SPDX-License-Identifier: Apache-2.0
"""The facts of the data set: its arrays, ranges, colours and statistics."""

from __future__ import annotations

import numpy as np

from mtr_tf.data.rooms.render import MAX_CURVATURE

SIZES = (32, 64, 128)
DEFAULT_SIZE = 64
SPLIT_SIZES = {"train": 2000, "validation": 300, "test": 300}

# Targets that are stored: name -> (shape behind height and width, type).
STORED: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
    "seg": ((), np.uint8),
    "depth": ((1,), np.float32),
    "depth_euclidean": ((1,), np.float32),
    "normal": ((3,), np.float32),
    "edge_occlusion": ((1,), np.float32),
    "keypoints3d": ((1,), np.float32),
    "reshading": ((1,), np.float32),
    "curvature": ((2,), np.float32),
}

# All tasks, in the order of the table of tasks; those not stored are computed from the
# picture when it is read.
TASKS = (
    "seg",
    "depth",
    "depth_euclidean",
    "normal",
    "edge_texture",
    "edge_occlusion",
    "keypoints2d",
    "keypoints3d",
    "reshading",
    "curvature",
    "autoencoder",
)

# One colour per class of `scene.CLASSES`.
COLORS = (
    (139, 101, 71),
    (205, 214, 224),
    (120, 140, 110),
    (228, 26, 28),
    (55, 126, 184),
    (255, 190, 30),
    (152, 78, 163),
    (0, 190, 170),
)

# The values at the ends of the colours that a map is painted with.
RANGES: dict[str, tuple[float, float]] = {
    "depth": (0.0, 8.0),
    "depth_euclidean": (0.0, 8.0),
    "normal": (-1.0, 1.0),
    "edge_texture": (0.0, 1.0),
    "edge_occlusion": (0.0, 1.0),
    "keypoints2d": (0.0, 1.0),
    "keypoints3d": (0.0, 1.0),
    "reshading": (0.0, 1.0),
    "curvature": (-MAX_CURVATURE, MAX_CURVATURE),
    "autoencoder": (0.0, 1.0),
}

# Of the 64-pixel training pictures, rounded; those of other sizes are within 0.01.
MEAN = (0.451, 0.452, 0.450)
STD = (0.176, 0.177, 0.177)


def arrays(size: int) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
    """Shape and type of every array of an example, the picture first."""
    table = {"image": ((3,), np.uint8), **STORED}
    return {
        name: ((size, size, *channels), kind)
        for name, (channels, kind) in table.items()
    }
