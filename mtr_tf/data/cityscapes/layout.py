# SPDX-License-Identifier: Apache-2.0
"""The facts of Cityscapes: classes, label ids, kinds of files, sizes, statistics.

Ids and colours are those of the data set's own table (`helpers/labels.py` of
cityscapesScripts). The label images hold ids of 0-33. Id -1 (license plate) is never
painted into them; it becomes 255 where somebody has done so in 8 bits.
"""

from __future__ import annotations

import dataclasses

import numpy as np

# Class, in the order of the train ids; its label id; its colour.
_TABLE = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
CLASSES = tuple(name for name, _, _ in _TABLE)
LABEL_IDS = tuple(label for _, label, _ in _TABLE)
COLORS = tuple(color for _, _, color in _TABLE)
LAST_LABEL_ID = 33
VOID = 255  # In files: of train ids, and of -1 in 8 bits.
UNLABELED = 0  # The label id that says nothing.


def _train_ids(pairs: dict[int, int], last: int) -> np.ndarray:
    """Value in a file -> train id; VOID for no train id, -1 for an invalid value."""
    table = np.full(256, -1, np.int16)
    table[: last + 1] = VOID
    table[VOID] = VOID
    for value, train_id in pairs.items():
        table[value] = train_id
    return table


# What the values of the two kinds of label files mean: int16 [256].
OF_LABEL_IDS = _train_ids({label: i for i, label in enumerate(LABEL_IDS)}, 33)
OF_TRAIN_IDS = _train_ids({i: i for i in range(len(CLASSES))}, 18)


@dataclasses.dataclass(frozen=True)
class Kind:
    """One of the official archives.

    Attributes:
      folder: its folder, and the first part of the archive's name.
      suffixes: ends of its files' names after CITY_SEQUENCE_FRAME; of these files,
        the first that exists is read.
    """

    folder: str
    suffixes: tuple[str, ...]

    @property
    def archive(self) -> str:
        """The name of the official archive."""
        return f"{self.folder}_trainvaltest.zip"


IMAGE = Kind("leftImg8bit", ("_leftImg8bit.png",))
LABEL = Kind("gtFine", ("_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"))
DISPARITY = Kind("disparity", ("_disparity.png",))
CAMERA = Kind("camera", ("_camera.json",))
KINDS = (IMAGE, LABEL, DISPARITY, CAMERA)

# Our name of a split -> that of its folders.
SPLITS = {"train": "train", "validation": "val", "test": "test"}

ORIGINAL_SIZE = (1024, 2048)
# The paper's: a third, 341 x 682, of which the upper left 336 x 680 are kept.
IMAGE_SIZE = (336, 680)

# Of the training pictures, in [0, 1], as the paper's code has them.
MEAN = (0.290101, 0.328081, 0.286964)
STD = (0.182954, 0.186566, 0.184475)

# The range of standardised values from black to white, over all channels.
STANDARDISED = (
    min(-mean / std for mean, std in zip(MEAN, STD, strict=True)),
    max((1 - mean) / std for mean, std in zip(MEAN, STD, strict=True)),
)

RELEASED = "released"  # The --depth_target with all targets as in the paper's code.
# By --depth_target: the unit, and the range that the map is painted in.
DEPTHS = {
    "disparity": ("px", (0.0, 100.0)),
    "inverse_depth": ("1/m", (0.0, 0.2)),
    "metres": ("m", (0.0, 80.0)),
    RELEASED: ("p/1000", (0.0, 25.0)),
}
NEED_CAMERA = ("inverse_depth", "metres")
