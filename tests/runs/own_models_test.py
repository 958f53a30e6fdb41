# SPDX-License-Identifier: Apache-2.0
"""Models to train from a user's function: which are taken, and which are refused."""

from __future__ import annotations

import sys
import types

import keras
import numpy as np
import pytest

from mtr_tf import models
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.runs import building
from mtr_tf.runs import own_models
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet

SHAPE = (8, 12, 3)
TASKS = TaskSet(
    [
        Task("parts", classes=("a", "b", "c"), places=2),
        Task("scene", classes=("in", "out"), places=0),
        Task("joints", channels=2, places=1),
    ]
)


def net(image_shape, tasks):
    """A head for each task, with outputs of any shape."""
    image = keras.Input(image_shape)
    x = keras.layers.Conv2D(4, 3, padding="same", name="encoder_conv")(image)
    pooled = keras.layers.GlobalAveragePooling2D()(x)
    outputs = {}
    for task in tasks.values():
        if task.is_map:
            outputs[task.name] = keras.layers.Conv2D(task.channels, 1)(x)
        elif task.places == 0:
            outputs[task.name] = keras.layers.Dense(task.channels)(pooled)
        else:
            y = keras.layers.Dense(5 * task.channels)(pooled)
            outputs[task.name] = keras.layers.Reshape((5, task.channels))(y)
    return keras.Model(image, outputs)


@pytest.fixture
def build(monkeypatch):
    """Builds a model with a function as `make` of the module own_net."""

    def build(function, tasks=TASKS, shape=SHAPE):
        module = types.ModuleType("own_net")
        module.make = function
        monkeypatch.setitem(sys.modules, "own_net", module)
        return own_models.build("own_net:make", shape, tasks)

    return build


def test_outputs_come_in_the_order_of_the_tasks(build):
    def reversed_net(image_shape, tasks):
        return net(image_shape, TaskSet(list(tasks.values())[::-1]))

    model = build(reversed_net)
    assert list(model.output) == ["parts", "scene", "joints"]
    outputs = model(np.zeros((2, *SHAPE), np.float32))
    assert outputs["parts"].shape == (2, 8, 12, 3)
    assert outputs["scene"].shape == (2, 2)
    assert outputs["joints"].shape == (2, 5, 2)
    assert build(net, shape=(None, None, 3)).input_shape == (None, None, None, 3)


def test_outputs_beside_the_tasks_are_left_out_and_one_needs_no_name(build):
    model = build(lambda shape, tasks: net(shape, TASKS), TASKS.select("scene"))
    assert list(model.output) == ["scene"]

    def bare_net(shape, tasks):
        base = net(shape, tasks)
        return keras.Model(base.input, base.output["scene"])

    assert list(build(bare_net, TASKS.select("scene")).output) == ["scene"]


class Unknown(keras.layers.Layer):
    """A layer of one's own."""

    def call(self, x):
        """Returns x."""
        return x


def lambda_net(shape, tasks):
    base = net(shape, tasks)
    x = keras.layers.Lambda(lambda y: 2 * y)(base.output["scene"])
    return keras.Model(base.input, {**base.output, "scene": x})


def of_two_inputs(shape, tasks):
    base, second_input = net(shape, tasks), keras.Input((2,))
    scene = keras.layers.Add()([base.output["scene"], second_input])
    return keras.Model([base.input, second_input], {**base.output, "scene": scene})


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda shape, tasks: None, "functional Keras model, keras.Model.*NoneType"),
        (lambda shape: None, "but raised TypeError"),
        (lambda shape, tasks: 1 / 0, "but raised ZeroDivisionError"),
        (
            lambda shape, tasks: net((8, 8, 3), tasks),
            r"images of shape \(None, 8, 12, 3",
        ),
        (lambda shape, tasks: net(shape, tasks.select("scene")), "it has .* scene"),
        (
            lambda shape, tasks: keras.Model(
                (base := net(shape, tasks)).input, list(base.output.values())
            ),
            "it has a list of outputs",
        ),
        (
            lambda shape, tasks: net(
                shape, tasks.replaced(tasks["scene"].bound(channels=3, classes=()))
            ),
            r"for scene .* shape \(None, 2\), with 2 channels.* has \(None, 3\)",
        ),
        (
            lambda shape, tasks: keras.Model(
                (base := net(shape, tasks)).input,
                {**base.output, "scene": [base.output["scene"]] * 2},
            ),
            "output for scene .* must be one tensor, but it is a list of tensors",
        ),
        (lambda_net, "cannot be loaded again .*no Lambda layers"),
        (of_two_inputs, "must have one input"),
    ],
)
def test_models_that_cannot_be_trained(build, function, message):
    with pytest.raises(InputError, match=message) as raised:
        build(function)
    assert "\n" not in str(raised.value)


def test_an_output_must_be_of_logits_where_losses_take_probabilities(build):
    names = ("parts", "joints")

    def softmax_net(shape, tasks):
        base = net(shape, TASKS)
        ends = {name: keras.layers.Softmax()(base.output[name]) for name in names}
        return keras.Model(base.input, {**base.output, **ends})

    model = build(softmax_net)
    with pytest.raises(InputError) as raised:
        own_models.check_logits("own_net:make", model, TASKS)
    assert str(raised.value) == (
        "The output for parts of --model=own_net:make must be logits, as losses and "
        "attacks take them, but it has a softmax; leave out that activation."
    )
    own_models.check_logits("own_net:make", model, TASKS.select("joints"))
    own_models.check_logits("own_net:make", build(net), TASKS)


@keras.saving.register_keras_serializable()
class Times(keras.layers.Layer):
    """A layer of one's own, whose code may change."""

    def call(self, x):
        """Returns 2 x."""
        return 2 * x


def described(times=Times, rate=0.5, dtype=None, last="softmax", swapped=False):
    """A net whose layers Keras numbers, some of them nested in others."""
    x = image = keras.Input(SHAPE)
    x = keras.Sequential([keras.layers.Conv2D(3, 1, dtype=dtype), times()])(x)
    x = keras.layers.RandomCrop(8, 12)(keras.layers.Dropout(rate)(x))
    first, second = keras.layers.Activation("relu"), keras.layers.Activation(last)
    first, second = first(x), second(x)
    first, second = (second, first) if swapped else (first, second)
    x = first - keras.ops.sigmoid(second)
    dense = keras.layers.TimeDistributed(keras.layers.Dense(2))
    return keras.Model(image, {"scene": dense(x)})


def test_a_digest_of_a_model_is_of_what_it_computes(monkeypatch):
    digest = own_models.digest(described())
    assert own_models.digest(described()) == digest  # Keras counts on.
    keras.utils.clear_session()
    assert own_models.digest(described()) == digest
    compiled_model = described()
    compiled_model.compile("adam", "mse")
    assert own_models.digest(compiled_model) == digest
    changes = [{"rate": 0.4}, {"dtype": "float16"}, {"last": "tanh"}, {"swapped": True}]
    digests = {own_models.digest(described(**change)) for change in changes}
    monkeypatch.setattr(Times, "call", lambda self, x: 3 * x)
    digests.add(own_models.digest(described()))
    assert len(digests - {digest}) == 5


def test_a_file_that_names_the_function_runs_nothing():
    config = TrainConfig(model="nobody:knows")
    with pytest.raises(
        InputError,
        match="never run unasked; wait until the training has ended",
    ):
        building.build_model(config, None)


def test_settings_of_ours_are_not_of_theirs():
    with pytest.raises(InputError, match="--width, --decoders, .* leave them out"):
        TrainConfig(model="own_net:make", width=3)


def test_models_of_others_have_no_normalisation():
    with pytest.raises(InputError, match="known only for built-in models"):
        models.normalization(net(SHAPE, TASKS))


def test_our_models_have_heads_for_values_of_the_image():
    tasks = TASKS.select(("parts", "scene"))
    model = models.build("tiny", tasks, (8, 12, 4), None)
    image = np.random.default_rng(0).random((2, 8, 12, 4), np.float32)
    outputs = model(image)
    assert outputs["parts"].shape == (2, 8, 12, 3)
    features = keras.Model(model.input, model.get_layer("pool_scene").input)(image)
    dense = model.get_layer("head_scene")
    by_hand = np.mean(features, axis=(1, 2)) @ dense.kernel.numpy() + dense.bias.numpy()
    np.testing.assert_allclose(outputs["scene"], by_hand, rtol=1e-5, atol=1e-6)
    scene_model = models.build("tiny", tasks.select("scene"), (8, 12, 4), None)
    np.testing.assert_array_equal(
        scene_model.get_layer("head_scene").kernel, dense.kernel
    )
    with pytest.raises(
        InputError, match="joints have 1 axes .* --model=module:function"
    ):
        models.build("tiny", TASKS, (8, 12, 3), None)


@keras.saving.register_keras_serializable("own_models_test")
class Doubling(keras.Model):
    """A functional model with a `call` of its own."""

    def call(self, inputs, training=None, mask=None):
        return super().call(2 * inputs, training=training, mask=mask)


def test_a_call_of_its_own_is_kept_or_refused(build):
    def doubling_net(image_shape, tasks):
        inner = net(image_shape, tasks)
        return Doubling(inner.inputs[0], inner.output)

    images = np.ones((1, *SHAPE), np.float32)
    model = build(doubling_net)
    output = model(images / 2)["scene"]
    graph = keras.Model(model.inputs[0], model.output)
    np.testing.assert_allclose(output, graph(images)["scene"], rtol=1e-6)

    def net_with_extra(image_shape, tasks):
        image = keras.Input(image_shape)
        inner = net(image_shape, tasks)
        return Doubling(image, {**inner(image), "other": image})

    with pytest.raises(InputError, match="has a call of its own, so its outputs must"):
        build(net_with_extra)


def test_what_another_layer_calls_normalize_standardises_nothing():
    image = keras.Input(SHAPE)
    for layer in (keras.layers.Rescaling(2.0), keras.layers.BatchNormalization()):
        layer.name = "normalize"
        with pytest.raises(InputError, match="known only for built-in models"):
            models.normalization(keras.Model(image, layer(image)))
