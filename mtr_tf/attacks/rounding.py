# SPDX-License-Identifier: Apache-2.0
"""Rounding of attacked images to their own float type, without going further from x.

All numbers are in [0, 1], and x is of the type that is rounded to.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

# An integer type of each float type's size: neighbouring non-negative floats have
# neighbouring bit patterns, so adding 1 to the bits is the next float up.
_BITS = {
    tf.float16: tf.int16,
    tf.bfloat16: tf.int16,
    tf.float32: tf.int32,
    tf.float64: tf.int64,
}
_HALVINGS = 40  # Of the range of scales, 2^-1 to 2^13.


def towards(x: tf.Tensor, value: tf.Tensor, reach: tf.Tensor | float) -> tf.Tensor:
    """Returns float64 `value` in x's dtype, at most `reach` away from `x`.

    Rounds to the nearest number, and where that is too far goes to its neighbour on
    x's side.
    """
    nearest = tf.cast(value, x.dtype)
    gap = tf.cast(x, tf.float64) - tf.cast(nearest, tf.float64)
    bits = _BITS[x.dtype]
    too_far = tf.cast(tf.abs(gap) > reach, bits)
    move = tf.cast(tf.sign(gap), bits) * too_far
    return tf.bitcast(tf.bitcast(nearest, bits) + move, x.dtype)


def as_long(x: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Returns about x + offset in x's dtype, [batch, ...], with offsets as long in l2.

    Half precision has few numbers: `towards` gives away most of a small offset, for
    much of it is less than the distance to the next number. So x + s offset is rounded
    to the nearest, s the largest whose result is no longer than the offset. All
    coordinates move outwards as s grows, so halving finds it. What the next larger s
    would change is done for as many of its coordinates as there is length left for,
    taken from all over the image.

    Args:
      x: [batch, ...] in [0, 1].
      offset: float64, x + offset in [0, 1].
    """
    axes = list(range(1, x.shape.rank))
    wide = tf.cast(x, tf.float64)
    # Room for the rounding of the sums.
    limit = tf.reduce_sum(tf.square(offset), axes, keepdims=True) * (1 - 1e-12)

    def scaled(log_scale):
        value = wide + tf.pow(tf.constant(2.0, tf.float64), log_scale) * offset
        return tf.cast(tf.clip_by_value(value, 0, 1), x.dtype)

    def squares(rounded):
        return tf.square(tf.cast(rounded, tf.float64) - wide)

    def halve(number, low, high):
        middle = (low + high) / 2
        length = tf.reduce_sum(squares(scaled(middle)), axes, keepdims=True)
        fits = length <= limit
        low, high = tf.where(fits, middle, low), tf.where(fits, high, middle)
        return number + 1, low, high

    # To the nearest at most doubles what is rounded: half the offset always fits.
    _, low, high = tf.while_loop(
        lambda number, *_: number < _HALVINGS,
        halve,
        (0, tf.zeros_like(limit) - 1.001, tf.zeros_like(limit) + 13),
        parallel_iterations=1,
    )
    inside, outside = scaled(low), scaled(high)
    spare = limit - tf.reduce_sum(squares(inside), axes, keepdims=True)
    taken = _affordable(squares(outside) - squares(inside), spare)
    return tf.where(taken, outside, inside)


def _affordable(costs: tf.Tensor, spare: tf.Tensor) -> tf.Tensor:
    """Returns bools like `costs`: which together cost no more than `spare`, by image.

    They are taken in an order that visits all parts of an image alike: multiples of the
    golden ratio, modulo 1, are spread evenly, however many there are.
    """
    flat = tf.reshape(costs, [tf.shape(costs)[0], tf.reduce_prod(tf.shape(costs)[1:])])
    places = tf.range(tf.shape(flat)[1], dtype=tf.float64) * (np.sqrt(5) - 1) / 2
    order = tf.argsort(tf.math.floormod(places, 1))
    spent = tf.cumsum(tf.gather(flat, order, axis=1), axis=1)
    taken = spent <= tf.reshape(spare, [-1, 1])
    return tf.reshape(tf.gather(taken, tf.argsort(order), axis=1), tf.shape(costs))
