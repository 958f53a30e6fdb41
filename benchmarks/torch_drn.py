# SPDX-License-Identifier: Apache-2.0
"""DRN-D-22 in PyTorch, as `mtr_tf.models` has it, with the weights of a Keras model.

Layers have the same names as in mtr_tf/models/drn.py, which explains them, so that
weights are copied by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence

import keras
import numpy as np
import torch
from torch import nn

_FACTOR = 8


class Net(nn.Module):
    """Images [batch, 3, H, W] in [0, 1] -> features of the encoder; see `trunk`."""

    def __init__(self, model: keras.Model, tasks: Sequence[str]):
        super().__init__()
        self.tasks = tuple(tasks)
        self.parts = nn.ModuleDict()
        for layer in model.layers:
            if isinstance(layer, keras.layers.Conv2D):
                self.parts[layer.name] = _convolution(layer)
            elif isinstance(layer, keras.layers.BatchNormalization):
                self.parts[layer.name] = _norm(layer)
        for task in self.tasks:
            channels = model.output[task].shape[-1]
            self.parts[f"upsample_{task}"] = _upsampling(channels)
        normalize = model.get_layer("normalize")
        for name in ("scale", "offset"):
            values = torch.tensor(getattr(normalize, name)).float()
            self.register_buffer(name, values.reshape(1, -1, 1, 1))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Layers 0 to 5."""
        x = x * self.scale + self.offset
        for number in range(3):
            x = self._conv_norm(x, f"encoder_layer{number}")
        for number in range(3, 6):
            x = self._stage(x, f"encoder_layer{number}")
        return x

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Layers 6 to 8, which all tasks share."""
        x = self._stage(x, "decoder_shared_layer6")
        for number in (7, 8):
            x = self._conv_norm(x, f"decoder_shared_layer{number}")
        return x

    def head(self, x: torch.Tensor, task: str) -> torch.Tensor:
        """The output of one task, at the image's resolution."""
        return self.parts[f"upsample_{task}"](self.parts[f"head_{task}"](x))

    def trunk_once(self, x: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """All outputs; shared layers run once."""
        features = self.decode(self.encode(x))
        return {task: self.head(features, task) for task in self.tasks}

    def decoder_per_head(self, x: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """All outputs; the shared decoder runs for each task, as in released code."""
        features = self.encode(x)
        return {task: self.head(self.decode(features), task) for task in self.tasks}

    def network_per_head(self, x: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """All outputs; the whole network runs for each task."""
        return {
            task: self.head(self.decode(self.encode(x)), task) for task in self.tasks
        }

    def _stage(self, x, name):
        return self._block(self._block(x, f"{name}_block0"), f"{name}_block1")

    def _block(self, x, name):
        has_projection = f"{name}_shortcut_conv" in self.parts
        shortcut = (
            self._conv_norm(x, f"{name}_shortcut", False) if has_projection else x
        )
        x = self._conv_norm(self._conv_norm(x, f"{name}_1"), f"{name}_2", False)
        return torch.relu(x + shortcut)

    def _conv_norm(self, x, name, relu=True):
        x = self.parts[f"{name}_norm"](self.parts[f"{name}_conv"](x))
        return torch.relu(x) if relu else x


def _convolution(layer: keras.layers.Conv2D) -> nn.Conv2d:
    kernel = np.transpose(layer.kernel.numpy(), (3, 2, 0, 1))
    size, dilation = layer.kernel_size[0], layer.dilation_rate[0]
    # The Keras model replaces the stride of 1x1 kernels by subsampling before them.
    is_halved = (
        size == 1 and layer.name.endswith("shortcut_conv") and _is_subsampled(layer)
    )
    convolution = nn.Conv2d(
        kernel.shape[1],
        kernel.shape[0],
        size,
        2 if is_halved else layer.strides[0],
        dilation * (size // 2),
        dilation,
        bias=layer.use_bias,
    )
    convolution.weight.data = torch.tensor(kernel)
    if layer.use_bias:
        convolution.bias.data = torch.tensor(layer.bias.numpy())
    return convolution


def _is_subsampled(layer: keras.layers.Conv2D) -> bool:
    source = layer._inbound_nodes[0].input_tensors[0]._keras_history.operation
    return isinstance(source, keras.layers.MaxPooling2D)


def _norm(layer: keras.layers.BatchNormalization) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(layer.gamma.shape[0], layer.epsilon)
    norm.weight.data = torch.tensor(layer.gamma.numpy())
    norm.bias.data = torch.tensor(layer.beta.numpy())
    norm.running_mean = torch.tensor(layer.moving_mean.numpy())
    norm.running_var = torch.tensor(layer.moving_variance.numpy())
    return norm


def _upsampling(channels: int) -> nn.ConvTranspose2d:
    """Returns the fixed bilinear transposed convolution of the released code."""
    upsampling = nn.ConvTranspose2d(
        channels,
        channels,
        2 * _FACTOR,
        _FACTOR,
        _FACTOR // 2,
        groups=channels,
        bias=False,
    )
    ramp = 1 - (torch.arange(2 * _FACTOR) + 0.5 - _FACTOR).abs() / _FACTOR
    upsampling.weight.data = torch.outer(ramp, ramp).repeat(channels, 1, 1, 1)
    upsampling.weight.requires_grad = False
    return upsampling
