# SPDX-License-Identifier: Apache-2.0
"""Turns a model that expects another range into one that takes images in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from mtr_tf.models import adapters


def in_front(
    model: keras.Model,
    scale: Sequence[float],
    offset: Sequence[float],
    channels: int | None = None,
) -> keras.Model:
    """Returns the model of `scale * images + offset`, by channel.

    Its layers, which are the model's own, are called anew one by one, so that nothing
    of it is hidden in a layer of its own: batch norms fold as before.

    Args:
      model: Functional, with one input `[batch, H, W, channels]`.
      scale: A number per channel; or any count of equal ones.
      offset: Another.
      channels: How many of the channels, the first ones, are the image's; None: all.
        Others stay as they are.
    """
    batch, *shape = model.input_shape
    if channels and channels < shape[-1]:
        behind = shape[-1] - channels
        scale, offset = (
            [*(n if len(n) == channels else n[:1] * channels), *rest * behind]
            for n, rest in (([*scale], [1.0]), ([*offset], [0.0]))
        )
    if len(scale) != shape[-1] and len({*scale}) == len({*offset}) == 1:
        scale, offset = scale[:1], offset[:1]
    image = keras.Input(tuple(shape), batch, dtype="float32", name="image")
    front = keras.layers.Rescaling(
        *(list(numbers) for numbers in (scale, offset)),
        dtype="float32",
        name=_free_name(model),
    )
    outputs = adapters.called_on(model, front(image))
    return keras.Model(image, outputs, name=model.name)


def _free_name(model: keras.Model) -> str:
    name = "to_input_range"
    names = {layer.name for layer in model.layers}
    while name in names:
        name += "_"
    return name
