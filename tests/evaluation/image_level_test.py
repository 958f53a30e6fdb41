# SPDX-License-Identifier: Apache-2.0
"""Tasks with one value per image, or with other places, attacked and shown."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtr_tf import attacks
from mtr_tf import tasks as tasks_lib
from mtr_tf.attacks.attack_losses import Case
from mtr_tf.config.attack import AttackConfig
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.errors import InputError
from mtr_tf.evaluation import own_targets
from mtr_tf.evaluation import results as results_lib
from mtr_tf.evaluation import sanity_checks
from mtr_tf.evaluation import sweep
from mtr_tf.evaluation.cell_store import Store
from mtr_tf.evaluation.plan import make_cells
from mtr_tf.measures import measure
from mtr_tf.runs.workers import Workers
from mtr_tf.show import curves
from mtr_tf.show import gallery
from mtr_tf.show import tensorboard
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet
from mtr_tf.tasks import more_metrics

SCENE = Task("scene", kind="classes", classes=("indoor", "outdoor", "sky"), places=0)
TAGS = Task("tags", kind="labels", classes=("cat", "dog", "car", "tree"), places=0)
AGE = Task("age", kind="numbers", unit="years", places=0)
SERIES = Task("series", kind="numbers", channels=2, places=1)
DEPTH = tasks_lib.TASKS["depth"]
TASKS = TaskSet((SCENE, TAGS, AGE, SERIES, DEPTH))
COUNT, SIDE = 8, 16
FACTS = {"seed": 0, "dataset": "mine", "split": "test", "interval_over": "images"}


def linear(task, tensor, units, seed):
    initializer = keras.initializers.RandomNormal(stddev=0.3, seed=seed)
    return keras.layers.Dense(units, name=task, kernel_initializer=initializer)(tensor)


def make_model():
    image = keras.Input((SIDE, SIDE, 3))
    flat = keras.layers.Flatten()(image)
    initializer = keras.initializers.RandomNormal(seed=5)
    return keras.Model(
        image,
        {
            "scene": linear("scene", flat, 3, 1),
            "tags": linear("tags", flat, 4, 2),
            "age": linear("age", flat, 1, 3),
            "series": keras.layers.Reshape((5, 2))(linear("series", flat, 10, 4)),
            "depth": keras.layers.Conv2D(
                1, 3, padding="same", kernel_initializer=initializer
            )(image),
        },
    )


def make_columns():
    rng = np.random.default_rng(0)
    return Columns(
        images=rng.integers(64, 192, (COUNT, SIDE, SIDE, 3), np.uint8),
        targets={
            "scene": rng.integers(0, 3, COUNT).astype(np.int32),
            "tags": rng.integers(0, 2, (COUNT, 4)).astype(np.float32),
            "age": rng.random((COUNT, 1), np.float32),
            "series": rng.random((COUNT, 5, 2), np.float32),
            "depth": rng.random((COUNT, SIDE, SIDE, 1), np.float32),
        },
        masks={"scene": np.arange(COUNT) != 3},
    )


def make_subject(columns=None):
    info = DatasetInfo(
        name="mine",
        image_shape=(SIDE, SIDE, 3),
        classes=(),
        colors=(),
        tasks=TASKS,
        splits={"test": COUNT},
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        ranges={},
    )
    return sweep.Subject(
        model=make_model(),
        tasks=info.tasks,
        info=info,
        columns=columns or make_columns(),
        num_examples=COUNT,
        workers=Workers(tf.distribute.get_strategy()),
        batch_size=4,
        seed=0,
    )


def one_batch():
    columns = make_columns()
    x = tf.constant(columns.images / 255, tf.float32)
    masks = {name: tf.ones(COUNT) for name in ("scene", "tags", "age")}
    return x, columns.targets, masks


def test_fgsm_on_a_linear_classifier_is_the_sign_of_the_cross_entropys_slope():
    model, (x, targets, masks) = make_model(), one_batch()
    goal = attacks.objective(model, targets, masks, tasks=[SCENE])
    result = attacks.FGSM(2 / 255)(goal, x, 0)
    weights = model.get_layer("scene").kernel.numpy()
    probabilities = keras.ops.softmax(model(x)["scene"]).numpy()
    slope = (probabilities - np.eye(3)[targets["scene"]]) @ weights.T
    expected = x + 2 / 255 * np.sign(slope.reshape(x.shape))
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("loss", [(), "bce"])
def test_pgd_on_a_logistic_regression_of_labels_goes_to_the_corner(loss):
    """One label: the slope has one sign everywhere, so PGD ends at x + eps sign(w)."""
    model, (x, targets, masks) = make_model(), one_batch()
    task = Task("tags", kind="labels", channels=1, places=0)
    labels = targets["tags"][:, :1]

    def first_output(images):
        return {"tags": model(images)["tags"][:, :1]}

    goal = attacks.objective(
        first_output, {"tags": labels}, masks, [task], losses=loss, judge="loss"
    )
    pgd = attacks.PGD(4 / 255, 2 / 255, 5, random_start=False)
    result = pgd(goal, x, 0)
    weights = model.get_layer("tags").kernel.numpy()[:, 0].reshape(x.shape[1:])
    sign = (1 - 2 * labels).reshape(-1, 1, 1, 1)  # Away from the label.
    expected = x + 4 / 255 * sign * np.sign(weights)
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_the_gradient_of_several_labels_is_that_of_their_mean_cross_entropy():
    model, (x, targets, masks) = make_model(), one_batch()
    goal = attacks.objective(model, targets, masks, tasks=[TAGS])
    with tf.GradientTape() as tape:
        tape.watch(x)
        ascend, score = goal(x, 0.0)
    gradient = tape.gradient(ascend, x)
    weights = model.get_layer("tags").kernel.numpy()
    probabilities = keras.ops.sigmoid(model(x)["tags"]).numpy()
    slope = (probabilities - targets["tags"]) @ weights.T / 4
    np.testing.assert_allclose(gradient, slope.reshape(x.shape), atol=1e-5)
    labels = targets["tags"]
    value = -np.log(np.where(labels > 0, probabilities, 1 - probabilities)).mean(axis=1)
    np.testing.assert_allclose(score, value, rtol=1e-4)


def test_masked_bce_counts_labels_that_are_right_alone():
    loss = attacks.ATTACK_LOSSES["masked_bce"].loss
    logits = tf.constant([[2.0, -1.0, 3.0, -4.0]])
    target, mask = tf.constant([[1.0, 1.0, 0.0, 0.0]]), tf.ones(1)
    case = attack_case(target, logits, mask)
    right_loss = np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-4.0))
    np.testing.assert_allclose(loss(case), [right_loss / 4], rtol=1e-5)
    wrong_loss = np.log1p(np.exp(1.0)) + np.log1p(np.exp(3.0))
    np.testing.assert_allclose(
        loss(case._replace(targeted=True)), [wrong_loss / 4], rtol=1e-5
    )


def attack_case(target, output, mask):
    return Case(target, output, mask, TAGS.loss, kind="labels")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"attack": ("pgd",), "attack_tasks": ("all", "scene", "tags+series")},
        {"attack_loss": ("margin+masked_bce+l2",), "attack_tasks": ("all",)},
        {"attack_loss": ("cospgd",), "attack_tasks": ("each",)},
        {"balance": ("dgba", "normalized", "worst"), "attack_tasks": ("scene+depth",)},
        {
            "targeted": True,
            "attack_tasks": ("scene+tags+depth",),
            "metrics": ("mean_ap", "delta1"),
        },
        {
            "attack": ("worst",),
            "ensemble": ("pgd", "fgsm"),
            "attack_tasks": ("all",),
            "metrics": ("all",),
        },
        {"attack": ("sea",), "attack_tasks": ("scene",)},
    ],
)
def test_all_is_attacked_scored_and_shown(tmp_path, settings):
    config = AttackConfig(ckpt="x", eps=(4.0,), steps=3, **settings)
    subject = make_subject()
    tasks = more_metrics.with_more(subject.tasks, config.metrics, None)
    subject = dataclasses.replace(subject, tasks=tasks)
    cells = make_cells(config, subject.tasks)
    store = Store(tmp_path, {"seed": 0}, 0, subject.tasks)
    clean, results = sweep.run(subject, cells, store)
    records = results_lib.make_records(clean, results, FACTS, tasks=subject.tasks)
    names = {(r["task"], r["metric"]) for r in records}
    assert names >= {("scene", "accuracy"), ("tags", "f1"), ("age", "mae")}
    assert (("tags", "mean_ap") in names) == bool(config.metrics)
    losses = [
        r for r in records if r["metric"] == "loss" and r["task"] in r["attacked"]
    ]
    if not config.targeted:
        harmed = [r["attacked_value"] > r["clean"] for r in losses]
        assert np.mean(harmed) > 0.6
    curves.save_run(records, tmp_path / "curves.png")
    gallery.save_run(clean, results, tmp_path / "gallery.png", {})
    settings = config.to_dict() | {"split": "test"}
    tensorboard.write_attacks(
        settings, clean, results, tmp_path / "board", tasks=subject.tasks
    )
    rerun = sweep.run(subject, cells, store)
    assert rerun[0].scores == clean.scores


@pytest.mark.slow
def test_the_checks_look_at_image_level_heads():
    subject = make_subject()
    config = AttackConfig(ckpt="x", eps=(4.0,), steps=3, attack_tasks=("scene",))
    (cell,) = make_cells(config, subject.tasks)
    checks = sanity_checks.run(subject, sanity_checks.probe([cell]))
    names = [check.name for check in checks]
    assert "large_eps" in names
    assert "accuracy" in checks[names.index("large_eps")].measured


def test_pixels_are_of_maps_alone():
    subject = make_subject()
    config = AttackConfig(
        ckpt="x", eps=(4.0,), attack_pixels=4, attack_tasks=("scene",)
    )
    (cell,) = make_cells(config, subject.tasks)
    with pytest.raises(InputError, match="no attacked task"):
        cell.check((SIDE, SIDE, 3))


@pytest.mark.slow
def test_measures_of_tasks_take_all_and_those_of_pixels_maps(tmp_path):
    subject = make_subject()
    config = AttackConfig(
        ckpt="x",
        eps=(4.0,),
        steps=2,
        measure=("tasks", "blocks", "first_order"),
        measure_draws=1,
        attack_tasks=("scene+depth",),
    )
    settings = measure.settings_of(config, subject.tasks)

    class Facts:
        def to_dict(self):
            return {}

        def of_measures(self, warnings):
            return {}

    records = measure.measure(subject, settings, Facts(), [], tmp_path)
    by_measure = {}
    for record in records:
        by_measure.setdefault(record["measure"], set()).update(record.get("tasks", ()))
    assert by_measure["tasks"] == set(TASKS)
    assert by_measure["blocks"] == {"depth"}
    assert by_measure["first_order"] == {"scene", "depth"}


def test_own_targets_have_the_same_bits_however_many_there_are():
    """They identify finished work, and their last bits depend on the batch size."""
    subject = make_subject()
    five_targets, seven_targets = (
        own_targets.of_model(subject.model, subject.columns, TASKS, count).targets
        for count in (5, 7)
    )
    for name in TASKS:
        assert len(five_targets[name]) == 5
        np.testing.assert_array_equal(five_targets[name], seven_targets[name][:5])


@pytest.mark.slow
def test_own_targets_are_the_clean_outputs():
    subject = make_subject()
    columns = own_targets.of_model(subject.model, subject.columns, TASKS, COUNT)
    outputs = subject.model(make_columns().images / np.float32(255))
    scene, tags = (keras.ops.convert_to_numpy(outputs[t]) for t in ("scene", "tags"))
    np.testing.assert_array_equal(columns.targets["scene"], scene.argmax(-1))
    np.testing.assert_array_equal(columns.targets["tags"], tags > 0)
    np.testing.assert_allclose(columns.targets["age"], outputs["age"], atol=1e-5)
    own_subject = make_subject(columns)
    config = AttackConfig(ckpt="x", eps=(8.0,), steps=3, attack_tasks=("scene+age",))
    cells = make_cells(config, own_subject.tasks)
    clean, (attacked,) = sweep.run(own_subject, cells, _NoStore())
    assert clean.scores["scene"]["accuracy"]["value"] == 1
    assert clean.scores["tags"]["label_accuracy"]["value"] == 1
    assert clean.scores["age"]["mae"]["value"] < 1e-5
    assert attacked.scores["age"]["mae"]["value"] > 0.1


class _NoStore:
    """Keeps nothing."""

    save_examples = 0

    def read(self, cell):
        return None

    def write(self, result, examples=None):
        pass

    def filed(self, result):
        return result

    def label(self, cell):
        return ""
