# SPDX-License-Identifier: Apache-2.0
"""Records of losses over some output pixels: see `records`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from mtr_tf.evaluation import intervals
from mtr_tf.evaluation import resampling
from mtr_tf.evaluation.resampling import Units
from mtr_tf.evaluation.scores import number
from mtr_tf.measures import gradients
from mtr_tf.measures import records as measure_records
from mtr_tf.measures.records import NORMS
from mtr_tf.measures.records import Arrays
from mtr_tf.measures.records import Record
from mtr_tf.tasks import Task
from mtr_tf.tasks import metrics


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
    per_image = np.stack([gradients.mean(part) for part in norms], axis=1)
    units = units or resampling.independent(len(per_image))
    draws = intervals.resampled_means(per_image, units, seed=seed)
    values, unit_counts = gradients.mean(per_image), units.count_known(per_image)
    bounds = measure_records.OF_NORMS
    ends = measure_records.pairs_of_ends(draws, values, unit_counts, bounds)
    squares = [gradients.root_mean_square(part.ravel()) for part in norms]
    theory, rho_records = np.full(len(counts), np.nan), []
    if is_random:
        sigma, rho = gradients.fit_factor(counts, np.array(squares))
        theory = sigma * gradients.factor(rho, counts)
        rho_records = [{"quantity": "rho", "value": number(rho)}]
    records = []
    for k, count in enumerate(counts):
        draw_means = gradients.mean(norms[k].T)
        records.append(
            {
                "quantity": "gradient_norm",
                "count": count,
                "value": number(values[k]),
                "interval": ends[k],
                "predicted": number(theory[k]),
                "root_mean_square": number(squares[k]),
                "relative": number(metrics.divide(values[k], values[0])),
                "draws": len(draw_means),
                "deviation_of_draws": number(_deviation(draw_means)),
            }
        )
    slope = measure_records.slope(counts, values, draws, theory, unit_counts)
    return [*records, slope, *rho_records]


def shown_metrics(task: Task) -> list[metrics.Metric]:
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
        record: Record = {
            "measure": measure,
            "quantity": "attacked_pixels",
            "tasks": [task.name],
            "norm": "linf",
            "metric": metric.name,
            "better": metric.better,
            "count": count,
            "eps": eps,
        }
        for kind, names in (
            ("clean", ("clean", "clean_interval")),
            ("attacked", ("value", "interval")),
        ):
            rows = arrays[f"{kind}/{metric.name}"].astype(np.float64)
            pooled = rows.sum(axis=0)  # Statistics are additive, over draws, too.
            ends = intervals.of_metric(metric, pooled, units, seed=seed)
            record[names[0]] = number(metric.value(pooled.sum(axis=0)))
            record[names[1]] = [number(end) for end in ends]
        draw_values = metric.value(rows.sum(axis=1))
        record |= {
            "draws": len(rows),
            "deviation_of_draws": number(_deviation(draw_values)),
        }
        records.append(record)
    return records


def _deviation(draws: np.ndarray) -> float:
    """The standard deviation over draws, without NaN; NaN if there are not two."""
    numbers = draws[~np.isnan(draws)]
    return float(numbers.std(ddof=1)) if len(numbers) > 1 else np.nan
