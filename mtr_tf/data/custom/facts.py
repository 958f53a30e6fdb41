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

_Number = TypeVar("_Number", int, float)

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
# Statistics are of at most so many training examples, evenly spaced.
_SAMPLE = 1000
_PAINTED = 32
_AT_ONCE = 16


def check(facts: Mapping[str, Any]) -> None:
    """Raises InputError unless the facts are as docs/own_data.md says."""
    names = facts.get("classes")
    count = len(names) if isinstance(names, Sequence) else 0
    known = (*TASKS, *declared(facts))
    rules = {
        "tasks": (lambda given: True, ""),  # Which `declared` has said.
        "classes": (_is_names, "a list of names, in the order of their labels"),
        "colors": (
            lambda given: _are_within(given, (count, 3), 0, 255),
            'an (R, G, B) of 0-255 for each of the "classes"',
        ),
        "class_weights": (
            lambda given: (
                _is_by_task(given, known, lambda weights: _are_weights(weights, None))
                or _are_weights(given, count)
            ),
            'a finite number that is not negative for each of the "classes", or a dict '
            "of such lists by task",
        ),
        "mean": (
            lambda given: _are_within(given, (_length(given),), 0, 1),
            "one number for each channel, for images in [0, 1]",
        ),
        "std": (
            lambda given: _are_within(given, (_length(given),), 1e-6, 1),
            "one number above 0 for each channel, for images in [0, 1]",
        ),
        "ranges": (
            lambda given: _is_by_task(
                given, known, lambda pair: _are_within(pair, (2,))
            ),
            "a dict of (low, high) by task, two finite numbers",
        ),
        "units": (
            lambda given: _is_by_task(given, known, lambda unit: isinstance(unit, str)),
            "a dict of strings by task",
        ),
        "ignore_label": (
            lambda given: _are_labels(given) or _is_by_task(given, known, _are_labels),
            "a whole number, or a list of them, or a dict of these by task",
        ),
        "groups": (
            lambda given: isinstance(given, Mapping),
            "a dict by split, with a name or number for each example",
        ),
        "frames": (
            lambda given: isinstance(given, bool) and (not given or "groups" in facts),
            'True or False, beside "groups"',
        ),
        "readers": (
            lambda given: is_whole(given) and 1 <= given <= readers.MOST,
            f"a whole number from 1 to {readers.MOST}: how many threads may read "
            "examples at the same time",
        ),
    }
    for key, given in facts.items():
        is_good, what = rules[key]
        if not is_good(given):
            raise InputError(f'"{key}" must be {what}; got {_shown(given)}.')


def declared(facts: Mapping[str, Any]) -> TaskSet:
    """The tasks that a user declares, of their own or in place of some of the eleven.

    Raises:
      InputError: they are no tasks, or are called as another one is.
    """
    given = facts.get("tasks", ())
    if isinstance(given, Mapping):
        given = [_task(name, task) for name, task in given.items()]
    is_list = isinstance(given, list | tuple | TaskSet)
    if not is_list or not all(isinstance(task, str | Task) for task in given):
        raise InputError(
            '"tasks" must be a list such as [Task("flow", kind="numbers", channels=2)] '
            f"(from mtr_tf.tasks import Task), or a dict by name; got {given!r}."
        )
    tasks = task_set(given)
    for name in tasks:
        (meant,) = canonical((name,))
        if meant != name:
            raise InputError(
                f'A task of your own ("tasks") must not be called {name}, because '
                f"that is another name for {meant}; rename it."
            )
    _check_aliases(tasks)
    return tasks


def _check_aliases(tasks: TaskSet) -> None:
    """Raises `InputError` where an alias is what another task is called.

    A copy of one of the eleven under another name keeps that one's aliases: they do no
    harm as long as the data do not have it, too.
    """
    taken = {name.lower(): name for name in tasks}
    for name, task in tasks.items():
        for alias in task.aliases:
            (usual,) = canonical((alias,))
            copied = usual in TASKS and usual not in tasks
            if copied and alias in TASKS[usual].aliases:
                continue
            other = usual if usual in TASKS else taken.setdefault(alias.lower(), name)
            if other != name:
                raise InputError(
                    f'An alias of a task of your own ("tasks") must name that task '
                    f"alone, but {alias!r} of {name} means {other} too; choose another "
                    "alias."
                )


def _task(name: Any, given: Any) -> Task:
    """The task of a dict by name: a record, or a kind."""
    if isinstance(given, str) and given in KINDS:
        return Task(name, kind=given)
    if isinstance(given, Task) and given.name == name:
        return given
    raise InputError(
        '"tasks" must map each name to a Task of that name, or to a kind, one of '
        f"{', '.join(KINDS)}; got {given!r} for {name!r}."
    )


def rules(facts: Mapping[str, Any]) -> Rules:
    """What targets may be, of checked facts.

    Raises:
      InputError: a task has but one class, or labels to ignore and no classes.
    """
    own = declared(facts)
    known = TASKS.replaced(*own.values()).values()
    tasks = TaskSet(_with_facts(task, facts) for task in known)
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
        own,
    )


def _with_facts(task: Task, facts: Mapping[str, Any]) -> Task:
    """A task with the unit, classes and colors of the facts where it says none.

    Raises:
      InputError: it has a single class, which every place has.
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
    """Raises `InputError` where groups are given for a split that is not there."""
    for split in facts.get("groups", {}):
        if split not in splits:
            raise InputError(
                f'"groups" must name splits of the data, {", ".join(splits)}; got '
                f"{split!r}.{did_you_mean(split, splits)}"
            )


def groups(
    facts: Mapping[str, Any], split: str, count: int, is_cut: bool = False
) -> Groups | None:
    """The groups of a split of so many examples; None where none are given.

    Args:
      facts: What the user says, checked.
      split: Its name.
      count: How many examples were read.
      is_cut: Whether there are more, which may have groups too.

    Raises:
      InputError: they are not one for each example.
    """
    given = facts.get("groups", {}).get(split)
    if given is None:
        return None
    must = f'"groups" must have a name or number for each of the {count} examples of '
    try:
        given = np.asarray(given)
    except ValueError as error:
        raise InputError(f"{must}{split}; got lists of several lengths.") from error
    if given.dtype == object and all(map(_is_group, given.flat)):
        given = np.asarray(given.tolist())  # As pandas has names.
    if is_cut and given.ndim:
        given = given[:count]
    if given.shape != (count,) or given.dtype.kind not in "uiSU":
        raise InputError(
            f"{must}{split}; got {given.dtype} of shape {list(given.shape)}."
        )
    frames = facts.get("frames", False)
    return Groups(given, "videos" if frames else "groups", frames)


def _shown(given: Any) -> str:
    """What was given, on one line: NumPy writes arrays on several."""
    return " ".join(repr(given).split())


def _triple(values: Iterable[_Number]) -> tuple[_Number, _Number, _Number]:
    first, second, third = values
    return first, second, third


def dataset_info(
    name: str, facts: Mapping[str, Any], splits: Mapping[str, Columns], rules: Rules
) -> DatasetInfo:
    """The facts of a data set; those that are not given are found out.

    Args:
      name: of the data set on the command line.
      facts: what the user says, checked.
      splits: the columns by split; all of one size, with the same tasks.
      rules: all tasks that there may be, and labels that mean "no label".

    Raises:
      InputError: classes cannot be counted, or what the user says does not fit.
    """
    columns = splits.get("train", next(iter(splits.values())))
    channels = columns.images.shape[3]
    for key in ("mean", "std"):
        if len(facts.get(key, (0,) * channels)) != channels:
            raise InputError(
                f'"{key}" must be one number for each of the {channels} channels of '
                f"the images; got {_shown(facts[key])}."
            )
    tasks = _tasks(splits, columns, rules)
    _check_weights(facts.get("class_weights", ()), tasks, facts.get("classes", ()))
    classes = facts.get("classes") or (tasks["seg"].classes if "seg" in tasks else ())
    mean, std = facts.get("mean"), facts.get("std")
    if mean is None or std is None:
        found = _statistics(columns.images)
        mean = found[0] if mean is None else mean
        std = found[1] if std is None else std
    colors = facts.get("colors", palettes.distinct_colors(len(classes)))
    return DatasetInfo(
        name=name,
        image_shape=_triple(columns.images.shape[1:]),
        classes=tuple(classes),
        colors=tuple(_triple(map(int, color)) for color in colors),
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
    """The tasks that there are, with the places, classes and colors of the data.

    Args:
      splits: the columns by split.
      columns: those of one of them.
      rules: all tasks that there may be, and labels that mean "no label".
    """
    channels = columns.images.shape[3]
    there = {*columns.targets, *picture.of_channels(channels)}
    tasks = []
    for name, task in rules.tasks.items():
        if name not in columns.targets:
            if task.kind == "image" and task.channels != channels:
                task = task.bound(channels=channels)  # It is the picture.
        else:
            _, *places = columns.targets[name].shape
            if task.discrete:
                if task.places is None and task.channels is None:
                    _check_not_one_hot(name, splits)
                task = task.bound(places=len(places))
                task = _of_classes(task, splits, rules.ignored.get(name, ()))
            else:
                task = task.bound(places=len(places) - 1, channels=places[-1])
        if name in there:
            tasks.append(task)
    return TaskSet(tasks)


def _of_classes(
    task: Task, splits: Mapping[str, Columns], ignored: Sequence[int]
) -> Task:
    """A task of classes, each of which has a name and a color.

    `ignored`: labels that mean "no label", which may be numbers of classes.
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
    known = range(len(classes)) if task.places else ()  # Without, there is no mean IoU.
    ignored = tuple(sorted({label for label in ignored if label in known}))
    return task.bound(channels=None, classes=classes, colors=colors, ignored=ignored)


def _check_weights(given: Any, tasks: TaskSet, classes: Sequence[str]) -> None:
    """Raises InputError unless weights by task are one for each of its classes.

    Args:
      given: weights of `classes`, or by task.
      tasks: those that there are.
      classes: the names that the user gives for tasks that have none of their own.
    """
    of_classes = [t.discrete and t.classes == tuple(classes) for t in tasks.values()]
    if len(given) and not isinstance(given, Mapping) and not any(of_classes):
        logging.warning(
            '"class_weights" has no effect: the examples have no task of the "classes" '
            "that it is for (weights of others are a dict of lists by task)"
        )
    for name, weights in given.items() if isinstance(given, Mapping) else ():
        if name not in tasks or not tasks[name].discrete:
            raise InputError(
                '"class_weights" must be for tasks with classes that the examples '
                f"have; got {name}."
            )
        if len(weights) != tasks[name].channels:
            raise InputError(
                f'"class_weights" must be a number for each of the '
                f"{tasks[name].channels} classes of {name}; got {_shown(weights)}."
            )


def _floats(given: Any) -> Any:
    """Numbers, or numbers by name, as floats."""
    if isinstance(given, Mapping):
        return {name: _floats(numbers) for name, numbers in given.items()}
    return tuple(map(float, given))


def _check_not_one_hot(task: str, splits: Mapping[str, Columns]) -> None:
    """Raises `InputError` where a task has a one for each class in all examples.

    Nobody has said how many classes or places it has, so that a row of ones and zeros
    might be as many places of two classes, too. Rows that are masked are passed over.

    Args:
      task: Its name.
      splits: The columns by split.
    """
    shape = next(iter(splits.values())).targets[task].shape[1:]
    if len(shape) in (0, MAP):
        return
    seen = False
    for columns in splits.values():
        target, known = columns.targets[task], columns.masks.get(task)
        for i in range(len(target)):  # No copy of the whole split.
            rows = target[i] if known is None else target[i][known[i].any(axis=-1)]
            if not examples.is_one_hot(rows, shape[-1]):
                return
            seen |= rows.size > 0
    if seen:
        raise InputError(examples.one_hot(task, "the examples", shape))


def _count_classes(task: str, splits: Mapping[str, Columns]) -> int:
    """How many classes the labels in memory of a task need; 0 where none is known.

    Raises:
      InputError: some numbers below the largest label are no label of any example, so
        that nobody can know which labels are classes.
    """
    found: set[int] = set()
    for columns in splits.values():
        target, known = columns.targets[task], columns.masks.get(task)
        for row in range(len(target)):  # No copy of the whole split.
            labels = target[row] if known is None else target[row][known[row]]
            found |= set(np.unique(labels).tolist())
    if found and len(found) <= max(found):
        most, hint = max(found), ""
        others = found - {most}
        if len(others) == max(others, default=0) + 1:  # They have no gaps.
            hint = (
                f', or, if {most} means "no label", say so ("ignore_label": {most}) '
                "or put zeros into masks"
            )
        raise InputError(
            f"Labels of {task} must be 0, 1, 2, ... without gaps, but they are "
            f'{_ranges_of(found)}; name all classes ("classes": [...], in the order '
            f"of their labels, from 0 and with those of ignored labels){hint}."
        )
    return max(2, len(found)) if found else 0  # Of one class all places are right.


def _ranges_of(numbers: Iterable[int]) -> str:
    """Whole numbers as people write them: 0-18 and 255."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    texts = [str(low) if low == high else f"{low}-{high}" for low, high in ranges]
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def _statistics(images: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel, in [0, 1], of images."""
    rows = _spaced(len(images), _SAMPLE)
    channels = range(images.shape[-1])
    counts = np.zeros((len(channels), 256))  # Of bytes, the levels; else three moments.
    is_bytes = images.dtype == np.uint8
    with progress.bar(len(rows), "averaging training images", "images") as advance:
        for part in np.split(rows, range(_AT_ONCE, len(rows), _AT_ONCE)):
            pixels = images[part].reshape(-1, len(channels))
            if is_bytes:
                counts += [np.bincount(pixels[:, i], minlength=256) for i in channels]
            else:
                pixels = pixels.astype(np.float64)
                for power in range(3):
                    counts[:, power] += (pixels**power).sum(axis=0)
            advance(len(part))
    levels = np.arange(256) / 255
    if is_bytes:
        shares = counts / counts.sum(axis=1, keepdims=True)
        mean, square = shares @ levels, shares @ levels**2
    else:
        mean, square = (counts[:, power] / counts[:, 0] for power in (1, 2))
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return mean, np.maximum(std, 1 / 255)  # Of one grey, to be divided by.


def ranges_of(columns: Columns, tasks: TaskSet) -> dict[str, tuple[float, float]]:
    """What maps are painted between: most of what is known in some examples.

    Args:
      columns: whose targets they are; images may be more.
      tasks: those of the targets.
    """
    found = {}
    for task, target in columns.targets.items():
        if tasks[task].discrete or tasks[task].kind == "labels":
            continue
        rows = _spaced(len(target), _PAINTED)
        values = target[rows]
        if task in columns.masks:
            values = values[columns.masks[task][rows]]
        values = values[np.isfinite(values)]
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


def _are_weights(given: Any, count: int | None) -> bool:
    """Whether these are numbers that are not negative; so many, if that is known."""
    return _are_within(given, (_length(given) if count is None else count,), 0, np.inf)


def _is_group(given: Any) -> bool:
    return isinstance(given, str) or is_whole(given)


def _length(given: Any) -> int:
    return len(given) if isinstance(given, Sequence | np.ndarray) else 0


def _are_labels(given: Any) -> bool:
    given = given if isinstance(given, list | tuple) else [given]
    return all(map(is_whole, given))


def _are_within(
    given: Any, shape: tuple[int, ...], low: float = -np.inf, high: float = np.inf
) -> bool:
    """Whether these are finite numbers of a shape, in [low, high]."""
    try:
        array = np.asarray(given, float)
    except (TypeError, ValueError):
        return False
    is_good = np.isfinite(array) & (array >= low) & (array <= high)
    return array.shape == shape and bool(is_good.all())


def _is_by_task(
    given: Any, known: Sequence[str], is_good: Callable[[Any], bool]
) -> bool:
    return isinstance(given, Mapping) and all(
        task in known and is_good(value) for task, value in given.items()
    )
