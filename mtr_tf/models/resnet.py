# SPDX-License-Identifier: Apache-2.0
"""ResNets with up-sampling decoders: the paper's Taskonomy models.

He et al. 2016 (arXiv 1512.03385), as torchvision lays them out; the decoder is that of
Standley et al. 2020 (arXiv 1905.07553), which the released code took over.
"""

from __future__ import annotations

import dataclasses

import keras

from mtr_tf.models.pooling import MaxPooling

STRIDE = 32
WIDTH = 64
STAGES = 5


@dataclasses.dataclass(frozen=True)
class ResNet:
    """One size of ResNet.

    Attributes:
      depths: Blocks in each of the layers 1 to 4.
      bottleneck: Whether these are bottleneck blocks, else basic ones.
    """

    depths: tuple[int, ...]
    bottleneck: bool = False

    def stage(self, blocks, x, width, name, number):
        """Stem and layers 1 to 4: [batch, H, W, 3] to [batch, H/32, W/32, 8 width].

        With bottleneck blocks there are 4 times as many channels.
        """
        if number == 0:
            return _stem(blocks, x, width, f"{name}_stem")
        block = blocks.bottleneck_block if self.bottleneck else blocks.basic_block
        for i in range(self.depths[number - 1]):
            strides = 2 if number > 1 and i == 0 else 1
            layer = f"{name}_layer{number}_block{i}"
            x = block(x, width * 2 ** (number - 1), layer, strides=strides)
        return x


def _stem(blocks, x, width, name):
    x = blocks.conv_norm(x, width, 7, name, strides=2)
    # After a ReLU, padding with zeros is PyTorch's padding with minus infinity.
    x = keras.layers.ZeroPadding2D(1, name=f"{name}_pool_pad")(x)
    return MaxPooling(3, 2, name=f"{name}_pool")(x)


def decoder(blocks, x, width, name):
    """Maps [batch, h, w, channels] to [batch, 32 h, 32 w, width / 2].

    Biases before a batch normalisation start at zero: they change nothing.
    """
    channels = (4 * width, 2 * width, width, max(1, 3 * width // 4))
    for stage, filters in enumerate(channels):
        x = blocks.double(x, filters, f"{name}_up{stage}")
        x = blocks.conv_norm(x, filters, 3, f"{name}_stage{stage}", use_bias=True)
    return blocks.double(x, max(1, width // 2), f"{name}_up4")


def head(blocks, x, channels, name):
    """Maps decoded features to one task's output, at the input's resolution.

    The bias starts as PyTorch's default, as in the released code.
    """
    bias = blocks.uniform(9 * x.shape[-1], f"{name}_bias")
    return blocks.conv(x, channels, 3, name, use_bias=True, bias_initializer=bias)
