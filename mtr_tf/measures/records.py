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
from mtr_tf.evaluation import scores
from mtr_tf.evaluation.resampling import Units
from mtr_tf.evaluation.scores import number
from mtr_tf.measures import gradients as gradients_lib
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks.metrics import Metric
from mtr_tf.tasks.metrics import divide

Record = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
NORMS = ("l2", "l1")
_OF_NORMS = (0.0, math.inf)  # The smallest and largest possible norms.
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
            {"norm": norm, "normalisation": normalisation, **record}
            for record in _norm_records(
                gradients, sums, normalisation, tasks, seed, units
            )
        ]
    return [{"measure": "tasks", **record} for record in records]


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
    values, ends, _ = _means(means, seed, units)
    records = [
        {
            "quantity": "norm_of_mean",
            "tasks": list(itertools.compress(tasks, membership[i])),
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
    values, ends, draws = _means(per_image, seed, units)
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
    unit_counts = units.count_known(per_image)
    records.append(_slope(count, values, draws, theory, unit_counts))
    records.append({"quantity": "rho", "value": number(rho)})
    return records


def _slope(
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
        "interval": _pairs_of_ends(slopes, np.array([value]), unit_counts.min())[0],
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
            pair = [tasks[i], tasks[j]]
            record: Record = {"quantity": quantity, "norm": "l2", "tasks": pair}
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
        (mean,), (ends,), _ = _means(per_image, seed, units, _COSINE_BOUNDS[quantity])
        record = {"quantity": f"mean_{quantity}", "norm": "l2"}
        records.append(record | {"value": number(mean), "interval": ends})
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
        ends = _pairs_of_ends(ratios, centre, drawn_units.count_known(rise))
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


# Output pixels.


def of_pixel_gradients(
    measure: str,
    by_count: Mapping[int, Arrays],
    tasks: Sequence[str],
    seed: int,
    units: Units | None = None,
) -> list[Record]:
    """The gradient norms of mean losses over some output pixels.

    Args:
      measure: "pixels", drawn at random, or "blocks".
      by_count: {number of pixels: {"l2", "l1": `[draws, N, M]`, NaN where no pixel
        counts}}.
      tasks: Names, in the order of the arrays.
      seed: Seed of the intervals.
      units: What the bootstrap draws; None: single images.
    """
    counts = sorted(by_count)
    records = []
    for norm, (position, task) in itertools.product(NORMS, enumerate(tasks)):
        norms = [by_count[count][norm][:, :, position] for count in counts]
        common = {"measure": measure, "norm": norm, "tasks": [task]}
        common |= {"normalisation": "raw"}
        # The theorem does not hold for blocks, which are not random sets.
        task_records = _task_records(counts, norms, measure == "pixels", seed, units)
        records += [common | record for record in task_records]
    return records


def _task_records(
    counts: Sequence[int],
    norms: Sequence[np.ndarray],
    is_random: bool,
    seed: int,
    units: Units | None,
) -> list[Record]:
    """Records of one task, from norms `[draws, N]` by count: means and their slope.

    For random pixels (`is_random`), also rho of the theorem.
    """
    per_image = np.stack([gradients_lib.mean(part) for part in norms], axis=1)
    units = units or resampling.independent(len(per_image))
    values, ends, draws = _means(per_image, seed, units)
    squares = [gradients_lib.root_mean_square(part.ravel()) for part in norms]
    theory, rho_records = np.full(len(counts), np.nan), []
    if is_random:
        sigma, rho = gradients_lib.fit_factor(counts, np.array(squares))
        theory = sigma * gradients_lib.factor(rho, counts)
        rho_records = [{"quantity": "rho", "value": number(rho)}]
    records = []
    for k, count in enumerate(counts):
        draw_means = gradients_lib.mean(norms[k].T)
        records.append(
            {
                "quantity": "gradient_norm",
                "count": count,
                "value": number(values[k]),
                "interval": ends[k],
                "predicted": number(theory[k]),
                "root_mean_square": number(squares[k]),
                "relative": number(divide(values[k], values[0])),
                "draws": len(draw_means),
                "deviation_of_draws": number(_deviation(draw_means)),
            }
        )
    unit_counts = units.count_known(per_image)
    records.append(_slope(counts, values, draws, theory, unit_counts))
    return records + rho_records


def shown_metrics(task: Task) -> list[Metric]:
    """The metrics of attacks on some pixels of a task: its headline and its loss.

    Classes have pixel accuracy as headline, because a mean IoU of few pixels says
    nothing. A task without other metrics has its loss alone.
    """
    headline, *tail = [metric for metric in task.metrics if metric.name != "miou"]
    return [headline, *tail[-1:]]


def of_pixel_attacks(
    measure: str,
    task: Task,
    by_count: Mapping[int, Arrays],
    eps: float,
    seed: int,
    units: Units | None = None,
) -> list[Record]:
    """The harm that PGD on the loss of some output pixels does to these pixels.

    Args:
      measure: "pixels" or "blocks".
      task: The attacked task.
      by_count: {number of pixels: {"clean/<metric>", "attacked/<metric>":
        `[draws, N, K]`, rows of the metric}}.
      eps: Radius in levels.
      seed: Seed of the intervals.
      units: What the bootstrap draws; None: single images.
    """
    records = []
    for (count, arrays), metric in itertools.product(
        sorted(by_count.items()), shown_metrics(task)
    ):
        clean_rows, attacked_rows = (
            arrays[f"{kind}/{metric.name}"].astype(np.float64)
            for kind in ("clean", "attacked")
        )
        # Statistics are additive, over draws, too.
        clean = scores.of_metric(metric, clean_rows.sum(axis=0), units, seed)
        draws = metric.value(attacked_rows.sum(axis=1))
        records.append(
            {
                "measure": measure,
                "quantity": "attacked_pixels",
                "tasks": [task.name],
                "norm": "linf",
                "metric": metric.name,
                "better": metric.better,
                "count": count,
                "eps": eps,
                "clean": clean["value"],
                "clean_interval": clean["interval"],
                **scores.of_metric(metric, attacked_rows.sum(axis=0), units, seed),
                "draws": len(draws),
                "deviation_of_draws": number(_deviation(draws)),
            }
        )
    return records


def _deviation(draws: np.ndarray) -> float:
    """The standard deviation over draws, without NaN; NaN if there are not two."""
    numbers = draws[~np.isnan(draws)]
    return float(numbers.std(ddof=1)) if len(numbers) > 1 else np.nan


# Corruptions.


def of_corruptions(
    tasks: TaskSet,
    by_severity: Mapping[tuple[str, int], Arrays],
    seed: int,
    units: Units | None = None,
    target_units: Mapping[str, str] | None = None,
) -> list[Record]:
    """Each metric under each corruption and severity, and the mean over all of them.

    Args:
      tasks: The tasks whose metrics the arrays hold.
      by_severity: {(corruption, severity): {"<task>/<metric>": `[N, K]`, rows of the
        metric}}; clean images are ("", 0).
      seed: Seed of the intervals.
      units: What the bootstrap draws; None: single images.
      target_units: The data set's units of targets, by task.
    """
    return [
        record
        for task in tasks.values()
        for metric in task.all_metrics
        for record in _metric_records(
            task,
            metric,
            by_severity,
            seed,
            units,
            task.unit_of(metric, target_units or {}),
        )
    ]


def _metric_records(
    task: Task,
    metric: Metric,
    by_severity: Mapping[tuple[str, int], Arrays],
    seed: int,
    units: Units | None,
    unit: str,
) -> list[Record]:
    name = f"{task.name}/{metric.name}"
    common: Record = {"measure": "corruptions", "tasks": [task.name]}
    common |= {"metric": metric.name, "better": metric.better, "unit": unit}
    common |= {"clean": number(metric.over(by_severity["", 0][name]))}
    records = [
        {
            **common,
            "quantity": "corrupted",
            "corruption": corruption,
            "severity": severity,
            **scores.of_metric(metric, arrays[name], units, seed),
        }
        for (corruption, severity), arrays in by_severity.items()
        if corruption
    ]
    values = np.array([record["value"] for record in records], float)
    mean = number(np.mean(values))
    return [*records, common | {"quantity": "mean_corrupted", "value": mean}]


# Intervals of means.


def _means(
    per_image: np.ndarray,
    seed: int,
    units: Units,
    bounds: tuple[float, float] = _OF_NORMS,
) -> tuple[np.ndarray, list[list[float | None]], np.ndarray]:
    """Means over images of `[N, K]`: (means, their intervals, means of resamples)."""
    means = gradients_lib.mean(per_image)
    draws = intervals.resampled_means(per_image, units, seed=seed)
    ends = _pairs_of_ends(draws, means, units.count_known(per_image), bounds)
    return means, ends, draws


def _pairs_of_ends(
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
