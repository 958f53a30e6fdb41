# SPDX-License-Identifier: Apache-2.0
"""Turns a model that expects another range into one that takes images in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from mtr_tf.models import adapters


def in_front(
    model: keras.Model,
    scale: Sequence[float],
    offset: Sequence[float],
    channels: int | None = None,
) -> keras.Model:
    """Returns the model applied to `scale * images + offset`, by channel.

    The model's own layers are called again one by one, not hidden inside a new layer,
    so batch norms fold as before.

    Args:
      model: Functional, with one input `[batch, H, W, channels]`.
      scale: One number per channel, or any number of equal ones.
      offset: The same.
      channels: How many channels, counted from the first, are the image's; None: all.
        The others are not changed.
    """
    batch, *shape = model.input_shape
    if channels and channels < shape[-1]:
        num_extra = shape[-1] - channels
        scale, offset = (
            [
                *(numbers if len(numbers) == channels else numbers[:1] * channels),
                *filler * num_extra,
            ]
            for numbers, filler in (([*scale], [1.0]), ([*offset], [0.0]))
        )
    if len({*scale}) == len({*offset}) == 1:
        scale, offset = scale[:1], offset[:1]
    image = adapters.new_image(model, shape, batch)
    # Three axes: they apply to the last one, whatever Keras's global data format is.
    factors = (np.reshape(numbers, (1, 1, -1)).tolist() for numbers in (scale, offset))
    name = adapters.free_name("to_input_range", adapters.names_in(model) | {image.name})
    front = keras.layers.Rescaling(*factors, dtype="float32", name=name)
    outputs = adapters.called_on(model, front(image))
    return keras.Model(image, outputs, name=model.name)
