# SPDX-License-Identifier: Apache-2.0
"""The data of `same_results_test`: discs before a wall, the nearer the lighter.

Stored results are of these very bits. Change nothing here without
`python tests/same_results_test.py --update`.
"""

from __future__ import annotations

import numpy as np

SIZE = 16


def examples():
    """16 examples to train on and 6 to attack."""
    return {
        "train": [_disc(i) for i in range(16)],
        "validation": [_disc(i) for i in range(16, 22)],
        "classes": ["wall", "disc", "floor"],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    }


def _disc(seed: int) -> dict:
    """In whole numbers, which are the same bits on every machine."""
    rng = np.random.default_rng(seed)
    row, column, light = (int(n) for n in rng.integers((4, 4, 120), (12, 12, 240)))
    y, x = np.mgrid[:SIZE, :SIZE]
    labels = np.where(y >= 12, 2, 0)
    labels = np.where((y - row) ** 2 + (x - column) ** 2 < 16, 1, labels)
    gray = np.choose(labels, (100, light, 40))
    image = gray[..., None] + rng.integers(0, 16, (SIZE, SIZE, 3))
    depth = np.choose(labels, (96, (320 - light) // 4, 64)) / 32
    return {
        "image": image.astype(np.uint8),
        "targets": {"seg": labels, "depth": depth.astype(np.float32)},
    }
