# SPDX-License-Identifier: Apache-2.0
"""Attacks one model with each cell of a sweep; finished cells are not run again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from mtr_tf import attacks
from mtr_tf.cli import progress
from mtr_tf.cli import stopping
from mtr_tf.data import batching
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.errors import InputError
from mtr_tf.errors import present
from mtr_tf.evaluation import cityscapes_export
from mtr_tf.evaluation import consistency
from mtr_tf.evaluation import evaluator as evaluator_lib
from mtr_tf.evaluation import resampling
from mtr_tf.evaluation import scores
from mtr_tf.evaluation import worst_case
from mtr_tf.evaluation.cell_files import Result
from mtr_tf.evaluation.cell_store import Store
from mtr_tf.evaluation.cityscapes_export import Predictions
from mtr_tf.evaluation.evaluator import Evaluation
from mtr_tf.evaluation.evaluator import Evaluator
from mtr_tf.evaluation.evaluator import Examples
from mtr_tf.evaluation.plan import Cell
from mtr_tf.models import compiling
from mtr_tf.models import randomness
from mtr_tf.runs.workers import Workers
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import palettes
from mtr_tf.tasks import task_set

PAINTED = 3  # Examples kept for the gallery and for TensorBoard.
_ROUNDING = 1e-5  # How far results may be outside of ball and box.


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is attacked: a model, and the first `num_examples` of a split.

    Each of the `workers` attacks its share of every batch of `batch_size`. `seed` is
    that of random starts and of the bootstrap. `surrogate` is the model on which
    adversarial images are made, if that is not `model`. `jit` is one of
    `compiling.MODES`. `image_channels` is the number of channels of the image if
    further inputs are packed behind it; else None. `half` is the half precision that
    `surrogate` is a copy in; "" if it is none.
    """

    model: keras.Model
    tasks: TaskSet
    info: DatasetInfo
    columns: Columns
    num_examples: int
    workers: Workers
    batch_size: int
    seed: int
    surrogate: Callable[..., Any] | None = None
    jit: str = "auto"
    image_channels: int | None = None
    half: str = ""

    def __post_init__(self):
        """Replaces names of the eleven tasks by their records."""
        object.__setattr__(self, "tasks", task_set(self.tasks))

    def attacked_channels(self, channels: Sequence[int] = ()) -> tuple[int, ...]:
        """The channels that attacks change: `channels`, or the image's; (): all."""
        return tuple(channels) or tuple(range(self.image_channels or 0))

    def compiled(self, passes: float) -> bool:
        """Whether XLA compiles a graph with this total of passes per image."""
        height, width = self.columns.images.shape[1:3]
        images = self.batch_size / self.workers.replicas
        batches = passes / self.batch_size
        return compiling.worthwhile(self.jit, batches, height * width * images)

    @functools.cached_property
    def first_images(self) -> np.ndarray:
        """Two images, or the only one, to look at models before they are attacked."""
        return batching.first_images(self.columns, 2)

    @property
    def models(self) -> tuple[Callable[..., Any], ...]:
        """The scored model, and the attacked one if it is another."""
        return tuple(dict.fromkeys((self.model, self.surrogate or self.model)))

    @property
    def random(self) -> bool:
        """Whether one of the models is random in predict."""
        return any(
            randomness.kind(model, self.first_images) != randomness.NONE
            for model in self.models
        )

    def say_if_random(self, eot: int) -> list[str]:
        """Logs and returns warnings about attacks on random models."""
        warnings = [
            randomness.say_once(model, self.first_images, eot) for model in self.models
        ]
        return [text for text in dict.fromkeys(warnings) if text]

    @functools.cached_property
    def relations(self) -> tuple[consistency.Relation, ...]:
        """The pairs of tasks that determine each other."""
        return consistency.relations(
            self.tasks, self.info.units, self.columns.images.shape[1:3]
        )

    @property
    def units(self) -> resampling.Units:
        """The units that intervals draw: images, groups of them or blocks of frames."""
        return resampling.units(self.columns.groups, self.num_examples)


def run(
    subject: Subject,
    cells: Sequence[Cell],
    store: Store,
    predictions: Predictions | None = None,
    part: tuple[int, int] | None = None,
) -> tuple[Result, list[Result]] | None:
    """Runs cells that the store lacks; returns (clean result, results of the cells).

    With `predictions`, the predictions for all images are written, too. With several
    workers only the chief reads, writes and returns results; the others take part in
    the evaluations, and return None. With a `part`, (number from 1, count), only the
    evaluations of this part are run, and None is returned.
    """
    workers = subject.workers
    part_cells = all_cells = evaluations(cells)
    if part:
        number, count = part
        part_cells = parts(all_cells, count)[number - 1]
    results = finished(part_cells, store, predictions) if workers.chief else {}
    flags = workers.of_chief([cell in results for cell in part_cells])
    finished_cells = {
        cell for cell, is_finished in zip(part_cells, flags, strict=True) if is_finished
    }
    cost = {cell: _cost(subject, cell) for cell in part_cells}
    pending = _by_family(cell for cell in part_cells if cell not in finished_cells)
    if finished_cells:
        logging.info(
            "%d of %d evaluations are finished already", len(finished_cells), len(cost)
        )
    jit = _choose_jit(subject, all_cells, pending)

    def message() -> str:
        return (
            f"{len(finished_cells)} of {len(cost)} evaluations are finished and kept; "
            "the same command continues with the others."
        )

    with (
        stopping.saying(message),
        progress.bar(
            sum(cost.values()),
            "attacking",
            "image passes",
            sum(cost[cell] for cell in finished_cells),
            shown=workers.chief,
        ) as advance,
    ):
        for family, family_cells in pending.items():
            evaluator = make_evaluator(subject, family, jit=jit[family])
            for cell in family_cells:
                evaluation = evaluator.run(
                    subject.columns,
                    batch_size=subject.batch_size,
                    num_examples=subject.num_examples,
                    on_batch=functools.partial(_advance, advance, cell, _passes(cell)),
                    on_outputs=_writers(predictions, store.label(cell), workers.chief),
                    rows_of=functools.partial(consistency.rows_of, subject.relations)
                    if subject.relations
                    else None,
                    keep_examples=max(PAINTED, store.save_examples),
                    numbers=cell.numbers if cell else (),
                )
                if cell and evaluation.examples:
                    _check_inside(cell, evaluation.examples)
                if workers.chief:
                    result = _result(subject, cell, evaluation)
                    store.write(result, evaluation.examples)
                    results[cell] = store.filed(result)
                finished_cells.add(cell)
    if part or not workers.chief:
        return None
    for cell in cells:
        if cell.members:
            member_results = [results[member] for member in cell.members]
            choice = worst_case.choose(cell, member_results)
            result = _worst_result(subject, cell, member_results, choice)
            store.write(result)  # For its rows: ensembles are always combined again.
            results[cell] = store.filed(result)
            if store.save_examples:
                store.choose_examples(cell, choice)
            if predictions:
                _choose_predictions(predictions, store, cell, member_results, choice)
    return results[None], [results[cell] for cell in cells]


def evaluations(cells: Sequence[Cell]) -> list[Cell | None]:
    """The evaluations that cells need, each once; None is that of the clean images."""
    attack_cells = (member for cell in cells for member in cell.members or (cell,))
    return list(dict.fromkeys([None, *attack_cells]))


def finished(
    evaluations: Sequence[Cell | None],
    store: Store,
    predictions: Predictions | None = None,
) -> dict[Cell | None, Result]:
    """The results of the finished evaluations."""
    return {
        cell: store.filed(result)  # All of them would fill the memory.
        for cell in evaluations
        if (not predictions or predictions.complete(store.label(cell)))
        and (result := store.read(cell))
    }


def parts(evaluations: Sequence[Cell | None], count: int) -> list[list[Cell | None]]:
    """The evaluations in `count` parts, none of which takes much longer than others.

    The longest evaluation goes first, to the shortest part; parts may be empty.
    """
    cells_by_part: list[list[Cell | None]] = [[] for _ in range(count)]
    sums = [0.0] * count
    for cell in sorted(evaluations, key=_passes, reverse=True):
        shortest = sums.index(min(sums))
        cells_by_part[shortest].append(cell)
        sums[shortest] += _passes(cell)
    return cells_by_part


def _passes(cell: Cell | None) -> float:
    return cell.passes if cell else 1.0


def _cost(subject: Subject, cell: Cell | None) -> float:
    return _passes(cell) * subject.num_examples


def _choose_jit(
    subject: Subject,
    all_cells: Iterable[Cell | None],
    pending_families: Iterable[Cell | None],
) -> dict[Cell | None, bool]:
    """Whether XLA compiles the graph of each family with pending cells.

    This depends on all work of the family, even if it is finished or in another part:
    otherwise a sweep that continues, or is spread, would end with other bits.
    """
    cells = _by_family(all_cells)
    jit = {
        family: subject.compiled(sum(_cost(subject, cell) for cell in cells[family]))
        for family in pending_families
    }
    if jit:
        text = f"{sum(jit.values())} of {len(jit)} attacks and evaluations"
        compiling.say(text, subject.jit)
    return jit


def _writers(
    predictions: Predictions | None, label: str, writes: bool
) -> dict[str, Callable[..., None]]:
    """The callbacks for the outputs of a cell, by task.

    Without `writes`, as on workers other than the chief, they do nothing.
    """
    if not predictions:
        return {}
    write = functools.partial(predictions.write, label)
    return {cityscapes_export.TASK: write if writes else lambda *_: None}


def _choose_predictions(
    predictions: Predictions,
    store: Store,
    cell: Cell,
    results: Sequence[Result],
    choice: np.ndarray,
) -> None:
    """Copies the predictions behind the mean IoU of an ensemble."""
    if predictions.complete(store.label(cell)):
        return
    choice = worst_case.choose_for_miou(cell, results, cityscapes_export.TASK, choice)
    members = [store.label(member) for member in cell.members]
    predictions.choose(store.label(cell), members, choice)


def _by_family(cells: Iterable[Cell | None]) -> dict[Cell | None, list[Cell | None]]:
    """The cells that share a graph, such as those of all radii, by their family."""
    families: dict[Cell | None, list[Cell | None]] = {}
    for cell in cells:
        families.setdefault(cell and cell.family, []).append(cell)
    return families


def _worst_result(
    subject: Subject, cell: Cell, results: Sequence[Result], choice: np.ndarray
) -> Result:
    """The results of the members chosen for each image, as one result of the cell."""
    wanted_rows = worst_case.take(choice, [result.wanted_rows for result in results])
    rows = worst_case.combine(cell, results, choice)
    unchanged = [r.unchanged for r in results if r.unchanged is not None]
    consistent_rows = [r.consistent_rows for r in results]
    return dataclasses.replace(
        results[0],
        cell=cell,
        scores=scores.of_rows(rows, subject.seed, subject.units, subject.tasks),
        pictures=worst_case.pictures(choice, results),
        rows=rows,
        wanted=scores.wanted(results[0].wanted, wanted_rows, subject.tasks),
        wanted_rows=wanted_rows,
        aimed_rows=worst_case.take(choice, [result.aimed_rows for result in results]),
        # Cells of older versions lack one or the other.
        unchanged=worst_case.chosen(choice, unchanged)
        if len(unchanged) == len(results)
        else None,
        consistent_rows=worst_case.take(choice, consistent_rows)
        if all(consistent_rows)
        else {},
    )


def _advance(
    advance: Callable[..., None], cell: Cell | None, passes: float, images: int
) -> None:
    note = "clean"
    if cell:
        is_long = len(cell.tasks) > 3
        group = f"{len(cell.tasks)} tasks" if is_long else cell.group
        note = f"{cell.label} {group} eps {cell.eps:g}"
    advance(images * passes, note)


def make_evaluator(
    subject: Subject,
    cell: Cell | None,
    attack: Callable[..., tf.Tensor] | None = None,
    jit: bool | None = None,
) -> Evaluator:
    """The evaluator of a cell's family, or of another attack on its objective.

    `jit` None: XLA compiles it only if `subject.jit` is "on".
    """
    settings: dict[str, Any] = {}
    if cell:
        settings = {
            "attack": attacks.on_channels(
                attack or cell.build(), subject.attacked_channels(cell.threat.channels)
            ),
            "objective": cell.objective_settings(*subject.columns.images.shape[1:3]),
            "surrogate": subject.surrogate,
            "clean": False,
            "own_losses": not cell.attack.kind.chooses_losses,
        }
    return Evaluator(
        subject.model,
        subject.tasks,
        subject.info.num_classes,
        subject.workers,
        seed=subject.seed,
        jit=subject.compiled(0) if jit is None else jit,
        image_channels=subject.image_channels,
        **settings,
    )


def _check_inside(cell: Cell, examples: Examples) -> None:
    """Raises InputError if a bounded attack has left the ball or the box.

    It checks only the first images, where a radius other than the cell's already shows.
    """
    if examples.adversarial is None or not cell.attack.kind.bounded:
        return
    adversarial = examples.adversarial[:PAINTED].astype(np.float64)
    moves = (adversarial - examples.image[:PAINTED]).reshape(len(adversarial), -1)
    order = np.inf if cell.threat.norm == "linf" else 2
    reach = np.linalg.norm(moves, order, axis=1).max() * cell.threat.unit
    limit = cell.eps * (1 + _ROUNDING) + _ROUNDING * cell.threat.unit
    if not reach <= limit:
        raise InputError(
            f"--attack={cell.attack.name} must stay within --eps={cell.eps:g}, but it "
            f"moved an image by {reach:.4g}; end its search by a projection onto "
            "threat.ball(norm, epsilon), or say bounded=False in its entry in KINDS."
        )
    if adversarial.min() < -_ROUNDING or adversarial.max() > 1 + _ROUNDING:
        raise InputError(
            f"--attack={cell.attack.name} must return images in [0, 1], got values "
            f"from {adversarial.min():.4g} to {adversarial.max():.4g}; end its search "
            "by a projection onto threat.ball(norm, epsilon)."
        )


def _result(subject: Subject, cell: Cell | None, evaluation: Evaluation) -> Result:
    rows = evaluation.attacked if cell else evaluation.clean
    unmoved = {
        task: {name: {"clean": scores.number(v)} for name, v in by_metric.items()}
        for task, by_metric in evaluator_lib.values(
            evaluation.unmoved, subject.tasks
        ).items()
    }
    return Result(
        cell,
        scores.of_rows(rows, subject.seed, subject.units, subject.tasks),
        len(evaluation.index),
        _paint(present(evaluation.examples, "examples"), subject),
        rows,
        wanted=scores.wanted(unmoved, evaluation.wanted, subject.tasks),
        wanted_rows=evaluation.wanted,
        aimed_rows=evaluation.aimed,
        before_rows=evaluation.before,
        unit=subject.units.of,
        unchanged=evaluation.unchanged,
        consistent_rows=evaluation.derived,
        half=subject.half if cell else "",
    )


def _paint(examples: Examples, subject: Subject) -> dict[str, np.ndarray]:
    """The first examples as bytes, each task by its own colours; see `Result`."""
    outputs = examples.clean
    image = palettes.three_channels(examples.image[:PAINTED])
    pictures = {"image": palettes.image_to_rgb(image)}
    if examples.adversarial is not None:
        outputs = examples.attacked
        adversarial = palettes.three_channels(examples.adversarial[:PAINTED])
        change = adversarial - image
        magnify = palettes.magnification(change)
        pictures["adversarial"] = palettes.image_to_rgb(adversarial)
        pictures["perturbation"] = palettes.perturbation_rgb(change, magnify)
    for task, record in subject.tasks.items():
        parts = (examples.targets, examples.masks, outputs)
        target, mask, output = (part[task][:PAINTED] for part in parts)
        pictures[f"target/{task}"] = record.to_rgb(target, subject.info, mask)
        pictures[f"output/{task}"] = record.to_rgb(output, subject.info, output=True)
    return pictures
