# SPDX-License-Identifier: Apache-2.0
"""Gradients of models in half precision beside those of the same model in float32."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiers_fixture import slow

from mtr_tf import attacks
from mtr_tf.attacks import base
from mtr_tf.models import folding
from mtr_tf.training import step


def net(side, policy, classes=4):
    """A small convolutional net, with the same weights in every precision."""
    keras.utils.set_random_seed(0)
    image = keras.Input((side, side, 3))
    x = image
    for width in (4, 8):
        x = keras.layers.Conv2D(width, 3, 1, "same", dtype=policy)(x)
        x = keras.layers.BatchNormalization(dtype=policy)(x)
        x = keras.layers.Activation("relu", dtype=policy)(x)
    x = keras.layers.Conv2D(classes, 3, 1, "same", dtype=policy)(x)
    x = keras.layers.Activation("linear", dtype="float32")(x)
    model = keras.Model(image, {"seg": x})
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=w.shape) / 4 for w in model.get_weights()]
    model.set_weights([np.abs(w) if w.ndim == 1 else w for w in weights])
    return model


def a_batch(side, size=2, classes=4):
    rng = np.random.default_rng(side)
    images = rng.uniform(size=(size, side, side, 3)).astype(np.float32)
    labels = rng.integers(0, classes, (size, side, side))
    return images, {"seg": labels}, {"seg": np.ones((size, side, side))}


def slopes(model, batch, **settings):
    """The gradient that attacks take, compiled as they compile it."""
    images, targets, masks = batch
    objective = attacks.objective(model, targets, masks, **settings)

    @tf.function(autograph=False)
    def run(x):
        return base.gradient(base.begin(objective, x, x), x, tf.constant(0.0))[0]

    return run(tf.constant(images)).numpy()


def agreement(got, want, at_least=0.5):
    """The share of equal signs where float32's entry is over 1/1000 of the largest."""
    large = np.abs(want) > 1e-3 * np.abs(want).max(axis=(1, 2, 3), keepdims=True)
    assert large.mean() > at_least
    return np.mean(np.sign(got[large]) == np.sign(want[large]))


SIDES = [64, slow(256), slow(1024)]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("policy", ["mixed_float16", "float16"])
def test_signs_are_those_of_float32(side, policy):
    batch = a_batch(side)
    want = slopes(net(side, "float32"), batch)
    got = slopes(net(side, policy), batch)
    assert got.dtype == np.float32
    assert agreement(got, want) > 0.99
    # The size is right too, for attacks that add gradients up.
    scale = np.sqrt((got**2).mean() / (want**2).mean())
    assert 0.95 < scale < 1.05


@pytest.mark.parametrize("balance", ["sign_sum", "normalized"])
def test_balances_that_add_up_directions_see_each_tasks_gradient(balance):
    batch = a_batch(64)
    want = slopes(net(64, "float32"), batch, balance=balance)
    got = slopes(net(64, "mixed_float16"), batch, balance=balance)
    assert agreement(got, want) > 0.99
    np.testing.assert_allclose(np.linalg.norm(got), np.linalg.norm(want), rtol=0.01)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("side", SIDES)
def test_signs_of_the_fast_copy_are_those_of_float32(side, dtype):
    batch = a_batch(side)
    model = net(side, "float32")
    fast = folding.in_half(model, dtype, tf.constant(batch[0]))
    assert any(layer.compute_dtype == dtype for layer in fast.layers)
    least_agreement = {"bfloat16": 0.97, "float16": 0.99}[dtype]
    assert agreement(slopes(fast, batch), slopes(model, batch)) > least_agreement


@pytest.mark.parametrize(
    ("cards", "half"),
    [
        ((), "bfloat16"),
        (((8, 0),), "bfloat16"),
        (((7, 5),), "float16"),
        (((9, 0), (7, 0)), "float16"),
        (((6, 1),), "bfloat16"),
        (({},), "bfloat16"),  # A device without details.
    ],
)
def test_the_half_precision_is_what_the_gpus_are_made_for(monkeypatch, cards, half):
    details = [{"compute_capability": card} if card else {} for card in cards]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: details)
    experimental = tf.config.experimental
    monkeypatch.setattr(experimental, "get_device_details", lambda gpu: gpu)
    assert folding.half_type() == half


def test_signs_where_the_model_is_right_and_sure():
    # Then all gradients are small, and some underflow to 0 unless losses are scaled.
    images, _, masks = a_batch(256)
    want_model, model = net(256, "float32"), net(256, "mixed_float16")
    for network in (want_model, model):
        network.layers[-2].kernel.assign(6 * network.layers[-2].kernel)
    targets = {"seg": want_model(images)["seg"].numpy().argmax(-1)}
    objective = attacks.objective(model, targets, masks)

    @tf.function(autograph=False)
    def unscaled_slopes(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            ascend, _ = objective(x)
        return tape.gradient(ascend, x)

    want = slopes(want_model, (images, targets, masks))
    got = slopes(model, (images, targets, masks))
    unscaled = unscaled_slopes(tf.constant(images)).numpy()
    assert agreement(got, want, 0.2) > 0.99
    assert agreement(unscaled, want, 0.2) < 0.985


@pytest.mark.parametrize("factor", [1e-7, 1e-4, 1.0, 1e4, 1e7])
def test_losses_of_any_size_keep_their_gradients(factor):
    # By hand: the gradient of factor * mean(w x) is factor * w / entries.
    rng = np.random.default_rng(0)
    w = tf.constant(rng.choice([-1, 1], (2, 16, 16, 3)) * rng.uniform(0.5, 1), tf.half)
    calls = []

    @attacks.simple
    def loss(x):
        calls.append(1)
        wide = tf.cast(tf.cast(x, tf.half) * w, tf.float32)
        return factor * tf.reduce_mean(wide, [1, 2, 3])

    run = tf.function(lambda x: base.gradient(loss, x, 0.0)[0], autograph=False)
    got = run(tf.fill([2, 16, 16, 3], 0.5)).numpy()
    np.testing.assert_allclose(
        got, factor * w.numpy().astype(float) / (16 * 16 * 3), rtol=1e-3
    )
    assert len(calls) == 1


def test_images_find_scales_of_their_own_and_dead_ones_stay_zero():
    w = tf.constant(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), tf.half)
    factors = tf.constant([1e7, 1e-7, 0.0, np.nan])

    @attacks.simple
    def loss(x):
        wide = tf.cast(tf.cast(x, tf.half) * w, tf.float32)
        return factors * tf.reduce_mean(wide, [1, 2, 3])

    run = tf.function(lambda x: base.gradient(loss, x, 0.0)[0], autograph=False)
    got = run(tf.fill([4, 8, 8, 3], 0.5)).numpy()
    want = factors.numpy()[:, None, None, None] * w.numpy() / (8 * 8 * 3)
    np.testing.assert_allclose(got[:3], want[:3], rtol=1e-3, atol=1e-14)
    assert not got[3].any()


def test_float16_is_seen_in_called_functions_and_nothing_else_is_scaled():
    half = tf.function(lambda x: tf.cast(tf.cast(x, tf.half) * 2, tf.float32))
    answers = []

    @tf.function(autograph=False)
    def graph(x):
        for change in (half, lambda x: x * 2, lambda x: tf.cast(x, tf.bfloat16)):
            count = len(tf.compat.v1.get_default_graph().get_operations())
            change(x)
            operations = tf.compat.v1.get_default_graph().get_operations()[count:]
            answers.append(base.computes_in_float16(operations))

    graph(tf.ones([2]))
    assert answers == [True, False, False]


@pytest.mark.parametrize("batch_norm", [slow("inference"), "training"])
def test_the_adversary_in_training_sees_them_too(batch_norm):
    images, targets, masks = a_batch(64)
    attack = attacks.PGD(8 / 255, 8 / 255, 1, random_start=False, keep="last")
    adversary = step.Adversary(attack, ("seg",), 1.0, batch_norm, seed=0)
    batch = {
        "image": tf.constant(images),
        "targets": targets,
        "masks": masks,
        "step": tf.constant(0, tf.int64),
        "position": tf.range(2, dtype=tf.int64),
    }
    signs = []
    for policy in ("float32", "mixed_float16"):
        objective = adversary.objective(net(64, policy))
        perturb = functools.partial(adversary.perturb, objective, batch)
        run = tf.function(perturb, autograph=False)  # As training steps are.
        signs.append(np.sign(run().numpy() - images))
    assert np.mean(signs[0] == signs[1]) > 0.98


def test_images_in_float64_have_the_slopes_of_images_in_float32():
    images, targets, masks = a_batch(16)
    model, settings = net(16, "mixed_float16"), {"balance": "normalized"}
    want = slopes(model, (images, targets, masks), **settings)
    got = slopes(model, (images.astype(np.float64), targets, masks), **settings)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
