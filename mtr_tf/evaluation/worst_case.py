# SPDX-License-Identifier: Apache-2.0
"""The worst of several attacks: for each image one of them, chosen from their rows.

An attacker may try many attacks and keep, for each image, the one that did most harm.
Mean IoU is not a mean over images, so its choice is improved image by image, as Croce,
Singh and Hein (ECCV 2024) do: the attack on an image is exchanged if that lowers the
mean IoU of the whole set. The result is at most as good for the model as each attack
alone, but it need not be the very worst choice. A task of weight 0 or
below, which is not to get worse, keeps the attacks that were chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtr_tf.attacks import judging
from mtr_tf.attacks import sparing
from mtr_tf.attacks.balance import BALANCES
from mtr_tf.evaluation.cell_files import Result
from mtr_tf.evaluation.evaluator import Rows
from mtr_tf.evaluation.plan import Cell
from mtr_tf.tasks import metrics

_ROUNDING = 1e-4  # Of a loss, as a share of it.
_GAIN = 1e-6  # Rounds of exchanges end when one gains no more.


def choose(cell: Cell, results: Sequence[Result]) -> np.ndarray:
    """The number of the worst result for each image, int `[N]`; the first among equals.

    Worst is the highest score as the cell's attack judges its own points.
    """
    scores = [score_of(cell, result) for result in results]
    return np.argmax(np.where(np.isnan(scores), -np.inf, scores), axis=0)


def score_of(cell: Cell, result: Result) -> np.ndarray:
    """The score of each image of a result, float `[N]`, as the cell judges it."""
    aimed = result.aimed_rows
    return score(cell, result.rows, result.wanted_rows, aimed, result.before_rows)


def score(
    cell: Cell, rows: Rows, wanted_rows: Rows, aimed_rows: Rows, before_rows: Rows
) -> np.ndarray:
    """The score of each image, float `[N]`, from its rows (see `cell_files.Result`).

    The number that attacks compare points by (`attacks.judging`), but that points of
    equal harm are equal: of a targeted attack by the wanted targets, of one on some of
    the output pixels by these.
    """
    whole = rows
    rows = aimed_rows or (wanted_rows if cell.objective.targeted else rows)
    weights = dict(cell.objective.weights)
    scores = judging.score(
        cell.objective.judge,
        BALANCES[cell.objective.balance],
        {task: rows[task] for task in cell.tasks},
        [weights.get(task, 1.0) for task in cell.tasks],
        before_rows or None,
        cell.objective.targeted,
        cell.known,
    )
    if cell.objective.spare:
        losses, clean = (spared_losses(cell, view) for view in (whole, before_rows))
        allowed = {task: _rounded_up(before) for task, before in clean.items()}
        scores = sparing.score(scores, losses, allowed)
    return scores.numpy()


def spared_losses(cell: Cell, rows: Rows) -> dict[str, np.ndarray]:
    """{spared task: its loss of each image, float `[N]`}, from rows."""
    return {task: loss_rows(cell, task, rows)[:, 0] for task in cell.objective.spare}


def spared_share(
    cell: Cell, task: str, rows: Rows, clean: Rows
) -> tuple[float | None, int]:
    """In which share of images a spared task is at or below its clean loss.

    But for rounding: images are attacked and scored in different graphs.

    Returns:
      (share, of how many images: those with a target); the share is None if none has.
    """
    after, before = (loss_rows(cell, task, view) for view in (rows, clean))
    spared = (after[:, 0] <= _rounded_up(before[:, 0]))[before[:, 1] > 0]
    return (float(spared.mean()) if spared.size else None), spared.size


def loss_rows(cell: Cell, task: str, rows: Rows) -> np.ndarray:
    """A task's rows of its loss, `[N, 2]`: the loss of each image, and how often."""
    return rows[task][judging.metric(cell.known[task], judging.LOSS).name]


def _rounded_up(losses: np.ndarray) -> np.ndarray:
    return losses + _ROUNDING * np.abs(losses)


def take(choice: np.ndarray, rows: Sequence[Rows]) -> dict[str, dict[str, np.ndarray]]:
    """The rows of each image under the attack chosen for it."""
    images = np.arange(len(choice))
    return {
        task: {
            name: np.stack([r[task][name] for r in rows])[choice, images]
            for name in rows[0][task]
        }
        for task in rows[0]
    }


def combine(cell: Cell, results: Sequence[Result], choice: np.ndarray) -> Rows:
    """The rows of the chosen attacks; for mean IoU the choice is improved first."""
    rows = take(choice, [result.rows for result in results])
    if cell.objective.targeted:
        return rows
    for task in cell.tasks:
        for metric in cell.known[task].metrics:
            if metric.name == "miou":
                better = choose_for_miou(cell, results, task, choice)
                matrices = np.stack([r.rows[task]["miou"] for r in results])
                rows[task]["miou"] = matrices[better, np.arange(len(better))]
    return rows


def choose_for_miou(
    cell: Cell, results: Sequence[Result], task: str, choice: np.ndarray
) -> np.ndarray:
    """The choice behind the mean IoU of `combine`, where `choose` gave `choice`.

    It is lowered only for tasks that are to get worse: those of weight above 0.
    """
    to_get_worse = dict(cell.objective.weights).get(task, 1.0) > 0
    if cell.objective.targeted or task not in cell.tasks or not to_get_worse:
        return choice
    (metric,) = (m for m in cell.known[task].metrics if m.name == "miou")
    matrices = np.stack([result.rows[task]["miou"] for result in results])
    if not cell.objective.spare:
        return greedy(metric, matrices, choice, cell.seed)
    # What does not spare is no candidate: the one chosen before stands in its place.
    images = np.arange(len(choice))
    scores = np.stack([score_of(cell, result) for result in results])
    hurts = scores <= -sparing.FAR
    spares = np.where(hurts[:, :, np.newaxis], matrices[choice, images], matrices)
    better = greedy(metric, spares, choice, cell.seed)
    return np.where(hurts[better, images], choice, better)


def greedy(
    metric: metrics.Metric, rows: np.ndarray, choice: np.ndarray, seed: int
) -> np.ndarray:
    """Lowers a metric of the whole set by exchanging one image's attack at a time.

    Args:
      metric: Higher is better.
      rows: `[A, N, K]`, of each attack and image.
      choice: int `[N]`, where to start; one attack for all is taken if that is lower.
      seed: Of the order of the images, which is drawn anew in each round.

    Returns:
      int `[N]`: a choice that no exchange of one image's attack lowers by much.
    """
    rows = np.asarray(rows, np.float64)
    count = len(choice)
    starts = [choice, *(np.full(count, number) for number in range(len(rows)))]
    values = [metric.value(rows[s, np.arange(count)].sum(0)) for s in starts]
    choice, value = starts[np.argmin(values)].copy(), float(np.min(values))
    total = rows[choice, np.arange(count)].sum(axis=0)
    random = np.random.default_rng(seed)
    gain = np.inf
    while gain > _GAIN:
        before = value
        for image in random.permutation(count):
            totals = total - rows[choice[image], image] + rows[:, image]
            candidates = metric.value(totals)
            best = int(np.argmin(candidates))
            if candidates[best] < value:
                choice[image], value, total = best, candidates[best], totals[best]
        gain = before - value
    return choice


def pictures(choice: np.ndarray, results: Sequence[Result]) -> dict[str, np.ndarray]:
    """The painted examples of each image under the attack chosen for it."""
    shown = len(results[0].pictures["image"])
    return {
        name: np.stack([r.pictures[name] for r in results])[
            choice[:shown], np.arange(shown)
        ]
        for name in results[0].pictures
    }


def finite(*harms: np.ndarray) -> list[np.ndarray]:
    """The same of the images that have a finite number in each of these, `[N]`."""
    known = np.all(np.isfinite(harms), axis=0)
    return [np.asarray(of_each)[known] for of_each in harms]
