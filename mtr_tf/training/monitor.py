# SPDX-License-Identifier: Apache-2.0
"""Monitors a training run: TensorBoard, and the score that decides on the best."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from absl import logging

from mtr_tf import attacks
from mtr_tf import data
from mtr_tf import tasks as tasks_lib
from mtr_tf.config.train import TrainConfig
from mtr_tf.data import batching
from mtr_tf.errors import InputError
from mtr_tf.errors import present
from mtr_tf.evaluation.evaluator import Evaluation
from mtr_tf.evaluation.evaluator import Evaluator
from mtr_tf.evaluation.evaluator import values
from mtr_tf.models import compiling
from mtr_tf.runs.workers import Workers
from mtr_tf.show import event_files
from mtr_tf.show import tensorboard
from mtr_tf.show.tensorboard import Board
from mtr_tf.tasks import metrics
from mtr_tf.training import schedules
from mtr_tf.training import step as step_lib
from mtr_tf.training.step import Learner

# The settings by which people compare runs.
_HPARAMS = (
    "tasks",
    "main_tasks",
    "aux_weight",
    "task_weights",
    "adversarial_tasks",
    "dataset",
    "image_size",
    "model",
    "width",
    "decoders",
    "shared_stages",
    "epochs",
    "batch_size",
    "learning_rate",
    "optimizer",
    "schedule",
    "weight_decay",
    "seed",
    "precision",
)

# As the flags call validation numbers, and as TensorBoard shows them.
_KINDS = {"clean": tensorboard.CLEAN, "adversarial": tensorboard.ATTACKED}


@dataclasses.dataclass(frozen=True)
class BestMetric:
    """The number that decides which checkpoint is the best."""

    kind: str  # clean or adversarial
    task: str
    metric: metrics.Metric

    @property
    def better(self) -> str:
        """`higher` or `lower`."""
        return self.metric.better


def parse_best(config: TrainConfig, tasks: tasks_lib.TaskSet) -> BestMetric:
    """Reads `--best_metric`, `[clean/|adversarial/]TASK/METRIC`.

    If empty, it is the first main task's headline metric, clean.

    Raises:
      InputError: this run has no such number.
    """
    text = config.best_metric
    if not text:
        main_task = config.main_or_all_tasks[0]
        return BestMetric("clean", main_task, tasks[main_task].metrics[0])
    choices = {
        f"{task.name}/{metric.name}": (task.name, metric)
        for task in tasks.values()
        for metric in task.metrics
    }
    kinds = ("clean", "adversarial") if config.eval_eps else ("clean",)
    kind, _, choice = text.partition("/")
    if kind not in kinds or (choice not in choices and text in choices):
        kind, choice = "clean", text  # A task may have the name of a kind.
    if choice not in choices:
        raise InputError(
            f"--best_metric must be [{'/ or '.join(kinds)}/] and one of "
            f"{', '.join(choices)}; got {text!r}."
        )
    return BestMetric(kind, *choices[choice])


def training_attack(config: TrainConfig) -> attacks.PGD | None:
    """Returns the attack on validation examples during training; None at radius 0."""
    if not config.eval_eps:
        return None
    epsilon = config.eval_eps / 255
    return attacks.PGD(epsilon, epsilon / 4, config.eval_steps)


def hparams(config: TrainConfig, image_size: tuple[int, int]) -> dict[str, Any]:
    """Returns a run's settings for a table of many runs, with empty ones filled in."""
    height, width = image_size
    overrides = {
        "tasks": config.tasks,
        "main_tasks": config.main_or_all_tasks,
        "adversarial_tasks": config.adversarial_tasks or "none",  # Not an empty cell.
        "image_size": f"{height}x{width}",
    }
    return {name: overrides.get(name, getattr(config, name)) for name in _HPARAMS}


class Monitor:
    """Writes the summaries of one run, and evaluates it as it trains.

    The attack raises the sum of the main tasks' losses; every task is scored. All goes
    to one run of TensorBoard, `train/`.
    """

    def __init__(
        self,
        config: TrainConfig,
        source: data.Source,
        workers: Workers,
        learner: Learner,
        tasks: tasks_lib.TaskSet,
        best: BestMetric,
        workdir: pathlib.Path | None,
        first: int = 0,
    ):
        """Opens the event files, and writes the run's settings once.

        All `workers` evaluate a share each; only the chief has a `workdir` and writes.
        The learner's optimizer says how many steps were not skipped; `first` is the
        number of steps done: summaries of later ones are removed.
        """
        self._learner, self._skipped = learner, 0
        self.tasks = tasks
        self.best = best
        self._config = config
        self._info = source.info
        self._columns = source.columns("validation")
        train_examples = config.train_examples or source.info.splits["train"]
        per_epoch = batching.steps_per_epoch(train_examples, config.batch_size)
        self._rate = schedules.learning_rate(config, per_epoch)
        self._count = min(config.eval_examples, len(self._columns.images))
        # No larger than all examples: a batch would be filled up with padding.
        largest_batch = -(-self._count // workers.replicas) * workers.replicas
        self._batch_size = min(config.batch_size, largest_batch)
        self._evaluator = Evaluator(
            learner.model,
            self.tasks,
            source.info.num_classes,
            workers,
            attack=training_attack(config),
            objective={"tasks": tasks.select(config.main_or_all_tasks)},
            seed=config.seed,
            jit=self._jit(per_epoch * config.epochs, workers.replicas),
            stops=False,  # The loop stops, after a checkpoint.
        )
        images = f"On the first {self._count} images of validation"
        self._per_epoch = per_epoch
        # Tasks without any loss so far; not known if a run is continued.
        self._silent = [] if first else list(tasks)
        self._about = {
            "training": _training_text(config),
            "clean": f"{images}.",
            "adversarial": f"{images}, attacked by {_attack_text(config)}.",
        }
        self._board = self._open(workdir, first)
        if workdir:
            self._board.settings(config.to_dict())
            self._board.layout(tensorboard.layout(tasks, config.main_or_all_tasks))
            self._board.hparams(
                hparams(config, source.info.image_shape[:2]), workdir.resolve().name
            )

    def _open(self, workdir: pathlib.Path | None, first: int) -> Board:
        """Opens the run of TensorBoard, with summaries of the steps until `first`.

        Before 0.3 there was a run for each kind of number, with the same tags.
        """
        if workdir is None:
            return Board(None, tasks=self.tasks)
        kinds = {
            "train": tensorboard.TRAINING,
            "validation": tensorboard.CLEAN,
            "validation/adversarial": tensorboard.ATTACKED,
        }
        places = {
            workdir / place: functools.partial(tensorboard.of_kind, kind=kind)
            for place, kind in kinds.items()
        }
        event_files.keep_until(workdir / "train", first, places)
        return Board(workdir / "train", tasks=self.tasks)

    def _jit(self, steps: int, replicas: int) -> bool:
        """Whether XLA compiles the evaluations: depends on their number in `steps`."""
        config, (height, width) = self._config, self._info.image_shape[:2]
        evaluations = steps / (config.eval_every or max(1, steps / 10))
        batches = -(-self._count // self._batch_size) * evaluations
        passes = batches * (2 + config.eval_steps * bool(config.eval_eps))
        pixels = height * width * self._batch_size / replicas
        return compiling.worthwhile(config.jit, passes, pixels)

    def trained(self, step: int, losses: np.ndarray, steps_per_second: float) -> float:
        """Writes the mean losses [tasks] of the last steps; returns their total."""
        self._warn_of_missing_targets(step, losses)
        weighting = self._learner.weighting
        weights = weighting.current()
        scalars = tensorboard.loss_scalars(
            dict(zip(self.tasks, losses, strict=True)), weights
        )
        speed = steps_per_second * self._config.batch_size
        self._board.scalars(
            scalars,
            step,
            tensorboard.TRAINING,
            self._about["training"],
            self._info.units,
            self._learner.losses,
        )
        updates = int(self._learner.optimizer.iterations.numpy())
        optimizer = {
            "optimizer/learning_rate": float(self._rate(max(0, updates - 1))),
            "optimizer/examples_per_second": speed,
            **self._loss_scaling(step),
        }
        if weighting.log_variances:
            optimizer |= {f"optimizer/weight_{t}": w for t, w in weights.items()}
        self._board.scalars(optimizer, step)
        return scalars["total/loss"]

    def _warn_of_missing_targets(self, step: int, losses: np.ndarray) -> None:
        """Warns after the first epoch of tasks whose mean losses [tasks] were all 0."""
        tasks_with_loss = [
            task for task, loss in zip(self.tasks, losses, strict=True) if loss
        ]
        self._silent = [task for task in self._silent if task not in tasks_with_loss]
        if step >= self._per_epoch and self._silent:
            logging.warning(
                "the loss of %s was 0 in each of the first %d steps: perhaps no "
                "training example has a target of it (see the masks)",
                " and of ".join(self._silent),
                step,
            )
            self._silent = []

    def _loss_scaling(self, step: int) -> dict[str, float]:
        """Returns numbers of an optimizer that scales the loss; logs skipped steps."""
        optimizer = self._learner.optimizer
        if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            return {}
        skipped_steps = step - int(optimizer.iterations.numpy())
        scale = float(optimizer.dynamic_scale.numpy())
        if skipped_steps > self._skipped:
            logging.info(
                "%d of %d steps skipped so far because gradients were not finite; the "
                "loss scale is now %g",
                skipped_steps,
                step,
                scale,
            )
        self._skipped = skipped_steps
        return {"optimizer/skipped_steps": skipped_steps, "optimizer/loss_scale": scale}

    def flush(self) -> None:
        """Writes out all summaries, for readers and for a run resumed after a kill."""
        self._board.flush()

    def evaluated(self, step: int) -> float:
        """Evaluates and attacks part of validation; returns the score of `best`."""
        evaluation = self._evaluator.run(
            self._columns,
            batch_size=self._batch_size,
            num_examples=self._count,
            keep_examples=tensorboard.EXAMPLES,
        )
        _raise_if_not_finite(evaluation, step)
        numbers_of = {"clean": values(evaluation.clean, self.tasks)}
        if evaluation.attacked:
            numbers_of["adversarial"] = values(evaluation.attacked, self.tasks)
        weights = self._learner.weighting.current()
        for kind, numbers in numbers_of.items():
            scalars = tensorboard.evaluation_scalars(numbers, weights)
            self._board.scalars(
                scalars, step, _KINDS[kind], self._about[kind], self._info.units
            )
        pictures = tensorboard.pictures(
            present(evaluation.examples, "examples"),
            self.tasks,
            self._info,
            self._config.eval_eps / 255,
        )
        description = ""
        if evaluation.attacked:
            description = f"{_attack_text(self._config)}; grey is no perturbation."
        self._board.pictures(pictures, step, description)
        self.flush()
        logging.info("step %d: %s", step, _headlines(numbers_of, self.tasks))
        return numbers_of[self.best.kind][self.best.task][self.best.metric.name]


def _attack_text(config: TrainConfig) -> str:
    """Describes the attack of `training_attack` and the tasks that it attacks."""
    return _pgd_text(config.eval_eps, config.eval_steps, config.main_or_all_tasks)


def _pgd_text(eps: float, steps: int, tasks: Sequence[str]) -> str:
    return (
        f"PGD (linf, eps {eps:g} levels of 0-255, {steps} steps) on {' + '.join(tasks)}"
    )


def _training_text(config: TrainConfig) -> str:
    """Describes the images over which training losses are means."""
    mean = "Mean over the training images since the last point"
    attacked_tasks = step_lib.attacked_tasks(config)
    if not attacked_tasks:
        return f"{mean}."
    attack = _pgd_text(config.adversarial_eps, config.adversarial_steps, attacked_tasks)
    share = config.adversarial_share
    if share == 1:
        return f"{mean}, attacked by {attack}."
    return f"{mean}: {1 - share:g} of it as they are, {share:g} attacked by {attack}."


def _raise_if_not_finite(evaluation: Evaluation, step: int) -> None:
    """Raises `InputError` if the last update broke the model, before it is saved."""
    for task, rows in evaluation.clean.items():
        if not np.isfinite(rows["loss"]).all():
            raise InputError(
                f"the validation loss of {task} is not finite after step {step}: "
                "training has diverged. What was saved before is kept; lower "
                "--learning_rate or the task's weight, and use another --workdir."
            )


def _headlines(
    numbers_of: dict[str, dict[str, dict[str, float]]], tasks: tasks_lib.TaskSet
) -> str:
    """Returns each task's first metric, clean and attacked, on one line."""
    parts = []
    for task, numbers in numbers_of["clean"].items():
        name = tasks[task].metrics[0].name
        parts.append(f"{task} {name} {numbers[name]:.3f}")
        if "adversarial" in numbers_of:
            parts[-1] += f" (attacked {numbers_of['adversarial'][task][name]:.3f})"
    return ", ".join(parts)
