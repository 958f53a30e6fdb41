# SPDX-License-Identifier: Apache-2.0
"""APGD against runs traced by hand and in NumPy, closed forms and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from arrays_fixture import images
from arrays_fixture import linear
from arrays_fixture import normal
from arrays_fixture import two_pixels

from mtr_tf import attacks
from mtr_tf.attacks import apgd
from mtr_tf.attacks import threat
from mtr_tf.attacks.apgd import APGD
from mtr_tf.errors import InputError

SEA = ((2, 0.3), (1.5, 0.3), (1, 0.4))


def norms(d):
    return np.sqrt(np.square(d).sum(1, keepdims=True))


def visited(attack, loss, x, seed=0):
    """Runs the attack eagerly; returns its result and the points it evaluates."""
    points = []

    def spy(z, progress):
        points.append(z.numpy())
        return loss(z, progress)

    keys = threat.image_keys(seed, tf.range(len(x)))
    return attack.search(spy, tf.constant(x), keys).numpy(), np.array(points)


# All numbers are sums of a few powers of 2: exact. The hill is at 0.6875; ball
# [0.25, 0.75]; eta = 0.5. Of 10 steps the checkpoints are 3, 5, 6, 7, 8 and 9.
#  k  point       why
#  0  0.5         the image
#  1  0.75        z = 0.75, whole step. Higher.
#  2  0.4375      z = 0.25: 0.75 - 0.75 * 0.5 + 0.25 * 0.25. Lower.
#  3  0.59375     z = 0.75: 0.4375 + 0.75 * 0.3125 - 0.25 * 0.3125. Higher.
#     check: 2 rises < 2.25: eta = 0.25, back to 0.75 (point before: 0.4375)
#  4  0.640625    z = 0.5: 0.75 - 0.75 * 0.25 + 0.25 * 0.3125. Higher.
#  5  0.6953125   z = 0.75: 0.640625 + 0.75 * 0.109375 - 0.25 * 0.109375. Higher.
#     check: 2 rises of 2; halved last time: nothing
#  6  0.521484375 z = 0.4453125: 0.6953125 - 0.1875 + 0.25 * 0.0546875. Lower.
#     check: eta = 0.125, back to 0.6953125, which also was the point before
#  7  0.6015625   0.6953125 - 0.75 * 0.125. Lower: eta = 1/16 and back.
#  8  0.6484375   0.6953125 - 0.75 / 16. Lower: eta = 1/32 and back.
#  9  0.671875    0.6953125 - 0.75 / 32. Lower: eta = 1/64 and back.
# 10  0.68359375  0.6953125 - 0.75 / 64. The highest, and the last.
TRACED = (
    *(0.5, 0.75, 0.4375, 0.59375, 0.640625, 0.6953125, 0.521484375),
    *(0.6015625, 0.6484375, 0.671875, 0.68359375),
)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_run_traced_by_hand(norm):
    x = np.full((1, 1), 0.5)
    attack = APGD(0.25, 10, norm, random_start=False)
    hill = lambda z, _: -tf.square(z[:, 0] - 0.6875)  # noqa: E731
    got, points = visited(attack, hill, x)
    np.testing.assert_allclose(points[:, 0, 0], TRACED, rtol=1e-15)
    np.testing.assert_allclose(got, [[0.68359375]], rtol=1e-15)
    np.testing.assert_allclose(attack(hill, x), got, rtol=1e-15)  # As one graph too.


def test_a_best_score_that_stands_still_halves_every_other_checkpoint():
    # The score rises in every step, but never to the start's. Of 50 steps the first
    # checkpoints are 11, 21 and 29 (22, 41 and 57 %). The step size is halved at 11,
    # not at 21, as it was halved at the checkpoint before, and again at 29.
    def loss(z, progress):
        score = progress + tf.where(progress > 0, 0.0, 9.0)
        return z[:, 0], tf.fill([1], score)

    x = np.full((1, 1), 0.5)
    got, points = visited(APGD(0.25, 50, random_start=False), loss, x)
    points = points[:, 0, 0]
    assert np.all(points[1:12] == 0.75)
    # Back to 0.5, with the point before at 0.75: 0.5 + 0.75 * 0.25 - 0.25 * 0.25.
    np.testing.assert_allclose(points[12:14], [0.625, 0.75], rtol=1e-15)
    assert np.all(points[14:30] == 0.75)
    # Now eta is 1/8: 0.5 + 0.75 / 8 - 0.25 / 4, and 0.53125 + 0.75 / 8 + 1 / 128.
    np.testing.assert_allclose(points[30:32], [0.53125, 0.6328125], rtol=1e-15)
    assert got == 0.5


def plain_run(f, slope, x, start, eps, steps):
    """APGD on one pixel as the paper's text has it, in plain Python."""
    clip = lambda v: min(max(v, x - eps, 0.0), x + eps, 1.0)  # noqa: E731
    p, marks = [0.0, 0.22], []
    while p[-1] <= 1:
        marks.append(math.ceil(round(p[-1] * steps, 9)))
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    path = []
    point = previous = clip(start)
    value, eta = f(point), 2 * eps
    best, best_value = point, value
    rises = last_mark = 0
    halved, record = False, best_value
    for k in range(steps + 1):
        path.append(point)
        if k:
            new_value = f(point)
            rises += new_value > value
            value = new_value
            if value > best_value:
                best, best_value = point, value
        if k == steps:
            return path, best, best_value
        if k in marks:
            few_rises = rises < 0.75 * (k - last_mark)
            idle = not halved and best_value == record
            halved, record = few_rises or idle, best_value
            if halved:
                eta, point, value = eta / 2, best, best_value
            rises, last_mark = 0, k
        z = clip(point + eta * np.sign(slope(point)))
        share = 0.75 if k else 1.0
        point, previous = (
            clip(point + share * (z - point) + (1 - share) * (point - previous)),
            point,
        )
    raise AssertionError


@pytest.mark.parametrize("steps", [1, 2, 13, 50])
def test_wavy_runs_equal_plain_python(steps):
    x = images((40, 1), 2, dtype=np.float64)
    a, b = 30 * normal((2, 40), 3, np.float64)
    attack = APGD(0.2, steps, random_start=False)
    wave = lambda z, _: tf.sin(a * z[:, 0]) + tf.cos(b * z[:, 0])  # noqa: E731
    got, points = visited(attack, wave, x)
    assert len(points) == steps + 1 == attack.passes
    for i in range(40):
        f = lambda z, i=i: math.sin(a[i] * z) + math.cos(b[i] * z)  # noqa: E731
        slope = lambda z, i=i: (  # noqa: E731
            a[i] * math.cos(a[i] * z) - b[i] * math.sin(b[i] * z)
        )
        path, best, _ = plain_run(f, slope, x[i, 0], x[i, 0], 0.2, steps)
        np.testing.assert_allclose(points[:, i, 0], path, atol=1e-9)
        np.testing.assert_allclose(got[i, 0], best, atol=1e-9)


def test_stages_of_shrinking_radius_equal_plain_runs():
    # Each stage starts at the projection of the previous stage's best point; only the
    # last stage's points count.
    x, eps = images((12, 1), 4, dtype=np.float64), 0.1
    a = 40 * normal(12, 5, np.float64)
    attack = APGD(eps, 20, random_start=False, radii=SEA)
    wave = lambda z, _: tf.sin(a * z[:, 0])  # noqa: E731
    got, points = visited(attack, wave, x)
    assert len(points) == 23 == attack.passes
    outside_count = 0
    for i in range(12):
        f = lambda z, i=i: math.sin(a[i] * z)  # noqa: E731
        slope = lambda z, i=i: a[i] * math.cos(a[i] * z)  # noqa: E731
        best, whole_path = x[i, 0], []
        for radius, steps in ((2 * eps, 6), (1.5 * eps, 6), (eps, 8)):
            path, best, _ = plain_run(f, slope, x[i, 0], best, radius, steps)
            whole_path += path
        np.testing.assert_allclose(points[:, i, 0], whole_path, atol=1e-9)
        np.testing.assert_allclose(got[i, 0], best, atol=1e-9)
        outside_count += abs(whole_path[6] - x[i, 0]) > eps
    assert outside_count > 3
    assert np.all(np.abs(got - x) <= eps)


def test_checkpoints_are_the_papers():
    # 22, then 19, 16, 13, 10, 7 and from then on 6 per cent further.
    assert apgd.checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]
    assert apgd.checkpoints(10) == [0, 3, 5, 6, 7, 8, 9]
    assert apgd.checkpoints(300) == [0, 66, 123, 171, 210, 240, 261, 279, 297]
    assert apgd.checkpoints(1) == [0]
    assert apgd.checkpoints(2) == [0, 1]


@pytest.mark.parametrize("radii", [((1, 1),), SEA])
def test_linear_loss_linf_ends_in_the_corner(radii):
    x, w = images((4, 60)), normal((4, 60))
    for scale in (1.0, 1e-30):
        got = APGD(0.1, 20, radii=radii)(linear(np.float32(scale) * w), x)
        np.testing.assert_allclose(got, np.clip(x + 0.1 * np.sign(w), 0, 1), atol=1e-6)


@pytest.mark.parametrize("radii", [((1, 1),), SEA])
def test_linear_loss_l2_ends_at_the_closed_form_inside_the_box(radii):
    x = images((4, 60), low=0.3, high=0.7, dtype=np.float64)
    w = normal((4, 60), dtype=np.float64)
    got = APGD(0.25, 60, "l2", restarts=2, radii=radii)(linear(w), x)
    np.testing.assert_allclose(got, x + 0.25 * w / norms(w), atol=1e-5)


def test_linear_loss_l2_near_the_box():
    # The maximum is clip(x + t w) for the largest t inside the ball: by bisection.
    x, w, eps = images((20, 50), high=0.3), normal((20, 50)), 0.8
    low, high = np.zeros((20, 1)), np.full((20, 1), 1e3)
    for _ in range(100):
        t = (low + high) / 2
        inside = norms(np.clip(x + t * w, 0, 1) - x) <= eps
        low, high = np.where(inside, t, low), np.where(inside, high, t)
    best = np.clip(x + low * w, 0, 1)
    got = APGD(eps, 40, "l2")(linear(w), x)
    share = (w * (got - x)).numpy().sum(1) / (w * (best - x)).sum(1)
    assert share.min() > 0.995
    assert share.max() < 1 + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_peak_inside_the_ball_is_found(norm):
    x = images((5, 9), low=0.3, high=0.7, dtype=np.float64)
    peak = x + images((5, 9), 2, -0.08, 0.08, np.float64)
    eps = 0.1 if norm == "linf" else 0.5
    got = APGD(eps, 150, norm)(
        attacks.simple(lambda z: -tf.reduce_sum(tf.square(z - peak), 1)), x
    )
    np.testing.assert_allclose(got, peak, atol=eps / 50)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_two_pixels_against_brute_force(norm):
    x, loss, best = two_pixels(norm)
    losses = loss(APGD(0.3, 40, norm, restarts=15)(loss, x)).numpy()
    assert np.all(losses >= best - 1e-3)
    assert np.all(losses <= best + 3e-3)


def test_the_best_point_asked_for_in_the_ball_comes_back_and_nan_never_wins():
    x, eps = images((30, 3), 6, dtype=np.float64), 0.15
    w = 60 * normal((30, 3), 7, np.float64)

    def loss(z, _):
        value = tf.reduce_sum(tf.sin(w * z), 1)
        return tf.where(value > 1.5, value * np.nan, value)

    for radii in (((1, 1),), SEA):
        attack = APGD(eps, 12, restarts=3, radii=radii)
        got, points = visited(attack, loss, x)
        runs = points.reshape(3, -1, 30, 3)
        candidates = (
            runs[:, -13:] if len(radii) == 1 else runs[:, -6:]
        )  # 12 * 0.4: 5 + 1.
        candidates = candidates.reshape(-1, 30, 3)
        scores = np.array([loss(tf.constant(z), 0).numpy() for z in candidates])
        assert np.isnan(scores).any()
        best = np.nanmax(scores, 0)
        np.testing.assert_allclose(loss(tf.constant(got), 0), best, atol=1e-9)
        assert np.abs(candidates - x).max() <= eps + 1e-15


def test_the_score_steers_and_the_other_is_climbed():
    # The attack climbs x, but points are judged by their nearness to 0.6, which whole
    # steps never reach: if the climbed value steered, no step size would be halved.
    x = np.full((1, 1), 0.5)
    loss = lambda z, _: (z[:, 0], -tf.abs(z[:, 0] - 0.6))  # noqa: E731
    _, points = visited(APGD(0.2, 30, random_start=False), loss, x)
    assert points[1] == pytest.approx(0.7)
    assert np.any(points < 0.58)
    assert np.abs(points - 0.6).min() < 0.01


def test_progress_is_the_share_of_a_stage_s_steps_that_are_done():
    # So whatever depends on it, such as SegPGD's lambda, starts anew with each radius.
    progress_values = []

    def loss(z, progress):
        progress_values.append(float(progress))
        return tf.reduce_sum(z, 1)

    visited(APGD(0.1, 10, radii=SEA), loss, images((2, 3)))
    first_stage = second_stage = (0, 1 / 3, 2 / 3, 1)
    np.testing.assert_allclose(
        progress_values, first_stage + second_stage + (0, 0.25, 0.5, 0.75, 1), atol=1e-6
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("radii", [((1, 1),), SEA])
def test_without_a_gradient_nothing_moves(norm, radii):
    x, w = images((40, 7)), normal((40, 7))
    w[1::2] = 0
    got = APGD(0.1, 30, norm, restarts=2, radii=radii)(linear(w), x).numpy()
    np.testing.assert_array_equal(got[1::2], x[1::2])
    assert np.all(norms(got - x)[::2] > 0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_broken_losses_never_leave_the_ball(norm):
    x = images((4, 4), low=0.3, high=0.7)
    w = np.ones((4, 4), np.float32)
    w[0], w[1, 0], w[3] = np.nan, np.inf, -np.inf
    got = APGD(0.1, 30, norm, restarts=2)(linear(w), x).numpy()
    order = np.inf if norm == "linf" else 2
    assert np.all(np.linalg.norm(got - x, order, axis=1) <= 0.1)
    unit = 1 if norm == "linf" else 0.5
    np.testing.assert_allclose(got[2], x[2] + 0.1 * unit, atol=1e-4)


def test_the_graph_does_not_grow_with_steps_restarts_or_radii():
    traces = []

    @attacks.simple
    def loss(x):
        traces.append(x)
        return tf.reduce_sum(tf.sin(x), 1)

    attack = APGD(0.1, 99, restarts=7, radii=SEA)
    graph = tf.function(lambda x: attack(loss, x), autograph=False)
    graph.get_concrete_function(tf.TensorSpec([None, 4]))
    assert len(traces) == 2  # Once in the loop, once for the last point.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be a whole number, 1 or more; got 0"),
        ({"restarts": True}, "restarts must be a whole number, 1 or more; got True"),
        ({"random_start": 1}, "random_start must be True or False"),
        ({"epsilon": 8}, "not 8"),
        ({"radii": SEA, "steps": 2}, "Each of the 3 radii needs at least one step"),
        ({"radii": ()}, "radii must be a tuple of pairs"),
        ({"radii": 2}, "radii must be a tuple of pairs"),
        ({"radii": ((2, 1),)}, "the last multiple is 1"),
        ({"radii": ((2, 0.5), (1, 0.4))}, "the shares add up to 1"),
        ({"radii": ((-1, 0.5), (1, 0.5))}, "all above 0"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        APGD(**{"epsilon": 0.1, "steps": 20} | change)


def test_records_are_equal_and_hashable_whatever_the_radii_came_in():
    attack = APGD(0.1, 20, radii=[[2, 0.5], [1, 0.5]])
    assert attack == APGD(0.1, 20, radii=((2.0, 0.5), (1.0, 0.5)))
    assert len({attack, APGD(0.1, 20)}) == 2
    assert APGD(0.1, 20, restarts=3, radii=SEA).passes == 69
