# SPDX-License-Identifier: Apache-2.0
"""A small residual network of stride 4, for pictures of 32 to 128 pixels on a laptop.

ResNet-18 sees such pictures through a map of 2x2 cells and DRN through one of 8x8; this
net keeps a quarter of the resolution and looks around with dilated convolutions.
"""

from __future__ import annotations

STRIDE = 4
WIDTH = 16


def encoder(blocks, x, width):
    """Maps [batch, H, W, 3] to [batch, H/4, W/4, 4 width]."""
    x = blocks.conv_norm(x, width, 3, "encoder_stem", strides=2)
    x = blocks.basic_block(x, 2 * width, "encoder_stage1_block0", strides=2)
    x = blocks.basic_block(x, 2 * width, "encoder_stage1_block1")
    x = blocks.basic_block(x, 4 * width, "encoder_stage2_block0", dilation=2)
    return blocks.basic_block(x, 4 * width, "encoder_stage2_block1", dilation=4)


def decoder(blocks, x, width, name):
    """Maps [batch, h, w, 4 width] to [batch, h, w, 2 width]."""
    return blocks.conv_norm(x, 2 * width, 3, name)


def head(blocks, x, channels, name):
    """Maps features to one task's output at 1/4 of the input's resolution."""
    initializer = blocks.uniform(x.shape[-1], name)
    return blocks.conv(x, channels, 1, name, use_bias=True, initializer=initializer)
