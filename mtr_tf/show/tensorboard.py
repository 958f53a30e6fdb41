# SPDX-License-Identifier: Apache-2.0
"""What TensorBoard shows, for training and attacks: numbers, pictures, settings.

The functions that make numbers and pictures are pure and return {tag: value}; those
named `write_*` hand them to the default writer (`with writer.as_default():`).

A tag is `<task>/<metric>`, `total/loss` (the weighted sum of the tasks' losses),
`<task>/pictures` or `optimizer/<number>`. Runs of TensorBoard, which are folders, say
of what: `train`, `validation` (clean) and `validation/adversarial` have the same tags,
so that each chart shows them side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont
from tensorboard.plugins.hparams import api as hp

from mtr_tf import tasks as tasks_lib
from mtr_tf.evaluation.evaluator import Examples
from mtr_tf.tasks import losses as losses_lib
from mtr_tf.tasks import palettes

EXAMPLES = 2  # In each picture.
_TILE = 128  # Tiles are scaled up to at least so many pixels a side.
_GAP = 2  # Pixels of white between tiles.
_HEADING = 20  # Pixels above the columns for their headings.
_FONT_SIZE = 14

_OPTIMIZER = {
    "optimizer/learning_rate": "Learning rate of the last step.",
    "optimizer/loss_scale": "What float16 losses are multiplied by; see Keras.",
    "optimizer/skipped_steps": (
        "Steps so far without an update, since gradients overflowed float16; lower is "
        "better, and a few at the start are usual."
    ),
    "optimizer/examples_per_second": (
        "Training examples per second over all replicas, without the time for "
        "evaluations and checkpoints; higher is better."
    ),
}
# What the mean of a loss over images is the same number as, if no pixel is masked.
_TWINS = {losses_lib.l1: "mae", losses_lib.l2: "mse"}

Columns = dict[str, np.ndarray]
"""{heading: tiles, uint8 [examples, H, W, 3]}, the columns of a picture."""


# Numbers.


def loss_scalars(
    losses: Mapping[str, float], weights: Mapping[str, float] | None = None
) -> dict[str, float]:
    """{task: loss} -> {<task>/loss: loss} and `total/loss`, their weighted sum."""
    tagged = {f"{task}/loss": float(value) for task, value in losses.items()}
    return tagged | {"total/loss": _total(losses, weights)}


def evaluation_scalars(
    values: Mapping[str, Mapping[str, float]],
    weights: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Tags what `evaluation.values` returns.

    Args:
      values: {task: {metric: value}}, each task with its `loss`.
      weights: {task: weight} of the total loss; None: 1 each.

    Returns:
      {<task>/<metric>: value} and `total/loss`.
    """
    tagged = {
        f"{task}/{metric}": value
        for task, metrics in values.items()
        for metric, value in metrics.items()
    }
    losses = {task: metrics["loss"] for task, metrics in values.items()}
    return tagged | {"total/loss": _total(losses, weights)}


def _total(losses: Mapping[str, float], weights: Mapping[str, float] | None) -> float:
    """The weighted sum, without the tasks that no image has (NaN)."""
    terms = ((1.0 if weights is None else weights[t]) * v for t, v in losses.items())
    return float(sum(term for term in terms if not math.isnan(term)))


def describe(tag: str, units: Mapping[str, str] | None = None) -> str:
    """What a number is, its unit (`units`: the data set's), which way is better."""
    if tag in _OPTIMIZER:
        return _OPTIMIZER[tag]
    if tag == "total/loss":
        return "Sum of the tasks' losses, each times its weight; lower is better."
    name, measure = tag.split("/")
    if measure.startswith("weight_"):
        return f"What the loss of {measure.removeprefix('weight_')} weighs, as learned."
    task = tasks_lib.TASKS[name]
    metric = next(metric for metric in task.metrics if metric.name == measure)
    unit = task.unit_of(metric, units or {})
    unit = f", in {unit}" if unit else ""
    kind = f" ({task.loss.__name__.replace('_', ' ')})" if measure == "loss" else ""
    text = f"{measure}{kind} of {name}{unit}; {metric.better} is better."
    same = {"loss", _TWINS.get(task.loss)}
    if measure in same and same <= {metric.name for metric in task.metrics}:
        (other,) = same - {measure}
        text += f" Where no pixel is masked, {name}/{other} is the same number."
    return text


# Pictures.


def pictures(
    examples: Examples, tasks: Iterable[str], info: Any, epsilon: float | None = None
) -> dict[str, Columns]:
    """{<task>/pictures: columns}: image, target, outputs and perturbation.

    Args:
      examples: As `Evaluator.run(keep_examples=...)` returns them; without an attack
        the last two columns are left out.
      tasks: Which to paint, each by its own colours.
      info: The data set's `DatasetInfo`.
      epsilon: The l-inf radius in [0, 1] that the perturbation's colours span; None or
        0: the largest change of a pixel in all examples.
    """
    return {
        f"{task}/pictures": _columns(examples, task, info, epsilon) for task in tasks
    }


def _columns(
    examples: Examples, task: str, info: Any, epsilon: float | None
) -> Columns:
    to_rgb = tasks_lib.TASKS[task].to_rgb
    columns = {
        "image": palettes.image_to_rgb(examples.image),
        "target": to_rgb(examples.targets[task], info, examples.masks[task]),
    }
    if examples.clean:
        columns["clean output"] = to_rgb(examples.clean[task], info)
    if examples.adversarial is not None:
        change = examples.adversarial - examples.image
        factor = magnification(change, epsilon)
        columns["attacked output"] = to_rgb(examples.attacked[task], info)
        heading = f"perturbation x{factor:.0f}"
        columns[heading] = palettes.perturbation_rgb(change, factor)
    return columns


def magnification(change: np.ndarray, epsilon: float | None = None) -> float:
    """The factor that spreads changes of up to `epsilon` over black to white."""
    largest = epsilon or float(np.abs(change).max(initial=0))
    return 0.5 / largest if largest else 1.0


def sheet(columns: Columns) -> np.ndarray:
    """One picture, uint8 `[H, W, 3]`: the columns side by side under their headings.

    Small tiles are enlarged by a whole factor, each pixel becoming a square.
    """
    height, width = next(iter(columns.values())).shape[1:3]
    factor = math.ceil(_TILE / min(height, width))
    tiles = [tile.repeat(factor, 1).repeat(factor, 2) for tile in columns.values()]
    above = ((_HEADING, 0), (0, 0), (0, 0))
    canvas = Image.fromarray(np.pad(grid(tiles), above, constant_values=255))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_FONT_SIZE)
    for number, heading in enumerate(columns):
        middle = number * (width * factor + _GAP) + width * factor / 2
        draw.text((middle, _HEADING / 2), heading, "black", font, anchor="mm")
    return np.asarray(canvas)


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


# Settings.


def settings_table(settings: Mapping[str, Any]) -> str:
    """The settings as a Markdown table, in their own order."""
    texts = {name: _text(value) for name, value in settings.items()}
    rows = [f"| {name} | {text and f'`{text}`'} |" for name, text in texts.items()]
    return "\n".join(["| setting | value |", "| --- | --- |", *rows])


def hparam_values(settings: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """The settings as HParams takes them: numbers, booleans and text only."""
    return {
        name: value if isinstance(value, bool | int | float | str) else _text(value)
        for name, value in settings.items()
    }


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).replace("|", "\\|")


# Writing.


def write_scalars(
    values: Mapping[str, float],
    step: int,
    about: str = "",
    suffix: str = "",
    units: Mapping[str, str] | None = None,
) -> None:
    """Writes each number that is not NaN.

    Args:
      values: {tag: value}.
      step: Of training, or what stands for it.
      about: Added to each number's description: over which images, for example.
      suffix: Added to the first part of each tag.
      units: Those of the data set's `DatasetInfo`.
    """
    for tag, value in values.items():
        if not math.isnan(value):
            name = _with_suffix(tag, suffix)
            description = f"{describe(tag, units)} {about}".strip()
            tf.summary.scalar(name, value, step, description=description)


def write_pictures(
    images: Mapping[str, Columns], step: int, about: str = "", suffix: str = ""
) -> None:
    """Writes {tag: columns}; the arguments are those of `write_scalars`."""
    for tag, columns in images.items():
        name = _with_suffix(tag, suffix)
        description = f"Columns: {', '.join(columns)}. {about}".strip()
        tf.summary.image(name, sheet(columns)[np.newaxis], step, 1, description)


def _with_suffix(tag: str, suffix: str) -> str:
    group, _, name = tag.partition("/")
    return f"{group}{suffix}/{name}"


def write_settings(settings: Mapping[str, Any]) -> None:
    """Writes the settings as text, tag `settings`."""
    tf.summary.text("settings", settings_table(settings), 0)


def write_hparams(settings: Mapping[str, Any], trial: str) -> None:
    """Writes a row of the HParams table; its metrics are those of the same writer."""
    hp.hparams(hparam_values(settings), trial_id=trial)
