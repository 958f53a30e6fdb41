# SPDX-License-Identifier: Apache-2.0
"""The result of a cell, and how it is stored in files (see `runs.store`).

    JSON     count, scores and wanted, as in `Result`
    arrays   row/TASK/METRIC, wanted/..., aimed/..., before/...   rows per image
             consistent/TASK+TASK/MEASURE                         (`consistency`)
             picture/NAME                                         painted examples
             unit                                                 what intervals draw
             still                                                what did not move

Reading needs no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from mtr_tf import files
from mtr_tf.errors import InputError
from mtr_tf.errors import present
from mtr_tf.runs import store

if TYPE_CHECKING:
    from mtr_tf.evaluation.evaluator import Rows
    from mtr_tf.evaluation.plan import Cell


_VIEWS = {  # Fields of `Result` with rows, by what they are called in files.
    "row": "rows",
    "wanted": "wanted_rows",
    "aimed": "aimed_rows",
    "before": "before_rows",
    "consistent": "consistent_rows",
}


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of one cell, or of the clean images (`cell` is None).

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
        tasks' rows of these, over those pixels and against those targets; and those of
        the tasks that it spares.
      unit: int64 `[count]`, the unit of each image that intervals draw (`resampling`).
      still: bool `[count]`, whether the attack left an image as it was; None of the
        clean images, and of versions that did not look.
      consistent_rows: How well outputs agree that determine each other (`consistency`);
        empty where there are none, and of versions that did not look.
    """

    cell: Cell | None
    scores: dict[str, dict[str, dict[str, Any]]]
    count: int
    pictures: Mapping[str, np.ndarray]
    rows: Rows = dataclasses.field(default_factory=dict)
    wanted: dict[str, dict[str, dict[str, Any]]] = dataclasses.field(
        default_factory=dict
    )
    wanted_rows: Rows = dataclasses.field(default_factory=dict)
    aimed_rows: Rows = dataclasses.field(default_factory=dict)
    before_rows: Rows = dataclasses.field(default_factory=dict)
    unit: np.ndarray | None = None
    still: np.ndarray | None = None
    consistent_rows: Rows = dataclasses.field(default_factory=dict)

    @property
    def attack_cell(self) -> Cell:
        """The attack, of a result that is not that of the clean images."""
        return present(self.cell, "the cell of an attack")

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences to show wherever its numbers are shown."""
        cell = self.attack_cell
        if not cell.eps or self.still is None or not self.still.any():
            return cell.warnings
        return (
            *cell.warnings,
            f"{cell.label} on {cell.group} at eps {cell.eps:g} left "
            f"{int(self.still.sum())} of {self.count} images unchanged. This does not "
            "mean that they are robust: perhaps they have nothing to attack, the "
            "gradient is zero, or the model's outputs or the targets are NaN.",
        )

    @property
    def views(self) -> dict[str, Rows]:
        """All rows, as they are called in files."""
        return {view: getattr(self, field) for view, field in _VIEWS.items()}


@dataclasses.dataclass(frozen=True)
class Filed(Mapping[str, np.ndarray]):
    """Arrays that are read only when needed, so that a sweep holds few in memory.

    Attributes:
      path: The .npz file.
      prefix: What comes before their names in it.
      names: Their names.
    """

    path: pathlib.Path
    prefix: str
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        whole = f"{self.prefix}/{name}"
        try:
            with np.load(self.path, allow_pickle=False) as file:
                return file[whole]
        except files.DAMAGED as error:
            raise InputError(
                f"{self.path} was changed while it was in use; repeat the command to "
                "redo what is missing."
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def held(result: Result) -> Result:
    """The result with its arrays in memory, whatever becomes of its file."""
    return _with_arrays(
        result,
        dict(result.pictures),
        lambda view, task, by_metric: dict(by_metric),
    )


def filed(result: Result, path: pathlib.Path) -> Result:
    """The result with all arrays left in the .npz file that it was written to."""
    return _with_arrays(
        result,
        Filed(path, "picture", tuple(result.pictures)),
        lambda view, task, by_metric: Filed(path, f"{view}/{task}", tuple(by_metric)),
    )


def only(result: Result, metrics: Mapping[str, Sequence[str]]) -> Result:
    """The result with the rows of some metrics of each task, as far as there are any.

    Rows that are not those of a task stay as they are.
    """
    return _with_arrays(
        result,
        result.pictures,
        lambda view, task, by_metric: {
            name: by_metric[name]
            for name in by_metric
            if name in metrics.get(task, by_metric)
        },
    )


def _with_arrays(
    result: Result,
    pictures: Mapping[str, np.ndarray],
    rows_of: Callable[[str, str, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
) -> Result:
    """The result with other pictures, and rows `rows_of(view, task, its rows)`."""
    fields: dict[str, Any] = {
        _VIEWS[view]: {task: rows_of(view, task, rows[task]) for task in rows}
        for view, rows in result.views.items()
    }
    return dataclasses.replace(result, pictures=pictures, **fields)


def contents(result: Result) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What is kept of a result: what JSON says of it, and arrays."""
    arrays = {f"picture/{name}": a for name, a in result.pictures.items()}
    if result.unit is not None:
        arrays["unit"] = result.unit
    if result.still is not None:
        arrays["still"] = result.still
    for view, rows in result.views.items():
        for task, by_metric in rows.items():
            arrays |= {f"{view}/{task}/{m}": a for m, a in by_metric.items()}
    content = {
        "count": result.count,
        "scores": result.scores,
        "wanted": result.wanted,
    }
    return content, arrays


def result_of(
    cell: Cell | None, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> Result:
    """The result that `contents` was given.

    Raises:
      KeyError, ValueError: Something is not there, or not named as it must be.
    """
    rows: dict[str, Any] = {
        field: _rows(arrays, view) for view, field in _VIEWS.items()
    }
    return Result(
        cell,
        content["scores"],
        content["count"],
        _part(arrays, "picture"),
        wanted=content["wanted"],
        unit=arrays.get("unit"),
        still=arrays.get("still"),
        **rows,
    )


def read(path: pathlib.Path, prefix: str = "") -> Result:
    """The arrays of a cell, for readers of results.json; of any version.

    Args:
      path: What a record names as `rows` or `clean_rows`, in its folder.
      prefix: Only arrays whose names begin so.

    Raises:
      Exception: One of `files.DAMAGED`: missing, or not what was written.
    """
    beside = path.with_suffix(".json")
    if beside.exists():
        arrays = store.read_file(beside, prefix).arrays
    else:
        arrays = store.read_arrays(path, prefix)
    return result_of(None, {"scores": {}, "count": 0, "wanted": {}}, arrays)


def _part(arrays: Mapping[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """Those whose names begin with `kind/`, by the rest of the name."""
    return {
        name.removeprefix(f"{kind}/"): array
        for name, array in arrays.items()
        if name.startswith(f"{kind}/")
    }


def _rows(arrays: Mapping[str, np.ndarray], kind: str) -> Rows:
    rows: dict[str, dict[str, np.ndarray]] = {}
    for name, array in _part(arrays, kind).items():
        task, metric = name.split("/", 1)  # No task's name has a slash.
        rows.setdefault(task, {})[metric] = array
    return rows
