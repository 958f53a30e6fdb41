# SPDX-License-Identifier: Apache-2.0
"""The same PGD and FGSM images as foolbox and cleverhans, from the same start.

Both are in the extra `bench`, and skipped where they are not installed.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtr_tf import attacks

STEPS = 10
# (epsilon, step_size). Near the edge of the box our l2 projection is better than the
# peers', so images for l2 stay away from it.
BUDGET = {"linf": (8 / 255, 2 / 255), "l2": (0.5, 0.125)}
RANGE = {"linf": (0.0, 1.0), "l2": (0.3, 0.7)}


@pytest.fixture(scope="module")
def classifier():
    """A smooth one: no gradient is so near to 0 that rounding decides its sign."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.layers.Input((8, 8, 3)),
            keras.layers.Conv2D(8, 3, activation="tanh"),
            keras.layers.Flatten(),
            keras.layers.Dense(5),
        ]
    )


@pytest.fixture(scope="module", params=["linf", "l2"])
def batch(request, classifier):
    """(norm, images, the classes predicted)."""
    rng = np.random.default_rng(1)
    images = rng.uniform(*RANGE[request.param], (6, 8, 8, 3)).astype(np.float32)
    labels = classifier(images).numpy().argmax(1)
    return request.param, tf.constant(images), tf.constant(labels, tf.int64)


def ours(classifier, batch, attack):
    _, images, labels = batch
    return attack(
        lambda x: tf.nn.sparse_softmax_cross_entropy_with_logits(labels, classifier(x)),
        images,
    )


def our_pgd(classifier, batch):
    norm = batch[0]
    attack = attacks.PGD(*BUDGET[norm], STEPS, norm, random_start=False, keep="last")
    return ours(classifier, batch, attack)


def our_fgsm(classifier, batch):
    norm = batch[0]
    return ours(classifier, batch, attacks.FGSM(BUDGET[norm][0], norm))


def foolbox_images(classifier, batch, name, **settings):
    foolbox = pytest.importorskip("foolbox")
    norm, images, labels = batch
    attack = getattr(foolbox.attacks, norm.capitalize() + name)
    attack = attack(random_start=False, **settings)
    model = foolbox.TensorFlowModel(classifier, bounds=(0, 1))
    return attack(model, images, labels, epsilons=BUDGET[norm][0])[1]


def assert_same(got, want, images):
    distance = np.abs(want - images)
    assert distance.max() > 0.02  # It is an attack.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_pgd_is_that_of_foolbox(classifier, batch):
    step_size = BUDGET[batch[0]][1]
    want = foolbox_images(classifier, batch, "PGD", steps=STEPS, abs_stepsize=step_size)
    assert_same(our_pgd(classifier, batch), want, batch[1])


def test_fgsm_is_that_of_foolbox(classifier, batch):
    want = foolbox_images(classifier, batch, "FastGradientAttack")
    assert_same(our_fgsm(classifier, batch), want, batch[1])


def cleverhans_settings(batch):
    norm, _, labels = batch
    order = np.inf if norm == "linf" else 2
    return {"norm": order, "y": labels, "clip_min": 0.0, "clip_max": 1.0}


def test_pgd_is_that_of_cleverhans(classifier, batch):
    pytest.importorskip("cleverhans")
    from cleverhans.tf2.attacks import projected_gradient_descent as module

    epsilon, step_size = BUDGET[batch[0]]
    want = module.projected_gradient_descent(
        classifier, batch[1], epsilon, step_size, STEPS, **cleverhans_settings(batch)
    )
    assert_same(our_pgd(classifier, batch), want, batch[1])


def test_fgsm_is_that_of_cleverhans(classifier, batch):
    pytest.importorskip("cleverhans")
    from cleverhans.tf2.attacks import fast_gradient_method as module

    epsilon = BUDGET[batch[0]][0]
    want = module.fast_gradient_method(
        classifier, batch[1], epsilon, **cleverhans_settings(batch)
    )
    assert_same(our_fgsm(classifier, batch), want, batch[1])
