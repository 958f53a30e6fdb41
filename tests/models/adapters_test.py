# SPDX-License-Identifier: Apache-2.0
"""Adapters around models: values and gradients, by hand and against TensorFlow's."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import random_models_fixture as random_models
import tensorflow as tf

from mtr_tf.data.layout import Layout
from mtr_tf.errors import InputError
from mtr_tf.models import adapters
from mtr_tf.models import folding
from mtr_tf.models import input_range
from mtr_tf.models import probabilities
from mtr_tf.runs import loading
from mtr_tf.runs import model_files
from mtr_tf.runs import packing
from mtr_tf.tasks import Task
from mtr_tf.tasks import TaskSet


def maps(*shape) -> tf.Tensor:
    return tf.constant(np.random.default_rng(0).normal(size=shape), tf.float32)


@pytest.mark.parametrize(
    ("given", "size"), [((4, 6), (8, 12)), ((59, 60), (64, 33)), ((1, 3), (5, 3))]
)
def test_resizing_is_that_of_tensorflow_and_so_is_its_gradient(given, size):
    x, weights = maps(2, *given, 3), maps(2, *size, 3)
    layer = adapters.Resize(*size)

    def gradient(function):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return y, tape.gradient(y, x, weights)

    for result, expected in zip(
        gradient(layer),
        gradient(lambda x: tf.image.resize(x, size, antialias=False)),
        strict=True,
    ):
        np.testing.assert_allclose(result, expected, atol=2e-5)


def test_resizing_by_hand():
    """With half-pixel centres, four places read two at -1/4, 1/4, 3/4 and 5/4."""
    x = tf.constant([0.0, 4.0])[None, :, None, None]
    result = adapters.Resize(4, 1)(x)
    np.testing.assert_allclose(result[0, :, 0, 0], [0, 1, 3, 4], atol=1e-6)


def test_resizing_without_static_shape_and_of_its_own_size():
    layer = adapters.Resize(4, 6)
    call = tf.function(
        layer,
        input_signature=[tf.TensorSpec((None,) * 3 + (2,))],
        autograph=False,
    )
    x = maps(2, 4, 6, 2)
    np.testing.assert_allclose(call(x), x, atol=1e-6)
    np.testing.assert_allclose(call(x[:, :2]), layer(x[:, :2]), atol=1e-6)


def test_two_logits_have_the_sigmoid_as_their_softmax():
    z = maps(3, 4, 4, 1)
    softmax = tf.nn.softmax(adapters.TwoLogits()(z))
    np.testing.assert_allclose(softmax[..., 1:], tf.sigmoid(z), atol=1e-6)


def net(batch=None, size=8) -> keras.Model:
    image = keras.Input((size, size, 3), batch)
    y = keras.layers.Conv2D(4, 3, padding="same")(image)
    y = keras.layers.BatchNormalization()(y)
    model = keras.Model(image, {"seg": y})
    rng = np.random.default_rng(1)
    model.set_weights([rng.uniform(0.5, 2, w.shape) for w in model.get_weights()])
    return model


def test_fixed_batches_of_layers_that_need_none_still_fold():
    model = net(2)
    copy = adapters.any_batch(model, 2)
    assert copy.input_shape[0] is None
    x = maps(3, 8, 8, 3)
    expected = tf.concat([model(x[:2])["seg"], model(x[1:])["seg"][1:]], 0)
    np.testing.assert_allclose(copy(x)["seg"], expected, rtol=1e-5)
    assert folding.can_fold(copy, ["seg"])
    kinds = {type(layer).__name__ for layer in copy.layers}
    assert "BatchNormalization" in kinds


def test_nothing_of_a_model_changes_as_batches_are_tried():
    image = keras.Input((4, 4, 3), 2)
    y = random_models.Counting()(random_models.AlwaysNoise()(image))
    model = keras.Model(image, {"seg": y})
    bits = random_models.bits(model)
    assert adapters.any_batch(model, 2).input_shape[0] is None
    assert random_models.bits(model) == bits


class Net(keras.Model):
    """A functional model with a class of its own."""


class Line(keras.Sequential):
    """A sequential model with a class of its own."""


class Negative(keras.Model):
    """A functional model that does something else than its graph."""

    def call(self, x, training=False):
        return {"n": -super().call(x, training=training)["seg"]}


def test_models_with_classes_of_their_own_are_called_layer_by_layer():
    image, other = (keras.Input((4, 4, 3), name=name) for name in ("image", "other"))
    layer = keras.layers.Conv2D(2, 1)
    x = maps(2, 4, 4, 3)
    dict_model = Net({"image": image}, {"seg": layer(2 * image - 1), "same": image})
    outputs = adapters.called_on(dict_model, tf.constant(x))
    np.testing.assert_allclose(outputs["seg"], layer(2 * x - 1), rtol=1e-6)
    np.testing.assert_array_equal(outputs["same"], x)
    list_model = Net([image, other], image - 3 * other)
    np.testing.assert_allclose(
        adapters.called_on(list_model, x, 2 * x), -5 * x, rtol=1e-6
    )
    line = Line([keras.Input((4, 4, 3)), layer])
    np.testing.assert_array_equal(adapters.called_on(line, x), layer(x))
    assert adapters.structure_of(line) is line.outputs[0]
    assert all(map(adapters.is_functional, (dict_model, list_model, line)))


def test_a_call_of_its_own_counts_not_the_graph():
    image = keras.Input((4, 4, 3))
    model = Negative(image, {"seg": keras.layers.Conv2D(2, 1)(image)})
    assert not adapters.is_functional(model)
    file = model_files.of_object(model, "the model", "model")
    functional, x = model_files.functional(file, (4, 4, 3)), maps(2, 4, 4, 3)
    assert list(functional.output) == ["n"]
    np.testing.assert_allclose(functional(x)["n"], -model.layers[-1](x), rtol=1e-6)
    assert len(functional.variables) == 2
    nested = keras.Model(image, model(image))
    assert probabilities._origin(nested.outputs[0])[0] is model


def own(channels, places, **changes):
    """Facts about a model whose output n is that of a task of one's own."""
    tasks = TaskSet([Task("flow", channels=channels, places=places)])
    return loading.ModelFacts(heads=[("n", "flow")], tasks=tasks, **changes)


class Flat(keras.Model):
    """A subclassed model of one size, which its first call sets."""

    def __init__(self):
        super().__init__()
        self.flatten, self.dense = keras.layers.Flatten(), keras.layers.Dense(2)

    def call(self, x):
        return {"n": self.dense(self.flatten(x))}


class Free(keras.Model):
    """A subclassed model of any size."""

    def call(self, x):
        return {"n": -x}


def test_models_are_of_images_that_they_were_made_for():
    image, x = keras.Input((4, 8, 3)), maps(2, 4, 8, 3)
    layer = keras.layers.Dense(2)
    negative = Negative(image, {"seg": layer(keras.layers.Flatten()(image))})
    for model in (negative, Flat()):
        model(x)
        file = model_files.of_object(model, "the model", "model")
        functional = model_files.functional(file, None)
        assert functional.input_shape == (None, 4, 8, 3)
        np.testing.assert_allclose(functional(x)["n"], model(x)["n"], rtol=1e-6)
        assert loading.own_run(file, ["flow"], own(2, 0)).fingerprint
        with pytest.raises(InputError, match="images of 8x8x3.*give --image_size"):
            model_files.functional(file, (8, 8, 3))
    free = Free()
    free(x)
    file = model_files.of_object(free, "the model", "model")
    assert model_files.functional(file, None).input_shape == (None, None, None, 3)


def test_a_call_of_its_own_takes_several_inputs():
    image, gain = keras.Input((4, 4, 3), name="image"), keras.Input((1,), name="gain")
    layout = Layout((4, 4, 3), (("gain", (1,)),))
    x, gains = maps(2, 4, 4, 3), np.float32([[2], [3]])
    packed = layout.pack(x.numpy(), {"gain": gains})
    output = {"seg": image * gain[:, None, None]}
    for inputs in ([image, gain], {"gain": gain, "image": image}):
        model = Negative(inputs, output)
        file = model_files.of_object(model, "the model", "model")
        run = loading.own_run(file, ["flow"], own(3, 2, layout=layout))
        assert run.packed
        np.testing.assert_allclose(
            run.model(packed)["flow"], -x * gains[:, None, None], rtol=1e-6
        )


def test_fixed_batches_that_layers_need_with_gradients():
    image = keras.Input((4, 4, 3), 2)
    y = keras.ops.reshape(3.0 * image, (8, 4, 3))
    model = keras.Model(image, [keras.ops.reshape(y, (2, 4, 4, 3))])
    copy = adapters.any_batch(model, 2)
    for count in (1, 2, 5):
        x = maps(count, 4, 4, 3)

        @tf.function(autograph=False)
        def slope(x):
            (y,) = tf.nest.flatten(copy(x, training=False))
            return y, tf.gradients(tf.reduce_sum(y**2), x)[0]

        y, gradient = slope(x)
        np.testing.assert_allclose(y, 3 * x, rtol=1e-6)
        np.testing.assert_allclose(gradient, 18 * x, rtol=1e-5)


def test_a_resized_model_folds_and_gives_the_same():
    model = adapters.resized(net(), {"seg": (12, 20)})
    x = maps(2, 8, 8, 3)
    expected = tf.image.resize(net()(x)["seg"], (12, 20))
    np.testing.assert_allclose(model(x)["seg"], expected, rtol=1e-4, atol=1e-4)
    assert folding.check(model, ["seg"], x)
    folded = folding.fold(model, ["seg"])(x)["seg"]
    np.testing.assert_allclose(folded, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "first"),
    [
        ((3, 8, 8), True),
        ((1, 8, 8), True),
        ((8, 8, 3), False),
        ((None, None, 3), False),
        ((3, None, None), False),
        ((3, 8, 3), False),
    ],
)
def test_channels_first_is_seen_where_the_shape_tells(shape, first):
    image = keras.Input(shape)
    assert adapters.channels_first(keras.Model(image, 1 * image)) is first


def test_channels_last_with_a_convolution():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 3, 2)).astype("f4")
    image = keras.Input((3, 8, 6))
    options = {"padding": "same", "use_bias": False}
    layer = keras.layers.Conv2D(2, 3, data_format="channels_first", **options)
    model = keras.Model(image, [layer(image), keras.ops.mean(image, (1, 2, 3))])
    layer.set_weights([kernel])
    copy = adapters.channels_last(model)
    x = maps(2, 8, 6, 3)
    out, mean = copy(x)
    np.testing.assert_allclose(out, tf.nn.conv2d(x, kernel, 1, "SAME"), atol=1e-4)
    np.testing.assert_allclose(mean, tf.reduce_mean(x, (1, 2, 3)), atol=1e-5)


def test_a_function_as_a_model():
    model = adapters.as_functional(lambda x: [2 * x, {"a": x[..., :1]}], (4, 4, 3))
    x = maps(2, 4, 4, 3)
    double, heads = model(x)
    np.testing.assert_allclose(double, 2 * x)
    np.testing.assert_allclose(heads["a"], x[..., :1])


OURS = (
    *("image", "to_input_range", "to_channels_first", "to_channels_last", "unpack"),
    *("n_of_two", "n_resized"),
)


def with_our_names(shape, batch=None, name="given"):
    """A model of the first channel, with the names of our adapters' layers."""
    image = keras.Input(shape, batch, name=name)
    y = image
    for layer_name in OURS:
        y = keras.layers.Identity(name=layer_name)(y)
    return keras.Model(image, {"n": y[..., :1]})


def test_layers_may_have_the_names_of_ours():
    x = maps(2, 4, 6, 3)
    channels_last, channels_first = with_our_names((4, 6, 3)), with_our_names((3, 4, 6))
    layout = Layout((4, 6, 2), (("gain", (4, 6, 1)),))
    packed = packing.packed(with_our_names((4, 6, 2)), layout, "it")
    for result, expected in (
        (input_range.in_front(channels_last, (2, 2, 2), (1, 1, 1)), 2 * x[..., :1] + 1),
        (adapters.any_batch(with_our_names((4, 6, 3), 2), 2), x[..., :1]),
        (
            adapters.with_two_logits(channels_last, ["n"]),
            tf.pad(x[..., :1], [[0, 0]] * 3 + [[1, 0]]),
        ),
        (adapters.resized(channels_last, {"n": (4, 6)}), x[..., :1]),
        (packed, x[..., :1]),
    ):
        np.testing.assert_allclose(result(x)["n"], expected, atol=1e-6)
    output = channels_first(tf.transpose(x, (0, 3, 1, 2)))["n"]
    result = adapters.channels_last(channels_first)(x)["n"]
    np.testing.assert_array_equal(result, tf.transpose(output, (0, 2, 3, 1)))
    chain = input_range.in_front(
        input_range.in_front(channels_last, [2], [0]), [3], [1]
    )
    np.testing.assert_allclose(chain(x)["n"], 6 * x[..., :1] + 2, atol=1e-5)


def test_a_subclassed_model_may_be_called_image():
    model = adapters.as_functional(Free(name="image"), (4, 4, 3))
    x = maps(2, 4, 4, 3)
    np.testing.assert_array_equal(model(x)["n"], -x)


def test_channels_of_a_file_that_another_process_has_numbered(tmp_path):
    keras.backend.clear_session()
    image = keras.Input((3, 8, 6))
    y = keras.layers.Permute((2, 3, 1))(image)
    model = keras.Model(image, {"n": keras.layers.Permute((3, 1, 2))(2 * y)})
    model.save(tmp_path / "first.keras")
    keras.backend.clear_session()
    file = model_files.load(str(tmp_path / "first.keras"))
    assert {"permute", "permute_1"} < {layer.name for layer in file.model.layers}
    x = maps(2, 8, 6, 3)
    np.testing.assert_array_equal(model_files.functional(file, None)(x)["n"], 2 * x)


@pytest.fixture
def mixed_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


def test_nothing_of_a_float32_model_is_rounded(mixed_policy):
    x = maps(2, 8, 6, 3)
    for shape in ((8, 6, 3), (3, 8, 6)):
        image = keras.Input(shape)
        y = keras.layers.Identity(dtype="float32")(image)
        model = keras.Model(image, {"n": y})
        model = adapters.channels_last(model) if shape[0] == 3 else model
        np.testing.assert_array_equal(model(x)["n"], x)
    identity = with_our_names((8, 6, 3))
    for layer in identity.layers:
        layer.dtype_policy = "float32"
    logits = adapters.with_two_logits(identity, ["n"])(x)["n"]
    np.testing.assert_array_equal(logits[..., 1:], x[..., :1])


@pytest.mark.parametrize(
    ("scale", "offset"),
    [((2,) * 3, (1,) * 3), ((1, 2, 3), (0, 1, 0)), ((2,) * 3, (0, 1, 2)), ((2,), (1,))],
)
@pytest.mark.parametrize("order", ["channels_last", "channels_first"])
def test_ranges_do_not_go_by_the_order_that_keras_is_set_to(order, scale, offset):
    image = keras.Input((4, 6, 3))
    model, x = keras.Model(image, {"n": 1 * image}), maps(2, 4, 6, 3)
    default = keras.config.image_data_format()
    keras.config.set_image_data_format(order)
    try:
        result = input_range.in_front(model, scale, offset)(x)["n"]
    finally:
        keras.config.set_image_data_format(default)
    np.testing.assert_allclose(result, x * scale + offset, rtol=1e-6, atol=1e-6)


class Together(keras.layers.Layer):
    """Three times the image, for batches of two only."""

    def call(self, x):
        return tf.reshape(3.0 * tf.reshape(x, (8, 4, 3)), (2, 4, 4, 3))


def of_two_images():
    return keras.Sequential([keras.Input((4, 4, 3), 2), Together()])


def sequential(folder):
    return model_files.of_object(of_two_images(), "the model", "model")


def sequential_file(folder):
    with keras.saving.custom_object_scope({"Together": Together}):
        of_two_images().save(folder / "net.keras")
        return model_files.load(str(folder / "net.keras"))


def export(folder):
    """An export: Keras lets its signature take any batch, but outputs are of two."""
    of_two_images().export(folder / "net", verbose=False)
    return model_files.load(str(folder / "net"))


def signature(folder):
    module = tf.Module()
    module.call = tf.function(Together(), input_signature=[tf.TensorSpec((2, 4, 4, 3))])
    tf.saved_model.save(module, folder / "net", signatures=module.call)
    return model_files.load(str(folder / "net"))


@pytest.mark.parametrize("form", [sequential, sequential_file, export, signature])
def test_fixed_batches_that_models_of_any_form_need(form, tmp_path):
    functional = model_files.functional(form(tmp_path), None)
    call = tf.function(
        lambda x: tf.nest.flatten(functional(x, training=False)), autograph=False
    )
    for count in (1, 2, 5):
        x = maps(count, 4, 4, 3)
        np.testing.assert_allclose(call(x)[0], 3 * x, rtol=1e-6)
