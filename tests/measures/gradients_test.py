# SPDX-License-Identifier: Apache-2.0
"""The theory's numbers: against closed forms, brute force and finite differences."""

from __future__ import annotations

import itertools
import math
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtr_tf import models
from mtr_tf import tasks as tasks_lib
from mtr_tf.errors import InputError
from mtr_tf.measures import gradients as gradients_lib
from mtr_tf.measures import steps as steps_lib
from mtr_tf.tasks import task_set

# Tasks of one number per pixel, whose loss is the absolute error.
MAPS = (
    "depth",
    "depth_euclidean",
    "edge_texture",
    "edge_occlusion",
    "keypoints2d",
    "keypoints3d",
    "reshading",
    "curvature",  # Two numbers.
)
SIDE = 6
ENTRIES = SIDE * SIDE * 3


def linear_model(weights: np.ndarray) -> keras.Model:
    """Each task's output is its row of weights [M, D] times the image, at one pixel."""
    image = keras.Input((SIDE, SIDE, 3))
    flat = keras.layers.Flatten()(image)
    outputs = {}
    for task, row in zip(MAPS, weights, strict=False):
        channels = tasks_lib.TASKS[task].channels
        layer = keras.layers.Dense(channels, use_bias=False)
        outputs[task] = keras.layers.Reshape((1, 1, channels))(layer(flat))
        layer.set_weights([np.repeat(row[:, np.newaxis], channels, axis=1)])
    return keras.Model(image, outputs)


def low_targets(tasks, count):
    """Targets below all outputs: each loss is its task's output plus 1000."""
    targets = {t: np.full((count, 1, 1, _channels(t)), -1e3, "f") for t in tasks}
    masks = {t: np.ones((count, 1, 1), "f") for t in tasks}
    return targets, masks


def _channels(task):
    return tasks_lib.TASKS[task].channels


def directions(correlation: np.ndarray) -> np.ndarray:
    """Vectors [M, D] with exactly these inner products."""
    random = np.random.default_rng(0).normal(size=(ENTRIES, len(correlation)))
    orthonormal, _ = np.linalg.qr(random)
    return np.linalg.cholesky(correlation) @ orthonormal.T


def measured(model, images, targets, masks, tasks):
    """(products [N, M, M], l1 norms of sums [N, S]), as the measure has them."""
    _, gradients = gradients_lib.task_gradients(model, images, targets, masks, tasks)
    return (
        gradients_lib.gram(gradients).numpy(),
        gradients_lib.l1_of_sums(gradients).numpy(),
    )


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.999999])
def test_linear_networks_with_prescribed_correlation(rho):
    # T2, T3 and T4 of the paper: .7071, .5, .3536; .8062, .6892, .6225; 1, 1, 1.
    correlation = np.full((8, 8), rho) + (1 - rho) * np.eye(8)
    model = linear_model(directions(correlation))
    images = np.random.default_rng(1).uniform(size=(2, SIDE, SIDE, 3)).astype("f")
    targets, masks = low_targets(MAPS, 2)
    products, _ = measured(model, images, targets, masks, MAPS)
    np.testing.assert_allclose(products, np.stack([correlation] * 2), atol=1e-6)
    ones = np.ones((2, 8))
    sizes = gradients_lib.members(8).sum(axis=1)
    sums = gradients_lib.l2_of_sums(products, ones)
    expected = np.sqrt((1 + (sizes - 1) * rho) / sizes)
    np.testing.assert_allclose(sums / sizes, np.stack([expected] * 2), rtol=1e-5)
    factors = {0.0: (0.7071, 0.5, 0.3536), 0.3: (0.8062, 0.6892, 0.6225)}
    by_size = gradients_lib.by_size(sums / sizes)[0]
    np.testing.assert_allclose(
        by_size[[1, 3, 7]], factors.get(rho, (1, 1, 1)), atol=1e-4
    )
    np.testing.assert_allclose(gradients_lib.factor(rho, [2, 4, 8]), by_size[[1, 3, 7]])
    covariance = gradients_lib.covariance(products, ones)
    assert gradients_lib.mean_correlation(covariance) == pytest.approx(rho, abs=1e-6)
    growth = gradients_lib.by_size(sums)[0, [1, 3, 7]]
    np.testing.assert_allclose(growth, np.array([2, 4, 8]) * by_size[[1, 3, 7]])
    if not rho:
        np.testing.assert_allclose(growth, [1.41, 2.00, 2.83], atol=0.01)
        slope = gradients_lib.slope(np.arange(1, 9), by_size)
        assert slope == pytest.approx(-0.5, abs=1e-6)


def test_random_gradients_follow_the_theorem():
    # As simulated with 3000 entries; the same ratios hold for the l1 norm.
    rho, count, n = 0.3, 8, 12
    shared_part, own_part = np.random.default_rng(0).normal(size=(2, n, count, 3000))
    gradients = math.sqrt(rho) * shared_part[:, :1] + math.sqrt(1 - rho) * own_part
    gradients = tf.constant(gradients, tf.float32)
    products = gradients_lib.gram(gradients).numpy()
    sizes = gradients_lib.members(count).sum(axis=1)
    l2 = gradients_lib.l2_of_sums(products, np.ones((n, count))) / sizes
    l1 = gradients_lib.l1_of_sums(gradients).numpy() / sizes
    for norms in (l2, l1):
        curve = gradients_lib.mean(gradients_lib.by_size(norms))
        np.testing.assert_allclose(
            curve[[1, 3, 7]] / curve[0], [0.8062, 0.6892, 0.6225], atol=0.01
        )
    # The prediction from measured covariances is the root mean square exactly.
    covariance = gradients_lib.covariance(products, np.ones((n, count)))
    prediction = gradients_lib.predicted(
        np.sqrt(np.diagonal(covariance)), gradients_lib.correlation(covariance)
    )
    exact = gradients_lib.root_mean_square(l2)
    np.testing.assert_allclose(prediction, exact, rtol=1e-9)
    ones = np.array([[1.0] * k + [0] * (count - k) for k in (1, 3, 8)])
    by_hand = np.sqrt(np.einsum("si,ij,sj->s", ones, covariance, ones)) / [1, 3, 8]
    np.testing.assert_allclose(prediction[[0, 6, 254]], by_hand)


def test_jensen_and_the_mean_over_sets():
    gradients = np.random.default_rng(3).standard_t(3, size=(9, 5, 40))
    gradients *= np.arange(1, 6)[:, np.newaxis]  # Unequal tasks.
    products = gradients @ gradients.transpose(0, 2, 1)
    ones = np.ones((9, 5))
    sizes = gradients_lib.members(5).sum(axis=1)
    norms = gradients_lib.l2_of_sums(products, ones) / sizes
    exact = gradients_lib.root_mean_square(norms)
    assert (gradients_lib.mean(norms) <= exact).all()
    # Over all sets of a size the theorem with the mean correlation is exact too.
    covariance = gradients_lib.covariance(products, ones)
    rho = gradients_lib.mean_correlation(covariance)
    sigma = math.sqrt(np.trace(covariance) / 5)
    squares = gradients_lib.mean(gradients_lib.by_size(norms**2))
    theorem = sigma * gradients_lib.factor(rho, np.arange(1, 6))
    np.testing.assert_allclose(theorem, np.sqrt(squares))


@pytest.fixture(scope="module")
def tiny():
    """An untrained convolutional model of three tasks, its pictures and targets."""
    tasks = ("seg", "depth", "normal")
    keras.utils.set_random_seed(0)
    model = models.build("tiny", tasks, (16, 16, 3), 4)
    random = np.random.default_rng(0)
    targets = {
        "seg": random.integers(0, 4, (4, 16, 16)),
        "depth": random.uniform(1, 3, (4, 16, 16, 1)).astype("f"),
        "normal": random.normal(size=(4, 16, 16, 3)).astype("f"),
    }
    masks = {t: random.integers(0, 2, (4, 16, 16)).astype("f") for t in tasks}
    masks["depth"][2] = 0  # This picture has no depth.
    images = random.uniform(0.2, 0.8, (4, 16, 16, 3)).astype("f")
    return model, tasks, images, targets, masks


def test_against_loops_over_images_and_sets(tiny):
    model, tasks, images, targets, masks = tiny
    products, l1 = measured(model, images, targets, masks, tasks)
    l2 = gradients_lib.l2_of_sums(products, np.ones((4, 3)))

    @tf.function(autograph=False)
    def gradient(image, target, mask, weights):
        with tf.GradientTape() as tape:
            tape.watch(image)
            outputs = model(image, training=False)
            losses = tasks_lib.task_losses(tasks, outputs, target, mask)
            total = tf.reduce_sum(tf.stack(list(losses.values())) * weights[:, None])
        return tape.gradient(total, image)

    for i in range(4):
        part = slice(i, i + 1)
        for number in range(1, 8):
            members = [float(number >> t & 1) for t in range(3)]
            slope = gradient(
                tf.constant(images[part]),
                {t: targets[t][part] for t in tasks},
                {t: masks[t][part] for t in tasks},
                tf.constant(members),
            ).numpy()
            assert l2[i, number - 1] == pytest.approx(np.linalg.norm(slope), rel=1e-4)
            assert l1[i, number - 1] == pytest.approx(np.abs(slope).sum(), rel=1e-4)
    assert not products[2, 1].any()  # No depth there.
    valid = gradients_lib.valid(masks, tasks).numpy()
    np.testing.assert_array_equal(valid[:, 1], [True, True, False, True])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_first_order_lemma_by_finite_differences(tiny, norm):
    model, tasks, images, targets, masks = tiny
    losses, gradients = gradients_lib.task_gradients(
        model, images, targets, masks, tasks
    )
    slope = gradients.numpy()[:, 2].reshape(images.shape)
    dual = np.abs(slope).sum((1, 2, 3))
    move = np.sign(slope)
    if norm == "l2":
        dual = np.sqrt(np.square(slope).sum((1, 2, 3)))
        move = slope / dual[:, None, None, None]
    step = 2e-4 if norm == "linf" else 2e-3
    ends = [
        tasks_lib.task_losses(
            tasks, model(images + s * move, training=False), targets, masks
        )["normal"].numpy()
        for s in (-step, step)
    ]
    np.testing.assert_allclose((ends[1] - ends[0]) / (2 * step), dual, rtol=0.01)
    clean_losses = tasks_lib.task_losses(
        tasks, model(images, training=False), targets, masks
    )
    expected = np.stack([clean_losses[task] for task in tasks], axis=1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_first_order_is_exact_on_linear_networks(norm):
    model = linear_model(directions(np.eye(2)) * 50)
    images = np.full((2, SIDE, SIDE, 3), 0.5, "f")
    tasks = MAPS[:2]
    targets, masks = low_targets(tasks, 2)
    products, l1 = measured(model, images, targets, masks, tasks)
    l2 = gradients_lib.l2_of_sums(products, np.ones((2, 2)))
    eps = 0.01
    batch = {"image": tf.constant(images), "targets": targets, "masks": masks}
    subject = types.SimpleNamespace(model=model, tasks=task_set(tasks))
    cases = ((tasks[:1], 6), (tasks[1:], 1), (tasks, 6))  # In the order of the sets.
    for place, (group, steps) in enumerate(cases):
        dual = (l1 if norm == "linf" else l2)[:, place] / len(group)
        step = steps_lib.first_order(subject, group, norm, steps)
        result = tf.function(step, autograph=False)(batch, tf.constant(eps, tf.float64))
        np.testing.assert_allclose(result["norm"], dual, rtol=1e-4)
        rise = result["after"] - result["before"]
        np.testing.assert_allclose(rise, eps * dual, rtol=2e-3)


def test_measures_are_about_the_attacked_channels_alone():
    # In linear nets, the norms are those of the weights of these channels.
    weights, channels = directions(np.eye(2)) * 50, (2, 0)
    model, tasks = linear_model(weights), MAPS[:2]
    images = np.full((2, SIDE, SIDE, 3), 0.5, "f")
    targets, masks = low_targets(tasks, 2)
    batch = {"image": tf.constant(images), "targets": targets, "masks": masks}
    w = weights.reshape(2, SIDE, SIDE, 3)[..., list(channels)].reshape(2, -1)

    result = steps_lib.gradients(model, tasks, channels)(batch)
    np.testing.assert_allclose(result["gram"], [w @ w.T] * 2, rtol=1e-3, atol=1e-3)
    l1 = np.abs(np.stack([w[0], w[1], w.sum(axis=0)])).sum(axis=1)
    np.testing.assert_allclose(result["l1"], [l1[:2]] * 2, rtol=1e-4)
    sums = steps_lib.l1_of_sets(model, tasks, channels)(batch, tf.ones(2))
    np.testing.assert_allclose(sums["raw"], [l1] * 2, rtol=1e-4)

    subject = types.SimpleNamespace(model=model, tasks=task_set(tasks))
    step = steps_lib.first_order(subject, tasks[:1], "linf", 3, channels)
    result = tf.function(step, autograph=False)(batch, tf.constant(0.01, tf.float64))
    np.testing.assert_allclose(result["norm"], [l1[0]] * 2, rtol=1e-4)
    rise = result["after"] - result["before"]
    np.testing.assert_allclose(rise, [0.01 * l1[0]] * 2, rtol=2e-3)


def test_l1_of_sums_in_parts(monkeypatch):
    gradients = np.random.default_rng(0).normal(size=(3, 4, 50)).astype("f")
    members = gradients_lib.members(4)
    expected = np.abs(np.einsum("sm,bmd->bsd", members, gradients)).sum(axis=2)
    for chunk in (2**22, 3 * 16 * 7, 1):
        monkeypatch.setattr(gradients_lib, "_CHUNK", chunk)
        result = gradients_lib.l1_of_sums(tf.constant(gradients))
        np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_sets_are_numbered_by_bits():
    expected = [[1, 0], [0, 1], [1, 1]]
    np.testing.assert_array_equal(gradients_lib.members(2), expected)


def test_normalisations_by_hand():
    norms = np.array([[1.0, 4], [3, np.nan], [0, 8]])
    nan = np.nan
    raw = gradients_lib.scales(norms, "raw")
    np.testing.assert_array_equal(raw, [[1, 1], [1, nan], [1, 1]])
    unit = gradients_lib.scales(norms, "unit")
    np.testing.assert_allclose(unit, [[1, 1 / 4], [1 / 3, nan], [nan, 1 / 8]])
    dataset = gradients_lib.scales(norms, "dataset")
    first, second = math.sqrt(3 / 10), math.sqrt(2 / 80)
    expected = [[first, second], [first, nan], [first, second]]
    np.testing.assert_allclose(dataset, expected)


def test_images_without_a_task_are_left_out_of_its_sets():
    gradients = np.random.default_rng(0).normal(size=(3, 2, 5))
    products = gradients @ gradients.transpose(0, 2, 1)
    scale = np.array([[1, 1], [1, np.nan], [1, 1]])
    sums = gradients_lib.l2_of_sums(products, scale)
    np.testing.assert_array_equal(np.isnan(sums[1]), [False, True, True])
    expected = np.linalg.norm(gradients[0].sum(axis=0))
    assert sums[0, 2] == pytest.approx(expected)
    covariance = gradients_lib.covariance(products, scale)
    assert covariance[0, 0] == pytest.approx(products[:, 0, 0].mean())
    assert covariance[0, 1] == pytest.approx(products[[0, 2], 0, 1].mean())


def test_pixels_against_loops_and_the_formula_over_all_sets(tiny):
    # Over all sets of n pixels, mean squared norms are (1 + (n - 1) rho) / n exactly.
    model, _, images, targets, _ = tiny
    tasks, height, width = ("depth",), 16, 16
    places = [(0, 3), (5, 5), (9, 14), (15, 0)]
    full_mask = np.ones((4, height, width), "f")
    step = steps_lib.gradients(model, tasks)
    run = tf.function(lambda pixels: step(batch, pixels), autograph=False)
    batch = {
        "image": tf.constant(images),
        "targets": targets,
        "masks": {"depth": full_mask},
    }

    def gradient_of_one(row, column):
        x = tf.constant(images)
        with tf.GradientTape() as tape:
            tape.watch(x)
            error = model(x, training=False)["depth"] - targets["depth"]
            loss = tf.reduce_sum(tf.abs(error[:, row, column, 0]))
        return tape.gradient(loss, x).numpy().reshape(4, -1)

    pixel_gradients = np.stack([gradient_of_one(*place) for place in places], axis=1)
    counts, norms = [1, 2, 3, 4], []
    for n in counts:
        squares = []
        for subset in itertools.combinations(range(4), n):
            mask = np.zeros((height, width), "f")
            for place in subset:
                mask[places[place]] = 1
            squares_of_set = run(tf.constant(mask))["gram"].numpy()[:, 0, 0]
            expected = pixel_gradients[:, list(subset)].mean(axis=1)
            expected = np.square(expected).sum(axis=1)
            np.testing.assert_allclose(squares_of_set, expected, rtol=1e-4, atol=1e-12)
            squares.append(squares_of_set)
        norms.append(np.sqrt(np.mean(squares)))
    sigma, rho = gradients_lib.fit_factor(counts, np.array(norms))
    np.testing.assert_allclose(
        sigma * gradients_lib.factor(rho, counts), norms, rtol=1e-5
    )
    products = pixel_gradients @ pixel_gradients.transpose(0, 2, 1)
    covariance = products.mean(axis=0)
    assert rho == pytest.approx(gradients_lib.mean_correlation(covariance), rel=1e-3)
    assert sigma == pytest.approx(math.sqrt(np.trace(covariance) / 4), rel=1e-4)


def test_degenerate_numbers_are_nan_not_wrong():
    assert np.isnan(gradients_lib.slope([1, 2], np.array([0.0, 1])))
    assert np.isnan(gradients_lib.slope([1], np.array([1.0])))
    assert np.isnan(gradients_lib.mean_correlation(np.eye(1)))
    assert np.isnan(gradients_lib.fit_factor([1, 4], np.zeros(2))).all()
    assert gradients_lib.slope([1, 2, 4], np.array([4.0, 2, 1])) == pytest.approx(-1)


def test_a_model_without_the_task_is_refused(tiny):
    model, _, images, targets, masks = tiny
    with pytest.raises(InputError, match="reshading"):
        gradients_lib.task_gradients(
            lambda x: model(x), images, targets, masks, ("seg", "reshading")
        )


def test_any_callable_with_named_outputs_will_do(tiny):
    model, tasks, images, targets, masks = tiny
    arguments = (images, targets, masks, tasks)
    model_result = gradients_lib.task_gradients(model, *arguments)
    callable_result = gradients_lib.task_gradients(
        lambda x: model(x, training=False), *arguments
    )
    for a, b in zip(model_result, callable_result, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_gradients_of_half_precision_do_not_underflow():
    """A pixel's share of a mean over 512 x 512 is below what float16 can hold."""
    side = 512
    image = keras.Input((side, side, 3))
    policy = keras.DTypePolicy("mixed_float16")
    layer = keras.layers.Conv2D(1, 1, dtype=policy, kernel_initializer="ones")
    output = keras.layers.Activation("linear", dtype="float32")(layer(image))
    model = keras.Model(image, {"depth": output})
    images = np.random.default_rng(0).uniform(size=(1, side, side, 3)).astype("f")
    targets = {"depth": np.zeros((1, side, side, 1), np.float32)}
    masks = {"depth": np.ones((1, side, side), np.float32)}
    arguments = (model, images, targets, masks, ("depth",))
    in_graph = tf.function(gradients_lib.task_gradients, autograph=False)
    _, gradient = in_graph(*arguments)
    np.testing.assert_allclose(gradient, 1 / side**2, rtol=1e-3)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_they_do_not_underflow_outside_a_graph_either(precision, wrapped):
    side, weight = 256, 0.013
    image = keras.Input((side, side, 3))
    policy = keras.DTypePolicy(precision)
    initializer = keras.initializers.Constant(weight)
    layer = keras.layers.Conv2D(1, 1, dtype=policy, kernel_initializer=initializer)
    output = keras.layers.Activation("linear", dtype="float32")(layer(image))
    model = keras.Model(image, {"depth": output})
    images = np.random.default_rng(0).uniform(size=(2, side, side, 3)).astype("f")
    targets = {"depth": np.zeros((2, side, side, 1), np.float32)}
    masks = {
        "depth": np.stack([np.ones((side, side), "f"), np.zeros((side, side), "f")])
    }
    _, gradient = gradients_lib.task_gradients(
        (lambda x: model(x)) if wrapped else model, images, targets, masks, ("depth",)
    )
    np.testing.assert_allclose(gradient[0], weight / side**2, rtol=1e-3)
    np.testing.assert_array_equal(gradient[1], 0)


def test_what_is_predicted_is_unknown_only_of_sets_with_a_task_or_pair_that_is():
    correlation = np.array([[1, 0.5, 0.0], [0.5, 1, np.nan], [0.0, np.nan, 1]])
    prediction = gradients_lib.predicted(np.array([2.0, 2.0, 4.0]), correlation)
    pair = math.sqrt(4 + 4 + 2 * 0.5 * 4) / 2
    unequal_pair = math.sqrt(4 + 16) / 2
    expected = [2, 2, pair, 4, unequal_pair, np.nan, np.nan]
    np.testing.assert_allclose(prediction, expected)
    correlation[2], correlation[:, 2] = np.nan, np.nan  # No image has the task.
    prediction = gradients_lib.predicted(np.array([2.0, 2.0, np.nan]), correlation)
    np.testing.assert_allclose(prediction, [2, 2, pair, *[np.nan] * 4])
