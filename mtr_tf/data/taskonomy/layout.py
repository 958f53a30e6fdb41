# SPDX-License-Identifier: Apache-2.0
"""The facts of Taskonomy: its domains, what files they have, classes and weights.

Targets keep the scale that the paper's released code gives them (its data loader's
configs), so that losses can be compared:

    seg               label - 1: the classes below; label 0, "uncertain", is masked
    depth             ln(1 + v) / ln(2**16), v in 1/512 m: in [0, 1]
    depth_euclidean   the same of the distance to the camera
    normal            2 v - 1 per axis, v in [0, 1]: in [-1, 1]
    edge_texture      [0, 0.08] to [-1, 1], clipped
    edge_occlusion    [0, 0.00625] to [-1, 1], not clipped, then a Gaussian blur
    keypoints2d       [0, 0.005] to [-1, 1], clipped
    keypoints3d       2 v - 1: in [-1, 1]
    reshading         2 v - 1: in [-1, 1]
    curvature         (v - (123.572, 120.1)) / (31.922, 21.658), v in 0-255
    autoencoder       2 x - 1, x the image: in [-1, 1]
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

IMAGE_SIZE = (256, 256)  # That of the paper's experiments; the files are 512 x 512.

# Labels 1-17; the names are those of Taskonomy's list of selected COCO classes. The
# colours are ours.
CLASSES = {
    "background": (96, 96, 96),
    "bottle": (230, 25, 75),
    "chair": (60, 180, 75),
    "couch": (255, 225, 25),
    "potted_plant": (0, 130, 200),
    "bed": (245, 130, 48),
    "dining_table": (145, 30, 180),
    "toilet": (70, 240, 240),
    "tv": (240, 50, 230),
    "microwave": (210, 245, 60),
    "oven": (250, 190, 212),
    "toaster": (0, 128, 128),
    "sink": (220, 190, 255),
    "refrigerator": (170, 110, 40),
    "book": (255, 250, 200),
    "clock": (128, 0, 0),
    "vase": (170, 255, 195),
}

# Weights of the classes in the released training loss ("prior factor").
CLASS_WEIGHTS = (
    0.5424, 9.1674, 7.3310, 7.1620, 8.7229, 7.6133, 8.2369, 9.1486, 8.8220,
    9.0858, 8.9141, 9.1772, 9.0354, 8.6039, 9.1699, 9.1467, 9.1374,
)  # fmt: skip

# The released segmentation head has a class more than there are; nothing is labelled
# with it.
RELEASED_SPARE_CLASS = ("unused", (0, 0, 0), 1.0)

LOG_SCALE = math.log(2.0**16)
# Depths from here on are missing: files mark them by 65535, which resizing blends with
# their neighbours.
NO_DEPTH = 64500
CURVATURE_MEAN = (123.572, 120.1)
CURVATURE_STD = (31.922, 21.658)
# The range that becomes [-1, 1], of files scaled to [0, 1].
SCALED_FROM = {
    "normal": (0.0, 1.0),
    "edge_texture": (0.0, 0.08),
    "edge_occlusion": (0.0, 0.00625),
    "keypoints2d": (0.0, 0.005),
    "keypoints3d": (0.0, 1.0),
    "reshading": (0.0, 1.0),
}
CLIPPED = ("edge_texture", "keypoints2d")
# Standard deviation of the blur of edge_occlusion, in pixels of a 256-pixel picture.
BLUR_SIGMA = 4.0

RGB = "rgb"
MASK = "mask_valid"  # Omnidata's: 0 where a view shows a hole in the building's mesh.
# The colour of a pixel in a hole, which no surface has: it shows holes without depths.
HOLES = {"normal": (128, 128, 128), "curvature": (0, 0, 0)}


@dataclasses.dataclass(frozen=True)
class Domain:
    """A domain whose files hold a task's targets.

    Attributes:
      names: possible names of its folder, which also end its files' names.
      channels: of the target.
      stored: type that targets are stored as: uint8 for labels, uint16 for steps of
        `span`, or float32.
      span: (low, high) of the targets, for uint16.
      masked_by_depth: whether it is known only where the view shows a surface.
    """

    names: tuple[str, ...]
    channels: int
    stored: type[np.generic]
    span: tuple[float, float] | None
    masked_by_depth: bool


# Task -> its domain.
DOMAINS = {
    "seg": Domain(("segment_semantic", "segmentsemantic"), 1, np.uint8, None, False),
    "depth": Domain(("depth_zbuffer",), 1, np.uint16, (0.0, 1.0), False),
    "depth_euclidean": Domain(("depth_euclidean",), 1, np.uint16, (0.0, 1.0), True),
    "normal": Domain(("normal",), 3, np.uint16, (-1.0, 1.0), True),
    "edge_texture": Domain(("edge_texture",), 1, np.uint16, (-1.0, 1.0), False),
    "edge_occlusion": Domain(("edge_occlusion",), 1, np.float32, None, True),
    "keypoints2d": Domain(("keypoints2d",), 1, np.uint16, (-1.0, 1.0), False),
    "keypoints3d": Domain(("keypoints3d",), 1, np.uint16, (-1.0, 1.0), True),
    "reshading": Domain(("reshading",), 1, np.uint16, (-1.0, 1.0), True),
    "curvature": Domain(("principal_curvature",), 2, np.uint16, (-6.0, 7.0), True),
}
TASK_OF_NAME = {name: task for task, domain in DOMAINS.items() for name in domain.names}
TASK_OF_NAME |= {RGB: RGB, MASK: MASK}


def name(task: str) -> str:
    """The name of the folder of a task's domain, or of `RGB` or `MASK`."""
    return DOMAINS[task].names[0] if task in DOMAINS else task


# The ranges that maps are painted in; the upper end of edge_occlusion's is found in the
# data.
RANGES = {
    "depth": (0.4, 0.8),  # About 0.2 m to 14 m.
    "depth_euclidean": (0.4, 0.8),
    "normal": (-1.0, 1.0),
    "edge_texture": (-1.0, 1.0),
    "edge_occlusion": (-1.0, 1.0),
    "keypoints2d": (-1.0, 1.0),
    "keypoints3d": (-1.0, 1.0),
    "reshading": (-1.0, 1.0),
    "curvature": (-3.0, 3.0),
    "autoencoder": (-1.0, 1.0),
}

# Units that differ from those of the table of tasks.
UNITS = {"depth": "log", "depth_euclidean": "log", "curvature": ""}

# The two depths are either the files' logarithms, which --depth_target's defaults mean
# here, or metres.
DEPTHS = ("depth", "depth_euclidean")
LOG_DEPTH = ("disparity", "released")
METRES = "metres"
STEPS_OF_A_METRE = 512
METRES_PAINTED = (0.0, 10.0)

# The released code maps images to [-1, 1] and does not standardise them.
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
