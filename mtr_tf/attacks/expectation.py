# SPDX-License-Identifier: Apache-2.0
"""Means over draws of a random objective: expectation over transformation.

An objective of a random model has `draws`, a number, and `drawn(number)`, which is the
objective under one draw of the noise (Athalye et al., ICML 2018).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from mtr_tf.models import stateless


def of(objective: Any, function: Callable[[Any], Any]) -> Any:
    """Returns the mean over an objective's draws of what the function makes of each.

    Args:
      objective: Any; without draws the function is called on itself.
      function: An objective -> tensors of any structure, float.
    """
    count = getattr(objective, "draws", 1)
    if count == 1:
        return function(objective)
    return mean(lambda number: function(objective.drawn(number)), count)


def mean(function: Callable[[Any], Any], count: int) -> Any:
    """Returns the mean of function(0) to function(count - 1), tensors of any structure.

    One after the other, so that the features of one draw at most are held.
    """
    total = function(0)
    if count == 1:
        return total

    def add(number, total):
        parts = function(number)
        return number + 1, tf.nest.map_structure(tf.add, total, parts)

    _, total = tf.while_loop(
        lambda number, _: number < count, add, (1, total), parallel_iterations=1
    )
    return tf.nest.map_structure(lambda t: t / count, total)


def noise_key(batch: Mapping[str, Any], progress: tf.Tensor | float) -> tf.Tensor:
    """Returns the key, int64 [2], of a random model's noise in one call.

    One for each seed (that of the batch's first image), step of an attack, and draw.
    Restarts and radii meet the same noise at the same step, so that they compare.
    """
    keys = batch.get("keys")
    key = tf.zeros(2, tf.int64) if keys is None else stateless.batch_key(keys)
    step = tf.bitcast(tf.cast(progress, tf.float32), tf.int32)
    return stateless.fold_in(stateless.fold_in(key, step), batch.get("draw", 0))
