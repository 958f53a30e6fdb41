# SPDX-License-Identifier: Apache-2.0
"""Means over draws of a random objective: expectation over transformation.

An objective of a random model has `draws`, a number, and `drawn(number)`, which is the
objective under one draw of the noise (Athalye et al., ICML 2018).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


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
