# SPDX-License-Identifier: Apache-2.0
"""What TensorBoard shows, for training and attacks: numbers, pictures, settings.

The functions that make numbers and pictures are pure and return {tag: value}; those
named `write_*` hand them to the default writer (`with writer.as_default():`).

Tags: `loss/<task>` and `loss/total`; `eval/clean/<task>/<metric>` and
`eval/adversarial/<task>/<metric>`, with `total/loss` for the weighted sum of the tasks'
losses; `pictures/<task>`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hp

from mtr_tf import palettes
from mtr_tf import tasks as tasks_lib
from mtr_tf.evaluation import Examples

COLUMNS = (
    "image",
    "target",
    "clean output",
    "adversarial output",
    "perturbation, magnified around grey",
)
_GAP = 2  # Pixels of white between the tiles of a grid.


def loss_scalars(
    losses: Mapping[str, float], weights: Mapping[str, float] | None = None
) -> dict[str, float]:
    """{task: loss} -> {loss/<task>: loss} and `loss/total`, their weighted sum."""
    tagged = {f"loss/{task}": float(value) for task, value in losses.items()}
    return tagged | {"loss/total": _total(losses, weights)}


def evaluation_scalars(
    kind: str,
    values: Mapping[str, Mapping[str, float]],
    weights: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Tags what `evaluation.values` returns.

    Args:
      kind: `clean` or `adversarial`.
      values: {task: {metric: value}}, each task with its `loss`.
      weights: {task: weight} of the total loss; None: 1 each.

    Returns:
      {eval/<kind>/<task>/<metric>: value} and `eval/<kind>/total/loss`.
    """
    tagged = {
        f"eval/{kind}/{task}/{metric}": value
        for task, metrics in values.items()
        for metric, value in metrics.items()
    }
    losses = {task: metrics["loss"] for task, metrics in values.items()}
    return tagged | {f"eval/{kind}/total/loss": _total(losses, weights)}


def _total(losses: Mapping[str, float], weights: Mapping[str, float] | None) -> float:
    """The weighted sum, without the tasks that no image has (NaN)."""
    terms = ((1.0 if weights is None else weights[t]) * v for t, v in losses.items())
    return float(sum(term for term in terms if not math.isnan(term)))


def pictures(
    examples: Examples, tasks: Iterable[str], info: Any, epsilon: float | None = None
) -> dict[str, np.ndarray]:
    """{pictures/<task>: uint8 [H, W, 3]}: one row per example, `COLUMNS` side by side.

    Args:
      examples: As `Evaluator.run(keep_examples=...)` returns them; without an attack
        the last two columns are left out.
      tasks: Which to paint, each by its own colours.
      info: The data set's `DatasetInfo`.
      epsilon: The l-inf radius in [0, 1] that the perturbation's colours span; None or
        0: the largest change of a pixel in all examples.
    """
    return {
        f"pictures/{task}": grid(tiles(examples, task, info, epsilon)) for task in tasks
    }


def tiles(
    examples: Examples, task: str, info: Any, epsilon: float | None = None
) -> list[np.ndarray]:
    """The columns of a picture, each uint8 `[examples, H, W, 3]`; see `pictures`."""
    to_rgb = tasks_lib.TASKS[task].to_rgb
    columns = [
        palettes.image_to_rgb(examples.image),
        to_rgb(examples.targets[task], info, examples.masks[task]),
    ]
    if examples.clean:
        columns.append(to_rgb(examples.clean[task], info))
    if examples.adversarial is not None:
        change = examples.adversarial - examples.image
        columns.append(to_rgb(examples.attacked[task], info))
        columns.append(
            palettes.perturbation_rgb(change, magnification(change, epsilon))
        )
    return columns


def magnification(change: np.ndarray, epsilon: float | None = None) -> float:
    """The factor that spreads changes of up to `epsilon` over black to white."""
    largest = epsilon or float(np.abs(change).max(initial=0))
    return 0.5 / largest if largest else 1.0


def grid(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Tiles uint8 `[rows, H, W, 3]` arrays, one per column, with white between."""
    rows, height, width, _ = columns[0].shape
    canvas = np.full(
        (
            rows * (height + _GAP) - _GAP,
            len(columns) * (width + _GAP) - _GAP,
            3,
        ),
        255,
        np.uint8,
    )
    for j, column in enumerate(columns):
        for i, tile in enumerate(column):
            y, x = i * (height + _GAP), j * (width + _GAP)
            canvas[y : y + height, x : x + width] = tile
    return canvas


def settings_table(settings: Mapping[str, Any]) -> str:
    """The settings as a Markdown table, in their own order."""
    rows = [f"| {name} | `{_text(value)}` |" for name, value in settings.items()]
    return "\n".join(["| setting | value |", "| --- | --- |", *rows])


def hparam_values(settings: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """The settings as HParams takes them: numbers, booleans and text only."""
    return {
        name: value if isinstance(value, bool | int | float | str) else _text(value)
        for name, value in settings.items()
    }


def write_scalars(values: Mapping[str, float], step: int) -> None:
    """Writes each number that is not NaN."""
    for tag, value in values.items():
        if not math.isnan(value):
            tf.summary.scalar(tag, value, step)


def write_pictures(images: Mapping[str, np.ndarray], step: int) -> None:
    """Writes {tag: uint8 [H, W, 3]}."""
    for tag, image in images.items():
        description = "Columns: " + " | ".join(COLUMNS)
        tf.summary.image(tag, image[np.newaxis], step, description=description)


def write_settings(settings: Mapping[str, Any], trial: str) -> None:
    """Writes the settings as text (tag `settings`) and as HParams of a run."""
    tf.summary.text("settings", settings_table(settings), 0)
    hp.hparams(hparam_values(settings), trial_id=trial)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).replace("|", "\\|")
