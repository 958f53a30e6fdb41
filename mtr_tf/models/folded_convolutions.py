# SPDX-License-Identifier: Apache-2.0
"""A convolution with the batch norm after it, and the Rescaling before it, in one.

Without training, a batch normalisation is a fixed scale and offset per channel, and
`s (W * x) + b` is `(s W) * x + b`. So is the scale of a Rescaling before `W * x`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.Conv2DTranspose)


def foldable(node: Any, norm: keras.layers.BatchNormalization) -> bool:
    """Whether it is a plain convolution over the channels that `norm` scales."""
    layer = node.operation
    return (
        type(layer) in _CONVOLUTIONS
        and layer.activation is keras.activations.linear
        and layer.data_format == "channels_last"
        and norm.axis in (-1, 3)
        and norm.compute_dtype == layer.compute_dtype
        and not layer.quantization_mode
    )


def folded(
    layer: keras.layers.Layer,
    norm: keras.layers.BatchNormalization,
    rescaling: keras.layers.Rescaling | None,
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the convolution with what is around it in its kernel and offset.

    Args:
      layer: the convolution.
      norm: the norm after it.
      rescaling: what scales its input, and is to leave that to the kernel.
    """
    wide = tf.float64 if layer.compute_dtype == "float64" else tf.float32

    def widened(variable):
        return tf.cast(tf.convert_to_tensor(variable), wide)

    scale = tf.math.rsqrt(widened(norm.moving_variance) + norm.epsilon)
    if norm.scale:
        scale *= widened(norm.gamma)
    offset = -widened(norm.moving_mean) * scale
    if norm.center:
        offset += widened(norm.beta)
    if layer.use_bias:
        offset += widened(layer.bias) * scale
    transposed = isinstance(layer, keras.layers.Conv2DTranspose)
    # A transposed kernel is [rows, columns, out, in], a plain one [..., in, out].
    kernel = widened(layer.kernel) * (scale[:, tf.newaxis] if transposed else scale)
    if rescaling is not None:
        kernel *= tf.cast(_scale_of_kernel(layer, rescaling.scale), wide)
    kernel, offset = (tf.cast(t, layer.compute_dtype) for t in (kernel, offset))
    convolution = _convolution(layer, kernel.dtype)
    return lambda x: tf.nn.bias_add(
        convolution(tf.cast(x, kernel.dtype), kernel), offset
    )


def _scale_of_kernel(layer: keras.layers.Conv2D, scale: Any) -> np.ndarray:
    """The scale of its input as factors of a convolution's kernel, [in, 1 or out].

    Each of its groups of output channels reads another part of the input's channels,
    and the kernel has them at the same places.
    """
    factors = np.reshape(scale, (-1,)).astype(np.float64)
    if factors.size == 1 or layer.groups == 1:
        return factors[:, np.newaxis]
    by_group = factors.reshape(layer.groups, -1)
    return np.repeat(by_group.T, layer.filters // layer.groups, axis=1)


def _convolution(
    layer: keras.layers.Layer, dtype: tf.DType
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns (x, kernel) -> what the layer computes with that kernel."""
    if isinstance(layer, keras.layers.Conv2DTranspose):
        return functools.partial(
            keras.ops.conv_transpose,
            data_format=layer.data_format,
            strides=layer.strides,
            padding=layer.padding,
            output_padding=layer.output_padding,
            dilation_rate=layer.dilation_rate,
        )
    dilated = max(layer.dilation_rate) > 1 and layer.groups == 1
    if dilated and dilates_directly(dtype):
        # Without rearranging the input, as TensorFlow does for layers.
        return functools.partial(
            tf.nn.conv2d,
            strides=layer.strides,
            padding=layer.padding.upper(),
            dilations=layer.dilation_rate,
        )
    return layer.convolution_op


@functools.cache
def dilates_directly(dtype: tf.DType) -> bool:
    """Whether this machine has the gradient of a dilated convolution.

    TensorFlow's own CPU kernels have none, oneDNN's (except for float16 and float64)
    and cuDNN's have. Which will run is seen by running it.
    """

    @tf.function(autograph=False)
    def gradient(kernel, upstream):  # No tape would record in tf.init_scope.
        return tf.raw_ops.Conv2DBackpropInput(
            input_sizes=upstream.shape,
            filter=kernel,
            out_backprop=upstream,
            strides=[1, 1, 1, 1],
            padding="SAME",
            dilations=[1, 2, 2, 1],
        )

    with tf.init_scope():  # Now, not in the graph that is being built.
        try:
            gradient(tf.ones((3, 3, 4, 4), dtype), tf.ones((1, 8, 8, 4), dtype))
        except tf.errors.OpError:
            return False
    return True


def per_channel(scale: Any) -> bool:
    """Whether it is one number, or one for each channel, and never zero."""
    sizes = np.shape(scale)
    plain = keras.config.image_data_format() == "channels_last"  # Rescaling looks too.
    return bool(
        np.all(scale)
        and (np.size(scale) == 1 or (plain and np.size(scale) == sizes[-1]))
    )


def shifted(layer: keras.layers.Rescaling, x: tf.Tensor) -> tf.Tensor:
    """Returns what `layer` does to x, divided by its scale: one pass for two."""
    shift = np.asarray(layer.offset, np.float64) / np.asarray(layer.scale, np.float64)
    return tf.cast(x, layer.compute_dtype) + tf.cast(shift, layer.compute_dtype)
