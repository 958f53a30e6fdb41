# SPDX-License-Identifier: Apache-2.0
"""Small models that are random, or that keep state, when `predict` calls them."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

L = keras.layers


@keras.saving.register_keras_serializable("tests")
class AlwaysNoise(L.Layer):
    """Adds Gaussian noise of its own, in training or not."""

    def __init__(self, scale=0.1, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale
        self.seeds = keras.random.SeedGenerator()

    def call(self, x):
        """Returns x with noise."""
        shape = keras.ops.shape(x)
        return x + self.scale * keras.random.normal(
            shape, dtype=self.compute_dtype, seed=self.seeds
        )

    def get_config(self):
        """Returns the arguments that make the layer anew."""
        return {**super().get_config(), "scale": self.scale}


@keras.saving.register_keras_serializable("tests")
class AlwaysDropout(L.Dropout):
    """Drops entries in training or not."""

    def call(self, x, training=None):
        """Returns x without some of its entries."""
        return super().call(x, training=True)


class Unseeded(L.Layer):
    """Adds TensorFlow's plain noise, without any seed."""

    def call(self, x):
        """Returns x with noise."""
        return x + 0.1 * tf.random.normal(tf.shape(x))


class GloballySeeded(L.Layer):
    """Adds noise of Keras' global generator, the default for calls without a seed."""

    def call(self, x):
        """Returns x with noise."""
        return x + 0.1 * keras.random.normal(keras.ops.shape(x))


class Counting(L.Layer):
    """Counts its calls, in a variable of Keras and in one of TensorFlow."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.calls = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False
        )
        self.plain = tf.Variable(0, trainable=False)

    def call(self, x):
        """Returns x."""
        self.calls.assign_add(1)
        self.plain.assign_add(1)
        return x


def model(*layers, shape=(8, 8, 3), task="depth") -> keras.Model:
    """A model of these layers, a convolution with a norm, and a head of one channel."""
    image = x = keras.Input(shape, name="image")
    for layer in layers:
        x = layer(x)
    x = L.Conv2D(4, 3, padding="same", name="conv")(x)
    x = L.ReLU()(L.BatchNormalization(name="norm")(x))
    return keras.Model(image, {task: L.Conv2D(1, 1, name="head")(x)})


def bits(model: keras.Model) -> dict[str, bytes]:
    """The bytes of all variables of the model's layers, Keras' own and others."""
    contents = {v.path: np.asarray(v).tobytes() for v in model.variables}
    for layer in model.layers:
        for name, value in vars(layer).items():
            if isinstance(value, tf.Variable):
                contents[f"{layer.name}/{name}"] = value.numpy().tobytes()
    return contents
