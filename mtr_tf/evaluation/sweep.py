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
from mtr_tf.evaluation.evaluator import Rows
from mtr_tf.evaluation.plan import Cell
from mtr_tf.models import compiling
from mtr_tf.models import randomness
from mtr_tf.runs.workers import Workers
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import palettes
from mtr_tf.tasks import task_set

PAINTED = 3  # Examples kept for the gallery and for TensorBoard.
_ROUNDING = 1e-5  # What results may be outside of ball and box by.


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is attacked: a model, and the first `num_examples` of a split.

    `workers` attack it, each its share of every batch of `batch_size`. `seed` is that
    of random starts and of the bootstrap. `surrogate` is the model on
    which adversarial images are made, if that is not `model`. `jit` is one of
    `compiling.MODES`. `image_channels` is how many channels the image has where further
    inputs are packed behind it; else None.
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

    def __post_init__(self):
        """Takes names of the eleven tasks for their records."""
        object.__setattr__(self, "tasks", task_set(self.tasks))

    def attacked_channels(self, named: Sequence[int] = ()) -> tuple[int, ...]:
        """The channels that attacks change, of those named; empty: all there are."""
        return tuple(named) or tuple(range(self.image_channels or 0))

    def compiled(self, passes: float) -> bool:
        """Whether XLA compiles a graph that makes so many passes per image in all."""
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
        """What is scored, and what is attacked where that is something else."""
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
        """Pairs of its tasks that determine each other."""
        return consistency.relations(
            self.tasks, self.info.units, self.columns.images.shape[1:3]
        )

    @property
    def units(self) -> resampling.Units:
        """What is drawn for intervals: images, groups of them or blocks of frames."""
        return resampling.units(self.columns.groups, self.num_examples)


def run(
    subject: Subject,
    cells: Sequence[Cell],
    store: Store,
    predictions: Predictions | None = None,
    part: tuple[int, int] | None = None,
) -> tuple[Result, list[Result]] | None:
    """Runs what the store has not; returns (clean result, results of the cells).

    With `predictions`, what is predicted for all images is written there too. Of
    several workers the chief alone reads, writes and returns results; the others take
    part in the evaluations, and return None. With a part, (number from 1, of how many),
    only evaluations of it are run, and None is returned.
    """
    workers = subject.workers
    plain = every = evaluations(cells)
    if part:
        number, count = part
        plain = parts(every, count)[number - 1]
    results = finished(plain, store, predictions) if workers.chief else {}
    there = workers.of_chief([cell in results for cell in plain])
    known = {cell for cell, is_there in zip(plain, there, strict=True) if is_there}
    cost = {cell: _cost(subject, cell) for cell in plain}
    pending = _by_family(cell for cell in plain if cell not in known)
    if known:
        logging.info("%d of %d evaluations are finished already", len(known), len(cost))
    total, done = sum(cost.values()), sum(cost[cell] for cell in known)
    jit = _compiled(subject, every, pending)
    family, evaluator = None, None

    def kept() -> str:
        return (
            f"{len(known)} of {len(cost)} evaluations are finished and kept; the "
            "same command continues with the others."
        )

    with (
        stopping.saying(kept),
        progress.bar(
            total, "attacking", "image passes", done, shown=workers.chief
        ) as advance,
    ):
        for cell in pending:
            if evaluator is None or family != (cell and cell.family):
                family = cell and cell.family  # One graph for all its radii.
                evaluator = make_evaluator(subject, family, jit=jit[family])
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
            known.add(cell)
    if part or not workers.chief:
        return None
    for cell in cells:
        if cell.members:
            of_members = [results[member] for member in cell.members]
            result = _worst(subject, cell, of_members)
            store.write(result)  # For its rows: it is always combined anew.
            results[cell] = store.filed(result)
            if store.save_examples:
                store.choose_examples(cell, worst_case.choose(cell, of_members))
            if predictions:
                _choose(predictions, store, cell, of_members)
    return results[None], [results[cell] for cell in cells]


def evaluations(cells: Sequence[Cell]) -> list[Cell | None]:
    """What is to be run for cells, each once; None: the clean images."""
    every = (member for cell in cells for member in cell.members or (cell,))
    return list(dict.fromkeys([None, *every]))


def finished(
    evaluations: Sequence[Cell | None],
    store: Store,
    predictions: Predictions | None = None,
) -> dict[Cell | None, Result]:
    """The results of those that are finished."""
    return {
        cell: store.filed(result)  # All of them would fill the memory.
        for cell in evaluations
        if (not predictions or predictions.complete(store.label(cell)))
        and (result := store.read(cell))
    }


def parts(evaluations: Sequence[Cell | None], count: int) -> list[list[Cell | None]]:
    """The evaluations in so many parts, none of which takes much longer than others.

    The longest goes first to where there is least; some parts may be empty.
    """
    found: list[list[Cell | None]] = [[] for _ in range(count)]
    sums = [0.0] * count
    for cell in sorted(evaluations, key=_passes, reverse=True):
        least = sums.index(min(sums))
        found[least].append(cell)
        sums[least] += _passes(cell)
    return found


def _passes(cell: Cell | None) -> float:
    return cell.passes if cell else 1.0


def _cost(subject: Subject, cell: Cell | None) -> float:
    return _passes(cell) * subject.num_examples


def _compiled(
    subject: Subject, every: Sequence[Cell | None], pending: Sequence[Cell | None]
) -> dict[Cell | None, bool]:
    """Whether XLA compiles the graph of each family of which something is pending.

    By all that the family has to do, be it finished or of another part: else a sweep
    that goes on, or is spread, would end with other bits.
    """
    work: dict[Cell | None, float] = {}
    for cell in every:
        family = cell and cell.family
        work[family] = work.get(family, 0) + _cost(subject, cell)
    families = dict.fromkeys(cell and cell.family for cell in pending)
    jit = {family: subject.compiled(work[family]) for family in families}
    if jit:
        what = f"{sum(jit.values())} of {len(jit)} attacks and evaluations"
        compiling.say(what, subject.jit)
    return jit


def _writers(
    predictions: Predictions | None, label: str, writes: bool
) -> dict[str, Callable[..., None]]:
    """What is to be called with the outputs of a cell, by task.

    Without `writes`, as on workers whose chief does, that is nothing.
    """
    if not predictions:
        return {}
    write = functools.partial(predictions.write, label)
    return {cityscapes_export.TASK: write if writes else lambda *_: None}


def _choose(
    predictions: Predictions, store: Store, cell: Cell, results: Sequence[Result]
) -> None:
    """Copies the predictions whose mean IoU is that of a worst of several."""
    if predictions.complete(store.label(cell)):
        return
    choice = worst_case.choose(cell, results)
    choice = worst_case.choose_for_miou(cell, results, cityscapes_export.TASK, choice)
    members = [store.label(member) for member in cell.members]
    predictions.choose(store.label(cell), members, choice)


def _by_family(cells: Iterable[Cell | None]) -> list[Cell | None]:
    """The cells with those side by side that share a graph."""
    families: dict[Cell | None, list[Cell | None]] = {}
    for cell in cells:
        families.setdefault(cell and cell.family, []).append(cell)
    return [cell for members in families.values() for cell in members]


def _worst(subject: Subject, cell: Cell, results: Sequence[Result]) -> Result:
    """The worst per image of the results of a cell's members."""
    choice = worst_case.choose(cell, results)
    wanted_rows = worst_case.take(choice, [result.wanted_rows for result in results])
    rows = worst_case.combine(cell, results, choice)
    return dataclasses.replace(
        results[0],
        cell=cell,
        scores=scores.of_rows(rows, subject.seed, subject.units, subject.tasks),
        pictures=worst_case.pictures(choice, results),
        rows=rows,
        wanted=scores.wanted(results[0].wanted, wanted_rows, subject.tasks),
        wanted_rows=wanted_rows,
        aimed_rows=worst_case.take(choice, [result.aimed_rows for result in results]),
        still=_still(choice, results),
        consistent_rows=_consistent(choice, results),
    )


def _consistent(choice: np.ndarray, results: Sequence[Result]) -> Rows:
    """The rows of the chosen attacks; none where one of them has none."""
    of_each = [result.consistent_rows for result in results]
    return worst_case.take(choice, of_each) if all(of_each) else {}


def _still(choice: np.ndarray, results: Sequence[Result]) -> np.ndarray | None:
    """Which images the chosen attacks left as they were; None if that is not known."""
    of_each = [result.still for result in results]
    known = [still for still in of_each if still is not None]
    if len(known) < len(of_each):
        return None
    return np.stack(known)[choice, np.arange(len(choice))]


def _advance(
    advance: Callable[..., None], cell: Cell | None, passes: float, images: int
) -> None:
    note = "clean"
    if cell:
        many = len(cell.tasks) > 3
        group = f"{len(cell.tasks)} tasks" if many else cell.group
        note = f"{cell.label} {group} eps {cell.eps:g}"
    advance(images * passes, note)


def make_evaluator(
    subject: Subject,
    cell: Cell | None,
    attack: Callable[..., tf.Tensor] | None = None,
    jit: bool | None = None,
) -> Evaluator:
    """The evaluator of a cell's family, or of another attack on its objective.

    `jit` None: compiled by XLA only where all is to be.
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
    """Raises InputError where a bounded attack has left the ball or the box.

    It looks at the first images alone, which are here: a radius that is not the cell's
    shows there.
    """
    if examples.adversarial is None or not cell.attack.kind.bounded:
        return
    found = examples.adversarial[:PAINTED].astype(np.float64)
    moves = (found - examples.image[:PAINTED]).reshape(len(found), -1)
    order = np.inf if cell.threat.norm == "linf" else 2
    reach = np.linalg.norm(moves, order, axis=1).max() * cell.threat.unit
    most = cell.eps * (1 + _ROUNDING) + _ROUNDING * cell.threat.unit
    if not reach <= most:
        raise InputError(
            f"--attack={cell.attack.name} must stay within --eps={cell.eps:g}, but it "
            f"moved an image by {reach:.4g}; end its search by a projection onto "
            "threat.ball(norm, epsilon), or say bounded=False in its entry in KINDS."
        )
    if found.min() < -_ROUNDING or found.max() > 1 + _ROUNDING:
        raise InputError(
            f"--attack={cell.attack.name} must return images in [0, 1], got values "
            f"from {found.min():.4g} to {found.max():.4g}; end its search by a "
            "projection onto threat.ball(norm, epsilon)."
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
        still=evaluation.still,
        consistent_rows=evaluation.own,
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
