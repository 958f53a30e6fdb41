# SPDX-License-Identifier: Apache-2.0
"""How well two outputs for one image agree, where one determines the other.

    depth, normal            the slope of surfaces, by depth and by normals
    depth, edge_occlusion    the steps of depth, and the edges

No target is used. Outputs that an attack changes separately no longer fit each other;
Klingner et al. (IROS 2022) detect attacked images by this. Depth must be in metres;
directions are those of `rooms`: x to the right, y down, z away from the camera.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtr_tf.data.source import Columns
from mtr_tf.evaluation.cell_files import Result
from mtr_tf.evaluation.evaluator import Rows
from mtr_tf.tasks import TASKS
from mtr_tf.tasks import Task
from mtr_tf.tasks.metrics import divide

NEAREST = 0.05  # Smaller depths, in metres, count as this one.
STEP = 0.3  # Metres of depth that make a full edge.


@dataclasses.dataclass(frozen=True)
class Relation:
    """Two tasks, and how well their outputs agree.

    Attributes:
      tasks: Their names.
      measure: What is measured.
      unit: Its unit.
      better: "higher" or "lower".
      of: (output, output[, valid]) -> float64 [batch]; outputs are [batch, H, W, C],
        `valid` is bool [batch, H, W]. NaN for images without a value.
    """

    tasks: tuple[str, str]
    measure: str
    unit: str
    better: str
    of: Callable[..., np.ndarray]

    @property
    def name(self) -> str:
        """Both tasks as one word."""
        return "+".join(self.tasks)


@np.errstate(divide="ignore", invalid="ignore")  # For values that are not finite.
def tilt_angle(
    depth: np.ndarray, normal: np.ndarray, valid: np.ndarray | None = None
) -> np.ndarray:
    """The mean angle, in degrees, between the tilts that depth and normals show.

    On a plane, 1 / depth is linear in the pixel coordinates (u, v), with a slope along
    -(n_x, n_y), for any focal length of the camera and any unit of depth. So the
    directions of both are compared, weighted by |(n_x, n_y)|: how tilted a surface is.
    Slopes are differences to the neighbour on the side where 1 / depth changes less,
    which is the side of the same surface. Where depth is flat, the angle counts as 90.
    A pixel counts if it and its four neighbours are `valid`, bool [batch, H, W]
    (None: all).
    Images with depths or normals that are not finite give NaN.
    """
    inverse = 1 / np.maximum(depth[..., 0].astype(np.float64), NEAREST)
    slope_x, slope_y = _slope(inverse, 2), _slope(inverse, 1)
    normal = normal.astype(np.float64)
    length = np.linalg.norm(normal, axis=-1)
    x, y = (-np.where(length > 0, part, 0) for part in (normal[..., 0], normal[..., 1]))
    weight = np.hypot(x, y) / np.where(length > 0, length, 1)
    if valid is not None:
        weight = np.where(_interior(valid, 1), weight, 0)
    size = np.hypot(slope_x, slope_y) * np.hypot(x, y)
    cosine = np.nan_to_num(divide(slope_x * x + slope_y * y, size))
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    angles = divide((angle * weight).sum((1, 2)), weight.sum((1, 2)))
    return np.where(_finite(depth) & _finite(normal), angles, np.nan)


@np.errstate(divide="ignore", invalid="ignore")
def edge_correlation(
    depth: np.ndarray, edges: np.ndarray, valid: np.ndarray | None = None
) -> np.ndarray:
    """The correlation, over an image's pixels, of edges and the steps that depth shows.

    A step is where a neighbour is off the plane through a pixel and the one behind it,
    in both directions; from 0.3 m on it is 1, as in the edges of `rooms`. Edges there
    also have creases, which are no steps, so that targets correlate by 0.9, not by 1.
    Pixels and images count as in `tilt_angle`, with neighbours two pixels away.
    """
    finite = _finite(depth) & _finite(edges)
    steps = depth_steps(depth[..., 0].astype(np.float64))
    edges = edges[..., 0].astype(np.float64)
    weight = (
        np.ones(steps.shape) if valid is None else _interior(valid, 2).astype(float)
    )
    count = np.maximum(weight.sum((1, 2), keepdims=True), 1)
    steps, edges = (
        weight * (a - (weight * a).sum((1, 2), keepdims=True) / count)
        for a in (steps, edges)
    )
    size = np.sqrt((steps**2).sum((1, 2)) * (edges**2).sum((1, 2)))
    agreement = divide((steps * edges).sum((1, 2)), size)
    return np.where(finite, agreement, np.nan)


def _interior(valid: np.ndarray, reach: int) -> np.ndarray:
    """Where all pixels up to `reach` steps away, along rows and columns, are valid."""
    for _ in range(reach):
        padded = np.pad(valid, ((0, 0), (1, 1), (1, 1)), constant_values=True)
        rows = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1]
        valid = valid & rows & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    return valid


def _finite(values: np.ndarray) -> np.ndarray:
    """Whether all of an image's values are finite, `[batch]`."""
    flat = np.isfinite(values).reshape(len(values), -1)
    return np.asarray(flat.all(axis=1))


def depth_steps(depth: np.ndarray) -> np.ndarray:
    """Each pixel's largest step, from 0 to 1, `[batch, H, W]`."""
    steps = np.zeros(depth.shape)
    inverse = 1 / np.maximum(depth, NEAREST)
    for axis in (1, 2):
        w, out = np.moveaxis(inverse, axis, 0), np.moveaxis(steps, axis, 0)
        offsets = np.full((2, *w.shape), np.inf)  # From the planes behind and ahead.
        offsets[0, 1:-1] = _deviation(w[2:], 2 * w[1:-1] - w[:-2])
        offsets[1, :-2] = _deviation(w[:-2], 2 * w[1:-1] - w[2:])
        gap = np.minimum(offsets[0], offsets[1])[:-1]
        strength = np.minimum(np.where(np.isfinite(gap), gap, 0) / STEP, 1)
        np.maximum(out[:-1], strength, out=out[:-1])
        np.maximum(out[1:], strength, out=out[1:])
    return steps


def _deviation(inverse: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Distances between depths and expected depths, both given as 1 / depth."""
    return np.abs(1 / inverse - 1 / np.maximum(expected, 1e-3))


def _slope(values: np.ndarray, axis: int) -> np.ndarray:
    """The smaller of the differences to the two neighbours along an axis."""
    step = np.diff(values, axis=axis)
    ends = [np.take(step, [end], axis) for end in (0, -1)]
    backward = np.concatenate([ends[0], step], axis)
    forward = np.concatenate([step, ends[1]], axis)
    return np.where(np.abs(forward) < np.abs(backward), forward, backward)


RELATIONS = (
    Relation(("depth", "normal"), "tilt_angle", "deg", "lower", tilt_angle),
    Relation(
        ("depth", "edge_occlusion"), "edge_correlation", "", "higher", edge_correlation
    ),
)


def relations(
    tasks: Mapping[str, Task], units: Mapping[str, str], shape: Sequence[int]
) -> tuple[Relation, ...]:
    """The relations whose tasks exist as the paper defines them, with depth in metres.

    Args:
      tasks: The tasks of a model.
      units: Those of the data set's `DatasetInfo`.
      shape: (height, width, ...) of an image; a slope needs three pixels.
    """
    return tuple(
        relation
        for relation in RELATIONS
        if min(shape[:2]) >= 3
        and all(_is_usual(tasks.get(name), units) for name in relation.tasks)
    )


def _is_usual(task: Task | None, units: Mapping[str, str]) -> bool:
    if task is None:
        return False
    default = TASKS[task.name]
    matches = task.kind == default.kind and task.unit == default.unit and task.is_map
    return matches and units.get(task.name, default.unit) == default.unit


def rows_of(
    relations: Sequence[Relation], outputs: Mapping[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """{"depth+normal": {measure: float64 [batch, 1]}} of a batch's outputs."""
    return {
        r.name: {r.measure: r.of(*(outputs[task] for task in r.tasks))[:, np.newaxis]}
        for r in relations
    }


def of_targets(
    relations: Sequence[Relation], columns: Columns, count: int
) -> dict[str, float | None]:
    """{"depth+normal": how well the first `count` images' targets agree}, for scale."""
    means = {}
    for relation in relations:
        means[relation.name] = None
        if all(task in columns.targets for task in relation.tasks):
            rows = [np.arange(i, min(i + 16, count)) for i in range(0, count, 16)]
            values = [
                relation.of(
                    *(columns.targets[task][part] for task in relation.tasks),
                    _valid_pixels(columns, relation.tasks, part),
                )
                for part in rows
            ]
            means[relation.name] = _mean(np.concatenate(values))
    return means


def _valid_pixels(
    columns: Columns, tasks: Sequence[str], rows: np.ndarray
) -> np.ndarray:
    """Where images have targets of all these tasks, bool `[batch, H, W]`."""
    size = columns.targets[tasks[0]].shape[1:3]
    valid = np.ones((len(rows), *size), bool)
    for task in tasks:
        if columns.masks.get(task) is not None:
            valid &= np.asarray(columns.masks[task][rows]) != 0
    return valid


def records(
    relations: Sequence[Relation],
    clean: Result,
    results: Sequence[Result],
    targets: Mapping[str, float | None],
) -> list[dict[str, Any]]:
    """A record per attack and relation; cells of older versions have none."""
    return [
        {
            "attack": result.attack_cell.label,
            "norm": result.attack_cell.threat.norm,
            "eps": result.attack_cell.eps,
            "attacked": list(result.attack_cell.tasks),
            "tasks": list(relation.tasks),
            "measure": relation.measure,
            "unit": relation.unit,
            "better": relation.better,
            "targets": targets.get(relation.name),
            **_values(clean.consistent_rows, result.consistent_rows, relation),
        }
        for result in results
        for relation in relations
        if relation.name in clean.consistent_rows
        and relation.name in result.consistent_rows
    ]


def _values(clean: Rows, attacked: Rows, relation: Relation) -> dict[str, Any]:
    """Means over the `n` images that have a value both clean and attacked."""
    clean_values, attacked_values = (
        rows[relation.name][relation.measure][:, 0] for rows in (clean, attacked)
    )
    finite = np.isfinite(clean_values) & np.isfinite(attacked_values)
    return {
        "clean": _mean(clean_values[finite]),
        "attacked_value": _mean(attacked_values[finite]),
        "n": int(finite.sum()),
    }


def _mean(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None
