# SPDX-License-Identifier: Apache-2.0
"""Finds out, by calling it, whether a model is random when it is scored."""

from __future__ import annotations

import weakref
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from mtr_tf.errors import NOTE
from mtr_tf.models import stateless

# What `kind` returns.
NONE, SEEDED, UNSEEDED = "none", "seeded", "unseeded"
_KINDS = weakref.WeakKeyDictionary()
_WARNINGS = weakref.WeakKeyDictionary()


def kind(model: Any, images: tf.Tensor) -> str:
    """Returns how a model's outputs for the same images differ from call to call.

    The model is called eagerly three times with `training=False`; the result is kept.

    Args:
      model: Images -> outputs of any structure. For other callables than Keras models
        NONE is returned, since it is not known what calling them changes.
      images: A few images, [batch, ...].

    Returns:
      NONE if they do not differ; SEEDED if they differ only with the key of
      `stateless.outputs`, so that the same key gives the same outputs; UNSEEDED if they
      differ with the same key, too.
    """
    if not isinstance(model, keras.Layer):
        return NONE
    if model not in _KINDS:
        key = tf.constant([0, 0], tf.int64)
        with stateless.unchanged(model):
            first, repeat, second = (
                _arrays(stateless.outputs(model, images, k))
                for k in (key, key, key + 1)
            )
        randomness = NONE if _are_equal(first, second) else SEEDED
        _KINDS[model] = randomness if _are_equal(first, repeat) else UNSEEDED
    return _KINDS[model]


def _arrays(outputs: Any) -> list[np.ndarray]:
    return [np.asarray(tf.cast(y, tf.float64)) for y in tf.nest.flatten(outputs)]


def _are_equal(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    """Whether arrays are equal up to rounding, as GPU kernels may add in any order."""

    def is_close(a: np.ndarray, b: np.ndarray) -> bool:
        scale = np.abs(a[np.isfinite(a)]).max(initial=0)
        return np.allclose(a, b, rtol=1e-5, atol=1e-5 * scale, equal_nan=True)

    return all(map(is_close, first, second))


def warning(model: Any, images: tf.Tensor, eot: int | None) -> str:
    """The warning for results of attacks on the model; "" if it is not random.

    Args:
      model: What is attacked or scored.
      images: A few images, [batch, ...].
      eot: Number of draws of its noise whose mean gradient attacks follow; None for
        measures, which take one draw.
    """
    randomness = kind(model, images)
    if randomness == NONE:
        return ""
    gradients = f"attacks follow the mean gradient over {eot} draws of its noise"
    if eot is None:
        gradients = "measures use a single draw of its noise"
    elif eot == 1:
        gradients = (
            "an attack follows a single draw of its noise at each step, and the model "
            "may look more robust than it is; give --eot=10 (in Python eot=10)"
        )
    prefix = NOTE if eot and eot > 1 and randomness != UNSEEDED else ""
    text = f"{prefix}the model is random in predict: {gradients}."
    if randomness == UNSEEDED:
        text += (
            " Some of its random numbers are drawn without a seed (tf.random), so "
            "results cannot be repeated exactly; draw them with keras.random and a "
            "keras.random.SeedGenerator."
        )
    return text


def say_once(model: Any, images: tf.Tensor, eot: int | None) -> str:
    """Logs the warning, once for each model and wording; returns it."""
    text = warning(model, images, eot)
    if text and text not in _WARNINGS.setdefault(model, set()):
        _WARNINGS[model].add(text)
        logging.warning("%s", text)
    return text
