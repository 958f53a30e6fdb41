# SPDX-License-Identifier: Apache-2.0
"""All that TensorBoard shows: of training, attacks, measures and studies.

A `Board` writes one of its runs, which are folders. The functions that make numbers and
pictures are pure and return {tag: value}; `write_*` write whole folders.

Training: one run, so that the list of runs stays short where there are many models. A
tag is `<task>/<metric>, <kind>`, `total/loss, <kind>` (the weighted sum of the tasks'
losses), `<task>/pictures` or `optimizer/<number>`. Kinds are `training`, and `clean`
and `attacked` for validation images. Time Series has a chart for each tag, in which
models are compared; Custom Scalars has a chart for each number, with all its kinds.

Attacks: FOLDER is one run, whatever was attacked, so that the list of runs stays short
and a chart compares models. It has the settings as text, the plots as pictures, and
`<task>_by_eps/<metric>, <attack> on <group>` and `... pictures, ...` for each attack
and group of tasks, apart from the charts of training, whose steps are the optimizer's.
Steps are radii times 100; what has another factor, or another norm than linf, says so
at the end of its tag, so that all runs in one chart have the same axis.

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
_TILE = 128  # Tiles are scaled up to at least so many pixels a side.
_GAP = 2  # Pixels of white between tiles.
_HEADING = 48  # Pixels above the columns for their headings, of two lines.
_FONT_SIZE = 20  # To be read where a page shows the picture at half its size.
_MARK = ".mtr_tf"  # Ends the names of event files that are ours to remove.
_BY_EPS = "_by_eps"
_SCALE = 100  # Steps are radii times this, unless they lie too close.
_BETWEEN, _REPEATED = 40, 8  # Points of a line between two radii, and at each radius.
_MAGNIFIED = (
    "The perturbation is magnified around grey: its largest change is black or white."
)

TRAINING, CLEAN, ATTACKED = "training", "clean", "attacked"  # Kinds of numbers.
_KIND = ", "  # Stands before it in a tag.

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
# What the mean of a loss over images is the same number as, if no pixel is masked.
_TWINS: dict[Callable[..., Any], str] = {losses_lib.l1: "mae", losses_lib.l2: "mse"}

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
    """Tags what `evaluator.values` returns.

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


def of_kind(tag: str, kind: str) -> str:
    """The tag of a number with its kind, unless that is known: `seg/loss, clean`."""
    has_one = tag.rpartition(_KIND)[2] in (TRAINING, CLEAN, ATTACKED)
    known = has_one or tag.startswith("optimizer/")
    is_number = "/" in tag and not tag.endswith("/pictures")
    return f"{tag}{_KIND}{kind}" if is_number and not known else tag


def layout(tasks: Mapping[str, Task], main: Sequence[str]) -> layout_pb2.Layout:
    """The page Custom Scalars: a section for each task, those of `main` first.

    Each number of a task has a chart, with a line for each kind and run.
    """
    numbers = {
        name: ("loss", *(m.name for m in tasks[name].all_metrics if m.name != "loss"))
        for name in sorted(tasks, key=lambda name: name not in main)
    }
    return layout_pb2.Layout(
        category=[
            layout_pb2.Category(
                title=name, chart=[_chart(f"{name}/{measure}") for measure in measures]
            )
            for name, measures in {**numbers, "total": ("loss",)}.items()
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
    """What a number is, its unit (`units`: the data set's), which way is better.

    Args:
      tag: Such as `seg/miou`.
      units: By task, the data set's.
      tasks: Those that there are; None: the eleven.
      losses: By task, what its `loss` is, where that is not its own.
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
    called = losses_lib.name_of(loss)
    kind = f" ({called.replace('_', ' ')})" if measure == "loss" else ""
    text = f"{measure}{kind} of {name}{unit}; {metric.better} is better."
    same = {"loss", _TWINS.get(loss)}
    if measure in same and same <= {metric.name for metric in task.metrics}:
        (other,) = same - {measure}
        text += f" Where no pixel is masked, {name}/{other} is the same number."
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
      tasks: Which to paint, each by its own colours; names are those of the eleven.
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
    def painted(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return task.to_rgb(outputs[task.name], info, output=True)

    target, mask = examples.targets[task.name], examples.masks[task.name]
    columns = {
        "image": palettes.image_to_rgb(palettes.three_channels(examples.image)),
        "target": task.to_rgb(target, info, mask),
    }
    if examples.clean:
        columns["clean output"] = painted(examples.clean)
    if examples.adversarial is not None:
        change = examples.adversarial - examples.image
        factor = palettes.magnification(change, epsilon)
        columns["attacked output"] = painted(examples.attacked)
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
    tiles = [_enlarged(tile, factor * height) for tile in columns.values()]
    above = ((_HEADING, 0), (0, 0), (0, 0))
    canvas = Image.fromarray(np.pad(_grid(tiles), above, constant_values=255))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_FONT_SIZE)
    for number, heading in enumerate(columns):
        middle = number * (width * factor + _GAP) + width * factor / 2
        lines = heading.replace(" ", "\n", 1)
        draw.multiline_text(
            (middle, _HEADING / 2), lines, "black", font, "mm", 2, "center"
        )
    return np.asarray(canvas)


def _enlarged(tiles: np.ndarray, height: int) -> np.ndarray:
    """Tiles `[rows, H, W, 3]` of that height, a multiple of theirs."""
    factor = height // tiles.shape[1]
    return tiles.repeat(factor, 1).repeat(factor, 2)


def _grid(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Tiles uint8 `[rows, H, W, 3]`, an array per column, with white between."""
    gap = ((0, 0), (0, _GAP), (0, _GAP), (0, 0))
    padded = [np.pad(column, gap, constant_values=255) for column in columns]
    rows = np.concatenate(padded, axis=2)
    return np.concatenate(rows)[:-_GAP, :-_GAP]


# Settings.


def settings_table(settings: Mapping[str, Any]) -> str:
    """The settings as a Markdown table, in their own order."""
    rows = [("setting", "value")]
    for name, value in settings.items():
        text = _text(value).replace("|", "\\|").replace("`", "'")
        rows.append((name, text and f"`{text}`"))
    return markdown_table(rows)


def hparam_values(settings: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """The settings as HParams takes them: numbers, booleans and text only."""
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
          anew: Remove those that earlier boards with `anew` have left in the folder;
            the files of a training, which goes on after a stop, are never removed
            here (see `event_files`).
          tasks: Those of the numbers; None: they are of the eleven.
        """
        self._tasks = tasks
        self._folder = folder or pathlib.Path()
        if folder is None:
            self._writer = tf.summary.create_noop_writer()
            return
        mark = _MARK if anew else ""
        if anew:
            _remove_earlier(folder)
        with files.write_errors_explained(folder):
            self._writer = tf.summary.create_file_writer(
                str(folder), filename_suffix=mark
            )

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *error: object) -> None:
        with files.write_errors_explained(self._folder):
            self._writer.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What TensorFlow summarises inside goes here, and is flushed at the end."""
        with files.write_errors_explained(self._folder), self._writer.as_default():
            yield

    def flush(self) -> None:
        """Lets readers see what is written."""
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
          step: Of training, or what stands for it.
          kind: Of the numbers, for their tags.
          about: Added to each number's description: over which images, for example.
          units: Those of the data set's `DatasetInfo`.
          losses: See `describe`.
        """
        for tag, value in values.items():
            what = describe(tag, units, self._tasks, losses)
            description = f"{what} {about}".strip()
            shown = f"{tag}{_KIND}{kind}" if kind else tag
            self.number(shown, value, step, description)

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
    """Removes event files that were written anew before."""
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
    """Writes the run of a sweep; those of an earlier one are removed first.

    Args:
      settings: Of the attack.
      clean: The result without an attack.
      results: Those of the attacks.
      folder: Of the run.
      units: Those of the data set's `DatasetInfo`.
      plots: {name: PNG file}, shown first where they are there.
      tasks: Those that were looked at; None: the eleven.
      more: What else is to be said of the attacks; empty: nothing.
    """
    _remove_runs(folder)
    scale = _scale(sorted({0.0, *(r.attack_cell.eps for r in results)}))
    about = _about_radii(clean, results[0], settings["split"], scale)
    about += f" {capital(more)}." if more else ""
    axis = _axis(results[0].attack_cell.threat.norm, scale)
    with Board(folder, anew=True) as board:
        board.settings(settings)
        for name, path in (plots or {}).items():
            if path.exists():
                board.picture(f"robustness/{name}", _pixels(path))
        for name, members in itertools.groupby(sorted(results, key=_name), _name):
            members = sorted(members, key=lambda result: result.attack_cell.eps)
            attacked = [result for result in members if result.attack_cell.eps]
            for tag in _scores(clean):
                description = f"{describe(tag, units, tasks)} {about}"
                points = _points(tag, clean, attacked)
                for step, value in unbendable(points, scale):
                    board.number(_of_attack(tag, name + axis), value, step, description)
            for result in attacked:
                images = {
                    _of_attack(tag, name + axis): columns
                    for tag, columns in _painted(clean, result).items()
                }
                step = round(result.attack_cell.eps * scale)
                board.pictures(images, step, f"{_MAGNIFIED} {about}")


def _name(result: Result) -> str:
    cell = result.attack_cell
    return f"{cell.label} on {cell.group}"


def _of_attack(tag: str, name: str) -> str:
    task, _, what = tag.partition("/")
    return f"{task}{_BY_EPS}/{what}, {name}"


def _axis(norm: str, scale: int) -> str:
    """What is not as usual about the steps of a chart, for its tag."""
    parts = [norm] if norm != "linf" else []
    parts += [f"eps x {scale}"] if scale != _SCALE else []
    return f" ({', '.join(parts)})" if parts else ""


def _points(
    tag: str, clean: Result, results: Sequence[Result]
) -> list[tuple[float, float]]:
    """(eps, value) of those results that have one."""
    radii = [0.0, *(result.attack_cell.eps for result in results)]
    values = [_scores(result).get(tag) for result in (clean, *results)]
    pairs = zip(radii, values, strict=True)
    return [(eps, value) for eps, value in pairs if value is not None]


def unbendable(
    points: Sequence[tuple[float, float]], scale: int
) -> Iterator[tuple[int, float]]:
    """(step, value) of a curve that TensorBoard's default smoothing leaves as it is.

    That is an exponential mean over points, in which a curve of five ends half way
    between them. Of many points on straight lines between those that were measured it
    stays within a few percent of a line's rise, and it comes to each measured value
    where that is repeated.

    Args:
      points: (eps, value), by eps.
      scale: Steps are eps times this.
    """
    for number, (eps, value) in enumerate(points):
        step = round(eps * scale)
        if number:
            before, start = points[number - 1]
            first = round(before * scale) + (_REPEATED if number > 1 else 0)
            for share in np.linspace(0, 1, _BETWEEN, endpoint=False)[1:]:
                between = start + share * (value - start)
                yield round(first + share * (step - first)), between
        repeated = 1 + (_REPEATED if number else 0)
        yield from ((step + again, value) for again in range(repeated))


def _scale(radii: Sequence[float]) -> int:
    """The power of ten, from 100, that leaves room for the points of `unbendable`."""
    gaps = np.diff(radii)
    room = (_BETWEEN + _REPEATED) / min(gaps, default=1.0)
    return max(_SCALE, 10 ** math.ceil(math.log10(room)))


def _about_radii(clean: Result, attacked: Result, split: str, scale: int) -> str:
    """The part of a description that all numbers share."""
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


def _painted(clean: Result, result: Result) -> dict[str, Columns]:
    """The first examples of each task, as `Result` has them painted."""
    images = {}
    for task in clean.scores:
        columns = {
            "image": clean.pictures["image"],
            "target": clean.pictures[f"target/{task}"],
            "clean output": clean.pictures[f"output/{task}"],
            "attacked output": result.pictures[f"output/{task}"],
            "perturbation": result.pictures["perturbation"],
        }
        images[f"{task}/pictures"] = {
            heading: tiles[:EXAMPLES] for heading, tiles in columns.items()
        }
    return images


def _remove_runs(folder: pathlib.Path) -> None:
    """Removes the runs of an earlier sweep, and folders left empty by that."""
    runs = {path.parent for path in folder.glob(f"*/*/events.out.tfevents.*{_MARK}")}
    for run in runs:
        _remove_earlier(run)
    for left in (*runs, *{run.parent for run in runs}):
        with contextlib.suppress(OSError):  # It holds something else.
            left.rmdir()


# Measures and studies.


def write_measures(
    records: Sequence[Record], plots: Sequence[pathlib.Path], folder: pathlib.Path
) -> None:
    """Writes values over counts (a thousandth of eps, or severities), and the plots.

    Args:
      records: Of the measures.
      plots: PNG files.
      folder: Of the run; what an earlier call has left there is removed.
    """
    with Board(folder, anew=True) as board:
        for record in records:
            tag, step = _tag_and_step(record)
            if tag and record["value"] is not None:
                board.number(tag, record["value"], step)
        for path in plots:
            board.picture(path.stem, _pixels(path))


def _tag_and_step(record: Record) -> tuple[str, int]:
    """Where a record of a measure stands; an empty tag: nowhere."""
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
        other = f"_{norm}" if norm != "linf" else ""
        return f"{measure}/{task}{other}", round(1000 * record["eps"])
    return "", 0


def write_study(
    plots: Mapping[pathlib.Path, str],
    verdicts: Sequence[Sequence[str]],
    folder: pathlib.Path,
) -> None:
    """Writes a picture per plot, and the verdicts as a text.

    Args:
      plots: {PNG file: what it shows, in words}.
      verdicts: The table's rows, the first its head.
      folder: Of the run; what an earlier report has left there is removed.
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
