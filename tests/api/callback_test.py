# SPDX-License-Identifier: Apache-2.0
"""`mtr_tf.RobustnessCallback` logs the numbers of `evaluate`; training is unchanged."""

from __future__ import annotations

import contextlib
import sys
import types

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mtr_tf

SETTINGS = {"eps": 4, "steps": 2, "batch_size": 4}


def make_model(activation=None):
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.3)(x)
    heads = {
        "seg": keras.layers.Conv2D(3, 1, activation=activation)(x),
        "depth": keras.layers.Conv2D(1, 1)(x),
    }
    model = keras.Model(image, heads)
    seg = keras.losses.SparseCategoricalCrossentropy(from_logits=activation is None)
    model.compile(keras.optimizers.SGD(0.1), loss={"seg": seg, "depth": "mae"})
    return model


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    targets = {
        "seg": rng.integers(0, 3, (8, 8, 8)),
        "depth": rng.uniform(1, 3, (8, 8, 8, 1)).astype(np.float32),
    }
    return rng.uniform(0, 1, (8, 8, 8, 3)).astype(np.float32), targets


def fit(model, batch, epochs, *callbacks):
    keras.utils.set_random_seed(5)
    return model.fit(
        *batch, batch_size=4, epochs=epochs, verbose=0, callbacks=list(callbacks)
    ).history


@pytest.mark.slow
def test_training_is_the_same_with_and_without(batch):
    model, watched = make_model(), make_model()
    history = fit(model, batch, 3)
    watched_history = fit(
        watched, batch, 3, mtr_tf.RobustnessCallback(batch, **SETTINGS)
    )
    for expected, result in zip(
        model.get_weights(), watched.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(expected, result)
    assert {name: watched_history[name] for name in history} == history


@pytest.mark.slow
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_numbers_are_those_of_evaluate(batch, activation):
    """Each epoch logs those of the model at its end, also where the model is copied."""
    model = make_model(activation)
    evaluations = []

    class Evaluate(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            evaluations.append(
                mtr_tf.evaluate(
                    self.model, batch, attack_tasks="all", checks=False, **SETTINGS
                )
            )

    callback = mtr_tf.RobustnessCallback(batch, **SETTINGS)
    history = fit(model, batch, 2, callback, Evaluate())
    for epoch, results in enumerate(evaluations):
        for record in results.records:
            name = f"{record['task']}_{record['metric']}"
            clean = history[f"val_clean_{name}"][epoch]
            assert clean == pytest.approx(record["clean"], rel=1e-5), name
            attacked = history[f"val_adv_{name}"][epoch]
            assert attacked == pytest.approx(record["attacked_value"], rel=1e-5), name
    losses = history["val_clean_depth_loss"]
    assert losses[0] != losses[1]


def test_radii_epochs_and_tensorboard(batch, tmp_path):
    callback = mtr_tf.RobustnessCallback(
        batch, "seg", "fgsm", eps=[2, 8], every=2, log_dir=tmp_path
    )
    history = fit(make_model(), batch, 4, callback)
    names = {name for name in history if name.startswith("val_")}
    assert "val_adv_eps2_seg_loss" in names
    assert "val_adv_eps8_seg_miou" in names
    assert not any("depth" in name for name in names)
    assert len(history["val_adv_eps8_seg_loss"]) == 2  # Of four epochs.
    assert history["val_adv_eps8_seg_loss"] > history["val_clean_seg_loss"]
    events = EventAccumulator(str(tmp_path / "validation")).Reload()
    for kind, name in (("clean", "clean"), ("attacked eps2", "adv_eps2")):
        tensors = events.Tensors(f"seg/loss, {kind}")
        assert [event.step for event in tensors] == [1, 3]
        values = [
            float(np.frombuffer(e.tensor_proto.tensor_content or b"", "f4")[0])
            if e.tensor_proto.tensor_content
            else e.tensor_proto.float_val[0]
            for e in tensors
        ]
        np.testing.assert_allclose(values, history[f"val_{name}_seg_loss"], rtol=1e-6)


@pytest.mark.slow
def test_several_attacks_have_numbers_of_their_own(batch):
    settings = {"attack": ["noise", "fgsm"], "attack_loss": ["own", "cospgd"]}
    callback = mtr_tf.RobustnessCallback(batch, tasks="seg", eps=8, **settings)
    history = fit(make_model(), batch, 1, callback)
    names = {n for n in history if n.startswith("val_adv") and n.endswith("_seg_loss")}
    assert names == {
        f"val_adv_{attack}_seg_loss" for attack in ("noise", "fgsm", "fgsm-cospgd")
    }
    assert history["val_adv_fgsm_seg_loss"] > history["val_adv_noise_seg_loss"]


@pytest.mark.slow
def test_models_on_several_replicas_have_the_numbers_of_one(batch, mirrored):
    logs = []
    for scope in (contextlib.nullcontext(), mirrored.scope()):
        with scope:
            model = make_model()
        callback = mtr_tf.RobustnessCallback(batch, "seg", "fgsm", batch_size=4)
        callback.set_model(model)
        logs.append({})
        callback.on_epoch_end(0, logs[-1])
    assert "val_adv_seg_loss" in logs[0]
    assert logs[1] == pytest.approx(logs[0], rel=1e-5)


@pytest.mark.slow
def test_own_tasks_of_named_data_are_known_in_later_epochs(batch, monkeypatch):
    """Later epochs check a model with a softmax anew, but not the data."""
    images, targets = batch
    module = types.ModuleType("callback_data")
    parts = mtr_tf.Task("parts", kind="classes", channels=3)
    rows = [(x, {"parts": y}) for x, y in zip(images, targets["seg"], strict=True)]
    module.examples = lambda: {"validation": rows, "tasks": [parts]}
    monkeypatch.setitem(sys.modules, "callback_data", module)
    image = keras.Input((8, 8, 3))
    output = keras.layers.Conv2D(3, 1, activation="softmax")(image)
    callback = mtr_tf.RobustnessCallback(
        "callback_data:examples", tasks="parts", attack="fgsm"
    )
    callback.set_model(keras.Model(image, {"parts": output}))
    logs = [{}, {}]
    for epoch, epoch_logs in enumerate(logs):
        callback.on_epoch_end(epoch, epoch_logs)
    assert logs[0] == logs[1]
    assert "val_adv_parts_loss" in logs[0]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["list", "softmax"])
def test_adversarial_training_can_be_watched(batch, form):
    """The callback takes the trained model's names, and logits before its softmax."""
    images, targets = batch
    image = keras.Input((8, 8, 3))
    activation = "softmax" if form == "softmax" else None
    seg = keras.layers.Conv2D(3, 1, name="seg", activation=activation)(image)
    model = keras.Model(image, [seg] if form == "list" else {"seg": seg})
    adversarial = mtr_tf.AdversarialModel(model, "seg", steps=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=form == "list")
    adversarial.compile("sgd", loss=[loss] if form == "list" else {"seg": loss})
    callback = mtr_tf.RobustnessCallback(batch, tasks="seg", **SETTINGS)
    fit_targets = [targets["seg"]] if form == "list" else {"seg": targets["seg"]}
    history = adversarial.fit(
        images, fit_targets, verbose=0, callbacks=[callback]
    ).history
    results = mtr_tf.evaluate(model, batch, tasks="seg", checks=False, **SETTINGS)
    (record,) = (r for r in results.records if r["metric"] == "loss")
    assert history["val_adv_seg_loss"] == [pytest.approx(record["attacked_value"])]
    assert not any("logs of these" in warning for warning in results.warnings)


@pytest.mark.slow
def test_other_callbacks_go_by_it(batch, tmp_path):
    checkpoint = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras",
        monitor="val_adv_seg_loss",
        mode="min",
        save_best_only=True,
    )
    callback = mtr_tf.RobustnessCallback(batch, attack_tasks="seg", **SETTINGS)
    fit(make_model(), batch, 1, callback, checkpoint)
    assert (tmp_path / "best.keras").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"every": 0}, "every must be a whole number, 1 or more"),
        ({"measure": "tasks"}, "measure has no meaning during training"),
        ({"stepz": 1}, "Did you mean 'steps'"),
        ({"targets": "own"}, "has no meaning during training"),
    ],
)
def test_what_cannot_be_is_said(batch, given, says):
    with pytest.raises(mtr_tf.InputError, match=says):
        fit(make_model(), batch, 1, mtr_tf.RobustnessCallback(batch, **given))


@pytest.mark.parametrize("attack", ["worst", "pgd, sea", ["pgd", "sea"]])
def test_ensembles_are_refused_before_training(batch, attack):
    with pytest.raises(mtr_tf.InputError, match="must be a single attack"):
        mtr_tf.RobustnessCallback(batch, attack=attack)
