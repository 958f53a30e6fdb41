# SPDX-License-Identifier: Apache-2.0
"""Everything that TensorBoard shows of training, attacks, measures and studies.

A `Board` writes one of TensorBoard's runs, which are folders. The functions that make
numbers and pictures are pure and return {tag: value}; `write_*` write whole folders.

Training: one run, so that the list of runs stays short where there are many models. A
tag is `<task>/<metric>, <kind>`, `total/loss, <kind>` (the weighted sum of the tasks'
losses), `<task>/pictures` or `optimizer/<number>`. Kinds are `training`, and `clean`
and `attacked` for validation images. Time Series has a chart for each tag, in which
models are compared; Custom Scalars has a chart for each number, with all its kinds.

Attacks: FOLDER is one run, whatever was attacked, so that the list of runs stays short
and a chart compares models. It has the settings as text, the plots as pictures, and
`<task>_by_eps/<metric>, <attack> on <group>` and `... pictures, ...` for each attack
and group of tasks, apart from the charts of training, whose steps are the optimizer's.
Steps are radii times 100. Another factor, or another norm than linf, is named at the
end of the tag, so that all runs in one chart have the same axis.

Measures and studies: their plots as pictures, with the numbers and the verdicts.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import pathlib
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as layout_summary
from tensorboard.plugins.hparams import api as hp

from mtr_tf import files
from mtr_tf import tasks as tasks_lib
from mtr_tf.evaluation.cell_files import Result
from mtr_tf.evaluation.evaluator import Examples
from mtr_tf.measures.records import Record
from mtr_tf.show.text import capital
from mtr_tf.show.text import markdown as escaped
from mtr_tf.show.text import markdown_table
from mtr_tf.tasks import Task
from mtr_tf.tasks import losses as losses_lib
from mtr_tf.tasks import palettes

EXAMPLES = 2  # In each picture.
_TILE = 128  # The least pixels per side that tiles are scaled up to.
_GAP = 2  # Pixels of white between tiles.
_HEADING = 48  # Pixels above the columns for their headings, of two lines.
_FONT_SIZE = 20  # Readable where a page shows the picture at half its size.
_MARK = ".mtr_tf"  # Ends the names of event files that this module may remove.
_BY_EPS = "_by_eps"
_SCALE = 100  # Steps are radii times this, unless they lie too close.
_POINTS, _REPEATS = 40, 8  # Points of a line between two radii, and at each radius.
_MAGNIFIED = (
    "The perturbation is magnified around grey: its largest change is black or white."
)

TRAINING, CLEAN, ATTACKED = "training", "clean", "attacked"  # Kinds of numbers.
_KIND = ", "  # Precedes the kind in a tag.

_OPTIMIZER = {
    "optimizer/learning_rate": "Learning rate of the last step that was not skipped.",
    "optimizer/loss_scale": (
        "The factor that float16 losses are multiplied by; see Keras."
    ),
    "optimizer/skipped_steps": (
        "Steps so far without an update because gradients overflowed float16; lower "
        "is better, and a few at the start are normal."
    ),
    "optimizer/examples_per_second": (
        "Training examples per second over all replicas, not counting evaluations and "
        "checkpoints; higher is better."
    ),
}
# {loss: metric that equals its mean over images if no pixel is masked}.
_TWINS: dict[Callable[..., Any], str] = {losses_lib.l1: "mae", losses_lib.l2: "mse"}

Columns = dict[str, np.ndarray]
"""{heading: tiles, uint8 [examples, H, W, 3]}, the columns of a picture."""


# Numbers.


def loss_scalars(
    losses: Mapping[str, float], weights: Mapping[str, float] | None = None
) -> dict[str, float]:
    """{<task>/loss: loss} of {task: loss}, and `total/loss`, their weighted sum."""
    scalars = {f"{task}/loss": float(value) for task, value in losses.items()}
    terms = ((1.0 if weights is None else weights[t]) * v for t, v in losses.items())
    # The loss of a task that no image has is NaN.
    total = float(sum(term for term in terms if not math.isnan(term)))
    return scalars | {"total/loss": total}


def evaluation_scalars(
    values: Mapping[str, Mapping[str, float]],
    weights: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Adds tags to the numbers that `evaluator.values` returns.

    Args:
      values: {task: {metric: value}}, each task with its `loss`.
      weights: {task: weight} of the total loss; None: 1 each.

    Returns:
      {<task>/<metric>: value} and `total/loss`.
    """
    scalars = {
        f"{task}/{metric}": value
        for task, metrics in values.items()
        for metric, value in metrics.items()
    }
    losses = {task: metrics["loss"] for task, metrics in values.items()}
    return scalars | loss_scalars(losses, weights)


def of_kind(tag: str, kind: str) -> str:
    """The tag with its kind, `seg/loss, clean`; only for numbers that lack one."""
    has_one = tag.rpartition(_KIND)[2] in (TRAINING, CLEAN, ATTACKED)
    has_kind = has_one or tag.startswith("optimizer/")
    is_number = "/" in tag and not tag.endswith("/pictures")
    return f"{tag}{_KIND}{kind}" if is_number and not has_kind else tag


def layout(tasks: Mapping[str, Task], main: Sequence[str]) -> layout_pb2.Layout:
    """The page Custom Scalars: a section for each task, those of `main` first.

    Each number of a task has a chart, with a line for each kind and run.
    """
    measures_of = {
        name: ("loss", *(m.name for m in tasks[name].all_metrics if m.name != "loss"))
        for name in sorted(tasks, key=lambda name: name not in main)
    }
    return layout_pb2.Layout(
        category=[
            layout_pb2.Category(
                title=name, chart=[_chart(f"{name}/{measure}") for measure in measures]
            )
            for name, measures in {**measures_of, "total": ("loss",)}.items()
        ]
    )


def _chart(tag: str) -> layout_pb2.Chart:
    lines = layout_pb2.MultilineChartContent(tag=[f"{re.escape(tag)}{_KIND}"])
    return layout_pb2.Chart(title=tag, multiline=lines)


def describe(
    tag: str,
    units: Mapping[str, str] | None = None,
    tasks: Mapping[str, Task] | None = None,
    losses: Mapping[str, Callable[..., Any]] | None = None,
) -> str:
    """Says what a number is, its unit, and whether higher or lower is better.

    Args:
      tag: Such as `seg/miou`.
      units: {task: unit} of the data set.
      tasks: All tasks of the numbers; None: the eleven.
      losses: {task: its loss}, for tasks with another loss than their own.
    """
    if tag in _OPTIMIZER:
        return _OPTIMIZER[tag]
    if tag == "total/loss":
        return "Sum of the tasks' losses, each times its weight; lower is better."
    name, measure = tag.split("/", 1)
    if tag.startswith("optimizer/weight_"):
        return f"The learned weight of the loss of {measure.removeprefix('weight_')}."
    task = (tasks_lib.TASKS if tasks is None else tasks)[name]
    metric = next(metric for metric in task.all_metrics if metric.name == measure)
    unit = task.unit_of(metric, units or {})
    unit = f", in {unit}" if unit else ""
    loss = (losses or {}).get(name, task.loss)
    loss_name = losses_lib.name_of(loss)
    kind = f" ({loss_name.replace('_', ' ')})" if measure == "loss" else ""
    text = f"{measure}{kind} of {name}{unit}; {metric.better} is better."
    twins = {"loss", _TWINS.get(loss)}
    if measure in twins and twins <= {metric.name for metric in task.metrics}:
        (twin,) = twins - {measure}
        text += f" Where no pixel is masked, {name}/{twin} is the same number."
    return text


# Pictures.


def pictures(
    examples: Examples,
    tasks: Iterable[str | Task] | Mapping[str, Task],
    info: Any,
    epsilon: float | None = None,
) -> dict[str, Columns]:
    """{<task>/pictures: columns}: image, target, outputs and perturbation.

    Args:
      examples: As `Evaluator.run(keep_examples=...)` returns them; without an attack
        the last two columns are left out.
      tasks: The tasks to paint, each in its own colours; names are of the eleven.
      info: The data set's `DatasetInfo`.
      epsilon: The l-inf radius in [0, 1] that the perturbation's colours span; None or
        0: the largest change of a pixel in all examples.
    """
    return {
        f"{task.name}/pictures": _columns(examples, task, info, epsilon)
        for task in tasks_lib.task_set(tasks).values()
    }


def _columns(
    examples: Examples, task: Task, info: Any, epsilon: float | None
) -> Columns:
    def paint(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return task.to_rgb(outputs[task.name], info, output=True)

    target, mask = examples.targets[task.name], examples.masks[task.name]
    columns = {
        "image": palettes.image_to_rgb(palettes.three_channels(examples.image)),
        "target": task.to_rgb(target, info, mask),
    }
    if examples.clean:
        columns["clean output"] = paint(examples.clean)
    if examples.adversarial is not None:
        change = examples.adversarial - examples.image
        factor = palettes.magnification(change, epsilon)
        columns["attacked output"] = paint(examples.attacked)
        heading = f"perturbation x{factor:.0f}"
        columns[heading] = palettes.perturbation_rgb(
            palettes.three_channels(change), factor
        )
    return columns


def sheet(columns: Columns) -> np.ndarray:
    """One picture, uint8 `[H, W, 3]`: the columns side by side under their headings.

    Small tiles are enlarged by a whole factor, each pixel becoming a square.
    """
    height = max(tile.shape[1] for tile in columns.values())  # Cards are larger.
    width = max(tile.shape[2] for tile in columns.values())
    factor = math.ceil(_TILE / min(height, width))
    tiles = []
    for tile in columns.values():
        scale = factor * height // tile.shape[1]
        tiles.append(tile.repeat(scale, 1).repeat(scale, 2))
    padding = ((_HEADING, 0), (0, 0), (0, 0))
    canvas = Image.fromarray(np.pad(_grid(tiles), padding, constant_values=255))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_FONT_SIZE)
    for number, heading in enumerate(columns):
        middle = number * (width * factor + _GAP) + width * factor / 2
        lines = heading.replace(" ", "\n", 1)
        draw.multiline_text(
            (middle, _HEADING / 2), lines, "black", font, "mm", 2, "center"
        )
    return np.asarray(canvas)


def _grid(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Tiles uint8 `[rows, H, W, 3]`, an array per column, with white between."""
    gap = ((0, 0), (0, _GAP), (0, _GAP), (0, 0))
    padded = [np.pad(column, gap, constant_values=255) for column in columns]
    rows = np.concatenate(padded, axis=2)
    return np.concatenate(rows)[:-_GAP, :-_GAP]


# Settings.


def settings_table(settings: Mapping[str, Any]) -> str:
    """The settings as a Markdown table, in the given order."""
    rows = [("setting", "value")]
    for name, value in settings.items():
        text = _text(value).replace("|", "\\|").replace("`", "'")
        rows.append((name, text and f"`{text}`"))
    return markdown_table(rows)


def hparam_values(settings: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """The settings in types that HParams accepts: numbers, booleans and text."""
    return {
        name: value if isinstance(value, bool | int | float | str) else _text(value)
        for name, value in settings.items()
    }


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


# Writing.


class Board:
    """One run of TensorBoard: the event file of a folder, written to until closed.

    Writing raises `InputError` where the disk is full.
    """

    def __init__(
        self,
        folder: pathlib.Path | None,
        anew: bool = False,
        tasks: Mapping[str, Task] | None = None,
    ):
        """Begins a file.

        Args:
          folder: Of the run; None: nothing is written.
          anew: Whether to remove the files that earlier boards with `anew` have left in
            the folder. Files of a training, which may continue after a stop, are never
            removed here (see `event_files`).
          tasks: All tasks of the numbers; None: the eleven.
        """
        self._tasks = tasks
        self._folder = folder or pathlib.Path()
        if folder is None:
            self._writer = tf.summary.create_noop_writer()
            return
        suffix = _MARK if anew else ""
        if anew:
            _remove_earlier(folder)
        with files.write_errors_explained(folder):
            self._writer = tf.summary.create_file_writer(
                str(folder), filename_suffix=suffix
            )

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *error: object) -> None:
        with files.write_errors_explained(self._folder):
            self._writer.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Sends TensorFlow's summaries inside to this board, then flushes them."""
        with files.write_errors_explained(self._folder), self._writer.as_default():
            yield

    def flush(self) -> None:
        """Makes everything written so far visible to readers."""
        with files.write_errors_explained(self._folder):
            self._writer.flush()

    def scalars(
        self,
        values: Mapping[str, float],
        step: int,
        kind: str = "",
        about: str = "",
        units: Mapping[str, str] | None = None,
        losses: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        """Writes each number that is not NaN.

        Args:
          values: {tag: value}.
          step: Of training, or what takes its place.
          kind: The kind of the numbers, for their tags.
          about: Added to each number's description, for example the images it is over.
          units: The units of the data set's `DatasetInfo`.
          losses: See `describe`.
        """
        for tag, value in values.items():
            text = describe(tag, units, self._tasks, losses)
            description = f"{text} {about}".strip()
            full_tag = f"{tag}{_KIND}{kind}" if kind else tag
            self.number(full_tag, value, step, description)

    def number(self, tag: str, value: float, step: int, about: str = "") -> None:
        """Writes one number as it is, unless it is NaN."""
        if not math.isnan(value):
            with self._writing():
                tf.summary.scalar(tag, value, step, description=about or None)

    def pictures(
        self,
        images: Mapping[str, Columns],
        step: int,
        about: str = "",
    ) -> None:
        """Writes {tag: columns}; the arguments are those of `scalars`."""
        for tag, columns in images.items():
            description = f"Columns: {', '.join(columns)}. {about}".strip()
            self.picture(tag, sheet(columns), step, description)

    def picture(
        self, tag: str, pixels: np.ndarray, step: int = 0, about: str = ""
    ) -> None:
        """Writes one picture, uint8 `[H, W, 3]`."""
        with self._writing():
            tf.summary.image(tag, pixels[np.newaxis], step, 1, about or None)

    def text(self, tag: str, markdown: str) -> None:
        """Writes a text."""
        with self._writing():
            tf.summary.text(tag, markdown, 0)

    def layout(self, layout: layout_pb2.Layout) -> None:
        """Writes what the page Custom Scalars shows."""
        event = layout_summary.pb(layout).SerializeToString()
        with self._writing():
            tf.summary.experimental.write_raw_pb(event, 0)

    def settings(self, settings: Mapping[str, Any]) -> None:
        """Writes the settings as text, tag `settings`."""
        self.text("settings", settings_table(settings))

    def hparams(self, settings: Mapping[str, Any], trial: str) -> None:
        """Writes a row of the HParams table; its metrics are those of this board."""
        with self._writing():
            hp.hparams(hparam_values(settings), trial_id=trial)


def _remove_earlier(folder: pathlib.Path) -> None:
    """Removes the event files of earlier boards with `anew`."""
    for file in folder.glob(f"events.out.tfevents.*{_MARK}*"):
        file.unlink()


# Attacks.


def write_attacks(
    settings: Mapping[str, Any],
    clean: Result,
    results: Sequence[Result],
    folder: pathlib.Path,
    units: Mapping[str, str] | None = None,
    plots: Mapping[str, pathlib.Path] | None = None,
    tasks: Mapping[str, Task] | None = None,
    more: str = "",
) -> None:
    """Writes the run of a sweep, after removing the runs of an earlier one.

    Args:
      settings: Of the attack.
      clean: The result without an attack.
      results: The results of the attacks.
      folder: Of the run.
      units: The units of the data set's `DatasetInfo`.
      plots: {name: PNG file}; the files that exist are shown first.
      tasks: The evaluated tasks; None: the eleven.
      more: A remark on the attacks, for descriptions; may be empty.
    """
    _remove_runs(folder)
    scale = _scale(sorted({0.0, *(r.attack_cell.eps for r in results)}))
    about = _about_radii(clean, results[0], settings["split"], scale)
    about += f" {capital(more)}." if more else ""
    axis = _axis_note(results[0].attack_cell.threat.norm, scale)
    with Board(folder, anew=True) as board:
        board.settings(settings)
        for name, path in (plots or {}).items():
            if path.exists():
                board.picture(f"robustness/{name}", _pixels(path))
        for name, members in itertools.groupby(
            sorted(results, key=_result_name), _result_name
        ):
            members = sorted(members, key=lambda result: result.attack_cell.eps)
            attacked_results = [result for result in members if result.attack_cell.eps]
            for tag in _scores(clean):
                description = f"{describe(tag, units, tasks)} {about}"
                points = _points(tag, clean, attacked_results)
                for step, value in unbendable(points, scale):
                    board.number(
                        _attack_tag(tag, name + axis), value, step, description
                    )
            for result in attacked_results:
                images = {
                    _attack_tag(tag, name + axis): columns
                    for tag, columns in _task_pictures(clean, result).items()
                }
                step = round(result.attack_cell.eps * scale)
                board.pictures(images, step, f"{_MAGNIFIED} {about}")


def _result_name(result: Result) -> str:
    cell = result.attack_cell
    return f"{cell.label} on {cell.group}"


def _attack_tag(tag: str, name: str) -> str:
    task, _, what = tag.partition("/")
    return f"{task}{_BY_EPS}/{what}, {name}"


def _axis_note(norm: str, scale: int) -> str:
    """A note for the tag if the norm or the factor of the steps is unusual."""
    parts = [norm] if norm != "linf" else []
    parts += [f"eps x {scale}"] if scale != _SCALE else []
    return f" ({', '.join(parts)})" if parts else ""


def _points(
    tag: str, clean: Result, results: Sequence[Result]
) -> list[tuple[float, float]]:
    """(eps, value) of the results that have a value."""
    radii = [0.0, *(result.attack_cell.eps for result in results)]
    values = [_scores(result).get(tag) for result in (clean, *results)]
    pairs = zip(radii, values, strict=True)
    return [(eps, value) for eps, value in pairs if value is not None]


def unbendable(
    points: Sequence[tuple[float, float]], scale: int
) -> Iterator[tuple[int, float]]:
    """(step, value) of a curve that TensorBoard's default smoothing hardly changes.

    The smoothing is an exponential mean over points, which ends half way up a curve of
    five points. With many points on straight lines between the measured ones, it stays
    within a few percent of a line's rise, and repeating a measured value makes it
    reach that value.

    Args:
      points: (eps, value), ascending in eps.
      scale: Steps are eps times this.
    """
    for number, (eps, value) in enumerate(points):
        step = round(eps * scale)
        if number:
            previous_eps, previous_value = points[number - 1]
            first_step = round(previous_eps * scale) + (_REPEATS if number > 1 else 0)
            for share in np.linspace(0, 1, _POINTS, endpoint=False)[1:]:
                value_between = previous_value + share * (value - previous_value)
                yield round(first_step + share * (step - first_step)), value_between
        repeats = 1 + (_REPEATS if number else 0)
        yield from ((step + offset, value) for offset in range(repeats))


def _scale(radii: Sequence[float]) -> int:
    """The power of ten, from 100, that leaves room for the points of `unbendable`."""
    gaps = np.diff(radii)
    room = (_POINTS + _REPEATS) / min(gaps, default=1.0)
    return max(_SCALE, 10 ** math.ceil(math.log10(room)))


def _about_radii(clean: Result, attacked: Result, split: str, scale: int) -> str:
    """The part that the descriptions of all numbers share."""
    norm = attacked.attack_cell.threat.norm
    unit = "levels of 0-255" if norm == "linf" else "the plain l2 norm"
    return (
        f"On the first {clean.count} images of {split}. The step is the radius eps "
        f"times {scale} ({norm}, {unit}); 0 means no attack. Between the attacked "
        "radii, the curve is a straight line."
    )


def _scores(result: Result) -> dict[str, float]:
    """Each task's headline metric and its loss."""
    return {
        f"{task}/{metric}": by_metric[metric]["value"]
        for task, by_metric in result.scores.items()
        for metric in dict.fromkeys((next(iter(by_metric)), "loss"))
        if by_metric[metric]["value"] is not None
    }


def _task_pictures(clean: Result, result: Result) -> dict[str, Columns]:
    """The pictures of the first examples for each task, from those of the results."""
    pictures = {}
    for task in clean.scores:
        columns = {
            "image": clean.pictures["image"],
            "target": clean.pictures[f"target/{task}"],
            "clean output": clean.pictures[f"output/{task}"],
            "attacked output": result.pictures[f"output/{task}"],
            "perturbation": result.pictures["perturbation"],
        }
        pictures[f"{task}/pictures"] = {
            heading: tiles[:EXAMPLES] for heading, tiles in columns.items()
        }
    return pictures


def _remove_runs(folder: pathlib.Path) -> None:
    """Removes the runs of an earlier sweep, and folders that become empty."""
    runs = {path.parent for path in folder.glob(f"*/*/events.out.tfevents.*{_MARK}")}
    for run in runs:
        _remove_earlier(run)
    for emptied in (*runs, *{run.parent for run in runs}):
        with contextlib.suppress(OSError):  # It holds something else.
            emptied.rmdir()


# Measures and studies.


def write_measures(
    records: Sequence[Record], plots: Sequence[pathlib.Path], folder: pathlib.Path
) -> None:
    """Writes values over counts, thousandths of eps or severities, and the plots.

    Args:
      records: Of the measures.
      plots: PNG files.
      folder: Of the run; files of an earlier call are removed.
    """
    with Board(folder, anew=True) as board:
        for record in records:
            tag, step = _tag_and_step(record)
            if tag and record["value"] is not None:
                board.number(tag, record["value"], step)
        for path in plots:
            board.picture(path.stem, _pixels(path))


def _tag_and_step(record: Record) -> tuple[str, int]:
    """The tag and step of a measure's record; the tag is empty if it is not shown."""
    measure, task = f"measure_{record['measure']}", "+".join(record.get("tasks", ()))
    count = record.get("count", 0)
    if record["quantity"] == "norm_by_size":
        return f"{measure}/{record['norm']}_{record['normalisation']}", count
    if record["quantity"] == "gradient_norm":
        return f"{measure}/{task}_gradient_{record['norm']}", count
    if record["quantity"] == "attacked_pixels":
        return f"{measure}/{task}_attacked_{record['metric']}", count
    if record["quantity"] == "corrupted":
        name = f"{task}_{record['corruption']}_{record['metric']}"
        return f"{measure}/{name}", record["severity"]
    if record["quantity"] == "rise":
        norm = record.get("norm", "linf")
        suffix = f"_{norm}" if norm != "linf" else ""
        return f"{measure}/{task}{suffix}", round(1000 * record["eps"])
    return "", 0


def write_study(
    plots: Mapping[pathlib.Path, str],
    verdicts: Sequence[Sequence[str]],
    folder: pathlib.Path,
) -> None:
    """Writes a picture per plot, and the verdicts as a text.

    Args:
      plots: {PNG file: what it shows, in words}.
      verdicts: The rows of the table, the first its head.
      folder: Of the run; files of an earlier report are removed.
    """
    rows = [list(map(escaped, row)) for row in verdicts]
    with Board(folder, anew=True) as board:
        board.text("verdicts", markdown_table(rows))
        for path, about in plots.items():
            name = path.stem.replace("-", "/", 1)  # Groups of TensorBoard.
            board.picture(name, _pixels(path), about=about)


def _pixels(path: pathlib.Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
