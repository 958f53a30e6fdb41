# SPDX-License-Identifier: Apache-2.0
"""What every data set provides: facts about it, and its arrays, split by split."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Protocol

import numpy as np

from mtr_tf import tasks as tasks_lib  # TensorFlow comes with the first use.
from mtr_tf.data.layout import Layout
from mtr_tf.errors import InputError
from mtr_tf.errors import did_you_mean


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Facts about a data set that models, metrics and pictures need.

    Attributes:
      name: the data set's name on the command line.
      image_shape: (height, width, channels).
      classes: names of the classes of `seg`, and of other tasks of classes that have
        none of their own, in the order of their labels.
      colors: one RGB triple of 0-255 per class.
      tasks: the tasks that have targets in this data set, with the data set's channels,
        classes and colors; may be given as names.
      splits: number of examples by split.
      mean: mean of the training pictures, per channel, in [0, 1].
      std: standard deviation of the training pictures, per channel.
      ranges: by task, the (low, high) range of values that pictures of a scalar map
        show.
      units: by task, the unit of its targets, if it is not the task's usual one.
      class_weights: weight of each of `classes` in the training loss, or those of
        each task's classes by task; empty: all 1.
    """

    name: str
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    tasks: tasks_lib.TaskSet
    splits: Mapping[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    ranges: Mapping[str, tuple[float, float]]
    units: Mapping[str, str] = dataclasses.field(default_factory=dict)
    class_weights: tuple[float, ...] | Mapping[str, tuple[float, ...]] = ()

    def __post_init__(self):
        """Gives the classes of the data set to tasks that have none of their own."""
        tasks = tasks_lib.TaskSet(
            task.bound(channels=None, classes=self.classes, colors=self.colors)
            if task.discrete and task.channels is None and self.classes
            else task
            for task in tasks_lib.task_set(self.tasks).values()
        )
        object.__setattr__(self, "tasks", tasks)

    @property
    def num_classes(self) -> int:
        """Number of `classes`."""
        return len(self.classes)

    def with_layout(self, layout: Layout | None) -> DatasetInfo:
        """Returns the facts with the shape of packed images, as models take them."""
        if layout is None:
            return self
        return dataclasses.replace(self, image_shape=layout.packed)

    def weights_of(self, task: tasks_lib.Task) -> tuple[float, ...]:
        """Returns the weight of each class of a task in training; empty: all 1."""
        if isinstance(self.class_weights, Mapping):
            return tuple(self.class_weights.get(task.name, ()))
        shares_classes = task.discrete and task.classes == self.classes
        return self.class_weights if shares_classes else ()


@dataclasses.dataclass(frozen=True)
class Groups:
    """Which images of a split depend on each other; see `mtr_tf.evaluation.resampling`.

    Attributes:
      of: the group of each image, a name or a number, `[N]`.
      name: what groups are called, such as "buildings".
      frames: whether the images of a group, in their order, are frames of a video, so
        that only near ones depend on each other. Images of other groups may lie
        between them.
    """

    of: Sequence[str | int] | np.ndarray
    name: str = "groups"
    frames: bool = False


class Column(Protocol):
    """An array over the examples of a split, in memory or read when needed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole array; the first number counts examples."""

    @property
    def dtype(self) -> np.dtype:
        """The type of the arrays that indexing returns."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Columns:
    """The arrays of one split, one row per example.

    Each of them may be a memory map, or any other `Column`, which returns a NumPy array
    for `column[rows]` with int64 `rows`.

    Attributes:
      images: [N, H, W, C], uint8, or float32 in [0, 1].
      targets: by task [N, *places] integer labels of classes, or [N, *places, channels]
        float32. Tasks that are computed from the picture (`autoencoder`,
        `edge_texture`, `keypoints2d`) are not stored; see `mtr_tf.data.picture`.
      masks: by task bool [N, *places], False where the target is not known. Targets of
        a task that is absent here are known everywhere.
      names: each example's own name, such as Cityscapes' `CITY_SEQUENCE_FRAME`; empty
        where examples have none.
      groups: which images depend on each other; None where none do.
      original_sizes: int32 [N, 2], (height, width) of the files that the images were
        made from; None if they are not kept.
      inputs: by name [N, ...] float32, what a model takes beside the image.
    """

    images: Column
    targets: Mapping[str, Column]
    masks: Mapping[str, Column]
    names: Sequence[str] = ()
    groups: Groups | None = None
    original_sizes: Column | None = None
    inputs: Mapping[str, Column] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def layout(self) -> Layout | None:
        """How inputs are packed behind the images; None where there are none."""
        if not self.inputs:
            return None
        height, width, channels = map(int, self.images.shape[1:])
        shapes = ((n, tuple(map(int, c.shape[1:]))) for n, c in self.inputs.items())
        return Layout((height, width, channels), tuple(shapes))

    def without_inputs(self) -> Columns:
        """Returns the columns without inputs, for models that take only images."""
        return dataclasses.replace(self, inputs={})


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened data set.

    Attributes:
      info: facts about it.
      load: returns the columns of a split that exists, for the tasks asked for when
        the source was opened.
      missing: by split that is not there, the reason, and what to do about it.
      declared: tasks that a user declares, with or without targets.
      is_cut: whether there are more examples than could be loaded here.
      unknown: by split, the tasks whose targets no example has, as far as that is known
        without reading them.
    """

    info: DatasetInfo
    load: Callable[[str], Columns]
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    declared: Sequence[tasks_lib.Task] = ()
    is_cut: bool = False
    unknown: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    @property
    def all_tasks(self) -> tasks_lib.TaskSet:
        """The tasks that have targets here, and those that are declared without."""
        return tasks_lib.TaskSet(self.declared).replaced(*self.info.tasks.values())

    def columns(self, split: str) -> Columns:
        """Returns the arrays of a split.

        Raises:
          InputError: there is no such split.
        """
        self.check(split)
        return self.load(split)

    def check(self, split: str) -> None:
        """Raises `InputError` unless there is such a split."""
        if split not in self.info.splits:
            names = ", ".join(self.info.splits)
            hint = did_you_mean(split, self.info.splits)
            cure = self.missing.get(split, f"choose one of these.{hint}")
            raise InputError(
                f"{self.info.name} has the splits {names}, not {split!r}: {cure}"
            )


def checked_size(
    image_size: tuple[int, int] | None, default: tuple[int, int]
) -> tuple[int, int]:
    """The (height, width) to resize to: `image_size`, or `default` if it is None.

    Raises:
      InputError: No picture can have this size.
    """
    size = default if image_size is None else tuple(image_size)
    if len(size) != 2 or min(size) < 1:
        raise InputError(
            f"The image size must be a positive height and width, got {image_size}."
        )
    return size


def given_folder(name: str, data_dir: str | None, contents: str) -> pathlib.Path:
    """The folder of a data set that the user must have fetched.

    Args:
      name: The name of the data set in messages.
      data_dir: The folder that the user gave.
      contents: What must be in it, in a few words.

    Raises:
      InputError: No folder was given, or it is not there.
    """
    if not data_dir:
        raise InputError(
            f"{name} is not downloaded automatically; give --data_dir: {contents}."
        )
    folder = pathlib.Path(data_dir).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"--data_dir must be an existing folder, got '{data_dir}'. {name} needs "
            f"{contents}."
        )
    return folder
