# SPDX-License-Identifier: Apache-2.0
"""Points judged by harm: by hand, by slow loops, and the same in graph as from rows."""

from __future__ import annotations

import dataclasses
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiers_fixture import slow

from mtr_tf import attacks
from mtr_tf import tasks as tasks_lib
from mtr_tf.attacks import base
from mtr_tf.attacks import judging
from mtr_tf.attacks.balance import BALANCES

NAMES = ("seg", "depth", "normal", "autoencoder")
EPS = 8 / 255
CHANNELS = {"seg": 4, "depth": 1, "normal": 3, "autoencoder": 3}


def batch(size=6, height=6, width=5, seed=0):
    rng = np.random.default_rng(seed)
    pixels = (size, height, width)
    targets = {
        name: rng.normal(size=(*pixels, CHANNELS[name])).astype(np.float32)
        for name in NAMES
    }
    targets["seg"] = rng.integers(0, 4, pixels).astype(np.int32)
    masks = {n: (rng.random(pixels) < 0.8).astype(np.float32) for n in NAMES}
    return rng.uniform(size=(*pixels, 3)).astype(np.float32), targets, masks


@pytest.fixture(scope="module")
def net():
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 5, 3), name="image")
    y = keras.layers.Conv2D(8, 3, padding="same", activation="softplus")(image)
    y = keras.layers.Conv2D(8, 3, padding="same", activation="softplus")(5 * y)
    heads = {n: keras.layers.Conv2D(c, 1, name=n)(5 * y) for n, c in CHANNELS.items()}
    return keras.Model(image, heads)


def harms_by_hand(net, x, targets, masks):
    """Each task's harm of each image in NumPy, as the table of results has it."""
    outputs = {name: value.numpy().astype(float) for name, value in net(x).items()}
    difference = {n: outputs[n] - targets[n] for n in NAMES[1:]}
    a, b = outputs["normal"], targets["normal"].astype(float)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    errors = {
        "seg": outputs["seg"].argmax(-1) != targets["seg"],
        "depth": np.abs(difference["depth"])[..., 0],
        "normal": np.degrees(np.arccos((a * b).sum(-1) / lengths)),
        "autoencoder": np.square(difference["autoencoder"]).mean(-1),
    }
    return {
        name: (error * masks[name]).sum((1, 2)) / masks[name].sum((1, 2))
        for name, error in errors.items()
    }


def test_harm_of_each_kind_of_task_by_hand(net):
    x, targets, masks = batch()
    harms = harms_by_hand(net, x, targets, masks)
    for name in NAMES:
        for losses, judge in (((), "harm"), (("cospgd",), "auto")):
            settings = {"losses": losses, "judge": judge}
            objective = attacks.objective(net, targets, masks, name, **settings)
            np.testing.assert_allclose(objective(x)[1], harms[name], rtol=2e-5)
        targeted_objective = attacks.objective(
            net, targets, masks, name, judge="harm", targeted=True
        )
        np.testing.assert_allclose(targeted_objective(x)[1], -harms[name], rtol=2e-5)
        plain_objective = attacks.objective(net, targets, masks, name)
        np.testing.assert_array_equal(*plain_objective(x))
        np.testing.assert_allclose(
            plain_objective.in_ensemble()(x)[1], harms[name], rtol=2e-5
        )
        loss_objective = attacks.objective(net, targets, masks, name, judge="loss")
        np.testing.assert_array_equal(*loss_objective.in_ensemble()(x))


@pytest.mark.parametrize("balance", BALANCES)
def test_harm_of_several_tasks_is_their_geometric_mean(net, balance):
    x, targets, masks = batch()
    harms = np.stack(list(harms_by_hand(net, x, targets, masks).values()))
    joint_objective = attacks.objective(
        net, targets, masks, balance=balance, judge="harm"
    )
    for objective in (joint_objective, joint_objective.begin(x[::-1], x)):
        score = objective(x)[1]
        np.testing.assert_allclose(score, np.exp(np.log(harms).mean(0)), rtol=2e-5)
    if not BALANCES[balance].weighted:
        return
    weights = {"seg": 2.0, "normal": 0.0, "depth": 0.5}
    weighted_objective = attacks.objective(
        net, targets, masks, balance=balance, judge="harm", weights=weights
    )
    w = np.array([2.0, 0.5, 0.0, 1.0])[:, None]
    expected = np.exp((w * np.log(harms)).sum(0) / w.sum())
    np.testing.assert_allclose(weighted_objective(x)[1], expected, rtol=2e-5)


def test_no_wrong_pixel_counts_as_half_of_one():
    rows = {"seg": {"pixel_accuracy": np.array([[10.0, 10], [9, 10], [0, 0]])}}
    rows["depth"] = {"mae": np.array([[5.0, 10], [5, 10], [0, 0]])}
    score = judging.score("harm", BALANCES["sum"], rows)
    np.testing.assert_allclose(score[:2], np.sqrt([0.05 * 0.5, 0.1 * 0.5]), rtol=1e-6)
    assert np.isfinite(score).all()
    del rows["depth"]
    np.testing.assert_allclose(
        judging.score("harm", BALANCES["sum"], rows), [0, 0.1, 0], rtol=1e-6
    )


def test_a_task_that_an_image_lacks_leaves_the_others_order():
    """The others decide, whatever the weight of the task that is lacking."""
    empty_rows = np.zeros((3, 2))
    for name, other_name, rows in (
        ("seg", "depth", {"mae": np.array([[1.0, 10], [2, 10], [4, 10]])}),
        ("depth", "seg", {"pixel_accuracy": np.array([[9.0, 10], [8, 10], [6, 10]])}),
    ):
        lacking = {tasks_lib.TASKS[name].harm.name: empty_rows}
        for weights in ((), (1.0, 1.0), (1.0, -1.0)):
            score = judging.score(
                "harm", BALANCES["sum"], {other_name: rows, name: lacking}, weights
            )
            np.testing.assert_allclose(score, np.sqrt([0.1, 0.2, 0.4]), rtol=1e-5)


def test_labels_count_from_the_first_wrong_one():
    tags = tasks_lib.Task("tags", kind="labels", channels=40, places=0)
    tasks = {"tags": tags, "depth": tasks_lib.TASKS["depth"]}
    tag_rows = np.array([[1.0, 1], [39 / 40, 1], [0.8, 1], [0.45, 1]])
    rows = {"tags": {"label_accuracy": tag_rows}, "depth": {"mae": np.ones((4, 2))}}
    score = judging.score("harm", BALANCES["sum"], rows, tasks=tasks)
    expected = np.sqrt([0.5 / 40, 1 / 40, 0.2, 0.55])
    np.testing.assert_allclose(score, expected, rtol=1e-5)


def test_a_share_of_each_image_has_no_half_of_a_pixel():
    record = tasks_lib.metrics.image_miou()
    value, least_harm = judging.harm(record, np.array([[0.9, 1.0], [0.6, 1.0]]))
    np.testing.assert_allclose(value, [0.1, 0.4], rtol=1e-5)
    assert np.all(least_harm < 1e-9)


def test_every_task_has_a_harm_that_the_table_shows():
    for task in tasks_lib.TASKS.values():
        headline = "pixel_accuracy" if task.discrete else task.metrics[0].name
        assert task.harm.name == headline


def test_auto_in_one_sentence():
    # By the losses where each task raises its own, outside ensembles; else by harm.
    assert judging.resolve("auto", other_losses=False) == "loss"
    assert judging.resolve("auto", other_losses=True) == "harm"
    assert judging.resolve("auto", other_losses=False, ensemble=True) == "harm"
    for judge, *conditions in itertools.product(("harm", "loss"), *[(False, True)] * 2):
        assert judging.resolve(judge, *conditions) == judge


def wrong(net, x, targets, masks):
    return harms_by_hand(net, x, targets, masks)["seg"]


def slow_pgd(net, x, targets, masks, losses, eps, steps):
    """Sign steps from the image; per image the point of most wrong pixels."""
    objective = attacks.objective(
        lambda z: net(z, training=False), targets, masks, "seg", losses=losses
    )
    point, best, most_wrong = x, x, np.full(len(x), -1.0)
    for number in range(steps + 1):
        wrong_share = wrong(net, point, targets, masks)
        # Where no pixel's gradient moves an image, its last point is its first.
        best = np.where((wrong_share > most_wrong)[:, None, None, None], point, best)
        most_wrong = np.maximum(most_wrong, wrong_share)
        slope, _ = base.gradient(
            objective, tf.constant(point), tf.constant(number / steps)
        )
        point = point + np.float32(eps / 4) * np.sign(slope.numpy())
        point = np.clip(np.clip(point, x - np.float32(eps), x + np.float32(eps)), 0, 1)
    return best, most_wrong


@pytest.mark.parametrize(
    "losses", ["cospgd", *map(slow, ("segpgd", "masked_ce", "js"))]
)
def test_pgd_keeps_the_point_of_most_wrong_pixels(net, losses):
    x, targets, masks = batch()
    settings = {"tasks": "seg", "losses": losses, "fold": False}
    auto_objective, loss_objective = (
        attacks.objective(net, targets, masks, judge=judge, **settings)
        for judge in ("auto", "loss")
    )
    attack = attacks.PGD(EPS, EPS / 4, 12, random_start=False)
    images = attack(auto_objective, x).numpy()
    best, most_wrong = slow_pgd(net, x, targets, masks, losses, EPS, 12)
    np.testing.assert_allclose(
        wrong(net, images, targets, masks), most_wrong, atol=1e-6
    )
    np.testing.assert_allclose(images, best, atol=1e-5)
    loss_wrong = wrong(net, attack(loss_objective, x).numpy(), targets, masks)
    assert np.all(loss_wrong <= most_wrong)


def test_by_harm_is_stronger_than_by_loss(net):
    x, targets, masks = batch(size=24)
    targets["seg"] = net(x)["seg"].numpy().argmax(-1).astype(np.int32)
    attack = attacks.PGD(2 * EPS, EPS / 2, 20)
    harms = {}
    for judge in ("auto", "loss"):
        objective = attacks.objective(
            net, targets, masks, "seg", losses="cospgd", judge=judge
        )
        harms[judge] = wrong(net, attack(objective, x).numpy(), targets, masks)
    assert np.all(harms["auto"] >= harms["loss"])
    assert harms["auto"].mean() > harms["loss"].mean() + 0.005


@pytest.mark.parametrize(
    ("balance", "judge", "attack"),
    [
        ("sum", "loss", attacks.PGD(EPS, EPS / 4, 3)),
        slow("wgd", "loss", attacks.PGD(EPS, EPS / 4, 3)),
        slow("worst", "loss", attacks.PGD(EPS, EPS / 4, 3)),
        slow("dgba_paper", "loss", attacks.PGD(EPS, EPS / 4, 3)),
        slow("sum", "harm", attacks.PGD(EPS, EPS / 4, 3)),
        slow("worst", "harm", attacks.PGD(EPS, EPS / 4, 3)),
        slow("worst", "loss", attacks.APGD(EPS, 3)),
        ("sum", "harm", attacks.APGD(EPS, 3)),
    ],
)
def test_more_restarts_never_do_worse(net, balance, judge, attack):
    x, targets, masks = batch()
    settings = {"balance": balance, "judge": judge, "fold": False}
    objective = attacks.objective(net, targets, masks, ("seg", "depth"), **settings)
    run_objective = objective.begin(x)  # Compared with the clean images.
    restarted_attack = dataclasses.replace(attack, restarts=4)
    scores, restart_scores = (
        np.stack([run_objective(a(objective, x, seed))[1] for seed in range(4)])
        for a in (attack, restarted_attack)
    )
    # The first run is the same in both.
    assert np.all(restart_scores >= scores - 1e-6 * np.abs(scores) - 1e-7)
    assert np.any(restart_scores > scores + 1e-6 * np.abs(scores))


@pytest.mark.slow
def test_more_steps_never_do_worse_on_the_judged_scale(net):
    # The first points of a longer run are those of a shorter one, for losses that do
    # not know how many there are to come.
    x, targets, masks = batch()
    objective = attacks.objective(
        net, targets, masks, "seg", losses="cospgd", fold=False
    )
    previous_score = objective(x)[1]
    for steps in (1, 2, 4, 8, 16):
        images = attacks.PGD(EPS, EPS / 4, steps)(objective, x, 1)
        assert np.all(objective(images)[1] >= previous_score - (steps == 1))
        previous_score = objective(images)[1]


def test_segpgd_weighs_by_the_progress_within_a_stage(net):
    """Its lambda in closed form: half the share of the stage's steps that are done."""
    x, targets, masks = batch()
    objective = attacks.objective(net, targets, masks, "seg", losses="segpgd")
    logits = net(x)["seg"].numpy().astype(float)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    ce = -np.log(np.take_along_axis(p, targets["seg"][..., None], -1)[..., 0])
    right = logits.argmax(-1) == targets["seg"]
    for step, steps in ((0, 6), (3, 6), (5, 6)):
        share = step / steps / 2
        pixels = np.where(right, 1 - share, share) * ce * masks["seg"]
        expected = pixels.sum((1, 2)) / masks["seg"].sum((1, 2))
        got = objective(x, step / steps)[0]
        np.testing.assert_allclose(got, expected, rtol=1e-4)


# Points of equal harm.


def linear(classes=3, side=4, count=12, seed=0):
    """(model, images, labels, weights [values, classes]) of a linear classifier."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(side * side, classes)).astype(np.float32)
    x = rng.uniform(0.4, 0.6, (count, side, side, 1)).astype(np.float32)
    logits = x.reshape(count, -1) @ weights

    def model(x):
        return {"scene": tf.reshape(x, (-1, side * side)) @ weights}

    return model, x, logits.argmax(-1).astype(np.int32), weights


def scene(classes=3, **fields):
    return tasks_lib.Task("scene", kind="classes", channels=classes, places=0, **fields)


def smallest_eps(x, labels, weights):
    """Where the label of a linear classifier flips under linf, in closed form."""
    logits = x.reshape(len(x), -1).astype(float) @ weights
    other_logits = np.where(
        np.arange(logits.shape[1]) == labels[:, None], -np.inf, logits
    )
    label_logits = np.take_along_axis(logits, labels[:, None], 1)
    lengths = np.abs(weights[:, labels].T[:, :, None] - weights[None]).sum(1)
    return ((label_logits - other_logits) / np.where(lengths > 0, lengths, 1)).min(1)


SQUARE, APGD = attacks.Square(1.0, 400), attacks.APGD(1.0, 20)


@pytest.mark.parametrize(
    ("attack", "loss", "targeted"),
    [
        (SQUARE, "margin", False),
        (APGD, "cospgd", False),
        slow(APGD, "margin", False),
        slow(SQUARE, "cospgd", True),
        slow(APGD, "cospgd", True),
    ],
)
def test_the_label_of_an_image_flips_where_the_closed_form_says(attack, loss, targeted):
    """By random search, and by step sizes that follow the score; harm is 0 at first."""
    model, x, labels, weights = linear(2 if targeted else 3)
    flip_eps = smallest_eps(x, labels, weights)
    assert flip_eps.max() < 0.4  # Away from the box.
    objective = attacks.objective(
        model,
        {"scene": 1 - labels if targeted else labels},
        {"scene": np.ones(len(x))},
        [scene(weights.shape[1])],
        losses=loss,
        targeted=targeted,
    )
    eps = float(np.median(flip_eps))
    images = dataclasses.replace(attack, epsilon=eps)(objective, x, 0)
    flipped = model(images)["scene"].numpy().argmax(-1) != labels
    assert flipped[flip_eps < eps / 1.1].all()
    assert not flipped[flip_eps > eps].any()
    assert (flip_eps < eps / 1.1).sum() > 2
    assert (flip_eps > eps).sum() > 2


def ties(tasks, outputs, targets, masks=None, **settings):
    """Scores with ties broken, and harms, of a model that returns these outputs."""
    target = next(iter(targets.values()))
    masks = masks or {n: np.ones(t.shape[:1]) for n, t in targets.items()}
    objective = attacks.objective(
        lambda x: outputs, targets, masks, tasks, **{"judge": "harm"} | settings
    )
    x = tf.zeros((len(target), 2, 2, 3))
    return objective(x)[1].numpy(), objective.with_ties()(x)[1].numpy()


TAGS = tasks_lib.Task("tags", kind="labels", channels=4, places=0)


def answers(count=400, seed=0):
    """(outputs, targets) of images with one class and with four labels."""
    rng = np.random.default_rng(seed)
    outputs = {
        "scene": rng.normal(size=(count, 3)),
        "tags": rng.normal(size=(count, 4)),
    }
    scale = 10 ** rng.uniform(-2, 2, (count, 1))
    outputs = {n: tf.constant(scale * o, tf.float32) for n, o in outputs.items()}
    tags = rng.integers(0, 2, (count, 4)).astype(np.float32)
    return outputs, {"scene": rng.integers(0, 3, count).astype(np.int32), "tags": tags}


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("names", [("scene",), ("tags",), ("scene", "tags")])
def test_points_of_more_harm_score_more_and_others_by_their_margins(names, targeted):
    outputs, targets = answers()
    tasks = {"scene": scene(), "tags": TAGS}
    score, harm = ties(
        [tasks[n] for n in names],
        outputs,
        {n: targets[n] for n in names},
        targeted=targeted,
    )
    sign = -1 if targeted else 1
    assert len(np.unique(score)) > 350 > 20 > len(np.unique(harm))
    harm_order = np.sign(harm[:, None] - harm).astype(int)
    np.testing.assert_array_equal(
        np.sign(score[:, None] - score)[harm_order != 0], harm_order[harm_order != 0]
    )
    if names == ("scene",):  # For one place, the order is that of its margin.
        margin = attacks.objective(
            lambda x: outputs,
            targets,
            {"scene": np.ones(400)},
            [scene()],
            losses="margin",
        )
        margins = margin(tf.zeros((400, 2, 2, 3)))[0]
        np.testing.assert_array_equal(np.argsort(score), np.argsort(sign * margins))


def test_a_step_of_one_place_is_never_made_up_for_by_nearness():
    """By hand: a label that is just right, and one that is just wrong."""
    logits = tf.constant([[50.0, 0], [1, 0], [1e-3, 0], [0, 1e-3], [0, 50]])
    score, harm = ties([scene(2)], {"scene": logits}, {"scene": np.zeros(5, np.int32)})
    np.testing.assert_array_equal(harm, [0, 0, 0, 1, 1])
    nearness = np.array([0.5 / 51, 0.25, 0.5 / 1.001, 1 - 0.5 / 1.001, 1 - 0.5 / 51])
    np.testing.assert_allclose(score, harm + 0.5 * nearness, rtol=1e-6)
    outputs = {"scene": logits, "tags": tf.constant([[1.0] * 4] * 5)}
    targets = {"scene": np.zeros(5, np.int32), "tags": np.ones((5, 4), np.float32)}
    score, harm = ties([scene(2), TAGS], outputs, targets)
    np.testing.assert_allclose(harm, np.sqrt([1 / 16] * 3 + [1 / 8] * 2), rtol=1e-6)
    nearness = (nearness + 0.25) / 2
    expected = np.sqrt(([1] * 3 + [2] * 2 + nearness) / np.array(16))
    np.testing.assert_allclose(score, expected, rtol=1e-6)


def test_broken_logits_count_as_wrong():
    logits = tf.constant([[np.nan, 0], [np.inf, 0], [np.inf, np.inf], [0, 1]])
    score, harm = ties([scene(2)], {"scene": logits}, {"scene": np.zeros(4, np.int32)})
    np.testing.assert_array_equal(harm, 1)
    assert np.isfinite(score).all()
    assert (score >= 1).all()


def test_where_harms_hardly_tie_they_are_all_that_counts(net):
    x, targets, masks = batch()
    for names, settings in (
        (("seg",), {}),
        (("depth",), {"pixels": np.ones((6, 5))}),
        (("seg", "depth"), {"classes": [1]}),
    ):
        objective = attacks.objective(
            net, targets, masks, names, judge="harm", **settings
        )
        np.testing.assert_array_equal(objective(x)[1], objective.with_ties()(x)[1])
    class_objective = attacks.objective(
        net, targets, masks, ("seg",), judge="harm", classes=[1]
    )
    score, harm = (
        class_objective(x)[1].numpy(),
        class_objective.with_ties()(x)[1].numpy(),
    )
    count = (masks["seg"] * (targets["seg"] == 1)).sum((1, 2))
    assert (score > harm).all()
    assert (score - harm < 0.5 / count).all()


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, ("scene", "tags")),
        ({"judge": "loss"}, ()),
        ({"weights": [1.0, 2.0]}, ()),
        ({"weights": [2.0, 2.0]}, ("scene", "tags")),
        ({"weights": [2.0, 0.0]}, ("scene",)),
        ({"draws": 2}, ()),
        ({"tasks": {"scene": scene()}, "draws": 2}, ("scene",)),
        ({"tasks": {"scene": scene(), "seg": tasks_lib.TASKS["seg"]}}, ("scene",)),
        ({"tasks": {"scene": scene(), "depth": tasks_lib.TASKS["depth"]}}, ()),
        ({"tasks": {"scene": scene(metrics=tasks_lib.metrics.image_miou())}}, ()),
        ({"tasks": {"seg": tasks_lib.TASKS["seg"]}, "restricted": True}, ("seg",)),
    ],
)
def test_tasks_whose_ties_are_broken(fields, names):
    arguments = {"judge": "harm", "tasks": {"scene": scene(), "tags": TAGS}} | fields
    assert judging.may_tie(**arguments) == names


def test_members_of_equal_harm_are_equal_and_the_first_is_taken():
    model, x, labels, weights = linear()
    eps = 0.5 * smallest_eps(x, labels, weights).min()  # No label flips.
    objective = attacks.objective(
        model, {"scene": labels}, {"scene": np.ones(len(x))}, [scene()]
    )
    fgsm = attacks.FGSM(eps / 2)
    result = attacks.Worst((fgsm, attacks.PGD(eps, eps / 2, 5)))(objective, x, 0)
    np.testing.assert_array_equal(result, fgsm(objective, x, 0))


def test_the_mean_iou_of_each_image_is_a_harm_of_classes_without_names():
    """The number of classes is that of the model's outputs."""
    task = tasks_lib.Task(
        "parts", kind="classes", metrics=tasks_lib.metrics.image_miou()
    )
    logits = tf.one_hot([[[0, 1], [2, 2]]], 3)
    objective = attacks.objective(
        lambda x: {"parts": logits},
        {"parts": np.array([[[0, 1], [1, 2]]])},
        {"parts": np.ones((1, 2, 2))},
        [task],
        judge="harm",
    )
    expected = 1 - (1 + 1 / 2 + 1 / 2) / 3
    np.testing.assert_allclose(objective(tf.zeros((1, 2, 2, 3)))[1], expected, 1e-6)
