# SPDX-License-Identifier: Apache-2.0
"""MIM against closed forms, brute force and its rules written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from arrays_fixture import images
from arrays_fixture import linear
from arrays_fixture import normal
from arrays_fixture import two_pixels

from mtr_tf import attacks
from mtr_tf.attacks import pgd
from mtr_tf.attacks import threat
from mtr_tf.attacks.momentum import MIM
from mtr_tf.errors import InputError


def norms(d):
    return np.sqrt(np.square(d).sum(1, keepdims=True))


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e37])
def test_linear_loss_linf_ends_in_the_corner(scale):
    # For two of the scales, plain sums or reciprocals leave the range of float32.
    x, w = images((4, 60)), normal((4, 60))
    got = MIM(0.1, 0.025, 12)(linear(np.float32(scale) * w), x)
    np.testing.assert_allclose(got, np.clip(x + 0.1 * np.sign(w), 0, 1), atol=1e-6)


def test_linear_loss_l2_ends_at_the_closed_form():
    x, w = images((4, 60), low=0.3, high=0.7), normal((4, 60))
    got = MIM(0.25, 0.1, 60, "l2", keep="last")(linear(w), x)
    np.testing.assert_allclose(got, x + 0.25 * w / norms(w), atol=1e-5)


def by_hand(x, w, steps, eps, step_size, decay, normalize, norm):
    """MIM on sum sin(w x) in NumPy: gradient w cos(w x)."""
    point, total = x, np.zeros_like(x)
    for _ in range(steps):
        slope = w * np.cos(w * point)
        if normalize:
            slope = slope / np.abs(slope).sum(1, keepdims=True)
        total = decay * total + slope
        if norm == "linf":
            point = np.clip(point + step_size * np.sign(total), x - eps, x + eps)
        else:
            offset = point + step_size * total / norms(total) - x
            point = x + offset * np.minimum(1, eps / norms(offset))
    return point


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("decay", "normalize"), [(1.0, True), (0.5, False), (0.0, True)]
)
def test_equals_the_rule_written_in_numpy(norm, decay, normalize):
    # Far from the box. (0.5, False) is the released code's rule; decay 0 is PGD's.
    x = images((5, 7), low=0.4, high=0.6, dtype=np.float64)
    w = 20 * normal((5, 7), dtype=np.float64)
    settings = {"norm": norm, "random_start": False, "keep": "last"}
    attack = MIM(0.3, 0.04, 9, decay=decay, normalize=normalize, **settings)
    loss = attacks.simple(lambda z: tf.reduce_sum(tf.sin(w * z), 1))
    got = attack(loss, x)
    expected = by_hand(x, w, 9, 0.3, 0.04, decay, normalize, norm)
    np.testing.assert_allclose(got, expected, atol=1e-12)
    pgd_images = pgd.PGD(0.3, 0.04, 9, **settings)(loss, x).numpy()
    assert np.allclose(got, pgd_images, atol=1e-12) == (decay == 0)


def test_momentum_decides_as_computed_by_hand():
    # The gradient is 4, -1, -1, -1; divided by its norm 1, -1, -1, -1. With decay 1 the
    # sums are 1, 0, -1, -2, so the moves are +, none, -, -. Without the division and
    # with decay 0.5 they are 4, 1, -0.5, -1.25.
    x = np.full((1, 1), 0.5, np.float32)

    def loss(z, progress):
        return z[:, 0] * tf.where(progress < 0.2, 4.0, -1.0)

    for steps, paper_value, released_value in (
        (1, 0.6, 0.6),
        (2, 0.6, 0.7),
        (4, 0.4, 0.5),
    ):
        # Progress is the step's number over `steps`: only the first is below 0.2.
        settings = {"random_start": False, "keep": "last"}
        got = MIM(0.4, 0.1, steps, **settings)(loss, x)
        np.testing.assert_allclose(got, [[paper_value]], atol=1e-6)
        got = MIM(0.4, 0.1, steps, decay=0.5, normalize=False, **settings)(loss, x)
        np.testing.assert_allclose(got, [[released_value]], atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_two_pixels_against_brute_force(norm):
    x, loss, best = two_pixels(norm)
    losses = loss(MIM(0.3, 0.01, 80, norm, True, 20)(loss, x)).numpy()
    assert np.all(losses >= best - 3e-3)
    assert np.all(losses <= best + 3e-3)


def test_each_image_has_its_own_norm_and_zero_stays_zero():
    x, w = images((3, 6), low=0.4, high=0.6), normal((3, 6))
    w *= np.array([[1e-6], [1e6], [0]], np.float32)
    got = MIM(0.1, 0.05, 6)(linear(w), x).numpy()
    np.testing.assert_allclose(got, x + 0.1 * np.sign(w), atol=1e-6)
    np.testing.assert_array_equal(got[2], x[2])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("normalize", [True, False])
def test_broken_losses_never_leave_the_ball(norm, normalize):
    x = images((3, 4), low=0.3, high=0.7)
    w = np.ones((3, 4), np.float32)
    w[0], w[1, 0] = np.nan, np.inf
    attack = MIM(0.1, 0.05, 30, norm, keep="last", decay=2.0, normalize=normalize)
    got = attack(linear(w), x).numpy()
    order = np.inf if norm == "linf" else 2
    assert np.all(np.linalg.norm(got - x, order, axis=1) <= 0.1)
    assert got[1, 0] > x[1, 0]


def test_starts_are_those_of_pgd_and_every_run_begins_with_an_empty_sum():
    x, w = images((3, 5)), normal((3, 5))
    keys = threat.image_keys(0, tf.range(3))
    settings = {"restarts": 3, "keep": "last", "random_start": True}
    loss = lambda z, progress: linear(w)(z) * tf.cos(9 * progress)  # noqa: E731
    want = pgd.PGD(0.2, 0.01, 1, **settings).search(loss, tf.constant(x), keys)
    got = MIM(0.2, 0.01, 1, **settings).search(loss, tf.constant(x), keys)
    np.testing.assert_allclose(got, want, atol=1e-7)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_starts_at_the_image_unless_told_otherwise(norm):
    x = np.full((2, 3), 0.5, np.float32)
    points = []

    @attacks.simple
    def loss(z):
        tf.py_function(lambda v: points.append(v.numpy()), [z], [])
        return tf.reduce_sum(z, 1)

    MIM(0.1, 0.02, 2, norm)(loss, x)
    np.testing.assert_array_equal(points[0], x)
    points.clear()
    MIM(0.1, 0.02, 2, norm, random_start=True)(loss, x)
    assert not np.any(points[0] == x)
    attack = attacks.make("mim_released", 0.1, step_size=0.02, steps=2)
    assert attack.random_start


def test_settings_and_passes():
    assert MIM(0.1, 0.01, 7).passes == 8
    assert MIM(0.1, 0.01, 7, restarts=3, random_start=True).passes == 24
    with pytest.raises(InputError, match="need a random start"):
        MIM(0.1, 0.01, 7, restarts=3)
    assert MIM(0.1, 0.01, 7, keep="last").passes == 7
    for change, message in (
        ({"decay": -1}, "decay must be at least 0; got -1"),
        ({"decay": "1"}, "decay must be a finite number; got '1'"),
        ({"normalize": 1}, "normalize must be True or False; got 1"),
        ({"epsilon": 8}, "not 8"),
    ):
        with pytest.raises(InputError, match=message):
            MIM(**{"epsilon": 0.1, "step_size": 0.01, "steps": 7} | change)
