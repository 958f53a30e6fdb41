# SPDX-License-Identifier: Apache-2.0
"""Training: one step on one replica, N steps in one compiled call, and the loop.

The way of a batch is `replica_step`; everything around it only says when. Batches and
augmentation are pure functions of (seed, step), and the checkpoint holds all else that
a step depends on, so a run that was killed and started again ends with the same bits.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from mtr_tf import files
from mtr_tf import tasks as tasks_lib
from mtr_tf.cli import progress
from mtr_tf.config.settings import parse_image_size
from mtr_tf.config.train import TrainConfig
from mtr_tf.data import augment
from mtr_tf.data import batching
from mtr_tf.data import noise_targets
from mtr_tf.errors import InputError
from mtr_tf.models import compiling
from mtr_tf.runs import building
from mtr_tf.runs import directory
from mtr_tf.runs import strategy as strategy_lib
from mtr_tf.training import losses as training_losses
from mtr_tf.training import monitor as monitor_lib
from mtr_tf.training import schedules
from mtr_tf.training import step as step_lib
from mtr_tf.training.keeper import Keeper


def _noisy(config: TrainConfig, tasks: Sequence[str]) -> tuple[str, ...]:
    """The tasks that are trained on noise; `InputError` for one that is not trained."""
    names = tasks_lib.resolve(config.random_targets) if config.random_targets else ()
    for name in names:
        if name not in tasks:
            raise InputError(
                f"--random_targets must be among --tasks, {', '.join(tasks)}; got "
                f"{name!r}."
            )
    return names


def train(config: TrainConfig, workdir: pathlib.Path, resume: bool = True) -> None:
    """Trains a model and leaves a run directory (see `runs`).

    Raises:
      InputError: settings, data or directory cannot be used as they are, or a loss is
        not finite.
    """
    tasks = tasks_lib.resolve(config.tasks)
    adversary = step_lib.make_adversary(config, monitor_lib.main_tasks(config))
    best = monitor_lib.parse_best(config)
    _check_directory(workdir, config, resume)
    keras.utils.set_random_seed(config.seed)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = strategy_lib.create(config.strategy, config.replicas)
    batching.check_divisible(config.batch_size, strategy.num_replicas_in_sync)
    with strategy.scope():
        weighting = training_losses.make_weighting(config)
    source = building.open_source(config)
    columns = noise_targets.replace(
        source.columns("train"), _noisy(config, tasks), source.info, config.seed
    )
    source.columns("validation")  # Complains now if it cannot be read.
    examples = _examples(config, len(columns.images))
    vary = augment.Augment(config.flip, parse_image_size(config.crop))
    vary.check(*source.info.image_shape[:2])
    per_epoch = batching.steps_per_epoch(examples, config.batch_size)
    total = config.epochs * per_epoch
    with strategy.scope():
        model = building.build_model(config, source.info)
        optimizer = schedules.optimizer(config, per_epoch)
        optimizer.build(model.trainable_variables + weighting.variables)
    learner = step_lib.Learner(
        model,
        optimizer,
        training_losses.make(config, source.info),
        weighting,
        config.weight_decay,
        config.batch_size,
        adversary,
    )
    jit = _jit(config, total, source.info.image_shape, strategy.num_replicas_in_sync)
    with files.locked(workdir):
        _check_directory(workdir, config, resume)  # Nobody else came first meanwhile.
        if directory.read_config(workdir) is None:
            directory.write_config(workdir, config)
        keeper = Keeper(
            workdir, model, optimizer, config.keep_checkpoints, weighting.variables
        )
        first = keeper.restore()
        if first:
            logging.info("going on from step %d of %d in %s", first, total, workdir)
        with files.write_errors_explained(workdir):
            monitor = monitor_lib.Monitor(
                config, source, strategy, model, weighting, best, workdir, optimizer
            )

        def batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
            return batching.train_batches(
                columns,
                tasks,
                batch_size=config.batch_size,
                seed=config.seed,
                first_step=first,
                last_step=total,
                num_examples=examples,
                augment=vary,
                context=context,
                num_classes=source.info.num_classes,
            )

        dataset = strategy.distribute_datasets_from_function(batches)

        def make_steps(jit: bool) -> Callable[[tf.Tensor], tf.Tensor]:
            steps = step_lib.compile_steps(learner, strategy, jit)
            return functools.partial(steps, iter(dataset))

        loop(
            compiling.Fallback(make_steps, jit, "the training step"),
            Timetable(first, total, config),
            monitor,
            keeper,
            lambda: step_lib.settle_statistics(model),
        )
        with files.whole_file(workdir / "model.keras") as beside:
            model.save(beside)


def _jit(
    config: TrainConfig, steps: int, image_shape: Sequence[int], replicas: int
) -> bool:
    """Whether XLA compiles the step: by all steps, so that it does after a kill too."""
    size = parse_image_size(config.crop) or image_shape[:2]
    pixels = math.prod(size) * config.batch_size / replicas
    passes = compiling.TRAINING_STEP * steps
    on = compiling.worthwhile(config.jit, passes, pixels)
    compiling.say("the training step" if on else "no training step", config.jit)
    return on


@dataclasses.dataclass(frozen=True)
class Timetable:
    """When what happens, in steps; the last step is the time for everything."""

    first: int
    total: int
    config: TrainConfig

    def every(self, what: str) -> int:
        """The period of `summary`, `eval` (10 a run) or `checkpoint` (5 a run)."""
        times = 10 if what == "eval" else 5
        return getattr(self.config, f"{what}_every") or math.ceil(self.total / times)

    def due(self, what: str, step: int) -> bool:
        """Whether it is time for something after `step` steps."""
        return step == self.total or step % self.every(what) == 0

    def stop_after(self, step: int) -> int:
        """The next step after which anything is due."""
        kinds = ("summary", "eval", "checkpoint")
        return min(self.total, *(step - step % e + e for e in map(self.every, kinds)))


def loop(
    train_steps: Callable[[tf.Tensor], tf.Tensor],
    timetable: Timetable,
    monitor: monitor_lib.Monitor,
    keeper: Keeper,
    settle: Callable[[], None],
) -> None:
    """Runs all steps; watches, evaluates and keeps checkpoints as the timetable says.

    `train_steps` trains for so many steps and returns their losses [steps, tasks];
    `settle` is called before the model is evaluated or saved.

    Raises:
      InputError: a loss is not finite. The checkpoints stay as they were before.
    """
    step = timetable.first
    with progress.bar(timetable.total, "training", "step", done=step) as advance:
        while step < timetable.total:
            count = timetable.stop_after(step) - step
            start = time.monotonic()
            losses = train_steps(tf.constant(count)).numpy()
            seconds = time.monotonic() - start
            raise_if_not_finite(losses, monitor.tasks, step)
            step += count
            total = monitor.trained(step, losses.mean(axis=0), count / seconds)
            if timetable.due("eval", step) or timetable.due("checkpoint", step):
                settle()
            if timetable.due("eval", step):
                score = monitor.evaluated(step)
                keeper.save_if_best(step, score, monitor.best.better)
            if timetable.due("checkpoint", step):
                keeper.save(step)
            advance(count, f"loss {total:.3f}")


def raise_if_not_finite(losses: np.ndarray, tasks: Sequence[str], before: int) -> None:
    """Names the first step and task whose loss is not finite.

    Args:
      losses: [steps, tasks].
      tasks: their names.
      before: how many steps came before these.
    """
    for step, task in np.argwhere(~np.isfinite(losses))[:1]:
        raise InputError(
            f"the loss of {tasks[task]} is {losses[step, task]} at step "
            f"{before + step + 1}: training has diverged; what was saved before is "
            "kept. Lower --learning_rate or the task's weight, in another --workdir."
        )


def _check_directory(workdir: pathlib.Path, config: TrainConfig, resume: bool) -> None:
    """Refuses a directory that holds another run, before anything is computed."""
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir must be a directory, got the file {workdir}.")
    if (workdir / "conversion.json").exists():
        raise InputError(
            f"{workdir} holds weights that mtr_tf.convert took over, which training "
            "would replace; give another --workdir."
        )
    old = directory.read_config(workdir)
    if old is not None:
        directory.check_same(workdir, old, config)
        if not resume:
            raise InputError(
                f"{workdir} holds a run already; leave --noresume out to go on with "
                "it, or give another --workdir."
            )


def _examples(config: TrainConfig, available: int) -> int:
    if config.train_examples > available:
        raise InputError(
            f"--train_examples must be at most {available}, the size of the training "
            f"split of {config.dataset}; got {config.train_examples}."
        )
    return config.train_examples or available
