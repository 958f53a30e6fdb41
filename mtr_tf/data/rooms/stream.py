# SPDX-License-Identifier: Apache-2.0
"""Random numbers that are the same on any machine and under any version of NumPy.

NumPy promises a stable stream for the raw words of a bit generator and for
`SeedSequence`, not for the methods of `Generator` (NEP 19); so numbers are made from
raw words here, by exact operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from mtr_tf.data.rooms.geometry import Rotation
from mtr_tf.data.rooms.geometry import Vector

T = TypeVar("T")


class Stream:
    """A source of random numbers, keyed by integers of at least 0."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))
        self._numbers: list[float] = []

    def number(self) -> float:
        """A multiple of 2^-53 in [0, 1)."""
        if not self._numbers:
            words = self._bits.random_raw(256) >> np.uint64(11)
            self._numbers = (words.astype(np.float64) * 2.0**-53).tolist()
        return self._numbers.pop()

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.number()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.number() < probability

    def integer(self, low: int, high: int) -> int:
        """An integer in low, ..., high."""
        return low + int(self.number() * (high + 1 - low))

    def choice(self, options: Sequence[T]) -> T:
        """One of the options, each as likely as the others."""
        return options[self.integer(0, len(options) - 1)]

    def heading(self) -> tuple[float, float]:
        """A direction in the plane, uniform on the circle."""
        while True:
            x, y = self.uniform(-1, 1), self.uniform(-1, 1)
            square = x * x + y * y
            if 0.01 < square <= 1:
                length = math.sqrt(square)
                return x / length, y / length

    def rotation(self) -> Rotation:
        """A rotation, uniform over all: from a unit quaternion."""
        while True:
            parts = [self.uniform(-1, 1) for _ in range(4)]
            square = sum(part * part for part in parts)
            if 0.01 < square <= 1:
                break
        w, x, y, z = (part / math.sqrt(square) for part in parts)
        return (
            (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
            (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
            (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
        )

    def color(self) -> Vector:
        """A colour of random brightness, hue and saturation, parts in [0.03, 0.97)."""
        grey = self.uniform(0.03, 0.97)
        strength = self.uniform(0.1, 1.0)
        return tuple(
            grey + strength * (self.uniform(0.03, 0.97) - grey) for _ in range(3)
        )

    def bytes(self, count: int) -> np.ndarray:
        """Random uint8 [count], the same on little- and big-endian machines."""
        words = self._bits.random_raw((count + 7) // 8)
        return words.astype("<u8").view(np.uint8)[:count]

    def bells(self, count: int) -> np.ndarray:
        """float64 [count] of mean 0 and deviation 1: centred sums of four bytes.

        A sum of n uniform bytes has the variance n (256^2 - 1) / 12.
        """
        draws = self.bytes(4 * count).reshape(4, count).astype(np.int16)
        total = draws[0] + draws[1] + draws[2] + draws[3] - 510
        return total / math.sqrt((256 * 256 - 1) / 3)
