# SPDX-License-Identifier: Apache-2.0
"""PGD and FGSM against closed forms, brute force and a loop written out by hand."""

from __future__ import annotations

import dataclasses
import gc

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from arrays_fixture import two_pixels
from hypothesis import strategies as st

from mtr_tf import attacks
from mtr_tf.attacks import kinds
from mtr_tf.attacks import threat
from mtr_tf.errors import InputError

EPS = 8 / 255
SHAPE = (4, 5, 6, 3)


def images(shape=SHAPE, seed=0, low=0.0, high=1.0):
    values = np.random.default_rng(seed).uniform(low, high, shape)
    return values.astype(np.float32)


def normal(shape=SHAPE, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def linear(w):
    """The loss sum_i w_i x_i, whose maximum over a ball is known."""
    return attacks.simple(
        lambda x: tf.reduce_sum(tf.cast(w, x.dtype) * x, list(range(1, x.shape.rank)))
    )


def norms(d):
    return np.linalg.norm(np.asarray(d, np.float64).reshape(len(d), -1), axis=1)


def small_net(seed=0):
    """Two fixed convolutions with a softplus between: smooth, pixels interact."""
    rng = np.random.default_rng(seed)
    first_kernel = tf.constant(rng.normal(size=(3, 3, 3, 8)) / 3, tf.float32)
    second_kernel = tf.constant(rng.normal(size=(3, 3, 8, 1)) / 5, tf.float32)

    @attacks.simple
    def loss(x):
        hidden = tf.nn.softplus(tf.nn.conv2d(x, first_kernel, 1, "SAME"))
        return tf.reduce_sum(
            tf.square(tf.nn.conv2d(hidden, second_kernel, 1, "SAME")), [1, 2, 3]
        )

    return loss


@pytest.mark.parametrize(
    ("random_start", "keep", "scale"),
    [
        (True, "best", 1.0),
        (True, "last", 1e-30),
        (False, "best", 1e-30),
        (False, "last", 1.0),
    ],
)
def test_linear_loss_linf_ends_in_the_corner(random_start, keep, scale):
    x, w = images(), normal()
    attack = attacks.PGD(EPS, EPS / 4, 10, random_start=random_start, keep=keep)
    got = attack(linear(scale * w), x)
    np.testing.assert_allclose(got, np.clip(x + EPS * np.sign(w), 0, 1), atol=1e-6)


@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_linear_loss_l2_ends_at_the_closed_form_inside_the_box(random_start, scale):
    x, w = images(low=0.3, high=0.7), normal()
    best = x + 0.25 * w / norms(w)[:, None, None, None]
    # Near the maximum a float32 loss is flat, so "best" may choose a point before it.
    for keep, atol in (("last", 1e-6), ("best", 1e-4)):
        attack = attacks.PGD(
            0.25, 0.25, 40, norm="l2", random_start=random_start, keep=keep
        )
        np.testing.assert_allclose(attack(linear(scale * w), x, 5), best, atol=atol)


def test_linear_loss_l2_near_the_box_is_the_true_maximum():
    # The maximum of w.d over |d| <= eps and -x <= d <= 1 - x is d = clip(t w) for the
    # largest t with |d| <= eps (Lagrange): t by bisection.
    x, w, eps = images((20, 50), high=0.3), normal((20, 50)), 0.8
    low, high = np.zeros(20), np.full(20, 1e3)
    for _ in range(100):
        t = (low + high) / 2
        inside = norms(np.clip(x + t[:, None] * w, 0, 1) - x) <= eps
        low, high = np.where(inside, t, low), np.where(inside, high, t)
    best = np.clip(x + low[:, None] * w, 0, 1)
    assert ((best == 0) & (x > 0)).sum() > 100  # The box does cut in.
    attack = attacks.PGD(eps, eps / 4, 40, norm="l2", random_start=False)
    got = attack(linear(w), x)
    np.testing.assert_allclose(got, best, atol=2e-3)
    share = (w * (got - x)).numpy().sum(1) / (w * (best - x)).sum(1)
    assert share.min() > 0.998  # Clipping what is shrunk into the ball reaches 0.967.
    assert share.max() < 1 + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_is_one_whole_step_from_the_image(norm):
    x, w = images(low=0.2, high=0.8), normal()
    step = np.sign(w) if norm == "linf" else w / norms(w)[:, None, None, None]
    got = attacks.FGSM(EPS, norm)(linear(w), x)
    np.testing.assert_allclose(got, x + EPS * step, atol=1e-6)
    pgd = attacks.PGD(EPS, EPS, 1, norm, random_start=False, keep="last")
    np.testing.assert_array_equal(got, pgd(linear(w), x))
    np.testing.assert_array_equal(attacks.FGSM(0, norm)(linear(w), x), x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_concave_quadratic_ends_at_its_known_maximiser(norm):
    # -sum (x - peak)^2 is highest at the point of the ball nearest to the peak.
    x = images(low=0.3, high=0.7)
    peak = x + images(seed=2, low=-0.1, high=0.1)
    eps = 0.05 if norm == "linf" else 0.5
    offset = peak - x
    if norm == "linf":
        offset = np.clip(offset, -eps, eps)
    else:
        offset *= np.minimum(1, eps / norms(offset))[:, None, None, None]
    attack = attacks.PGD(eps, eps / 100, 300, norm)
    got = attack(
        attacks.simple(lambda z: -tf.reduce_sum(tf.square(z - peak), [1, 2, 3])), x
    )
    atol = eps / 100 + 1e-6  # A step's length: fixed steps overshoot.
    np.testing.assert_allclose(got, x + offset, atol=atol)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_two_pixels_against_brute_force(norm):
    x, loss, best = two_pixels(norm)
    losses = loss(attacks.PGD(0.3, 0.01, 60, norm, restarts=40)(loss, x)).numpy()
    assert np.all(losses >= best - 2e-3)
    assert np.all(losses <= best + 3e-3)


def test_a_start_is_no_corner_and_a_matter_of_the_seed():
    # The released code's "noise" put every pixel at its upper bound (paper.md, Q2).
    x = images(low=0.2, high=0.8)
    attack = attacks.PGD(EPS, 1e-9, 1, keep="last")
    flat_loss = linear(np.zeros(SHAPE))
    first_start, second_start = (
        attack(flat_loss, x, 0).numpy(),
        attack(flat_loss, x, 1).numpy(),
    )
    share = np.abs(first_start - x) / EPS
    assert share.max() <= 1
    assert 0.45 < share.mean() < 0.55
    assert not np.any(first_start == second_start)
    assert not np.any(np.abs(first_start[0] - x[0]) == np.abs(first_start[1] - x[1]))
    seeds = np.array([9, 8, 9, 7])
    repeats = attack(flat_loss, np.repeat(x[:1], 4, 0), seeds).numpy()
    np.testing.assert_array_equal(repeats[0], repeats[2])
    assert not np.any(repeats[0] == repeats[1])


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_steps_and_more_restarts_never_lower_the_best_loss(norm):
    x, loss = (
        images((6, 8), seed=6),
        attacks.simple(lambda z: tf.reduce_sum(tf.sin(40 * z), 1)),
    )
    # Steps so long that the loss goes up and down along the way.
    for name, values in (("steps", (1, 2, 4, 9)), ("restarts", (1, 2, 5))):
        losses = []
        for value in values:
            settings = {"steps": 4} | {name: value}
            attack = attacks.PGD(0.2, 0.15, norm=norm, **settings)
            losses.append(loss(attack(loss, x, seed=3)).numpy())
        assert np.all(np.diff(losses, axis=0) >= -1e-5)
        assert np.any(np.diff(losses, axis=0) > 0.1)


def test_best_is_the_best_point_of_the_whole_path_and_last_is_the_last():
    # The path of every run, traced by hand: start, every step, end.
    x, w = images((5, 8), seed=7), normal((5, 8), 8) * 20
    loss = attacks.simple(lambda z: tf.reduce_sum(tf.sin(w * z), 1))
    runs = []
    for restart in range(3):
        path = [first_point(x, restart)]
        for _ in range(4):
            path.append(plain_step(loss, path[-1], x, 0.2, 0.1))
        runs.append(path)
    points = np.array(runs)  # [restart, step, image, pixel]
    scores = np.array([[loss(p) for p in path] for path in runs])
    indices = range(5)
    flat_points = points.reshape(15, 5, 8)
    best = flat_points[scores.reshape(15, 5).argmax(0), indices]
    last = points[scores[:, -1].argmax(0), -1, indices]
    for keep, expected in (("best", best), ("last", last)):
        attack = attacks.PGD(0.2, 0.1, 4, restarts=3, keep=keep)
        np.testing.assert_allclose(attack(loss, x, 3), expected, atol=1e-6)


def first_point(x, restart):
    """Where run number `restart` of seed 3 starts in a ball of radius 0.2."""
    keys = attacks.fold_in(3, tf.range(len(x)))
    start = threat.random_start(threat.Linf(0.2), tf.constant(x), keys, restart)
    return np.clip(start.numpy(), 0, 1)


def plain_step(loss, point, x, eps, step_size):
    """One step of PGD in plain TensorFlow and NumPy."""
    point = tf.constant(point)
    with tf.GradientTape() as tape:
        tape.watch(point)
        value = tf.reduce_sum(loss(point))
    next_point = point.numpy() + step_size * np.sign(
        tape.gradient(value, point).numpy()
    )
    return np.clip(np.clip(next_point, x - eps, x + eps), 0, 1).astype(np.float32)


def test_equals_a_loop_written_by_hand():
    x, loss = images(seed=9), small_net()
    point = x
    for _ in range(7):
        point = plain_step(loss, point, x, EPS, EPS / 4)
    attack = attacks.PGD(EPS, EPS / 4, 7, random_start=False, keep="last")
    np.testing.assert_allclose(attack(loss, x), point, atol=1e-6)


def test_a_batch_of_one_equals_the_image_in_a_batch_of_eight():
    x, loss = images((8, 6, 6, 3), seed=10), small_net()
    attack = attacks.PGD(EPS, EPS / 4, 5, restarts=2)
    seeds = attacks.fold_in(0, tf.range(8))
    batch_result = attack(loss, x, 0).numpy()
    for i in (0, 3, 7):
        image_result = attack(loss, x[i : i + 1], seeds[i : i + 1])
        np.testing.assert_allclose(image_result[0], batch_result[i], atol=1e-5)


def test_images_do_not_scale_each_other():
    # A steep image beside a flat one: each is stepped by its own gradient.
    x, w = images((2, 6), low=0.4, high=0.6), normal((2, 6))
    scale = np.array([[1e-6], [1e6]], np.float32)
    attack = attacks.PGD(0.1, 0.05, 30, norm="l2", keep="last")
    expected = x + 0.1 * w / norms(w)[:, None]
    np.testing.assert_allclose(attack(linear(scale * w), x), expected, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("restarts", [1, 3])
def test_without_a_gradient_nothing_moves(norm, restarts):
    x, w = images(), normal()
    w[1] = 0
    attack = attacks.PGD(EPS, EPS / 4, 3, norm, restarts=restarts)
    got = attack(linear(w), x).numpy()
    np.testing.assert_array_equal(got[1], x[1])
    assert np.all(norms(got - x)[[0, 2, 3]] > 0)


def test_a_start_that_scores_higher_is_kept_where_gradients_vanish():
    # A masked gradient (steps of a staircase): noise that helps must not be dropped.
    x = np.full((64, 2), 0.5, np.float32)

    @attacks.simple
    def staircase(z):
        height = tf.cast(z[:, 0] > 0.5, tf.float32)
        return height + 0 * tf.reduce_sum(z, 1)

    scores = staircase(attacks.PGD(0.1, 0.1, 2)(staircase, x)).numpy()
    restart_scores = staircase(
        attacks.PGD(0.1, 0.1, 2, restarts=12)(staircase, x)
    ).numpy()
    assert 0.3 < scores.mean() < 0.7
    assert restart_scores.all()
    images = attacks.PGD(0.1, 0.1, 2)(
        attacks.simple(lambda z: -staircase(z)), x
    ).numpy()
    assert np.all(images[:, 0] <= 0.5)  # Noise that lowers the score is dropped.


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_broken_losses_never_leave_the_ball(norm, keep):
    x = images((3, 4), low=0.3, high=0.7)
    weights = np.ones((3, 4), np.float32)
    weights[0] = np.nan  # A loss that is NaN, with its gradient.
    weights[1, 0] = np.inf  # An infinite one.
    got = attacks.PGD(0.1, 0.05, 30, norm, keep=keep)(linear(weights), x).numpy()
    order = np.inf if norm == "linf" else 2
    assert np.all(np.linalg.norm(got - x, order, axis=1) <= 0.1)
    if keep == "last":  # By the score no point is better than the start: all infinite.
        assert got[1, 0] > x[1, 0]
    unit = 1 if norm == "linf" else 0.5
    np.testing.assert_allclose(got[2], x[2] + 0.1 * unit, atol=1e-4)


def test_a_pixel_without_a_gradient_does_not_stop_the_others():
    @attacks.simple
    @tf.custom_gradient
    def broken_loss(z):  # A finite loss, whose gradient by the first pixel is NaN.
        slope = tf.constant([[np.nan, 1.0, -1.0]])
        return tf.reduce_sum(z * [[0.0, 1.0, -1.0]], 1), lambda up: up[:, None] * slope

    x = images((1, 3), low=0.3, high=0.7)
    attack = attacks.PGD(0.1, 0.05, 4, random_start=False, keep="last")
    np.testing.assert_allclose(attack(broken_loss, x), x + [[0, 0.1, -0.1]], atol=1e-6)


@pytest.mark.slow
@hypothesis.settings(max_examples=20, deadline=None, derandomize=True)
@hypothesis.given(
    norm=st.sampled_from(["linf", "l2"]),
    dtype=st.sampled_from(["float16", "bfloat16", "float32", "float64"]),
    epsilon=st.floats(0, 1),
    step=st.floats(1e-3, 1),
    keep=st.sampled_from(["best", "last"]),
    seed=st.integers(0, 1000),
)
def test_results_are_inside_ball_and_box_in_every_dtype(
    norm, dtype, epsilon, step, keep, seed
):
    x = tf.cast(np.clip(images((3, 5), seed, -0.3, 1.3), 0, 1), dtype)
    w = normal((3, 5), seed)
    attack = attacks.PGD(epsilon, step, 3, norm, keep=keep)
    keys = attacks.fold_in(seed, tf.range(3))
    # The search itself, run eagerly: compiling takes far longer.
    got = attack.search(attacks.simple(lambda z: linear(w)(tf.sin(9 * z))), x, keys)
    assert got.dtype == x.dtype
    got, x = tf.cast(got, tf.float64).numpy(), tf.cast(x, tf.float64).numpy()
    order = np.inf if norm == "linf" else 2
    assert np.all(np.linalg.norm(got - x, order, axis=1) <= epsilon)
    assert got.min() >= 0
    assert got.max() <= 1


def test_the_image_is_left_untouched_and_the_result_has_no_gradient():
    x, w = tf.constant(images()), tf.Variable(1.0)
    copy = x.numpy().copy()
    attack = attacks.PGD(EPS, EPS, 2)
    with tf.GradientTape() as tape:
        tape.watch(x)
        got = attack(attacks.simple(lambda z: w * tf.reduce_sum(z, [1, 2, 3])), x)
        loss = w * tf.reduce_sum(got)
    w_gradient, x_gradient = tape.gradient(loss, (w, x))
    np.testing.assert_array_equal(x, copy)
    np.testing.assert_allclose(w_gradient, np.sum(got), rtol=1e-6)
    assert x_gradient is None


@pytest.mark.slow
def test_the_graph_does_not_grow_with_steps_or_restarts():
    traces = []

    @attacks.simple
    def loss(x):
        traces.append(x)
        return tf.reduce_sum(tf.sin(x), [1, 2, 3])

    sizes = set()
    for steps, restarts in ((2, 2), (100, 9)):
        attack = attacks.PGD(EPS, 1 / 255, steps, restarts=restarts)
        graph = tf.function(
            lambda x, a=attack: a(loss, x), autograph=False
        ).get_concrete_function(tf.TensorSpec([2, 4, 4, 3]))
        functions = graph.graph.as_graph_def().library.function
        sizes.add(sum(len(f.node_def) for f in functions))
        assert len(traces) == 2  # Once in the loop, once for the last point.
        traces.clear()
    assert len(sizes) == 1


@pytest.mark.slow
def test_unknown_batch_and_image_sizes():
    # One graph for batches of any size, as under tf.data without drop_remainder.
    attack = attacks.PGD(EPS, EPS / 2, 3, norm="l2", restarts=2)
    spec = tf.TensorSpec([None, None, None, 3])
    graph = tf.function(lambda x: attack(small_net(), x), input_signature=[spec])
    for shape in ((2, 5, 6, 3), (3, 4, 4, 3)):
        x = images(shape)
        np.testing.assert_allclose(graph(x), attack(small_net(), x), atol=1e-6)


@pytest.mark.slow
def test_two_replicas_equal_one(mirrored):
    x, loss = images((8, 6, 6, 3), seed=11), small_net()
    attack = attacks.PGD(EPS, EPS / 4, 4, restarts=2)
    expected = attack(loss, x, seed=5).numpy()
    seeds = attacks.fold_in(5, tf.range(8))

    def halves(values):
        return mirrored.experimental_distribute_values_from_function(
            lambda context: tf.constant(
                np.split(np.asarray(values), 2)[context.replica_id_in_sync_group]
            )
        )

    def replica(part, part_seeds):
        return attack(loss, part, part_seeds), attack(loss, part, 5)

    compiled = tf.function(lambda *args: mirrored.run(replica, args))
    seeds_result, int_result = compiled(halves(x), halves(seeds))
    eager_result = mirrored.run(lambda part: attack(loss, part, 5), (halves(x),))
    for result in (seeds_result, int_result, eager_result):
        joined = mirrored.gather(result, axis=0)
        np.testing.assert_allclose(joined, expected, atol=1e-6)


def test_progress_is_the_share_of_steps_done():
    # The gradient's sign follows the progress: up in steps 0 to 2, down in step 3.
    x = np.full((1, 1), 0.5, np.float32)
    attack = attacks.PGD(0.4, 0.1, 4, random_start=False, keep="last")

    def loss(z, progress):
        return z[:, 0] * tf.where(progress < 0.7, 1.0, -1.0)

    np.testing.assert_allclose(attack(loss, x), [[0.7]], atol=1e-6)

    def exact_loss(z, progress):  # A step is up only at these numbers.
        is_expected = tf.reduce_any(tf.equal(progress, [0.0, 0.25, 0.5, 0.75]))
        return z[:, 0] * tf.where(is_expected, 1.0, -1.0)

    np.testing.assert_allclose(attack(exact_loss, x), [[0.9]], atol=1e-6)


def test_a_function_that_autograph_rewrites_may_attack():
    x, w = images((2, 3), low=0.3, high=0.6), normal((2, 3))
    got = tf.function(lambda x: attacks.FGSM(0.1)(linear(w), x))(x)
    np.testing.assert_allclose(got, x + 0.1 * np.sign(w), atol=1e-6)


def test_other_defaults_of_an_objective_are_left_alone():
    x, w = images((2, 3), low=0.3, high=0.6), normal((2, 3))
    attack = attacks.FGSM(0.1)
    got = attack(attacks.simple(lambda z, weights=w: tf.reduce_sum(weights * z, 1)), x)
    np.testing.assert_allclose(got, x + 0.1 * np.sign(w), atol=1e-6)


def test_the_score_decides_and_the_other_is_climbed():
    # Climbs x, but judges by nearness to 0.585: the point after step 2 is best.
    x = np.full((1, 1), 0.5, np.float32)
    attack = attacks.PGD(0.3, 0.04, 6, random_start=False)
    got = attack(attacks.simple(lambda z: (z[:, 0], -tf.abs(z[:, 0] - 0.585))), x)
    np.testing.assert_allclose(got, [[0.58]], atol=1e-6)


def test_a_closure_that_changes_is_seen():
    # A plain callable is traced in each eager call: nothing of an old batch is kept.
    x, weights = images((2, 3), low=0.3, high=0.6), {}
    loss = attacks.simple(lambda z: tf.reduce_sum(weights["w"] * z, 1))
    for sign in (1.0, -1.0):
        weights["w"] = sign
        np.testing.assert_allclose(
            attacks.FGSM(0.1)(loss, x), x + 0.1 * sign, atol=1e-6
        )


def test_memory_of_traces_is_given_back():
    x = tf.constant(images((2, 3)))
    deletions = []

    class Marker:
        def __del__(self):
            deletions.append(True)

    for _ in range(3):
        marker = Marker()
        attacks.FGSM(0.1)(attacks.simple(lambda z, m=marker: tf.reduce_sum(z, 1)), x)
        del marker
    gc.collect()
    assert len(deletions) == 3


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            lambda x, _: tf.reduce_sum(x),
            r"one number per image, shape \(4,\), but its shape is",
        ),
        (lambda x, _: x, r"its shape is \(4, 5, 6, 3\)"),
        (lambda x, _: (x, x, x), "got a tuple of 3"),
        (lambda x, _: tf.zeros(4), "must depend on the images"),
        (lambda x: x, r"progress\), but this one takes \(x\); wrap a"),
        (lambda x, y=0: x, r"\(x, y=0\); wrap a plain f\(x\) in attacks.simple\(f\)"),
        (lambda x, y, z: x, r"but this one takes \(x, y, z\); wrap"),
    ],
)
def test_objectives_of_another_form_are_refused(objective, message):
    with pytest.raises(InputError, match=message):
        attacks.PGD(EPS, EPS, 2)(objective, images())


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 3), np.uint8), "got uint8"),
        (np.float32(0.5), r"of shape \(\)"),
        (
            np.full((2, 3), 255.0),
            r"Images must be in \[0, 1\]; got values from 255 to 255",
        ),
        (np.array([[0.0, np.nan]]), "got 1 values that are NaN"),
    ],
)
def test_images_of_another_form_are_refused(x, message):
    with pytest.raises(InputError, match=message):
        attacks.FGSM(EPS)(linear(1.0), x)


def test_images_a_rounding_error_outside_the_box_are_taken():
    got = attacks.FGSM(0.1)(linear(1.0), np.array([[-3e-8, 1.0000001]], np.float32))
    np.testing.assert_allclose(got, [[0.1, 1.0]], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"epsilon": 8},
            r"epsilon must be in units of \[0, 1\] \(8/255, not 8\); got 8",
        ),
        ({"step_size": 2}, r"step_size must be in units of \[0, 1\] \(2/255, not 2\)"),
        ({"step_size": 0}, "step_size must be above 0; got 0"),
        (
            {"step_size": 2e6, "norm": "l2"},
            r"step_size must be an l2 norm for .*, up to 1e6; got 2e\+06",
        ),
        ({"step_size": None}, "step_size must be a finite number; got None"),
        ({"steps": 0}, "steps must be a whole number, 1 or more; got 0"),
        ({"steps": 2.5}, "steps must be a whole number, 1 or more; got 2.5"),
        ({"restarts": 0}, "restarts must be a whole number, 1 or more; got 0"),
        ({"norm": "l1"}, "norm must be one of linf, l2; got 'l1'"),
        ({"keep": "all"}, "keep must be 'best' or 'last'; got 'all'"),
        ({"random_start": 1}, "random_start must be True or False; got 1"),
    ],
)
def test_bad_settings_are_refused(change, message):
    attack = attacks.PGD(EPS, EPS / 4, 20)
    with pytest.raises(InputError, match=message):
        dataclasses.replace(attack, **change)


def test_the_table_makes_every_attack_from_the_same_settings():
    settings = {"epsilon": 0.1, "step_size": 0.02, "steps": 7, "norm": "l2"}
    run_settings = {"restarts": 2, "random_start": True}
    names = [*kinds.member_names(), "sea"]
    records = {name: attacks.make(name, **settings, **run_settings) for name in names}
    assert records["pgd"] == attacks.PGD(0.1, 0.02, 7, "l2", restarts=2)
    assert records["fgsm"] == attacks.FGSM(0.1, "l2")
    assert (records["fgsm"].passes, records["pgd"].passes) == (1, 2 * 8)
