# SPDX-License-Identifier: Apache-2.0
"""The training loop, which decides when things happen; see `step` for what they are.

Batches and augmentation are pure functions of (seed, step), and the checkpoint holds
everything else that a step depends on, so a run that was killed and started again ends
with the same bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import time
import zipfile
from collections.abc import Callable
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from mtr_tf import files
from mtr_tf.attacks import base
from mtr_tf.cli import progress
from mtr_tf.cli import stopping
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.models import compiling
from mtr_tf.runs import directory
from mtr_tf.runs import remote
from mtr_tf.runs import workers as workers_lib
from mtr_tf.runs.workers import Workers
from mtr_tf.tasks import TaskSet
from mtr_tf.training import job as job_lib
from mtr_tf.training import step as step_lib
from mtr_tf.training.job import Job
from mtr_tf.training.keeper import Keeper
from mtr_tf.training.monitor import Monitor

# Steps of one compiled call, which holds all their losses.
MOST_IN_A_CALL = 10_000


def train(config: TrainConfig, workdir: str | os.PathLike, resume: bool = True) -> None:
    """Trains a model and writes a run directory (see `runs.directory`).

    Args:
      config: the settings.
      workdir: the run directory, or its address.
      resume: whether to continue a run that it holds.

    Raises:
      InputError: the settings, the data or the directory cannot be used, or a loss is
        not finite.
    """
    with remote.copies(), base.input_errors():
        _train(directory.canonical(config), remote.local(workdir, "--workdir"), resume)


def _train(config: TrainConfig, workdir: pathlib.Path, resume: bool) -> None:
    """`train` with canonical settings and a folder on this machine."""
    workers = workers_lib.join(config.strategy, config.replicas)
    advice = f"The same command on all goes on from what is kept in {workdir}."
    keeper = None
    # `outer_stack` also covers the upload of a run at an address.
    with contextlib.ExitStack() as outer_stack, contextlib.ExitStack() as stack:
        stack.enter_context(workers.explaining_loss(advice))

        def look() -> directory.Begun:
            stack.enter_context(remote.held(workdir, skip="attacks/"))
            directory.check_workdir(workdir, config, resume)
            return directory.begun(workdir)

        job = job_lib.resolve(config, workers, look)
        outer_stack.enter_context(
            stopping.saying(lambda: _stop_message(keeper, job.steps, workdir))
        )
        outer_stack.enter_context(stopping.later())
        with workers.agreeing({}):
            if workers.chief:
                stack.enter_context(files.locked(workdir))
                info, facts = job.source.info, job.facts
                tasks = TaskSet(
                    task.bound(unit=info.units.get(name, task.unit))
                    for name, task in job.tasks.items()
                )
                directory.begin(workdir, config, resume, tasks, info.ranges, facts)
        keeper = Keeper(
            workdir,
            job.learner.model,
            job.learner.optimizer,
            config.keep_checkpoints,
            job.learner.weighting.variables,
            writes=workers.chief,
        )
        _run(job, workdir, keeper)


def _run(job: Job, workdir: pathlib.Path, keeper: Keeper) -> None:
    """Does the steps that are missing, and saves the model.

    If a signal reaches any worker, the steps done so far are in a checkpoint.
    """
    learner, total, workers = job.learner, job.steps, job.workers
    first = is_finished = 0
    with workers.agreeing({}):
        if workers.chief:
            first = keeper.restore(total)
            is_finished = first == total and _is_intact(workdir / "model.keras")
    first, is_finished = workers.of_chief([first, is_finished])
    keeper.kept = first
    workers.take_chiefs(keeper.variables)
    if is_finished:
        logging.info("%s is already finished: %d steps", workdir, total)
        return
    if first:
        logging.info("continuing from step %d of %d in %s", first, total, workdir)
    with files.write_errors_explained(workdir):
        monitor = Monitor(
            job.config,
            job.source,
            workers,
            learner,
            job.tasks,
            job.best,
            workdir if workers.chief else None,
            first,
        )
    step = loop(
        _train_steps(job, first),
        Timetable(first, total, job.config),
        monitor,
        keeper,
        lambda: step_lib.settle_statistics(learner.model, workers),
        workers,
    )
    if step == total and workers.chief:
        with files.whole_file(workdir / "model.keras") as temporary_path:
            learner.model.save(temporary_path)
        files.settle(workdir)
    workers.any(False)  # No worker ends before the others have what they need.


def _train_steps(job: Job, first: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function that trains for `count` steps, from the step `first` on.

    Under XLA the first step is a call of its own: if it fails, no step is done, and XLA
    is left out. If a later step of a call failed, repeating the call would do the steps
    before it twice.
    """
    batches = job.batches(first)

    def make(jit: bool) -> Callable[[tf.Tensor], tf.Tensor]:
        steps = step_lib.compile_steps(job.learner, job.strategy, jit)
        return functools.partial(steps, iter(batches))

    train_steps = compiling.Fallback(make, job.jit, "the training step")
    split_first = job.jit

    def train(count: tf.Tensor) -> tf.Tensor:
        nonlocal split_first
        split, split_first = split_first and count > 1, False
        if not split:
            return train_steps(count)
        return tf.concat([train_steps(tf.constant(1)), train_steps(count - 1)], axis=0)

    return train


def _is_intact(path: pathlib.Path) -> bool:
    """Whether a .keras file exists and is undamaged."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except files.DAMAGED:
        return False


def _stop_message(keeper: Keeper | None, total: int, workdir: pathlib.Path) -> str:
    """Returns what is kept of a run that a signal stopped, and how to continue.

    Empty if the checkpoints have not been looked at yet: the command then says what is
    kept in its own words.
    """
    step = keeper.kept if keeper else None
    if step is None:
        return ""
    if step == total and _is_intact(workdir / "model.keras"):
        return f"Training had already finished: {workdir} is complete."
    if not step:
        return "No training step is kept; the same command starts again."
    return (
        f"Step {step} of {total} is done and kept in {workdir}/checkpoints; the same "
        "command continues from there."
    )


@dataclasses.dataclass(frozen=True)
class Timetable:
    """When things are due, in steps; after the last step everything is."""

    first: int
    total: int
    config: TrainConfig

    def every(self, what: str) -> int:
        """The period of `summary`, `eval` (10 a run) or `checkpoint` (5 a run)."""
        times = 10 if what == "eval" else 5
        return getattr(self.config, f"{what}_every") or math.ceil(self.total / times)

    def due(self, what: str, step: int) -> bool:
        """Whether something is due after `step` steps."""
        return step == self.total or step % self.every(what) == 0

    def late(self, seconds: float) -> bool:
        """Whether a checkpoint saved this many seconds ago is too old."""
        limit = 60 * self.config.checkpoint_minutes
        return 0 < limit <= seconds

    def stop_after(self, step: int) -> int:
        """Returns the next step after which anything is due, or one call must end."""
        kinds = ("summary", "eval", "checkpoint")
        steps = (step - step % period + period for period in map(self.every, kinds))
        return min(self.total, step + MOST_IN_A_CALL, *steps)


def loop(
    train_steps: Callable[[tf.Tensor], tf.Tensor],
    timetable: Timetable,
    monitor: Monitor,
    keeper: Keeper,
    settle: Callable[[], None],
    workers: Workers,
) -> int:
    """Runs all steps; logs, evaluates and saves checkpoints as the timetable says.

    Between calls a checkpoint is also saved if the last one is too old, or if a signal
    has asked to stop. The timetable alone decides at which steps calls end, and
    statistics are settled at each end, so that this changes no bit.

    Args:
      train_steps: trains for a number of steps; returns their losses [steps, tasks].
      timetable: when things are due.
      monitor: writes summaries and evaluates.
      keeper: saves checkpoints.
      settle: is called before the model is evaluated or saved.
      workers: the workers, which stop together.

    Returns:
      The number of steps done: fewer than all if it was asked to stop.

    Raises:
      InputError: a loss is not finite. The checkpoints stay as they were before.
    """
    step, saved_at = timetable.first, time.monotonic()
    stop = workers.asked_to_stop()
    with progress.bar(
        timetable.total, "training", "steps", done=step, shown=workers.chief
    ) as advance:
        while step < timetable.total and not stop:
            count = timetable.stop_after(step) - step
            start = time.monotonic()
            losses = train_steps(tf.constant(count)).numpy()
            seconds = time.monotonic() - start
            raise_if_not_finite(losses, tuple(monitor.tasks), step)
            step += count
            total = monitor.trained(step, losses.mean(axis=0), count / seconds)
            settle()
            if timetable.due("eval", step):
                score = monitor.evaluated(step)
                keeper.save_if_best(step, score, monitor.best.better)
            is_late = timetable.late(time.monotonic() - saved_at)
            stop = workers.asked_to_stop()
            if timetable.due("checkpoint", step) or is_late or stop:
                monitor.flush()
                keeper.save(step)
                saved_at = time.monotonic()
            advance(count, f"loss {total:.3f}")
    return step


def raise_if_not_finite(losses: np.ndarray, tasks: Sequence[str], first: int) -> None:
    """Raises `InputError` with the first step and task whose loss is not finite.

    Args:
      losses: [steps, tasks].
      tasks: their names.
      first: how many steps came before these.
    """
    for step, task in np.argwhere(~np.isfinite(losses))[:1]:
        raise InputError(
            f"the loss of {tasks[task]} is {losses[step, task]} at step "
            f"{first + step + 1}: training has diverged. What was saved before is "
            "kept; lower --learning_rate or the task's weight, and use another "
            "--workdir."
        )
