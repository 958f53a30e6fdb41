# SPDX-License-Identifier: Apache-2.0
"""Probabilities are recognised as such, and logits take their place."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import random_models_fixture as random_models
import tensorflow as tf

from mtr_tf import attacks
from mtr_tf.models import adapters
from mtr_tf.models import folding
from mtr_tf.models import probabilities
from mtr_tf.tasks import losses

SIZE, CLASSES = 8, 3
layers, ops = keras.layers, keras.ops


def images(scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (scale * rng.random((2, SIZE, SIZE, 3))).astype(np.float32)


def nested(features):
    inner = keras.Input(features.shape[1:])
    conv = layers.Conv2D(CLASSES, 1, activation="softmax")
    return keras.Model(inner, conv(inner))(features)


def half(x):
    return layers.AveragePooling2D(2)(x)


# Ways to end in a softmax: of the logits z of a convolution, or of its input x.
EXACT = {
    "layer": lambda z, x: layers.Softmax()(z),
    "activation": lambda z, x: layers.Activation("softmax")(z),
    "of the convolution": lambda z, x: layers.Conv2D(3, 1, activation="softmax")(x),
    "operation": lambda z, x: ops.softmax(z),
    "function": lambda z, x: keras.activations.softmax(z),
    "of TensorFlow": lambda z, x: layers.Conv2D(3, 1, activation=tf.nn.softmax)(x),
    "operation of the convolution": lambda z, x: layers.Conv2D(
        3, 1, activation=ops.softmax
    )(x),
    "before a cast": lambda z, x: ops.cast(
        ops.softmax(ops.cast(z, "float16")), "float32"
    ),
    "half": lambda z, x: layers.Activation("linear", dtype="float32")(
        layers.Softmax(dtype="mixed_bfloat16")(z)
    ),
    "nested": lambda z, x: nested(x),
    "nearest": lambda z, x: layers.UpSampling2D(2)(layers.Softmax()(half(z))),
    "sequence": lambda z, x: keras.Sequential(
        [layers.Conv2D(3, 1), layers.Softmax()]
    )(x),
}  # fmt: skip
# Ways that cannot be traced back to logits: not equal, or not recognised.
LOGS = {
    "bilinear": lambda z, x: layers.UpSampling2D(2, interpolation="bilinear")(
        layers.Softmax()(half(z))
    ),
    "by hand": lambda z, x: ops.exp(z) / ops.sum(ops.exp(z), axis=-1, keepdims=True),
}
SIGMOIDS = {
    "layer": lambda z, x: layers.Activation("sigmoid")(z),
    "operation": lambda z, x: ops.sigmoid(z),
    "of TensorFlow": lambda z, x: layers.Conv2D(3, 1, activation=tf.nn.sigmoid)(x),
    "activation of TensorFlow": lambda z, x: layers.Activation(tf.sigmoid)(z),
    "operation of the convolution": lambda z, x: layers.Conv2D(
        3, 1, activation=ops.sigmoid
    )(x),
}
LOGITS = {
    "logits": lambda z, x: z,
    "log-softmax": lambda z, x: ops.log_softmax(z),
    "between 0 and 1": lambda z, x: 1.0 * x[..., :3],
}


MEANS = {
    "resized": lambda z, x: layers.Resizing(4, 4)(layers.Softmax()(z)),
    "averaged": lambda z, x: layers.GlobalAveragePooling2D()(layers.Softmax()(z)),
    "moved": lambda z, x: ops.transpose(
        layers.Softmax(axis=1)(ops.transpose(z, (0, 3, 1, 2))), (0, 2, 3, 1)
    ),
}
NO_PROBABILITIES = {
    "logs": lambda z, x: ops.log(ops.softmax(z)),
    "rescaled": lambda z, x: layers.Rescaling(9, -4)(ops.sigmoid(z)),
    "gated": lambda z, x: z * ops.sigmoid(z),
    "of features": lambda z, x: layers.Conv2D(3, 1)(layers.Softmax()(z)),
    "of places": lambda z, x: layers.Softmax(axis=1)(z),
}


def net(end) -> keras.Model:
    image = keras.Input((SIZE, SIZE, 3))
    logits = layers.Conv2D(CLASSES, 3, padding="same", kernel_initializer=_spread)(
        image
    )
    return keras.Model(image, {"seg": end(logits, image)})


def _spread(shape, dtype):
    return tf.random.stateless_normal(shape, (1, 2), stddev=2.0, dtype=dtype)


def converted(model: keras.Model, x: np.ndarray):
    output = np.asarray(tf.cast(model(x)["seg"], tf.float32))
    kind = probabilities.kind(output, model.output["seg"])
    return kind, *probabilities.with_logits(model, {"seg": kind}, x), output


@pytest.mark.parametrize("form", [*EXACT, *LOGS])
def test_a_softmax_in_any_form(form):
    """The softmax of the logits is what the model gave: losses take the log of it."""
    model, x = net((EXACT | LOGS)[form]), images()
    kind, copy, exact, output = converted(model, x)
    assert (kind, exact) == ("softmax", {"seg": form in EXACT})
    logits = copy(x, training=False)["seg"]
    rounding = 0.02 if form in ("before a cast", "half") else 1e-6
    np.testing.assert_allclose(tf.nn.softmax(logits), output, atol=rounding)
    target = np.random.default_rng(1).integers(0, CLASSES, (2, SIZE, SIZE))
    mask = np.ones((2, SIZE, SIZE), np.float32)
    likelihood = np.take_along_axis(output, target[..., None], -1)[..., 0]
    expected = -np.log(likelihood / output.sum(-1)).mean((1, 2))
    loss = losses.cross_entropy(target, logits, mask)
    np.testing.assert_allclose(loss, expected, rtol=5 * rounding)
    assert folding.can_fold(copy, ["seg"])
    folded = folding.fold(copy, ["seg"])(tf.constant(x))["seg"]
    np.testing.assert_allclose(folded, logits, atol=1e-5)


@pytest.mark.parametrize("form", SIGMOIDS)
def test_a_sigmoid_gives_the_logs_of_the_odds(form):
    kind, copy, exact, output = converted(net(SIGMOIDS[form]), images())
    assert (kind, exact) == ("sigmoid", {"seg": True})
    logits = copy(images())["seg"]
    np.testing.assert_allclose(tf.sigmoid(logits), output, atol=1e-6)
    logs = probabilities.Logits("sigmoid")(output)
    np.testing.assert_allclose(logs, logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("forms", "of"),
    [
        (EXACT | MEANS | {"bilinear": LOGS["bilinear"]}, "softmax"),
        (SIGMOIDS, "sigmoid"),
        (LOGITS | NO_PROBABILITIES, ""),
    ],
)
def test_the_activation_that_an_output_has_the_values_of(forms, of):
    activations = {
        form: probabilities.activation_of(net(end).output["seg"])
        for form, end in forms.items()
    }
    assert activations == dict.fromkeys(forms, of)


@pytest.mark.parametrize("form", LOGITS)
def test_logits_are_left_alone(form):
    model = net(LOGITS[form])
    output = model(images())["seg"].numpy()
    assert probabilities.kind(output, model.output["seg"]) == ""


def test_sigmoids_of_other_code_are_not_clear():
    """Nor is what is computed from them; but the output of a linear layer is clear."""
    function = adapters.Function(lambda x: tf.sigmoid(x[..., :3]))
    image = keras.Input((SIZE, SIZE, 3))
    sigmoids, logits = function(image), layers.Conv2D(2, 1)(function(image))
    for tensor, unclear in ((sigmoids, True), (1 * sigmoids, True), (logits, False)):
        values = np.full((2, 4, 4, 2), 0.3, np.float32)
        assert probabilities.kind(values, tensor) == ""
        assert probabilities.unclear(values, tensor) is unclear
        assert not probabilities.unclear(values - 1, tensor)


def lines(z):
    return ops.clip(z / 4 + 0.5, 0, 1)


@pytest.mark.parametrize(
    "end",
    [
        lambda z, x: layers.Conv2D(3, 1, activation="hard_sigmoid")(x),
        lambda z, x: layers.Conv2D(3, 1, activation=lines)(x),
        lambda z, x: layers.Activation(lines)(z),
        lambda z, x: 1 / (1 + ops.exp(-z)),
        lambda z, x: ops.concatenate([ops.sigmoid(z), ops.sigmoid(-z)]),
    ],
)
def test_numbers_in_0_to_1_that_no_linear_layer_made_are_not_clear(end):
    model = net(end)
    output = model(images())["seg"].numpy()
    assert 0 <= output.min() < output.max() <= 1
    assert probabilities.kind(output, model.output["seg"]) == ""
    assert probabilities.unclear(output, model.output["seg"])


@pytest.mark.parametrize(
    "passing", [None, "moved", "resized", "nested", "normalised", "summed"]
)
def test_a_linear_layer_gives_logits_whatever_their_range(passing):
    image = keras.Input((SIZE, SIZE, 3))
    y = layers.Conv2D(2, 1, kernel_initializer="zeros", bias_initializer="ones")(image)
    if passing == "moved":
        y = layers.Permute((2, 1, 3))(layers.Activation("linear")(y))
    elif passing == "resized":
        y = layers.UpSampling2D(2, interpolation="bilinear")(y)
    elif passing == "normalised":
        y = layers.Dropout(0.5)(layers.BatchNormalization()(y))[:, :-1]
    elif passing == "summed":
        y = 2 * layers.Add()([y, layers.ZeroPadding2D(1)(y)[:, 1:-1, 1:-1]])
    elif passing == "nested":
        y = keras.Model(image, y)(image)
    (logits, sigmoids) = keras.Model(image, [y, layers.Activation("sigmoid")(y)]).output
    values = np.full((2, 4, 4, 2), 0.3, np.float32)
    assert probabilities.kind(values, logits, single=True) == ""
    assert probabilities.kind(values, sigmoids, single=True) == "sigmoid"


def test_logs_have_a_floor_and_the_gradient_of_the_log():
    p = tf.constant([[1.0, 0.0, 1e-30], [0.5, 0.25, 0.25]])
    with tf.GradientTape() as tape:
        tape.watch(p)
        logs = probabilities.Logits()(p)
    tiny = np.finfo(np.float32).tiny
    np.testing.assert_allclose(logs[0], np.log([1, tiny, 1e-30]), rtol=1e-6)
    np.testing.assert_allclose(logs[1], np.log([0.5, 0.25, 0.25]), rtol=1e-6)
    slope = tape.gradient(logs, p)
    np.testing.assert_allclose(slope[1], [2, 4, 4], rtol=1e-6)
    assert np.isfinite(slope).all()


def test_a_saturated_softmax_does_not_mask_the_gradient():
    """Half precision gives exactly 0 and 1; the logits before it keep gradients."""
    model = net(lambda z, x: layers.Softmax(dtype="float16")(50 * z))
    x = images()
    output = model(x)["seg"].numpy()
    assert ((output == 0) | (output == 1)).mean() > 0.5
    _, copy, exact, _ = converted(model, x)
    assert exact == {"seg": True}
    target = output.argmax(-1).astype(np.int32)
    masks = {"seg": np.ones(target.shape, np.float32)}

    def changed_share(surrogate):
        objective = attacks.objective(surrogate, {"seg": target}, masks)
        adversarial = attacks.FGSM(0.1)(objective, x)
        return (copy(adversarial)["seg"].numpy().argmax(-1) != target).mean()

    model_share = changed_share(model)
    copy_share = changed_share(copy)
    assert copy_share > 0.05
    assert copy_share > 2 * model_share


def test_the_model_that_was_given_stays_as_it_is():
    model, x = net(EXACT["of the convolution"]), images()
    output, names = model(x)["seg"].numpy(), [layer.name for layer in model.layers]
    converted(model, x)
    np.testing.assert_array_equal(model(x)["seg"], output)
    assert [layer.name for layer in model.layers] == names


def test_what_a_model_draws_and_counts_stays_as_it_is():
    image = keras.Input((SIZE, SIZE, 3))
    y = random_models.Counting()(random_models.AlwaysNoise()(image))
    end = layers.Conv2D(CLASSES, 1, activation="softmax")(y)
    model = keras.Model(image, {"seg": end})
    bits = random_models.bits(model)
    _, exact = probabilities.with_logits(model, {"seg": "softmax"}, images())
    assert exact == {"seg": True}
    assert random_models.bits(model) == bits


class Head(layers.Layer):
    """A layer of other code, whose config has no activation."""

    def __init__(self, of, **settings):
        super().__init__(**settings)
        self.of, self.conv = of, layers.Conv2D(CLASSES, 1)
        self.activation = getattr(keras.activations, of)

    def call(self, x):
        return self.activation(self.conv(x))


@pytest.mark.parametrize("of", ["softmax", "sigmoid"])
def test_a_layer_that_cannot_be_copied_gives_the_logs(of):
    model, x = net(lambda z, x: Head(of)(x)), images()
    kind, copy, exact, output = converted(model, x)
    assert (kind, exact) == (of, {"seg": False})
    result = {"softmax": tf.nn.softmax, "sigmoid": tf.sigmoid}[of](copy(x)["seg"])
    np.testing.assert_allclose(result, output, atol=1e-6)


def of_two(head):
    image = keras.Input((SIZE, SIZE, 3))
    return keras.Model(image, {"near": head(image), "far": head(-image)})


def shared_convolution():
    return of_two(layers.Conv2D(CLASSES, 1, activation="softmax"))


def shared_model():
    inner = keras.Input((SIZE, SIZE, 3))
    layer = layers.Conv2D(CLASSES, 1, activation="softmax")
    return of_two(keras.Model(inner, layer(inner)))


def models_numbered_by_another_process():
    names = iter(["functional", "functional_1"])

    def part():
        inner = keras.Input((SIZE, SIZE, 3))
        layer = layers.Conv2D(CLASSES, 1, activation="softmax")
        return keras.Model(inner, layer(inner), name=next(names))

    image = keras.Input((SIZE, SIZE, 3))
    outputs = {"near": part()(image), "far": part()(image)}
    keras.backend.clear_session()
    return keras.Model(image, outputs)


def names_of_ours():
    def end(name):
        return layers.Conv2D(CLASSES, 1, activation="softmax", name=name)

    image = keras.Input((SIZE, SIZE, 3))
    return keras.Model(image, {"near": end("a")(image), "far": end("a_logits")(image)})


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        shared_convolution,
        shared_model,
        models_numbered_by_another_process,
        names_of_ours,
    ],
)
def test_two_outputs_get_their_logits(make, shares):
    model, x = make(), images()
    kinds = {"near": "softmax", "far": "softmax"}
    copy, exact = probabilities.with_logits(model, kinds, x, shares=shares)
    assert exact == {"near": True, "far": True}
    outputs, logits = model(x), copy(x)
    for task in kinds:
        assert np.ptp(logits[task]) > 1 or np.min(logits[task]) < 0
        np.testing.assert_allclose(
            tf.nn.softmax(logits[task]), outputs[task], atol=1e-6
        )


@pytest.mark.parametrize("kind", ["weight", "array"])
def test_a_layer_may_keep_anything_as_its_activation(kind):
    """Comparing that with a function by == would fail, or give no single answer."""

    class Scaled(keras.layers.Layer):
        def build(self, _):
            weight = self.add_weight(shape=(2,), name="scale")
            self.activation = weight if kind == "weight" else np.ones(2)

        def call(self, x):
            return x * keras.ops.convert_to_tensor(self.activation, "float32")

    image = keras.Input((4, 4, 3))
    output = Scaled()(keras.layers.Conv2D(2, 1)(image))
    assert probabilities.activation_of(output) == ""
