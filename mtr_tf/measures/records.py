# SPDX-License-Identifier: Apache-2.0
"""Records with values, intervals and predictions, from the arrays of a measure.

A record has `measure`, `quantity` and those of these that apply: `tasks`; `norm`
(l2, or l1, the dual norm of linf); `normalisation`; `metric`; `count` (of tasks, or of
output pixels); `eps`; `value` with its 95 % bootstrap `interval` over images (or over
other units, see `resampling`); `predicted`, the value by the theory; and more fields,
see `docs/measures.md`. Facts that all records repeat follow. Numbers that do not exist
are None.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtr_tf.evaluation import intervals
from mtr_tf.evaluation import resampling
from mtr_tf.evaluation.resampling import Units
from mtr_tf.evaluation.scores import number
from mtr_tf.measures import gradients as gradients_lib
from mtr_tf.tasks.metrics import divide

Record = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
NORMS = ("l2", "l1")
OF_NORMS = (0.0, math.inf)  # The smallest and largest possible norms.
_COSINE_BOUNDS = {"cosine": (-1.0, 1.0), "abs_cosine": (0.0, 1.0)}


def own_norms(gradients: Arrays, norm: str) -> np.ndarray:
    """Each task's own gradient norms `[N, M]`, NaN where an image lacks the task."""
    squares = np.diagonal(gradients["gram"], axis1=1, axis2=2)
    norms = np.sqrt(squares) if norm == "l2" else gradients["l1"]
    return np.where(gradients["valid"], norms, np.nan)


# Tasks.


def of_tasks(
    gradients: Arrays,
    l1: Arrays,
    tasks: Sequence[str],
    seed: int,
    units: Units | None = None,
) -> list[Record]:
    """The records of how tasks share a perturbation.

    Args:
      gradients: The arrays of `steps.gradients`, over all images.
      l1: The arrays of `steps.l1_of_sets`.
      tasks: Names, in the order of the arrays.
      seed: Seed of the intervals.
      units: What the bootstrap draws; None: single images.
    """
    units = units or resampling.independent(len(gradients["gram"]))
    records = _pair_records(gradients, tasks, seed, units)
    for norm, normalisation in itertools.product(NORMS, gradients_lib.NORMALISATIONS):
        scale = gradients_lib.scales(own_norms(gradients, norm), normalisation)
        if norm == "l2":
            sums = gradients_lib.l2_of_sums(gradients["gram"], scale)
        else:
            sums = gradients_lib.without_missing(l1[normalisation], scale)
        records += [
            {"measure": "tasks", "norm": norm, "normalisation": normalisation, **record}
            for record in _norm_records(
                gradients, sums, normalisation, tasks, seed, units
            )
        ]
    return records


def _norm_records(
    gradients: Arrays,
    sums: np.ndarray,
    normalisation: str,
    tasks: Sequence[str],
    seed: int,
    units: Units,
) -> list[Record]:
    """Records of one norm and normalisation: sets, sizes, and the slope over sizes."""
    membership = gradients_lib.members(len(tasks))
    sizes = membership.sum(axis=1).astype(int)
    means = sums / sizes
    single_norms = gradients_lib.root_mean_square(means)[sizes == 1]
    scale = gradients_lib.scales(own_norms(gradients, "l2"), normalisation)
    covariance = gradients_lib.covariance(gradients["gram"], scale)
    correlations = gradients_lib.correlation(covariance)
    by_set = gradients_lib.predicted(single_norms, correlations)
    values = gradients_lib.mean(means)
    draws = intervals.resampled_means(means, units, seed=seed)
    ends = pairs_of_ends(draws, values, units.count_known(means), OF_NORMS)
    records = [
        {
            "quantity": "norm_of_mean",
            "tasks": [
                name
                for name, is_member in zip(tasks, membership[i], strict=True)
                if is_member
            ],
            "count": int(sizes[i]),
            "value": number(values[i]),
            "interval": ends[i],
            "predicted": number(by_set[i]),
            "norm_of_sum": number(values[i] * sizes[i]),
        }
        for i in range(len(sizes))
    ]
    rho = gradients_lib.mean_correlation(
        correlations * single_norms[:, np.newaxis] * single_norms
    )
    return records + _size_records(means, by_set, rho, len(tasks), seed, units)


def _size_records(
    means: np.ndarray,
    by_set: np.ndarray,
    rho: float,
    tasks: int,
    seed: int,
    units: Units,
) -> list[Record]:
    """Means over all sets of each size, with the predictions of the paper's theorem."""
    count = np.arange(1, tasks + 1)
    theory = gradients_lib.by_size(by_set)
    factor = gradients_lib.factor(0.0 if tasks == 1 else rho, count)
    per_image = gradients_lib.by_size(means)
    draws = intervals.resampled_means(per_image, units, seed=seed)
    values = gradients_lib.mean(per_image)
    unit_counts = units.count_known(per_image)
    ends = pairs_of_ends(draws, values, unit_counts, OF_NORMS)
    squares = gradients_lib.mean(gradients_lib.by_size(means**2))
    records = [
        {
            "quantity": "norm_by_size",
            "count": int(k),
            "value": number(value),
            "interval": interval,
            "predicted": number(prediction),
            "factor": number(reduction),
            "root_mean_square": number(np.sqrt(square)),
            "norm_of_sum": number(k * value),
        }
        for k, value, interval, prediction, reduction, square in zip(
            count, values, ends, theory, factor, squares, strict=True
        )
    ]
    records.append(slope(count, values, draws, theory, unit_counts))
    records.append({"quantity": "rho", "value": number(rho)})
    return records


def slope(
    count: np.ndarray | Sequence[int],
    values: np.ndarray,
    draws: np.ndarray,
    theory: np.ndarray,
    unit_counts: np.ndarray,
) -> Record:
    """The log-log slope over counts `[K]`.

    Args:
      count: Numbers of tasks or pixels.
      values: `[K]`.
      draws: `[resamples, K]`, resampled values.
      theory: `[K]`; NaN where there is none.
      unit_counts: Number of units behind each value, `[K]`; the smallest one is the
        slope's.
    """
    value = gradients_lib.slope(count, values)
    slopes = gradients_lib.slope(count, draws)[:, np.newaxis]
    return {
        "quantity": "slope",
        "value": number(value),
        "interval": pairs_of_ends(slopes, np.array([value]), unit_counts.min())[0],
        "predicted": number(gradients_lib.slope(count, theory)),
    }


def _pair_records(
    gradients: Arrays, tasks: Sequence[str], seed: int, units: Units
) -> list[Record]:
    """Cosines and covariances of gradients of each pair of tasks, and their means."""
    products = gradients["gram"]
    norms = own_norms(gradients, "l2")
    raw = gradients_lib.scales(norms, "raw")
    unit = gradients_lib.scales(norms, "unit")
    covariance = gradients_lib.covariance(products, raw)
    cosines = products * unit[:, :, np.newaxis] * unit[:, np.newaxis, :]
    matrices = {
        "cosine": (gradients_lib.mean(cosines), cosines),
        "abs_cosine": (gradients_lib.mean(np.abs(cosines)), np.abs(cosines)),
        "covariance": (covariance, None),
        "correlation": (gradients_lib.correlation(covariance), None),
    }
    records = []
    for quantity, (matrix, per_image) in matrices.items():
        ends = None
        if per_image is not None:
            draws = intervals.resampled_means(per_image, units, seed=seed)
            unit_counts, bounds = units.count_known(per_image), _COSINE_BOUNDS[quantity]
            ends = intervals.of_draws(draws, matrix, unit_counts, bounds=bounds)
        for i, j in itertools.combinations_with_replacement(range(len(tasks)), 2):
            record: Record = {"measure": "tasks", "quantity": quantity}
            record |= {"norm": "l2", "tasks": [tasks[i], tasks[j]]}
            record["value"] = number(matrix[i, j])
            if ends is not None:
                record["interval"] = [number(end) for end in ends[:, i, j]]
            records.append(record)
    return records + _pair_means(cosines, seed, units)


def _pair_means(cosines: np.ndarray, seed: int, units: Units) -> list[Record]:
    """Means over all pairs of different tasks; `cosines` are `[N, M, M]`."""
    off_diagonal = np.where(np.eye(cosines.shape[1], dtype=bool), np.nan, cosines)
    records = []
    for quantity, values in (
        ("cosine", off_diagonal),
        ("abs_cosine", np.abs(off_diagonal)),
    ):
        per_image = gradients_lib.mean(values.reshape(len(values), -1).T)[:, np.newaxis]
        mean = gradients_lib.mean(per_image)
        draws = intervals.resampled_means(per_image, units, seed=seed)
        unit_counts, bounds = units.count_known(per_image), _COSINE_BOUNDS[quantity]
        records.append(
            {
                "measure": "tasks",
                "quantity": f"mean_{quantity}",
                "norm": "l2",
                "value": number(mean[0]),
                "interval": pairs_of_ends(draws, mean, unit_counts, bounds)[0],
            }
        )
    return records


# First order.


def of_first_order(
    group: Sequence[str],
    norm: str,
    unit: float,
    by_eps: Mapping[float, Arrays],
    seed: int,
    units: Units | None = None,
) -> list[Record]:
    """The rise of the mean loss that PGD reaches, with eps times the dual norm.

    Args:
      group: The attacked tasks.
      norm: The norm of the ball.
      unit: Length of a radius of 1, for pixels in [0, 1].
      by_eps: {radius: {"norm", "before", "after": `[N]`, NaN where a task is missing}}.
      seed: Seed of the intervals.
      units: What the bootstrap draws; None: single images.
    """
    records = []
    for eps, arrays in sorted(by_eps.items()):
        rise = arrays["after"] - arrays["before"]
        linear = eps * unit * arrays["norm"]
        drawn_units = units or resampling.independent(len(rise))
        columns = np.stack([rise, linear], axis=1)
        draws = intervals.resampled_means(columns, drawn_units, seed=seed)
        ratios = np.stack([draws[:, 0], divide(draws[:, 0], draws[:, 1])], axis=1)
        value, theory = gradients_lib.mean(rise), gradients_lib.mean(linear)
        ratio = divide(value, theory)
        centre = np.array([value, ratio])
        ends = pairs_of_ends(ratios, centre, drawn_units.count_known(rise))
        records.append(
            {
                "measure": "first_order",
                "quantity": "rise",
                "tasks": list(group),
                "norm": norm,
                "count": len(group),
                "eps": eps,
                "value": number(value),
                "interval": ends[0],
                "predicted": number(theory),
                "ratio": number(ratio),
                "ratio_interval": ends[1],
                "clean": number(gradients_lib.mean(arrays["before"])),
            }
        )
    return records


def pairs_of_ends(
    draws: np.ndarray,
    values: np.ndarray,
    unit_counts: np.ndarray | int,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> list[list[float | None]]:
    """Intervals [low, high] of `[K]` values, from draws `[resamples, K]`.

    They lie within `bounds`, the smallest and largest possible values.
    """
    ends = intervals.of_draws(draws, values, unit_counts, bounds=bounds)
    return [[number(end) for end in column] for column in ends.T]
