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
    split: str, given: Any, rules: Rules, readers: Readers | None = None
) -> Columns:
    """Opens a split: lazily if it can be indexed and is no list, else into memory.

    Args:
      split: its name.
      given: a sequence, iterable or tf.data.Dataset of examples.
      rules: what targets may be. A lazy split of classes needs their number.
      readers: who reads a lazy split; None for one reader of its own.

    Raises:
      InputError: it is no such thing, is empty or endless, or its examples are wrong
        or differ in size or tasks (lazy ones: the first one now, others when read).
    """
    readable = hasattr(given, "__iter__") or _is_lazy(given)
    if isinstance(given, Mapping | str | bytes) or not readable:
        raise InputError(
            f"The split {split} must be a sequence, a generator or a tf.data.Dataset "
            f"of examples, but is of type {type(given).__name__}."
        )
    if _is_lazy(given):
        return _lazy(split, given, rules, readers or Readers())
    return _in_memory(split, given, rules)


def check_alike(splits: Mapping[str, Columns]) -> None:
    """Raises InputError unless images and targets have one shape in all splits."""
    (first_name, first), *others = splits.items()
    for name, columns in others:
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
            here, there = target.shape[1:], first.targets[task].shape[1:]
            if here != there:
                raise InputError(
                    f"All targets of {task} must have the same shape, but those of "
                    f"{name} have {list(here)} and those of {first_name} "
                    f"{list(there)}."
                )


def in_order_of(first: Columns, columns: Columns) -> Columns:
    """Columns with inputs in the order of the first ones: so they are packed."""
    known = {n: columns.inputs[n] for n in first.inputs if n in columns.inputs}
    return dataclasses.replace(columns, inputs={**known, **columns.inputs})


def unknown(columns: Columns) -> list[str]:
    """The tasks whose targets no example has, of masks in memory."""
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
    """A column whose rows are asked for when they are needed."""

    def __init__(
        self,
        examples: LazyExamples,
        pick: Callable[[Example], np.ndarray],
        like: np.ndarray,
    ):
        """`pick` takes this column's array, of the kind of `like`, from an example."""
        self._examples = examples
        self._pick = pick
        self.shape = (len(examples), *like.shape)
        self.dtype = like.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        rows = np.arange(len(self))[rows]
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for place, example in enumerate(self._examples.read(rows)):
            found[place] = self._pick(example)
        return found


class LazyExamples:
    """A user's sequence, checked example by example.

    A batch reads the same rows of several columns: each thread keeps the examples that
    it has read last. The sequence itself is asked by `readers`.
    """

    def __init__(self, split: str, sequence: Sequence, rules: Rules, readers: Readers):
        self._split = split
        self._sequence = sequence
        self._rules = rules
        self._readers = readers
        self._last = threading.local()
        (raw,) = readers.read(self._raw, [0])
        self.first = self._check(0, raw, None)

    def __len__(self) -> int:
        return len(self._sequence)

    def read(self, rows: np.ndarray) -> list[Example]:
        """The examples of int64 [n] rows."""
        key = rows.tobytes()
        if getattr(self._last, "key", None) != key:
            rows = rows.tolist()
            raw = self._readers.read(self._raw, rows)
            self._last.examples = [
                self._check(*pair, self.first) for pair in zip(rows, raw, strict=True)
            ]
            self._last.key = key
        return self._last.examples

    def _raw(self, row: int) -> Any:
        with _reading(self._where(row)):
            return self._sequence[row]

    def _check(self, row: int, raw: Any, first: Example | None) -> Example:
        return examples.check(raw, self._where(row), self._rules, first)

    def _where(self, row: int) -> str:
        return f"example {row} of {self._split}"


def _is_lazy(examples: Any) -> bool:
    return (
        hasattr(examples, "__len__")
        and hasattr(examples, "__getitem__")
        and not isinstance(examples, list | tuple)
    )


def _lazy(split: str, sequence: Sequence, rules: Rules, readers: Readers) -> Columns:
    if not len(sequence):
        raise _empty(split)
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


def _in_memory(split: str, given: Iterable, rules: Rules) -> Columns:
    found: list[Example] = []
    may_change = not isinstance(given, list | tuple)  # Generators may reuse an array.
    with _counted(split, given) as (iterator, advance):
        while True:
            where = f"example {len(found)} of {split}"
            with _reading(where):
                raw = next(iterator, _END)
            if raw is _END:
                break
            first = found[0] if found else None
            made = examples.check(raw, where, rules, first)
            if may_change:  # All but bytes of images is in arrays of our own.
                made = dataclasses.replace(made, image=made.image.copy())
            found.append(made)
            advance(1)
    if not found:
        raise _empty(split)
    images = np.stack([example.image for example in found])
    targets, masks = {}, {}
    for task in found[0].targets:
        targets[task] = np.stack([example.targets[task] for example in found])
        if rules.tasks[task].discrete and targets[task].max() < 256:
            targets[task] = targets[task].astype(np.uint8)
        known = np.stack([example.masks[task] for example in found])
        if not known.all():
            masks[task] = known
    names = [example.name for example in found]
    inputs = {
        name: np.stack([example.inputs[name] for example in found])
        for name in found[0].inputs
    }
    kept = names if any(names) else ()
    return Columns(images, targets, masks, kept, inputs=inputs)


@contextlib.contextmanager
def _counted(split: str, examples: Any) -> Iterator[tuple[Iterator, Callable]]:
    """Gives an iterator, and what is to be called for each example: a progress bar.

    Nothing is shown of generators, whose length nobody knows.
    """
    total = len(examples) if isinstance(examples, list | tuple) else -1
    if hasattr(examples, "as_numpy_iterator"):
        total = int(examples.cardinality())
        if total == -1:  # tf.data.INFINITE_CARDINALITY
            raise InputError(
                f"The split {split} must end, but its tf.data.Dataset repeats "
                "forever; leave out .repeat()."
            )
        examples = examples.as_numpy_iterator()
    if total < 1:
        yield iter(examples), lambda n: None
        return
    with progress.bar(total, f"reading {split}", "examples") as advance:
        yield iter(examples), advance


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turns what a user's code raises into one sentence."""
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


def _empty(split: str) -> InputError:
    return InputError(
        f"The split {split} must have at least one example, but it is empty."
    )
