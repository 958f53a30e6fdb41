# SPDX-License-Identifier: Apache-2.0
"""Random noise and random corners: where they are, and the best of several."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from mtr_tf import attacks
from mtr_tf.attacks import threat
from mtr_tf.attacks.baselines import Corner
from mtr_tf.attacks.baselines import Noise
from mtr_tf.errors import InputError


@attacks.simple
def flat(x):
    return 0 * tf.reduce_sum(x, list(range(1, x.shape.rank)))


def norms(d):
    return np.linalg.norm(np.reshape(d, (len(d), -1)), axis=1)


def test_noise_linf_is_uniform_and_a_corner_is_one():
    x = np.full((300, 4, 3), 0.5, np.float32)
    noise = (Noise(0.25)(flat, x).numpy() - 0.5) / 0.25
    # 3600 uniform numbers: mean 0, variance 1/3, a quarter of them in each quarter.
    assert abs(noise.mean()) < 0.04
    assert abs(np.mean(noise**2) - 1 / 3) < 0.02
    counts = np.histogram(noise, 4, (-1, 1))[0]
    np.testing.assert_allclose(counts, 900, atol=110)
    corner = (Corner(0.25)(flat, x).numpy() - 0.5) / 0.25
    np.testing.assert_array_equal(np.abs(corner), 1)
    assert abs(corner.mean()) < 0.07
    assert len(np.unique(corner.reshape(300, -1), axis=0)) > 280  # Of 4096.


def test_noise_l2_fills_the_ball_and_a_corner_is_on_the_sphere():
    x = np.full((600, 3), 0.5)
    noise = (Noise(0.3, "l2")(flat, x).numpy() - 0.5) / 0.3
    # Radii cubed and, by Archimedes, the sphere's coordinates are uniform.
    np.testing.assert_allclose(
        np.histogram(norms(noise) ** 3, 4, (0, 1))[0], 150, atol=43
    )
    corner = (Corner(0.3, "l2")(flat, x).numpy() - 0.5) / 0.3
    np.testing.assert_allclose(norms(corner), 1, rtol=1e-9)
    for axis in range(3):
        counts = np.histogram(corner[:, axis], 4, (-1, 1))[0]
        np.testing.assert_allclose(counts, 150, atol=43)  # 4 standard deviations.


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", [Noise, Corner])
def test_the_best_of_the_draws_comes_back_and_nan_never_wins(kind, norm):
    x = np.random.default_rng(0).uniform(0.2, 0.8, (9, 12))
    evaluations = []

    @attacks.simple
    def loss(z):
        value = tf.reduce_sum(tf.sin(30 * z), 1)
        value = tf.where(value > 2, value * np.nan, value)
        evaluations.append((z.numpy(), value.numpy()))
        return value

    attack = kind(0.2, norm, draws=6)
    keys = threat.image_keys(4, tf.range(9))
    got = attack.search(loss, tf.constant(x), keys).numpy()
    assert len(evaluations) == attack.passes == 6
    points, scores = map(np.array, zip(*evaluations, strict=True))
    assert len(np.unique(points.reshape(54, 12), axis=0)) == 54
    assert np.isnan(scores).any()
    no_score = np.isnan(scores).all(0)
    best = points[np.argmax(np.nan_to_num(scores, nan=-9), 0), range(9)]
    best[no_score] = x[no_score]
    np.testing.assert_allclose(got, best, atol=1e-8)


def test_a_draw_of_noise_is_a_start_of_pgd():
    x = tf.constant(np.random.default_rng(1).uniform(0.3, 0.7, (5, 6)))
    keys = threat.image_keys(2, tf.range(5))
    start = threat.random_start(threat.Linf(0.1), x, keys, 0)
    np.testing.assert_allclose(Noise(0.1)(flat, x, 2), start, atol=1e-8)


@pytest.mark.parametrize("kind", [Noise, Corner])
def test_settings(kind):
    assert kind(0.1) == kind(0.1, "linf", 1)
    assert kind(0.1).passes == 1
    with pytest.raises(InputError, match="draws must be a whole number, 1 or more"):
        kind(0.1, draws=0)
    with pytest.raises(InputError, match="not 8"):
        kind(8)
