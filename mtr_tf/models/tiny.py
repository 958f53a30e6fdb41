# SPDX-License-Identifier: Apache-2.0
"""A few thousand parameters with every kind of layer that matters, for tests."""

from __future__ import annotations

from mtr_tf.models import small

STRIDE = 4
WIDTH = 8
STAGES = 2


def stage(blocks, x, width, name, number):
    """Stem and a block: maps [batch, H, W, 3] to [batch, H/4, W/4, 2 width]."""
    if number == 0:
        return blocks.conv_norm(x, width, 3, f"{name}_stem", strides=2)
    return blocks.basic_block(x, 2 * width, f"{name}_block", strides=2)


def decoder(blocks, x, width, name):
    """Maps [batch, h, w, 2 width] to [batch, h, w, 2 width]."""
    return blocks.conv_norm(x, 2 * width, 3, name, dilation_rate=2)


head = small.head
