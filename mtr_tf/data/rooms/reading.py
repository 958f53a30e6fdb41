# SPDX-License-Identifier: Apache-2.0
"""Opens rooms: prepares it once, under a lock, then reads columns into memory."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds

from mtr_tf import tasks as tasks_lib
from mtr_tf.data import prepared
from mtr_tf.data.rooms import layout
from mtr_tf.data.rooms import scene
from mtr_tf.data.rooms.rooms_dataset_builder import Rooms
from mtr_tf.data.rooms.rooms_dataset_builder import RoomsConfig
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.data.source import Source
from mtr_tf.errors import InputError
from mtr_tf.errors import is_whole

_READ_BATCH = 50


def open_source(
    *,
    image_size: tuple[int, int] | None = None,
    data_dir: str | None = None,
    tasks: Sequence[str] | None = None,
    config: RoomsConfig | None = None,
    rooms_scenes: int = 0,
) -> Source:
    """Opens rooms, and makes the data set first if that has not been done.

    Args:
      image_size: (height, width), a square of 32, 64 (the default) or 128 pixels.
      data_dir: where prepared data sets are kept; None for $TFDS_DATA_DIR, else
        ~/tensorflow_datasets.
      tasks: the tasks whose targets are read; None for all.
      config: a custom builder config, in place of `image_size`; its folder has its
        name and a hash of its size, seed and splits.
      rooms_scenes: how many scenes to train on; 0 for the usual number.

    Raises:
      InputError: the size or the number of scenes is invalid, or the folder cannot be
        written.
    """
    builder_config = config or _named_config(image_size)
    if not is_whole(rooms_scenes) or rooms_scenes < 0:
        raise InputError(
            "--rooms_scenes must be how many scenes to train on, or 0 for the usual "
            f"number; got {rooms_scenes!r}."
        )
    if rooms_scenes:
        builder_config = builder_config.with_scenes(rooms_scenes)
    builder = prepare(builder_config, data_dir)
    stored_tasks = [name for name in layout.STORED if tasks is None or name in tasks]
    info = dataset_info(builder_config.size, builder_config.splits)
    return Source(
        info, functools.cache(functools.partial(_read, builder, stored_tasks))
    )


def dataset_info(size: int, splits: Mapping[str, int] | None = None) -> DatasetInfo:
    """The facts of rooms at a size."""
    return DatasetInfo(
        name="rooms",
        image_shape=(size, size, 3),
        classes=scene.CLASSES,
        colors=layout.COLORS,
        tasks=tasks_lib.task_set(layout.TASKS),
        splits=dict(splits or layout.SPLIT_SIZES),
        mean=layout.MEAN,
        std=layout.STD,
        ranges=dict(layout.RANGES),
    )


def _named_config(image_size: tuple[int, int] | None) -> RoomsConfig:
    size = (layout.DEFAULT_SIZE,) * 2 if image_size is None else tuple(image_size)
    for config in Rooms.BUILDER_CONFIGS:
        if size == (config.size, config.size):
            return config
    size_text = " x ".join(map(str, size))
    raise InputError(
        f"rooms has pictures of 32 x 32, 64 x 64 or 128 x 128 pixels, not {size_text}; "
        "choose one of these as the image size."
    )


def prepare(config: RoomsConfig, data_dir: str | None = None) -> Rooms:
    """Makes the data set unless it exists; see `prepared.prepare`."""
    root = prepared.root_folder(data_dir)
    return prepared.prepare(
        lambda folder: Rooms(data_dir=folder, config=config), root, "rooms"
    )


def _read(builder: Rooms, stored_tasks: Sequence[str], split: str) -> Columns:
    """Reads the pictures and some targets of a split, in the order of the index."""
    names = ("image", *stored_tasks)
    table = layout.arrays(builder.builder_config.size)
    count = builder.info.splits[split].num_examples
    columns = {
        name: np.empty((count, *table[name][0]), table[name][1]) for name in names
    }
    damage_context = prepared.damage_explained(builder.data_dir)
    with prepared.quiet(), damage_context:
        examples = builder.as_dataset(
            split=split,
            decoders=tfds.decode.PartialDecoding(dict.fromkeys(names, True)),
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
    start = 0
    with prepared.damage_explained(builder.data_dir):
        for batch in examples.batch(_READ_BATCH).as_numpy_iterator():
            size = len(batch["image"])
            for name in names:
                columns[name][start : start + size] = batch[name]
            start += size
    full_mask = np.broadcast_to(np.True_, columns["image"].shape[:3])
    images = columns.pop("image")
    return Columns(images, columns, dict.fromkeys(stored_tasks, full_mask))
