# SPDX-License-Identifier: Apache-2.0
"""The result of a cell, and how it is stored in files (see `runs.store`).

    JSON     count, scores, wanted and half, as in `Result`
    arrays   row/TASK/METRIC, wanted/..., aimed/..., before/...   rows per image
             consistent/TASK+TASK/MEASURE                         (`consistency`)
             picture/NAME                                         painted examples
             unit                                                 each image's unit
             still                                                unchanged images

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


_VIEWS = {  # Fields of `Result` with rows, by their names in files.
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
        {output/<task>}, and for an attack {adversarial} and {perturbation}.
      rows: The statistics behind the scores, image by image.
      wanted: For a targeted attack, {task: {metric: {"clean": float or None,
        "attacked": ...}}} against the wanted targets; else empty.
      wanted_rows: The rows of the attacked images behind `wanted`.
      aimed_rows: For an attack on some of the output pixels, rows of the attacked tasks
        on the attacked images, over these pixels and against the attack's targets.
      before_rows: For an attack judged by comparison with the clean images, rows of the
        attacked tasks on the clean images, over the same pixels and against the same
        targets; and rows of the spared tasks.
      unit: int64 `[count]`, the unit of each image that intervals draw (`resampling`).
      unchanged: bool `[count]`, whether the attack left an image as it was; None for
        the clean images, and in files of versions without it.
      consistent_rows: How well outputs that determine each other agree (`consistency`);
        empty if there are none, and in files of versions without it.
      half: The half precision that gradients were taken in by `--fast`; "" without it,
        and in files of versions without it, for which it was bfloat16.
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
    unchanged: np.ndarray | None = None
    consistent_rows: Rows = dataclasses.field(default_factory=dict)
    half: str = ""

    @property
    def attack_cell(self) -> Cell:
        """The attack; for results other than that of the clean images."""
        return present(self.cell, "the cell of an attack")

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences to show wherever the numbers are shown."""
        cell = self.attack_cell
        if not cell.eps or self.unchanged is None or not self.unchanged.any():
            return cell.warnings
        return (
            *cell.warnings,
            f"{cell.label} on {cell.group} at eps {cell.eps:g} left "
            f"{int(self.unchanged.sum())} of {self.count} images unchanged. This does "
            "not mean that they are robust: perhaps they have nothing to attack, the "
            "gradient is zero, or the model's outputs or the targets are NaN.",
        )

    @property
    def views(self) -> dict[str, Rows]:
        """All rows, by their names in files."""
        return {view: getattr(self, field) for view, field in _VIEWS.items()}


@dataclasses.dataclass(frozen=True)
class Filed(Mapping[str, np.ndarray]):
    """Arrays that are read from a file when needed, so that a sweep saves memory.

    Attributes:
      path: The .npz file.
      prefix: The prefix of their names in the file.
      names: Their names without the prefix.
    """

    path: pathlib.Path
    prefix: str
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        key = f"{self.prefix}/{name}"
        try:
            with np.load(self.path, allow_pickle=False) as file:
                return file[key]
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
    """The result with its arrays in memory, so that it does not need its file."""
    return _with_arrays(
        result,
        dict(result.pictures),
        lambda view, task, by_metric: dict(by_metric),
    )


def filed(result: Result, path: pathlib.Path) -> Result:
    """The result with arrays that are read from its .npz file when needed."""
    return _with_arrays(
        result,
        Filed(path, "picture", tuple(result.pictures)),
        lambda view, task, by_metric: Filed(path, f"{view}/{task}", tuple(by_metric)),
    )


def only(result: Result, metrics: Mapping[str, Sequence[str]]) -> Result:
    """The result with only the rows of some metrics of each task.

    Rows under other names than those of tasks stay unchanged.
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
    """What is stored of a result: content for JSON, and arrays."""
    arrays = {f"picture/{name}": a for name, a in result.pictures.items()}
    if result.unit is not None:
        arrays["unit"] = result.unit
    if result.unchanged is not None:
        arrays["still"] = result.unchanged
    for view, rows in result.views.items():
        for task, by_metric in rows.items():
            arrays |= {f"{view}/{task}/{m}": a for m, a in by_metric.items()}
    content = {
        "count": result.count,
        "scores": result.scores,
        "wanted": result.wanted,
        **({"half": result.half} if result.half else {}),
    }
    return content, arrays


def result_of(
    cell: Cell | None, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> Result:
    """The result from the content and arrays that `contents` returned.

    Raises:
      KeyError, ValueError: Something is missing, or has a wrong name.
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
        unchanged=arrays.get("still"),
        half=content.get("half", ""),
        **rows,
    )


def read(path: pathlib.Path, prefix: str = "") -> Result:
    """Reads the arrays of a cell, as written by any version, for users of results.json.

    Args:
      path: The file that a record names as `rows` or `clean_rows`, in the folder of
        results.json.
      prefix: Reads only arrays whose names begin with it.

    Raises:
      Exception: One of `files.DAMAGED`: the file is missing or damaged.
    """
    json_path = path.with_suffix(".json")
    if json_path.exists():
        arrays = store.read_file(json_path, prefix).arrays
    else:
        arrays = store.read_arrays(path, prefix)
    return result_of(None, {"scores": {}, "count": 0, "wanted": {}}, arrays)


def _part(arrays: Mapping[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `kind/`, by the rest of their names."""
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
