# SPDX-License-Identifier: Apache-2.0
"""Balances against float64 NumPy with finite differences, and their definitions."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiers_fixture import slow

from mtr_tf import attacks
from mtr_tf.attacks import base
from mtr_tf.attacks.balance import BALANCES

NAMES = ("seg", "depth", "autoencoder")
SHAPE = (3, 2, 2, 3)  # Small enough for a difference per entry.
RNG = np.random.default_rng(0)
HEADS = {
    "seg": RNG.normal(size=(3, 4)),
    "depth": RNG.normal(size=(3, 1)),
    "autoencoder": RNG.normal(size=(3, 3)),
}
TARGETS = {
    "seg": RNG.integers(0, 4, SHAPE[:3]).astype(np.int32),
    "depth": (3 * RNG.normal(size=(*SHAPE[:3], 1))).astype(np.float32),
    "autoencoder": RNG.normal(size=SHAPE).astype(np.float32),
}
MASKS = {name: np.ones(SHAPE[:3], np.float32) for name in NAMES}
X = RNG.uniform(size=SHAPE).astype(np.float32)
START = RNG.uniform(size=SHAPE).astype(np.float32)
CLEAN = RNG.uniform(size=SHAPE).astype(np.float32)


def net(x):
    """One matrix per task: pixels do not interact."""
    return {name: x @ tf.constant(w, x.dtype) for name, w in HEADS.items()}


def make(balance, tasks=NAMES, model=net, masks=MASKS, **settings):
    return attacks.objective(model, TARGETS, masks, tasks, balance, **settings)


def by_hand(x):
    """Each task's loss of each image in float64, [tasks, batch]."""
    outputs = {name: x.astype(float) @ w for name, w in HEADS.items()}
    z, y = outputs["seg"], TARGETS["seg"][..., None]
    ce = np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, y, -1)[..., 0]
    depth = np.abs(outputs["depth"] - TARGETS["depth"])[..., 0]
    square = np.square(outputs["autoencoder"] - TARGETS["autoencoder"]).mean(-1)
    return np.stack([v.mean((1, 2)) for v in (ce, depth, square)])


def slopes_by_hand(x):
    """Each task's gradient by central differences, [tasks, batch, H, W, 3]."""
    slopes = np.zeros((3, *SHAPE))
    for index in np.ndindex(SHAPE[1:]):
        move = np.zeros(SHAPE)
        move[:, *index] = 1e-6  # In all images at once: they do not interact.
        rise = by_hand(x + move) - by_hand(x - move)
        slopes[:, :, *index] = rise / 2e-6
    return slopes


def gradient(objective, x, progress=0.0):
    slope, score = base.gradient(objective, tf.constant(x), tf.constant(progress))
    return slope.numpy(), score.numpy()


def weights_by_hand(balance, losses, start, clean, progress):
    """What each task's gradient is multiplied by, [tasks, batch]."""
    reference = clean if BALANCES[balance].compared == "clean" else start
    growth = losses / reference
    ones = np.ones_like(losses)
    if balance == "sum":
        return ones
    if balance == "mean":
        return ones / 3
    if balance == "dgba":
        return 1 / losses
    if balance == "dgba_paper":
        return 1 / clean
    if balance == "wgd":
        return growth / growth.mean(0)
    if balance == "wgd_released":
        return ones if progress == 0 else 1 / start
    if balance == "worst" and progress == 0:
        return 1 / clean / 3
    return (growth == growth.max(0)) / clean  # "worst"


@pytest.mark.parametrize("progress", [0.0, 0.5])
@pytest.mark.parametrize("balance", [b for b in BALANCES if not BALANCES[b].steepest])
def test_gradients_are_weighted_sums_of_finite_differences(balance, progress):
    objective = base.begin(make(balance), tf.constant(START), tf.constant(CLEAN))
    got, _ = gradient(objective, X, progress)
    losses = [by_hand(x) for x in (X, START, CLEAN)]
    weights = weights_by_hand(balance, *losses, progress)
    task_slopes = slopes_by_hand(X)
    np.testing.assert_allclose(
        got, np.einsum("tb,tbhwc->bhwc", weights, task_slopes), rtol=1e-4, atol=1e-5
    )
    # Outside a run the point itself is the start.
    got, _ = gradient(make(balance), X, progress)
    point_losses = by_hand(X)
    weights = weights_by_hand(
        balance, point_losses, point_losses, point_losses, progress
    )
    if balance == "worst" and progress:
        weights = 1 / point_losses / 3  # All tie.
    np.testing.assert_allclose(
        got, np.einsum("tb,tbhwc->bhwc", weights, task_slopes), rtol=1e-4, atol=1e-5
    )


def test_per_task_balances_are_their_definitions():
    task_slopes = slopes_by_hand(X)
    norms = np.sqrt(np.square(task_slopes).sum((2, 3, 4), keepdims=True))
    got, _ = gradient(make("normalized"), X)
    np.testing.assert_allclose(got, (task_slopes / norms).sum(0), rtol=1e-4, atol=1e-5)
    got, _ = gradient(make("sign_sum"), X)
    np.testing.assert_array_equal(got, np.sign(task_slopes).sum(0))
    for balance in ("normalized", "sign_sum"):
        value = make(balance)(X)[0]
        np.testing.assert_allclose(value, by_hand(X).sum(0), rtol=1e-5)
        targeted_slope, _ = gradient(make(balance, targeted=True), X)
        np.testing.assert_allclose(targeted_slope, -gradient(make(balance), X)[0])
        # Upstream gradients pass through, image by image.
        x = tf.constant(X)
        with tf.GradientTape() as tape:
            tape.watch(x)
            multiples = tf.constant([2.0, 0.0, -1.0]) * make(balance)(x)[0]
        ratio = tape.gradient(multiples, x) / -targeted_slope
        np.testing.assert_allclose(ratio[0], np.full(SHAPE[1:], 2), rtol=1e-5)
        assert not np.any(ratio[1])
        np.testing.assert_allclose(ratio[2], np.full(SHAPE[1:], -1), rtol=1e-5)


def test_scores_by_hand():
    losses, clean_losses = by_hand(X), by_hand(CLEAN)
    geometric_mean = np.log(losses).mean(0)
    scores = {
        "sum": losses.sum(0),
        "mean": losses.mean(0),
        "worst": np.log(losses).max(0),
    }
    scores |= {"dgba_paper": losses.sum(0)}
    run_scores = {**scores, "worst": np.log(losses / clean_losses).max(0)}
    run_scores |= {"dgba_paper": (losses / clean_losses).sum(0)}
    for balance in BALANCES:
        objective = make(balance)
        score = scores.get(balance, geometric_mean)
        for progress in (0.0, 0.7):
            got = objective(X, progress)[1]
            np.testing.assert_allclose(got, score, rtol=1e-4, atol=1e-5)
        score = run_scores.get(balance, geometric_mean)
        for start in (START, X):  # The start does not matter.
            run_objective = objective.begin(tf.constant(start), tf.constant(CLEAN))
            np.testing.assert_allclose(
                run_objective(X, 0.7)[1], score, rtol=1e-4, atol=1e-5
            )


def test_relative_balances_and_scores_do_not_see_a_task_s_scale():
    losses = {name: tf.constant([0.5, 2.0]) for name in NAMES}
    for balance, record in BALANCES.items():
        if not record.relative or balance == "wgd":  # Its r_t only cancel the scale.
            continue
        large_losses = {**losses, "depth": 100 * losses["depth"]}
        start = {**losses, "depth": tf.constant([3.0, 1.0])}
        large_start = {**start, "depth": 100 * start["depth"]}
        np.testing.assert_allclose(
            record(losses, start, 0.5),
            record(large_losses, large_start, 0.5),
            rtol=1e-6,
        )


@pytest.mark.parametrize("balance", BALANCES)
def test_a_task_without_a_valid_pixel_takes_no_part(balance):
    masks = {**MASKS, "depth": np.zeros_like(MASKS["depth"])}
    for progress in (0.0, 0.5):
        slopes, scores = zip(
            *(
                gradient(make(balance, masks=masks, tasks=tasks), X, progress)
                for tasks in (NAMES, ("seg", "autoencoder"))
            ),
            strict=True,
        )
        share = (
            2 / 3 if balance == "mean" or (balance == "worst" and not progress) else 1
        )
        if balance == "wgd":  # One factor scales all r_t.
            share = 3 / 2
        np.testing.assert_allclose(slopes[0], share * slopes[1], rtol=1e-5, atol=1e-6)
        assert np.isfinite(scores).all()
    empty_masks = {name: np.zeros_like(MASKS[name]) for name in NAMES}
    slope, score = gradient(make(balance, masks=empty_masks).begin(X), X, 0.5)
    assert not slope.any()
    assert np.isfinite(score).all()


def test_a_task_without_a_valid_pixel_does_not_decide_a_targeted_score():
    """It is minus the growth of the others, even where they shrink; 0 without any."""
    masks = {**MASKS, "depth": np.zeros_like(MASKS["depth"])}
    objective = make("worst", masks=masks, targeted=True)
    growth = np.log(by_hand(CLEAN) / by_hand(X))[[0, 2]].max(0)
    assert (growth < 0).any()
    run_objective = objective.begin(tf.constant(START), tf.constant(X))
    np.testing.assert_allclose(
        run_objective(CLEAN, 0.7)[1], -growth, rtol=1e-4, atol=1e-5
    )
    empty_masks = {name: np.zeros_like(MASKS[name]) for name in NAMES}
    run_objective = make("worst", masks=empty_masks, targeted=True).begin(
        X, tf.constant(CLEAN)
    )
    np.testing.assert_array_equal(run_objective(X, 0.7)[1], np.zeros(3))


@pytest.mark.parametrize("balance", BALANCES)
def test_an_image_does_not_see_its_batch(balance):
    slope, score = gradient(make(balance).begin(START), X, 0.5)
    for i in range(3):
        row = slice(i, i + 1)
        objective = attacks.objective(
            net,
            {name: t[row] for name, t in TARGETS.items()},
            {name: m[row] for name, m in MASKS.items()},
            NAMES,
            balance,
        )
        got = gradient(objective.begin(START[row]), X[row], 0.5)
        np.testing.assert_allclose(got[0], slope[row], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(got[1], score[row], rtol=1e-5, atol=1e-6)


RELATIVE = [name for name, record in BALANCES.items() if record.relative]


@pytest.mark.parametrize("balance", RELATIVE)
def test_a_task_whose_loss_is_0_at_first_is_climbed_and_scored(balance):
    """Such a loss counts as 1e-12; by hand, for losses of 0 or 0.3 and of 1.5."""
    record, depth = BALANCES[balance], tf.constant([1.5])
    reference = {"seg": tf.constant([0.0]), "depth": tf.constant([1.0])}
    first_weights = {"wgd": 2 / 1.5, "wgd_released": 1, "worst": 0.5e12}
    later_weights = {"wgd": 2, "dgba": 1 / 0.3}
    for loss, progress, weights in (
        (0.0, 0.0, first_weights),
        (0.3, 0.5, later_weights),
    ):
        seg = tf.constant([loss])
        with tf.GradientTape() as tape:
            tape.watch(seg)
            value = record({"seg": seg, "depth": depth}, reference, progress)
        slope = tape.gradient(value, seg)
        np.testing.assert_allclose(slope, [weights.get(balance, 1e12)], rtol=1e-5)
    later_scores = {"dgba_paper": 0.3e12 + 1.5, "worst": math.log(0.3e12)}
    first_scores = {"dgba_paper": 1.5, "worst": math.log(1.5)}
    for loss, expected in ((0.3, later_scores), (0.0, first_scores)):
        losses = {"seg": tf.constant([loss]), "depth": depth}
        geometric = (math.log(loss or 1e-12) + math.log(1.5)) / 2
        score = record.score(losses, reference if record.compared == "clean" else None)
        np.testing.assert_allclose(score, [expected.get(balance, geometric)], rtol=1e-5)


@pytest.mark.parametrize("balance", RELATIVE)
def test_a_head_that_is_sure_is_attacked(balance):
    """Logits 18 apart, whose cross-entropy is 0 in float32, beside a depth."""
    x, masks = tf.ones((1, 2, 2, 3)), {name: tf.ones((1, 2, 2)) for name in NAMES[:2]}
    targets = {"seg": tf.zeros((1, 2, 2), tf.int32), "depth": tf.zeros((1, 2, 2, 1))}
    objective = attacks.objective(
        lambda x: {
            "seg": tf.stack([9 * x[..., 0], -9 * x[..., 0]], axis=-1),
            "depth": x[..., 1:2],
        },
        targets,
        masks,
        balance=balance,
    )
    attack = attacks.PGD(0.5, 0.25, 3, random_start=False, keep="last")
    np.testing.assert_allclose(attack(objective, x)[..., 0], 0.5)


def test_one_broken_gradient_does_not_hide_the_others():
    @tf.custom_gradient
    def broken(y):
        return y, lambda upstream: upstream * np.nan

    def model(x):
        outputs = net(x)
        return {**outputs, "depth": broken(outputs["depth"])}

    for balance in ("normalized", "sign_sum"):
        got, _ = gradient(make(balance, model=model), X)
        want, _ = gradient(make(balance, ("seg", "autoencoder")), X)
        np.testing.assert_array_equal(got, want)


@pytest.mark.slow
def test_scores_never_ask_for_a_gradient_and_gradients_once_per_task():
    passes = []

    @tf.custom_gradient
    def trunk(x):
        def backward(upstream):
            passes.append(upstream)
            return upstream

        return x, backward

    for balance, record in BALANCES.items():
        objective = make(balance, model=lambda x: net(trunk(x)))
        score = tf.function(lambda x, f=objective: base.score(f, x, 0.5))
        for function in (score, objective.begin, objective):
            function(tf.constant(X))
        assert not passes
        gradient(objective, X, 0.5)
        assert len(passes) == (3 if record.steepest else 1)
        passes.clear()


def keras_net():
    keras.utils.set_random_seed(0)
    image = keras.Input((2, 2, 3))
    y = keras.layers.Conv2D(6, 3, padding="same", activation="softplus")(image)
    heads = {
        name: keras.layers.Conv2D(w.shape[1], 1, name=name)(y)
        for name, w in HEADS.items()
    }
    return keras.Model(image, heads)


@pytest.mark.parametrize(
    "balance", ["normalized", "wgd", *map(slow, ("sign_sum", "worst"))]
)
def test_inside_a_compiled_attack_with_variables_a_step_is_as_by_hand(balance):
    model, size, steps = keras_net(), 0.02, 3
    attack = attacks.PGD(0.5, size, steps, "l2", random_start=False, keep="last")
    objective = make(balance, model=lambda x: model(x, training=False))
    result = attack(objective, X)
    objectives = [make("sum", (name,), model) for name in NAMES]
    start_losses = np.stack([task_objective(X)[0] for task_objective in objectives])
    x = X
    for k in range(steps):
        slopes = np.stack(
            [gradient(task_objective, x)[0] for task_objective in objectives]
        )
        if balance == "sign_sum":
            move = np.sign(slopes).sum(0)
        elif balance == "normalized":
            move = (
                slopes
                / np.linalg.norm(slopes.reshape(3, 3, -1), axis=-1)[
                    ..., None, None, None
                ]
            )
            move = move.sum(0)
        else:
            losses = np.stack([task_objective(x)[0] for task_objective in objectives])
            weights = weights_by_hand(
                balance, losses, start_losses, start_losses, k / steps
            )
            move = np.einsum("tb,tbhwc->bhwc", weights, slopes)
        norm = np.linalg.norm(move.reshape(3, -1), axis=-1)[:, None, None, None]
        x = np.clip(x + size * move / norm, 0, 1)
    np.testing.assert_allclose(result, x, atol=2e-5)


def test_begin_costs_nothing_where_the_start_does_not_matter():
    calls = []

    def model(x):
        calls.append(x)
        return net(x)

    for balance, record in BALANCES.items():
        calls.clear()
        make(balance, model=model).begin(tf.constant(X))
        assert len(calls) == bool(record.compared)


def test_the_records_say_where_they_are_from():
    assert list(BALANCES)[0] == "sum"
    for record in BALANCES.values():
        assert record.formula
        assert record.source
    # They can be called with losses alone.
    losses = {"seg": tf.constant([1.0, 3.0]), "depth": tf.constant([2.0, 5.0])}
    np.testing.assert_allclose(BALANCES["sum"](losses), [3, 8])
    np.testing.assert_allclose(BALANCES["dgba"](losses), [2, 2])
    score = BALANCES["dgba"].score(losses)
    np.testing.assert_allclose(score, [math.log(2) / 2, math.log(15) / 2])


def test_scores_of_negative_losses_still_rise_with_the_loss():
    """The mean of logarithms, where that of a negative loss L is log(1e-12) + L."""
    losses = {"a": tf.constant([-0.9, -0.5, 0.0, 2.0]), "b": tf.fill([4], 3.0)}
    for name in ("normalized", "sign_sum"):
        least_log = math.log(1e-12)
        logs = np.array([least_log - 0.9, least_log - 0.5, least_log, math.log(2)])
        np.testing.assert_allclose(
            BALANCES[name].score(losses), (logs + math.log(3)) / 2, rtol=1e-6
        )
