# SPDX-License-Identifier: Apache-2.0
"""What a user says about a data set of their own, and what is found out instead."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import TypeVar

import numpy as np

from mtr_tf import tasks as task_table
from mtr_tf.cli import progress
from mtr_tf.data import picture
from mtr_tf.data.custom.examples import Labels
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.data.source import Groups
from mtr_tf.errors import InputError
from mtr_tf.errors import did_you_mean
from mtr_tf.tasks import palettes

_Number = TypeVar("_Number", int, float)

KEYS = (
    "classes",
    "ignore_label",
    "colors",
    "class_weights",
    "mean",
    "std",
    "ranges",
    "units",
    "groups",
    "frames",
)
# Statistics are of at most so many training examples, evenly spaced.
_SAMPLE = 1000
_PAINTED = 32
_AT_ONCE = 16
_RANGES = {"edge_texture": (0.0, 0.5), "keypoints2d": (0.0, 1.0)}


def check(facts: Mapping[str, Any]) -> None:
    """Raises InputError unless the facts are as docs/own_data.md says."""
    names = facts.get("classes")
    count = len(names) if isinstance(names, Sequence) else 0
    rules = {
        "classes": (_is_names, "a list of names, in the order of their labels"),
        "colors": (
            lambda given: _are_within(given, (count, 3), 0, 255),
            'an (R, G, B) of 0-255 for each of the "classes"',
        ),
        "class_weights": (
            lambda given: _are_within(given, (count,), 0, np.inf),
            'a number that is not negative for each of the "classes"',
        ),
        "mean": (
            lambda given: _are_within(given, (3,), 0, 1),
            "three numbers, for images in [0, 1]",
        ),
        "std": (
            lambda given: _are_within(given, (3,), 1e-6, 1),
            "three numbers above 0, for images in [0, 1]",
        ),
        "ranges": (
            lambda given: _is_by_task(given, lambda pair: _are_within(pair, (2,))),
            "a dict of (low, high) by task",
        ),
        "units": (
            lambda given: _is_by_task(given, lambda unit: isinstance(unit, str)),
            "a dict of strings by task",
        ),
        "ignore_label": (_are_labels, "a whole number, or a list of them"),
        "groups": (
            lambda given: isinstance(given, Mapping),
            "a dict by split, with a name or number for each example",
        ),
        "frames": (
            lambda given: isinstance(given, bool) and (not given or "groups" in facts),
            'True or False, beside "groups"',
        ),
    }
    for key, given in facts.items():
        is_good, what = rules[key]
        if not is_good(given):
            raise InputError(f'"{key}" must be {what}; got {given!r}.')


def labels(facts: Mapping[str, Any]) -> Labels:
    """What labels may be, of checked facts."""
    names, ignored = facts.get("classes"), facts.get("ignore_label", ())
    return Labels(
        len(names) if names else None,
        tuple(ignored) if isinstance(ignored, Sequence) else (ignored,),
    )


def check_groups(facts: Mapping[str, Any], splits: Iterable[str]) -> None:
    """Raises `InputError` where groups are given for a split that is not there."""
    for split in facts.get("groups", {}):
        if split not in splits:
            raise InputError(
                f'"groups" must name splits of the data, {", ".join(splits)}; got '
                f"{split!r}.{did_you_mean(split, splits)}"
            )


def groups(facts: Mapping[str, Any], split: str, count: int) -> Groups | None:
    """The groups of a split of so many examples; None where none are given.

    Raises:
      InputError: they are not one for each example.
    """
    given = facts.get("groups", {}).get(split)
    if given is None:
        return None
    given = np.asarray(given)
    if given.shape != (count,) or given.dtype.kind not in "uiSU":
        raise InputError(
            f'"groups" must have a name or number for each of the {count} examples of '
            f"{split}; got {given.dtype} of shape {list(given.shape)}."
        )
    frames = facts.get("frames", False)
    return Groups(given, "videos" if frames else "groups", frames)


def _triple(values: Iterable[_Number]) -> tuple[_Number, _Number, _Number]:
    first, second, third = values
    return first, second, third


def dataset_info(
    name: str, facts: Mapping[str, Any], splits: Mapping[str, Columns]
) -> DatasetInfo:
    """The facts of a data set; those that are not given are found out.

    Args:
      name: of the data set on the command line.
      facts: what the user says, checked.
      splits: the columns by split; all of one size, with the same tasks.
    """
    columns = splits.get("train", next(iter(splits.values())))
    classes = facts.get("classes") or _classes(splits)
    mean, std = facts.get("mean"), facts.get("std")
    if mean is None or std is None:
        found = _statistics(columns.images)
        mean = found[0] if mean is None else mean
        std = found[1] if std is None else std
    colors = facts.get("colors") or palettes.distinct_colors(len(classes))
    tasks = {*columns.targets, *picture.TASKS}
    return DatasetInfo(
        name=name,
        image_shape=_triple(columns.images.shape[1:]),
        classes=tuple(classes),
        colors=tuple(_triple(map(int, color)) for color in colors),
        tasks=tuple(task for task in task_table.TASKS if task in tasks),
        splits={split: len(value) for split, value in splits.items()},
        mean=_triple(map(float, mean)),
        std=_triple(map(float, std)),
        ranges={**_RANGES, **_ranges(columns), **facts.get("ranges", {})},
        units=dict(facts.get("units", {})),
        class_weights=tuple(map(float, facts.get("class_weights", ()))),
    )


def _classes(splits: Mapping[str, Columns]) -> tuple[str, ...]:
    """Names for as many classes as the labels in memory need; none without labels.

    Raises:
      InputError: some numbers below the largest label are no label of any example, so
        that nobody can know which labels are classes.
    """
    found = set()
    for columns in splits.values():
        for task, target in columns.targets.items():
            if task_table.TASKS[task].discrete:
                known = columns.masks.get(task)
                for row in range(len(target)):  # No copy of the whole split.
                    labels = target[row] if known is None else target[row][known[row]]
                    found |= set(np.unique(labels))
    if found and len(found) <= max(found):
        raise InputError(
            f"Labels must be 0, 1, 2, ... without gaps, but are {_ranges_of(found)}; "
            'name all classes ("classes": [...], in the order of their labels) or, '
            f'where a label means none, say so ("ignore_label": {max(found)}) or put '
            "zeros into masks."
        )
    return tuple(f"class_{i}" for i in range(len(found)))


def _ranges_of(numbers: Iterable[int]) -> str:
    """Whole numbers as people write them: 0-18 and 255."""
    ranges: list[list[int]] = []
    for number in sorted(map(int, numbers)):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    texts = [str(low) if low == high else f"{low}-{high}" for low, high in ranges]
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def _statistics(images: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per colour, in [0, 1], of a column of bytes."""
    rows = _spaced(len(images), _SAMPLE)
    counts = np.zeros((3, 256))
    with progress.bar(len(rows), "averaging training images", "images") as advance:
        for part in np.split(rows, range(_AT_ONCE, len(rows), _AT_ONCE)):
            pixels = images[part].reshape(-1, 3)
            counts += [np.bincount(pixels[:, i], minlength=256) for i in range(3)]
            advance(len(part))
    levels = np.arange(256) / 255
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ levels
    std = np.sqrt(np.maximum(shares @ levels**2 - mean**2, 0))
    return mean, np.maximum(std, 1 / 255)  # Of one grey, to be divided by.


def _ranges(columns: Columns) -> dict[str, tuple[float, float]]:
    """What maps are painted between: most of what is known in some examples."""
    rows = _spaced(len(columns), _PAINTED)
    found = {}
    for task, target in columns.targets.items():
        if task_table.TASKS[task].discrete:
            continue
        values = target[rows]
        if task in columns.masks:
            values = values[columns.masks[task][rows]]
        if values.size:
            low, high = np.percentile(values, (2, 98))
            found[task] = (float(low), float(high))
    return found


def _spaced(count: int, most: int) -> np.ndarray:
    """At most so many numbers below `count`, evenly spaced: int64."""
    return np.arange(min(count, most)) * count // min(count, most)


def _is_names(given: Any) -> bool:
    return (
        isinstance(given, Sequence)
        and not isinstance(given, str)
        and len(given) > 0
        and all(isinstance(name, str) for name in given)
    )


def _are_labels(given: Any) -> bool:
    given = given if isinstance(given, list | tuple) else [given]
    return all(isinstance(n, int) and not isinstance(n, bool) for n in given)


def _are_within(
    given: Any, shape: tuple[int, ...], low: float = -np.inf, high: float = np.inf
) -> bool:
    """Whether these are numbers of a shape, none of them NaN, in [low, high]."""
    try:
        array = np.asarray(given, float)
    except (TypeError, ValueError):
        return False
    return array.shape == shape and bool(((array >= low) & (array <= high)).all())


def _is_by_task(given: Any, is_good: Callable[[Any], bool]) -> bool:
    return isinstance(given, Mapping) and all(
        task in task_table.TASKS and is_good(value) for task, value in given.items()
    )
