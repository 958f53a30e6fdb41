# SPDX-License-Identifier: Apache-2.0
"""What a model takes beside an image, packed behind it.

Inputs such as a camera matrix, a second picture or a number are stored, number by
number, in further channels behind those of the image. So they always travel with their
image, and attacks, which change only the image's own channels, need not know of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shapes of an image and of the inputs that are packed with it.

    Attributes:
      image: (height, width, channels) of the image alone.
      shapes: (name, shape without the axis of the batch) of each input.
    """

    image: tuple[int, int, int]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def numbers(self) -> int:
        """How many numbers the inputs of one image have."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    @property
    def packed(self) -> tuple[int, int, int]:
        """The shape of an image with its inputs packed behind it."""
        height, width, channels = self.image
        return height, width, channels + -(-self.numbers // (height * width))

    def pack(self, images: np.ndarray, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Packs n images and their inputs into float32 `[n, *packed]`."""
        count, (height, width, channels) = len(images), self.packed
        extra_channels = channels - self.image[2]
        extra = np.zeros((count, height * width * extra_channels), "f")
        flat = [np.reshape(inputs[n], (count, math.prod(s))) for n, s in self.shapes]
        extra[:, : self.numbers] = np.concatenate(flat, axis=1)
        extra = extra.reshape(count, height, width, extra_channels)
        return np.concatenate([images.astype(np.float32), extra], axis=-1)

    def unpack(self, packed: Any, reshape: Callable[..., Any]) -> dict[str, Any]:
        """Returns the inputs that `pack` put behind n images, {name: `[n, *shape]`}.

        `packed` is a tensor of any library; `reshape(tensor, shape)` is that library's.
        """
        extra_numbers = math.prod(self.packed) - math.prod(self.image)
        flat, start = reshape(packed[..., self.image[2] :], (-1, extra_numbers)), 0
        inputs = {}
        for name, shape in self.shapes:
            part = flat[:, start : start + math.prod(shape)]
            start += math.prod(shape)
            inputs[name] = reshape(part, (-1, *shape))
        return inputs

    def __str__(self) -> str:
        return ", ".join(f"{name} {shape}" for name, shape in self.shapes)
