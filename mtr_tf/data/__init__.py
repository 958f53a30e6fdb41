# SPDX-License-Identifier: Apache-2.0
"""Data sets: one table, and how to open and read them.

Nothing here imports TensorFlow before a data set is opened.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

from mtr_tf import files
from mtr_tf.errors import InputError
from mtr_tf.errors import check_keys
from mtr_tf.errors import did_you_mean
from mtr_tf.tasks.names import canonical
from mtr_tf.tasks.names import resolve

if TYPE_CHECKING:
    import tensorflow as tf

    from mtr_tf.data.source import Columns as Columns
    from mtr_tf.data.source import DatasetInfo as DatasetInfo
    from mtr_tf.data.source import Source as Source

__all__ = [
    "Columns",
    "DATASETS",
    "DatasetInfo",
    "OPTIONS",
    "Source",
    "canonical_tasks",
    "load",
    "may_bring_tasks",
    "open_source",
]
_RECORDS = ("Columns", "DatasetInfo", "Source")  # In `source`, which imports NumPy.

# Name of a data set -> the function (image_size, data_dir, tasks, **options) that opens
# it, itself or as module:function, imported when it is needed.
DATASETS: dict[str, str | Callable[..., Source]] = {
    "rooms": "mtr_tf.data.rooms:open_source",
    "camvid": "mtr_tf.data.camvid:open_source",
    "cityscapes": "mtr_tf.data.cityscapes.reading:open_source",
    "taskonomy": "mtr_tf.data.taskonomy:open_source",
}
# Options of some data sets: name -> (default, the data sets that take it).
OPTIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "depth_target": ("disparity", ("cityscapes", "taskonomy")),
    "validation_share": (0.0, ("taskonomy",)),
    "as_released": (False, ("taskonomy",)),
    "rooms_scenes": (0, ("rooms",)),
}


def open_source(
    name: str,
    *,
    image_size: tuple[int, int] | None = None,
    data_dir: str | None = None,
    tasks: Sequence[str] | None = None,
    **options: object,
) -> Source:
    """Opens a data set for random access; prepares it first if needed.

    Args:
        name: a key of DATASETS, or package.module:function for a user's own data (see
            `mtr_tf.data.custom.reading`).
        image_size: (height, width); None for the data set's own.
        data_dir: where the data is; None for the data set's own place.
        tasks: the tasks to read, by name (the eleven built-in ones also by alias or
            letter); None for all that the data set has.
        **options: keys of OPTIONS, for the data sets that have them.

    Raises:
        InputError: there is no such data set; a task is unknown, or the data set does
            not have it; or the data set does not have an option.
    """
    files.check_local("data_dir", data_dir or "")
    task_names = None if tasks is None else canonical_tasks(name, tasks)
    source = _opener(name)(
        image_size=image_size,
        data_dir=data_dir,
        tasks=task_names,
        **_options_of(name, options),
    )
    for task in task_names or ():
        if task not in source.info.tasks:
            raise InputError(
                f"Data set {name!r} has no task {task!r}; it has "
                f"{', '.join(source.info.tasks)}.{_task_hint(task, source.info)}"
            )
    return source


def _task_hint(task: str, info: DatasetInfo) -> str:
    """A hint at the task of the data set that `task` may stand for."""
    (full_name,) = canonical((task,), info.tasks.values())
    if full_name != task:
        return f" {task} is another name of {full_name}; give {full_name} here."
    return did_you_mean(task, info.tasks)


def canonical_tasks(dataset: str, tasks: str | Iterable[str]) -> tuple[str, ...]:
    """Returns the full names of tasks, for a data set that is not open yet.

    If the data set may declare tasks, unknown names are kept, and `open_source` refuses
    those that it does not declare.

    Raises:
      InputError: an unknown task, the same one twice, or none at all.
    """
    return canonical(tasks) if may_bring_tasks(dataset) else resolve(tasks)


def may_bring_tasks(dataset: str) -> bool:
    """Whether a data set is the user's own: module:function, or added to DATASETS."""
    return ":" in dataset or callable(DATASETS.get(dataset))


def load(
    name: str,
    split: str,
    *,
    image_size: tuple[int, int] | None = None,
    data_dir: str | None = None,
    tasks: Sequence[str] | None = None,
    **options: object,
) -> tf.data.Dataset:
    """Opens a split as an unbatched dataset of examples, in index order.

    Args:
        name: as for `open_source`.
        split: "train", "validation" or "test", if the data set has it.
        image_size: (height, width); None for the data set's own.
        data_dir: where the data is; None for the data set's own place.
        tasks: names, aliases or letters of the tasks to read; None for all it has.
        **options: as for `open_source`.

    Returns:
        A dataset, of known cardinality, of {"image": float32 [H, W, C] in [0, 1],
        "targets": {task: int32 [*places] or float32 [*places, channels]}, "masks":
        {task: float32 [*places], zero where the target is not known}}; and "inputs":
        {name: float32 [...]} if the data have them (docs/own_data.md).

    Raises:
        InputError: there is no such data set, split, task or option.
    """
    source = open_source(
        name, image_size=image_size, data_dir=data_dir, tasks=tasks, **options
    )
    all_tasks = source.info.tasks
    selection = (
        all_tasks if tasks is None else all_tasks.select(canonical_tasks(name, tasks))
    )
    examples = _import_function("mtr_tf.data.batching:examples")
    return examples(source.columns(split), selection)


def __getattr__(name: str) -> Any:
    """Imports a record on first access."""
    if name not in _RECORDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module("mtr_tf.data.source"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _opener(name: str) -> Callable[..., Source]:
    """The function that opens a data set."""
    if ":" in name:
        return functools.partial(
            _import_function("mtr_tf.data.custom.reading:open_source"), name
        )
    if name not in DATASETS:
        hint = did_you_mean(name, DATASETS)
        raise InputError(
            f"Unknown data set {name!r}.{hint} There are: {', '.join(DATASETS)}; and "
            "package.module:function for data of your own (docs/own_data.md)."
        )
    opener = DATASETS[name]
    return _import_function(opener) if isinstance(opener, str) else opener


def _import_function(path: str) -> Callable[..., Any]:
    """Imports the function of module:function."""
    module, _, function = path.partition(":")
    return getattr(importlib.import_module(module), function)


def _options_of(name: str, options: dict[str, object]) -> dict[str, object]:
    """The options that a data set takes; raises `InputError` if another one is set."""
    check_keys(options, OPTIONS, "Data sets have the options", "but got")
    accepted = {}
    for option, value in options.items():
        default, datasets = OPTIONS[option]
        if name in datasets:
            accepted[option] = value
        elif value != default:
            raise InputError(
                f"--{option} is only for {' and '.join(datasets)}, but got {value!r} "
                f"for {name}; leave it out."
            )
    return accepted
