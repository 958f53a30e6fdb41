# SPDX-License-Identifier: Apache-2.0
"""What a cell came to, and how that is told in files (see `runs.store`).

    JSON     count, scores and wanted, as in `Result`
    arrays   row/TASK/METRIC, wanted/..., aimed/..., before/...   rows per image
             picture/NAME                                         painted examples
             unit                                                 what intervals draw

Reading needs no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from mtr_tf.errors import present
from mtr_tf.runs import store

if TYPE_CHECKING:
    from mtr_tf.evaluation.evaluator import Rows
    from mtr_tf.evaluation.plan import Cell


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


def contents(result: Result) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What is kept of a result: what JSON says of it, and arrays."""
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
    return content, arrays


def result_of(
    cell: Cell | None, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> Result:
    """The result that `contents` was given.

    Raises:
      KeyError, ValueError: Something is not there, or not named as it must be.
    """
    return Result(
        cell,
        content["scores"],
        content["count"],
        _part(arrays, "picture"),
        _rows(arrays, "row"),
        content["wanted"],
        _rows(arrays, "wanted"),
        _rows(arrays, "aimed"),
        _rows(arrays, "before"),
        arrays.get("unit"),
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
    rows: Rows = {}
    for name, array in _part(arrays, kind).items():
        task, metric = name.split("/")
        rows.setdefault(task, {})[metric] = array
    return rows
