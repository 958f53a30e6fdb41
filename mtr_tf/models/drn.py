# SPDX-License-Identifier: Apache-2.0
"""DRN-D-22, a dilated residual network of stride 8: the paper's Cityscapes model.

Yu, Koltun and Funkhouser 2017, "Dilated Residual Networks" (arXiv 1705.09914). In place
of the last strides there are dilations of 2 and 4; two plain layers of dilation 2 and 1
at the end remove the grid that these would leave in the output.
"""

from __future__ import annotations

STRIDE = 8
WIDTH = 16


def encoder(blocks, x, width):
    """Layers 0 to 5: maps [batch, H, W, 3] to [batch, H/8, W/8, 16 width]."""
    x = blocks.conv_norm(x, width, 7, "encoder_layer0")
    x = blocks.conv_norm(x, width, 3, "encoder_layer1")
    x = blocks.conv_norm(x, 2 * width, 3, "encoder_layer2", strides=2)
    x = _residual_layer(blocks, x, 4 * width, "encoder_layer3", strides=2)
    x = _residual_layer(blocks, x, 8 * width, "encoder_layer4", strides=2)
    return _residual_layer(blocks, x, 16 * width, "encoder_layer5", dilation=2)


def decoder(blocks, x, width, name):
    """Layers 6 to 8: maps [batch, h, w, 16 width] to [batch, h, w, 32 width].

    The released code means to give each task its own and shares one by mistake
    (`decoders="shared"` here).
    """
    x = _residual_layer(blocks, x, 32 * width, f"{name}_layer6", dilation=4)
    x = blocks.conv_norm(x, 32 * width, 3, f"{name}_layer7", dilation_rate=2)
    return blocks.conv_norm(x, 32 * width, 3, f"{name}_layer8")


def head(blocks, x, channels, name):
    """Maps features to one task's output at 1/8 of the input's resolution.

    Starts as PyTorch's default: by the output's size, as elsewhere, one channel out of
    512 would start at values of about 20.
    """
    initializer = blocks.uniform(x.shape[-1], name)
    return blocks.conv(x, channels, 1, name, use_bias=True, initializer=initializer)


def _residual_layer(blocks, x, filters, name, *, strides=1, dilation=1):
    x = blocks.basic_block(
        x, filters, f"{name}_block0", strides=strides, dilation=dilation
    )
    return blocks.basic_block(x, filters, f"{name}_block1", dilation=dilation)
