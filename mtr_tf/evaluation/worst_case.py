# SPDX-License-Identifier: Apache-2.0
"""The worst of several attacks: for each image one of them, chosen from their rows.

An attacker may try many attacks and keep, for each image, the one that did most harm.
Mean IoU is not a mean over images, so its choice is improved image by image, as Croce,
Singh and Hein (ECCV 2024) do: the attack on an image is exchanged if that lowers the
mean IoU of the whole set. The result is at most as good for the model as each attack
alone, but it need not be the worst possible choice. A task of weight 0 or below, which
is not to get worse, keeps the first choice.
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

_ROUNDING = 1e-4  # As a share of a loss.
_GAIN = 1e-6  # Rounds of exchanges end when one gains no more.


def choose(cell: Cell, results: Sequence[Result]) -> np.ndarray:
    """The number of the worst result for each image, int `[N]`; the first among equals.

    The worst has the highest score, as the cell's attack judges its points.
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

    It is the number by which attacks compare points (`attacks.judging`), except that
    points of equal harm are equal. A targeted attack is scored against the wanted
    targets, and one on some of the output pixels over these.
    """
    all_rows = rows
    rows = aimed_rows or (wanted_rows if cell.objective.targeted else rows)
    weights = dict(cell.objective.weights)
    scores = judging.score(
        cell.objective.judge,
        BALANCES[cell.objective.balance],
        {task: rows[task] for task in cell.tasks},
        [weights.get(task, 1.0) for task in cell.tasks],
        before_rows or None,
        cell.objective.targeted,
        cell.all_tasks,
    )
    if cell.objective.spare:
        losses, clean = (spared_losses(cell, view) for view in (all_rows, before_rows))
        limits = {task: _round_up(loss) for task, loss in clean.items()}
        scores = sparing.score(scores, losses, limits)
    return scores.numpy()


def spared_losses(cell: Cell, rows: Rows) -> dict[str, np.ndarray]:
    """{spared task: the loss of each image, float `[N]`}, from rows."""
    return {task: loss_rows(cell, task, rows)[:, 0] for task in cell.objective.spare}


def spared_share(
    cell: Cell, task: str, rows: Rows, clean: Rows
) -> tuple[float | None, int]:
    """The share of images in which a spared task is at or below its clean loss.

    Rounding is allowed for, as images are attacked and scored in different graphs.

    Returns:
      (share, number of images with a target); the share is None if there are none.
    """
    attacked_rows, clean_rows = (loss_rows(cell, task, view) for view in (rows, clean))
    is_spared = (attacked_rows[:, 0] <= _round_up(clean_rows[:, 0]))[
        clean_rows[:, 1] > 0
    ]
    return (float(is_spared.mean()) if is_spared.size else None), is_spared.size


def loss_rows(cell: Cell, task: str, rows: Rows) -> np.ndarray:
    """A task's rows of its loss, `[N, 2]`: the loss of each image, and its count."""
    return rows[task][judging.metric(cell.all_tasks[task], judging.LOSS).name]


def _round_up(losses: np.ndarray) -> np.ndarray:
    return losses + _ROUNDING * np.abs(losses)


def chosen(choice: np.ndarray, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The row of each image, `[N, ...]`, in the array of the attack chosen for it."""
    return np.stack(arrays)[choice, np.arange(len(choice))]


def take(choice: np.ndarray, rows: Sequence[Rows]) -> dict[str, dict[str, np.ndarray]]:
    """The rows of each image under the attack chosen for it."""
    return {
        task: {name: chosen(choice, [r[task][name] for r in rows]) for name in by_name}
        for task, by_name in rows[0].items()
    }


def combine(cell: Cell, results: Sequence[Result], choice: np.ndarray) -> Rows:
    """The rows of the chosen attacks; for mean IoU the choice is improved first."""
    rows = take(choice, [result.rows for result in results])
    if cell.objective.targeted:
        return rows
    for task in cell.tasks:
        for metric in cell.all_tasks[task].metrics:
            if metric.name == "miou":
                miou_choice = choose_for_miou(cell, results, task, choice)
                matrices = [result.rows[task]["miou"] for result in results]
                rows[task]["miou"] = chosen(miou_choice, matrices)
    return rows


def choose_for_miou(
    cell: Cell, results: Sequence[Result], task: str, choice: np.ndarray
) -> np.ndarray:
    """The choice behind the mean IoU of `combine`, where `choose` gave `choice`.

    Mean IoU is lowered only for tasks that are to get worse: those of weight above 0.
    """
    to_get_worse = dict(cell.objective.weights).get(task, 1.0) > 0
    if cell.objective.targeted or task not in cell.tasks or not to_get_worse:
        return choice
    (metric,) = (m for m in cell.all_tasks[task].metrics if m.name == "miou")
    matrices = np.stack([result.rows[task]["miou"] for result in results])
    if not cell.objective.spare:
        return greedy(metric, matrices, choice, cell.seed)
    # Attacks that do not spare are replaced by the first choice.
    images = np.arange(len(choice))
    scores = np.stack([score_of(cell, result) for result in results])
    harms_spared = scores <= -sparing.FAR
    candidates = np.where(
        harms_spared[:, :, np.newaxis], matrices[choice, images], matrices
    )
    new_choice = greedy(metric, candidates, choice, cell.seed)
    return np.where(harms_spared[new_choice, images], choice, new_choice)


def greedy(
    metric: metrics.Metric, rows: np.ndarray, choice: np.ndarray, seed: int
) -> np.ndarray:
    """Lowers a metric of the whole set by exchanging one image's attack at a time.

    Args:
      metric: Higher is better.
      rows: `[A, N, K]`, of each attack and image.
      choice: int `[N]`, the start, unless a single attack for all images is lower.
      seed: Seed of the order of the images, which is drawn in each round.

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
        old_value = value
        for image in random.permutation(count):
            totals = total - rows[choice[image], image] + rows[:, image]
            candidates = metric.value(totals)
            best = int(np.argmin(candidates))
            if candidates[best] < value:
                choice[image], value, total = best, candidates[best], totals[best]
        gain = old_value - value
    return choice


def pictures(choice: np.ndarray, results: Sequence[Result]) -> dict[str, np.ndarray]:
    """The painted examples of each image under the attack chosen for it."""
    choice = choice[: len(results[0].pictures["image"])]
    return {
        name: chosen(choice, [result.pictures[name] for result in results])
        for name in results[0].pictures
    }


def finite(*harms: np.ndarray) -> list[np.ndarray]:
    """The same arrays, `[N]`, for the images with a finite number in each of them."""
    is_finite = np.all(np.isfinite(harms), axis=0)
    return [np.asarray(harm)[is_finite] for harm in harms]
