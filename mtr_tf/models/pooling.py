# SPDX-License-Identifier: Apache-2.0
"""Max pooling whose gradient XLA can compute deterministically on GPUs.

The configs of models, and so their fingerprints, name this module: moving it would make
finished results unknown.
"""

from __future__ import annotations

import functools

import keras
import tensorflow as tf

from mtr_tf.models import compiling


@keras.saving.register_keras_serializable(package="mtr_tf")
class MaxPooling(keras.layers.MaxPooling2D):
    """Keras's max pooling; in a graph for XLA it is written as `by_slices`."""

    def call(self, x):
        """Returns the largest value of each window, as Keras's layer does."""
        return by_slices(self, x) if compiling.in_xla() else super().call(x)


def by_slices(layer: keras.layers.MaxPooling2D, x: tf.Tensor) -> tf.Tensor:
    """Returns what the layer does, as the maximum of shifted slices, columns first.

    XLA fuses these, and has no deterministic gradient of max pooling itself. Of equal
    values in a window, one gets the gradient, not necessarily the layer's choice.

    Args:
      layer: Any max pooling over height and width.
      x: Its input; with channels first or an unknown size, the layer itself is called.
    """
    if layer.data_format != "channels_last" or None in x.shape[1:3]:
        return keras.layers.MaxPooling2D.call(layer, x)
    for axis in (2, 1):
        size, stride = layer.pool_size[axis - 1], layer.strides[axis - 1]
        length = x.shape[axis]
        if layer.padding == "same":
            count = -(-length // stride)
            padding = max(0, (count - 1) * stride + size - length)
            pads = [[0, 0]] * 4
            pads[axis] = [padding // 2, padding - padding // 2]
            x = tf.pad(x, pads, constant_values=x.dtype.min)
        else:
            count = (length - size) // stride + 1
        ends = [(i, i + (count - 1) * stride + 1) for i in range(size)]
        slices = [
            x[:, i:end:stride] if axis == 1 else x[:, :, i:end:stride]
            for i, end in ends
        ]
        x = functools.reduce(tf.maximum, slices)
    return x
