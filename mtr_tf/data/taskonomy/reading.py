# SPDX-License-Identifier: Apache-2.0
"""Opens Taskonomy: prepares it once from the files of a folder, then reads columns."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from mtr_tf import tasks as tasks_lib
from mtr_tf.data import prepared
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.data.source import Groups
from mtr_tf.data.source import Source
from mtr_tf.data.source import checked_size
from mtr_tf.data.taskonomy import coding
from mtr_tf.data.taskonomy import finding
from mtr_tf.data.taskonomy import layout
from mtr_tf.data.taskonomy import splitting
from mtr_tf.data.taskonomy.finding import View
from mtr_tf.data.taskonomy.taskonomy_dataset_builder import BROKEN
from mtr_tf.data.taskonomy.taskonomy_dataset_builder import Taskonomy
from mtr_tf.data.taskonomy.taskonomy_dataset_builder import TaskonomyConfig
from mtr_tf.errors import InputError

_RANGE_VIEWS = 32  # Number of views whose values set the range of edges.


def open_source(
    *,
    image_size: tuple[int, int] | None = None,
    data_dir: str | None = None,
    tasks: Sequence[str] | None = None,
    as_released: bool = False,
    depth_target: str = layout.LOG_DEPTH[0],
    validation_share: float = 0.0,
) -> Source:
    """Opens Taskonomy, and reads and resizes it first if that has not been done.

    The result is kept in $TFDS_DATA_DIR, else ~/tensorflow_datasets, apart for each
    size, set of tasks, choice of `as_released`, split and state of the folder; a result
    with more tasks than are asked for is reused. Broken files are listed and masked;
    broken pictures are listed and refused.

    Args:
      image_size: (height, width) that everything is resized to; by default (256, 256).
      data_dir: a folder as `finding` describes it.
      tasks: the tasks whose files are read; None for all that have files.
      as_released: repeat the released code's errors (see `released`), split by points
        and count 18 classes.
      depth_target: of the two depths, "metres", or one of `layout.LOG_DEPTH` for the
        files' logarithms.
      validation_share: see `splitting`; 0 for none.

    Raises:
      InputError: there is no such folder, or no picture in it; a picture is broken;
        the result cannot be written; there is no such depth target.
    """
    size = checked_size(image_size, layout.IMAGE_SIZE)
    if depth_target not in (*layout.LOG_DEPTH, layout.METRES):
        raise InputError(
            f"--depth_target for taskonomy must be {layout.METRES}, or left out to "
            f"use the files' logarithms; got {depth_target!r}."
        )
    listing = finding.scan(data_dir)
    splits = splitting.splits(
        listing, as_released=as_released, validation_share=validation_share
    )
    file_tasks = [task for task in listing.tasks if tasks is None or task in tasks]
    logging.info("%s", finding.summary(listing, splits, file_tasks))
    suffix = "-as_released" if as_released else ""
    if validation_share:
        suffix += f"-share{validation_share:g}"
    config = TaskonomyConfig(
        # pyrefly: ignore  (TFDS has the name, unseen by type checkers)
        name=f"{size[0]}x{size[1]}{suffix}",
        size=size,
        tasks=listing.tasks,
        as_released=as_released,
        splits=splits,
        source=str(pathlib.Path(data_dir or "").expanduser().resolve()),
    )
    builder = _prepare(config, file_tasks, listing.fingerprint)
    metres = depth_target == layout.METRES
    info = dataset_info(
        listing.tasks, size, splits, as_released=as_released, metres=metres
    )
    target_tasks = [task for task in info.tasks if tasks is None or task in tasks]

    @functools.cache
    def load(split: str) -> Columns:
        return _columns(builder, split, target_tasks, splits[split], metres)

    if "edge_occlusion" in file_tasks:
        ranges = {
            **info.ranges,
            "edge_occlusion": edges_painted(load(next(iter(splits)))),
        }
        info = dataclasses.replace(info, ranges=ranges)
    missing_splits = splitting.missing(listing, splits, as_released=as_released)
    unknown_tasks = {
        split: [t for t in file_tasks if not any(t in view.places for view in views)]
        for split, views in splits.items()
    }
    return Source(info, load, missing_splits, unknown=unknown_tasks)


def dataset_info(
    tasks: Sequence[str],
    size: tuple[int, int],
    splits: Mapping[str, Sequence[View]],
    *,
    as_released: bool = False,
    metres: bool = False,
) -> DatasetInfo:
    """The facts of Taskonomy; `tasks` are those with files."""
    names, colors = tuple(layout.CLASSES), tuple(layout.CLASSES.values())
    weights = layout.CLASS_WEIGHTS
    if as_released:
        name, color, weight = layout.RELEASED_SPARE_CLASS
        names, colors, weights = (*names, name), (*colors, color), (*weights, weight)
    ranges, units = dict(layout.RANGES), dict(layout.UNITS)
    if metres:
        ranges |= dict.fromkeys(layout.DEPTHS, layout.METRES_PAINTED)
        units = {task: unit for task, unit in units.items() if unit != "log"}
    return DatasetInfo(
        name="taskonomy",
        image_shape=(*size, 3),
        classes=names,
        colors=colors,
        tasks=tasks_lib.task_set((*tasks, "autoencoder")),
        splits={split: len(views) for split, views in splits.items()},
        mean=layout.MEAN,
        std=layout.STD,
        ranges=ranges,
        units=units,
        class_weights=weights,
    )


def edges_painted(columns: Columns) -> tuple[float, float]:
    """The range that occlusion edges are painted in, from no edge to a strong one.

    They are not clipped, so the largest value is that of a single pixel; the range ends
    at the 99th percentile of the known pixels of some views instead.
    """
    rows = np.arange(min(len(columns), _RANGE_VIEWS)) * len(columns)
    rows //= max(len(rows), 1)
    values = columns.targets["edge_occlusion"][rows]
    values = values[columns.masks["edge_occlusion"][rows]]
    low, default = layout.RANGES["edge_occlusion"]
    high = float(np.percentile(values, 99)) if values.size else default
    return low, high if high > low else default


def _prepare(
    config: TaskonomyConfig, file_tasks: Sequence[str], fingerprint: str
) -> Taskonomy:
    """The builder of a config with `file_tasks`, or with more if that is prepared.

    The name of prepared data has its tasks as a hexadecimal number, a bit for each.
    """
    root, domain_tasks = prepared.root_folder(), list(layout.DOMAINS)
    task_bits = sum(1 << domain_tasks.index(task) for task in file_tasks)
    prepared_bits = [
        int(path.name.removeprefix(f"{config.name}-").split("-")[0], 16)
        for path in root.glob(f"{Taskonomy.name}/{config.name}-???-{fingerprint}")
    ]
    candidates = [number for number in prepared_bits if number & task_bits == task_bits]
    for number in (*sorted(candidates, key=int.bit_count), task_bits):
        name = f"{config.name}-{number:03x}-{fingerprint}"
        tasks = [task for i, task in enumerate(domain_tasks) if number >> i & 1]
        # pyrefly: ignore  (as above)
        candidate_config = dataclasses.replace(config, name=name, tasks=tasks)
        make = functools.partial(_builder, candidate_config)
        if number == task_bits or prepared.opened(make, root)[1]:
            break
    builder = prepared.prepare(make, root, "taskonomy", "TFDS_DATA_DIR")
    broken = dict(builder.info.metadata.items()).get(BROKEN, {})
    counts = [f"{layout.name(task)} {len(broken[task])}" for task in broken]
    if counts:
        logging.warning(
            "Taskonomy: masked because they are broken: %s views. (Once you have "
            "downloaded them again, delete %s to have them read.)",
            ", ".join(counts),
            builder.data_dir,
        )
    return builder


def _builder(config: TaskonomyConfig, root: pathlib.Path) -> Taskonomy:
    return Taskonomy(config=config, data_dir=root)


def _columns(
    builder: tfds.core.DatasetBuilder,
    split: str,
    tasks: Sequence[str],
    views: Sequence[View],
    metres: bool,
) -> Columns:
    images = prepared.Remembered(prepared.Column(builder, split, "image"))
    size = images.shape[1:3]
    targets, masks = {}, {}
    for task in tasks:
        if task == "autoencoder":
            targets[task] = prepared.Derived(
                images, _autoencoder, (*size, 3), np.float32
            )
            continue
        codes = prepared.Remembered(prepared.Column(builder, split, task))
        labels = codes.dtype == np.uint8
        in_metres = metres and task in layout.DEPTHS
        targets[task] = prepared.Derived(
            codes,
            functools.partial(coding.metres if in_metres else coding.target, task),
            codes.shape[1:],
            np.uint8 if labels else np.float32,
        )
        masks[task] = prepared.Derived(codes, coding.mask, size, np.bool_)
    return Columns(images, targets, masks, finding.Names(views), _groups(views))


def _groups(views: Sequence[View]) -> Groups:
    """Groups of dependent views: by building, or by point if there is one building."""
    if len({view.building for view in views}) > 1:
        return Groups([view.building for view in views], "buildings")
    return Groups([view.point for view in views], "points of one building")


def _autoencoder(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)
