# SPDX-License-Identifier: Apache-2.0
"""What a user's own losses and metrics compute, as far as results depend on it."""

from __future__ import annotations

import hashlib

import numpy as np

from mtr_tf.tasks.metrics import Metric
from mtr_tf.tasks.table import TASKS
from mtr_tf.tasks.task import KINDS
from mtr_tf.tasks.task import Task

_SIDE = 16  # Of places, of noise.
_CHANNELS = 3  # Where a task leaves them to the data.


def digest(task: Task) -> str:
    """A hash of what a task's own loss and metrics give for noise.

    Empty where all of them are those of its kind, or of the task of that name. So
    results are not taken for those of a loss that was changed since.
    """
    own = [metric for metric in task.metrics[:-1] if _is_own(metric)]
    if _has_own_loss(task):
        own.append(task.metrics[-1])
    if not own:
        return ""
    target, output, mask = _noise(task)
    words = []
    for metric in own:
        words.append(metric.name)
        try:
            rows = metric.statistics(target, output, mask, output.shape[-1])
            words += [f"{number:.4g}" for number in np.ravel(rows)]
        except Exception as error:  # Of any kind: the code is not ours.
            words.append(type(error).__name__)
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]


def _is_own(metric: Metric) -> bool:
    """Whether a metric is made of a user's function, or of Keras's."""
    ours = metric.statistics.__module__.startswith("mtr_tf.")
    return not ours or metric.bounds == (-np.inf, np.inf)


def _has_own_loss(task: Task) -> bool:
    known = [KINDS[task.kind].loss]
    if task.name in TASKS:
        known.append(TASKS[task.name].loss)
    return all(task.loss is not loss for loss in known)


def _noise(task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(target, output, mask) of two images, always the same."""
    random = np.random.default_rng(0)
    places = (2, *(_SIDE,) * task.axes)
    channels = task.channels or len(task.classes) or _CHANNELS
    output = random.normal(size=(*places, channels)).astype(np.float32)
    if task.discrete:
        target = random.integers(0, channels, places, np.int32)
    elif task.kind == "labels":
        target = random.integers(0, 2, output.shape).astype(np.float32)
    else:
        target = random.uniform(0.5, 2, output.shape).astype(np.float32)
    mask = (random.random(places) < 0.9).astype(np.float32)
    return target, output, mask
