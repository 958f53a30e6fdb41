# SPDX-License-Identifier: Apache-2.0
"""`--targets=own`: a model is attacked on pictures that nobody has labelled."""

from __future__ import annotations

import keras
import pytest

from mtr_tf import attack_job
from mtr_tf.config.attack import AttackConfig
from mtr_tf.errors import InputError

DATA = """
import numpy as np
from mtr_tf.tasks import Task

def pictures():
    rng = np.random.default_rng(0)
    images = [{"image": rng.uniform(size=(16, 16, 3)), "targets": {}} for _ in range(4)]
    tasks = [Task("room", classes=("wall", "ball")), Task("side", channels=3, places=0)]
    return {"validation": images, "tasks": tasks}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model with a map and a value per image, and pictures without labels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "unlabelled.py").write_text(DATA)
    keras.utils.set_random_seed(0)
    x = keras.Input((16, 16, 3))
    h = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    maps = keras.layers.Conv2D(2, 1, name="semantic")(h)
    pooled = keras.layers.GlobalAveragePooling2D()(h)
    keras.Model(x, [maps, keras.layers.Dense(3, name="angle")(pooled)]).save("my.keras")
    return tmp_path


def config(heads: tuple[str, ...], **settings) -> AttackConfig:
    return AttackConfig(
        ckpt="my.keras",
        dataset="unlabelled:pictures",
        heads=heads,
        attack_tasks=("all",),
        eps=(8.0,),
        steps=2,
        num_examples=4,
        batch_size=4,
        checks=False,
        format="json",
        **settings,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "heads",
    [("semantic:room", "angle:side"), ("semantic:classes", "angle:numbers")],
    ids=["tasks", "kinds"],
)
@pytest.mark.usefixtures("folder")
def test_declared_tasks_and_kinds_need_no_targets(heads):
    job = attack_job.resolve(config(heads, targets="own"))
    records = job.run().attacked.records
    by_metric = {record["metric"]: record for record in records}
    assert by_metric["pixel_accuracy"]["clean"] == 1
    assert by_metric["pixel_accuracy"]["attacked_value"] < 1
    assert by_metric["mae"]["clean"] == pytest.approx(0, abs=1e-6)
    assert by_metric["mae"]["attacked_value"] > 1e-4


@pytest.mark.usefixtures("folder")
def test_without_it_targets_are_asked_for():
    with pytest.raises(InputError, match="none for room"):
        attack_job.resolve(config(("semantic:room",)))
