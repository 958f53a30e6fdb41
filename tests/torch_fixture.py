# SPDX-License-Identifier: Apache-2.0
"""DRN and ResNet with the paper's decoders in PyTorch, from published definitions.

Modules have the names of the published files: `Released` those of the paper's code
(encoder, task_to_decoder), `Segmentation` those of DRN's authors (base, seg, up),
`Classification` theirs and torchvision's (layer1, fc). All widths scale with `width`.
"""

from __future__ import annotations

import torch
from torch import nn
from weights_fixture import formula

BASIC, BOTTLENECK = 1, 4  # Output channels over inner ones.
SIZES = {  # Kind of block, blocks in the four layers of them.
    "drn_c_26": (BASIC, (2, 2, 2, 2)),
    "drn_d_22": (BASIC, (2, 2, 2, 2)),
    "drn_d_38": (BASIC, (3, 4, 6, 3)),
    "drn_d_54": (BOTTLENECK, (3, 4, 6, 3)),
    "drn_d_105": (BOTTLENECK, (3, 4, 23, 3)),
    "resnet18": (BASIC, (2, 2, 2, 2)),
    "resnet34": (BASIC, (3, 4, 6, 3)),
    "resnet50": (BOTTLENECK, (3, 4, 6, 3)),
}


class Block(nn.Module):
    """A residual block; `kind` is BASIC or BOTTLENECK."""

    def __init__(self, kind, inner, outer, stride=1, dilation=1, residual=True):
        super().__init__()
        last = kind * outer
        if kind == BASIC:
            kernels = [(3, inner, outer, stride), (3, outer, outer, 1)]
        else:
            kernels = [(1, inner, outer, 1), (3, outer, outer, stride)]
            kernels += [(1, outer, last, 1)]
        for i, (side, channels_in, channels_out, step) in enumerate(kernels, start=1):
            pad = dilation * (side // 2)
            conv = nn.Conv2d(
                channels_in, channels_out, side, step, pad, dilation, bias=False
            )
            setattr(self, f"conv{i}", conv)
            setattr(self, f"bn{i}", nn.BatchNorm2d(channels_out))
        self.count, self.residual = len(kernels), residual
        if stride != 1 or inner != last:
            self.downsample = nn.Sequential(
                nn.Conv2d(inner, last, 1, stride, bias=False), nn.BatchNorm2d(last)
            )

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = torch.relu(y) if i < self.count else y
        if self.residual:
            y = y + (self.downsample(x) if hasattr(self, "downsample") else x)
        return torch.relu(y)


def blocks(kind, inner, outer, count, stride=1, dilation=1, residual=True):
    first_block = Block(kind, inner, outer, stride, dilation, residual)
    later_blocks = [
        Block(kind, kind * outer, outer, 1, dilation) for _ in range(count - 1)
    ]
    return nn.Sequential(first_block, *later_blocks)


def plain(inner, outer, side=3, stride=1, dilation=1):
    pad = dilation * (side // 2)
    conv = nn.Conv2d(inner, outer, side, stride, pad, dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer), nn.ReLU())


def drn_modules(name, w):
    """The modules of the encoder and those of the decoder, by their names."""
    kind, (a, b, c, d) = SIZES[name]
    inner = {
        "layer3": blocks(kind, 2 * w, 4 * w, a, stride=2),
        "layer4": blocks(kind, kind * 4 * w, 8 * w, b, stride=2),
        "layer5": blocks(kind, kind * 8 * w, 16 * w, c, dilation=2),
    }
    layer6 = blocks(kind, kind * 16 * w, 32 * w, d, dilation=4)
    channels, last = kind * 32 * w, 32 * w
    if name.startswith("drn_d"):
        stem = {
            "layer0": plain(3, w, 7),
            "layer1": plain(w, w),
            "layer2": plain(w, 2 * w, stride=2),
        }
        ends = (plain(channels, last, dilation=2), plain(last, last))
    else:
        conv1, bn1, relu = plain(3, w, 7)
        stem = {"conv1": conv1, "bn1": bn1, "relu": relu}
        stem["layer1"] = blocks(BASIC, w, w, 1)
        stem["layer2"] = blocks(BASIC, w, 2 * w, 1, stride=2)
        ends = (
            blocks(BASIC, channels, last, 1, dilation=2, residual=False),
            blocks(BASIC, last, last, 1, residual=False),
        )
    decoder = {"layer6": layer6, "layer7": ends[0], "layer8": ends[1]}
    return stem | inner, decoder


def upsampler(channels):
    """The frozen bilinear transposed convolution by 8."""
    up = nn.ConvTranspose2d(channels, channels, 16, 8, 4, groups=channels, bias=False)
    triangle = 1 - (torch.arange(16) / 8 - 15 / 16).abs()
    up.weight.data[:] = torch.outer(triangle, triangle)
    return up


class ResNetEncoder(nn.Module):
    def __init__(self, name, w):
        super().__init__()
        kind, counts = SIZES[name]
        self.conv1 = nn.Conv2d(3, w, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(w)
        self.channels = w
        for i, count in enumerate(counts):
            layer = blocks(kind, self.channels, w * 2**i, count, 1 if i == 0 else 2)
            setattr(self, f"layer{i + 1}", layer)
            self.channels = kind * w * 2**i

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class ResNetDecoder(nn.Module):
    def __init__(self, inner, w, channels):
        super().__init__()
        for i, outer in enumerate((4 * w, 2 * w, w, 3 * w // 4, w // 2)):
            setattr(self, f"upconv{i}", nn.ConvTranspose2d(inner, outer, 2, 2))
            setattr(self, f"bn_upconv{i}", nn.BatchNorm2d(outer))
            channels_out = outer if i < 4 else channels
            setattr(
                self, f"conv_decode{i}", nn.Conv2d(outer, channels_out, 3, padding=1)
            )
            if i < 4:
                setattr(self, f"bn_decode{i}", nn.BatchNorm2d(outer))
            inner = outer

    def forward(self, x):
        for i in range(5):
            x = getattr(self, f"upconv{i}")(x)
            x = torch.relu(getattr(self, f"bn_upconv{i}")(x))
            x = getattr(self, f"conv_decode{i}")(x)
            x = torch.relu(getattr(self, f"bn_decode{i}")(x)) if i < 4 else x
        return x


class Released(nn.Module):
    """The paper's multi-task model; `channels` are by the names of its tasks.

    The decoders of a DRN share all but their last convolutions.
    """

    def __init__(self, name, channels, w):
        super().__init__()
        if name.startswith("resnet"):
            self.encoder = ResNetEncoder(name, w)
            inner = self.encoder.channels
            heads = {t: ResNetDecoder(inner, w, n) for t, n in channels.items()}
        else:
            encoder, decoder = drn_modules(name, w)
            self.encoder = nn.Sequential(*encoder.values())
            heads = {
                task: nn.Sequential(
                    *decoder.values(), nn.Conv2d(32 * w, n, 1), upsampler(n)
                )
                for task, n in channels.items()
            }
        self.task_to_decoder = nn.ModuleDict(heads)

    def forward(self, x):
        x = self.encoder(x)
        return {task: decode(x) for task, decode in self.task_to_decoder.items()}


class Segmentation(nn.Module):
    """DRN for segmentation, as its authors have it."""

    def __init__(self, name, classes, w):
        super().__init__()
        encoder, decoder = drn_modules(name, w)
        self.base = nn.Sequential(*encoder.values(), *decoder.values())
        self.seg = nn.Conv2d(32 * w, classes, 1)
        self.up = upsampler(classes)

    def forward(self, x):
        return self.up(self.seg(self.base(x)))


def classification(name, w):
    """The published classification network: only its names and weights matter."""
    if name.startswith("resnet"):
        net = ResNetEncoder(name, w)
        net.fc = nn.Linear(net.channels, 10)
        return net
    encoder, decoder = drn_modules(name, w)
    return nn.ModuleDict(encoder | decoder | {"fc": nn.Conv2d(32 * w, 10, 1)})


def fill(net):
    """Gives a net the formula's weights; a shared tensor gets its last name's."""
    for name, tensor in net.state_dict().items():
        frozen = tensor.ndim == 4 and tensor.shape[2] == 16
        if not frozen and not name.endswith("num_batches_tracked"):
            tensor.copy_(torch.from_numpy(formula(name, tuple(tensor.shape))))
    return net.eval()


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())
