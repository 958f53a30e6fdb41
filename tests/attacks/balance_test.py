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


def weights_by_hand(balance, now, start, clean, progress):
    """What each task's gradient is multiplied by, [tasks, batch]."""
    before = clean if BALANCES[balance].compared == "clean" else start
    growth = now / before
    of_first = np.ones_like(now)
    if balance == "sum":
        return of_first
    if balance == "mean":
        return of_first / 3
    if balance == "dgba":
        return 1 / now
    if balance == "dgba_paper":
        return 1 / clean
    if balance == "wgd":
        return growth / growth.mean(0)
    if balance == "wgd_released":
        return of_first if progress == 0 else 1 / start
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
    each = slopes_by_hand(X)
    np.testing.assert_allclose(
        got, np.einsum("tb,tbhwc->bhwc", weights, each), rtol=1e-4, atol=1e-5
    )
    # Outside a run the point itself is the start.
    got, _ = gradient(make(balance), X, progress)
    now = by_hand(X)
    weights = weights_by_hand(balance, now, now, now, progress)
    if balance == "worst" and progress:
        weights = 1 / now / 3  # All tie.
    np.testing.assert_allclose(
        got, np.einsum("tb,tbhwc->bhwc", weights, each), rtol=1e-4, atol=1e-5
    )


def test_per_task_balances_are_their_definitions():
    each = slopes_by_hand(X)
    norms = np.sqrt(np.square(each).sum((2, 3, 4), keepdims=True))
    got, _ = gradient(make("normalized"), X)
    np.testing.assert_allclose(got, (each / norms).sum(0), rtol=1e-4, atol=1e-5)
    got, _ = gradient(make("sign_sum"), X)
    np.testing.assert_array_equal(got, np.sign(each).sum(0))
    for balance in ("normalized", "sign_sum"):
        value = make(balance)(X)[0]
        np.testing.assert_allclose(value, by_hand(X).sum(0), rtol=1e-5)
        minus, _ = gradient(make(balance, targeted=True), X)
        np.testing.assert_allclose(minus, -gradient(make(balance), X)[0])
        # Upstream gradients pass through, image by image.
        x = tf.constant(X)
        with tf.GradientTape() as tape:
            tape.watch(x)
            twice = tf.constant([2.0, 0.0, -1.0]) * make(balance)(x)[0]
        scaled = tape.gradient(twice, x) / -minus
        np.testing.assert_allclose(scaled[0], np.full(SHAPE[1:], 2), rtol=1e-5)
        assert not np.any(scaled[1])
        np.testing.assert_allclose(scaled[2], np.full(SHAPE[1:], -1), rtol=1e-5)


def test_scores_by_hand():
    now, clean = by_hand(X), by_hand(CLEAN)
    geometric = np.log(now).mean(0)
    expected = {"sum": now.sum(0), "mean": now.mean(0), "worst": np.log(now).max(0)}
    expected |= {"dgba_paper": now.sum(0)}
    begun_there = {**expected, "worst": np.log(now / clean).max(0)}
    begun_there |= {"dgba_paper": (now / clean).sum(0)}
    for balance in BALANCES:
        objective = make(balance)
        score = expected.get(balance, geometric)
        for progress in (0.0, 0.7):
            got = objective(X, progress)[1]
            np.testing.assert_allclose(got, score, rtol=1e-4, atol=1e-5)
        score = begun_there.get(balance, geometric)
        for start in (START, X):  # Which does not matter.
            begun = objective.begin(tf.constant(start), tf.constant(CLEAN))
            np.testing.assert_allclose(begun(X, 0.7)[1], score, rtol=1e-4, atol=1e-5)


def test_relative_balances_and_scores_do_not_see_a_task_s_scale():
    scaled = {name: tf.constant([0.5, 2.0]) for name in NAMES}
    for balance, record in BALANCES.items():
        if not record.relative or balance == "wgd":  # Its r_t only cancel the scale.
            continue
        large = {**scaled, "depth": 100 * scaled["depth"]}
        begun = {**scaled, "depth": tf.constant([3.0, 1.0])}
        large_start = {**begun, "depth": 100 * begun["depth"]}
        np.testing.assert_allclose(
            record(scaled, begun, 0.5), record(large, large_start, 0.5), rtol=1e-6
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
        if balance == "wgd":  # All r_t by one factor.
            share = 3 / 2
        np.testing.assert_allclose(slopes[0], share * slopes[1], rtol=1e-5, atol=1e-6)
        assert np.isfinite(scores).all()
    nothing = {name: np.zeros_like(MASKS[name]) for name in NAMES}
    slope, score = gradient(make(balance, masks=nothing).begin(X), X, 0.5)
    assert not slope.any()
    assert np.isfinite(score).all()


def test_a_task_without_a_valid_pixel_does_not_decide_a_targeted_score():
    """Which falls by the growth of the others, also where they shrink; 0 of none."""
    masks = {**MASKS, "depth": np.zeros_like(MASKS["depth"])}
    objective = make("worst", masks=masks, targeted=True)
    growth = np.log(by_hand(CLEAN) / by_hand(X))[[0, 2]].max(0)
    assert (growth < 0).any()
    begun = objective.begin(tf.constant(START), tf.constant(X))
    np.testing.assert_allclose(begun(CLEAN, 0.7)[1], -growth, rtol=1e-4, atol=1e-5)
    nothing = {name: np.zeros_like(MASKS[name]) for name in NAMES}
    begun = make("worst", masks=nothing, targeted=True).begin(X, tf.constant(CLEAN))
    np.testing.assert_array_equal(begun(X, 0.7)[1], np.zeros(3))


@pytest.mark.parametrize("balance", BALANCES)
def test_an_image_does_not_see_its_batch(balance):
    slope, score = gradient(make(balance).begin(START), X, 0.5)
    for i in range(3):
        pick = slice(i, i + 1)
        alone = attacks.objective(
            net,
            {name: t[pick] for name, t in TARGETS.items()},
            {name: m[pick] for name, m in MASKS.items()},
            NAMES,
            balance,
        )
        got = gradient(alone.begin(START[pick]), X[pick], 0.5)
        np.testing.assert_allclose(got[0], slope[pick], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(got[1], score[pick], rtol=1e-5, atol=1e-6)


RELATIVE = [name for name, record in BALANCES.items() if record.relative]


@pytest.mark.parametrize("balance", RELATIVE)
def test_a_task_whose_loss_is_0_at_first_is_climbed_and_scored(balance):
    """It counts as 1e-12: weights and scores by hand, of losses (now, 1.5)."""
    record, rest = BALANCES[balance], tf.constant([1.5])
    before = {"seg": tf.constant([0.0]), "depth": tf.constant([1.0])}
    first = {"wgd": 2 / 1.5, "wgd_released": 1, "worst": 0.5e12}
    later = {"wgd": 2, "dgba": 1 / 0.3}
    for now, progress, weights in ((0.0, 0.0, first), (0.3, 0.5, later)):
        seg = tf.constant([now])
        with tf.GradientTape() as tape:
            tape.watch(seg)
            climbed = record({"seg": seg, "depth": rest}, before, progress)
        slope = tape.gradient(climbed, seg)
        np.testing.assert_allclose(slope, [weights.get(balance, 1e12)], rtol=1e-5)
    scores = {"dgba_paper": 0.3e12 + 1.5, "worst": math.log(0.3e12)}
    at_first = {"dgba_paper": 1.5, "worst": math.log(1.5)}
    for now, expected in ((0.3, scores), (0.0, at_first)):
        losses = {"seg": tf.constant([now]), "depth": rest}
        geometric = (math.log(now or 1e-12) + math.log(1.5)) / 2
        score = record.score(losses, before if record.compared == "clean" else None)
        np.testing.assert_allclose(score, [expected.get(balance, geometric)], rtol=1e-5)


@pytest.mark.parametrize("balance", RELATIVE)
def test_a_head_that_is_sure_is_attacked(balance):
    """Logits 18 apart, whose cross-entropy is 0 in float32, beside a depth."""
    x, ones = tf.ones((1, 2, 2, 3)), {name: tf.ones((1, 2, 2)) for name in NAMES[:2]}
    targets = {"seg": tf.zeros((1, 2, 2), tf.int32), "depth": tf.zeros((1, 2, 2, 1))}
    objective = attacks.objective(
        lambda x: {
            "seg": tf.stack([9 * x[..., 0], -9 * x[..., 0]], axis=-1),
            "depth": x[..., 1:2],
        },
        targets,
        ones,
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
        rest, _ = gradient(make(balance, ("seg", "autoencoder")), X)
        np.testing.assert_array_equal(got, rest)


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
        for ask in (score, objective.begin, objective):
            ask(tf.constant(X))
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
    found = attack(objective, X)
    each = [make("sum", (name,), model) for name in NAMES]
    start = np.stack([single(X)[0] for single in each])
    x = X
    for k in range(steps):
        slopes = np.stack([gradient(single, x)[0] for single in each])
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
            now = np.stack([single(x)[0] for single in each])
            weights = weights_by_hand(balance, now, start, start, k / steps)
            move = np.einsum("tb,tbhwc->bhwc", weights, slopes)
        norm = np.linalg.norm(move.reshape(3, -1), axis=-1)[:, None, None, None]
        x = np.clip(x + size * move / norm, 0, 1)
    np.testing.assert_allclose(found, x, atol=2e-5)


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
    """Where the geometric mean ends: log 1e-12 + L, beside the log of the other."""
    losses = {"a": tf.constant([-0.9, -0.5, 0.0, 2.0]), "b": tf.fill([4], 3.0)}
    for name in ("normalized", "sign_sum"):
        least = math.log(1e-12)
        logs = np.array([least - 0.9, least - 0.5, least, math.log(2)])
        np.testing.assert_allclose(
            BALANCES[name].score(losses), (logs + math.log(3)) / 2, rtol=1e-6
        )
