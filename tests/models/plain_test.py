# SPDX-License-Identifier: Apache-2.0
"""Copies made of Keras's own layers give the outputs of our models."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from mtr_tf import models
from mtr_tf.errors import InputError
from mtr_tf.models import plain
from mtr_tf.models.layers import BilinearUpSampling

RNG = np.random.default_rng(0)


def awake(model):
    """The model with random batch-norm statistics, which are 0 and 1 at first."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            scale, shape = RNG.uniform(0.5, 2, layer.gamma.shape), layer.beta.shape
            shift = RNG.normal(0, 0.1, shape)
            layer.set_weights([scale, shift, shift / 2, scale * 1.5])
    return model


@pytest.mark.parametrize("replicate", [False, True])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_up_sampling_is_equal_up_to_the_edge(factor, replicate):
    x = keras.Input((None, None, 3))
    model = keras.Model(x, BilinearUpSampling(factor, replicate, name="up")(x))
    copy = plain.plain(model)
    for size in ((1, 1), (2, 3), (5, 4)):
        images = RNG.normal(size=(2, *size, 3)).astype("float32")
        np.testing.assert_allclose(copy(images), model(images), atol=5e-6)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("tiny", (32, 40), {}),
        ("small", (32, 32), {"sync_batch_norm": True, "decoders": "shared"}),
        ("resnet18", (64, 32), {"width": 4}),
        pytest.param("resnet50", (32, 32), {"width": 2}, marks=pytest.mark.slow),
        ("drn_d_22", (None, None), {"width": 2}),
        pytest.param("drn_c_26", (64, 64), {"width": 2}, marks=pytest.mark.slow),
        pytest.param("drn_d_54", (64, 64), {"width": 2}, marks=pytest.mark.slow),
    ],
)
def test_every_model_is_equal_and_made_of_kerass_layers(name, size, options):
    tasks = ("seg", "depth", "normal")
    model = awake(models.build(name, tasks, (*size, 3), 5, seed=1, **options))
    copy = plain.plain(model)
    modules = {type(layer).__module__.split(".")[0] for layer in copy.layers}
    assert modules == {"keras"}
    images = RNG.uniform(size=(2, *[s or 64 for s in size], 3)).astype("float32")
    expected, outputs = model(images), copy(images)
    assert list(outputs) == list(tasks)
    for task in tasks:
        scale = np.abs(expected[task]).max()
        np.testing.assert_allclose(outputs[task], expected[task], atol=1e-5 * scale)


def test_half_precision_stays():
    default = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = awake(models.build("tiny", ("seg",), (16, 16, 3), 3))
    finally:
        keras.config.set_dtype_policy(default)
    images = RNG.uniform(size=(2, 16, 16, 3)).astype("float32")
    np.testing.assert_array_equal(
        plain.plain(model)(images)["seg"], model(images)["seg"]
    )


class Strange(keras.layers.Layer):
    def call(self, x):
        return x


def test_other_layers_and_other_models_are_refused():
    x = keras.Input((4, 4, 3))
    with pytest.raises(InputError, match=r"odd is a .*Strange"):
        plain.plain(keras.Model(x, Strange(name="odd")(x)))
    inner = keras.Model(x, BilinearUpSampling(2, name="up")(x))
    y = keras.Input((4, 4, 3))
    with pytest.raises(InputError, match="up is inside another layer"):
        plain.plain(keras.Model(y, inner(y)))

    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(InputError, match="only a functional model"):
        plain.plain(Subclassed())


def test_functions_of_a_users_own_do_not_pass_for_kerass():
    """Another process could not load them."""

    @keras.saving.register_keras_serializable("own")
    def act(x):
        return 2 * x

    image = keras.Input((4, 4, 3))
    model = keras.Model(image, keras.layers.Conv2D(2, 1, activation=act)(image))
    with pytest.raises(InputError, match="functions of layers must be Keras's own"):
        plain.plain(model)
    output = keras.layers.Conv2D(2, 1, activation=keras.activations.gelu)(image)
    plain.plain(keras.Model(image, output))
