# SPDX-License-Identifier: Apache-2.0
"""The balls: noise, steepest steps, projections, rounding; against NumPy and SciPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from mtr_tf import attacks
from mtr_tf.attacks import threat
from mtr_tf.errors import InputError

DTYPES = ("float16", "bfloat16", "float32", "float64")


def images(shape, dtype="float32", seed=0, low=0.0, high=1.0):
    values = np.random.default_rng(seed).uniform(low, high, shape)
    return tf.cast(values, dtype)


def keys(batch, seed=0):
    return threat.image_keys(seed, tf.range(batch))


@tf.function(autograph=False)
def starts(ball, x, image_keys, restart=0):
    return threat.random_start(ball, x, image_keys, restart)


@tf.function(autograph=False)
def points(ball, x, image_keys, number=0):
    return threat.random_point(ball, x, image_keys, number)


def wide(x):
    return tf.cast(x, tf.float64).numpy()


def distance(norm, a, b):
    """Each image's distance in float64."""
    difference = (wide(a) - wide(b)).reshape(len(a), -1)
    if norm == "linf":
        return np.abs(difference).max(1)
    return np.sqrt(np.square(difference).sum(1))


def test_linf_start_is_uniform_in_every_coordinate():
    # All images and pixels are one sample, by their shared distribution.
    ball = threat.Linf(0.25)
    x = tf.fill([200, 5, 4], 0.5)
    noise = (starts(ball, x, keys(200)).numpy() - 0.5) / 0.25
    assert kolmogorov(noise.ravel(), lambda t: (t + 1) / 2) < critical(noise.size)
    for values in np.moveaxis(noise.reshape(200, -1), 1, 0):  # Each coordinate alone.
        assert kolmogorov(values, lambda t: (t + 1) / 2) < critical(200)
    correlation = np.corrcoef(noise.reshape(200, -1).T)
    assert np.abs(correlation - np.eye(20)).max() < 0.3  # 4.2 standard deviations.


@pytest.mark.parametrize(("draw", "power"), [(points, 3), (starts, 1)])
def test_l2_noise_is_uniform_in_the_ball_and_starts_in_direction_and_length(
    draw, power
):
    ball = threat.L2(0.3)
    x = tf.fill([400, 3], 0.5)
    noise = (draw(ball, x, keys(400)).numpy() - 0.5) / 0.3
    radii = np.linalg.norm(noise, axis=1)
    # The share of a 3-ball inside radius r is r^3; by Archimedes, each coordinate of a
    # uniform direction in 3 dimensions is uniform in [-1, 1].
    assert kolmogorov(radii**power, lambda t: t) < critical(400)
    for axis in range(3):
        direction = noise[:, axis] / radii
        assert kolmogorov(direction, lambda t: (t + 1) / 2) < critical(400)


def kolmogorov(sample, distribution):
    """The largest gap between the sample's and the given distribution function."""
    expected = distribution(np.sort(sample))
    steps = np.arange(len(sample) + 1) / len(sample)
    return max(np.max(steps[1:] - expected), np.max(expected - steps[:-1]))


def critical(n):
    """The gap that a true sample exceeds once in 10 000 (asymptotic formula)."""
    return np.sqrt(-0.5 * np.log(1e-4 / 2) / n)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_noise_depends_on_seed_image_and_restart_but_not_on_the_batch(norm):
    ball = threat.ball(norm, 0.3)
    x = tf.fill([8, 4, 4, 3], 0.5)

    def start(seed, images=x, restart=0, first_index=0):
        indices = tf.range(first_index, first_index + len(images))
        image_keys = threat.image_keys(seed, indices)
        return starts(ball, images, image_keys, tf.constant(restart)).numpy()

    noise = start(seed=1)
    np.testing.assert_array_equal(noise, start(seed=1))
    np.testing.assert_array_equal(
        noise[3:5], start(seed=1, images=x[3:5], first_index=3)
    )
    assert len(np.unique(noise[:, 0, 0, 0])) == 8
    assert not np.any(noise == start(seed=2))
    assert not np.any(noise == start(seed=1, restart=1))
    np.testing.assert_array_equal(noise, start(attacks.fold_in(1, tf.range(8))))
    np.testing.assert_array_equal(start(np.array([7] * 8))[0], start([7] * 8)[5])


def test_seeds_of_another_shape_or_type_are_refused():
    with pytest.raises(InputError, match=r"got shape \(3,\) for a batch of 4"):
        threat.image_keys([1, 2, 3], tf.range(4))
    for keys_of in (threat.image_keys, attacks.fold_in):
        with pytest.raises(InputError, match="whole numbers; got float32"):
            keys_of(0.5, tf.range(4))


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**30, np.uint64(2**64 - 1)])
def test_seeds_beyond_int64_are_refused(number):
    message = rf"seed must be from -2\^63 to 2\^63 - 1; got {number}"
    with pytest.raises(InputError, match=message):
        threat.image_keys(number, tf.range(4))
    with pytest.raises(InputError, match=message):
        threat.image_keys([1, number, 2, 3], tf.range(4))
    with pytest.raises(InputError, match=message):
        attacks.fold_in(number, tf.range(4))
    for limit in (2**63 - 1, -(2**63)):
        assert threat.image_keys(limit, tf.range(4)).shape == (4, 2)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_steepest_step_is_the_best_of_many(norm):
    # Of all moves of length 1, none raises a linear loss more: against random ones.
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, 2, 5))
    step = threat.ball(norm, 0.1).steepest(tf.constant(w, tf.float32)).numpy()
    np.testing.assert_allclose(distance(norm, step, 0 * step), 1, rtol=1e-6)
    moves = rng.normal(size=(2000, 3, 2, 5))
    order = np.inf if norm == "linf" else 2
    flat = moves.reshape(2000, 3, -1)
    moves /= np.linalg.norm(flat, order, axis=2)[..., None, None]
    assert np.all((w * step).sum((1, 2)) >= (w * moves).sum((2, 3)).max(0))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_zero_tiny_and_huge_gradients(norm):
    w = np.random.default_rng(0).normal(size=6).astype(np.float32)
    gradient = np.stack([w * 0, w * 1e-30, w / np.abs(w).max() * 3.4e38])
    step = threat.ball(norm, 0.1).steepest(tf.constant(gradient)).numpy()
    assert not step[0].any()
    unit = np.sign(w) if norm == "linf" else w / np.linalg.norm(w)
    np.testing.assert_allclose(step[1], unit, rtol=1e-5)
    np.testing.assert_allclose(step[2], unit, rtol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_keeps_what_is_inside_and_is_idempotent(norm):
    ball = threat.ball(norm, 0.2)
    x = images((6, 3, 3), seed=1)
    project = ball.projection(x)
    inner_points = project(threat.random_start(ball, x, keys(6), 0))
    np.testing.assert_allclose(project(inner_points), inner_points, atol=1e-7)
    edge_points = project(x + 5 * images((6, 3, 3), seed=2, low=-1))
    np.testing.assert_allclose(project(edge_points), edge_points, atol=1e-6)


def test_linf_starts_are_its_uniform_points():
    x = images((3, 4, 4, 3))
    draws = [draw(threat.Linf(0.1), x, keys(3), 2) for draw in (points, starts)]
    np.testing.assert_array_equal(*draws)


def test_l2_projection_is_the_nearest_point_away_from_the_box():
    x = tf.constant([[0.5, 0.5, 0.5]])
    got = threat.L2(0.1).projection(x)(x + [[0.3, 0.0, -0.4]])
    np.testing.assert_allclose(got, [[0.56, 0.5, 0.42]], atol=1e-7)


CASES = list(itertools.product(("linf", "l2"), DTYPES, (False, True)))


@pytest.mark.parametrize("seed", range(len(CASES)))
def test_starts_and_results_are_inside_as_measured_in_float64(seed):
    # No tolerance: the difference of the stored numbers is at most epsilon.
    norm, dtype, edge = CASES[seed]
    epsilon = (8 / 255, 0.0, 0.37, 1e-4, 1.0)[seed % 5]
    ball = threat.ball(norm, epsilon)
    x = images((3, 7), dtype, seed, *((-0.5, 1.5) if edge else (0, 1)))
    x = tf.clip_by_value(x, tf.cast(0, dtype), tf.cast(1, dtype))
    project = ball.projection(x)
    start = project(threat.random_start(ball, x, keys(3, seed), 0))
    noise = images((3, 7), start.dtype, seed + 1, -2 * epsilon, 2 * epsilon)
    for point in (start, project(start + noise)):
        result = ball.rounded(point, x)
        assert result.dtype == x.dtype
        assert np.all(distance(norm, result, x) <= epsilon)
        assert wide(result).min() >= 0
        assert wide(result).max() <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_whole_ball_can_be_used(dtype):
    # Rounding towards the image gives away one unit in the last place, not more.
    x = tf.constant([[0.25, 0.5, 0.7]], dtype)
    ball = threat.Linf(0.1)
    start = tf.cast(x, threat.compute_dtype(x))
    got = ball.rounded(ball.projection(x)(start + [[1.0, -1.0, 1.0]]), x)
    unit = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 2**-24}.get(dtype, 2**-53)
    reach = np.abs(wide(got) - wide(x))
    assert np.all(reach > 0.1 - unit)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("epsilon", [0.1, 0.25, 0.5, 1.0, 2.0, 4.0])
def test_half_precision_uses_the_l2_ball_and_never_leaves_it(dtype, side, epsilon):
    rng = np.random.default_rng(side)
    x = images((3, side, side, 3), dtype, side)
    # Sizes: all, only one (where one scale rounds all or none), and few large ones.
    moves = rng.normal(size=x.shape)
    moves[1] = np.sign(moves[1])
    moves[2] **= 3
    ball = threat.L2(epsilon)
    centre = tf.cast(x, tf.float32)
    point = ball.projection(x)(centre + tf.cast(100 * moves, tf.float32))
    got = ball.rounded(point, x)
    assert got.dtype == dtype
    assert wide(got).min() >= 0
    assert wide(got).max() <= 1
    assert np.all(distance("l2", got, x) <= epsilon)
    assert np.all(distance("l2", got, x) >= 0.99 * distance("l2", point, x))
    # It raises a linear loss at least as much as rounding all coordinates towards x.
    offset = wide(point) - wide(x)
    inner_point = threat.rounded_towards(x, tf.constant(wide(point)), np.abs(offset))
    rise, inner_rise = (
        np.sum((wide(y) - wide(x)) * offset, (1, 2, 3)) for y in (got, inner_point)
    )
    assert np.all(rise >= inner_rise)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_stays_short_where_the_point_is_inside_the_ball(dtype):
    x = images((4, 16, 16, 3), dtype, 3)
    offset = np.random.default_rng(4).normal(size=x.shape) * 0.01
    point = tf.clip_by_value(tf.cast(x, tf.float32) + offset, 0, 1)
    lengths = distance("l2", threat.L2(10.0).rounded(point, x), x)
    assert np.all(lengths <= distance("l2", point, x))
    assert np.all(lengths >= 0.99 * distance("l2", point, x))
    unmoved_result = threat.L2(10.0).rounded(tf.cast(x, tf.float32), x)
    np.testing.assert_array_equal(wide(unmoved_result), wide(x))


@pytest.mark.parametrize(
    ("norm", "epsilon", "message"),
    [
        ("linf", 8, r"epsilon must be in units of \[0, 1\] \(8/255, not 8\); got 8\."),
        ("linf", -0.1, "got -0.1"),
        ("linf", "8", "epsilon must be a finite number; got '8'"),
        ("linf", True, "finite number; got True"),
        ("l2", -1, "from 0 to 1e6"),
        ("l2", float("nan"), "finite number; got nan"),
        ("l_inf", 0.1, "one of linf, l2; got 'l_inf'. Did you mean 'linf'?"),
    ],
)
def test_bad_radii_and_norms_are_refused(norm, epsilon, message):
    with pytest.raises(InputError, match=message):
        threat.check(norm, epsilon)
