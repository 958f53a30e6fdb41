# SPDX-License-Identifier: Apache-2.0
"""What the arrays of a measure come to: records with values, intervals, predictions.

A record has `measure`, `quantity` and of the following what applies: `tasks`; `norm`
(l2, or l1, the dual norm of linf); `normalisation`; `metric`; `count` (of tasks, or of
output pixels); `eps`; `value` with its 95 % bootstrap `interval` over images (or over
what `resampling` draws in their place); `predicted`, what the theory says in place of
the value; and more as `docs/measures.md` says. Then the facts that all records repeat.
Numbers that do not exist are None.
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

Record = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
NORMS = ("l2", "l1")
OF_NORMS = (0.0, math.inf)  # Their smallest and largest values.
_OF_COSINES = {"cosine": (-1.0, 1.0), "abs_cosine": (0.0, 1.0)}


def own_norms(gradients: Arrays, norm: str) -> np.ndarray:
    """Each task's own gradient norms `[N, M]`, NaN where an image has no such task."""
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
      gradients: What `steps.gradients` returns, over all images.
      l1: What `steps.l1_of_sets` returns.
      tasks: Names, in the order of the arrays.
      seed: Seed of the intervals.
      units: What is drawn for them; None: each image by itself.
    """
    units = units or resampling.independent(len(gradients["gram"]))
    records = _pairs(gradients, tasks, seed, units)
    for norm, how in itertools.product(NORMS, gradients_lib.NORMALISATIONS):
        scale = gradients_lib.scales(own_norms(gradients, norm), how)
        if norm == "l2":
            sums = gradients_lib.l2_of_sums(gradients["gram"], scale)
        else:
            sums = gradients_lib.without_missing(l1[how], scale)
        records += [
            {"measure": "tasks", "norm": norm, "normalisation": how, **record}
            for record in _norms(gradients, sums, how, tasks, seed, units)
        ]
    return records


def _norms(
    gradients: Arrays,
    sums: np.ndarray,
    how: str,
    tasks: Sequence[str],
    seed: int,
    units: Units,
) -> list[Record]:
    """Of one norm and normalisation: each set, each size, the slope over sizes."""
    chosen = gradients_lib.members(len(tasks))
    sizes = chosen.sum(axis=1).astype(int)
    means = sums / sizes
    single = gradients_lib.root_mean_square(means)[sizes == 1]
    scale = gradients_lib.scales(own_norms(gradients, "l2"), how)
    covariance = gradients_lib.covariance(gradients["gram"], scale)
    correlated = gradients_lib.correlation(covariance)
    by_set = gradients_lib.predicted(single, correlated)
    values = gradients_lib.mean(means)
    draws = intervals.resampled_means(means, units, seed=seed)
    ends = pairs_of_ends(draws, values, units.known(means), OF_NORMS)
    records = [
        {
            "quantity": "norm_of_mean",
            "tasks": [
                name for name, of in zip(tasks, chosen[place], strict=True) if of
            ],
            "count": int(sizes[place]),
            "value": number(values[place]),
            "interval": ends[place],
            "predicted": number(by_set[place]),
            "norm_of_sum": number(values[place] * sizes[place]),
        }
        for place in range(len(sizes))
    ]
    rho = gradients_lib.mean_correlation(correlated * single[:, np.newaxis] * single)
    return records + _over_sizes(means, by_set, rho, len(tasks), seed, units)


def _over_sizes(
    means: np.ndarray,
    by_set: np.ndarray,
    rho: float,
    tasks: int,
    seed: int,
    units: Units,
) -> list[Record]:
    """Means over all sets of each size, beside what the paper's theorem says."""
    count = np.arange(1, tasks + 1)
    theory = gradients_lib.by_size(by_set)
    factor = gradients_lib.factor(0.0 if tasks == 1 else rho, count)
    per_image = gradients_lib.by_size(means)
    draws = intervals.resampled_means(per_image, units, seed=seed)
    values = gradients_lib.mean(per_image)
    known = units.known(per_image)
    ends = pairs_of_ends(draws, values, known, OF_NORMS)
    squares = gradients_lib.mean(gradients_lib.by_size(means**2))
    records = [
        {
            "quantity": "norm_by_size",
            "count": int(k),
            "value": number(value),
            "interval": interval,
            "predicted": number(by_sets),
            "factor": number(equal),
            "root_mean_square": number(np.sqrt(square)),
            "norm_of_sum": number(k * value),
        }
        for k, value, interval, by_sets, equal, square in zip(
            count, values, ends, theory, factor, squares, strict=True
        )
    ]
    records.append(slope(count, values, draws, theory, known))
    records.append({"quantity": "rho", "value": number(rho)})
    return records


def slope(
    count: np.ndarray | Sequence[int],
    values: np.ndarray,
    draws: np.ndarray,
    theory: np.ndarray,
    known: np.ndarray,
) -> Record:
    """The log-log slope over counts `[K]`.

    Args:
      count: Of tasks or pixels.
      values: `[K]`.
      draws: `[resamples, K]`, of its interval.
      theory: `[K]`; NaN where there is none.
      known: How many units each value is of, `[K]`; the fewest count for the slope.
    """
    value = gradients_lib.slope(count, values)
    slopes = gradients_lib.slope(count, draws)[:, np.newaxis]
    return {
        "quantity": "slope",
        "value": number(value),
        "interval": pairs_of_ends(slopes, np.array([value]), known.min())[0],
        "predicted": number(gradients_lib.slope(count, theory)),
    }


def _pairs(
    gradients: Arrays, tasks: Sequence[str], seed: int, units: Units
) -> list[Record]:
    """Cosines and covariances of each two tasks' gradients, and their means."""
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
            known, bounds = units.known(per_image), _OF_COSINES[quantity]
            ends = intervals.of_draws(draws, matrix, known, bounds=bounds)
        for i, j in itertools.combinations_with_replacement(range(len(tasks)), 2):
            record: Record = {"measure": "tasks", "quantity": quantity}
            record |= {"norm": "l2", "tasks": [tasks[i], tasks[j]]}
            record["value"] = number(matrix[i, j])
            if ends is not None:
                record["interval"] = [number(end) for end in ends[:, i, j]]
            records.append(record)
    return records + _mean_of_pairs(cosines, seed, units)


def _mean_of_pairs(cosines: np.ndarray, seed: int, units: Units) -> list[Record]:
    """Means over all pairs of different tasks; `cosines` are `[N, M, M]`."""
    off = np.where(np.eye(cosines.shape[1], dtype=bool), np.nan, cosines)
    records = []
    for quantity, values in (("cosine", off), ("abs_cosine", np.abs(off))):
        per_image = gradients_lib.mean(values.reshape(len(values), -1).T)[:, np.newaxis]
        mean = gradients_lib.mean(per_image)
        draws = intervals.resampled_means(per_image, units, seed=seed)
        known, bounds = units.known(per_image), _OF_COSINES[quantity]
        records.append(
            {
                "measure": "tasks",
                "quantity": f"mean_{quantity}",
                "norm": "l2",
                "value": number(mean[0]),
                "interval": pairs_of_ends(draws, mean, known, bounds)[0],
            }
        )
    return records


# First order.


def of_first_order(
    group: Sequence[str],
    norm: str,
    unit: float,
    found: Mapping[float, Arrays],
    seed: int,
    units: Units | None = None,
) -> list[Record]:
    """The rise of the mean loss that PGD reaches, beside eps times the dual norm.

    Args:
      group: The attacked tasks.
      norm: Of the ball.
      unit: What one of the radii is, in pixel units of [0, 1].
      found: {radius: {"norm", "before", "after": `[N]`, NaN where a task is missing}}.
      seed: Seed of the intervals.
      units: What is drawn for them; None: each image by itself.
    """
    records = []
    for eps, arrays in sorted(found.items()):
        rise = arrays["after"] - arrays["before"]
        linear = eps * unit * arrays["norm"]
        drawn = units or resampling.independent(len(rise))
        both = np.stack([rise, linear], axis=1)
        draws = intervals.resampled_means(both, drawn, seed=seed)
        ratios = np.stack([draws[:, 0], ratio(draws[:, 0], draws[:, 1])], axis=1)
        value, theory = gradients_lib.mean(rise), gradients_lib.mean(linear)
        centre = np.array([value, ratio(value, theory)])
        ends = pairs_of_ends(ratios, centre, drawn.known(rise))
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
                "ratio": number(ratio(value, theory)),
                "ratio_interval": ends[1],
                "clean": number(gradients_lib.mean(arrays["before"])),
            }
        )
    return records


def ratio(above: Any, below: Any) -> np.ndarray:
    """Above / below, NaN where that is by 0."""
    below = np.asarray(below)
    return np.where(below != 0, above / np.where(below != 0, below, 1.0), np.nan)


def pairs_of_ends(
    draws: np.ndarray,
    values: np.ndarray,
    known: np.ndarray | int,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> list[list[float | None]]:
    """[low, high] of each column of `[resamples, K]`, around `[K]` values.

    Within `bounds`, the smallest and largest possible values.
    """
    ends = intervals.of_draws(draws, values, known, bounds=bounds)
    return [[number(end) for end in column] for column in ends.T]
