# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of a training run: which are kept, and how one is restored."""

from __future__ import annotations

import math
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from absl import logging

from mtr_tf import files
from mtr_tf.errors import InputError
from mtr_tf.runs.loading import READ_ERRORS


class Keeper:
    """The checkpoints of a training run: the newest few, and the best.

    A checkpoint is a `tf.train.Checkpoint` of the model, the optimizer, the step, the
    best score so far, and what else is trained. It is complete or absent: TensorFlow
    writes it beside.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        model: Any,
        optimizer: Any,
        keep: int,
        variables: Sequence[Any] = (),
    ):
        """Looks at `workdir/checkpoints`, and clears what a killed save left there."""
        self._folder = workdir / "checkpoints"
        for leftover in self._folder.glob("**/*_temp"):
            shutil.rmtree(leftover)
        for leftover in workdir.glob(".[0-9]*.model.keras"):
            leftover.unlink()
        self._step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._best = tf.Variable(math.nan, dtype=tf.float64, trainable=False)
        self._checkpoint = tf.train.Checkpoint(
            model=model,
            optimizer=optimizer,
            step=self._step,
            best=self._best,
            **{variable.name: variable.value for variable in variables},
        )
        self._newest = tf.train.CheckpointManager(
            self._checkpoint, str(self._folder), max_to_keep=keep
        )
        self._kept_best = tf.train.CheckpointManager(
            self._checkpoint, str(self._folder / "best"), max_to_keep=1
        )

    def restore(self) -> int:
        """Restores the newest checkpoint that can be read; returns the steps done.

        Raises:
          InputError: there are some, and none can be read.
        """
        kept = self._newest.checkpoints
        for path in reversed(kept):
            try:
                self._checkpoint.restore(path).assert_consumed()
            except (tf.errors.OpError, *READ_ERRORS) as error:
                reason = str(error).splitlines()[0] if str(error) else "unreadable"
                logging.warning("%s is damaged (%s)", path, reason[:100])
            else:
                return int(self._step.numpy())
        if kept:
            raise InputError(
                f"all checkpoints in {self._folder} are damaged or of another model; "
                "delete the folder to start again, or give another --workdir."
            )
        return 0

    def save(self, step: int) -> None:
        """Saves a checkpoint, and deletes the oldest beyond those to keep."""
        self._write(self._newest, step)

    def save_if_best(self, step: int, score: float, better: str) -> None:
        """Saves to `best/` when the score beats all before; `better`: higher, lower."""
        best = float(self._best.numpy())
        improved = score > best if better == "higher" else score < best
        if improved or (math.isnan(best) and not math.isnan(score)):
            self._best.assign(score)
            self._write(self._kept_best, step)

    def _write(self, manager: Any, step: int) -> None:
        self._step.assign(step)
        with files.write_errors_explained(self._folder):
            manager.save(checkpoint_number=step)
