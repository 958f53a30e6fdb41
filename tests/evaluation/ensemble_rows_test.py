# SPDX-License-Identifier: Apache-2.0
"""Ensembles combined from rows on disk are those in Python, image by image."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtr_tf import attacks
from mtr_tf.attacks import threat
from mtr_tf.config.attack import AttackConfig
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.evaluation import sweep
from mtr_tf.evaluation import worst_case
from mtr_tf.evaluation.cell_store import Store
from mtr_tf.evaluation.plan import make_cells
from mtr_tf.runs.workers import Workers

SIZE, COUNT = 6, 8
INFO = DatasetInfo(
    name="made_up",
    image_shape=(SIZE, SIZE, 3),
    classes=("one", "two", "three"),
    colors=((0, 0, 0), (128, 128, 128), (255, 255, 255)),
    tasks=("seg", "depth"),
    splits={"validation": COUNT},
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
    ranges={},
)
EPS, STEPS = 32 / 255, 5


@pytest.fixture(scope="module")
def subject() -> sweep.Subject:
    """Two tasks, a net that is right at first, and images with pixels masked out."""
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(0)
    image = keras.Input((SIZE, SIZE, 3))
    y = keras.layers.Conv2D(8, 3, padding="same", activation="softplus")(image)
    y = keras.layers.Conv2D(8, 3, padding="same", activation="softplus")(5 * y)
    heads = {n: keras.layers.Conv2D(c, 1)(y) for n, c in (("seg", 3), ("depth", 1))}
    model = keras.Model(image, heads)
    images = rng.integers(0, 256, (COUNT, SIZE, SIZE, 3)).astype(np.uint8)
    outputs = model(images / np.float32(255))
    targets = {
        "seg": outputs["seg"].numpy().argmax(-1).astype(np.uint8),
        "depth": outputs["depth"].numpy() + rng.normal(0, 0.3, (COUNT, SIZE, SIZE, 1)),
    }
    targets["depth"] = targets["depth"].astype(np.float32)
    masks = {n: (rng.random((COUNT, SIZE, SIZE)) < 0.8).astype(np.uint8) for n in heads}
    return sweep.Subject(
        model=model,
        tasks=("seg", "depth"),
        info=INFO,
        columns=Columns(images, targets, masks),
        num_examples=COUNT,
        workers=Workers(tf.distribute.get_strategy()),
        batch_size=COUNT,
        seed=3,
    )


def members(*names):
    """The settings of an ensemble, and the same ensemble in Python."""
    by_name = {
        "pgd": attacks.PGD(EPS, EPS / 4, STEPS),
        "mim": attacks.MIM(EPS, EPS / 4, STEPS),
        "noise": attacks.Noise(EPS),
        "fgsm": attacks.FGSM(EPS),
    }
    return {"ensemble": names}, attacks.Worst(tuple(by_name[name] for name in names))


SEA = {"attack": ("sea",)}, attacks.SEA(EPS, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "attack", "more"),
    [
        ("seg+depth", SEA, {}),
        ("seg+depth", members("noise", "pgd", "mim"), {"balance": ("dgba",)}),
        (
            "seg+depth",
            members("pgd", "mim", "fgsm"),
            {"balance": ("worst",), "judge": "loss", "attack_block": "3x3"},
        ),
    ],
)
def test_the_same_image_by_image(subject, tmp_path, group, attack, more):
    settings, record = attack
    config = AttackConfig(
        **{"ckpt": "x", "attack": ("worst",), "eps": (32.0,), "steps": STEPS}
        | {"attack_tasks": (group,), "seed": 3, **settings, **more},
    )
    (cell,) = make_cells(config, subject.tasks)
    store = Store(tmp_path, {}, save_examples=COUNT)
    _, (result,) = sweep.run(subject, [cell], store)
    results = [store.read(member) for member in cell.members]
    choice = worst_case.choose(cell, results)
    assert len(set(choice)) > 1  # Otherwise the test shows nothing.
    images = []
    for member in cell.members:
        with np.load(store._examples_path(member)) as file:
            images.append(file["adversarial"])
    chosen_images = np.stack(images)[choice, np.arange(COUNT)]
    with np.load(store._examples_path(cell)) as file:
        np.testing.assert_array_equal(file["adversarial"], chosen_images)

    columns = subject.columns
    options = cell.objective_settings(SIZE, SIZE)
    options["judge"] = config.judge
    objective = attacks.objective(
        subject.model, columns.targets, columns.masks, **options
    )
    x = tf.constant(columns.images / np.float32(255))
    adversarial = record(objective, x, threat.image_keys(3, tf.range(COUNT)))
    np.testing.assert_array_equal(adversarial, chosen_images)
    judge = objective.in_ensemble().begin(x)
    scores = [judge(points)[1] for points in images]
    np.testing.assert_array_equal(np.argmax(scores, 0), choice)
    for member, score in zip(results, scores, strict=True):
        np.testing.assert_allclose(worst_case.score_of(cell, member), score, rtol=1e-4)


def test_settings_of_members(subject):
    config = AttackConfig(ckpt="x", attack=("sea", "worst", "pgd"), eps=(8.0,))
    sea, ensemble, pgd = make_cells(config, ("seg",))
    assert [c.objective.judge for c in (sea, ensemble, pgd)] == ["harm", "harm", "loss"]
    assert (sea.label, ensemble.label, pgd.label) == ("sea", "worst", "pgd")
    assert [m.objective.losses for m in sea.members] == [
        ("masked_ce_balanced",),
        ("masked_ce",),
        ("js",),
        ("cospgd",),
    ]
    for cell in (sea, ensemble):
        assert {member.objective.judge for member in cell.members} == {"harm"}
        assert [member.place for member in cell.members] == list(
            range(len(cell.members))
        )
    harm_config = dataclasses.replace(config, judge="harm")
    assert [c.label for c in make_cells(harm_config, ("seg",))] == [
        "sea",
        "worst",
        "pgd-harm",
    ]
    loss_config = dataclasses.replace(config, judge="loss", attack_loss=("cospgd",))
    assert [c.label for c in make_cells(loss_config, ("seg",))] == [
        "sea-loss",
        "worst-cospgd-loss",
        "pgd-cospgd-loss",
    ]
