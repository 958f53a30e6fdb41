# SPDX-License-Identifier: Apache-2.0
"""The parts that every model is built from, with PyTorch's conventions.

Three conventions matter for equal numbers. A strided convolution pads evenly on both
sides (Keras's "same" pads more at the far side). Batch normalisation uses epsilon 1e-5
and keeps 0.9 of its running statistics per step. And initial weights are a pure
function of a seed and a layer's name, so that two nets which have a layer in common
start from the same values there, whatever else they consist of.
"""

from __future__ import annotations

import dataclasses
import math
import zlib

import keras

from mtr_tf.models.pooling import MaxPooling

EXPANSION = 4  # Output channels of a bottleneck block over its inner ones.


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Makes layers that share two settings; each method applies layers to a tensor.

    Attributes:
      seed: Enters the initial value of every weight, next to the layer's name.
      sync_batch_norm: Whether batch statistics are taken over all replicas.
      branch: The task whose own stages of the encoder are made, if any: they start with
        the values that stages shared by all tasks would have.
    """

    seed: int = 0
    sync_batch_norm: bool = False
    branch: str = ""

    def conv(self, x, filters, kernel_size, name, *, initializer=None, **options):
        """Applies a convolution that pads evenly and never strides a 1x1 kernel.

        Subsampling before a 1x1 convolution gives the same output; the strided one
        corrupts the heap in TensorFlow 2.21's oneDNN kernels (fewer than 16 channels).

        Args:
          x: Feature map, [batch, height, width, channels].
          filters: Output channels.
          kernel_size: Odd side of the kernel.
          name: Name of the layer.
          initializer: Initializer of the kernel; None means `normal_by_output`.
          **options: Options of keras.layers.Conv2D; `use_bias` is off by default.

        Returns:
          Feature map of `filters` channels; its sides are divided by `strides`.
        """
        strides = options.pop("strides", 1)
        padding = "same"
        if strides > 1 and kernel_size == 1:
            x = MaxPooling(1, strides, name=f"{name}_subsample")(x)
            strides = 1
        elif strides > 1:
            x = keras.layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
            padding = "valid"
        return keras.layers.Conv2D(
            filters,
            kernel_size,
            strides,
            padding,
            use_bias=options.pop("use_bias", False),
            kernel_initializer=initializer
            or self.normal_by_output(kernel_size, filters, name),
            name=name,
            **options,
        )(x)

    def conv_norm(self, x, filters, kernel_size, name, *, relu=True, **options):
        """Applies a convolution, batch normalisation and (if `relu`) a ReLU."""
        x = self.conv(x, filters, kernel_size, f"{name}_conv", **options)
        return self.norm(x, name, relu=relu)

    def double(self, x, filters, name):
        """Doubles height and width: 2x2 transposed convolution, norm, ReLU.

        The kernel starts as PyTorch's transposed convolutions do: uniform within
        1/sqrt(4 filters).
        """
        x = keras.layers.Conv2DTranspose(
            filters,
            kernel_size=2,
            strides=2,
            kernel_initializer=self.uniform(4 * filters, f"{name}_conv"),
            name=f"{name}_conv",
        )(x)
        return self.norm(x, name)

    def norm(self, x, name, *, relu=True):
        """Applies batch normalisation and (if `relu`) a ReLU."""
        x = keras.layers.BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            synchronized=self.sync_batch_norm,
            name=f"{name}_norm",
        )(x)
        return keras.layers.ReLU(name=f"{name}_relu")(x) if relu else x

    def basic_block(self, x, filters, name, *, strides=1, dilation=1, residual=True):
        """Applies ResNet's basic block: two 3x3 convolutions beside a shortcut.

        The shortcut has a 1x1 convolution only where the shape changes; without
        `residual` there is none at all.
        """
        shortcut = self._shortcut(x, filters, name, strides) if residual else None
        x = self.conv_norm(
            x, filters, 3, f"{name}_1", strides=strides, dilation_rate=dilation
        )
        x = self.conv_norm(
            x, filters, 3, f"{name}_2", dilation_rate=dilation, relu=False
        )
        return self._add(x, shortcut, name)

    def bottleneck_block(self, x, filters, name, *, strides=1, dilation=1):
        """Applies ResNet's bottleneck block: 1x1, 3x3 and 1x1 beside a shortcut.

        The 3x3 convolution has the stride and the dilation, as in torchvision and DRN;
        the last one makes EXPANSION times `filters` channels.
        """
        out_filters = EXPANSION * filters
        shortcut = self._shortcut(x, out_filters, name, strides)
        x = self.conv_norm(x, filters, 1, f"{name}_1")
        x = self.conv_norm(
            x, filters, 3, f"{name}_2", strides=strides, dilation_rate=dilation
        )
        x = self.conv_norm(x, out_filters, 1, f"{name}_3", relu=False)
        return self._add(x, shortcut, name)

    def _shortcut(self, x, filters, name, strides):
        if strides == 1 and x.shape[-1] == filters:
            return x
        return self.conv_norm(
            x, filters, 1, f"{name}_shortcut", strides=strides, relu=False
        )

    def _add(self, x, shortcut, name):
        if shortcut is not None:
            x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
        return keras.layers.ReLU(name=f"{name}_relu")(x)

    def normal_by_output(self, kernel_size, filters, name):
        """Returns N(0, sqrt(2 / (k k filters))), the released code's initialiser."""
        return keras.initializers.RandomNormal(
            stddev=math.sqrt(2 / (kernel_size**2 * filters)), seed=self._seed(name)
        )

    def uniform(self, fan_in, name):
        """Returns U(-b, b) with b = 1 / sqrt(fan_in), PyTorch's default."""
        bound = 1 / math.sqrt(fan_in)
        return keras.initializers.RandomUniform(-bound, bound, seed=self._seed(name))

    def _seed(self, name):
        if self.branch:
            name = shared_name(name, self.branch)
        return zlib.crc32(f"{self.seed}:{name}".encode())


def shared_name(name: str, task: str) -> str:
    """Returns the name that a layer of a task's own stage has in a shared stage.

    Other names are returned unchanged.
    """
    prefix = f"encoder_{task}_"
    return f"encoder_{name.removeprefix(prefix)}" if name.startswith(prefix) else name


@keras.saving.register_keras_serializable(package="mtr_tf")
class BilinearUpSampling(keras.layers.Layer):
    """Multiplies height and width by an even factor.

    With zeros outside the map, it is a fixed transposed convolution per channel with
    stride `factor`, kernel 2 factor x 2 factor with the triangle weights
    1 - |i + 1/2 - factor| / factor, and factor / 2 cropped from each side: the released
    code's frozen up-sampler. Written as two matrix products, which on CPU has a
    gradient 2 to 4 times as fast as that of the transposed convolution or of
    tf.image.resize, and no atomic additions on GPU. With `replicate`, the map's edge
    values continue outside it, as in tf.image.resize.
    """

    def __init__(self, factor: int, replicate: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor
        self.replicate = replicate

    def call(self, x):
        """Maps [batch, h, w, channels] to [batch, factor h, factor w, channels]."""
        rows, columns = (self._weights(side) for side in keras.ops.shape(x)[1:3])
        x = keras.ops.einsum("oh,bhwc->bowc", rows, x)
        return keras.ops.einsum("pw,bowc->bopc", columns, x)

    def _weights(self, side):
        """Returns [factor side, side]: the weight of each input in each output."""
        outputs = keras.ops.arange(self.factor * side, dtype=self.compute_dtype)
        inputs = keras.ops.arange(side, dtype=self.compute_dtype)
        distances = (outputs[:, None] + 0.5) / self.factor - (inputs[None] + 0.5)
        weights = keras.ops.maximum(0, 1 - keras.ops.abs(distances))
        if self.replicate:  # What falls outside goes to the edge: rows sum to 1.
            weights = weights / keras.ops.sum(weights, axis=1, keepdims=True)
        return weights

    def compute_output_shape(self, input_shape):
        """Returns the shape after up-sampling."""
        batch, height, width, channels = input_shape
        sides = (side and self.factor * side for side in (height, width))
        return (batch, *sides, channels)

    def get_config(self):
        """Returns what a saved model needs to rebuild this layer."""
        settings = {"factor": self.factor, "replicate": self.replicate}
        return {**super().get_config(), **settings}
