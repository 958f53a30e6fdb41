# SPDX-License-Identifier: Apache-2.0
"""A model's own clean outputs as targets, for attacks without any labels.

The score of such an attack is agreement: how far outputs move from those of the clean
image. For classes the target is the likeliest class, for labels it is those whose logit
is above 0, and otherwise it is the output itself.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from mtr_tf.data import batching
from mtr_tf.data.source import Columns
from mtr_tf.models import stateless
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet

AT_ONCE = 4


def of_model(
    model: Any, columns: Columns, tasks: TaskSet, count: int, size: int = AT_ONCE
) -> Columns:
    """Returns the columns of the first `count` images, with outputs as targets.

    Finished work is identified by the bits of the targets, which depend on how many
    images are computed at once. That number is always the same, so that a command with
    other batches, or with a part of the attacks, finds the same targets.

    Args:
      model: Images in [0, 1] -> {task: output}.
      columns: A split; its targets and masks do not matter.
      tasks: The scored tasks.
      count: How many images go through the model; all targets are kept in memory.
      size: How many are computed at once; smaller only if memory is short.
    """
    call = tf.function(lambda x: stateless.outputs(model, x), autograph=False)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in tasks}
    with stateless.unchanged(model):
        for start in range(0, count, size):
            # The last rows are filled up with the first.
            rows = np.arange(start, start + size) % count
            images = tf.constant(batching.images_of(columns, rows))
            # Otherwise TensorFlow warns of retracing if several models are attacked.
            outputs = call.get_concrete_function(images)(images)
            for name, task in tasks.items():
                parts[name].append(_target(task, tf.cast(outputs[name], tf.float32)))
    targets = {name: np.concatenate(arrays)[:count] for name, arrays in parts.items()}
    return dataclasses.replace(columns, targets=targets, masks={})


def _target(task: Task, output: tf.Tensor) -> np.ndarray:
    if task.discrete:
        return tf.argmax(output, axis=-1, output_type=tf.int32).numpy()
    if task.kind == "labels":
        return tf.cast(output > 0, tf.float32).numpy()
    return output.numpy()
