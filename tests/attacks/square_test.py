# SPDX-License-Identifier: Apache-2.0
"""Square: no gradients, the paper's moves written out in NumPy, known maxima."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from arrays_fixture import images
from arrays_fixture import linear
from arrays_fixture import normal
from tiers_fixture import slow

from mtr_tf import attacks
from mtr_tf.attacks import square
from mtr_tf.attacks import threat
from mtr_tf.attacks.baselines import Corner
from mtr_tf.attacks.square import Square
from mtr_tf.errors import InputError


def norms(d):
    return np.linalg.norm(np.reshape(d, (len(d), -1)), axis=1)


def search(attack, objective, x):
    """Runs an attack eagerly, which for few queries is faster than compiling."""
    keys = threat.image_keys(0, tf.range(len(x)))
    return attack.search(objective, tf.constant(x), keys).numpy()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_gradients_are_never_asked_for(norm):
    @attacks.simple
    @tf.custom_gradient
    def guarded_loss(z):
        def backward(upstream):
            raise AssertionError("A gradient was computed.")

        return tf.reduce_sum(z, [1, 2, 3]), backward

    x = images((2, 6, 7, 3))
    got = search(Square(0.1, 40, norm), guarded_loss, x)
    assert np.all(guarded_loss(got).numpy() > guarded_loss(tf.constant(x)).numpy())
    # And an objective without any gradient is not refused.
    search(Square(0.1, 5, norm), attacks.simple(lambda z: tf.round(z[:, 0, 0, 0])), x)


def test_a_linear_loss_linf_nears_the_corner():
    x, w = images((3, 6, 7, 2)), normal((3, 6, 7, 2))
    best = np.sum(w * (np.clip(x + 0.1 * np.sign(w), 0, 1) - x), (1, 2, 3))
    shares = []
    for queries in (30, 3000):
        got = Square(0.1, queries)(linear(w), x).numpy()
        shares.append((w * (got - x)).sum((1, 2, 3)) / best)
        inside = (got > 0) & (got < 1)  # All windows have a corner's values.
        np.testing.assert_allclose(np.abs(got - x)[inside], 0.1, atol=1e-6)
    assert np.all(shares[1] > shares[0])
    assert shares[1].min() > 0.97


def test_a_linear_loss_l2_rises_far_above_random_points_of_the_sphere():
    # Not to the maximum, epsilon |w|: pairs of pyramids have a sum of nearly 0, and are
    # at least 3 pixels wide.
    x, w = images((3, 8, 9, 2), low=0.4, high=0.6), normal((3, 8, 9, 2))

    def share(attack):
        got = attack(linear(w), x).numpy()
        np.testing.assert_allclose(norms(got - x), 0.5, rtol=1e-5)
        return (w * (got - x)).sum((1, 2, 3)) / (0.5 * norms(w))

    few_shares, many_shares = (
        share(Square(0.5, queries, "l2")) for queries in (10, 1000)
    )
    assert np.all(many_shares > few_shares)
    assert np.all(many_shares > 1.5 * share(Corner(0.5, "l2", draws=1000)))
    assert np.all(many_shares > 0.45)


def test_the_window_shrinks_as_in_the_paper():
    # Halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10 000 queries.
    shares = square._shares(0.8, 10_000)
    changes = np.flatnonzero(np.diff(shares)) + 1
    assert changes.tolist() == [11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    np.testing.assert_allclose(shares[[0, 10, 11, 51]], [0.8, 0.8, 0.4, 0.2])
    np.testing.assert_allclose(shares[9999], 0.8 / 512)
    np.testing.assert_array_equal(square._shares(0.8, 1000), shares[::10])


def test_the_start_linf_is_vertical_stripes():
    x = images((40, 5, 6, 3), low=0.2, high=0.8)
    got = search(Square(0.1, 1), linear(np.zeros_like(x)), x) - x
    np.testing.assert_allclose(np.abs(got), 0.1, atol=1e-6)
    np.testing.assert_allclose(got, np.broadcast_to(got[:, :1], got.shape), atol=1e-6)
    signs = np.sign(got[:, 0]).reshape(40, -1)
    assert np.abs(signs.mean()) < 0.15  # 720 fair coins: 4 standard deviations.
    assert len(np.unique(signs, axis=0)) == 40
    correlation = np.corrcoef(signs.T)
    assert np.abs(correlation - np.eye(18)).max() < 0.7


def test_windows_linf_are_squares_of_the_side_asked_for_anywhere_in_the_image():
    # Every query is accepted (the score is the progress of a counter): from one query
    # to the next a single square changes, to one value per channel.
    x = np.full((1, 7, 9, 2), 0.5)
    points = []

    @attacks.simple
    def count(z):
        points.append(z.numpy()[0])
        return tf.constant([float(len(points))], tf.float64)

    attack = Square(0.25, 200, p=0.8)
    search(attack, count, x)
    assert len(points) == attack.passes == 200
    corners = set()
    for number in range(1, 200):
        changed = np.any(points[number] != points[number - 1], axis=-1)
        if not changed.any():
            continue
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        share = square._shares(0.8, 200)[number]
        side = max(1, min(7, round(np.sqrt(share * 63))))
        assert np.ptp(rows) < side
        assert np.ptp(columns) < side
        window_values = points[number][changed]
        assert np.all(window_values == window_values[0])
        assert set(np.abs(window_values[0] - 0.5)) == {0.25}
        if side == 1:
            corners.add((rows[0], columns[0]))
    assert len(corners) > 40  # Of 63 pixels, with some 135 draws (a quarter idle).


def pyramids(side):
    """A window's pair of pyramids, layer by layer: rectangles around each middle."""

    def pyramid(height, width):
        heights = np.zeros((height, width))
        row, column = height // 2, width // 2
        for layer in range(width // 2 + 1):
            top, left = max(row - layer, 0), max(column - layer, 0)
            part = heights[top : row + layer + 1, left : column + layer + 1]
            part += 1 / (layer + 1) ** 2
        return heights / max(np.linalg.norm(heights), 1e-30)

    pair = np.concatenate([pyramid(side // 2, side), -pyramid(side - side // 2, side)])
    return pair / np.linalg.norm(pair)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 6, 11])
def test_pyramids_are_sums_of_rectangles(side):
    got = square._pyramids(tf.constant(side), tf.float64)
    np.testing.assert_allclose(got, pyramids(side), atol=1e-12)


def test_pyramids_of_three_pixels_by_hand():
    # The upper pyramid is one row: 1.25 in the middle, 0.25 beside it. The lower one is
    # two rows, with 0.25 all around the same middle. The squares add up to
    # 1.5625 + 2 / 16 and 1.5625 + 5 / 16.
    upper = np.array([[0.25, 1.25, 0.25]]) / np.sqrt(1.6875)
    lower = np.array([[0.25, 0.25, 0.25], [0.25, 1.25, 0.25]]) / np.sqrt(1.875)
    expected = np.concatenate([upper, -lower]) / np.sqrt(2)
    got = square._pyramids(tf.constant(3), tf.float64)
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_a_move_l2_equals_the_papers_written_with_slices():
    shape, eps = (4, 9, 11, 3), 0.5
    x = images(shape, low=0.45, high=0.55, dtype=np.float64)
    offset = normal(shape, 5, np.float64)
    offset *= (
        np.array([0.5, 0.5, 0.3, 0.1])[:, None, None, None]
        / norms(offset)[:, None, None, None]
    )
    rng = np.random.default_rng(6)
    draw = square._Draw(
        place=tf.constant(rng.uniform(size=(4, 2))),
        second_place=tf.constant(rng.uniform(size=(4, 2))),
        turned=tf.constant([True, False, True, False]),
        signs=tf.constant(rng.choice([-1.0, 1.0], (4, 1, 1, 3))),
    )
    moves = square._L2(threat.L2(eps), tf.constant(x))
    share = tf.constant(25 / 99, tf.float64)
    got = moves.change(tf.constant(x + offset), share, draw).numpy() - x
    for i in range(4):
        places = []
        for place in (draw.place, draw.second_place):
            top, left = np.floor(place.numpy()[i] * [5, 7]).astype(int)
            places.append((slice(top, top + 5), slice(left, left + 5)))
        delta, new_delta = offset[i].copy(), np.zeros((9, 11, 3))
        window = pyramids(5).T if draw.turned[i] else pyramids(5)
        spare = max(eps**2 - np.sum(delta**2), 0) / 3
        for c in range(3):
            window_delta = delta[*places[0], c]
            new_window = window * draw.signs.numpy()[i, 0, 0, c]
            new_window = new_window + window_delta / np.linalg.norm(window_delta)
            union = np.zeros((9, 11), bool)
            union[places[0]] = union[places[1]] = True
            budget = np.sqrt(spare + np.sum(delta[..., c][union] ** 2))
            new_delta[..., c] = np.where(union, 0, delta[..., c])
            new_delta[*places[0], c] = new_window / np.linalg.norm(new_window) * budget
        np.testing.assert_allclose(
            got[i], eps * new_delta / np.linalg.norm(new_delta), atol=1e-9
        )


def test_the_start_l2_is_a_grid_of_pyramids():
    x = np.full((2, 11, 16, 2), 0.5)
    got = search(Square(0.5, 1, "l2"), linear(np.zeros_like(x)), x) - x
    np.testing.assert_allclose(norms(got), 0.5, rtol=1e-9)
    kind_indices = set()
    for image in got:  # Squares of 2 pixels, the shorter side's fifth.
        scale = np.abs(image).max() / np.abs(pyramids(2)).max()
        for row in range(0, 10, 2):
            for column in range(0, 16, 2):
                for channel in range(2):
                    cell = image[row : row + 2, column : column + 2, channel] / scale
                    kinds = [pyramids(2), pyramids(2).T]
                    kinds += [-kind for kind in kinds]
                    matches = [np.allclose(cell, kind, atol=1e-6) for kind in kinds]
                    assert sum(matches) == 1
                    kind_indices.add(matches.index(True))
    assert kind_indices == {0, 1, 2, 3}


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_queries_and_restarts_never_lower_the_score_asked(norm):
    x = images((5, 6, 6, 1), 3)
    wave = attacks.simple(lambda z: tf.reduce_sum(tf.sin(30 * z), [1, 2, 3]))
    start_scores = wave(Square(0.2, 1, norm)(wave, x)).numpy()
    scores = wave(Square(0.2, 60, norm)(wave, x)).numpy()
    restart_scores = wave(Square(0.2, 60, norm, restarts=4)(wave, x)).numpy()
    assert np.all(scores >= start_scores - 1e-4)
    assert np.all(restart_scores >= scores - 1e-4)
    assert np.any(restart_scores > scores + 1e-2)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_result_is_the_best_of_all_asked_for_and_nan_never_wins(norm):
    x = images((6, 5, 5, 2), 4, dtype=np.float64)
    w = 9 * normal((6, 5, 5, 2), dtype=np.float64)
    evaluations = []

    @attacks.simple
    def wave(z):
        value = tf.reduce_sum(tf.sin(w * z), [1, 2, 3])
        value = tf.where(value > 6, value * np.nan, value)
        evaluations.append((z.numpy(), value.numpy()))
        return value

    attack = Square(0.3, 12, norm, restarts=2)
    got = search(attack, wave, x)
    assert len(evaluations) == attack.passes == 24
    points, scores = map(np.array, zip(*evaluations, strict=True))
    assert np.isnan(scores).any()
    best = points[np.nanargmax(scores, 0), range(6)]
    np.testing.assert_allclose(got, best, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", slow("l2")])
def test_odd_images_unknown_sizes_and_an_epsilon_tensor(norm):
    spec = tf.TensorSpec([None, None, None, None])

    signature = [spec, tf.TensorSpec([], tf.float64)]

    @tf.function(input_signature=signature, autograph=False)
    def graph(x, epsilon):
        loss = attacks.simple(lambda z: tf.reduce_sum(z * z, [1, 2, 3]))
        return Square(epsilon, 25, norm)(loss, x)

    for shape in ((1, 1, 1, 1), (2, 1, 9, 3), (3, 2, 3, 1), (1, 20, 6, 4)):
        x = images(shape)
        got = graph(x, tf.constant(0.1, tf.float64)).numpy()
        size = np.abs(got - x).max() if norm == "linf" else norms(got - x).max()
        assert 0.001 < size <= 0.1 + 1e-7
        assert got.min() >= 0
        assert got.max() <= 1
        np.testing.assert_array_equal(graph(x, tf.constant(0.0, tf.float64)), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": 0}, "queries must be a whole number, 1 or more; got 0"),
        ({"restarts": 1.5}, "restarts must be a whole number, 1 or more; got 1.5"),
        ({"p": 0}, "above 0 and at most 1; got 0"),
        ({"p": None}, "p must be a finite number; got None"),
        ({"epsilon": 8}, "not 8"),
        ({"norm": "l1"}, "norm must be one of linf, l2"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        Square(**{"epsilon": 0.1} | change)


def test_what_is_no_image_is_refused():
    with pytest.raises(InputError, match=r"\[batch, height, width, channels\]"):
        Square(0.1)(attacks.simple(lambda z: tf.reduce_sum(z, 1)), images((2, 3)))
