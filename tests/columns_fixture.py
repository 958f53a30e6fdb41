# SPDX-License-Identifier: Apache-2.0
"""Random pictures with classes and depths, and masks with holes."""

from __future__ import annotations

import numpy as np

from mtr_tf.data.source import Columns


def columns(count: int = 8, size: int = 16) -> Columns:
    """Columns as of a data set: square pictures, with three classes."""
    rng = np.random.default_rng(0)
    return Columns(
        images=rng.integers(0, 256, (count, size, size, 3), np.uint8),
        targets={
            "seg": rng.integers(0, 3, (count, size, size), np.uint8),
            "depth": rng.uniform(1, 3, (count, size, size, 1)).astype(np.float32),
        },
        masks={
            task: rng.random((count, size, size)) < 0.8 for task in ("seg", "depth")
        },
    )
