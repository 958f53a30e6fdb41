# SPDX-License-Identifier: Apache-2.0
"""Sets of output pixels: random ones, and blocks."""

from __future__ import annotations

import math

import numpy as np

from mtr_tf import attacks


def random_sets(
    height: int, width: int, draws: int, seed: int
) -> dict[int, list[np.ndarray]]:
    """{count: masks 0/1 `[height, width]`} of 1, 4, 16, ... random pixels, and all.

    A draw's smaller sets are inside its larger ones. Of all pixels there is one set.
    """
    pixels = height * width
    counts = [4**power for power in range(math.ceil(math.log(pixels, 4)))]
    return {
        count: [
            attacks.random_pixels(height, width, count, draw_seed(seed, draw))
            for draw in range(draws if count < pixels else 1)
        ]
        for count in [*counts, pixels]
    }


def block_sets(
    height: int, width: int, draws: int, seed: int
) -> dict[int, list[np.ndarray]]:
    """As `random_sets`, of square blocks of side 1, 2, 4, ..., and all pixels."""
    sides = [2**power for power in range(math.ceil(math.log2(min(height, width))))]
    masks = {}
    for side in sides:
        masks[side**2] = []
        for draw in range(draws):
            random = np.random.default_rng(draw_seed(seed, draw))
            top, left = (int(random.random() * (s - side + 1)) for s in (height, width))
            mask = attacks.block(height, width, top, left, side, side)
            masks[side**2].append(mask)
    masks[height * width] = [np.ones((height, width), np.float32)]
    return masks


def draw_seed(seed: int, draw: int) -> int:
    """A seed of its own for each draw; draws of different seeds have none in common."""
    return int(np.random.SeedSequence([seed, draw]).generate_state(1)[0])
