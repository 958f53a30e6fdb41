# SPDX-License-Identifier: Apache-2.0
"""Finished cells on disk, so that none is run twice.

    cells/HASH.json   scores of one cell; HASH is of all that they depend on
    cells/HASH.npz    its rows per image and pictures (see `cell_files`)
    examples/*.npz    its first examples as they are, if asked for; of an ensemble, of
                      each image those of the member that did it most harm

The JSON file is written last: a cell is finished if it is there.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from mtr_tf import files
from mtr_tf.data import batching
from mtr_tf.data.source import Columns
from mtr_tf.errors import InputError
from mtr_tf.evaluation import cell_files
from mtr_tf.evaluation import resampling
from mtr_tf.evaluation import scores
from mtr_tf.evaluation.cell_files import Result
from mtr_tf.evaluation.evaluator import Examples
from mtr_tf.evaluation.plan import Cell
from mtr_tf.runs import store
from mtr_tf.tasks import NOT_FINITE
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import Task

_LONG = 80  # Characters of tasks that are attacked together, in names of files.
_LONGEST = files.LONGEST_NAME - 19  # Bytes of such a name, beside `name_beside`.
_ROWS = 16  # Examples that are read at once.
_SOME = 64  # Images, at most, that images are told from others by.
_FORMAT = 4  # Of the files; cells of another number are not known.


@dataclasses.dataclass(frozen=True)
class Store:
    """The finished cells of one folder, about one model and one set of examples.

    Attributes:
      folder: Where they are.
      facts: What results depend on beside the attack, as JSON: fingerprints of weights
        and data, tasks, seed, versions.
      save_examples: A cell counts as finished only with so many examples saved.
      tasks: Those that are looked at.
    """

    folder: pathlib.Path
    facts: Mapping[str, Any]
    save_examples: int = 0
    tasks: Mapping[str, Task] = dataclasses.field(default_factory=lambda: TASKS)

    def write(self, result: Result, examples: Examples | None = None) -> None:
        """Keeps a finished cell, and its examples if they are asked for and there."""
        if self.save_examples and examples:
            arrays = {n: a[: self.save_examples] for n, a in _arrays(examples).items()}
            store.write_arrays(self._examples(result.cell), arrays)
        content, arrays = cell_files.contents(result)
        self._store.write(self._key(result.cell), content, arrays)

    def choose_examples(self, cell: Cell, choice: np.ndarray) -> None:
        """Saves the examples of an ensemble, of those that its members have saved.

        Args:
          cell: The ensemble.
          choice: The number of the member that counts for each image, int `[N]`.

        Raises:
          InputError: A member's file is damaged.
        """
        choice = choice[: self.save_examples]
        arrays: dict[str, np.ndarray] = {}
        for number, member in enumerate(cell.members):
            path = self._examples(member)
            try:
                for name, values in store.read_arrays(path).items():
                    values = values[: len(choice)]
                    chosen = arrays.setdefault(name, values)
                    chosen[choice == number] = values[choice == number]
            except files.DAMAGED as error:
                raise InputError(
                    f"{path} must hold the examples of {member.label}, but is damaged "
                    f"({files.reason(error)}); delete it, and repeat the command."
                ) from error
        store.write_arrays(self._examples(cell), arrays)

    def read(self, cell: Cell | None) -> Result | None:
        """The finished cell; None if there is none, or (warning) a damaged one."""
        entry = self._store.read(self._key(cell))
        if entry is None:
            return None
        try:
            result = cell_files.result_of(cell, entry.content, entry.arrays)
            if self._lacks_metrics(result):
                return None
            result = cell_files.only(result, self._metrics)
            if not entry.sealed:
                _check(result, self.facts["seed"], self.tasks)
            return result if self._examples_saved(result) else None
        except files.DAMAGED as error:
            files.say_damaged(self._path(cell), error)
            return None

    def filed(self, result: Result) -> Result:
        """The finished cell with its arrays left in its file until they are used."""
        path = self._path(result.cell).with_suffix(".npz")
        return cell_files.filed(result, path)

    @functools.cached_property
    def _metrics(self) -> dict[str, tuple[str, ...]]:
        """What there are rows of, by task."""
        return {
            name: (*(metric.name for metric in task.all_metrics), NOT_FINITE)
            for name, task in self.tasks.items()
        }

    def _lacks_metrics(self, result: Result) -> bool:
        """Whether a metric was not asked for when the cell was run; says so once."""
        for task, rows in result.rows.items():
            more = [m.name for m in self.tasks[task].more if m.name not in rows]
            if more:
                logging.log_first_n(
                    logging.INFO,
                    "finished attacks in %s lack %s for %s, so they are run again",
                    1,
                    self.folder,
                    ", ".join(more),
                    task,
                )
                return True
        return False

    @property
    def _store(self) -> store.Store:
        return store.Store(self.folder / "cells")

    def _key(self, cell: Cell | None) -> dict[str, Any]:
        attack = cell.to_dict() if cell else {}
        return {"format": _FORMAT, **self.facts, "attack": attack}

    def _path(self, cell: Cell | None) -> pathlib.Path:
        return self._store.path(self._key(cell))

    def rows_file(self, cell: Cell | None) -> str:
        """Where a cell's rows per image are: arrays `row/TASK/METRIC`."""
        path = self._path(cell).with_suffix(".npz")
        return path.relative_to(self.folder).as_posix()

    def label(self, cell: Cell | None) -> str:
        """A name for files about a cell, which no other cell has."""
        mark = self._path(cell).stem[:8]
        if not cell:
            return f"clean_{mark}"
        group = cell.group
        if len(group) > _LONG:
            group = f"{len(cell.tasks)}_tasks"
        rest = f"_{group}_eps{cell.eps:g}_{mark}"
        return files.cut(cell.label, _LONGEST - len(rest)) + rest

    def _examples(self, cell: Cell | None) -> pathlib.Path:
        return self.folder / "examples" / f"{self.label(cell)}.npz"

    def _examples_saved(self, result: Result) -> bool:
        wanted = min(self.save_examples, result.count)
        path = self._examples(result.cell)
        if not wanted:
            return True
        if not path.exists():
            return False
        with np.load(path) as arrays:
            return len(arrays["image"]) >= wanted


def _check(result: Result, seed: int, tasks: Mapping[str, Task]) -> None:
    """Raises `ValueError` unless the numbers of a result are those of its rows.

    For cells of versions that wrote no checksum. What the clean images score against
    the targets of a targeted attack cannot be known from its rows.
    """
    units = None if result.unit is None else resampling.Units(result.unit, "")
    expected = scores.of_rows(result.rows, seed, units, tasks)
    wanted = scores.wanted(result.wanted, result.wanted_rows, tasks)
    same = _close(result.scores, expected) and _close(result.wanted, wanted)
    lengths = {len(a) for rows in result.rows.values() for a in rows.values()}
    if not same or lengths != {result.count}:
        raise ValueError("its numbers do not match its rows")


def _close(one: Any, other: Any) -> bool:
    """Whether two contents of JSON files are equal, numbers up to rounding."""
    if isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_close(one[k], other[k]) for k in one)
    if isinstance(other, list):
        return len(one) == len(other) and all(map(_close, one, other))
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)


def images_fingerprint(columns: Columns, num_examples: int) -> str:
    """The images' size, and the means of the first, of the last, and of at most 64.

    No hash, since the last bit of a float may depend on the machine.
    """
    count = min(num_examples, len(columns))
    shape = "x".join(map(str, columns.images.shape[1:]))
    rows = np.unique(np.linspace(0, count - 1, min(count, _SOME), dtype=int))
    means = [np.mean(columns.images[row : row + 1], dtype=float) for row in rows]
    if np.issubdtype(columns.images.dtype, np.integer):
        means = [mean / 255 for mean in means]
    shown = (means[0], means[-1], float(np.mean(means)))
    return " ".join([shape, *(f"{mean:.5f}" for mean in shown)])


def data_fingerprint(
    columns: Columns, num_examples: int, targeted: bool = False
) -> str:
    """A hash of the images, targets, masks and groups that are evaluated.

    Of targeted attacks on a part of a split also of the targets that they are after.
    """
    digest = hashlib.sha256()

    def add(parts: Mapping[str, Any], rows: np.ndarray, about: str = "") -> None:
        for name in sorted(parts):
            array = parts[name]
            shape = (len(rows), *array.shape[1:])
            digest.update(f"{name} {about or f'{array.dtype} {shape}'};".encode())
            for first in range(0, len(rows), _ROWS):  # It may not fit into memory.
                some = array[rows[first : first + _ROWS]]
                digest.update(np.ascontiguousarray(some).data)

    count = len(columns)
    looked_at = np.arange(min(num_examples, count))
    aims = dict(columns.targets)
    aims |= {f"mask of {task}": mask for task, mask in columns.masks.items()}
    inputs = {f"input {name}": column for name, column in columns.inputs.items()}
    add({"images": columns.images} | aims | inputs, looked_at)
    if targeted and num_examples < count:
        add(aims, batching.partners(looked_at, count), f"of {count}")
    if columns.groups is not None:
        units = resampling.units(columns.groups, num_examples)
        digest.update(f"{units.over};{units.of.tolist()}".encode())
    return digest.hexdigest()[:16]


def _arrays(examples: Examples) -> dict[str, np.ndarray]:
    """{image, adversarial, target/<task>, mask/<task>, output/<task>}, unpainted."""
    arrays = {"image": examples.image}
    if examples.adversarial is not None:
        arrays["adversarial"] = examples.adversarial
    for task, output in (examples.attacked or examples.clean).items():
        arrays[f"target/{task}"] = examples.targets[task]
        arrays[f"mask/{task}"] = examples.masks[task]
        arrays[f"output/{task}"] = output
    return arrays
