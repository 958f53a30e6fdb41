# SPDX-License-Identifier: Apache-2.0
"""What a model scores on a batch, and what a guess would that never looks at it."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mtr_tf import tasks as tasks_lib
from mtr_tf.evaluation import evaluator


def scores(
    task: str, output: np.ndarray, batch: Mapping[str, Any], num_classes: int
) -> np.ndarray:
    """All metrics of a task but the loss, the headline first, float64 `[metrics]`."""
    rows = tasks_lib.statistics(
        (task,),
        {task: tf.constant(output)},
        batch["targets"],
        batch["masks"],
        num_classes,
    )
    values = evaluator.values(tf.nest.map_structure(np.asarray, rows))[task]
    return np.array([values[metric.name] for metric in _metrics(task)])


def errors(task: str, of: np.ndarray) -> np.ndarray:
    """Such scores, `[..., metrics]`, as errors: 1 - score where higher is better."""
    higher = [metric.better == "higher" for metric in _metrics(task)]
    return np.where(higher, 1 - of, of)


def constant(task: str, batch: Mapping[str, Any], num_classes: int) -> np.ndarray:
    """The best of each metric that a constant comes to, `[metrics]`.

    Of classes always the commonest one of the batch, else the median or the mean of its
    targets, by channel. Some pixel of the task must be valid.
    """
    mask = batch["masks"][task]
    values = batch["targets"][task][mask > 0]
    if tasks_lib.TASKS[task].discrete:
        counts = np.bincount(values.astype(np.int64), minlength=num_classes)
        commonest = counts[:num_classes].argmax()
        guesses = [np.eye(num_classes, dtype=np.float32)[commonest]]
    else:
        guesses = [np.median(values, axis=0), np.mean(values, axis=0)]
    shape = (*mask.shape, len(guesses[0]))
    found = np.stack(
        [scores(task, np.broadcast_to(g, shape), batch, num_classes) for g in guesses]
    )
    best = errors(task, found).argmin(axis=0)
    return found[best, np.arange(len(best))]


def no_better(of: np.ndarray, guess: np.ndarray, task: str) -> bool:
    """Whether scores are in no metric better than a guess's."""
    return bool(np.all(errors(task, of) >= errors(task, guess)))


def share_of_error(
    outputs: Mapping[str, np.ndarray],
    batch: Mapping[str, Any],
    tasks: Sequence[str],
    num_classes: int,
) -> float:
    """The headline's error as a share of a constant's, mean over tasks."""
    shares = []
    for task in tasks:
        of = scores(task, outputs[task], batch, num_classes)
        guess = constant(task, batch, num_classes)
        error, worst = errors(task, of)[0], errors(task, guess)[0]
        shares.append(error / worst if worst else np.inf)
    return float(np.mean(shares))


def _metrics(task: str) -> Sequence[Any]:
    return tasks_lib.TASKS[task].metrics[:-1]
