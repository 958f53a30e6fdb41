# SPDX-License-Identifier: Apache-2.0
"""Finished cells on disk, so that none is run twice.

    cells/HASH.json   scores of one cell; HASH is of all they depend on
    cells/HASH.npz    its rows per image and pictures (see `cell_files`)
    examples/*.npz    its first examples unpainted, on request; of an ensemble, for
                      each image those of the member that did most harm

The JSON file is written last: a cell is finished if this file exists.
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

_LONGEST_GROUP = 80  # Characters at most of a group of tasks in file names.
_LONGEST_LABEL = files.LONGEST_NAME - 19  # Bytes of a name with room for `name_beside`.
_ROWS = 16  # Examples that are read at a time.
_FINGERPRINT_IMAGES = 64  # At most.
_FORMAT = 4  # Version of the files; cells of other versions are run again.


@dataclasses.dataclass(frozen=True)
class Store:
    """The finished cells of one folder, about one model and one set of examples.

    Attributes:
      folder: The folder.
      facts: What results depend on besides the attack, as JSON: fingerprints of weights
        and data, tasks, seed, versions.
      save_examples: How many examples a finished cell must have saved.
      tasks: The scored tasks.
    """

    folder: pathlib.Path
    facts: Mapping[str, Any]
    save_examples: int = 0
    tasks: Mapping[str, Task] = dataclasses.field(default_factory=lambda: TASKS)

    def write(self, result: Result, examples: Examples | None = None) -> None:
        """Stores a finished cell, and its examples if given and requested."""
        if self.save_examples and examples:
            arrays = {n: a[: self.save_examples] for n, a in _arrays(examples).items()}
            store.write_arrays(self._examples_path(result.cell), arrays)
        content, arrays = cell_files.contents(result)
        self._store.write(self._key(result.cell), content, arrays)

    def choose_examples(self, cell: Cell, choice: np.ndarray) -> None:
        """Saves the examples of an ensemble, taken from those of its members.

        Args:
          cell: The ensemble.
          choice: The number of the member to take for each image, int `[N]`.

        Raises:
          InputError: A member's file is damaged.
        """
        choice = choice[: self.save_examples]
        arrays: dict[str, np.ndarray] = {}
        for number, member in enumerate(cell.members):
            path = self._examples_path(member)
            try:
                for name, values in store.read_arrays(path).items():
                    values = values[: len(choice)]
                    selection = arrays.setdefault(name, values)
                    selection[choice == number] = values[choice == number]
            except files.DAMAGED as error:
                raise InputError(
                    f"{path} must hold the examples of {member.label}, but is damaged "
                    f"({files.reason(error)}); delete it, and repeat the command."
                ) from error
        store.write_arrays(self._examples_path(cell), arrays)

    def read(self, cell: Cell | None) -> Result | None:
        """The finished cell; None if it is missing or, with a warning, damaged."""
        entry = self._store.read(self._key(cell))
        if entry is None:
            return None
        try:
            result = cell_files.result_of(cell, entry.content, entry.arrays)
            if self._lacks_metrics(result):
                return None
            result = cell_files.only(result, self._metrics)
            if not entry.sealed:
                _check_scores(result, self.facts["seed"], self.tasks)
            return result if self._has_examples(result) else None
        except files.DAMAGED as error:
            files.say_damaged(self._path(cell), error)
            return None

    def filed(self, result: Result) -> Result:
        """The finished cell with arrays that are read from its file when needed."""
        path = self._path(result.cell).with_suffix(".npz")
        return cell_files.filed(result, path)

    @functools.cached_property
    def _metrics(self) -> dict[str, tuple[str, ...]]:
        """The names of the rows of each task."""
        return {
            name: (*(metric.name for metric in task.all_metrics), NOT_FINITE)
            for name, task in self.tasks.items()
        }

    def _lacks_metrics(self, result: Result) -> bool:
        """Whether rows of the tasks' additional metrics are missing; logs this once."""
        for task, rows in result.rows.items():
            missing = [m.name for m in self.tasks[task].more if m.name not in rows]
            if missing:
                logging.log_first_n(
                    logging.INFO,
                    "finished attacks in %s lack %s for %s, so they are run again",
                    1,
                    self.folder,
                    ", ".join(missing),
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
        """The file with a cell's rows per image: arrays `row/TASK/METRIC`."""
        path = self._path(cell).with_suffix(".npz")
        return path.relative_to(self.folder).as_posix()

    def label(self, cell: Cell | None) -> str:
        """A unique name for files about a cell."""
        mark = self._path(cell).stem[:8]
        if not cell:
            return f"clean_{mark}"
        group = cell.group
        if len(group) > _LONGEST_GROUP:
            group = f"{len(cell.tasks)}_tasks"
        suffix = f"_{group}_eps{cell.eps:g}_{mark}"
        return files.cut(cell.label, _LONGEST_LABEL - len(suffix)) + suffix

    def _examples_path(self, cell: Cell | None) -> pathlib.Path:
        return self.folder / "examples" / f"{self.label(cell)}.npz"

    def _has_examples(self, result: Result) -> bool:
        count = min(self.save_examples, result.count)
        path = self._examples_path(result.cell)
        if not count:
            return True
        if not path.exists():
            return False
        with np.load(path) as arrays:
            return len(arrays["image"]) >= count


def _check_scores(result: Result, seed: int, tasks: Mapping[str, Task]) -> None:
    """Raises `ValueError` unless the numbers of a result are those of its rows.

    For cells of versions that wrote no checksum. The scores of clean images against the
    targets of a targeted attack do not follow from its rows, and are not checked.
    """
    units = None if result.unit is None else resampling.Units(result.unit, "")
    expected = scores.of_rows(result.rows, seed, units, tasks)
    wanted = scores.wanted(result.wanted, result.wanted_rows, tasks)
    matches = _is_close(result.scores, expected) and _is_close(result.wanted, wanted)
    lengths = {len(a) for rows in result.rows.values() for a in rows.values()}
    if not matches or lengths != {result.count}:
        raise ValueError("its numbers do not match its rows")


def _is_close(content: Any, expected: Any) -> bool:
    """Whether the contents of two JSON files are equal, numbers up to rounding."""
    if isinstance(expected, Mapping):
        return content.keys() == expected.keys() and all(
            _is_close(content[k], expected[k]) for k in content
        )
    if isinstance(expected, list):
        return len(content) == len(expected) and all(map(_is_close, content, expected))
    if content is None or expected is None:
        return content is expected
    return math.isclose(content, expected, rel_tol=1e-9, abs_tol=1e-12)


def images_fingerprint(columns: Columns, num_examples: int) -> str:
    """The images' size, and the means of the first, the last, and at most 64 images.

    No hash, since the last bit of a float may depend on the machine.
    """
    count = min(num_examples, len(columns))
    shape = "x".join(map(str, columns.images.shape[1:]))
    rows = np.unique(
        np.linspace(0, count - 1, min(count, _FINGERPRINT_IMAGES), dtype=int)
    )
    means = [np.mean(columns.images[row : row + 1], dtype=float) for row in rows]
    if np.issubdtype(columns.images.dtype, np.integer):
        means = [mean / 255 for mean in means]
    summary = (means[0], means[-1], float(np.mean(means)))
    return " ".join([shape, *(f"{mean:.5f}" for mean in summary)])


def data_fingerprint(
    columns: Columns, num_examples: int, targeted: bool = False
) -> str:
    """A hash of the images, targets, masks and groups that are evaluated.

    For targeted attacks on a part of a split, the hash includes the wanted targets.
    """
    digest = hashlib.sha256()

    def add(parts: Mapping[str, Any], rows: np.ndarray, description: str = "") -> None:
        for name in sorted(parts):
            array = parts[name]
            shape = (len(rows), *array.shape[1:])
            digest.update(f"{name} {description or f'{array.dtype} {shape}'};".encode())
            for start in range(0, len(rows), _ROWS):  # It may exceed the memory.
                block = array[rows[start : start + _ROWS]]
                digest.update(np.ascontiguousarray(block).data)

    count = len(columns)
    indices = np.arange(min(num_examples, count))
    labels = dict(columns.targets)
    labels |= {f"mask of {task}": mask for task, mask in columns.masks.items()}
    inputs = {f"input {name}": column for name, column in columns.inputs.items()}
    add({"images": columns.images} | labels | inputs, indices)
    if targeted and num_examples < count:
        add(labels, batching.partners(indices, count), f"of {count}")
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
