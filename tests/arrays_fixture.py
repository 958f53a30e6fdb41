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
    """The loss of each image is its product with `w`, an image or a batch of them."""
    return attacks.simple(
        lambda x: tf.reduce_sum(tf.constant(w) * x, list(range(1, x.shape.rank)))
    )
