# SPDX-License-Identifier: Apache-2.0
"""A small residual network of stride 4, for pictures of 32 to 128 pixels on a laptop.

ResNet-18 sees such pictures through a map of 2x2 cells and DRN through one of 8x8; this
net keeps a quarter of the resolution and looks around with dilated convolutions.
"""

from __future__ import annotations

STRIDE = 4
WIDTH = 16
STAGES = 3


def stage(blocks, x, width, name, number):
    """Stem and two stages: [batch, H, W, 3] to [batch, H/4, W/4, 4 width]."""
    if number == 0:
        return blocks.conv_norm(x, width, 3, f"{name}_stem", strides=2)
    first, second = (f"{name}_stage{number}_block{i}" for i in (0, 1))
    if number == 1:
        x = blocks.basic_block(x, 2 * width, first, strides=2)
        return blocks.basic_block(x, 2 * width, second)
    x = blocks.basic_block(x, 4 * width, first, dilation=2)
    return blocks.basic_block(x, 4 * width, second, dilation=4)


def decoder(blocks, x, width, name):
    """Maps [batch, h, w, 4 width] to [batch, h, w, 2 width]."""
    return blocks.conv_norm(x, 2 * width, 3, name)


def head(blocks, x, channels, name):
    """Maps features to one task's output at 1/4 of the input's resolution."""
    initializer = blocks.uniform(x.shape[-1], name)
    return blocks.conv(x, channels, 1, name, use_bias=True, initializer=initializer)
