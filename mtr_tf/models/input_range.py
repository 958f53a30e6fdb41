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
    if len({*scale}) == len({*offset}) == 1:
        scale, offset = scale[:1], offset[:1]
    image = adapters.new_image(model, shape, batch)
    # Of so many axes, they are of the last one, whatever Keras's global order is.
    factors = (np.reshape(each, (1, 1, -1)).tolist() for each in (scale, offset))
    name = adapters.free_name("to_input_range", adapters.names_in(model) | {image.name})
    front = keras.layers.Rescaling(*factors, dtype="float32", name=name)
    outputs = adapters.called_on(model, front(image))
    return keras.Model(image, outputs, name=model.name)
