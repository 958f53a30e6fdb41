# SPDX-License-Identifier: Apache-2.0
"""Folded and bfloat16 copies against the models that they stand for."""

from __future__ import annotations

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiers_fixture import slow

from mtr_tf import models
from mtr_tf.models import folding

L = keras.layers


def _randomize_norms(model: keras.Model) -> keras.Model:
    """Gives batch norms statistics and weights that matter."""
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if "norm" in variable.path:
            name = variable.path.rpartition("/")[2]
            noise = 0.3 * rng.normal(size=variable.shape)
            centre = {"gamma": 1.0, "moving_variance": 1.0}.get(name, 0.0)
            variable.assign(np.abs(centre + noise) if centre else noise)
    return model


def _compare(model: keras.Model, names, shape) -> None:
    """Compares outputs, and image gradients of a sum of them, relative to the largest.

    Gradients of most images must agree: where rounding turns a unit off, one differs.
    """
    x = tf.constant(np.random.default_rng(1).random((3, *shape)), tf.float32)
    scales = {n: np.abs(y).max() for n, y in model(x, training=False).items()}

    @tf.function(autograph=False)
    def gradient(x):
        pairs = []
        for call in (lambda x: model(x, training=False), folding.fold(model, names)):
            with tf.GradientTape() as tape:
                tape.watch(x)
                outputs = call(x)
                waves = [tf.sin(outputs[n] / scales[n]) for n in names]
                total = tf.add_n([tf.reduce_mean(wave) for wave in waves])
            slope = tape.gradient(total, x)
            pairs.append([*(outputs[n] for n in names), slope])
        return pairs

    for place, (expected, result) in enumerate(zip(*gradient(x), strict=True)):
        error = np.abs(expected - result) / np.abs(expected).max()
        image_errors = error.max(axis=tuple(range(1, error.ndim)))
        is_slope = place == len(names)
        assert (np.median(image_errors) if is_slope else image_errors.max()) < 2e-5


@pytest.mark.parametrize(
    ("name", "decoders"),
    [
        ("small", "separate"),
        ("resnet18", "shared"),
        slow("resnet50", "separate"),
        slow("drn_c_26", "shared"),
        slow("drn_d_54", "separate"),
    ],
)
def test_our_models(name, decoders):
    shape = (32, 32, 3)
    tasks = ("seg", "depth", "normal")
    model = models.build(name, tasks, shape, 4, width=4, decoders=decoders)
    assert folding.can_fold(model, tasks)
    _compare(_randomize_norms(model), ("seg", "normal"), shape)
    operations = _operations(folding.fold(model, ("seg",)), shape)
    assert not [op for op in operations if "Norm" in op]


def test_dilated_convolutions():
    model = models.build("drn_d_22", ("seg", "depth"), (64, 64, 3), 4, width=4)
    _compare(_randomize_norms(model), ("seg", "depth"), (64, 64, 3))
    rearranges = "SpaceToBatchND" in _operations(
        folding.fold(model, ("seg",)), (64, 64, 3)
    )
    assert rearranges != folding.dilates_directly(tf.float32)


@pytest.mark.slow
def test_dilated_convolutions_without_onednn():
    """Without oneDNN, the direct gradient does not exist and must not be tried."""
    code = """
import tensorflow as tf
from mtr_tf import models
from mtr_tf.models import folding
model = models.build("drn_d_22", ("depth",), (16, 16, 3), None, width=4)
@tf.function(autograph=False)
def gradient(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = folding.fold(model, ("depth",))(x)["depth"]
    return tape.gradient(y, x)
assert tf.reduce_max(abs(gradient(tf.ones((1, 16, 16, 3))))) > 0
"""
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def _operations(function, shape) -> list[str]:
    call = tf.function(function, autograph=False)
    graph = call.get_concrete_function(tf.zeros((1, *shape))).graph
    return [op.type for op in graph.get_operations()]


def _odd_model() -> keras.Model:
    """Norms that must not be folded, and layers called in unusual ways."""
    image = keras.Input((8, 8, 3), name="image")
    conv = L.Conv2D(4, 3, padding="same", name="twice")
    features = conv(image)  # Also read by the sum below: its norm must stay.
    x = L.Add()([L.BatchNormalization(name="norm_kept")(features), features])
    x = L.Dropout(0.9)(x)  # Must be off.
    tanh = L.Conv2D(4, 3, padding="same", activation="tanh")(x)
    x = L.BatchNormalization(name="norm_after_tanh")(tanh)
    y = L.Conv2DTranspose(4, 3, 2, padding="same")(x)  # With a bias.
    x = L.BatchNormalization(name="norm_folded", scale=False)(y)
    x = L.Conv2D(4, 1, use_bias=False)(x)
    x = L.BatchNormalization(name="norm_of_rows", axis=1)(x)  # Not the channels.
    inner_input = keras.Input((16, 16, 4))
    inner = L.Conv2D(4, 3, dilation_rate=2, padding="same")(inner_input)
    inner = L.BatchNormalization(name="norm_inner")(inner)
    inner = keras.Model(inner_input, [inner, 2 * inner], name="inner")
    single, double = inner(x)
    seg = L.Concatenate()([single, keras.ops.mean(double, axis=-1, keepdims=True)])
    repeat = conv(image)  # A second call of a layer.
    depth = L.BatchNormalization(name="norm_second", center=False)(repeat)
    return keras.Model(image, {"seg": seg, "depth": depth})


def _rescaling_model(
    *layers, scale=(2.0, 3.0, 0.5), offset=(0.1, -1.0, 0.0)
) -> keras.Model:
    """Rescaling and the layers, a convolution, a norm, and a second output."""
    image = keras.Input((8, 8, 3), name="image")
    x = scaled = L.Rescaling(scale, offset)(image)
    for layer in layers:
        x = layer(x)
    x = L.BatchNormalization(name="norm")(L.Conv2D(4, 3)(x))
    return keras.Model(image, {"seg": x, "depth": 1.5 * scaled})


@pytest.mark.parametrize("after", [(), (L.ZeroPadding2D(2),), (L.ReLU(),)])
@pytest.mark.parametrize("names", [("seg",), ("seg", "depth")])
def test_the_scale_of_the_picture(after, names):
    model = _randomize_norms(_rescaling_model(*after))
    _compare(model, names, (8, 8, 3))
    folds = names == ("seg",) and not (after and isinstance(after[0], L.ReLU))
    calls = folding._folded_calls(
        folding._nodes(model, [model.output[n] for n in names]),
        [model.output[n] for n in names],
    )
    assert len(calls) == (3 if folds else 2)  # The convolution and the norm.


def test_one_scale_for_all_colours():
    model = _randomize_norms(_rescaling_model(scale=1 / 0.25, offset=-2.0))
    _compare(model, ("seg",), (8, 8, 3))


def test_models_with_other_layers():
    model = _randomize_norms(_odd_model())
    _compare(model, ("seg", "depth"), (8, 8, 3))
    _compare(model, ("depth",), (8, 8, 3))


def test_what_cannot_be_folded():
    model = models.build("tiny", ("seg",), (16, 16, 3), 3, width=4)
    assert folding.can_fold(model, ("seg",))
    assert not folding.can_fold(model, ("depth",))
    assert not folding.can_fold(lambda x: {"seg": x}, ("seg",))
    assert not folding.can_fold(keras.Model(model.input, model.output["seg"]), ())


def test_weights_are_those_of_the_moment():
    model = models.build("tiny", ("seg",), (16, 16, 3), 3, width=4)
    x = tf.random.stateless_uniform((1, 16, 16, 3), (0, 0))

    @tf.function(autograph=False)
    def run(x):
        return folding.fold(model, ("seg",))(x)["seg"]

    output = run(x)
    for variable in model.trainable_variables:
        variable.assign(2 * variable)
    assert np.abs(run(x) - output).max() > 0.01
    np.testing.assert_allclose(
        run(x), model(x, training=False)["seg"], rtol=1e-4, atol=1e-5
    )


def test_the_bfloat16_copy():
    tasks = ("seg", "depth")
    model = _randomize_norms(models.build("small", tasks, (32, 32, 3), 4, width=4))
    copy = folding.in_half(model)
    assert copy.get_layer("normalize").compute_dtype == "float32"
    assert copy.get_layer(_first_conv(copy)).compute_dtype == "bfloat16"
    x = tf.random.stateless_uniform((2, 32, 32, 3), (0, 0))
    exact, rounded = (m(x, training=False) for m in (model, copy))
    for task in tasks:
        assert rounded[task].dtype == tf.float32
        scale = np.abs(exact[task]).max()
        error = np.abs(rounded[task] - exact[task]).max() / scale
        assert 1e-5 < error < 0.1


@pytest.mark.parametrize("way", ["folded", "half"])
def test_too_little_memory_is_no_other_output(way, monkeypatch):
    model = models.build("tiny", ("seg",), (16, 16, 3), 3, width=4)
    error = tf.errors.InternalError(None, None, "No BLAS for stream.")

    def fail(*arguments):
        raise error

    monkeypatch.setattr(folding, "fold", fail)
    monkeypatch.setattr(folding, "_in_half", fail)
    x = tf.zeros((1, 16, 16, 3))
    ways = {
        "folded": lambda: folding.check(model, ("seg",), x),
        "half": lambda: folding.in_half(model, images=x),
    }
    with pytest.raises(tf.errors.InternalError, match="No BLAS"):
        ways[way]()


def _first_conv(model: keras.Model) -> str:
    return next(layer.name for layer in model.layers if isinstance(layer, L.Conv2D))
