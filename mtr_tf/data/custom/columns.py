# SPDX-License-Identifier: Apache-2.0
"""The columns of a user's own split, in memory or read when needed."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtr_tf.cli import progress
from mtr_tf.data.custom import examples
from mtr_tf.data.custom.examples import Example
from mtr_tf.data.custom.examples import Rules
from mtr_tf.data.custom.readers import Readers
from mtr_tf.data.source import Columns
from mtr_tf.errors import InputError

_END = object()


def open_split(
    split: str, data: Any, rules: Rules, readers: Readers | None = None
) -> Columns:
    """Opens a split: lazily if it can be indexed and is not a list, else into memory.

    Args:
      split: its name.
      data: a sequence, iterable or tf.data.Dataset of examples.
      rules: what targets may be. A lazy split of classes needs their number.
      readers: the readers of a lazy split; None for a single reader.

    Raises:
      InputError: the split is of another type, empty or endless, or its examples are
        wrong or differ in size or tasks (if it is lazy, the first example is checked
        now, the others when they are read).
    """
    readable = hasattr(data, "__iter__") or _is_lazy(data)
    if isinstance(data, Mapping | str | bytes) or not readable:
        raise InputError(
            f"The split {split} must be a sequence, a generator or a tf.data.Dataset "
            f"of examples, but is of type {type(data).__name__}."
        )
    if _is_lazy(data):
        return _open_lazily(split, data, rules, readers or Readers())
    return _read_all(split, data, rules)


def check_alike(splits: Mapping[str, Columns]) -> None:
    """Raises InputError unless images and targets have one shape in all splits."""
    (first_name, first), *other_splits = splits.items()
    for name, columns in other_splits:
        shape, first_shape = columns.images.shape[1:], first.images.shape[1:]
        if shape != first_shape:
            raise InputError(
                f"All splits must have images of the same size, but those of {name} "
                f"are {examples.size(shape)} and those of {first_name} "
                f"{examples.size(first_shape)}."
            )
        if set(columns.targets) != set(first.targets):
            raise InputError(
                "All splits must have the same tasks, but "
                f"{name} has {examples.listed(columns.targets)} and {first_name} "
                f"{examples.listed(first.targets)}."
            )
        if columns.layout != first.layout:
            raise InputError(
                "All splits must have the same inputs with the same shapes, but "
                f"{name} has {columns.layout or 'none'} and {first_name} "
                f"{first.layout or 'none'}."
            )
        for task, target in columns.targets.items():
            dims, first_dims = target.shape[1:], first.targets[task].shape[1:]
            if dims != first_dims:
                raise InputError(
                    f"All targets of {task} must have the same shape, but those of "
                    f"{name} have {list(dims)} and those of {first_name} "
                    f"{list(first_dims)}."
                )


def in_order_of(first: Columns, columns: Columns) -> Columns:
    """The columns with inputs in the order of `first`, in which they are packed."""
    ordered = {n: columns.inputs[n] for n in first.inputs if n in columns.inputs}
    return dataclasses.replace(columns, inputs={**ordered, **columns.inputs})


def unknown(columns: Columns) -> list[str]:
    """The tasks whose targets no example has, of those with masks in memory."""
    masks = columns.masks.items()
    return [t for t, mask in masks if isinstance(mask, np.ndarray) and not mask.any()]


class First:
    """The first `count` of some examples (0: all), and whether there were more."""

    def __init__(self, examples: Iterable[dict[str, Any]], count: int):
        self._examples, self._count, self.is_cut = examples, count, False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, example in enumerate(self._examples):
            if self._count and number == self._count:
                self.is_cut = True
                return
            yield example


class LazyColumn:
    """A column whose rows are read when they are needed."""

    def __init__(
        self,
        examples: LazyExamples,
        pick: Callable[[Example], np.ndarray],
        template: np.ndarray,
    ):
        """`pick` takes its array, with `template`'s shape and type, from an example."""
        self._examples = examples
        self._pick = pick
        self.shape = (len(examples), *template.shape)
        self.dtype = template.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        rows = np.arange(len(self))[rows]
        values = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for place, example in enumerate(self._examples.read(rows)):
            values[place] = self._pick(example)
        return values


class LazyExamples:
    """A user's sequence, checked example by example.

    A batch reads the same rows of several columns, so each thread keeps the examples
    that it has read last. Only `readers` read the sequence itself.
    """

    def __init__(self, split: str, sequence: Sequence, rules: Rules, readers: Readers):
        self._split = split
        self._sequence = sequence
        self._rules = rules
        self._readers = readers
        self._last = threading.local()
        (raw,) = readers.read(self._read_row, [0])
        self.first = self._check(0, raw, None)

    def __len__(self) -> int:
        return len(self._sequence)

    def read(self, rows: np.ndarray) -> list[Example]:
        """The examples of int64 [n] rows."""
        key = rows.tobytes()
        if getattr(self._last, "key", None) != key:
            rows = rows.tolist()
            raw = self._readers.read(self._read_row, rows)
            self._last.examples = [
                self._check(*pair, self.first) for pair in zip(rows, raw, strict=True)
            ]
            self._last.key = key
        return self._last.examples

    def _read_row(self, row: int) -> Any:
        with _explain_errors(self._where(row)):
            return self._sequence[row]

    def _check(self, row: int, raw: Any, first: Example | None) -> Example:
        return examples.check(raw, self._where(row), self._rules, first)

    def _where(self, row: int) -> str:
        return f"example {row} of {self._split}"


def _is_lazy(data: Any) -> bool:
    return (
        hasattr(data, "__len__")
        and hasattr(data, "__getitem__")
        and not isinstance(data, list | tuple)
    )


def _open_lazily(
    split: str, sequence: Sequence, rules: Rules, readers: Readers
) -> Columns:
    if not len(sequence):
        raise _empty_error(split)
    lazy = LazyExamples(split, sequence, rules, readers)
    first = lazy.first
    for task in first.targets:
        if rules.tasks[task].discrete and rules.tasks[task].channels is None:
            raise InputError(
                f'The classes must be named ("classes": [...]), because {split} is '
                f"read example by example, so the number of classes of {task} is not "
                "known."
            )
    targets, masks = {}, {}
    for task, target in first.targets.items():
        targets[task] = LazyColumn(lazy, lambda e, t=task: e.targets[t], target)
        masks[task] = LazyColumn(lazy, lambda e, t=task: e.masks[t], first.masks[task])
    images = LazyColumn(lazy, lambda example: example.image, first.image)
    inputs = {
        name: LazyColumn(lazy, lambda e, n=name: e.inputs[n], value)
        for name, value in first.inputs.items()
    }
    return Columns(images, targets, masks, inputs=inputs)


def _read_all(split: str, data: Iterable, rules: Rules) -> Columns:
    all_examples: list[Example] = []
    may_change = not isinstance(data, list | tuple)  # Generators may reuse an array.
    with _with_progress(split, data) as (iterator, advance):
        while True:
            where = f"example {len(all_examples)} of {split}"
            with _explain_errors(where):
                raw = next(iterator, _END)
            if raw is _END:
                break
            first = all_examples[0] if all_examples else None
            example = examples.check(raw, where, rules, first)
            if may_change:  # `check` has copied everything but uint8 images.
                example = dataclasses.replace(example, image=example.image.copy())
            all_examples.append(example)
            advance(1)
    if not all_examples:
        raise _empty_error(split)
    images = np.stack([example.image for example in all_examples])
    targets, masks = {}, {}
    for task in all_examples[0].targets:
        targets[task] = np.stack([example.targets[task] for example in all_examples])
        if rules.tasks[task].discrete and targets[task].max() < 256:
            targets[task] = targets[task].astype(np.uint8)
        mask = np.stack([example.masks[task] for example in all_examples])
        if not mask.all():
            masks[task] = mask
    all_names = [example.name for example in all_examples]
    inputs = {
        name: np.stack([example.inputs[name] for example in all_examples])
        for name in all_examples[0].inputs
    }
    names = all_names if any(all_names) else ()
    return Columns(images, targets, masks, names, inputs=inputs)


@contextlib.contextmanager
def _with_progress(split: str, data: Any) -> Iterator[tuple[Iterator, Callable]]:
    """Yields an iterator, and a function to call per example for a progress bar.

    No bar is shown for generators, whose length is not known.
    """
    total = len(data) if isinstance(data, list | tuple) else -1
    if hasattr(data, "as_numpy_iterator"):
        total = int(data.cardinality())
        if total == -1:  # tf.data.INFINITE_CARDINALITY
            raise InputError(
                f"The split {split} must end, but its tf.data.Dataset repeats "
                "forever; leave out .repeat()."
            )
        data = data.as_numpy_iterator()
    if total < 1:
        yield iter(data), lambda n: None
        return
    with progress.bar(total, f"reading {split}", "examples") as advance:
        yield iter(data), advance


@contextlib.contextmanager
def _explain_errors(where: str) -> Iterator[None]:
    """Turns any error of a user's code into `InputError` with one sentence."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise InputError(
            f"{where[0].upper()}{where[1:]} cannot be read: {type(error).__name__}: "
            f"{text}."
        ) from error


def _empty_error(split: str) -> InputError:
    return InputError(
        f"The split {split} must have at least one example, but it is empty."
    )
