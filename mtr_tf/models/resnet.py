# SPDX-License-Identifier: Apache-2.0
"""ResNet-18 with up-sampling decoders: the paper's Taskonomy model.

He et al. 2016 (arXiv 1512.03385), as torchvision lays it out; the decoder is that of
Standley et al. 2020 (arXiv 1905.07553), which the released code took over.
"""

from __future__ import annotations

import keras

STRIDE = 32
WIDTH = 64


def encoder(blocks, x, width):
    """Maps [batch, H, W, 3] to [batch, H/32, W/32, 8 width]."""
    x = blocks.conv_norm(x, width, 7, "encoder_stem", strides=2)
    # After a ReLU, padding with zeros is PyTorch's padding with minus infinity.
    x = keras.layers.ZeroPadding2D(1, name="encoder_stem_pool_pad")(x)
    x = keras.layers.MaxPooling2D(3, 2, name="encoder_stem_pool")(x)
    for stage in range(1, 5):
        name, filters = f"encoder_layer{stage}", width * 2 ** (stage - 1)
        strides = 1 if stage == 1 else 2
        x = blocks.basic_block(x, filters, f"{name}_block0", strides=strides)
        x = blocks.basic_block(x, filters, f"{name}_block1")
    return x


def decoder(blocks, x, width, name):
    """Maps [batch, h, w, 8 width] to [batch, 32 h, 32 w, width / 2]."""
    channels = (4 * width, 2 * width, width, max(1, 3 * width // 4))
    for stage, filters in enumerate(channels):
        x = blocks.double(x, filters, f"{name}_up{stage}")
        x = blocks.conv_norm(x, filters, 3, f"{name}_stage{stage}", use_bias=True)
    return blocks.double(x, max(1, width // 2), f"{name}_up4")


def head(blocks, x, channels, name):
    """Maps decoded features to one task's output, at the input's resolution."""
    return blocks.conv(x, channels, 3, name, use_bias=True)
