# SPDX-License-Identifier: Apache-2.0
"""How well two outputs of one image agree that determine each other.

    depth, normal            the surface's slope as depth has it, and as normals have it
    depth, edge_occlusion    the steps of depth, and the edges

No target is used. Heads that an attack pulls apart no longer fit each other: Klingner
et al. (IROS 2022) find attacked images by that. Depth must be in metres; directions are
those of `rooms`: x to the right, y down, z away from the camera.
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

NEAREST = 0.05  # What is nearer, in metres, counts as at this distance.
STEP = 0.3  # Metres of a step that is a full edge.


@dataclasses.dataclass(frozen=True)
class Relation:
    """Two tasks, and how well their outputs agree.

    Attributes:
      tasks: Their names.
      measure: What is measured.
      unit: Its unit.
      better: "higher" or "lower".
      of: (output, output), [batch, H, W, C] each, and perhaps where both are known,
        bool [batch, H, W] -> float64 [batch]; NaN where an image says nothing.
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


@np.errstate(divide="ignore", invalid="ignore")  # Of values that are not finite.
def tilt_angle(
    depth: np.ndarray, normal: np.ndarray, known: np.ndarray | None = None
) -> np.ndarray:
    """The mean angle, in degrees, between the tilts that depth and normals show.

    Over the pixels (u, v) of a plane 1 / depth is linear, with a slope along
    -(n_x, n_y), whatever the focal length of the camera and the unit of depth. So the
    directions of both are compared, weighted by |(n_x, n_y)|: how tilted a surface is.
    Slopes are differences to the neighbour on the side where 1 / depth changes less,
    which is the side of the same surface. Where depth is flat, the angle counts as 90.
    Pixels count whose neighbours are all `known`, bool [batch, H, W] (None: all are).
    Images with depths or normals that are not finite give NaN.
    """
    inverse = 1 / np.maximum(depth[..., 0].astype(np.float64), NEAREST)
    across, down = _slope(inverse, 2), _slope(inverse, 1)
    normal = normal.astype(np.float64)
    length = np.linalg.norm(normal, axis=-1)
    x, y = (-np.where(length > 0, part, 0) for part in (normal[..., 0], normal[..., 1]))
    weight = np.hypot(x, y) / np.where(length > 0, length, 1)
    if known is not None:
        weight = np.where(_inside(known, 1), weight, 0)
    size = np.hypot(across, down) * np.hypot(x, y)
    cosine = _divided(across * x + down * y, size, 0.0)
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    angles = _divided((angle * weight).sum((1, 2)), weight.sum((1, 2)), np.nan)
    return np.where(_finite(depth) & _finite(normal), angles, np.nan)


@np.errstate(divide="ignore", invalid="ignore")
def edge_correlation(
    depth: np.ndarray, edges: np.ndarray, known: np.ndarray | None = None
) -> np.ndarray:
    """The correlation, over an image's pixels, of edges and the steps that depth shows.

    A step is where a neighbour is off the plane that goes on from a pixel and the one
    behind it, in both directions: by 0.3 m or more it is 1, as in the edges of `rooms`.
    Those also have creases, which are no steps: so they agree by 0.9, not by 1.
    Pixels and images count as in `tilt_angle`, with neighbours two pixels away.
    """
    finite = _finite(depth) & _finite(edges)
    steps = depth_steps(depth[..., 0].astype(np.float64))
    edges = edges[..., 0].astype(np.float64)
    weight = np.ones(steps.shape) if known is None else _inside(known, 2).astype(float)
    count = np.maximum(weight.sum((1, 2), keepdims=True), 1)
    steps, edges = (
        weight * (a - (weight * a).sum((1, 2), keepdims=True) / count)
        for a in (steps, edges)
    )
    size = np.sqrt((steps**2).sum((1, 2)) * (edges**2).sum((1, 2)))
    agreement = _divided((steps * edges).sum((1, 2)), size, np.nan)
    return np.where(finite, agreement, np.nan)


def _inside(known: np.ndarray, reach: int) -> np.ndarray:
    """Where all pixels up to so far away, in rows and columns, are known."""
    for _ in range(reach):
        wide = np.pad(known, ((0, 0), (1, 1), (1, 1)), constant_values=True)
        rows = wide[:, :-2, 1:-1] & wide[:, 2:, 1:-1]
        known = known & rows & wide[:, 1:-1, :-2] & wide[:, 1:-1, 2:]
    return known


def _finite(values: np.ndarray) -> np.ndarray:
    """Whether all of an image's values are finite, `[batch]`."""
    flat = np.isfinite(values).reshape(len(values), -1)
    return np.asarray(flat.all(axis=1))


def depth_steps(depth: np.ndarray) -> np.ndarray:
    """Each pixel's largest step, from 0 to 1, `[batch, H, W]`."""
    found = np.zeros(depth.shape)
    inverse = 1 / np.maximum(depth, NEAREST)
    for axis in (1, 2):
        w, out = np.moveaxis(inverse, axis, 0), np.moveaxis(found, axis, 0)
        on = np.full((2, *w.shape), np.inf)  # Off the plane behind, off that in front.
        on[0, 1:-1] = _off(w[2:], 2 * w[1:-1] - w[:-2])
        on[1, :-2] = _off(w[:-2], 2 * w[1:-1] - w[2:])
        gap = np.minimum(on[0], on[1])[:-1]
        strength = np.minimum(np.where(np.isfinite(gap), gap, 0) / STEP, 1)
        np.maximum(out[:-1], strength, out=out[:-1])
        np.maximum(out[1:], strength, out=out[1:])
    return found


def _off(inverse: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """How far depths are from those expected, both given as 1 / depth."""
    return np.abs(1 / inverse - 1 / np.maximum(expected, 1e-3))


def _slope(values: np.ndarray, axis: int) -> np.ndarray:
    """The smaller of the differences to the two neighbours along an axis."""
    step = np.diff(values, axis=axis)
    ends = [np.take(step, [end], axis) for end in (0, -1)]
    before = np.concatenate([ends[0], step], axis)
    after = np.concatenate([step, ends[1]], axis)
    return np.where(np.abs(after) < np.abs(before), after, before)


def _divided(above: np.ndarray, below: np.ndarray, otherwise: float) -> np.ndarray:
    return np.where(below > 0, above / np.where(below > 0, below, 1), otherwise)


RELATIONS = (
    Relation(("depth", "normal"), "tilt_angle", "deg", "lower", tilt_angle),
    Relation(
        ("depth", "edge_occlusion"), "edge_correlation", "", "higher", edge_correlation
    ),
)


def relations(
    tasks: Mapping[str, Task], units: Mapping[str, str], shape: Sequence[int]
) -> tuple[Relation, ...]:
    """Those whose tasks are there as the paper's names mean them, with depth in metres.

    Args:
      tasks: What a model gives.
      units: Those of the data set's `DatasetInfo`.
      shape: (height, width, ...) of an image; a slope needs three pixels.
    """
    return tuple(
        relation
        for relation in RELATIONS
        if min(shape[:2]) >= 3
        and all(_as_usual(tasks.get(name), units) for name in relation.tasks)
    )


def _as_usual(task: Task | None, units: Mapping[str, str]) -> bool:
    if task is None:
        return False
    usual = TASKS[task.name]
    same = task.kind == usual.kind and task.unit == usual.unit and task.is_map
    return same and units.get(task.name, usual.unit) == usual.unit


def rows_of(
    found: Sequence[Relation], outputs: Mapping[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """{"depth+normal": {measure: float64 [batch, 1]}} of a batch's outputs."""
    return {
        each.name: {
            each.measure: each.of(*(outputs[task] for task in each.tasks))[:, None]
        }
        for each in found
    }


def of_targets(
    found: Sequence[Relation], columns: Columns, count: int
) -> dict[str, float | None]:
    """{"depth+normal": how well the first `count` images' targets agree}, for scale."""
    means = {}
    for each in found:
        means[each.name] = None
        if all(task in columns.targets for task in each.tasks):
            rows = [np.arange(i, min(i + 16, count)) for i in range(0, count, 16)]
            values = [
                each.of(
                    *(columns.targets[task][part] for task in each.tasks),
                    _known(columns, each.tasks, part),
                )
                for part in rows
            ]
            means[each.name] = _mean(np.concatenate(values))
    return means


def _known(columns: Columns, tasks: Sequence[str], rows: np.ndarray) -> np.ndarray:
    """Where images have targets of all these tasks, bool `[batch, H, W]`."""
    size = columns.targets[tasks[0]].shape[1:3]
    known = np.ones((len(rows), *size), bool)
    for task in tasks:
        if columns.masks.get(task) is not None:
            known &= np.asarray(columns.masks[task][rows]) != 0
    return known


def records(
    found: Sequence[Relation],
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
            "tasks": list(each.tasks),
            "measure": each.measure,
            "unit": each.unit,
            "better": each.better,
            "targets": targets.get(each.name),
            **_values(clean.consistent_rows, result.consistent_rows, each),
        }
        for result in results
        for each in found
        if each.name in clean.consistent_rows and each.name in result.consistent_rows
    ]


def _values(clean: Rows, attacked: Rows, relation: Relation) -> dict[str, Any]:
    """Means over the images that say something both clean and attacked, `n` of them."""
    before, after = (
        rows[relation.name][relation.measure][:, 0] for rows in (clean, attacked)
    )
    both = np.isfinite(before) & np.isfinite(after)
    return {
        "clean": _mean(before[both]),
        "attacked_value": _mean(after[both]),
        "n": int(both.sum()),
    }


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None
