# SPDX-License-Identifier: Apache-2.0
"""Turns examples in any common form into those of a data set.

They may come one by one or in batches; as {"image", "targets", "masks", "inputs"}, or
as (image, targets) or (image, targets, masks), as for `fit`; with targets by task, as a
list in the order of the tasks, or, for a single task, alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mtr_tf.data.custom import reading
from mtr_tf.data.custom.columns import First
from mtr_tf.data.custom.examples import as_array
from mtr_tf.data.source import Source
from mtr_tf.errors import InputError
from mtr_tf.errors import did_you_mean
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks.names import canonical

NAME = "examples"  # What messages call the data.
_BATCH = 4  # Axes of a batch of images.


def open_source(
    examples: Any,
    tasks: Sequence[Task],
    names: Sequence[str],
    facts: Mapping[str, Any],
    split: str,
    count: int,
) -> Source:
    """Opens examples in the same way as the command opens a user's own data.

    Args:
      examples: What `one_by_one` takes.
      tasks: The user's own tasks, which replace those in the facts.
      names: Names of the tasks, in the order of targets that have no names.
      facts: What a data function returns besides its splits (docs/own_data.md).
      split: Name of the split that the examples form.
      count: How many examples are read; 0: all.

    Raises:
      InputError: They do not have the form described in docs/own_data.md.
    """
    is_endless = (
        hasattr(examples, "as_numpy_iterator")
        and int(examples.cardinality()) == tf.data.INFINITE_CARDINALITY
    )
    if is_endless and not count:
        raise InputError(
            "The examples must end if all are taken (num_examples=0), but their "
            "tf.data.Dataset repeats forever; leave out .repeat(), or say how many."
        )
    first_examples = First(one_by_one(examples, names, TASKS.replaced(*tasks)), count)
    content: dict[str, Any] = {split: first_examples, **facts}
    if tasks:
        content["tasks"] = list(tasks)
    source = reading.open_given(NAME, content)
    return dataclasses.replace(source, is_cut=first_examples.is_cut)


def one_by_one(
    examples: Any, names: Sequence[str] = (), all_tasks: TaskSet = TASKS
) -> Iterator[dict[str, Any]]:
    """Yields {"image", "targets", "masks", "inputs"} of each example.

    Args:
      examples: One batch, or an iterable or `tf.data.Dataset` of examples or batches,
        or a `keras.utils.PyDataset`.
      names: Names of the tasks, in the order of targets that have no names; if targets
        have names, only these are used. Empty: all.
      all_tasks: Tasks whose other names may be used, too.

    Raises:
      InputError: They have another form, targets have no names, a mask has no target,
        or the rows of a batch are not as many as its images.
    """
    names = canonical(names, all_tasks.values()) if names else ()
    for part in _parts(examples):
        image, targets, masks = _triple(part, names, all_tasks)
        inputs = part.get("inputs") if isinstance(part, Mapping) else None
        inputs = {} if inputs is None else inputs
        if isinstance(inputs, Mapping):
            inputs = _arrays("input", inputs)
        by_name = {"targets": targets, "masks": masks, "inputs": inputs}
        if np.ndim(image) != _BATCH:
            yield {"image": image, **by_name}
            continue
        _check_rows({"target": targets, "mask": masks, "input": inputs}, len(image))
        for i in range(len(image)):
            rows = {
                key: {name: values[i] for name, values in arrays.items()}
                for key, arrays in by_name.items()
            }
            yield {"image": image[i], **rows}


def _check_rows(parts: Mapping[str, Any], count: int) -> None:
    """Raises `InputError` unless each target, mask and input has `count` rows."""
    for what, values in parts.items():
        if not isinstance(values, Mapping):
            raise InputError(
                f"The {what}s of a batch must be a dict by name, such as "
                f'{{"camera": array}}, of arrays; got one of type '
                f"{type(values).__name__}."
            )
        for name, array in values.items():
            rows = len(array) if array.ndim else "no"
            if rows != count:
                raise InputError(
                    "A batch must have one row for each of its images, but its "
                    f"{what} {name} has {rows} rows for {count} images; give as many."
                )


def tasks_given(tasks: str | Iterable[str | Task]) -> Sequence[str | Task]:
    """Returns the tasks or names in a parameter `tasks`: one of them, or several."""
    if isinstance(tasks, str):
        return tasks.split(",")
    if isinstance(tasks, Task):
        return [tasks]
    return list(tasks.values() if isinstance(tasks, Mapping) else tasks)


def by_task(values: Any, names: Sequence[str], what: str) -> dict[str, Any]:
    """Returns values by the names of tasks.

    Args:
      values: A dict by task, a list in the order of `names`, or, for a single task, its
        value.
      names: Names of the tasks; only these are taken from a dict. Empty: all.
      what: What the values are, in words.

    Raises:
      InputError: They have no names, or their number is not that of the tasks.
    """
    if isinstance(values, Mapping):
        if not values:  # For targets="own" there may be none.
            return {}
        keys = [name for name in names if name in values] if names else list(values)
        if names and not keys:
            raise InputError(
                f"The {what} must be named after the tasks ({', '.join(names)}); got "
                f"{', '.join(map(str, values)) or 'none'}."
            )
        return {name: values[name] for name in keys}
    items = values if isinstance(values, list | tuple) else [values]
    if len(items) != len(names):
        raise InputError(
            f"The {what} must be a dict by task, or a list with one for each task, in "
            f"order; got {len(items)} for {len(names)} "
            f"tasks{': ' + ', '.join(names) if names else '; name them by tasks='}."
        )
    return dict(zip(names, items, strict=True))


def check_named(values: Any, targets: Collection[str], what: str) -> None:
    """Raises `InputError` for a value that is named after none of the targets.

    Args:
      values: By name; anything else is not checked.
      targets: The names of all targets.
      what: What a value is, in words.
    """
    for name in values if isinstance(values, Mapping) else ():
        if name not in targets:
            raise InputError(
                f"A {what} must be named after a target "
                f"({', '.join(targets) or 'there is none'}), but one is named "
                f"{name!r}; rename it or leave it out.{did_you_mean(name, targets)}"
            )


def _parts(examples: Any) -> Iterable[Any]:
    """Returns the examples or batches in their order."""
    if _is_batch(examples):
        return [examples]
    if hasattr(examples, "as_numpy_iterator"):
        return examples.as_numpy_iterator()
    is_sequence = hasattr(examples, "__getitem__") and hasattr(examples, "__len__")
    is_iterable = is_sequence or hasattr(examples, "__iter__")
    if isinstance(examples, Mapping) or not is_iterable:
        raise InputError(
            "examples must be an iterable or a tf.data.Dataset of examples or batches, "
            '{"image": ..., "targets": {task: ...}} or (image, targets), or one such '
            f"batch; got a {type(examples).__name__}."
        )
    if is_sequence:  # Also a PyDataset.
        return (examples[i] for i in range(len(examples)))
    return examples


def _is_batch(examples: Any) -> bool:
    """Whether it is one batch, rather than many: it has an array of images itself."""
    if isinstance(examples, Mapping):
        return "image" in examples
    try:
        return isinstance(examples, tuple) and np.ndim(examples[0]) == _BATCH
    except (IndexError, TypeError, ValueError):
        return False  # It is empty, or begins with an example.


def _triple(
    part: Any, names: Sequence[str], all_tasks: TaskSet
) -> tuple[np.ndarray, dict, dict]:
    """Returns an image or images, and targets and masks by task."""
    if isinstance(part, Mapping):
        unknown_keys = set(part) - {"image", "targets", "masks", "name", "inputs"}
        if unknown_keys or "image" not in part:
            raise InputError(
                'An example must have "image" and "targets" (none for targets="own"), '
                'and may have "masks" and "inputs"; got '
                f"{', '.join(map(repr, part))}."
            )
        image, targets = part["image"], part.get("targets", {})
        masks = part.get("masks")
    elif isinstance(part, tuple | list) and len(part) in (2, 3):
        image, targets, *mask_list = part
        masks = mask_list[0] if mask_list else None
    elif hasattr(part, "shape") and len(part.shape) in (_BATCH - 1, _BATCH):
        image, targets, masks = part, {}, None  # For targets="own".
    else:
        raise InputError(
            'An example must be {"image": ..., "targets": {task: ...}}, (image, '
            "targets) or (image, targets, masks); got one of type "
            f"{type(part).__name__}."
        )
    raw_targets = targets if isinstance(targets, Mapping) else ()
    targets = _full_names(targets, all_tasks)
    masks = _full_names(masks, all_tasks, raw_targets)
    mask_names = list(targets) if isinstance(targets, Mapping) else names
    targets = by_task(targets, names, "targets")
    check_named(masks, mask_names, "mask")
    if isinstance(masks, Mapping):  # There may be masks of other targets.
        masks = {name: mask for name, mask in masks.items() if name in targets}
    masks = {} if masks is None else by_task(masks, names or mask_names, "masks")
    return _array("image", image), _arrays("target", targets), _arrays("mask", masks)


def _full_names(values: Any, all_tasks: TaskSet, targets: Collection[Any] = ()) -> Any:
    """Returns values by task under the tasks' full names; other values unchanged.

    For masks, `targets` are the names of the targets as they were given.
    """
    if not isinstance(values, Mapping) or not values:
        return values
    full_names = {key: canonical([str(key)], all_tasks.values())[0] for key in values}
    # If a task's full name is present too, its other name may mean something else.
    names = [
        key if name in values or (key in targets and name in targets) else name
        for key, name in full_names.items()
    ]
    return dict(zip(canonical(names, ()), values.values(), strict=True))


def _arrays(what: str, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: _array(f"{what} {name}", value) for name, value in values.items()}


def _array(what: str, value: Any) -> np.ndarray:
    return as_array(value, f"{what} of an example")
