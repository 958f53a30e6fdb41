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
    found: Mapping[int, Arrays],
    tasks: Sequence[str],
    seed: int,
    units: Units | None = None,
) -> list[Record]:
    """The gradient norms of mean losses over some output pixels.

    Args:
      measure: "pixels", drawn at random, or "blocks".
      found: {number of pixels: {"l2", "l1": `[draws, N, M]`, NaN where no pixel
        counts}}.
      tasks: Names, in the order of the arrays.
      seed: Seed of the intervals.
      units: What is drawn for them; None: each image by itself.
    """
    counts = sorted(found)
    records = []
    for norm, (place, task) in itertools.product(NORMS, enumerate(tasks)):
        norms = [found[count][norm][:, :, place] for count in counts]
        about = {"measure": measure, "norm": norm, "tasks": [task]}
        about |= {"normalisation": "raw"}
        # Blocks are no random sets: there is no such formula.
        of_one = _gradients(counts, norms, measure == "pixels", seed, units)
        records += [about | record for record in of_one]
    return records


def _gradients(
    counts: Sequence[int],
    norms: Sequence[np.ndarray],
    theorem: bool,
    seed: int,
    units: Units | None,
) -> list[Record]:
    """Of one task: norms `[draws, N]` by count, their slope, the fit if wanted."""
    per_image = np.stack([gradients.mean(part) for part in norms], axis=1)
    units = units or resampling.independent(len(per_image))
    draws = intervals.resampled_means(per_image, units, seed=seed)
    values, known = gradients.mean(per_image), units.known(per_image)
    bounds = measure_records.OF_NORMS
    ends = measure_records.pairs_of_ends(draws, values, known, bounds)
    squares = [gradients.root_mean_square(part.ravel()) for part in norms]
    theory, more = np.full(len(counts), np.nan), []
    if theorem:
        sigma, rho = gradients.fit_factor(counts, np.array(squares))
        theory = sigma * gradients.factor(rho, counts)
        more = [{"quantity": "rho", "value": number(rho)}]
    records = []
    for k, count in enumerate(counts):
        of_draws = gradients.mean(norms[k].T)
        records.append(
            {
                "quantity": "gradient_norm",
                "count": count,
                "value": number(values[k]),
                "interval": ends[k],
                "predicted": number(theory[k]),
                "root_mean_square": number(squares[k]),
                "relative": number(measure_records.ratio(values[k], values[0])),
                "draws": len(of_draws),
                "deviation_of_draws": number(_deviation(of_draws)),
            }
        )
    slope = measure_records.slope(counts, values, draws, theory, known)
    return [*records, slope, *more]


def shown_metrics(task: Task) -> list[metrics.Metric]:
    """What attacks on some pixels of a task are judged by: its headline and its loss.

    Of classes the share of right pixels: a mean IoU of few pixels says nothing. The
    loss alone, where the task has no other metric.
    """
    headline, *others = [metric for metric in task.metrics if metric.name != "miou"]
    return [headline, *others[-1:]]


def of_pixel_attacks(
    measure: str,
    task: Task,
    found: Mapping[int, Arrays],
    eps: float,
    seed: int,
    units: Units | None = None,
) -> list[Record]:
    """What PGD on the loss of some output pixels does to these same pixels.

    Args:
      measure: "pixels" or "blocks".
      task: The attacked one.
      found: {number of pixels: {"clean/<metric>", "attacked/<metric>":
        `[draws, N, K]`, rows of the metric}}.
      eps: Radius in levels.
      seed: Seed of the intervals.
      units: What is drawn for them; None: each image by itself.
    """
    records = []
    for (count, arrays), metric in itertools.product(
        sorted(found.items()), shown_metrics(task)
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
            pooled = rows.sum(axis=0)  # Statistics add up, over draws too.
            ends = intervals.of_metric(metric, pooled, units, seed=seed)
            record[names[0]] = number(metric.value(pooled.sum(axis=0)))
            record[names[1]] = [number(end) for end in ends]
        of_draws = metric.value(rows.sum(axis=1))
        record |= {
            "draws": len(rows),
            "deviation_of_draws": number(_deviation(of_draws)),
        }
        records.append(record)
    return records


def _deviation(draws: np.ndarray) -> float:
    """The standard deviation over draws, without NaN; NaN if there are not two."""
    known = draws[~np.isnan(draws)]
    return float(known.std(ddof=1)) if len(known) > 1 else np.nan
