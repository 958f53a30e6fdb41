# SPDX-License-Identifier: Apache-2.0
"""Weights that a variable's name determines, as in shared/released/README.md."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np


def formula(name: str, shape: Sequence[int]) -> np.ndarray:
    """The weights of a variable, by its name and shape in PyTorch."""
    rng = np.random.default_rng(zlib.crc32(f"2020:{name}".encode()))
    z = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return 1 + 0.1 * abs(z)
    if name.endswith(("running_mean", "bias")):
        return 0.1 * z
    if len(shape) == 4:
        return z * np.sqrt(2 / np.prod(shape[1:])).astype(np.float32)
    return 1 + 0.1 * z
