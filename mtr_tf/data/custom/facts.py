# SPDX-License-Identifier: Apache-2.0
"""The facts that a user gives about their own data set; others come from the data."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from mtr_tf.cli import progress
from mtr_tf.data import picture
from mtr_tf.data.custom import examples
from mtr_tf.data.custom import readers
from mtr_tf.data.custom.examples import Rules
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.data.source import Groups
from mtr_tf.errors import InputError
from mtr_tf.errors import did_you_mean
from mtr_tf.errors import is_whole
from mtr_tf.tasks import KINDS
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import canonical
from mtr_tf.tasks import palettes
from mtr_tf.tasks import task_set
from mtr_tf.tasks.task import MAP

KEYS = (
    "tasks",
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
    "readers",
)
_SAMPLE = 1000  # At most this many training examples, evenly spaced, for statistics.
_PAINTED = 32  # At most this many examples, evenly spaced, for ranges of values.
_AT_ONCE = 16  # Images in memory while statistics are computed.


def check(facts: Mapping[str, Any]) -> None:
    """Raises InputError unless the facts are as docs/own_data.md says."""
    names = facts.get("classes")
    count = len(names) if isinstance(names, Sequence) else 0
    tasks = (*TASKS, *declared(facts))
    rules = {
        "tasks": (lambda value: True, ""),  # `declared` checks them.
        "classes": (_is_names, "a list of names, in the order of their labels"),
        "colors": (
            lambda value: _are_within(value, (count, 3), 0, 255),
            'an (R, G, B) of 0-255 for each of the "classes"',
        ),
        "class_weights": (
            lambda value: (
                _is_by_task(value, tasks, lambda row: _is_row(row, 0, np.inf))
                or _are_within(value, (count,), 0)
            ),
            'a finite number that is not negative for each of the "classes", or a dict '
            "of such lists by task",
        ),
        "mean": (
            lambda value: _is_row(value, 0, 1),
            "one number for each channel, for images in [0, 1]",
        ),
        "std": (
            lambda value: _is_row(value, 1e-6, 1),
            "one number above 0 for each channel, for images in [0, 1]",
        ),
        "ranges": (
            lambda value: _is_by_task(
                value, tasks, lambda pair: _are_within(pair, (2,))
            ),
            "a dict of (low, high) by task, two finite numbers",
        ),
        "units": (
            lambda value: _is_by_task(value, tasks, lambda unit: isinstance(unit, str)),
            "a dict of strings by task",
        ),
        "ignore_label": (
            lambda value: _are_labels(value) or _is_by_task(value, tasks, _are_labels),
            "a whole number, or a list of them, or a dict of these by task",
        ),
        "groups": (
            lambda value: isinstance(value, Mapping),
            "a dict by split, with a name or number for each example",
        ),
        "frames": (
            lambda value: isinstance(value, bool) and (not value or "groups" in facts),
            'True or False, beside "groups"',
        ),
        "readers": (
            lambda value: is_whole(value) and 1 <= value <= readers.MOST,
            f"a whole number from 1 to {readers.MOST}: how many threads may read "
            "examples at the same time",
        ),
    }
    for key, value in facts.items():
        is_good, what = rules[key]
        if not is_good(value):
            raise InputError(f'"{key}" must be {what}; got {_one_line(value)}.')


def declared(facts: Mapping[str, Any]) -> TaskSet:
    """The tasks that a user declares, new ones or in place of built-in ones.

    Raises:
      InputError: they are not tasks, or a name stands for another task.
    """
    entries = facts.get("tasks", ())
    if isinstance(entries, Mapping):
        entries = [_task(name, task) for name, task in entries.items()]
    is_list = isinstance(entries, list | tuple | TaskSet)
    if not is_list or not all(isinstance(task, str | Task) for task in entries):
        raise InputError(
            '"tasks" must be a list such as [Task("flow", kind="numbers", channels=2)] '
            f"(from mtr_tf.tasks import Task), or a dict by name; got {entries!r}."
        )
    tasks = task_set(entries)
    for name in tasks:
        (full_name,) = canonical((name,))
        if full_name != name:
            raise InputError(
                f'A task of your own ("tasks") must not be called {name}, because '
                f"that is another name for {full_name}; rename it."
            )
    _check_aliases(tasks)
    return tasks


def _check_aliases(tasks: TaskSet) -> None:
    """Raises `InputError` if an alias also stands for another task.

    A copy of a built-in task under another name keeps the aliases of the original: they
    do no harm unless the data have the original too.
    """
    owners = {name.lower(): name for name in tasks}
    for name, task in tasks.items():
        for alias in task.aliases:
            (full_name,) = canonical((alias,))
            is_copy = full_name in TASKS and full_name not in tasks
            if is_copy and alias in TASKS[full_name].aliases:
                continue
            owner = (
                full_name
                if full_name in TASKS
                else owners.setdefault(alias.lower(), name)
            )
            if owner != name:
                raise InputError(
                    f'An alias of a task of your own ("tasks") must name that task '
                    f"alone, but {alias!r} of {name} means {owner} too; choose another "
                    "alias."
                )


def _task(name: Any, entry: Any) -> Task:
    """The task of an entry in a dict by name: a record, or a kind."""
    if isinstance(entry, str) and entry in KINDS:
        return Task(name, kind=entry)
    if isinstance(entry, Task) and entry.name == name:
        return entry
    raise InputError(
        '"tasks" must map each name to a Task of that name, or to a kind, one of '
        f"{', '.join(KINDS)}; got {entry!r} for {name!r}."
    )


def rules(facts: Mapping[str, Any]) -> Rules:
    """What targets may be, according to checked facts.

    Raises:
      InputError: a task has only one class, or labels to ignore but no classes.
    """
    declared_tasks = declared(facts)
    all_tasks = TASKS.replaced(*declared_tasks.values()).values()
    tasks = TaskSet(_with_facts(task, facts) for task in all_tasks)
    ignored = facts.get("ignore_label", ())
    if not isinstance(ignored, Mapping):
        ignored = {name: ignored for name, task in tasks.items() if task.discrete}
    for name in ignored:
        if not tasks[name].discrete:
            raise InputError(
                f'"ignore_label" must be for tasks with classes; got {name}. Give '
                '"masks" with its targets.'
            )
    return Rules(
        tasks,
        {
            task: tuple(map(int, labels if isinstance(labels, Sequence) else [labels]))
            for task, labels in ignored.items()
        },
        declared_tasks,
    )


def _with_facts(task: Task, facts: Mapping[str, Any]) -> Task:
    """A task with the unit, classes and colors of the facts where it has none.

    Raises:
      InputError: the task has a single class, which every place would have.
    """
    if not task.unit:
        task = task.bound(unit=facts.get("units", {}).get(task.name, ""))
    if "classes" in facts and task.discrete and task.channels is None:
        task = task.bound(
            channels=None,
            classes=tuple(facts["classes"]),
            colors=facts.get("colors", ()),
        )
    if task.discrete and task.channels == 1:
        raise InputError(
            f"The task {task.name} must have at least two classes, but there is one, "
            f"{task.classes[0] if task.classes else 0}; name the other too, or give "
            'kind="labels".'
        )
    return task


def check_groups(facts: Mapping[str, Any], splits: Iterable[str]) -> None:
    """Raises `InputError` if groups are given for a split that is not there."""
    for split in facts.get("groups", {}):
        if split not in splits:
            raise InputError(
                f'"groups" must name splits of the data, {", ".join(splits)}; got '
                f"{split!r}.{did_you_mean(split, splits)}"
            )


def groups(
    facts: Mapping[str, Any], split: str, count: int, is_cut: bool = False
) -> Groups | None:
    """The groups of a split of `count` examples; None if none are given.

    Args:
      facts: What the user says, checked.
      split: The name of the split.
      count: How many examples were read.
      is_cut: Whether there are more examples, which may have groups too.

    Raises:
      InputError: there is not one group for each example.
    """
    values = facts.get("groups", {}).get(split)
    if values is None:
        return None
    rule = f'"groups" must have a name or number for each of the {count} examples of '
    try:
        values = np.asarray(values)
    except ValueError as error:
        raise InputError(f"{rule}{split}; got lists of several lengths.") from error
    if values.dtype == object and all(
        isinstance(value, str) or is_whole(value) for value in values.flat
    ):
        values = np.asarray(values.tolist())  # pandas holds names as objects.
    if is_cut and values.ndim:
        values = values[:count]
    if values.shape != (count,) or values.dtype.kind not in "uiSU":
        raise InputError(
            f"{rule}{split}; got {values.dtype} of shape {list(values.shape)}."
        )
    frames = facts.get("frames", False)
    return Groups(values, "videos" if frames else "groups", frames)


def _one_line(value: Any) -> str:
    """The repr of a value on one line; NumPy writes arrays on several."""
    return " ".join(repr(value).split())


def dataset_info(
    name: str, facts: Mapping[str, Any], splits: Mapping[str, Columns], rules: Rules
) -> DatasetInfo:
    """The facts of a data set; those that are not given are derived from the data.

    Args:
      name: the name of the data set on the command line.
      facts: what the user says, checked.
      splits: the columns by split; all of one size, with the same tasks.
      rules: all tasks that there may be, and labels that mean "no label".

    Raises:
      InputError: classes cannot be counted, or what the user says does not fit.
    """
    columns = splits.get("train", next(iter(splits.values())))
    height, width, channels = columns.images.shape[1:]
    for key in ("mean", "std"):
        if len(facts.get(key, (0,) * channels)) != channels:
            raise InputError(
                f'"{key}" must be one number for each of the {channels} channels of '
                f"the images; got {_one_line(facts[key])}."
            )
    tasks = _tasks(splits, columns, rules)
    _check_weights(facts.get("class_weights", ()), tasks, facts.get("classes", ()))
    classes = facts.get("classes") or (tasks["seg"].classes if "seg" in tasks else ())
    mean, std = facts.get("mean"), facts.get("std")
    if mean is None or std is None:
        statistics = _statistics(columns.images)
        mean = statistics[0] if mean is None else mean
        std = statistics[1] if std is None else std
    colors = facts.get("colors", palettes.distinct_colors(len(classes)))
    return DatasetInfo(
        name=name,
        image_shape=(height, width, channels),
        classes=tuple(classes),
        colors=tuple((int(r), int(g), int(b)) for r, g, b in colors),
        tasks=tasks,
        splits={split: len(value) for split, value in splits.items()},
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        ranges={
            **picture.RANGES,
            **ranges_of(columns, tasks),
            **_floats(facts.get("ranges", {})),
        },
        units=dict(facts.get("units", {})),
        class_weights=_floats(facts.get("class_weights", ())),
    )


def _tasks(splits: Mapping[str, Columns], columns: Columns, rules: Rules) -> TaskSet:
    """The tasks of the data, with the places, classes and colors of the data.

    Args:
      splits: the columns by split.
      columns: the columns of one split.
      rules: all tasks that there may be, and labels that mean "no label".
    """
    channels = columns.images.shape[3]
    names = {*columns.targets, *picture.of_channels(channels)}
    tasks = []
    for name, task in rules.tasks.items():
        if name not in columns.targets:
            if task.kind == "image" and task.channels != channels:
                task = task.bound(channels=channels)  # The target is the picture.
        else:
            _, *places = columns.targets[name].shape
            if task.discrete:
                if task.places is None and task.channels is None:
                    _check_not_one_hot(name, splits)
                task = task.bound(places=len(places))
                task = _with_classes(task, splits, rules.ignored.get(name, ()))
            else:
                task = task.bound(places=len(places) - 1, channels=places[-1])
        if name in names:
            tasks.append(task)
    return TaskSet(tasks)


def _with_classes(
    task: Task, splits: Mapping[str, Columns], ignored: Sequence[int]
) -> Task:
    """A task of classes with a name and a color for each class.

    Args:
      task: the task, perhaps without names or colors.
      splits: the columns by split.
      ignored: labels that mean "no label"; they may be numbers of classes.
    """
    classes = task.classes
    if not classes:
        count = task.channels or _count_classes(task.name, splits)
        classes = tuple(f"class_{i}" for i in range(count))
    colors = task.colors or palettes.distinct_colors(len(classes))
    if len(colors) != len(classes):
        raise InputError(
            f"The task {task.name} must have as many colors as classes; got "
            f"{len(colors)} colors and {len(classes)} classes."
        )
    numbers = range(len(classes)) if task.places else ()  # Else there is no mean IoU.
    ignored = tuple(sorted({label for label in ignored if label in numbers}))
    return task.bound(channels=None, classes=classes, colors=colors, ignored=ignored)


def _check_weights(values: Any, tasks: TaskSet, classes: Sequence[str]) -> None:
    """Raises InputError unless weights by task have one for each class of the task.

    Args:
      values: weights of `classes`, or by task.
      tasks: the tasks of the data.
      classes: the names that the user gives for tasks that have none of their own.
    """
    matches = [t.discrete and t.classes == tuple(classes) for t in tasks.values()]
    if len(values) and not isinstance(values, Mapping) and not any(matches):
        logging.warning(
            '"class_weights" has no effect: the examples have no task of the "classes" '
            "that it is for (weights of others are a dict of lists by task)"
        )
    for name, weights in values.items() if isinstance(values, Mapping) else ():
        if name not in tasks or not tasks[name].discrete:
            raise InputError(
                '"class_weights" must be for tasks with classes that the examples '
                f"have; got {name}."
            )
        if len(weights) != tasks[name].channels:
            raise InputError(
                f'"class_weights" must be a number for each of the '
                f"{tasks[name].channels} classes of {name}; got {_one_line(weights)}."
            )


def _floats(values: Any) -> Any:
    """Numbers, or numbers by name, as floats."""
    if isinstance(values, Mapping):
        return {name: _floats(numbers) for name, numbers in values.items()}
    return tuple(map(float, values))


def _check_not_one_hot(task: str, splits: Mapping[str, Columns]) -> None:
    """Raises `InputError` if the labels of a task are one-hot in all examples.

    The number of the task's classes and places is not known, so a row of ones and zeros
    might also be several places of two classes. Masked rows are skipped.

    Args:
      task: The name of the task.
      splits: The columns by split.
    """
    shape = next(iter(splits.values())).targets[task].shape[1:]
    if len(shape) in (0, MAP):
        return
    has_rows = False
    for columns in splits.values():
        target, mask = columns.targets[task], columns.masks.get(task)
        for i in range(len(target)):  # No copy of the whole split.
            rows = target[i] if mask is None else target[i][mask[i].any(axis=-1)]
            if not examples.is_one_hot(rows, shape[-1]):
                return
            has_rows |= rows.size > 0
    if has_rows:
        raise InputError(examples.one_hot(task, "the examples", shape))


def _count_classes(task: str, splits: Mapping[str, Columns]) -> int:
    """How many classes a task's labels in memory need; 0 if no label is known.

    Raises:
      InputError: no example has some label below the largest one, so that it is not
        clear which labels are classes.
    """
    labels: set[int] = set()
    for columns in splits.values():
        target, mask = columns.targets[task], columns.masks.get(task)
        for row in range(len(target)):  # No copy of the whole split.
            row_labels = target[row] if mask is None else target[row][mask[row]]
            labels |= set(np.unique(row_labels).tolist())
    if labels and len(labels) <= max(labels):
        largest, hint = max(labels), ""
        smaller = labels - {largest}
        if len(smaller) == max(smaller, default=0) + 1:  # Without gaps.
            hint = (
                f', or, if {largest} means "no label", say so '
                f'("ignore_label": {largest}) or put zeros into masks'
            )
        raise InputError(
            f"Labels of {task} must be 0, 1, 2, ... without gaps, but they are "
            f'{_range_text(labels)}; name all classes ("classes": [...], in the order '
            f"of their labels, from 0 and with those of ignored labels){hint}."
        )
    return max(2, len(labels)) if labels else 0  # With one class every output is right.


def _range_text(numbers: Iterable[int]) -> str:
    """Whole numbers as text with ranges, such as "0-18 and 255"."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    texts = [str(low) if low == high else f"{low}-{high}" for low, high in ranges]
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def _statistics(images: Any) -> tuple[np.ndarray, np.ndarray]:
    """The mean and standard deviation of images per channel, in [0, 1]."""
    rows = _spaced_rows(len(images), _SAMPLE)
    channels = range(images.shape[-1])
    counts = np.zeros((len(channels), 256))  # Of byte levels, else three moments.
    is_bytes = images.dtype == np.uint8
    with progress.bar(len(rows), "averaging training images", "images") as advance:
        for batch in np.split(rows, range(_AT_ONCE, len(rows), _AT_ONCE)):
            pixels = images[batch].reshape(-1, len(channels))
            if is_bytes:
                counts += [np.bincount(pixels[:, i], minlength=256) for i in channels]
            else:
                pixels = pixels.astype(np.float64)
                for power in range(3):
                    counts[:, power] += (pixels**power).sum(axis=0)
            advance(len(batch))
    levels = np.arange(256) / 255
    if is_bytes:
        shares = counts / counts.sum(axis=1, keepdims=True)
        mean, mean_square = shares @ levels, shares @ levels**2
    else:
        mean, mean_square = (counts[:, power] / counts[:, 0] for power in (1, 2))
    std = np.sqrt(np.maximum(mean_square - mean**2, 0))
    return mean, np.maximum(std, 1 / 255)  # Constant images, too, need a divisor.


def ranges_of(columns: Columns, tasks: TaskSet) -> dict[str, tuple[float, float]]:
    """The (low, high) of most known values of some examples, for pictures of maps.

    Args:
      columns: the columns with the targets; there may be more images than targets.
      tasks: the tasks of the targets.
    """
    ranges = {}
    for task, target in columns.targets.items():
        if tasks[task].discrete or tasks[task].kind == "labels":
            continue
        rows = _spaced_rows(len(target), _PAINTED)
        values = target[rows]
        if task in columns.masks:
            values = values[columns.masks[task][rows]]
        values = values[np.isfinite(values)]
        if values.size:
            low, high = np.percentile(values, (2, 98))
            ranges[task] = (float(low), float(high))
    return ranges


def _spaced_rows(count: int, limit: int) -> np.ndarray:
    """At most `limit` row numbers below `count`, evenly spaced, int64."""
    return np.arange(min(count, limit)) * count // min(count, limit)


def _is_names(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(name, str) for name in value)
    )


def _is_row(value: Any, low: float, high: float) -> bool:
    """Whether this is a row of finite numbers in [low, high], of any length."""
    length = len(value) if isinstance(value, Sequence | np.ndarray) else 0
    return _are_within(value, (length,), low, high)


def _are_labels(labels: Any) -> bool:
    labels = labels if isinstance(labels, list | tuple) else [labels]
    return all(map(is_whole, labels))


def _are_within(
    values: Any, shape: tuple[int, ...], low: float = -np.inf, high: float = np.inf
) -> bool:
    """Whether these are finite numbers in [low, high], of this shape."""
    try:
        array = np.asarray(values, float)
    except (TypeError, ValueError):
        return False
    is_good = np.isfinite(array) & (array >= low) & (array <= high)
    return array.shape == shape and bool(is_good.all())


def _is_by_task(
    values: Any, tasks: Sequence[str], is_good: Callable[[Any], bool]
) -> bool:
    return isinstance(values, Mapping) and all(
        task in tasks and is_good(value) for task, value in values.items()
    )
