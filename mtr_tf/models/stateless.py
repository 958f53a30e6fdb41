# SPDX-License-Identifier: Apache-2.0
"""Calls a model as `predict` does, with our own random draws, so that nothing changes.

Within `outputs` all that layers assign to Keras variables (moving statistics, counters,
the states of seed generators) is forgotten once the call ends, and random layers draw
from seeds that are made of a key: the same key gives the same noise.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

_SEED_STATE = "seed_generator_state"  # Keras' name of a seed generator's variable.
_FIRST_FREE = 2**20  # Number of the first generator that no layer holds.


@dataclasses.dataclass(frozen=True, eq=False)
class Copy:
    """Another way to compute the Keras model `source`, with the same random draws.

    `run` takes images [batch, ...] and is called within `outputs`.
    """

    run: Callable[[tf.Tensor], Any]
    source: keras.Model

    def __call__(self, x: tf.Tensor) -> Any:
        """Returns its `outputs` with the key zero."""
        return outputs(self, x)


def outputs(
    model: Callable[[tf.Tensor], Any], x: tf.Tensor, key: tf.Tensor | None = None
) -> Any:
    """Returns the outputs of a Keras model with `training=False`, or of any callable.

    Args:
      model: Images [batch, ...] -> outputs: a Keras model, or a `Copy` of one. Other
        functions are just called, and may change any state.
      x: The images.
      key: Key of the model's random numbers, int64 [2]; None: zeros.
    """
    source = model.source if isinstance(model, Copy) else model
    if not isinstance(source, keras.Layer):
        return model(x)
    with _Scope(source, tf.zeros(2, tf.int64) if key is None else key):
        if isinstance(model, Copy):
            return model.run(x)
        return source(x, training=False)


def fold_in(key: tf.Tensor, number: int | tf.Tensor) -> tf.Tensor:
    """Returns another key, int64 [2], for each number."""
    number = tf.cast(number, tf.int64)
    return tf.random.experimental.stateless_fold_in(key, number, "philox")


def batch_key(keys: tf.Tensor) -> tf.Tensor:
    """Returns the key of a batch's noise, that of its first image, int64 [2].

    Args:
      keys: The images' keys, int64 [batch, 2]; an empty batch gives zeros.
    """
    return tf.reduce_sum(keys[:1], axis=0)


class _Scope(keras.StatelessScope):
    """Holds back updates of Keras variables; a key seeds the seed generators.

    Generators that layers hold are numbered by their place in the model; any other,
    such as the one that Keras uses where no seed is given, by the order of first use.
    """

    def __init__(self, model: keras.Layer, key: tf.Tensor):
        self._key = key
        self._others = 0
        states = _seed_states(model)
        seeds = [(s, self._seed(number, s)) for number, s in enumerate(states)]
        super().__init__(seeds, collect_losses=True)

    def get_current_value(self, variable: keras.Variable) -> tf.Tensor | None:
        """Returns a variable's value in the scope; None if the same as outside."""
        value = super().get_current_value(variable)
        if value is None and variable.name == _SEED_STATE:
            value = self._seed(_FIRST_FREE + self._others, variable)
            self._others += 1
            self.add_update((variable, value))
        return value

    def _seed(self, number: int, state: keras.Variable) -> tf.Tensor:
        return tf.cast(fold_in(self._key, number), state.dtype)


def _seed_states(model: keras.Layer) -> list[keras.Variable]:
    states = {
        id(generator.state): generator.state
        for layer in model._flatten_layers()
        for generator in layer._seed_generators
    }
    return list(states.values())


@contextlib.contextmanager
def unchanged(*models: Any) -> Iterator[None]:
    """Restores, at its end, TensorFlow's own variables that the models' layers hold.

    `outputs` cannot protect these: a `tf.Variable` that a layer counts in, the state of
    a `tf.random.Generator`.
    """
    layers = [model for model in models if isinstance(model, keras.Layer)]
    variables = [variable for layer in layers for variable in _plain_variables(layer)]
    old_values = [variable.numpy() for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, old_values, strict=True):
            variable.assign(value)


def _plain_variables(model: keras.Layer) -> list[tf.Variable]:
    """Returns the layers' attributes that are TensorFlow's variables, not Keras's."""
    variables = {}
    for layer in model._flatten_layers():
        for value in vars(layer).values():
            if isinstance(value, tf.random.Generator):
                value = value.state
            if isinstance(value, tf.Variable):
                variables[id(value)] = value
    return list(variables.values())
