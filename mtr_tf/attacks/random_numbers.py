# SPDX-License-Identifier: Apache-2.0
"""Random numbers of a key that are the same with XLA and without, on any device.

TensorFlow's stateless random floats are others under XLA; its random whole numbers are
not. So floats are made of those here, as TensorFlow makes them without XLA: `uniform`
returns the very numbers of tf.random.stateless_uniform, and `normal` those of
tf.random.stateless_normal but for rounding.
"""

from __future__ import annotations

import math

import tensorflow as tf

# The integer type of each float type, and how many of its bits make a float.
_INTEGERS = {tf.float32: (tf.int32, 23), tf.float64: (tf.int64, 52)}
_WORD = 32  # TensorFlow has the two halves of 64 bits the other way round for floats.
_SMALLEST = 1e-7  # What the logarithm is taken of, at least.


def uniform(shape: tf.Tensor, key: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns independent numbers, uniform in [0, 1).

    Args:
      shape: of the result.
      key: int64 [2].
      dtype: float32 or float64.
    """
    integer, digits = _INTEGERS[dtype]
    bits = tf.random.stateless_uniform(
        shape,
        key,
        minval=None,
        maxval=None,
        dtype=integer,
        alg="philox",  # The same on every device.
    )
    if integer == tf.int64:
        upper = tf.bitwise.left_shift(bits, tf.constant(_WORD, integer))
        lower = tf.bitwise.right_shift(bits, tf.constant(_WORD, integer))
        bits = upper + tf.bitwise.bitwise_and(lower, 2**_WORD - 1)
    low = tf.bitwise.bitwise_and(bits, tf.constant(2**digits - 1, integer))
    return tf.cast(low, dtype) * tf.constant(2.0**-digits, dtype)


def normal(shape: tf.Tensor, key: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns independent standard normal numbers, two of each two uniform ones.

    Arguments are those of `uniform` (Box and Muller, 1958).
    """
    shape = tf.convert_to_tensor(shape, tf.int32)
    count = tf.reduce_prod(shape)
    pairs = uniform([(count + 1) // 2, 2], key, dtype)
    length = tf.sqrt(-2 * tf.math.log(tf.maximum(pairs[:, 0], _SMALLEST)))
    angle = 2 * math.pi * pairs[:, 1]
    numbers = tf.stack([tf.sin(angle) * length, tf.cos(angle) * length], axis=1)
    return tf.reshape(tf.reshape(numbers, [-1])[:count], shape)
