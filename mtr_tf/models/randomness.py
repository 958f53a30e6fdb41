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
_SAID = weakref.WeakKeyDictionary()


def kind(model: Any, images: tf.Tensor) -> str:
    """How a model's outputs for the same images differ from call to call.

    Called with `training=False`, eagerly, three times; looked at once for each model.

    Args:
      model: Images -> outputs of any structure; no Keras model: `NONE`, since what a
        plain function changes by being called is not known.
      images: [batch, ...], a few.

    Returns:
      NONE; SEEDED if they do with the key of `stateless.outputs` alone, so that the
      same key gives the same outputs; UNSEEDED if they do with the same key too.
    """
    if not isinstance(model, keras.Layer):
        return NONE
    if model not in _KINDS:
        key = tf.constant([0, 0], tf.int64)
        with stateless.unchanged(model):
            one, same, other = (
                _flat(stateless.outputs(model, images, k)) for k in (key, key, key + 1)
            )
        found = NONE if _equal(one, other) else SEEDED
        _KINDS[model] = found if _equal(one, same) else UNSEEDED
    return _KINDS[model]


def _flat(outputs: Any) -> list[np.ndarray]:
    return [np.asarray(tf.cast(y, tf.float64)) for y in tf.nest.flatten(outputs)]


def _equal(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    """Whether they are equal but for rounding: kernels of GPUs may add up otherwise."""

    def alike(a: np.ndarray, b: np.ndarray) -> bool:
        scale = np.abs(a[np.isfinite(a)]).max(initial=0)
        return np.allclose(a, b, rtol=1e-5, atol=1e-5 * scale, equal_nan=True)

    return all(map(alike, one, other))


def warning(model: Any, images: tf.Tensor, eot: int | None) -> str:
    """The warning for results of attacks on the model; "" if it is not random.

    Args:
      model: What is attacked or scored.
      images: [batch, ...], a few.
      eot: Draws of its noise whose mean gradient attacks follow; None for measures,
        which take one draw.
    """
    found = kind(model, images)
    if found == NONE:
        return ""
    attacked = f"attacks follow the mean gradient over {eot} draws of its noise"
    if eot is None:
        attacked = "measures use a single draw of its noise"
    elif eot == 1:
        attacked = (
            "an attack follows a single draw of its noise at each step, and the model "
            "may look more robust than it is; give --eot=10 (in Python eot=10)"
        )
    before = NOTE if eot and eot > 1 and found != UNSEEDED else ""
    text = f"{before}the model is random in predict: {attacked}."
    if found == UNSEEDED:
        text += (
            " Some of its random numbers are drawn without a seed (tf.random), so "
            "results cannot be repeated exactly; draw them with keras.random and a "
            "keras.random.SeedGenerator."
        )
    return text


def say_once(model: Any, images: tf.Tensor, eot: int | None) -> str:
    """Logs the warning, once for each model and wording; returns it."""
    text = warning(model, images, eot)
    if text and text not in _SAID.setdefault(model, set()):
        _SAID[model].add(text)
        logging.warning("%s", text)
    return text
