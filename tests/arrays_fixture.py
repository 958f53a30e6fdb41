# SPDX-License-Identifier: Apache-2.0
"""Random arrays, and losses with known answers, for tests of attacks."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from mtr_tf import attacks


def images(shape, seed=0, low=0.0, high=1.0, dtype=np.float32):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(dtype)


def normal(shape, seed=1, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def linear(w):
    """A loss: the inner product of each image with `w`, one image or a batch."""
    return attacks.simple(
        lambda x: tf.reduce_sum(tf.constant(w) * x, list(range(1, x.shape.rank)))
    )


def two_pixels(norm):
    """Images of two pixels, a wavy loss, and its maximum in balls of radius 0.3.

    The maximum is by brute force, on a grid of points 0.0025 apart.
    """
    x, a = images((6, 2), seed=3), normal((6, 2), 4) * 4

    @attacks.simple
    def loss(z):
        return tf.reduce_sum(tf.sin(a * z), 1) + tf.reduce_prod(z, 1)

    line = np.linspace(-0.3, 0.3, 241)
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 1, 2)
    if norm == "l2":
        grid = grid[np.linalg.norm(grid, axis=2)[:, 0] <= 0.3]
    z = np.moveaxis(np.clip(x + grid, 0, 1), 1, 0)
    return x, loss, (np.sin(a[:, None] * z).sum(2) + z.prod(2)).max(1)
