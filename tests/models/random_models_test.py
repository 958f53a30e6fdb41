# SPDX-License-Identifier: Apache-2.0
"""Models that are random in `predict`; and attacks change nothing of a model."""

from __future__ import annotations

import dataclasses
import json

import keras
import numpy as np
import pytest
import random_models_fixture as fixture
import tensorflow as tf
from cells_fixture import a_cell
from tiers_fixture import slow

from mtr_tf import attack_job
from mtr_tf import attacks
from mtr_tf import data
from mtr_tf.attacks import base
from mtr_tf.config.attack import AttackConfig
from mtr_tf.data.source import Columns
from mtr_tf.data.source import DatasetInfo
from mtr_tf.data.source import Source
from mtr_tf.measures import gradients
from mtr_tf.models import folding
from mtr_tf.models import randomness
from mtr_tf.models import stateless

L = keras.layers


def images(count=3, shape=(8, 8, 3)):
    return tf.constant(np.random.default_rng(0).random((count, *shape)), tf.float32)


def objective_of(model, x, **settings):
    targets = {"depth": np.zeros((*x.shape[:3], 1), np.float32)}
    masks = {"depth": np.ones(x.shape[:3], np.float32)}
    return attacks.objective(model, targets, masks, **settings)


def key(number):
    return tf.constant([number, 0], tf.int64)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: L.RandomFlip(),
        lambda: L.RandomRotation(0.3),
        lambda: L.RandomContrast(0.5),
        lambda: L.BatchNormalization(),
        lambda: L.Dropout(0.5),
        lambda: L.SpectralNormalization(L.Conv2D(3, 3, padding="same")),
    ],
)
def test_what_training_was_stored_as_true_for_behaves_as_in_predict(layer):
    """Keras calls such layers with `training=False` in predict, and so do we."""
    image = keras.Input((8, 8, 3))
    x = layer()(image, training=True)
    x = L.Conv2D(4, 3, padding="same")(x)
    x = L.BatchNormalization()(x, training=True)
    model = keras.Model(image, {"depth": L.Conv2D(1, 1)(x)})
    x, bits = images(), fixture.bits(model)
    want = model.predict(x, verbose=0)["depth"]
    assert randomness.kind(model, x) == randomness.NONE
    result = folding.fold(model, ("depth",))(x)["depth"]
    np.testing.assert_allclose(result, want, atol=1e-5)
    np.testing.assert_allclose(stateless.outputs(model, x)["depth"], want, atol=1e-6)
    attacks.PGD(8 / 255, 2 / 255, 2)(objective_of(model, x), x)
    assert fixture.bits(model) == bits


def test_kinds_of_randomness():
    x = images()
    for layer, kind in (
        (fixture.AlwaysNoise(), randomness.SEEDED),
        (fixture.AlwaysDropout(0.5, seed=3), randomness.SEEDED),
        (fixture.GloballySeeded(), randomness.SEEDED),
        (fixture.Unseeded(), randomness.UNSEEDED),
        (fixture.Counting(), randomness.NONE),
        (L.GaussianNoise(0.5), randomness.NONE),
    ):
        model = fixture.model(layer)
        assert randomness.kind(model, x) == kind, layer
        text = randomness.warning(model, x, 1)
        assert bool(text) == (kind != randomness.NONE)
        assert ("repeated" in text) == (kind == randomness.UNSEEDED)
        assert "--eot" not in randomness.warning(model, x, 5)
    assert randomness.kind(lambda x: x, x) == randomness.NONE


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [fixture.Counting(), fixture.AlwaysDropout(0.5)],
        slow(lambda: [fixture.AlwaysNoise(), L.BatchNormalization()]),
        slow(lambda: [L.SpectralNormalization(L.Conv2D(3, 1)), L.RandomFlip()]),
        slow(
            lambda: [keras.Sequential([fixture.AlwaysNoise(), L.RandomRotation(0.1)])]
        ),
    ],
)
def test_nothing_of_a_model_changes(layers):
    model, x = fixture.model(*layers()), images()
    bits_before = fixture.bits(model)
    objective = objective_of(model, x, eot=2)
    for attack in (
        attacks.FGSM(8 / 255),
        attacks.PGD(8 / 255, 2 / 255, 2, restarts=2),
        attacks.Square(8 / 255, 3),
    ):
        attack(objective, x)
    targets, masks = objective.batch["targets"], objective.batch["masks"]
    gradients.task_gradients(model, x, targets, masks, ("depth",))
    folding.check(model, ("depth",), x)
    randomness.kind(model, x)
    assert not model.losses
    bits_after = fixture.bits(model)
    plain_names = {name for name in bits_after if name.endswith("/plain")}
    assert {n: v for n, v in bits_after.items() if n not in plain_names} == {
        n: v for n, v in bits_before.items() if n not in plain_names
    }


def test_plain_variables_are_put_back_after_a_look_and_an_attack():
    model, x = fixture.model(fixture.Counting()), images()
    counter = next(
        layer for layer in model.layers if isinstance(layer, fixture.Counting)
    )
    counter.plain.assign(7)
    assert folding.check(model, ("depth",), x)
    assert int(counter.plain) == 7
    attacks.PGD(8 / 255, 2 / 255, 2)(objective_of(model, x), x)
    assert int(counter.plain) == 7
    model(x, training=False)
    assert int(counter.plain) == 8


def test_the_same_key_gives_the_same_noise_and_layers_have_noise_of_their_own():
    first, second = fixture.AlwaysNoise(1.0), fixture.AlwaysNoise(1.0)
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, {"a": first(image), "b": second(image)})
    x = tf.zeros((2, 8, 8, 3))
    outputs, repeat = (stateless.outputs(model, x, key(1)) for _ in range(2))
    other_outputs = stateless.outputs(model, x, key(2))
    for name in "ab":
        np.testing.assert_array_equal(outputs[name], repeat[name])
        assert abs(np.std(outputs[name]) - 1) < 0.1
        assert np.abs(outputs[name] - other_outputs[name]).mean() > 0.5
    assert np.abs(outputs["a"] - outputs["b"]).mean() > 0.5
    draw = tf.function(lambda x: stateless.outputs(model, x, key(1)), autograph=False)
    in_graph = draw(x)
    np.testing.assert_allclose(in_graph["a"], outputs["a"], atol=1e-6)
    # A copy draws as its model does, also where it leaves out other outputs.
    folded = stateless.outputs(folding.fold(model, ("b",)), x, key(1))
    np.testing.assert_array_equal(folded["b"], outputs["b"])


# Expectation over transformation.


class Quadratic(L.Layer):
    """(w * (x + noise) - 1)^2 / 2 summed over channels, w per pixel."""

    def __init__(self, weights, scale):
        super().__init__()
        self.weights_ = weights
        self.noise = fixture.AlwaysNoise(scale)

    def call(self, x):
        """Returns one number per pixel."""
        squares = 0.5 * (self.weights_ * self.noise(x) - 1) ** 2
        return tf.reduce_sum(squares, axis=-1, keepdims=True)


def test_the_mean_gradient_against_its_closed_form():
    """E (w (x + e) - 1) w = w (w x - 1) for noise e of mean zero."""
    x, scale, count = images(2), 0.5, 400
    weights = tf.constant(np.random.default_rng(1).normal(size=(8, 8, 3)), tf.float32)
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, {"depth": Quadratic(weights, scale)(image)})
    want = weights * (weights * x - 1) / 64  # The loss is a mean over pixels.
    spread = scale * weights**2 / 64  # Standard deviation of one draw's gradient.
    for number in (1, count):
        objective = objective_of(model, x, eot=number)
        gradient = tf.function(base.gradient, autograph=False)
        slope, score = gradient(objective, x, tf.constant(0.0))
        error = (slope - want) / spread * number**0.5
        assert abs(float(tf.reduce_mean(error))) < 4 / 384**0.5
        assert abs(float(tf.math.reduce_std(error)) - 1) < 4 / 768**0.5
    means = 0.5 * tf.reduce_sum(
        (weights * x - 1) ** 2 + (scale * weights) ** 2, axis=-1
    )
    np.testing.assert_allclose(score, tf.reduce_mean(means, [1, 2]), rtol=0.02)
    # A call of the objective gives the mean too, and is differentiable.
    mean_objective = objective_of(model, x, eot=3)
    with tf.GradientTape() as tape:
        tape.watch(x)
        ascend, score = mean_objective(x)
    slope, expected = base.gradient(mean_objective, x, tf.constant(0.0))
    np.testing.assert_allclose(tape.gradient(ascend, x), slope, atol=1e-7)
    np.testing.assert_allclose(score, expected, rtol=1e-6)


def test_draws_are_anew_at_each_step_and_seed_but_not_at_each_call():
    model, x = fixture.model(fixture.AlwaysNoise()), images()
    objective = objective_of(model, x, eot=2)

    def score(progress, seed):
        seeded = objective.seeded(tf.constant([[seed, 0]] * 3, tf.int64))
        return base.score(seeded, x, tf.constant(progress)).numpy()

    np.testing.assert_array_equal(score(0.5, 1), score(0.5, 1))
    assert (score(0.5, 1) != score(0.75, 1)).all()
    assert (score(0.5, 1) != score(0.5, 2)).all()


@pytest.mark.parametrize("balance", ["sum", slow("dgba")])
def test_the_same_seed_gives_the_same_bits(balance):
    model, x = fixture.model(fixture.AlwaysDropout(0.3)), images()
    points = [
        attacks.PGD(8 / 255, 2 / 255, 3, restarts=2)(
            objective_of(model, x, eot=3, balance=balance), x, seed=seed
        )
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(points[0], points[1])
    assert (points[0] != points[2]).numpy().any()


def test_more_draws_attack_a_noisy_model_better():
    """One draw's gradient is mostly noise here; the mean of thirty is not."""
    weights = tf.constant(
        np.random.default_rng(2).choice([-1.0, 1.0], (8, 8, 3)), tf.float32
    )
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, {"depth": Quadratic(weights, 3.0)(image)})
    x, eps = images(), 8 / 255
    clean = 0.5 * tf.reduce_sum((weights * x - 1) ** 2, [1, 2, 3])
    rises = []
    for eot in (1, 30):
        attack = attacks.PGD(eps, eps / 4, 5, keep="last", random_start=False)
        points = attack(objective_of(model, x, eot=eot), x)
        attacked = 0.5 * tf.reduce_sum((weights * points - 1) ** 2, [1, 2, 3])
        rises.append(attacked - clean)
    assert (rises[1] > rises[0]).numpy().all()


# From flags to files.

INFO = DatasetInfo(
    name="ramps",
    image_shape=(8, 8, 3),
    classes=(),
    colors=(),
    tasks=("depth",),
    splits={"validation": 5},
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    ranges={"depth": (0.0, 1.0)},
)


def ramps(split):
    """Pictures of noise and the depth of their red channel."""
    rng = np.random.default_rng(5)
    pictures = rng.integers(0, 256, (INFO.splits[split], 8, 8, 3), np.uint8)
    depth = pictures[..., :1].astype(np.float32) / 255
    return Columns(images=pictures, targets={"depth": depth}, masks={})


@pytest.mark.slow
def test_the_same_command_gives_the_same_bits(tmp_path, monkeypatch, unplotted, caplog):
    """Even though a layer without a seed gets another one each time it is loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(data.DATASETS, "ramps", lambda **_: Source(INFO, ramps))
    model = fixture.model(fixture.AlwaysNoise(0.3), fixture.AlwaysDropout(0.2))
    model.save(tmp_path / "noisy.keras")
    settings = {
        "ckpt": str(tmp_path / "noisy.keras"),
        "dataset": "ramps",
        "eps": (8.0,),
        "attack_tasks": ("each",),
        "steps": 2,
        "batch_size": 2,
    }
    records = {}
    for name, changes in {
        "one": {"eot": 2},
        "two": {"eot": 2},
        "other_draws": {"eot": 3},
        "other_seed": {"eot": 2, "seed": 1},
    }.items():
        checks = name == "one"
        config = AttackConfig(name=name, checks=checks, **(settings | changes))
        attack_job.attack(config)
        (path,) = tmp_path.glob(f"**/attacks/{name}/results.json")
        records[name] = json.loads(path.read_text())
    losses = {
        name: [
            (r["clean"], r["attacked_value"])
            for r in run_records
            if r["metric"] == "loss"
        ]
        for name, run_records in records.items()
    }
    assert losses["one"] == losses["two"]
    assert losses["one"] != losses["other_draws"]
    assert losses["one"] != losses["other_seed"]
    for run_records in records.values():
        for record in run_records:
            assert "random in predict" in " ".join(record["warnings"])
    assert "over 2 draws" in " ".join(records["one"][0]["warnings"])


def test_costs_count_draws():
    cell = a_cell("pgd", ("depth",), step_size=2.0, steps=10, restarts=2)
    objective = dataclasses.replace(cell.objective, eot=5)
    eot_cell = dataclasses.replace(cell, objective=objective)
    assert cell.passes == 1 + 2 * 11
    assert eot_cell.passes == 1 + 5 * 2 * 11
    assert eot_cell.label == "pgd-eot5"
    assert eot_cell.objective_settings(8, 8)["eot"] == 5


# Copies that differ.


def _grouped_model():
    """Like ../shared/cases/grouped.keras: another scale for each colour and group."""
    rng = np.random.default_rng(3)
    image = keras.Input((8, 8, 3))
    x = L.Rescaling((1.0, 5.0, 0.2), (0.0, -2.0, 0.1))(image)
    x = L.BatchNormalization()(L.Conv2D(12, 3, padding="same", groups=3)(x))
    model = keras.Model(image, {"seg": L.Conv2D(4, 1)(L.ReLU()(x))})
    for variable in model.variables:
        noise = rng.normal(size=variable.shape)
        if variable.path.endswith(("bias", "beta", "moving_mean")):
            noise *= 0.1
        variable.assign(np.abs(noise) if "variance" in variable.path else noise)
    return model


def test_scales_of_colours_in_grouped_convolutions():
    """Attacked accuracy is the same with and without folding."""
    model, x = _grouped_model(), images(4)
    want = model(x, training=False)["seg"]
    result = folding.fold(model, ("seg",))(x)["seg"]
    np.testing.assert_allclose(result, want, atol=1e-5 * np.abs(want).max())
    labels = tf.argmax(want, axis=-1, output_type=tf.int32)
    masks = {"seg": tf.ones(labels.shape)}
    accuracy = []
    for fold in (True, False):
        objective = attacks.objective(model, {"seg": labels}, masks, fold=fold)
        points = attacks.PGD(8 / 255, 2 / 255, 20)(objective, x)
        predicted = np.argmax(model(points, training=False)["seg"], axis=-1)
        accuracy.append(np.mean(predicted == labels))
    assert accuracy[0] == pytest.approx(accuracy[1], abs=0.01)
    assert accuracy[0] < 0.95


def test_a_folded_copy_that_differs_is_dropped(monkeypatch, caplog):
    model, x = fixture.model(), images()
    assert folding.check(model, ("depth",), x)
    second = fixture.model(L.GaussianNoise(0.1))
    fold = folding.fold
    monkeypatch.setattr(
        folding,
        "fold",
        lambda model, names: stateless.Copy(
            lambda x: {n: y + 0.1 for n, y in fold(model, names).run(x).items()}, model
        ),
    )
    for _ in range(2):
        objective = objective_of(second, x)
        attacks.FGSM(8 / 255)(objective, x)
    assert not folding.can_fold(second, ("depth",))
    (message,) = [r.getMessage() for r in caplog.records if "folded" in r.getMessage()]
    assert "BatchNormalization, Conv2D, GaussianNoise, ReLU" in message
    assert "depth differs" in message


def _fast_model(nested=True):
    image = keras.Input((8, 8, 3))
    inner = keras.Input((8, 8, 4))
    shared = L.Conv2D(4, 3, padding="same", activation="relu", name="shared")
    y = shared(shared(inner))
    block = keras.Model(inner, [L.BatchNormalization()(y), y], name="block")
    x = L.Conv2D(4, 3, padding="same", name="first")(image)
    branch, skip = block(x) if nested else (shared(x), x)
    x = keras.ops.tanh(branch) * 0.5 + skip
    x = L.Dropout(0.5)(x, training=True)
    x = keras.Sequential([L.Conv2D(4, 3, padding="same"), L.ReLU()])(x)
    return keras.Model(image, {"depth": L.Conv2D(1, 1, name="head")(x)})


def test_the_bfloat16_copy_of_nested_and_shared_layers():
    model, x = _fast_model(), images()
    copy = folding.in_half(model, images=x)
    assert copy is not model
    assert copy.get_layer("block").get_layer("shared").compute_dtype == "bfloat16"
    assert copy.get_layer("first").compute_dtype == "float32"
    assert len(copy.variables) == len(model.variables)
    want, result = (m(x, training=False)["depth"] for m in (model, copy))
    scale = np.abs(want).max()
    assert 1e-6 < np.abs(want - result).max() / scale < 0.05


class Unconfigured(L.Layer):
    """A layer that cannot be rebuilt: its factor is not in its configuration."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        """Returns a multiple of x."""
        return self.factor * x

    def get_config(self):
        """All but the factor."""
        return keras.Layer.get_config(self)


def test_a_bfloat16_copy_that_differs_is_not_used(caplog):
    x = images()
    model = fixture.model(Unconfigured(1.0), Unconfigured(3.0))
    assert folding.in_half(model, images=x) is model
    (message,) = [r.getMessage() for r in caplog.records]
    assert "bfloat16" in message
    assert "Unconfigured" in message


def test_tensor_float_32_may_differ_as_float16_does(monkeypatch):
    model = fixture.model()
    assert folding._tolerance(model) == 1e-3
    monkeypatch.setattr(folding.compiling, "on_gpu", lambda: True)
    assert folding._tolerance(model) == 16 * 2.0**-10
