# SPDX-License-Identifier: Apache-2.0
"""What a model takes beside an image, packed behind it.

A camera matrix, a second picture, a number lie, number by number, in further channels
behind those of the image. So they travel with their image wherever that goes, and
attacks, which then change the image's own channels alone, need to know nothing of them.
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
    """What is packed with an image.

    Attributes:
      image: (height, width, channels) of the image alone.
      shapes: Of each input beside it, by name, without the axis of the batch.
    """

    image: tuple[int, int, int]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def numbers(self) -> int:
        """How many numbers come with an image."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    @property
    def packed(self) -> tuple[int, int, int]:
        """The shape of an image with all that comes with it."""
        height, width, channels = self.image
        return height, width, channels + -(-self.numbers // (height * width))

    def pack(self, images: np.ndarray, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns float32 `[n, *packed]`, of as many images and inputs."""
        count, (height, width, channels) = len(images), self.packed
        further = channels - self.image[2]
        behind = np.zeros((count, height * width * further), "f")
        flat = [np.reshape(inputs[n], (count, math.prod(s))) for n, s in self.shapes]
        behind[:, : self.numbers] = np.concatenate(flat, axis=1)
        behind = behind.reshape(count, height, width, further)
        return np.concatenate([images.astype(np.float32), behind], axis=-1)

    def unpack(self, packed: Any, reshape: Callable[..., Any]) -> dict[str, Any]:
        """Returns {name: `[n, *shape]`}, what `pack` has put behind so many images.

        `packed` is a tensor of any library; `reshape(tensor, shape)` is that library's.
        """
        behind = math.prod(self.packed) - math.prod(self.image)
        flat, start = reshape(packed[..., self.image[2] :], (-1, behind)), 0
        found = {}
        for name, shape in self.shapes:
            part = flat[:, start : start + math.prod(shape)]
            start += math.prod(shape)
            found[name] = reshape(part, (-1, *shape))
        return found

    def __str__(self) -> str:
        return ", ".join(f"{name} {shape}" for name, shape in self.shapes)
