# SPDX-License-Identifier: Apache-2.0
"""What is seen of a training run: TensorBoard, and the score that checkpoints go by."""

from __future__ import annotations

import dataclasses
import pathlib

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from mtr_tf import attacks
from mtr_tf import data
from mtr_tf import metrics
from mtr_tf import schedules
from mtr_tf import summaries
from mtr_tf import tasks as tasks_lib
from mtr_tf.config import TrainConfig
from mtr_tf.data import batching
from mtr_tf.errors import InputError
from mtr_tf.evaluation import Evaluator
from mtr_tf.evaluation import values

_PICTURES = 4  # Examples in each picture.


@dataclasses.dataclass(frozen=True)
class Best:
    """Which number decides what the best checkpoint is."""

    kind: str  # clean or adversarial
    task: str
    metric: metrics.Metric

    @property
    def better(self) -> str:
        """`higher` or `lower`."""
        return self.metric.better


def main_tasks(config: TrainConfig) -> tuple[str, ...]:
    """The run's main tasks; all of them where none is named."""
    return tasks_lib.resolve(config.main_tasks or config.tasks)


def parse_best(config: TrainConfig) -> Best:
    """Reads `--best_metric`, `[clean/|adversarial/]TASK/METRIC`.

    Empty is the first main task's headline metric, clean.

    Raises:
      InputError: there is no such number in this run.
    """
    text = config.best_metric
    if not text:
        main = main_tasks(config)[0]
        return Best("clean", main, tasks_lib.TASKS[main].metrics[0])
    *kind, task, metric = ["", *text.split("/")][-3:]
    kind = kind[0] if kind and kind[0] else "clean"
    known = {
        f"{task}/{metric.name}": Best(kind, task, metric)
        for task in tasks_lib.resolve(config.tasks)
        for metric in tasks_lib.TASKS[task].metrics
    }
    kinds = ("clean", "adversarial") if config.eval_eps else ("clean",)
    if kind not in kinds or f"{task}/{metric}" not in known:
        raise InputError(
            f"--best_metric must be [{'/ or '.join(kinds)}/] and one of "
            f"{', '.join(known)}; got {text!r}."
        )
    return known[f"{task}/{metric}"]


def training_attack(config: TrainConfig) -> attacks.PGD | None:
    """The attack that validation examples get during training; None at radius 0."""
    if not config.eval_eps:
        return None
    epsilon = config.eval_eps / 255
    return attacks.PGD(epsilon, epsilon / 4, config.eval_steps)


class Monitor:
    """Writes the summaries of one run, and evaluates it as it trains.

    The attack raises the sum of the main tasks' losses; every task is scored.
    """

    def __init__(
        self,
        config: TrainConfig,
        source: data.Source,
        strategy: tf.distribute.Strategy,
        model: keras.Model,
        weights: dict[str, float],
        best: Best,
        workdir: pathlib.Path,
    ):
        """Opens the event files, and writes the run's settings once."""
        self.weights = weights
        self.best = best
        self._config = config
        self._info = source.info
        self._columns = source.columns("validation")
        train_examples = config.train_examples or source.info.splits["train"]
        self._rate = schedules.learning_rate(
            config, batching.steps_per_epoch(train_examples, config.batch_size)
        )
        self._evaluator = Evaluator(
            model,
            tuple(weights),
            source.info.num_classes,
            strategy,
            attack=training_attack(config),
            attacked=main_tasks(config),
            seed=config.seed,
        )
        self._train = tf.summary.create_file_writer(str(workdir / "train"))
        self._validation = tf.summary.create_file_writer(str(workdir / "validation"))
        with self._train.as_default():
            summaries.write_settings(config.to_dict(), workdir.name)

    def trained(self, step: int, losses: np.ndarray, steps_per_second: float) -> float:
        """Writes the mean losses [tasks] of the last steps; returns their total."""
        scalars = summaries.loss_scalars(
            dict(zip(self.weights, losses, strict=True)), self.weights
        )
        with self._train.as_default():
            summaries.write_scalars(
                {
                    **scalars,
                    "learning_rate": float(self._rate(step - 1)),
                    "examples_per_second": steps_per_second * self._config.batch_size,
                },
                step,
            )
        return scalars["loss/total"]

    def evaluated(self, step: int) -> float:
        """Evaluates and attacks part of validation; returns the score of `best`."""
        evaluation = self._evaluator.run(
            self._columns,
            batch_size=self._config.batch_size,
            num_examples=min(self._config.eval_examples, len(self._columns.images)),
            keep_examples=_PICTURES,
        )
        found = {"clean": values(evaluation.clean)}
        if evaluation.attacked:
            found["adversarial"] = values(evaluation.attacked)
        with self._validation.as_default():
            for kind, numbers in found.items():
                summaries.write_scalars(
                    summaries.evaluation_scalars(kind, numbers, self.weights), step
                )
            pictures = summaries.pictures(
                evaluation.examples,
                tuple(self.weights),
                self._info,
                self._config.eval_eps / 255,
            )
            summaries.write_pictures(pictures, step)
        self._validation.flush()
        self._train.flush()
        logging.info("step %d: %s", step, _headlines(found))
        return found[self.best.kind][self.best.task][self.best.metric.name]


def _headlines(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """Each task's first metric, clean and (after the arrow) attacked, on one line."""
    parts = []
    for task, numbers in found["clean"].items():
        name = tasks_lib.TASKS[task].metrics[0].name
        parts.append(f"{task} {name} {numbers[name]:.3f}")
        if "adversarial" in found:
            parts[-1] += f" -> {found['adversarial'][task][name]:.3f}"
    return ", ".join(parts)
