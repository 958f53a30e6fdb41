# SPDX-License-Identifier: Apache-2.0
"""Targets that have nothing to do with the picture: a control of auxiliary tasks.

If an auxiliary task makes a model more robust because of what it teaches, noise in
place of its targets must not. If noise does so too, what helps is just a second loss.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from mtr_tf import tasks as tasks_lib
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.errors import InputError


@dataclasses.dataclass(frozen=True)
class NoiseColumn:
    """Random targets, a function of (seed, task, row) alone; see `Columns.targets`.

    Classes are uniform, labels are present with probability one half, directions are
    uniform over the sphere, and other values are uniform between `low` and `high`.
    Places are independent of each other.

    Attributes:
      task: The task.
      shape: `[N, *places]` for classes, else `[N, *places, channels]`.
      low: The lowest value; 0 for classes.
      high: The highest value; for classes, their number.
      seed: Equal seeds give equal targets.
    """

    task: tasks_lib.Task
    shape: tuple[int, ...]
    low: float
    high: float
    seed: int

    @property
    def dtype(self) -> np.dtype:
        """int32 for classes, else float32."""
        return np.dtype(np.int32 if self.task.discrete else np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([self._row(int(row)) for row in rows])

    def _row(self, row: int) -> np.ndarray:
        name = zlib.crc32(self.task.name.encode())
        rng = np.random.default_rng((self.seed, name, row))
        if self.task.discrete:
            return rng.integers(int(self.high), size=self.shape[1:], dtype=np.int32)
        if self.task.kind == "labels":
            return rng.integers(2, size=self.shape[1:]).astype(np.float32)
        if self.task.kind == "directions":
            vectors = rng.normal(size=self.shape[1:])
            unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
            return unit.astype(np.float32)
        scale = np.float32(self.high - self.low)
        uniform = rng.random(self.shape[1:], np.float32)
        return np.float32(self.low) + scale * uniform


def replace(
    columns: Columns, tasks: Sequence[str], info: DatasetInfo, seed: int
) -> Columns:
    """Returns the columns with noise as the targets of some tasks; masks stay.

    Values cover the range that is shown in pictures of the task (`DatasetInfo.ranges`),
    else [0, 1]; the real targets need not fill this range, nor stay in it.

    Raises:
      InputError: The range of a task is a single value, so that there is no noise.
    """
    targets = dict(columns.targets)
    for name in tasks:
        task = info.tasks[name]
        channels = task.output_channels(info.num_classes)
        column = targets.get(name)
        shape = columns.images.shape[:3] if column is None else column.shape
        if column is None and not task.discrete:
            shape = (*shape, channels)
        low, high = info.ranges.get(name, (0.0, 1.0))
        if task.discrete:
            low, high = 0, channels
        elif task.kind not in ("labels", "directions") and low == high:
            raise InputError(
                f"--random_targets must have a range of values of {name} to draw from, "
                f"but its ends are {low:g} and {high:g}; give "
                f'"ranges": {{"{name}": (low, high)}} with the data.'
            )
        targets[name] = NoiseColumn(task, tuple(shape), low, high, seed)
    return dataclasses.replace(columns, targets=targets)
