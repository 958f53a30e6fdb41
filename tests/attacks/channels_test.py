# SPDX-License-Identifier: Apache-2.0
"""Attacks on some channels: the others stay, the chosen ones use the whole ball."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiers_fixture import slow

from mtr_tf import attacks
from mtr_tf.attacks import channels
from mtr_tf.errors import InputError

EPSILON = {"linf": 0.05, "l2": 0.4}


def images(count=3) -> tf.Tensor:
    rng = np.random.default_rng(0)
    return tf.constant(rng.uniform(0.3, 0.7, (count, 6, 5, 4)), tf.float32)


def slopes() -> tf.Tensor:
    return tf.constant(np.random.default_rng(1).normal(size=(6, 5, 4)), tf.float32)


def linear(x, progress=0.0):
    """A loss whose maximum in a ball is known."""
    del progress
    return tf.reduce_sum(x * slopes(), [1, 2, 3])


def all_attacks(norm: str):
    epsilon = EPSILON[norm]
    yield attacks.PGD(epsilon, epsilon / 2, 8, norm=norm)
    yield attacks.APGD(epsilon, 10, norm=norm)
    yield attacks.MIM(epsilon, epsilon / 4, 8, norm=norm)
    yield attacks.FGSM(epsilon, norm=norm)
    yield attacks.Square(epsilon, 40, norm=norm)
    yield attacks.Noise(epsilon, norm=norm, draws=3)
    yield attacks.Corner(epsilon, norm=norm, draws=3)
    yield attacks.Worst((attacks.PGD(epsilon, epsilon, 2, norm=norm),))


@pytest.mark.parametrize("norm", ["linf", slow("l2")])
def test_any_attack_leaves_the_other_channels_as_they_are(norm):
    x = images()
    for attack in all_attacks(norm):
        difference = attacks.on_channels(attack, (3, 1))(linear, x, 5) - x
        assert not np.any(difference.numpy()[..., [0, 2]]), attack
        assert np.all(np.abs(difference.numpy()[..., [1, 3]]).max((1, 2)) > 0), attack
        lengths = tf.norm(tf.reshape(difference, (3, -1)), axis=1)
        size = tf.reduce_max(tf.abs(difference) if norm == "linf" else lengths)
        assert float(size) <= EPSILON[norm] * (1 + 1e-6), attack


def test_the_maximum_of_a_linear_loss_is_that_of_the_chosen_channels():
    x, epsilon, numbers = images(), 0.05, [0, 2]
    chosen_slopes = slopes().numpy()[..., numbers]
    attack = attacks.PGD(epsilon, epsilon, 3)
    difference = attacks.on_channels(attack, numbers)(linear, x) - x
    rise = tf.reduce_sum(difference * slopes(), [1, 2, 3])
    np.testing.assert_allclose(rise, epsilon * np.abs(chosen_slopes).sum(), rtol=1e-5)

    attack = attacks.FGSM(0.2, norm="l2")
    difference = attacks.on_channels(attack, numbers)(linear, x) - x
    rise = tf.reduce_sum(difference * slopes(), [1, 2, 3])
    np.testing.assert_allclose(rise, 0.2 * np.linalg.norm(chosen_slopes), rtol=1e-4)


@pytest.mark.slow
def test_objectives_of_tasks_and_ensembles_of_losses():
    x = images(2)
    image = keras.Input((6, 5, 4))
    logits = keras.layers.Conv2D(3, 3, padding="same")(image)
    model = keras.Model(image, {"seg": keras.layers.BatchNormalization()(logits)})
    targets = {"seg": tf.zeros((2, 6, 5), tf.int32)}
    masks = {"seg": tf.ones((2, 6, 5))}
    goal = attacks.objective(
        model, targets, masks, tasks=("seg",), balance="dgba", judge="loss"
    )
    for attack in (attacks.SEA(0.05, 4), attacks.PGD(0.05, 0.02, 3)):
        difference = attacks.on_channels(attack, (0, 1, 2))(goal, x) - x
        assert not np.any(difference.numpy()[..., 3])
        assert np.any(difference.numpy()[..., :3])


def test_channels_may_be_an_array():
    x, attack = images(), attacks.PGD(0.1, 0.05, 2)
    got = attacks.on_channels(attack, np.array([3, 1]))(linear, x, 5)
    want = attacks.on_channels(attack, (3, 1))(linear, x, 5)
    np.testing.assert_array_equal(got, want)


def test_without_channels_it_is_the_attack_itself():
    attack = attacks.FGSM(0.1)
    assert attacks.on_channels(attack, ()) is attack


def test_an_objective_that_takes_images_alone_is_told_what_to_do():
    attack = attacks.on_channels(attacks.PGD(0.1, 0.05, 2), (0,))
    with pytest.raises(InputError, match=r"wrap a plain f\(x\) in attacks.simple"):
        attack(lambda x: tf.reduce_sum(x, [1, 2, 3]), images())


@pytest.mark.parametrize("chosen", [0, None])
def test_channels_are_several(chosen):
    with pytest.raises(InputError, match="several numbers, such as .* got "):
        attacks.on_channels(attacks.PGD(0.1, 0.05, 2), chosen)


@pytest.mark.parametrize("chosen", [(4,), (1, 1), (-1,), (0.0, 1.0), ("0",)])
def test_channels_that_are_not_there(chosen):
    with pytest.raises(InputError, match="different numbers from 0 to 3; got"):
        channels.check(chosen, 4)


@pytest.mark.parametrize("balance", ["normalized", "sign_sum"])
def test_balances_of_steepest_moves_are_those_of_the_channels_that_may_change(balance):
    """As for a model that adds the other channels itself."""
    weights = {"depth": [0.5, 0.5, 0.5, 0], "reshading": [-0.6, -0.6, 0.6, 300]}
    x = images(2)

    def full_model(images):
        return {
            task: tf.reduce_sum(images * tf.constant(w, tf.float32), -1, keepdims=True)
            for task, w in weights.items()
        }

    def part_model(images):
        return full_model(tf.concat([images, x[..., 3:]], -1))

    targets = {task: tf.fill((2, 6, 5, 1), -1000.0) for task in weights}
    masks = {task: tf.ones((2, 6, 5)) for task in weights}
    attack = attacks.FGSM(0.05)
    goals = [
        attacks.objective(model, targets, masks, balance=balance)
        for model in (full_model, part_model)
    ]
    expected = attack(goals[1], x[..., :3])
    channel_attack = attacks.on_channels(attack, (0, 1, 2))
    np.testing.assert_array_equal(channel_attack(goals[0], x)[..., :3], expected)
    # Also for channels of channels, and for the members of an ensemble.
    nested_attack = attacks.on_channels(
        attacks.on_channels(attacks.Worst((attack,)), (1, 2, 3)), (3, 0, 1, 2)
    )
    np.testing.assert_array_equal(nested_attack(goals[0], x)[..., :3], expected)
    if balance == "normalized":  # With all channels, the second task hardly counts.
        assert np.any(attack(goals[0], x)[..., :3] != expected)


STEPS = attacks.PGD(0.1, 0.025, 2)


@pytest.mark.parametrize("attack", [STEPS, attacks.Worst(((STEPS, ("masked_ce",)),))])
def test_attacks_by_hand_look_at_whole_images(attack):
    x = tf.random.stateless_uniform((2, 4, 4, 3), (0, 0))
    labels, mask = tf.zeros((2, 4, 4), tf.int32), tf.ones((2, 4, 4))
    objective = attacks.objective(
        lambda z: {"seg": 9 * z}, {"seg": labels}, {"seg": mask}, ("seg",)
    )
    result = attacks.on_channels(attack, (0, 1))(objective, x, jit="off")
    assert np.array_equal(result[..., 2], x[..., 2])
    assert not np.array_equal(result[..., :2], x[..., :2])
