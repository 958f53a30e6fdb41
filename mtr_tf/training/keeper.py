# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of a training run: which to keep, and how to restore one."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from mtr_tf import files
from mtr_tf.errors import InputError
from mtr_tf.runs import checkpoints
from mtr_tf.runs import remote
from mtr_tf.runs.loading import READ_ERRORS


class Keeper:
    """The checkpoints of a training run: the newest few, and the best.

    A checkpoint is a `tf.train.Checkpoint` of the model, the optimizer, the step, the
    best score so far, and what else is trained. It is complete or absent: TensorFlow
    writes it under another name first.

    Attributes:
      variables: All variables that are trained, or carry state between steps.
      kept: The newest checkpoint's step; 0: there is none; None: not looked at yet.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        model: Any,
        optimizer: Any,
        keep: int,
        variables: Sequence[Any] = (),
        writes: bool = True,
    ):
        """Opens `workdir/checkpoints`, and clears what a killed save left there.

        Without `writes`, as on workers other than the chief, files are left alone.
        """
        self._folder, self._keep = workdir / "checkpoints", keep
        self._best_folder = self._folder / "best"
        self._writes = writes
        self.kept: int | None = None
        if writes:
            for folder in (self._folder, self._best_folder):
                checkpoints.clear(folder)
            files.clear_leftovers(self._folder, self._best_folder)
        noise = _noise(model)
        self.variables = [
            *(v.value for v in (*model.weights, *optimizer.variables, *variables)),
            *noise.get("noise", ()),
        ]
        self._step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._best = tf.Variable(math.nan, dtype=tf.float64, trainable=False)
        self._checkpoint = tf.train.Checkpoint(
            model=model,
            optimizer=optimizer,
            step=self._step,
            best=self._best,
            **{variable.name: variable.value for variable in variables},
            **noise,
        )
        # Versions before 0.2 count their saves with it, and need it to exist.
        self._checkpoint.save_counter  # noqa: B018  (made when it is asked for)

    def restore(self, total: int | None = None) -> int:
        """Restores the newest checkpoint that can be read; returns the steps done.

        Args:
          total: How many steps the run has; a later checkpoint is another run's.

        Raises:
          InputError: there are checkpoints, and none can be read.
        """
        steps = checkpoints.newest_first(self._folder)
        for step in steps:
            try:
                if total is not None and step > total:
                    raise ValueError(
                        f"it belongs to a longer run; this one has {total}"
                    )
                status = checkpoints.read(self._checkpoint, self._folder, step)
                status.assert_consumed()
                if int(self._step.numpy()) != step:
                    raise ValueError("its step is not the one in its name")
            except READ_ERRORS as error:
                checkpoints.say_skipped(self._folder, step, error)
            else:
                return step
        if steps:
            raise InputError(
                f"all checkpoints in {self._folder} are damaged or belong to another "
                "model; delete the folder to start again, or give another --workdir."
            )
        return 0

    def save(self, step: int) -> None:
        """Saves a checkpoint, and deletes the oldest beyond those to keep."""
        if self._writes:
            # Later ones are damaged or another run's, as was logged: they stay.
            older_steps = [s for s in checkpoints.steps(self._folder) if s < step]
            excess = max(0, len(older_steps) + 1 - self._keep)
            self._write(
                self._folder, step, [*older_steps[excess:], step], older_steps[:excess]
            )
        self.kept = step

    def save_if_best(self, step: int, score: float, better: str) -> None:
        """Saves to `best/` if the score beats all before; `better`: higher, lower."""
        if not self._writes:
            return
        best = float(self._best.numpy())
        is_better = score > best if better == "higher" else score < best
        if is_better or (math.isnan(best) and not math.isnan(score)):
            self._best.assign(score)
            old_steps = set(checkpoints.steps(self._best_folder)) - {step}
            self._write(self._best_folder, step, [step], sorted(old_steps))

    def _write(
        self,
        folder: pathlib.Path,
        step: int,
        kept_steps: Sequence[int],
        deleted_steps: Sequence[int],
    ) -> None:
        self._step.assign(step)
        with files.write_errors_explained(folder):
            checkpoints.write(self._checkpoint, folder, step)
            checkpoints.keep(folder, kept_steps, deleted_steps)
        remote.push(folder)


def _noise(model: Any) -> dict[str, list[Any]]:
    """Returns the states of noisy layers such as dropout; TensorFlow overlooks them."""
    weights = {id(weight) for weight in model.weights}
    states = [v.value for v in model.variables if id(v) not in weights]
    return {"noise": states} if states else {}
