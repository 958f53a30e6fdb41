# SPDX-License-Identifier: Apache-2.0
"""Rebuilds a model from Keras's own layers, so that it loads without this package."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from mtr_tf.errors import InputError
from mtr_tf.models.layers import BilinearUpSampling
from mtr_tf.models.pooling import MaxPooling


def plain(model: keras.Model) -> keras.Model:
    """Returns a copy, with the same names and weights, whose outputs are equal.

    Raises:
      InputError: The model is not functional, or has a layer that belongs neither to
        Keras nor to this package.
    """
    if type(model).__name__ != "Functional":
        raise InputError(
            "only a functional model, keras.Model(inputs, outputs), can be exported; "
            f"this one is a {type(model).__name__}."
        )
    for layer in model._flatten_layers(include_self=False):
        is_keras = type(layer).__module__.split(".")[0] == "keras"
        if not is_keras and type(layer) not in _REPLACEMENTS:
            raise InputError(
                "all layers must be Keras's own so that the model loads elsewhere; "
                f"{layer.name} is a {type(layer).__module__}.{type(layer).__name__}."
            )
        if type(layer) in _REPLACEMENTS and layer not in model.layers:
            raise InputError(
                f"the layer {layer.name} is inside another layer; only layers of the "
                "model itself can be replaced by Keras's own."
            )
    copy = keras.models.clone_model(model, call_function=_call, clone_function=_clone)
    config = keras.saving.serialize_keras_object(copy)
    if foreign_name := next(filter(None, map(_foreign_name, parts(config))), ""):
        raise InputError(
            "all functions of layers must be Keras's own so that the model loads "
            f"elsewhere, but it has {foreign_name}; use layers of Keras instead."
        )
    for layer in model.layers:
        if layer.weights:
            copy.get_layer(layer.name).set_weights(layer.get_weights())
    return copy


def parts(config: Any) -> Iterator[dict[str, Any]]:
    """Yields all dicts in a config that Keras saves, from the outside in."""
    if isinstance(config, dict):
        yield config
        config = config.values()
    elif not isinstance(config, list | tuple):
        return
    for part in config:
        yield from parts(part)


def _foreign_name(part: Mapping[str, Any]) -> str:
    """Returns the name of a user's own class or function; "" for anything else."""
    name = part.get("registered_name")
    is_function = part.get("class_name") == "function"
    return name if isinstance(name, str) and (">" in name or is_function) else ""


def _clone(layer: keras.Layer) -> keras.Layer:
    """Returns a copy of a layer; for ours, which `_call` replaces, the layer itself."""
    if type(layer) in _REPLACEMENTS:
        return layer
    config = layer.get_config()
    if isinstance(layer, keras.layers.BatchNormalization):
        config["synchronized"] = False  # Only training knows of replicas.
    return type(layer).from_config(config)


def _call(layer: keras.Layer, *tensors: Any, **options: Any) -> Any:
    replace = _REPLACEMENTS.get(type(layer))
    return replace(layer, *tensors) if replace else layer(*tensors, **options)


def _pool(layer: MaxPooling, x: Any) -> Any:
    return keras.layers.MaxPooling2D.from_config(layer.get_config())(x)


def _upsample(layer: BilinearUpSampling, x: Any) -> Any:
    """Up-samples by Keras's layers.

    With zeros outside the map, the triangle of length 2 factor that spreads a value is
    a box of length `factor` (repeating the value), convolved with the kernel
    (1/2, 1, ..., 1, 1/2) / factor.
    """
    factor, dtype, name = layer.factor, layer.dtype_policy, layer.name
    if layer.replicate:
        return keras.layers.UpSampling2D(
            factor, interpolation="bilinear", dtype=dtype, name=name
        )(x)
    x = keras.layers.UpSampling2D(factor, dtype=dtype, name=f"{name}_repeat")(x)
    blur = keras.layers.DepthwiseConv2D(
        factor + 1, padding="same", use_bias=False, dtype=dtype, name=name
    )
    blur.trainable = False
    x = blur(x)
    weights = np.ones(factor + 1)
    weights[[0, -1]] = 0.5
    kernel = np.outer(weights, weights)[:, :, None, None] / factor**2
    blur.set_weights([np.broadcast_to(kernel, blur.kernel.shape)])
    return x


_REPLACEMENTS = {BilinearUpSampling: _upsample, MaxPooling: _pool}
