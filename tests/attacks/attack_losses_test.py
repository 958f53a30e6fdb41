# SPDX-License-Identifier: Apache-2.0
"""Surrogate losses against plain Python written from their formulas, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from scipy.spatial import distance

from mtr_tf import tasks as tasks_lib
from mtr_tf.attacks import attack_losses
from mtr_tf.attacks.attack_losses import ATTACK_LOSSES
from mtr_tf.attacks.attack_losses import Case
from mtr_tf.tasks import Task
from mtr_tf.tasks import losses

DISCRETE = ("ce", "segpgd", "cospgd", "masked_ce", "masked_ce_balanced", "js", "margin")
KINDS = {
    "scene": Task("scene", kind="classes", channels=4),
    "tags": Task("tags", kind="labels", channels=4),
}
CONTINUOUS = ("l1", "l2", "relative", "cospgd", "angular")


def softmax(z):
    e = [math.exp(v - max(z)) for v in z]
    return [v / sum(e) for v in e]


def cosine(a, b):
    dot = sum(u * v for u, v in zip(a, b, strict=True))
    return dot / math.hypot(*a) / math.hypot(*b)


def of_classes(name, y, z, fixed_z, count, progress, targeted):
    """One pixel's part of the sum.

    `fixed_z`: The logits again, for weights; finite differences do not move them.
    `count`: {class: number of the image's valid pixels that have it as target}.
    """
    ce = -math.log(softmax(z)[y])
    q = softmax(fixed_z)
    pending = (fixed_z.index(max(fixed_z)) == y) != targeted
    valid = sum(count.values())
    if name == "ce":
        return ce
    if name == "segpgd":
        return ce * (1 - progress / 2 if pending else progress / 2)
    if name == "cospgd":
        weight = q[y] / math.hypot(*q)
        return ce * (1 - weight if targeted else weight)
    if name == "masked_ce":
        return ce if pending else 0.0
    if name == "masked_ce_balanced":
        return ce * valid / (len(count) * count[y]) if pending else 0.0
    if name == "js":
        one_hot = [float(c == y) for c in range(len(z))]
        return distance.jensenshannon(softmax(z), one_hot) ** 2
    if name == "margin":
        return max(v for c, v in enumerate(z) if c != y) - z[y]
    raise AssertionError(name)


def of_values(name, t, z, fixed_z, own_loss, targeted):
    gaps = [abs(a - b) for a, b in zip(z, t, strict=True)]
    loss = {"l1": np.mean(gaps), "l2": np.mean(np.square(gaps))}
    if name in loss:
        return loss[name]
    if name == "cospgd":
        weight = cosine(softmax(fixed_z), softmax(t))
        return loss[own_loss] * (1 - weight if targeted else weight)
    if name == "angular":
        return 1 - cosine(z, t)
    raise AssertionError(name)


def by_hand(
    name,
    target,
    output,
    mask,
    fixed_output,
    *,
    own_loss="l1",
    progress=0.0,
    targeted=False,
):
    """One image's surrogate, in float64."""
    pixels = [(i, j) for i, j in np.ndindex(mask.shape) if mask[i, j]]
    if name == "relative":
        pixels = [ij for ij in pixels if min(target[ij]) > 0]
    total, count = 0.0, {}
    if target.ndim == 2:
        for ij in pixels:
            count[target[ij]] = count.get(target[ij], 0) + 1
    for ij in pixels:
        z, fixed_z = list(output[ij]), list(fixed_output[ij])
        if target.ndim == 2:
            total += of_classes(name, target[ij], z, fixed_z, count, progress, targeted)
        elif name == "relative":
            total += np.mean(np.abs(output[ij] - target[ij]) / target[ij])
        else:
            total += of_values(name, list(target[ij]), z, fixed_z, own_loss, targeted)
    return total / len(pixels) if pixels else 0.0


def differences(function, point, step=1e-6):
    """Central differences of a float64 function of an array."""
    slope = np.zeros_like(point)
    for index in np.ndindex(point.shape):
        move = np.zeros_like(point)
        move[index] = step
        slope[index] = (function(point + move) - function(point - move)) / (2 * step)
    return slope


def class_batch(classes=3, seed=0):
    """Three images of 2x2 pixels: whole, partly masked with garbage, all masked."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, (3, 2, 2)).astype(np.int32)
    logits = rng.normal(size=(3, 2, 2, classes))
    logits[0, 0, 0, target[0, 0, 0]] += 3  # One pixel that is right for sure.
    mask = np.ones((3, 2, 2), np.float32)
    mask[1, 0, 1] = mask[2] = 0
    target[mask == 0] = 255
    return target, logits.astype(np.float32), mask


def value_batch(channels=3, seed=0):
    rng = np.random.default_rng(seed)
    target, mask = rng.normal(size=(3, 2, 2, channels)), class_batch()[2]
    target[:, 1] = np.abs(target[:, 1])  # `relative` needs some that are positive.
    output = rng.normal(size=target.shape).astype(np.float32)
    return target.astype(np.float32), output, mask


def run(name, target, output, mask, **settings):
    output = tf.constant(output)
    with tf.GradientTape() as tape:
        tape.watch(output)
        case = Case(tf.constant(target), output, tf.constant(mask), **settings)
        value = ATTACK_LOSSES[name].loss(case)
    slope = tape.gradient(value, output)
    return value.numpy(), slope.numpy()


def check(name, batch, own_loss="l1", **settings):
    target, output, mask = batch
    keywords = (
        settings
        if own_loss == "ce"
        else {"task_loss": getattr(losses, own_loss), **settings}
    )
    dirty_output = output.copy()
    dirty_output[mask == 0] = np.nan  # Masked values must not enter.
    value, slope = run(name, target, dirty_output, mask, **keywords)
    assert value.dtype == slope.dtype == np.float32
    for i in range(len(mask)):

        def image(z, i=i):
            fixed_output = output[i].astype(float)
            return by_hand(
                name, target[i], z, mask[i], fixed_output, own_loss=own_loss, **settings
            )

        point = output[i].astype(float)
        np.testing.assert_allclose(value[i], image(point), rtol=2e-5, atol=1e-6)
        expected = differences(image, point)
        np.testing.assert_allclose(slope[i], expected, rtol=1e-4, atol=2e-6)
    assert np.abs(slope[0]).max() > 0


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", DISCRETE)
def test_of_classes_value_and_gradient_are_those_by_hand(name, targeted):
    for seed in range(3):
        check(name, class_batch(seed=seed), "ce", progress=0.25, targeted=targeted)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_of_values_value_and_gradient_are_those_by_hand(name, targeted):
    for own_loss in ("l1", "l2"):
        check(name, value_batch(), own_loss, targeted=targeted)


def test_numbers_worked_out_on_paper():
    # Pixels: right with p = 3/4, right with 1/2, wrong with 1/4, masked.
    logits = np.log([[[[3, 1], [2.0001, 2]], [[1, 3], [1, 1]]]]).astype(np.float32)
    target = np.array([[[0, 0], [0, 99]]], np.int32)
    mask = np.array([[[1, 1], [1, 0]]], np.float32)
    a, b, c = math.log(4 / 3), math.log(2), math.log(4)
    cosines = (3 / math.sqrt(10), 1 / math.sqrt(2), 1 / math.sqrt(10))
    paper = {
        "ce": (a + b + c) / 3,
        "segpgd": (a + b) / 3,
        "cospgd": (a * cosines[0] + b * cosines[1] + c * cosines[2]) / 3,
        "masked_ce": (a + b) / 3,
        "masked_ce_balanced": (a + b) / 3,  # One class.
        "js": (0.0956024 + 0.2157616 + 0.3803955) / 3,
        "margin": (-math.log(3) + 0 + math.log(3)) / 3,
    }
    for name, expected in paper.items():
        got = run(name, target, logits, mask)[0]
        np.testing.assert_allclose(got, [expected], rtol=1e-4, atol=2e-5)
    target = np.array([[[[2.0, 0, 0]], [[0, 0, -1.0]]]], np.float32)
    output = np.array([[[[0.0, 3, 0]], [[0, 0, -5.0]]]], np.float32)
    ones = np.ones((1, 2, 1), np.float32)
    for name, expected in (
        ("l1", (5 / 3 + 4 / 3) / 2),
        ("l2", (13 / 3 + 16 / 3) / 2),
        ("angular", 0.5),
        ("relative", 0.0),  # No pixel with all channels positive.
    ):
        np.testing.assert_allclose(run(name, target, output, ones)[0], [expected])
    value = run("relative", target[..., :1] + 2, output[..., :1] + 1, ones)[0]
    np.testing.assert_allclose(value, [(3 / 4 + 1 / 2) / 2])


def test_segpgd_moves_from_right_pixels_to_all_of_them():
    batch = class_batch()
    ce, masked_ce = run("ce", *batch)[0], run("masked_ce", *batch)[0]
    for progress in (0.0, 0.5, 1.0):
        a = progress / 2
        expected = (1 - a) * masked_ce + a * (ce - masked_ce)
        got = run("segpgd", *batch, progress=tf.constant(progress))[0]
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_masked_ce_is_zero_once_all_is_wrong_and_targeted_once_all_is_as_wanted():
    target, logits, mask = class_batch()
    right = np.eye(3, dtype=np.float32)[np.where(mask > 0, target, 0)]
    for name in ("masked_ce", "masked_ce_balanced"):
        for output, targeted in ((-right, False), (right, True)):
            value, slope = run(name, target, output, mask, targeted=targeted)
            assert not value.any()
            assert not slope.any()
            assert np.all(run(name, target, -output, mask, targeted=targeted)[0][:2])


@pytest.mark.parametrize("targeted", [False, True])
def test_losses_that_leave_out_what_is_done_have_no_gradient_there(targeted):
    """An image that is wrong everywhere; if targeted, one that is as wanted."""
    rng = np.random.default_rng(0)
    logits = tf.constant(rng.normal(size=(1, 2, 3, 4)), tf.float32)
    likeliest_classes = np.argmax(logits, axis=-1)
    classes = tf.constant(
        likeliest_classes if targeted else (likeliest_classes + 1) % 4
    )
    likeliest_labels = np.float32(logits > 0)
    labels = tf.constant(likeliest_labels if targeted else 1 - likeliest_labels)
    for name, loss in ATTACK_LOSSES.items():
        kinds = [kind for kind in ("scene", "tags") if loss.fits(KINDS[kind])]
        for kind in kinds if loss.targetable or not targeted else ():
            target = classes if kind == "scene" else labels
            own_loss = losses.cross_entropy
            own_loss = own_loss if kind == "scene" else losses.binary_cross_entropy
            with tf.GradientTape() as tape:
                tape.watch(logits)
                case = Case(
                    target,
                    logits,
                    tf.ones((1, 2, 3)),
                    own_loss,
                    targeted=targeted,
                    kind=KINDS[kind].kind,
                )
                value = loss.loss(case)
            gradient = tape.gradient(value, logits)
            no_gradient = not np.any(gradient)
            if name == "houdini" and targeted:  # It is 0 where all is right.
                assert no_gradient
                continue
            assert no_gradient == loss.leaves_out, (name, kind)


def test_balanced_is_the_mean_over_classes_of_the_mean_in_a_class():
    rng = np.random.default_rng(0)
    target = rng.choice(4, (2, 6, 5), p=[0.7, 0.2, 0.1, 0]).astype(np.int32)
    logits = 4 * np.eye(4)[target] + rng.normal(size=(2, 6, 5, 4))
    mask = np.ones((2, 6, 5), np.float32)
    got = run("masked_ce_balanced", target, logits.astype(np.float32), mask)[0]
    for i in range(2):
        ce = -np.log(np.exp(logits[i]) / np.exp(logits[i]).sum(-1, keepdims=True))
        ce = np.take_along_axis(ce, target[i][..., None], -1)[..., 0]
        ce *= logits[i].argmax(-1) == target[i]
        means = [ce[target[i] == c].mean() for c in np.unique(target[i])]
        np.testing.assert_allclose(got[i], np.mean(means), rtol=1e-4)


@pytest.mark.parametrize("targeted", [False, True])
def test_cospgd_with_one_channel_is_the_own_loss(targeted):
    target, output, mask = value_batch(channels=1)
    for own_loss in (losses.l1, losses.l2):
        value, slope = run(
            "cospgd", target, output, mask, task_loss=own_loss, targeted=targeted
        )
        np.testing.assert_array_equal(value, own_loss(target, output, mask))
        assert np.all(slope[0] != 0)


@pytest.mark.parametrize("name", ATTACK_LOSSES)
def test_an_image_does_not_see_its_batch(name):
    surrogate = ATTACK_LOSSES[name]
    make_batch = class_batch if surrogate.fits(tasks_lib.TASKS["seg"]) else value_batch
    own_loss = losses.cross_entropy if make_batch is class_batch else losses.l1
    batch = make_batch(seed=4)
    results = run(name, *batch, task_loss=own_loss)
    for i in range(3):
        image_results = run(
            name, *(part[i : i + 1] for part in batch), task_loss=own_loss
        )
        for image_result, result in zip(image_results, results, strict=True):
            np.testing.assert_allclose(image_result[0], result[i], rtol=1e-5, atol=1e-7)
    assert results[0][2] == 0


@pytest.mark.parametrize("name", DISCRETE)
def test_extreme_logits_give_finite_gradients(name):
    target, _, mask = class_batch()
    mask[1, 0, 1] = 1
    target[1, 0, 1] = 0
    for size in (1e4, -1e4):
        logits = np.eye(3)[np.where(mask > 0, target, 0)] * size
        value, slope = run(name, target, logits.astype(np.float32), mask)
        assert np.isfinite(value).all()
        assert np.isfinite(slope).all()


def test_vectors_of_length_zero_have_an_angle_and_a_finite_gradient():
    target, output, mask = value_batch()
    output[0] = 0
    value, slope = run("angular", target, output, mask)
    assert value[0] == 1
    assert np.isfinite(slope).all()


def test_half_precision_outputs_are_computed_in_float32():
    target, logits, mask = class_batch()
    rounded_logits = tf.cast(logits, tf.bfloat16)
    half_case, case = (
        Case(tf.constant(target), outputs, tf.constant(mask))
        for outputs in (rounded_logits, tf.cast(rounded_logits, tf.float32))
    )
    for name in DISCRETE:
        loss = ATTACK_LOSSES[name].loss(half_case)
        assert loss.dtype == tf.float32
        np.testing.assert_array_equal(loss, ATTACK_LOSSES[name].loss(case))


def test_each_surrogate_fits_tasks_of_its_kind():
    for name, surrogate in ATTACK_LOSSES.items():
        fitting_tasks = {
            t for t, task in tasks_lib.TASKS.items() if surrogate.fits(task)
        }
        other_tasks = set(tasks_lib.TASKS) - {"seg"}
        if name == "angular":
            assert fitting_tasks == {"normal"}
        elif name in ("bce", "masked_bce"):
            assert not fitting_tasks  # None of the eleven tasks has labels.
        elif name == "cospgd":
            assert fitting_tasks == other_tasks | {"seg"}
        else:
            assert fitting_tasks == (other_tasks if name in CONTINUOUS else {"seg"})
        assert surrogate.formula
        assert surrogate.source
    # Directions are directions whatever the metrics.
    flow = Task("flow", kind="directions", metrics=tasks_lib.metrics.mae())
    assert ATTACK_LOSSES["angular"].fits(flow)


def test_a_pixel_is_an_image_of_one_pixel():
    for (target, output, mask), own_loss in (
        (class_batch(), losses.cross_entropy),
        (value_batch(), losses.l2),
    ):
        case = Case(*map(tf.constant, (target, output, mask)), own_loss)
        assert case.per_pixel.shape == (3, 2, 2)
        np.testing.assert_allclose(case.mean(case.per_pixel), attack_losses.own(case))
