# SPDX-License-Identifier: Apache-2.0
"""DRN, dilated residual networks of stride 8: the paper's Cityscapes models.

Yu, Koltun and Funkhouser 2017, "Dilated Residual Networks" (arXiv 1705.09914), with the
sizes of the authors' own code. In place of the last two strides there are dilations of
2 and 4, and two layers at the end (7 and 8, of dilation 2 and 1) remove the grid that
these would leave in the output. In family C layers 1, 2, 7 and 8 are basic blocks, the
last two of them without a shortcut; in family D they are plain convolutions.
"""

from __future__ import annotations

import dataclasses

STRIDE = 8
WIDTH = 16
STAGES = 6


@dataclasses.dataclass(frozen=True)
class DRN:
    """One size of DRN, cut in two where the paper's code cuts it.

    Attributes:
      family: "c" or "d".
      depths: Blocks in each of the layers 3, 4, 5 and 6.
      bottleneck: Whether these are bottleneck blocks, else basic ones.
    """

    family: str
    depths: tuple[int, ...]
    bottleneck: bool = False

    def stage(self, blocks, x, width, name, number):
        """Layers 0 to 5: maps [batch, H, W, 3] to [batch, H/8, W/8, 16 width].

        With bottleneck blocks there are 4 times as many channels.
        """
        if number == 0:
            return blocks.conv_norm(x, width, 7, f"{name}_layer0")
        if number in (1, 2):
            layer = f"{name}_layer{number}"
            return self._outer(blocks, x, number * width, layer, strides=number)
        filters = 2 ** (number - 1) * width
        if number == 5:
            return self._inner(blocks, x, number, filters, name, dilation=2)
        return self._inner(blocks, x, number, filters, name, strides=2)

    def decoder(self, blocks, x, width, name):
        """Layers 6 to 8: maps the encoder's output to [batch, h, w, 32 width].

        The released code means to give each task its own and shares one by mistake
        (`decoders="shared"` here).
        """
        x = self._inner(blocks, x, 6, 32 * width, name, dilation=4)
        layer7, layer8 = f"{name}_layer7", f"{name}_layer8"
        x = self._outer(blocks, x, 32 * width, layer7, dilation=2, residual=False)
        return self._outer(blocks, x, 32 * width, layer8, residual=False)

    def _inner(self, blocks, x, layer, filters, name, *, strides=1, dilation=1):
        """One of the layers 3 to 6: blocks, of which the first has the stride."""
        block = blocks.bottleneck_block if self.bottleneck else blocks.basic_block
        for i in range(self.depths[layer - 3]):
            x = block(
                x,
                filters,
                f"{name}_layer{layer}_block{i}",
                strides=strides if i == 0 else 1,
                dilation=dilation,
            )
        return x

    def _outer(self, blocks, x, filters, name, *, strides=1, dilation=1, residual=True):
        """One of the layers 1, 2, 7 and 8: a basic block in C, a convolution in D."""
        if self.family == "c":
            return blocks.basic_block(
                x,
                filters,
                f"{name}_block0",
                strides=strides,
                dilation=dilation,
                residual=residual,
            )
        return blocks.conv_norm(
            x, filters, 3, name, strides=strides, dilation_rate=dilation
        )


def head(blocks, x, channels, name):
    """Maps features to one task's output at 1/8 of the input's resolution.

    Kernel and bias start as PyTorch's defaults, as in the released code. They scale
    by the number of inputs: scaled by the number of outputs, one channel from 512 would
    start at values of about 20.
    """
    fan_in = x.shape[-1]
    return blocks.conv(
        x,
        channels,
        1,
        name,
        use_bias=True,
        initializer=blocks.uniform(fan_in, name),
        bias_initializer=blocks.uniform(fan_in, f"{name}_bias"),
    )
