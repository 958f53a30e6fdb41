# SPDX-License-Identifier: Apache-2.0
"""Folded copies of models drawn at random: the same outputs, the same gradients.

Each seed is a model of a few layers, drawn from all kinds that convolutional nets have,
with statistics and weights that matter. The tests compare what an attack uses.
"""

from __future__ import annotations

import collections

import keras
import numpy as np
import pytest
import random_models_fixture as random_models
import tensorflow as tf
from tiers_fixture import slow

from mtr_tf.models import folding
from mtr_tf.models import stateless

L = keras.layers

ACTIVATIONS = sorted(
    name
    for name in vars(keras.activations)
    if not name.startswith("_")
    and name not in ("deserialize", "get", "serialize", "glu", "threshold")
)
POLICIES = ("float32",) * 5 + (
    "float64",
    "mixed_bfloat16",
    "mixed_float16",
    "bfloat16",
    "float16",
)
# Errors that rounding may make in outputs and gradients, as shares of the largest.
TOLERANCES = {
    "float64": (1e-7, 1e-6),
    "float32": (1e-4, 2e-3),
    "float16": (3e-2, 0.2),
    "bfloat16": (0.2, 0.6),
}


class FlipsWithin(L.Layer):
    """Its `call` takes no `training`, but its layers do: Keras passes it on."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.flip = L.RandomFlip()
        self.drop = L.Dropout(0.5)

    def call(self, x):
        """Returns x as it is, unless it trains."""
        return self.drop(self.flip(x))


class Drawing:
    """A model drawn from a seed; `drawn` counts its parts by kind."""

    def __init__(self, seed: int, grouped: float):
        self.rng = np.random.default_rng(seed)
        self.grouped = grouped
        self.drawn = collections.Counter()
        self.policy = self._choice(POLICIES)
        default = keras.config.dtype_policy()
        keras.config.set_dtype_policy(self.policy)
        try:
            self.model = self._draw()
        finally:
            keras.config.set_dtype_policy(default)
        _randomize_norms(self.model, self.rng)

    def _choice(self, options):
        return options[self.rng.integers(len(options))]

    def _chance(self, share):
        return self.rng.random() < share

    def _draw(self):
        image = x = keras.Input((8, 8, 3), name="image")
        if self._chance(0.6):
            x = self._rescale(x)
        for _ in range(self.rng.integers(1, 5)):
            x = self._layers(x)
        heads = {"seg": x}
        if self._chance(0.4):
            heads["depth"] = self._layers(x)
        if self._chance(0.4):
            heads = {
                name: L.Activation("linear", dtype="float32")(y)
                for name, y in heads.items()
            }
        return keras.Model(image, heads)

    def _rescale(self, x):
        self.drawn["rescaling"] += 1
        scale, offset = self._choice(
            [
                (1 / 127.5, -1.0),
                (2.0, (0.1, -1.0, 0.0)),
                ((2.0, 3.0, 0.5), 0.25),
                ([[[0.5, 2.0, -1.0]]], (0.1, 0.2, 0.3)),
                ((2.0, 0.0, 1.0), 0.5),
                (np.full((8, 1), 0.5), 0.0),
            ]
        )
        return L.Rescaling(scale, offset)(x)

    def _layers(self, x):
        kinds = [name for name in dir(self) if name.startswith("add_")]
        kinds += ["add_convolution", "add_normed"] * 4
        kind = self._choice(kinds)
        self.drawn[kind[4:]] += 1
        return getattr(self, kind)(x)

    def _norm(self, x, **kwargs):
        norm = L.BatchNormalization(
            axis=self._choice([-1] * 6 + [3, 1, 2]),
            scale=self._chance(0.7),
            center=self._chance(0.7),
            epsilon=self._choice([1e-3, 1e-5]),
            renorm=self._chance(0.1),
            **kwargs,
        )
        return norm(
            x, **self._choice([{}, {}, {"training": True}, {"training": False}])
        )

    def _convolution(self, channels, **kwargs):
        strides, dilation = self._choice([(1, 1), (1, 1), (2, 1), (1, 2), (1, 3)])
        divisors = [g for g in (2, 3, channels) if not channels % g]
        # Rarely, as TensorFlow compiles each grouped convolution anew.
        groups = self._choice(divisors) if self._chance(self.grouped) else 1
        return L.Conv2D(
            groups * self._choice([1, 2]),
            self._choice([1, 2, 3, (3, 1)]),
            strides=strides,
            dilation_rate=dilation,
            groups=groups,
            padding="same",
            use_bias=self._chance(0.5),
            **kwargs,
        )

    def add_convolution(self, x):
        if self._chance(0.2):
            x = L.ZeroPadding2D(self._choice([1, ((1, 0), (0, 2))]))(x)
        activation = self._choice(ACTIVATIONS) if self._chance(0.4) else None
        return self._norm(self._convolution(x.shape[-1], activation=activation)(x))

    def add_normed(self, x):
        return L.ReLU()(self._norm(self._convolution(x.shape[-1])(x)))

    def add_depthwise(self, x):
        return self._norm(L.DepthwiseConv2D(3, padding="same")(x))

    def add_separable(self, x):
        return self._norm(L.SeparableConv2D(3, 2, padding="same")(x))

    def add_transposed(self, x):
        layer = L.Conv2DTranspose(
            2, 3, self._choice([1, 2]), padding="same", use_bias=self._chance(0.5)
        )
        return self._norm(layer(x))

    def add_activation(self, x):
        return L.Activation(self._choice(ACTIVATIONS))(x)

    def add_dense(self, x):
        return self._norm(L.Dense(3)(x))

    def add_shape(self, x):
        return self._choice(
            [
                L.AveragePooling2D(2, padding="same"),
                L.MaxPooling2D(2, padding="same"),
                L.UpSampling2D(2),
                L.PReLU(),
                L.Softmax(),
            ]
        )(x)

    def add_other_norm(self, x):
        return self._choice(
            [
                L.GroupNormalization(1),
                L.LayerNormalization(),
                L.UnitNormalization(),
                L.SpectralNormalization(L.Conv2D(2, 3, padding="same")),
            ]
        )(x)

    def add_only_in_training(self, x):
        layer = self._choice(
            [
                L.Dropout(0.5),
                L.SpatialDropout2D(0.5),
                L.GaussianNoise(1.0),
                L.GaussianDropout(0.5),
                L.RandomFlip(),
                L.RandomRotation(0.3),
                L.RandomContrast(0.5),
                L.RandomTranslation(0.3, 0.3),
                L.BatchNormalization(),
            ]
        )
        return layer(x, **self._choice([{}, {"training": True}]))

    def add_within(self, x):
        return FlipsWithin()(x)

    def add_random(self, x):
        return self._choice(
            [random_models.AlwaysNoise(), random_models.AlwaysDropout(0.3)]
        )(x)

    def add_nested(self, x):
        inner = keras.Input(x.shape[1:])
        y = self._norm(self._convolution(x.shape[-1])(inner))
        outputs = self._choice([y, [y, y * 2], {"a": y}])
        results = keras.Model(inner, outputs)(
            x, **self._choice([{}, {"training": True}])
        )
        return keras.tree.flatten(results)[-1]

    def add_sequential(self, x):
        layers = [self._convolution(x.shape[-1]), L.BatchNormalization(), L.ReLU()]
        return keras.Sequential(layers)(x)

    def add_shared(self, x):
        conv, norm = L.Conv2D(x.shape[-1], 3, padding="same"), L.BatchNormalization()
        return self._choice(
            [
                lambda: norm(conv(norm(conv(x)))),
                lambda: L.Add()([norm(conv(x)), conv(x)]),
                lambda: L.Concatenate()([norm(conv(x)), norm(x)]),
            ]
        )()

    def add_operation(self, x):
        y = self._norm(self._convolution(x.shape[-1])(x))
        return self._choice([lambda: keras.ops.tanh(y) * 0.5 + y, lambda: y[:, ::-1]])()

    def add_quantised(self, x):
        layer = L.Dense(3)
        y = layer(x)
        if self.policy == "float32":
            layer.quantize("int8")
        return y

    def add_by_keyword(self, x):
        norm = L.BatchNormalization()
        return norm(inputs=L.Conv2D(2, 3, padding="same")(inputs=x))

    @property
    def tolerances(self):
        """Those of the coarsest dtype that the model computes in."""
        kinds = {layer.compute_dtype for layer in self.model._flatten_layers()}
        for kind in ("bfloat16", "float16", "float32"):
            if kind in kinds:
                return TOLERANCES[kind]
        return TOLERANCES["float64"]


def _randomize_norms(model: keras.Model, rng: np.random.Generator) -> None:
    """Gives batch norms statistics and weights that matter."""
    for variable in model.variables:
        if variable.path.endswith(("moving_variance", "gamma")):
            value = rng.uniform(0.5, 2, variable.shape)
        elif variable.path.endswith(("moving_mean", "beta", "bias")):
            value = rng.normal(0, 0.5, variable.shape)
        else:
            continue
        variable.assign(tf.cast(value, variable.dtype))


def evaluated(call, x):
    """Returns [*outputs, the gradient of the sum of their sines], all float64."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = call(x)
        total = tf.add_n(
            [tf.reduce_sum(tf.sin(tf.cast(y, tf.float64))) for y in outputs.values()]
        )
    slope = tape.gradient(total, x, unconnected_gradients="zero")
    return [np.asarray(y, np.float64) for y in (*outputs.values(), slope)]


def check(seed: int, grouped: float = 0.3) -> collections.Counter:
    """Compares a model with its folded copy: outputs always, and gradients.

    In half precision rounding may put a value on the other side of a kink, or leave
    noise of a gradient that cancels out: such gradients are counted as "kinks".
    """
    keras.utils.set_random_seed(seed)  # Initial weights too.
    drawing = Drawing(seed, grouped)
    model, names = drawing.model, list(drawing.model.output)
    x = tf.constant(np.random.default_rng(seed).random((2, 8, 8, 3)), tf.float32)
    key = tf.constant([seed, 0], tf.int64)
    bits = random_models.bits(model)
    references = evaluated(lambda x: stateless.outputs(model, x, key), x)
    copy = folding.fold(model, names)
    results = evaluated(lambda x: stateless.outputs(copy, x, key), x)
    assert random_models.bits(model) == bits
    output_tolerance, slope_tolerance = drawing.tolerances
    for reference, result in zip(references, results, strict=True):
        tolerance = slope_tolerance if reference is references[-1] else output_tolerance
        scale = max(np.abs(reference).max(), 1e-3)
        error = np.abs(reference - result).max() / scale
        if (
            error > tolerance
            and reference is references[-1]
            and tolerance == slope_tolerance >= 0.2
        ):
            drawing.drawn["kinks"] += 1
            continue
        assert error <= tolerance, (seed, drawing.policy, drawing.drawn, error)
    if not {"random"} & set(drawing.drawn):
        outputs = model(x, training=False)
        for reference, name in zip(references, outputs, strict=False):
            np.testing.assert_array_equal(
                reference, np.asarray(outputs[name], np.float64)
            )
    return drawing.drawn


@pytest.mark.parametrize("first", [0, slow(20), slow(40)])
def test_models_drawn_at_random(first):
    counts = sum(
        (check(seed, grouped=0.05) for seed in range(first, first + 20)),
        collections.Counter(),
    )
    assert counts["kinks"] <= 2


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("kind", ["Conv2D", "Conv2DTranspose", "DepthwiseConv2D"])
def test_channels_first(kind, grouped):
    image = keras.Input((8, 8, 3))
    x = keras.ops.transpose(image, (0, 3, 1, 2))
    options = {"data_format": "channels_first", "padding": "same"}
    if kind == "DepthwiseConv2D":
        layer = L.DepthwiseConv2D(3, **options)
    else:
        groups = {"groups": 3} if grouped and kind == "Conv2D" else {}
        layer = getattr(L, kind)(3, 3, **groups, **options)
    y = L.BatchNormalization(axis=-1)(layer(x))
    x = L.BatchNormalization(axis=1)(L.Conv2D(4, 1, **options)(y))
    model = keras.Model(image, {"seg": keras.ops.transpose(x, (0, 2, 3, 1))})
    _randomize_norms(model, np.random.default_rng(0))
    x = tf.random.stateless_uniform((2, 8, 8, 3), (0, 0))
    try:
        references = evaluated(lambda x: model(x, training=False), x)
    except (tf.errors.OpError, ValueError) as error:
        pytest.skip(f"not on this device: {str(error)[:100]}")
    for reference, result in zip(
        references, evaluated(folding.fold(model, ("seg",)), x), strict=True
    ):
        np.testing.assert_allclose(
            reference, result, atol=1e-4 * np.abs(reference).max()
        )


@pytest.mark.fuzz
def test_many_models_drawn_at_random():
    counts = sum((check(seed) for seed in range(100, 400)), collections.Counter())
    kinds = [name[4:] for name in dir(Drawing) if name.startswith("add_")]
    assert min(counts[kind] for kind in kinds) > 5
    assert counts["kinks"] <= 8
