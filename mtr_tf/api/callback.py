# SPDX-License-Identifier: Apache-2.0
"""`mtr_tf.RobustnessCallback`: how robust each output becomes in your own `fit`."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import keras

from mtr_tf import files
from mtr_tf.api import evaluate as evaluate_lib
from mtr_tf.api import settings as settings_lib
from mtr_tf.attack_job import Job
from mtr_tf.attacks.kinds import KINDS
from mtr_tf.config.attack import OWN_TARGETS
from mtr_tf.config.attack import AttackConfig
from mtr_tf.data import prepared
from mtr_tf.data.source import Source
from mtr_tf.errors import InputError
from mtr_tf.evaluation import evaluator as evaluator_lib
from mtr_tf.evaluation import sweep
from mtr_tf.evaluation.evaluator import Evaluator
from mtr_tf.evaluation.plan import Cell
from mtr_tf.show import tensorboard
from mtr_tf.show.tensorboard import Board
from mtr_tf.tasks import Task

# Settings of what is computed only once, is more than numbers, or stays on disk.
_NOT_IN_TRAINING = (
    *evaluate_lib.LEFT_OUT,
    "source_ckpt",
    "fast",
    "measure",
    "measure_draws",
    "checks",
    "check_examples",
    "save_examples",
    "precision",
)
Numbers = dict[str, dict[str, float]]


class RobustnessCallback(keras.callbacks.Callback):
    """Attacks the model after epochs of `fit`, and reports how robust each output is.

        robustness = mtr_tf.RobustnessCallback(validation, eps=4, log_dir="logs")
        model.fit(train, epochs=10, callbacks=[robustness])

    It adds each metric and the loss of each task to `logs`, and so to the history, as
    `val_clean_TASK_METRIC` and `val_adv_TASK_METRIC`; with several radii, as
    `val_adv_epsRADIUS_TASK_METRIC`. Callbacks after this one can use them:
    `EarlyStopping("val_adv_seg_loss", mode="min")`. Training itself is the same with
    and without this callback.
    """

    @settings_lib.shown(
        AttackConfig,
        without=(*_NOT_IN_TRAINING, "attack"),
        defaults=evaluate_lib.DEFAULTS,
    )
    def __init__(
        self,
        examples: Any,
        tasks: str | Iterable[str | Task] = (),
        attack: str = "pgd",
        *,
        eps: float | Iterable[float] = 4.0,
        attack_tasks: str = "all",
        every: int = 1,
        log_dir: str | os.PathLike | None = None,
        heads: Mapping[str | int, str | Task] | Iterable[str] = (),
        facts: Mapping[str, Any] | None = None,
        **settings: Any,
    ):
        """Takes the data and the attack; arguments are those of `mtr_tf.evaluate`.

        Args:
          examples: Examples as for `mtr_tf.evaluate`. They are read once, at the start.
          tasks: The tasks of the outputs; empty: taken from the names of the outputs.
          attack: The name of an attack, as for the command's --attack, but not of one
            that is the worst of several (`worst`, `sea`).
          eps: One radius or several.
          attack_tasks: The tasks to attack together: "all", "seg+depth", ...
          every: Attacks the model each time that this many epochs have passed; other
            epochs have no such numbers.
          log_dir: A folder for TensorBoard's files; None: write nothing.
          heads: Which output is which task, if the names do not show it.
          facts: What a data function returns besides its splits (docs/own_data.md).
          **settings: the command's flags.

        Raises:
          InputError: A setting is not allowed.
        """
        super().__init__()
        if every < 1:
            raise InputError(f"every must be a whole number, 1 or more; got {every}.")
        for name in settings:
            if name in _NOT_IN_TRAINING:
                raise InputError(
                    f"{name} has no meaning during training; leave it out here, and "
                    "pass it to mtr_tf.evaluate afterwards."
                )
        for name in settings_lib.several(attack):
            if name in KINDS and KINDS[name].is_ensemble:
                raise InputError(
                    f"attack must be a single attack during training, but {name} is "
                    "the worst of several; give one of them."
                )
        if settings.get("targets") == OWN_TARGETS:
            raise InputError(
                f"targets={OWN_TARGETS!r} has no meaning during training, in which the "
                "model's own outputs change; leave it out here, and pass it to "
                "mtr_tf.evaluate afterwards."
            )
        files.check_local("log_dir", log_dir or "")
        if settings.get("norm", "linf") == "linf":
            settings_lib.check_levels(eps)
        self._examples, self._tasks, self._heads = examples, tasks, heads
        self._facts = facts
        self._settings = {
            "attack": attack,
            "eps": eps,
            "attack_tasks": attack_tasks,
            "checks": False,
            **settings,
        }
        self._every = every
        self._folder = None if log_dir is None else pathlib.Path(log_dir)
        self._job: Job | None = None
        self._evaluators: list[tuple[str, Cell | None, Evaluator]] = []
        self._board: Board | None = None

    def on_epoch_end(self, epoch, logs=None):
        """Attacks the model, and adds the numbers to `logs`."""
        if (epoch + 1) % self._every:
            return
        for name, numbers in self._run().items():
            if logs is not None:
                logs.update(
                    (f"val_{name}_{task}_{metric}", value)
                    for task, by_metric in numbers.items()
                    for metric, value in by_metric.items()
                )
            self._show(name, numbers, epoch)

    def on_train_end(self, logs=None):
        """Closes TensorBoard's files."""
        if self._board is not None:
            self._board.flush()

    def _run(self) -> dict[str, Numbers]:
        """Returns {"clean" or "adv...": {task: {metric: value}}} of the model now."""
        if self._job is None or not self._shares_variables(self._job):
            self._job = self._make_job()
            self._evaluators = list(_evaluators(self._job))
        subject, numbers = self._job.subject, {}
        for name, cell, evaluator in self._evaluators:
            evaluation = evaluator.run(
                subject.columns,
                batch_size=subject.batch_size,
                num_examples=subject.num_examples,
                numbers=cell.numbers if cell else (),
            )
            rows = evaluation.attacked if cell else evaluation.clean
            numbers[name] = evaluator_lib.values(rows, subject.tasks)
        return numbers

    def _make_job(self) -> Job:
        """Returns the command's job for the model in training."""
        if self._job is not None:  # Examples are read only once.
            subject = self._job.subject
            self._examples = Source(subject.info, lambda split: subject.columns)
        with prepared.quiet():  # A model at chance needs no warning here.
            return evaluate_lib.job_of(
                self.model,
                self._examples,
                self._tasks,
                self._heads,
                self._facts,
                self._settings,
                pathlib.Path(),  # Nothing is written.
            )

    def _shares_variables(self, job: Job) -> bool:
        """Whether the job attacks a model with the variables that are trained.

        A layer whose softmax is removed, for example, is a copy.
        """
        trained_ids = {id(variable) for variable in self.model.variables}
        return all(
            id(variable) in trained_ids for variable in job.subject.model.variables
        )

    def _show(self, name: str, numbers: Numbers, epoch: int) -> None:
        """Writes numbers for TensorBoard, under the tags of `mtr_tf.train`.

        The run is the one in which Keras's own callback shows validation.
        """
        if self._folder is None or self._job is None:
            return
        subject = self._job.subject
        if self._board is None:
            self._board = Board(self._folder / "validation", tasks=subject.tasks)
            self._board.layout(tensorboard.layout(subject.tasks, ()))
        kind = name.replace("adv", tensorboard.ATTACKED, 1).replace("_", " ")
        description = f"On {subject.num_examples} images; step: epoch."
        scalars = tensorboard.evaluation_scalars(numbers)
        self._board.scalars(scalars, epoch, kind, description, subject.info.units)
        self._board.flush()


def _evaluators(job: Job) -> Iterator[tuple[str, Cell | None, Evaluator]]:
    """Yields (name, cell, evaluator) of the clean images and of each attack."""
    subject, cells = job.subject, [cell for cell in job.cells if cell.eps]
    yield "clean", None, sweep.make_evaluator(subject, None)
    groups, labels = {cell.group for cell in cells}, {cell.label for cell in cells}
    families: dict[Cell, Evaluator] = {}  # One graph for all radii.
    for cell in cells:
        if cell.family not in families:
            families[cell.family] = sweep.make_evaluator(subject, cell)
        radius = f"_eps{cell.eps:g}" if len({c.eps for c in cells}) > 1 else ""
        label = f"_{cell.label}" if len(labels) > 1 else ""
        group = f"_{cell.group}" if len(groups) > 1 else ""
        yield f"adv{label}{radius}{group}", cell, families[cell.family]
