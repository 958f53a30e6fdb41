# SPDX-License-Identifier: Apache-2.0
"""Gradients of objectives that compute in float16, without losing them on the way.

A loss is a mean over the pixels of an image: each has a share of 1e-6 in it at 1024 px,
and nothing below 6e-8 is a number in float16. So the gradient is taken of a multiple of
what is climbed, a power of two, and divided by it in the images' own type.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import tensorflow as tf

_LEAST = 2.0**-10  # With smaller entries in a scaled gradient, others may be lost.
_STEP = 8  # A scale that is wrong is changed by 2^8,
_TRIES = 4  # so often at most.
_HIGHEST = 100  # Exponents beyond these would leave float32.


def operations() -> list[tf.Operation]:
    """Returns those of the graph that is being built; none where there is none."""
    if tf.executing_eagerly():
        return []
    return tf.compat.v1.get_default_graph().get_operations()


def computes_in_float16(operations: Iterable[tf.Operation]) -> bool:
    """Whether any of a graph's operations, or of the functions they call, does."""
    for operation in operations:
        if any(output.dtype == tf.float16 for output in operation.outputs):
            return True
        if operation.type in ("PartitionedCall", "StatefulPartitionedCall"):
            # TensorFlow has no public way to a called function's graph.
            name = operation.get_attr("f").name
            called = operation.graph._get_function(name)
            if called and computes_in_float16(called.graph.get_operations()):
                return True
    return False


def gradient(tape: tf.GradientTape, ascend: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Returns the gradient of `ascend` by `x`, scaled on its way by image.

    The first scale is about the number of entries of an image: then what the pixels'
    losses add up to is differentiated, not their mean. Where the result is not finite,
    a smaller scale is tried, where it is zero or small a larger one, each by another
    backward pass, and the last finite result stays.

    Args:
      tape: A persistent one that watched `x`.
      ascend: [batch].
      x: [batch, ...], float32 or float64.

    Returns:
      Like `x`; not finite where no scale makes it so.
    """
    axes = list(range(1, x.shape.rank))
    ones = [1] * len(axes)
    entries = tf.cast(tf.reduce_prod(tf.shape(x)[1:]), tf.float32)
    first = tf.math.ceil(tf.math.log(entries) / np.float32(np.log(2)))
    exponents = tf.zeros_like(ascend, tf.int32) + tf.cast(first, tf.int32)

    def attempt(number, exponents, lowered, known, found, _):
        scale = tf.cast(_power_of_two(exponents), x.dtype)
        scaled = tape.gradient(
            ascend, x, scale, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        largest = tf.reduce_max(tf.abs(scaled), axes)
        finite = tf.reduce_all(tf.math.is_finite(scaled), axes)
        slope = scaled * tf.reshape(
            tf.cast(_power_of_two(-exponents), x.dtype), [-1, *ones]
        )
        # A larger scale that went too far leaves the one before.
        take = tf.reshape(finite | ~known, [-1, *ones])
        found = tf.where(take, slope, found)
        small = finite & (largest < _LEAST) & ~lowered
        pending = small | (~finite & ~known)
        lowered |= ~finite
        change = tf.where(small, _STEP, tf.where(finite, 0, -_STEP))
        exponents = tf.minimum(exponents + change, _HIGHEST)
        return number + 1, exponents, lowered, known | finite, found, pending

    none = tf.zeros_like(ascend, tf.bool)
    state = (0, exponents, none, none, tf.zeros_like(x), tf.ones_like(none))
    _, _, _, _, found, _ = tf.while_loop(
        lambda number, *rest: (number < _TRIES) & tf.reduce_any(rest[-1]),
        attempt,
        state,
        parallel_iterations=1,
    )
    return found


def _power_of_two(exponents: tf.Tensor) -> tf.Tensor:
    """Returns 2^exponents, exactly, float32: a float's bits begin with its exponent."""
    return tf.bitcast(tf.bitwise.left_shift(exponents + 127, 23), tf.float32)
