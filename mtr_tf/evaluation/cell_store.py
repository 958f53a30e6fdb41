# SPDX-License-Identifier: Apache-2.0
"""Finished cells on disk, so that none is run twice.

    cells/HASH.json   scores of one cell; HASH is of all that they depend on
    cells/HASH.npz    its rows per image (see `evaluation`), the unit of each image that
                      intervals draw, its first examples, painted
    examples/*.npz    its first examples as they are, if asked for

The JSON file is written last: a cell is finished if it is there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtr_tf.data.source import Columns
from mtr_tf.errors import present
from mtr_tf.evaluation import resampling
from mtr_tf.evaluation.evaluator import Examples
from mtr_tf.evaluation.evaluator import Rows
from mtr_tf.evaluation.plan import Cell
from mtr_tf.runs import store
from mtr_tf.tasks import TASKS

_ROWS = 16  # Examples that are read at once.
_FORMAT = 4  # Of the files; cells of another number are not known.


@dataclasses.dataclass(frozen=True)
class Result:
    """What one cell, or the clean images (`cell` None), came to.

    Attributes:
      cell: The attack.
      scores: {task: {metric: {"value": float or None, "interval": [low, high]}}}.
      count: How many images.
      pictures: Painted examples, uint8 `[M, H, W, 3]`: {image}, {target/<task>},
        {output/<task>}, and of an attack {adversarial} and {perturbation}.
      rows: What the scores are of, image by image.
      wanted: Of a targeted attack, {task: {metric: {"clean": float or None,
        "attacked": ...}}} against the targets that it is after; else empty.
      wanted_rows: The rows of the attacked images behind that.
      aimed_rows: Of an attack on some of the output pixels, the attacked tasks' rows of
        the attacked images over these pixels, against the targets it is after.
      before_rows: Of an attack judged by comparison with the clean images, the attacked
        tasks' rows of these, over those pixels and against those targets.
      unit: int64 `[count]`, the unit of each image that intervals draw (`resampling`).
    """

    cell: Cell | None
    scores: dict[str, dict[str, dict[str, Any]]]
    count: int
    pictures: dict[str, np.ndarray]
    rows: Rows = dataclasses.field(default_factory=dict)
    wanted: dict[str, dict[str, dict[str, Any]]] = dataclasses.field(
        default_factory=dict
    )
    wanted_rows: Rows = dataclasses.field(default_factory=dict)
    aimed_rows: Rows = dataclasses.field(default_factory=dict)
    before_rows: Rows = dataclasses.field(default_factory=dict)
    unit: np.ndarray | None = None

    @property
    def attack_cell(self) -> Cell:
        """The attack, of a result that is not that of the clean images."""
        return present(self.cell, "the cell of an attack")

    @property
    def views(self) -> dict[str, Rows]:
        """All rows, as they are called in files."""
        return {
            "row": self.rows,
            "wanted": self.wanted_rows,
            "aimed": self.aimed_rows,
            "before": self.before_rows,
        }


@dataclasses.dataclass(frozen=True)
class Store:
    """The finished cells of one folder, about one model and one set of examples.

    Attributes:
      folder: Where they are.
      facts: What results depend on beside the attack, as JSON: fingerprints of weights
        and data, tasks, seed, versions.
      save_examples: A cell counts as finished only with so many examples saved.
    """

    folder: pathlib.Path
    facts: Mapping[str, Any]
    save_examples: int = 0

    def write(self, result: Result, examples: Examples | None = None) -> None:
        """Keeps a finished cell, and its examples if they are asked for and there."""
        if self.save_examples and examples:
            store.write_arrays(self._examples(result.cell), _arrays(examples))
        arrays = {f"picture/{name}": a for name, a in result.pictures.items()}
        if result.unit is not None:
            arrays["unit"] = result.unit
        for view, rows in result.views.items():
            for task, by_metric in rows.items():
                arrays |= {f"{view}/{task}/{m}": a for m, a in by_metric.items()}
        content = {
            "count": result.count,
            "scores": result.scores,
            "wanted": result.wanted,
        }
        self._store.write(self._key(result.cell), content, arrays)

    def read(self, cell: Cell | None) -> Result | None:
        """The finished cell; None if there is none, or (warning) a damaged one."""
        entry = self._store.read(self._key(cell))
        if entry is None:
            return None
        content, arrays = entry.content, entry.arrays
        try:
            result = Result(
                cell,
                _scores(content["scores"]),
                content["count"],
                _part(arrays, "picture"),
                _rows(arrays, "row"),
                content["wanted"],
                _rows(arrays, "wanted"),
                _rows(arrays, "aimed"),
                _rows(arrays, "before"),
                arrays.get("unit"),
            )
            if not entry.sealed:
                _check_values(result)
            return result if self._examples_saved(result) else None
        except store.DAMAGED as error:
            store.say_damaged(self._path(cell), error)
            return None

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
        name = f"{cell.label}_{cell.group}_eps{cell.eps:g}" if cell else "clean"
        return f"{name}_{self._path(cell).stem[:8]}"

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


def _part(arrays: Mapping[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """Those whose names begin with `kind/`, by the rest of the name."""
    return {
        name.removeprefix(f"{kind}/"): array
        for name, array in arrays.items()
        if name.startswith(f"{kind}/")
    }


def _rows(arrays: Mapping[str, np.ndarray], kind: str) -> Rows:
    rows: Rows = {}
    for name, array in _part(arrays, kind).items():
        task, metric = name.split("/")
        rows.setdefault(task, {})[metric] = array
    return rows


def _scores(scores: dict) -> dict:
    """The scores as they are, once it is sure that all parts are there."""
    for by_metric in scores.values():
        for score in by_metric.values():
            for number in (score["value"], *score["interval"]):
                float(number or 0)  # None stands for NaN.
    return scores


def _check_values(result: Result) -> None:
    """Raises ValueError unless the scores are those of the rows, as far as these go."""
    for task, by_metric in result.scores.items():
        for metric in TASKS[task].metrics:
            value = by_metric[metric.name]["value"]
            rows = result.rows[task][metric.name]
            from_rows = float(metric.value(rows.sum(axis=0, dtype=float)))
            known = math.nan if value is None else value
            if not np.isclose(known, from_rows, rtol=1e-9, atol=1e-12, equal_nan=True):
                raise ValueError(f"{task} {metric.name} is not that of its rows")


def data_fingerprint(columns: Columns, num_examples: int) -> str:
    """A hash of the images, targets, masks and groups that are evaluated."""
    digest = hashlib.sha256()
    parts = {"images": columns.images, **columns.targets}
    parts |= {f"mask of {task}": mask for task, mask in columns.masks.items()}
    for name in sorted(parts):
        array = parts[name]
        shape = (min(num_examples, len(array)), *array.shape[1:])
        digest.update(f"{name} {array.dtype} {shape};".encode())
        for first in range(0, shape[0], _ROWS):  # It may not fit into memory.
            rows = np.arange(first, min(first + _ROWS, shape[0]))
            digest.update(np.ascontiguousarray(array[rows]).data)
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
